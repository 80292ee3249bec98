"""How good the student is on real test data: measured and reported, never used for any decision.

Letters in shapes: N images, K classes, C channels, H height, W width.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from buffer.config import IMPORT_STRING, EvaluationTable, ModelSpec
from buffer.errors import ConfigError
from buffer.models import resolve
from distiller.augment import to_unit
from distiller.losses import jensen_shannon


@dataclass(frozen=True)
class EvaluationSet:
    """Labelled test images."""

    images: NDArray[np.uint8]
    """``[N, C, H, W]``."""
    labels: NDArray[np.int64]
    """``[N]``, in [0, K)."""
    batch_size: int = 500
    """Images per forward pass."""

    @classmethod
    def load(cls, table: EvaluationTable, spec: ModelSpec) -> Self:
        """Reads the test data of a configuration and checks that the models can be shown it.

        Args:
            table: its ``data`` is an ``.npz`` with ``images`` and ``labels``, or an import string
                of a function that returns both; images are uint8 ``[N, C, H, W]``,
                ``[N, H, W, C]`` or ``[N, H, W]``.
            spec: says the images' shape and the number of classes.

        Raises:
            ConfigError: there is no such data, or it does not fit ``spec``.
            ModelError: the import string names nothing.
        """
        if table.data is None:
            raise ConfigError("evaluation.data (None): there is nothing to evaluate on")
        where = f"evaluation.data ({table.data})"
        if IMPORT_STRING.fullmatch(table.data):
            images, labels = resolve(table.data)()
        else:
            images, labels = _read(Path(table.data), where)
        images, labels = np.asarray(images), np.asarray(labels)
        fitting = _channels_first(images, spec, where)
        _check_labels(labels, len(fitting), spec, where)
        return cls(fitting, labels.astype(np.int64), table.batch_size)

    def logits(self, model: nn.Module, *, device: torch.device | None = None) -> Tensor:
        """Logits ``[N, K]`` of all images, on the CPU.

        In eval mode and in float32, whatever precision the training has; the model is left in the
        mode it was in.

        Args:
            model: takes images in [0, 1], on ``device``.
            device: default: the CPU.
        """
        training = model.training
        model.eval()
        parts = []
        with torch.no_grad():
            for start in range(0, len(self.images), self.batch_size):
                chunk = torch.from_numpy(self.images[start : start + self.batch_size]).to(device)
                inputs = to_unit(chunk).contiguous(memory_format=torch.channels_last)
                parts.append(model(inputs).float().cpu())
        model.train(training)
        return torch.cat(parts)

    def accuracy(self, model: nn.Module, *, device: torch.device | None = None) -> float:
        """Top-1 accuracy of a model, percent."""
        return accuracy(self.logits(model, device=device), torch.from_numpy(self.labels))

    def compare(
        self, teacher: nn.Module, student: nn.Module, *, device: torch.device | None = None
    ) -> dict[str, float]:
        """``teacher_accuracy``, ``student_accuracy``, ``agreement`` and ``loyalty``, percent."""
        labels = torch.from_numpy(self.labels)
        theirs, ours = self.logits(teacher, device=device), self.logits(student, device=device)
        return {
            "teacher_accuracy": accuracy(theirs, labels),
            "student_accuracy": accuracy(ours, labels),
            "agreement": agreement(ours, theirs),
            "loyalty": loyalty(ours, theirs),
        }


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of labels that are the largest logit: ``[N, K]`` and ``[N]`` to percent."""
    return 100.0 * (logits.argmax(dim=1) == labels).double().mean().item()


def agreement(student_logits: Tensor, teacher_logits: Tensor) -> float:
    """Agree@1: share of equal argmax of two ``[N, K]`` logits, percent."""
    return accuracy(student_logits, teacher_logits.argmax(dim=1))


def loyalty(student_logits: Tensor, teacher_logits: Tensor) -> float:
    """Probability loyalty: ``100 mean(1 - sqrt(JS))`` of two ``[N, K]`` logits, percent.

    JS is the Jensen-Shannon divergence of the softmax outputs in bits, so that 0 means disjoint and
    100 equal distributions (Xu et al. 2021, https://arxiv.org/abs/2109.03228).
    """
    divergence = jensen_shannon(student_logits, teacher_logits)
    return 100.0 * (1.0 - divergence.sqrt()).mean().item()


def _read(path: Path, where: str) -> tuple[NDArray[Any], NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return archive["images"], archive["labels"]
    except FileNotFoundError as error:
        raise ConfigError(
            f"{where}: there is no such file; on a cluster every node needs it"
        ) from error
    except KeyError as error:
        raise ConfigError(f"{where}: the archive lacks images or labels: {error}") from error
    except (OSError, ValueError, TypeError, AttributeError, EOFError, BadZipFile) as error:
        raise ConfigError(f"{where} is not an .npz of plain arrays: {error}") from error


def _channels_first(images: NDArray[Any], spec: ModelSpec, where: str) -> NDArray[np.uint8]:
    """uint8 images as ``[N, C, H, W]``; channels may come first, last or, if single, be absent."""
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or len(images) == 0:
        raise ConfigError(
            f"{where}: images are {images.dtype} of shape {images.shape}, not uint8 [N, H, W], "
            "[N, H, W, C] or [N, C, H, W]: pixels would mean something else than in training"
        )
    fitting = images
    if images.ndim == 3:
        fitting = images[:, np.newaxis]
    elif images.shape[1:] != spec.image_shape:
        fitting = images.transpose(0, 3, 1, 2)
    if fitting.shape[1:] != spec.image_shape:
        raise ConfigError(
            f"{where}: images of shape {images.shape[1:]} do not fit image_shape "
            f"{spec.image_shape}: no model could be shown them"
        )
    return np.ascontiguousarray(fitting)


def _check_labels(labels: NDArray[Any], count: int, spec: ModelSpec, where: str) -> None:
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
        raise ConfigError(
            f"{where}: labels are {labels.dtype} of shape {labels.shape}, not integers "
            f"({count},): accuracy would be meaningless"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= spec.classes:
        raise ConfigError(
            f"{where}: labels reach from {low} to {high}, outside the {spec.classes} classes of "
            "the teacher: those images could never be right"
        )
