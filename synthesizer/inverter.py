"""Runs one method round by round: images out, with all that the teacher says of them.

Letters in shapes: B batch, K classes, C channels, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from buffer.errors import ConfigError
from buffer.models import NormalizedModel
from buffer.sample import Sample, Split
from buffer.version import Version
from synthesizer import terms
from synthesizer.config import SynthesizerFile
from synthesizer.methods import Context, Method, SampleBatch, find
from synthesizer.statistics import batchnorm_layers

UNKNOWN_DISAGREEMENT = 1.0
"""First priority of samples made before there is a student: all alike."""


class Round(NamedTuple):
    """What one round made."""

    samples: list[Sample]
    losses: Mapping[str, float]
    """Of the kept step, by term."""


@dataclass
class Inverter:
    """One method at work. Refresh ``context`` between rounds, then call :meth:`round`.

    :meth:`state_dict`, taken between rounds, is for whoever moves a synthesizer or starts it again
    with what it has learned. Nobody in a run does so today: after a death the supervisor starts a
    fresh one, because what ended a generator may lie in its weights.
    """

    method: Method
    context: Context
    name: str
    """Of the method, written into each sample."""
    producer: str
    probe_share: float
    """Share of samples marked as probes, in [0, 1)."""
    owed_probes: float = 0.0
    """Fraction of a probe carried over to the next round, so that small shares work."""

    def round(self, *, born: Version) -> Round:
        """One round.

        Args:
            born: version of the student in the context.
        """
        batch = self.method.round(self.context)
        judged = judge(batch.images, self.context)
        splits = self._draw_splits(len(batch.images))
        return Round(self._samples(batch, judged, splits, born), batch.losses)

    def expected_training(self, n: int) -> int:
        """How many of the next round's ``n`` samples will be no probes."""
        return n - int(self._due_probes(n))

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on elsewhere with the same images."""
        return {
            "method": self.method.state_dict(),
            "rng": self.context.generator.get_state(),
            "owed_probes": self.owed_probes,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where :meth:`state_dict` was taken. Call after ``method.prepare``."""
        self.method.load_state_dict(state["method"])
        self.context.generator.set_state(state["rng"])
        self.owed_probes = state["owed_probes"]

    def _draw_splits(self, n: int) -> list[Split]:
        due = self._due_probes(n)
        probes = int(due)
        self.owed_probes = due - probes
        rng, device = self.context.generator, self.context.device
        chosen = set(torch.randperm(n, generator=rng, device=device)[:probes].tolist())
        return ["probe" if i in chosen else "train" for i in range(n)]

    def _due_probes(self, n: int) -> float:
        return self.owed_probes + n * self.probe_share

    def _samples(
        self, batch: SampleBatch, judged: Judged, splits: list[Split], born: Version
    ) -> list[Sample]:
        images, logits = batch.images.cpu().contiguous().numpy(), judged.logits.cpu().numpy()
        rows = zip(
            judged.predicted_classes.tolist(),
            judged.confidences.tolist(),
            judged.disagreements.tolist(),
            batch.target_labels.tolist(),
            batch.members.tolist(),
            splits,
            strict=True,
        )
        return [
            Sample(
                image=images[i],
                predicted_class=predicted,
                confidence=confidence,
                disagreement=disagreement,
                target_label=target,
                targets={"logits": logits[i]},
                split=split,
                member=member,
                producer=self.producer,
                born=born,
                method=self.name,
            )
            for i, (predicted, confidence, disagreement, target, member, split) in enumerate(rows)
        ]


class Judged(NamedTuple):
    """What teacher and student say of stored images."""

    logits: Tensor
    """``[B, K]`` float32, the teacher's."""
    predicted_classes: Tensor
    """``[B]`` int64, their argmax."""
    confidences: Tensor
    """``[B]``, the teacher's largest softmax value."""
    disagreements: Tensor
    """``[B]`` KL(teacher || student) at temperature 1, nats."""


@torch.no_grad()
def judge(stored: Tensor, context: Context) -> Judged:
    """Shows images to teacher and student as they will be read from the buffer.

    Why in float32 although the method may use autocast: these logits are cached as targets and
    decide class and priority for the sample's whole life, for one forward pass a round.

    Args:
        stored: ``[B, C, H, W]`` uint8.
        context: teacher, and student if there is one.
    """
    images = stored.to(dtype=torch.float32, memory_format=torch.channels_last) / 255.0
    logits = context.teacher.logits(images).float()
    confidences, predicted = logits.softmax(dim=1).max(dim=1)
    if context.student is None:
        disagreements = torch.full_like(confidences, UNKNOWN_DISAGREEMENT)
    else:
        student_logits = context.student(images).float()
        # Rounding can push the KL of equal outputs below 0, which no priority may be.
        disagreements = terms.disagreement(logits, student_logits).clamp_min(0.0)
    return Judged(logits, predicted, confidences, disagreements)


def build_method(config: SynthesizerFile) -> Method:
    """The configured method with its settings; builds no network.

    Raises:
        ConfigError: the method refuses ``synthesizer.kwargs``.
        ModelError: there is no such method.
    """
    table = config.synthesizer
    try:
        method: Method = find(table.method)(config, **table.kwargs)
    except TypeError as error:
        raise ConfigError(
            f"synthesizer.kwargs ({table.kwargs}): {table.method} cannot take them: {error}"
        ) from error
    return method


def validate(config: SynthesizerFile, teacher: NormalizedModel) -> None:
    """Checks that the configured method can work on this teacher, before anything starts.

    Raises:
        ConfigError: naming each field, its value and the consequence, one a line.
        ModelError: there is no such method.
    """
    needs = build_method(config).requirements(config)
    table, problems = config.synthesizer, []
    if config.buffer.selector not in needs.selectors:
        problems.append(
            f"buffer.selector ({config.buffer.selector}): {table.method} works with "
            f"{', '.join(sorted(needs.selectors))} only"
        )
    if table.label_mode not in needs.label_modes:
        problems.append(
            f"synthesizer.label_mode ({table.label_mode}): {table.method} works with "
            f"{', '.join(sorted(needs.label_modes))} only"
        )
    if needs.needs_batchnorm and not batchnorm_layers(teacher):
        problems.append(
            f"synthesizer.bn_weight ({table.bn_weight:g}): {config.teacher.factory} has no "
            "BatchNorm layer with running statistics, nothing would tie the images to its "
            "training data; 0 says that this is meant"
        )
    most = math.ceil(table.batch_size * config.buffer.probe_share)
    if 0 < config.buffer.probe_capacity < most:
        problems.append(
            f"buffer.probe_capacity ({config.buffer.probe_capacity}) is below the {most} probes "
            f"of one batch (synthesizer.batch_size x buffer.probe_share): they would evict each "
            "other"
        )
    problems += needs.refused
    if problems:
        raise ConfigError("\n".join(problems))
