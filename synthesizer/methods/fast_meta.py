"""Fast-DFKD's meta generator with SSD-KD's modulated task term: the default method.

One round draws fresh latents and labels, clones the shared generator, and takes k Adam steps on
clone and latents together; the images of the step with the lowest loss leave. The shared generator
then learns to be a good start: first-order MAML adds up the clone's k gradients for one Adam step
(Reptile: the way from the clone back to the shared weights). Source: Fang et al. 2022,
https://arxiv.org/abs/2112.06253, with the loss of SSD-KD (https://arxiv.org/abs/2406.07876):

    L = w_bn * L_BN + w_task * mean(phi * CE) - w_adv * mean(KL(teacher || student))

Letters in shapes: B batch, K classes, C channels, H height, W width, D latent dimension.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from buffer.config import Positive
from buffer.parsing import Table
from synthesizer.config import SynthesizerFile
from synthesizer.descent import BETAS, Descent, needs, settings_of
from synthesizer.generators import ConvGenerator, initialize
from synthesizer.methods import Context, Requirements, SampleBatch

PUBLISHED_RATES = {2: (0.015, 5e-3), 5: (0.01, 3e-3), 10: (0.01, 2e-3)}
"""(latent_lr, generator_lr) of Fast-DFKD's scripts, by number of inner steps."""


class FastMetaTable(Table):
    """``synthesizer.kwargs`` of ``fast_meta``."""

    inner_steps: Positive = 5
    """k: Adam steps per round; more make better images, slower."""
    latent_lr: Annotated[float, Field(gt=0)] | None = None
    """Learning rate of the latents; default for k = 2, 5 and 10: the published one."""
    generator_lr: Annotated[float, Field(gt=0)] | None = None
    """Learning rate of the clone, and a k-th of the shared generator's; default likewise."""
    latent_dim: Positive = 256
    """D: size of the noise a generator starts from."""
    width: Annotated[int, Field(ge=2)] = 128
    """Channels of the generator's first feature map."""
    outer: Literal["maml", "reptile"] = "maml"
    """How the shared generator learns from the clone."""
    bn_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Share of earlier rounds in the moments that are matched; 0 matches each batch alone."""
    reset_after_rounds: Positive | None = 120
    """The generator's first layers start anew, once, so many rounds after the warm-up; ``None``:
    never."""

    @model_validator(mode="after")
    def _rates_are_known(self) -> Self:
        unset = self.latent_lr is None or self.generator_lr is None
        if unset and self.inner_steps not in PUBLISHED_RATES:
            raise ValueError(
                f"inner_steps ({self.inner_steps}) has no published learning rates, only 2, 5 and "
                "10 do: set latent_lr and generator_lr too"
            )
        return self

    @property
    def rates(self) -> tuple[float, float]:
        """The learning rates of latents and clone in force."""
        latent_lr, generator_lr = PUBLISHED_RATES.get(self.inner_steps, (0.0, 0.0))
        return self.latent_lr or latent_lr, self.generator_lr or generator_lr


class FastMeta:
    """The method ``fast_meta``; settings in :class:`FastMetaTable`.

    Raises:
        ConfigError: a keyword argument is unknown or impossible.
    """

    def __init__(self, config: SynthesizerFile, **kwargs: Any) -> None:
        self.settings = settings_of(FastMetaTable, kwargs)
        self.table = config.synthesizer
        self.image_shape = config.teacher.image_shape
        self.descent = Descent(
            self.table, momentum=self.settings.bn_momentum, rate=self.settings.rates[1]
        )
        self.rounds_warmed_up = 0
        self._loaded: dict[str, Any] | None = None

    def requirements(self, config: SynthesizerFile) -> Requirements:
        """See :func:`synthesizer.descent.needs`."""
        return needs(config)

    def prepare(self, context: Context) -> None:
        """Builds the shared generator and its clone; takes no time."""
        self.shared, self.clone = (self._new_generator(context.device) for _ in range(2))
        rate = self.settings.rates[1] * self.settings.inner_steps
        self.optimizer = torch.optim.Adam(self.shared.parameters(), rate, BETAS, fused=True)
        if self._loaded is None:
            initialize(self.shared, context.generator)
        else:
            self._restore(self._loaded, context.device)
            self._loaded = None

    def round(self, context: Context) -> SampleBatch:
        """Inner steps on a clone, then one step of the shared generator.

        Raises:
            Diverged: the loss of an inner step is not finite; the shared generator and the moment
                averages stay what they were.
        """
        self._reset_when_due(context)
        copy_parameters(self.shared, self.clone)
        latents, labels = self._draw(context)
        latent_lr, generator_lr = self.settings.rates
        groups = [
            {"params": list(self.clone.parameters()), "lr": generator_lr},
            {"params": [latents], "lr": latent_lr},
        ]
        inner = torch.optim.Adam(groups, betas=BETAS, fused=True)
        self.optimizer.zero_grad()
        self.descent.begin()
        for _ in range(self.settings.inner_steps):
            inner.zero_grad()
            self.descent.step(lambda: self.clone(latents), labels, context)
            if self.settings.outer == "maml":
                accumulate_gradients(self.clone, self.shared)
            inner.step()
        if self.settings.outer == "reptile":
            point_back(self.clone, self.shared)
        self.optimizer.step()
        return self.descent.end(labels)

    def state_dict(self) -> dict[str, Any]:
        """Generator, its optimiser, moment averages and counters."""
        return {
            "generator": self.shared.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "averages": self.descent.state_dict(),
            "rounds_warmed_up": self.rounds_warmed_up,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Has :meth:`prepare` go on where :meth:`state_dict` was taken."""
        self._loaded = state

    def _restore(self, state: Mapping[str, Any], device: torch.device) -> None:
        self.shared.load_state_dict(state["generator"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.descent.load_state_dict(state["averages"], device)
        self.rounds_warmed_up = state["rounds_warmed_up"]

    def _new_generator(self, device: torch.device) -> ConvGenerator:
        generator = ConvGenerator(
            self.image_shape, latent_dim=self.settings.latent_dim, width=self.settings.width
        )
        return generator.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    def _reset_when_due(self, context: Context) -> None:
        self.rounds_warmed_up += context.warmed_up
        if self.rounds_warmed_up - 1 == self.settings.reset_after_rounds:
            initialize(self.shared.first_layers, context.generator)
            for parameter in self.shared.first_layers.parameters():
                # Adam's moments describe weights that are gone.
                self.optimizer.state.pop(parameter, None)

    def _draw(self, context: Context) -> tuple[Tensor, Tensor]:
        size, rng, device = self.table.batch_size, context.generator, context.device
        latents = torch.randn(size, self.settings.latent_dim, generator=rng, device=device)
        labels = torch.randint(context.teacher.classes, (size,), generator=rng, device=device)
        return latents.requires_grad_(), labels


def copy_parameters(source: nn.Module, target: nn.Module) -> None:
    """Sets the parameters of ``target`` to those of ``source``."""
    with torch.no_grad():
        for ours, theirs in zip(source.parameters(), target.parameters(), strict=True):
            theirs.copy_(ours)


def accumulate_gradients(clone: nn.Module, shared: nn.Module) -> None:
    """First-order MAML: adds the clone's gradients to those of the shared generator.

    The first time the shared generator takes the clone's tensors over, without a copy: the clone
    must forget them (``zero_grad``) before its next backward pass.
    """
    for ours, theirs in zip(clone.parameters(), shared.parameters(), strict=True):
        assert ours.grad is not None
        if theirs.grad is None:
            theirs.grad = ours.grad
        else:
            theirs.grad.add_(ours.grad)


def point_back(clone: nn.Module, shared: nn.Module) -> None:
    """Reptile: the gradient of the shared generator is ``shared - clone``.

    Descending it moves the shared weights towards the clone's (Nichol et al. 2018,
    https://arxiv.org/abs/1803.02999, whose step is taken by Adam here).
    """
    for ours, theirs in zip(clone.parameters(), shared.parameters(), strict=True):
        theirs.grad = theirs.detach() - ours.detach()
