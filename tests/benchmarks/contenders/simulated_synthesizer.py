"""A synthesizer whose GPU is simulated: what a GPU would do takes time and no processor.

The rest is the service's own. :class:`Sleeps` stands for the inversion, :class:`Glance` for teacher
and student.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn

from synthesizer.config import SynthesizerFile
from synthesizer.methods import Context, Requirements, SampleBatch

SEEN = 8
"""Pixels of the side of an image's corner, all that a network looks at."""
BATCHES = 4
"""Made beforehand and handed out in turn."""


class Glance(nn.Module):
    """Logits from a corner of each image.

    Args:
        classes: K.
        others: weights that are only read and written, as many as a real network has.
    """

    def __init__(self, classes: int, others: int = 0) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * SEEN * SEEN, classes)
        self.others = nn.Parameter(torch.zeros(others))

    def forward(self, images: Tensor) -> Tensor:
        """``[B, K]`` logits."""
        logits: Tensor = self.linear(images[..., :SEEN, :SEEN].flatten(1))
        return logits


class OnGpu(Tensor):
    """Images of which networks get a corner only: a GPU would convert all of each."""

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        """The corner, converted."""
        return self.as_subclass(Tensor)[..., :SEEN, :SEEN].to(*args, **kwargs)


class Sleeps:
    """Sleeps instead of inverting, then hands out random images of real size.

    The only thing a method tells the outside are its losses: one of them is when the round began,
    so that what lies between two rounds is counted too.

    Args:
        config: the run.
        seconds: of a round.
    """

    def __init__(self, config: SynthesizerFile, *, seconds: float) -> None:
        self._shape = (config.synthesizer.batch_size, *config.teacher.image_shape)
        self._classes, self._seconds, self._rounds = config.teacher.classes, seconds, 0

    def requirements(self, config: SynthesizerFile) -> Requirements:
        """None."""
        return Requirements()

    def prepare(self, context: Context) -> None:
        """Makes the images."""
        size, rng = (BATCHES, *self._shape), context.generator
        self._images = torch.randint(256, size, generator=rng, dtype=torch.uint8)
        self._labels = torch.randint(self._classes, size[:2], generator=rng)

    def round(self, context: Context) -> SampleBatch:
        """A sleep."""
        began = time.monotonic()
        time.sleep(self._seconds)
        turn = self._rounds % BATCHES
        self._rounds += 1
        labels = self._labels[turn]
        images = self._images[turn].as_subclass(OnGpu)
        return SampleBatch(images, labels, torch.zeros_like(labels), {"began": began})

    def state_dict(self) -> dict[str, Any]:
        """Nothing: checkpoints are written by the minute, whatever there is in them."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing."""
