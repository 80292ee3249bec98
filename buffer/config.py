"""The shared configuration tables.

One YAML file serves every service. The tables ``run teacher student evaluation buffer`` are shared
and defined here; ``synthesizer distiller controller`` belong to their services, which define them
and extend :class:`SharedTables`. A service validates the shared tables and its own, and only knows
the names of the others; the pipeline validates everything.

Two stages: *parse* (``buffer.parsing``; strings and numbers only, no torch, instant) and *validate*
(resolves factories, opens weights, checks shapes), both before any cluster resource is taken.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, model_validator

from buffer.parsing import Kwargs, Table, at_least

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
IMPORT_STRING = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
"""``package.module:attribute``; used with ``fullmatch``."""
ImportString = Annotated[str, Field(pattern=f"^{IMPORT_STRING.pattern}$")]


class RunTable(Table):
    """The run as a whole."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")] = "run"
    """Names keys in Redis and actors in Ray; of two runs of one name at a time one is refused."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seeds every random generator; runs are still not bit-identical, their services race."""
    seconds: Annotated[float, Field(gt=0)] | None = None
    """Budget of wall time, evaluation excluded. Exactly one of ``seconds`` and ``steps`` is set."""
    steps: Positive | None = None
    """Budget of student steps."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Autocast of networks; ``auto`` takes bfloat16 where the hardware computes in it. In float32 a
    GPU's convolutions are TF32 where it has that, as is torch's default."""
    out: str = "runs/{name}"
    """Folder of the outputs; ``{name}`` is the run's name, no other braces."""
    ray_address: str | None = None
    """An existing Ray cluster; by default ``RAY_ADDRESS``, else Ray is started on this machine."""
    snapshot_seconds: Annotated[float, Field(gt=0)] | None = 60.0
    """How often the pipeline saves the buffer, so that the run can go on should it die; ``None``:
    never, the buffer is filled anew then."""
    nodes_seconds: Annotated[float, Field(ge=0)] = 30.0
    """How long to wait for nodes that have what the services need; an autoscaler needs minutes."""
    log_level: Literal["debug", "info", "warning", "error"] = "warning"
    """From which level on the logs of all services are shown, under their names, and kept in Ray's
    log files; ``debug`` shows Ray's own lines, too."""

    @property
    def folder(self) -> Path:
        """Folder of the outputs."""
        return Path(self.out.format(name=self.name))

    @model_validator(mode="after")
    def _out_can_be_filled_in(self) -> Self:
        try:
            self.out.format(name=self.name)
        except (LookupError, ValueError) as error:
            raise ValueError(
                f"run.out ({self.out}): only {{name}} can be filled in, the outputs would have no "
                "place"
            ) from error
        return self

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        if (self.seconds is None) == (self.steps is None):
            raise ValueError(
                f"run.seconds ({self.seconds}) and run.steps ({self.steps}): set exactly one, "
                "schedules follow the elapsed share of it"
            )
        return self


class ModelSpec(Table):
    """Which network, with which weights, and how its inputs are normalised.

    ``buffer.models`` builds it. Inputs of a built model are images in [0, 1]; it normalises them
    as ``(x - mean) / std`` itself.
    """

    factory: ImportString
    """``package.module:callable`` that returns the network: ``distiller.networks:resnet20``."""
    kwargs: Kwargs = Field(default_factory=dict)
    """Keyword arguments of the factory."""
    weights: str | None = None
    """A state dict (``.safetensors``, or ``.pt`` read with ``weights_only=True``), or an import
    string of a function that makes one (see ``deploy.digits``). ``None``: random initialisation."""
    task: Literal["classification"] = "classification"
    """What the outputs mean."""
    classes: Annotated[int, Field(ge=2, le=2**16)]
    """K: number of classes."""
    image_shape: tuple[Positive, Positive, Positive]
    """C, H, W."""
    mean: tuple[float, ...]
    """Per-channel mean of the input normalisation, one value per channel."""
    std: tuple[Annotated[float, Field(gt=0)], ...]
    """Per-channel standard deviation of the input normalisation, one value per channel."""

    @model_validator(mode="after")
    def _one_value_per_channel(self) -> Self:
        for field in ("mean", "std"):
            values = getattr(self, field)
            if len(values) != self.image_shape[0]:
                raise ValueError(
                    f"{field} ({list(values)}) has {len(values)} values for "
                    f"{self.image_shape[0]} channels: inputs could not be normalised"
                )
        return self


class EvaluationTable(Table):
    """Real test data: measured and reported, never used for any decision."""

    data: str | None = None
    """An ``.npz`` with ``images`` (uint8 ``[N, H, W]`` or ``[N, H, W, C]``) and ``labels``, or an
    import string of a function that returns both. ``None``: nothing real is ever looked at."""
    every_share: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Evaluate after every such share of the budget; the end is always evaluated."""
    batch_size: Positive = 500
    """Images per forward pass."""


class BufferTable(Table):
    """The prioritised replay buffer. The controller may change what has a start value."""

    url: str | None = None
    """Redis URL (``redis://``, ``rediss://`` or ``unix://``), of a Redis Cluster any node's, or
    several separated by commas: one buffer on all of them. ``None``: a private server is started
    for the run."""
    capacity: Annotated[int, Field(ge=2, le=2**24)] = 5000
    """Training samples held; the paper uses a tenth of the original training set."""
    probe_capacity: Annotated[int, Field(ge=0, le=2**20)] = 256
    """Samples held apart to measure the student on; 0 switches the probe set off."""
    probe_share: Share = 0.02
    """Share of new samples that become probes."""
    min_size_to_sample: Positive | None = None
    """Samples needed before the first draw; default: the whole capacity."""
    selector: Literal["prioritized", "uniform", "fifo", "sequential"] = "prioritized"
    """How samples are drawn: by priority, all alike, the oldest first until each has been drawn
    ``max_times_sampled`` times, or all in turn (for export). The shipped methods of inversion take
    the first two; the others are for programs that use the buffer alone, and own methods."""
    max_times_sampled: Positive = 1
    """Draws of a sample after which ``fifo`` takes it out."""
    eviction: Literal["oldest", "lowest_priority", "label_quota"] = "oldest"
    """Who makes room: the oldest; the lowest priority; the oldest of the commonest labels."""
    new_priority: Literal["disagreement", "percentile", "highest"] = "disagreement"
    """A new sample's priority: its own, or the 90th percentile or highest of those there."""
    priority_exponent: Annotated[float, Field(ge=0, le=2)] = 0.6
    """alpha: 0 draws uniformly, 1 in proportion to the priority; start value."""
    importance_exponent: Share = 0.4
    """beta: 0 leaves the bias of prioritised draws, 1 corrects it fully; start value."""
    uniform_share: Share = 0.0
    """Share of draws made uniformly, whatever the priority; start value."""
    label_balance: Share = 0.0
    """0 draws labels by what their samples weigh, 1 every label alike; start value."""
    age_discount: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of its chances a sample loses with each eighth of the buffer of age; start value."""
    # Inserts are admitted whenever draws have to wait (buffer.limiter), so no rate blocks both; but
    # one of 1e-9 lets the student wait for a billion rounds, and rounding may lose its payments.
    samples_per_insert: (
        Annotated[float, at_least(0.001, "the training would wait all but for ever")] | None
    ) = None
    """Draws allowed per inserted sample, 0.001 or more; start value. ``None``: no limit in either
    direction."""
    difficulty_exponent: Annotated[float, Field(ge=0, le=5)] = 1.0
    """gamma of the modulating function: 0 ignores the teacher's confidence; start value."""
    adversarial_weight: Annotated[float, Field(ge=0)] = 1.0
    """w_adv of the next samples; no effect before ``synthesizer.warm_up_samples``; start value."""
    error_buffer: Annotated[float, Field(gt=0)] | None = None
    """How far, in draws, either side may run ahead of ``samples_per_insert``; default: ten batches
    of the larger side."""
    shards: Positive | None = None
    """Parts of the buffer, on the servers of ``url`` in turn; default: one on each. On a Redis
    Cluster 4 are spread over its nodes."""
    cache_mebibytes: Annotated[int, Field(ge=0)] = 256
    """Memory in which each reader keeps the samples it has seen; 0 fetches every draw anew."""
    lease_seconds: Annotated[float, at_least(1.0, "inserts would take longer, and fail")] = 300.0
    """A synthesizer's permit to insert lapses after this long, a second or more."""

    @property
    def minimum(self) -> int:
        """Samples needed before the first draw."""
        return self.capacity if self.min_size_to_sample is None else self.min_size_to_sample

    @model_validator(mode="after")
    def _can_ever_sample(self) -> Self:
        if self.minimum > self.capacity:
            raise ValueError(
                f"min_size_to_sample ({self.minimum}) exceeds capacity ({self.capacity}): "
                "sampling would block forever"
            )
        product = self.priority_exponent * self.importance_exponent
        if product >= 1.0:
            raise ValueError(
                f"priority_exponent * importance_exponent ({product:g}) is not below 1: "
                "the priorities w * KL would oscillate instead of settling"
            )
        if self.probe_capacity > 0 and self.probe_share == 1.0:
            raise ValueError(
                "probe_share (1.0) makes every sample a probe: none would be left to train on"
            )
        return self


class SharedTables(Table):
    """The tables every service reads."""

    run: RunTable
    teacher: ModelSpec
    student: ModelSpec
    evaluation: EvaluationTable = EvaluationTable()
    buffer: BufferTable = BufferTable()

    @model_validator(mode="before")
    @classmethod
    def _student_sees_what_the_teacher_sees(cls, tables: Any) -> Any:
        """The student's task, classes, shape and normalisation default to the teacher's."""
        if not isinstance(tables, Mapping):
            return tables
        teacher, student = tables.get("teacher"), tables.get("student")
        if isinstance(teacher, Mapping) and isinstance(student, Mapping):
            inherited = ("task", "classes", "image_shape", "mean", "std")
            defaults = {key: teacher[key] for key in inherited if key in teacher}
            return {**tables, "student": {**defaults, **student}}
        return tables

    @model_validator(mode="after")
    def _student_fits_teacher(self) -> Self:
        for field, consequence in (
            ("task", "the student would learn another task"),
            ("classes", "their outputs could not be compared"),
            ("image_shape", "one image could not be shown to both"),
        ):
            ours, theirs = getattr(self.student, field), getattr(self.teacher, field)
            if ours != theirs:
                raise ValueError(
                    f"student.{field} ({ours}) differs from teacher.{field} ({theirs}): "
                    f"{consequence}"
                )
        if self.teacher.weights is None:
            raise ValueError(
                "teacher.weights (None): an untrained teacher has nothing to teach; "
                "give a state dict or an import string of a function that makes one"
            )
        return self


Tables = TypeVar("Tables", bound=SharedTables)


def named_files(tables: SharedTables) -> dict[str, str]:
    """The settings that name a file, as ``table.key``, and the file."""
    settings = {
        "teacher.weights": tables.teacher.weights,
        "student.weights": tables.student.weights,
        "evaluation.data": tables.evaluation.data,
    }
    return {
        name: value
        for name, value in settings.items()
        if value is not None and not IMPORT_STRING.fullmatch(value)
    }


def absolute_paths(tables: Tables) -> Tables:
    """A copy with absolute file names: services run in folders of their own."""
    resolved: dict[str, Table] = {}
    for setting, file in named_files(tables).items():
        name, _, field = setting.partition(".")
        table: Table = getattr(tables, name)
        resolved[name] = table.model_copy(update={field: str(Path(file).resolve())})
    return tables.model_copy(update=resolved)
