"""From a model specification to a network: any module, named by an import string.

There is no registry: ``factory: distiller.networks:resnet20`` or any other callable that can be
imported. Factories are trusted like code; weights are not: they are read by safetensors or with
``weights_only=True``, so a weights file can never run code. The specification itself is parsed
without torch (``buffer.config``); this module builds it.

Letters in shapes: B batch, K classes, C channels, H height, W width.
"""

from __future__ import annotations

import difflib
import importlib
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from buffer.config import ModelSpec
from buffer.errors import ModelError

StateDict = Mapping[str, Tensor]


class NormalizedModel(nn.Module):
    """A network that takes images in [0, 1] and normalises them itself.

    Args:
        network: takes normalised images ``[B, C, H, W]``, returns logits ``[B, K]``.
        mean: per channel.
        std: per channel.
    """

    def __init__(self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.network = network
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[B, K]`` of images ``[B, C, H, W]`` in [0, 1]."""
        logits: Tensor = self.network((images - self.mean) / self.std)
        return logits


def resolve(import_string: str) -> Callable[..., Any]:
    """The callable an import string names.

    Raises:
        ModelError: no such module or attribute (with the nearest name), a module that cannot be
            imported (with its own words), or not callable.
    """
    module_name, _, attribute = import_string.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and not f"{module_name}.".startswith(f"{error.name}."):
            raise ModelError(
                f"{import_string}: {module_name} needs the package {error.name}, "
                "which is not installed"
            ) from error
        raise ModelError(f"{import_string}: there is no module {module_name}") from error
    except ImportError as error:
        raise ModelError(
            f"{import_string}: {module_name} cannot be imported: {_first_line(error)}"
        ) from error
    found = getattr(module, attribute, None)
    if found is None:
        near = difflib.get_close_matches(attribute, dir(module), n=1)
        hint = f"; did you mean {module_name}:{near[0]}?" if near else ""
        raise ModelError(f"{import_string}: {module_name} has no {attribute}{hint}")
    if not callable(found):
        raise ModelError(f"{import_string} is {type(found).__name__}, not a callable")
    resolved: Callable[..., Any] = found
    return resolved


def build(spec: ModelSpec, *, weights: StateDict | None = None) -> NormalizedModel:
    """Builds the network of a specification, in float32 on the CPU.

    Args:
        spec: what to build.
        weights: loaded instead of the file that ``spec.weights`` names.

    Raises:
        ModelError: the factory is unknown or fails, or the weights do not fit.
    """
    factory = resolve(spec.factory)
    try:
        network = factory(**spec.kwargs)
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"{spec.factory} with kwargs {spec.kwargs}: {error}") from error
    if not isinstance(network, nn.Module):
        raise ModelError(f"{spec.factory} returned {type(network).__name__}, not a torch module")
    if weights is None and spec.weights is not None:
        weights = read_weights(Path(spec.weights))
    if weights is not None:
        load_weights(network, weights, origin=spec.weights or "the given weights")
    return NormalizedModel(network, spec.mean, spec.std)


def check_outputs(model: NormalizedModel, spec: ModelSpec, *, field: str) -> None:
    """Runs two blank images through the network and compares the output's shape with the task.

    Raises:
        ModelError: the network cannot take the images or returns something else than ``[2, K]``.
    """
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            outputs = model(torch.zeros(2, *spec.image_shape))
    except (RuntimeError, ValueError, TypeError) as error:
        raise ModelError(
            f"{field}.image_shape ({spec.image_shape}): {spec.factory} cannot take such images: "
            f"{_first_line(error)}"
        ) from error
    finally:
        model.train(training)
    shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
    if shape != (2, spec.classes):
        raise ModelError(
            f"{field}.classes ({spec.classes}): {spec.factory} returns {shape} for two images, "
            f"not (2, {spec.classes})"
        )


def read_weights(path: Path) -> StateDict:
    """Reads a state dict without running code from it.

    Raises:
        ModelError: the file is missing, or is not a plain state dict of tensors.
    """
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ModelError(
            f"weights ({path}): there is no such file; on a cluster every node needs it"
        ) from error
    except (OSError, RuntimeError, SafetensorError, pickle.UnpicklingError, EOFError) as error:
        raise ModelError(f"weights ({path}) cannot be read safely: {_first_line(error)}") from error
    if not isinstance(loaded, Mapping) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise ModelError(f"weights ({path}) hold {type(loaded).__name__}, not a plain state dict")
    return loaded


def load_weights(network: nn.Module, weights: StateDict, *, origin: str, shown: int = 5) -> None:
    """Copies a state dict into a network, all of it or nothing.

    Raises:
        ModelError: a layer is missing, unexpected or of another shape; lists the first of them.
    """
    own = network.state_dict()
    problems = [
        f"{name}: the weights have {tuple(weights[name].shape)}, the network {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    # Counters of seen batches are absent from older files and never used.
    optional = {name for name in own if name.endswith("num_batches_tracked")}
    problems += [f"{n}: not in the weights" for n in own if n not in weights and n not in optional]
    problems += [f"{name}: not in the network" for name in weights if name not in own]
    if problems:
        more = f"\n  and {len(problems) - shown} more" if len(problems) > shown else ""
        listed = "\n  ".join(problems[:shown])
        raise ModelError(f"{origin} does not fit {type(network).__name__}:\n  {listed}{more}")
    network.load_state_dict(dict(weights), strict=False)


def to_bytes(model: NormalizedModel) -> bytes:
    """The network's weights as safetensors bytes, under the network's own parameter names."""
    state = {
        name: tensor.detach().to("cpu").contiguous()
        for name, tensor in model.network.state_dict().items()
    }
    return safetensors.torch.save(state)


def from_bytes(data: bytes) -> StateDict:
    """The inverse of :func:`to_bytes`.

    Raises:
        ModelError: the bytes are not safetensors.
    """
    try:
        return safetensors.torch.load(data)
    except SafetensorError as error:
        raise ModelError(f"student snapshot is not safetensors: {error}") from error


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The autocast type for a ``run.precision``; ``None`` computes in float32.

    Why ``auto`` takes bfloat16 where the hardware computes in it: 1.7 times faster than float32 on
    a CPU with AVX-512 BF16, for training and for inversion (``tests/benchmarks/precision.py``).
    """
    if precision == "float32":
        return None
    if precision == "bfloat16":
        return torch.bfloat16
    if device.type == "cuda":
        capable = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capable = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if capable else None


def _first_line(error: Exception) -> str:
    """What an error says, in one line: that of its type if it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
