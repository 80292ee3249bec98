"""What an inversion method is, and how one is found by name.

A method turns latent noise (or nothing) into batches of images that a frozen teacher takes for
training data. It knows nothing of Ray, Redis or actors: everything it may look at, and everyone it
may talk to, is in its :class:`Context`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from buffer.errors import ModelError
from buffer.models import NormalizedModel, resolve
from buffer.params import SamplingParams
from buffer.progress import StudentProgress
from synthesizer.config import SynthesizerFile
from synthesizer.teacher import Teacher


@dataclass(frozen=True)
class Requirements:
    """What a method needs from the rest of the system, checked before anything starts."""

    selectors: frozenset[str] = frozenset({"prioritized", "uniform"})
    """Buffer selectors it works with."""
    label_modes: frozenset[str] = frozenset({"target", "argmax"})
    """Label modes it works with."""
    targets: frozenset[str] = frozenset()
    """Names of targets that must be stored with each of its images. There are ``logits``, the
    teacher's, which the inverter stores whoever made the image."""
    teacher_features: frozenset[str] = frozenset()
    """What it must be able to see of the teacher beside its logits. There are
    ``batchnorm_moments``, of teachers with BatchNorm layers that keep running statistics."""
    refused: tuple[str, ...] = ()
    """Combinations of settings it cannot work with, each as one line that names field, value and
    consequence."""


@dataclass
class Context:
    """All a method may look at, and how it speaks while it prepares."""

    teacher: Teacher
    device: torch.device
    generator: torch.Generator
    """The only source of randomness, on ``device``."""
    autocast: torch.dtype | None = None
    """Autocast type of networks; ``None`` computes in float32."""
    student: NormalizedModel | None = None
    """The newest student snapshot, frozen, in eval mode; ``None`` before the first."""
    progress: StudentProgress | None = None
    """The newest progress; ramps follow its elapsed share."""
    params: SamplingParams = field(default_factory=SamplingParams)
    """The sampling parameters in force."""
    class_counts: Tensor | None = None
    """``[K]`` buffered samples per predicted class; ``None`` for an empty buffer."""
    warmed_up: bool = False
    """``synthesizer.warm_up_samples`` have been inserted: adversarial terms may start."""
    report: Callable[[float], None] = lambda share: None
    """Takes how far :meth:`Method.prepare` is, in [0, 1]. Called wherever ``state_dict`` holds all
    that was reached, since it may be saved right then."""
    stopping: Callable[[], bool] = lambda: False
    """Whether the synthesizer has been told to end: ``prepare`` is to return soon."""


@dataclass(frozen=True)
class SampleBatch:
    """What one round made, before the teacher has judged the stored 8-bit images."""

    images: Tensor
    """``[B, C, H, W]`` uint8."""
    target_labels: Tensor
    """``[B]`` int64; -1 where nothing was asked for."""
    members: Tensor
    """``[B]`` int64: which generator made it."""
    losses: Mapping[str, float]
    """Mean of each loss term at the kept step, for metrics."""
    modulation: float | None = None
    """Mean of phi there, before it is normalised, for metrics; ``None``: the method has none."""


class Method(Protocol):
    """An inversion method. Constructed as ``Class(config, **config.synthesizer.kwargs)``.

    Then called in this order: ``load_state_dict`` (if it goes on from a predecessor's state),
    ``prepare`` once, ``round`` again and again.
    """

    def requirements(self, config: SynthesizerFile) -> Requirements:
        """What it needs; called in the validate stage, before any resource is taken."""
        ...

    def prepare(self, context: Context) -> None:
        """Builds its networks; may train for long without producing.

        Then it says how far it is (``context.report``), ends early if it is told to
        (``context.stopping``), and goes on where a loaded state ended, so that neither a stop nor a
        crash costs what it has learned.
        """
        ...

    def round(self, context: Context) -> SampleBatch:
        """One round: ``batch_size`` images."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on elsewhere: tensors, numbers, strings and containers only.

        Asked for once ``prepare`` has returned or reported, never during a round.
        """
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Has :meth:`prepare` go on where :meth:`state_dict` was taken.

        By the same method, with the same settings, for the same teacher.
        """
        ...


BUILT_IN = {
    "fast_meta": "synthesizer.methods.fast_meta:FastMeta",
    "noisy_layer": "synthesizer.methods.noisy_layer:NoisyLayer",
}


def find(name: str) -> Any:
    """The class of a method, by its name here or by an import string.

    Raises:
        ModelError: unknown name or import string.
    """
    if name not in BUILT_IN and ":" not in name:
        raise ModelError(
            f"synthesizer.method ({name}): not one of {', '.join(sorted(BUILT_IN))} "
            "and not an import string package.module:Class"
        )
    return resolve(BUILT_IN.get(name, name))
