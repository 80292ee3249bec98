"""The frozen teacher: logits, and the statistics of its BatchNorm layers.

Letters in shapes: B batch, K classes, C channels, H height, W width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from buffer.models import NormalizedModel
from synthesizer.statistics import Recorded, batchnorm_layers, recording


def freeze(model: NormalizedModel, device: torch.device) -> NormalizedModel:
    """Moves a model to ``device`` for inference only: eval mode, no gradient to its weights.

    Weights are laid out channels last, which convolutions compute fastest in.
    """
    frozen: NormalizedModel = model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return frozen.eval().requires_grad_(False)


class Teacher:
    """A teacher that only answers. Gradient flows to its images, never to its weights.

    Args:
        model: takes images in [0, 1]; any modules inside, found by hooks.
        classes: K.
        device: where it computes.
    """

    def __init__(
        self, model: NormalizedModel, *, classes: int, device: torch.device | None = None
    ) -> None:
        self.model = freeze(model, device or torch.device("cpu"))
        self.classes = classes
        self.layers = batchnorm_layers(self.model)

    def logits(self, images: Tensor) -> Tensor:
        """``[B, K]`` logits of images ``[B, C, H, W]`` in [0, 1]."""
        logits: Tensor = self.model(images)
        return logits

    def forward_with_statistics(self, images: Tensor) -> tuple[Tensor, list[Recorded]]:
        """One forward pass: logits ``[B, K]``, and the moments at each BatchNorm call.

        The list is empty for a model without BatchNorm, and holds a layer twice that is called
        twice.
        """
        with recording(self.layers) as calls:
            logits = self.logits(images)
        return logits, calls
