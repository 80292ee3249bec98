"""Runs one method round by round: images out, with all that the teacher says of them.

Letters in shapes: B batch, K classes, C channels, H height, W width.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from buffer.errors import ConfigError
from buffer.models import NormalizedModel, autocast_dtype, build
from buffer.sample import Sample, Split
from buffer.version import Version
from synthesizer import terms
from synthesizer.config import SynthesizerFile
from synthesizer.methods import Context, Method, Requirements, SampleBatch, find
from synthesizer.statistics import batchnorm_layers
from synthesizer.teacher import Teacher

UNKNOWN_DISAGREEMENT = 1.0
"""First priority of samples made before there is a student: all alike."""

STORED_TARGETS = frozenset({"logits"})
"""What is stored with each image."""


class Feature(NamedTuple):
    """What a method can see of some teachers beside their logits."""

    shown_by: Callable[[NormalizedModel], object]
    """Whether a teacher has it."""
    absence: str
    """What is to be said of one that has not."""


FEATURES = {
    "batchnorm_moments": Feature(
        batchnorm_layers,
        "has no BatchNorm layer with running statistics, nothing would tie the images to its "
        "training data; synthesizer.bn_weight 0 says that this is meant",
    )
}


class Round(NamedTuple):
    """What one round made."""

    samples: list[Sample]
    losses: Mapping[str, float]
    """Of the kept step, by term."""
    modulation: float | None
    """Mean of phi there; ``None``: the method has none."""


@dataclass
class Inverter:
    """One method at work. Refresh ``context`` between rounds, then call :meth:`round`.

    :meth:`state_dict`, taken between rounds, is all that a successor needs to make the same images.
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
        samples = self._samples(batch, judged, splits, born)
        return Round(samples, batch.losses, batch.modulation)

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
        """Goes on where :meth:`state_dict` was taken. Call before ``method.prepare``.

        Random numbers go on on the same kind of device only: others' generators have other states.
        """
        self.method.load_state_dict(state["method"])
        if len(state["rng"]) == len(self.context.generator.get_state()):
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


def build_inverter(
    config: SynthesizerFile, producer: str, device: torch.device, seed: int
) -> Inverter:
    """The configured method with its teacher, not prepared yet.

    Raises:
        ConfigError: the method refuses ``synthesizer.kwargs``.
        ModelError: teacher or method cannot be built.
    """
    teacher = Teacher(build(config.teacher), classes=config.teacher.classes, device=device)
    context = Context(
        teacher=teacher,
        device=device,
        generator=torch.Generator(device).manual_seed(seed),
        autocast=autocast_dtype(config.run.precision, device),
    )
    probe_share = config.buffer.probe_share if config.buffer.probe_capacity > 0 else 0.0
    return Inverter(build_method(config), context, config.synthesizer.method, producer, probe_share)


def subject(config: SynthesizerFile) -> str:
    """What a state belongs to: that of another method, or for another teacher, is of no use."""
    table = config.synthesizer
    return json.dumps([table.method, table.kwargs, config.teacher.model_dump(mode="json")])


def validate(config: SynthesizerFile, teacher: NormalizedModel) -> None:
    """Checks that the configured method can work on this teacher, before anything starts.

    Raises:
        ConfigError: naming each field, its value and the consequence, one a line.
        ModelError: there is no such method.
    """
    needs = build_method(config).requirements(config)
    problems = [
        *_choice_problems(config, needs),
        *_target_problems(config, needs),
        *_feature_problems(config, needs, teacher),
        *_probe_problems(config),
        *needs.refused,
    ]
    if problems:
        raise ConfigError("\n".join(problems))


def _choice_problems(config: SynthesizerFile, needs: Requirements) -> Iterator[str]:
    method = config.synthesizer.method
    for field, value, possible in (
        ("buffer.selector", config.buffer.selector, needs.selectors),
        ("synthesizer.label_mode", config.synthesizer.label_mode, needs.label_modes),
    ):
        if value not in possible:
            works = ", ".join(sorted(possible))
            yield f"{field} ({value}): {method} works with {works} only"


def _target_problems(config: SynthesizerFile, needs: Requirements) -> Iterator[str]:
    stored = ", ".join(sorted(STORED_TARGETS))
    for name in sorted(needs.targets - STORED_TARGETS):
        yield (
            f"synthesizer.method ({config.synthesizer.method}): needs the target {name} stored "
            f"with each image, there would be only {stored}"
        )


def _feature_problems(
    config: SynthesizerFile, needs: Requirements, teacher: NormalizedModel
) -> Iterator[str]:
    for name in sorted(needs.teacher_features):
        needing = f"synthesizer.method ({config.synthesizer.method}): needs the teacher's {name}"
        if name not in FEATURES:
            yield f"{needing}, of a teacher there would be only {', '.join(sorted(FEATURES))}"
        elif not FEATURES[name].shown_by(teacher):
            yield f"{needing}, but {config.teacher.factory} {FEATURES[name].absence}"


def _probe_problems(config: SynthesizerFile) -> Iterator[str]:
    most = math.ceil(config.synthesizer.batch_size * config.buffer.probe_share)
    if 0 < config.buffer.probe_capacity < most:
        yield (
            f"buffer.probe_capacity ({config.buffer.probe_capacity}) is below the {most} probes "
            f"of one batch (synthesizer.batch_size x buffer.probe_share): they would evict each "
            "other"
        )
