"""A method from outside that trains for long before it produces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch

from synthesizer.config import SynthesizerFile
from synthesizer.methods import Context, Requirements, SampleBatch

STEPS = 10


class TrainsFirst:
    """Counts to ``STEPS`` in ``prepare``; its images show the count."""

    during_step: ClassVar[Callable[[int], None]] = lambda step: None
    """Called in each step of the preparation: a test's way to look in."""

    def __init__(self, config: SynthesizerFile) -> None:
        self.config = config
        self.count = torch.zeros((), dtype=torch.int64)

    def requirements(self, config: SynthesizerFile) -> Requirements:
        return Requirements()

    def prepare(self, context: Context) -> None:
        while self.count < STEPS and not context.stopping():
            self.count += 1
            type(self).during_step(int(self.count))
            context.report(float(self.count) / STEPS)

    def round(self, context: Context) -> SampleBatch:
        size = self.config.synthesizer.batch_size
        noise = torch.rand(size, *self.config.teacher.image_shape, generator=context.generator)
        labels = torch.full((size,), -1)
        return SampleBatch((255 * noise).to(torch.uint8), labels, torch.zeros_like(labels), {})

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]
