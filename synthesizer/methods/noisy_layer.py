"""NAYER's noisy layer: a generator that is told the class, with the noise in a layer before it.

What goes in is a constant embedding of each class. Chance is in the layer between embedding and
generator: it is made anew each round and trained together with the generator, so that one layer's
images differ from the next one's. A layer makes one image of each class, and a batch takes as many
layers as that needs. The generator itself starts anew every few rounds. Source: Tran et al.
2024, https://arxiv.org/abs/2310.00258; its embeddings are a text encoder's, ours are one-hot, so
that classes need no names.

Letters in shapes: B batch, K classes, D latent dimension, N noisy layers.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from buffer.config import Positive
from buffer.parsing import Table
from synthesizer.config import SynthesizerFile
from synthesizer.descent import BETAS, Descent, needs, settings_of
from synthesizer.generators import ConvGenerator, initialize
from synthesizer.methods import Context, Requirements, SampleBatch


class NoisyLayerTable(Table):
    """``synthesizer.kwargs`` of ``noisy_layer``."""

    inner_steps: Positive = 30
    """Adam steps per round, of noisy layers and generator together."""
    generator_lr: Annotated[float, Field(gt=0)] = 4e-3
    """Learning rate of both."""
    latent_dim: Positive = 256
    """D: size of what the noisy layer hands to the generator."""
    width: Annotated[int, Field(ge=2)] = 128
    """Channels of the generator's first feature map."""
    generator_rounds: Positive | None = 10
    """The generator starts anew after so many rounds; ``None``: never."""
    bn_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Share of earlier rounds in the moments that are matched; 0 matches each batch alone."""


class NoisyLayers(nn.Module):
    """N layers at once: class embeddings to latents, linearly.

    Args:
        count: N.
        classes: K.
        latent_dim: D.
        rng: on the device of the layers; the only source of randomness.
    """

    def __init__(self, count: int, classes: int, latent_dim: int, rng: torch.Generator) -> None:
        super().__init__()
        # As PyTorch's constructors draw them, for inputs of K numbers.
        bound, device = 1.0 / math.sqrt(classes), rng.device
        self.weight, self.bias = (
            nn.Parameter(torch.empty(shape, device=device).uniform_(-bound, bound, generator=rng))
            for shape in ((count, classes, latent_dim), (count, 1, latent_dim))
        )
        one_hot = torch.eye(classes, device=device)
        # What batch normalisation would make of them.
        self.embeddings = (one_hot - one_hot.mean()) / one_hot.std(dim=0, correction=0)

    def forward(self) -> Tensor:
        """Latents ``[N * K, D]``, layer by layer, each in the order of the classes."""
        embeddings = self.embeddings.expand(len(self.weight), -1, -1)
        return torch.baddbmm(self.bias, embeddings, self.weight).flatten(0, 1)


class NoisyLayer:
    """The method ``noisy_layer``; settings in :class:`NoisyLayerTable`.

    Raises:
        ConfigError: a keyword argument is unknown or impossible.
    """

    def __init__(self, config: SynthesizerFile, **kwargs: Any) -> None:
        self.settings = settings_of(NoisyLayerTable, kwargs)
        self.size = config.synthesizer.batch_size
        self.classes = config.teacher.classes
        self.image_shape = config.teacher.image_shape
        self.descent = Descent(
            config.synthesizer,
            momentum=self.settings.bn_momentum,
            rate=self.settings.generator_lr,
        )
        self.rounds = 0
        self._loaded: dict[str, Any] | None = None

    def requirements(self, config: SynthesizerFile) -> Requirements:
        """See :func:`synthesizer.descent.needs`."""
        return needs(config)

    def prepare(self, context: Context) -> None:
        """Builds the generator; takes no time."""
        generator = ConvGenerator(
            self.image_shape, latent_dim=self.settings.latent_dim, width=self.settings.width
        )
        self.generator = generator.to(context.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self._loaded is None:
            initialize(self.generator, context.generator)
        else:
            self.generator.load_state_dict(self._loaded["generator"])
            self.descent.load_state_dict(self._loaded["averages"], context.device)
            self.rounds = self._loaded["rounds"]
            self._loaded = None

    def round(self, context: Context) -> SampleBatch:
        """Steps of new noisy layers and the generator.

        Raises:
            Diverged: the loss of a step is not finite.
        """
        lifetime = self.settings.generator_rounds
        if lifetime is not None and self.rounds > 0 and self.rounds % lifetime == 0:
            initialize(self.generator, context.generator)
        latent_dim, rng = self.settings.latent_dim, context.generator
        # Each round goes on with the class after the last one's: all are asked for equally often.
        first = self.rounds * self.size % self.classes
        rows = slice(first, first + self.size)
        layers = NoisyLayers(-(-rows.stop // self.classes), self.classes, latent_dim, rng)
        labels = torch.arange(rows.start, rows.stop, device=context.device) % self.classes
        parameters = [*self.generator.parameters(), *layers.parameters()]
        optimizer = torch.optim.Adam(parameters, self.settings.generator_lr, BETAS, fused=True)
        self.descent.begin()
        for _ in range(self.settings.inner_steps):
            optimizer.zero_grad()
            self.descent.step(lambda: self.generator(layers()[rows]), labels, context)
            optimizer.step()
        self.rounds += 1
        return self.descent.end(labels)

    def state_dict(self) -> dict[str, Any]:
        """Generator, moment averages and the number of rounds."""
        return {
            "generator": self.generator.state_dict(),
            "averages": self.descent.state_dict(),
            "rounds": self.rounds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Has :meth:`prepare` go on where :meth:`state_dict` was taken."""
        self._loaded = state
