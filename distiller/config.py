"""The distiller's configuration table."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from buffer.config import Positive, SharedTables
from buffer.parsing import Table

HintKind = Literal["features", "attention"]


class DistillerTable(Table):
    """How the student is trained."""

    batch_size: Positive = 256
    """Samples per step and worker; at most 4096."""
    temperature: Annotated[float, Field(gt=0)] = 20.0
    """T of the soft-target loss; priorities use T = 1 whatever it is."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.2
    """Peak learning rate of SGD."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Nesterov is off, as in the field's recipes."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    """L2 penalty on all parameters."""
    average_steps: Positive = 50
    """The student that is measured, published and saved is the average of its weights over about
    so many latest steps; 1: as it is after the last one."""
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the budget over which the learning rate rises linearly, from the first step on."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate over what is left of the budget from the first step on."""
    crop_padding: Annotated[int, Field(ge=0)] = 4
    """Augmentation: pad and crop at random by up to so many pixels."""
    flip: bool = True
    """Augmentation: flip at random."""
    hint_layers: tuple[str, ...] = ()
    """Names of submodules that teacher and student both have, whose outputs are to be alike as
    well, as they are at the end of a pass. Empty: the student learns from answers alone."""
    hints: HintKind = "features"
    """What of them is compared: ``features``, if their shapes are the same in both; ``attention``,
    where they are active, whatever their channels. Both need one height and width."""
    hint_weight: Annotated[float, Field(gt=0)] = 10.0
    """Weight of the squared distance between what is compared, of length 1, summed over layers."""
    first_crop: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Augmentation: height and width of the crops that student and teacher see at first, as a share
    of the image's, to the nearest multiple of 4 pixels. They grow until ``whole_from``; a crop of
    half the height takes little more than a third of the time."""
    whole_from: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Share of the budget from which on both see whole images."""
    mixup: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Augmentation: share of the images that are blended with another of their batch."""
    teacher_logits: Literal["recompute", "cached"] = "recompute"
    """``recompute``: the teacher sees the augmented batch; ``cached``: the logits stored with each
    sample, valid only without augmentation."""
    prefetch: Annotated[int, Field(ge=1, le=16)] = 2
    """Batches drawn ahead of the step in hand."""
    device_cache_mebibytes: Annotated[int, Field(ge=0)] = 1024
    """Memory of a GPU in which a worker keeps all images of the buffer, if they fit, so that each
    is copied there once; 0 copies every drawn one."""
    snapshot_seconds: Annotated[float, Field(gt=0)] = 5.0
    """How often the student's weights and progress are published."""
    probe_seconds: Annotated[float, Field(gt=0)] = 10.0
    """How often the student is measured on the probe set."""
    checkpoint_seconds: Annotated[float, Field(gt=0)] = 60.0
    """How often a checkpoint is written; a crash loses at most about this much."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """Worker crashes survived by resuming from the newest checkpoint."""
    workers: Positive = 1
    """Data-parallel workers; the fewest of them, if ``max_workers`` is set."""
    max_workers: Positive | None = None
    """As many as there is room for, up to so many; when their number changes, the training goes on
    from its newest checkpoint. ``None``: always ``workers``."""
    cpus: Annotated[float, Field(gt=0)] | None = None
    """CPUs of one worker; default: an even share of the machine among actors and workers."""
    gpus: Annotated[float, Field(ge=0, le=1)] = 0.0
    """GPU of one worker; a fraction lets a single worker share one with synthesizers."""
    max_waiting_seconds: Annotated[float, Field(gt=0)] = 600.0
    """Give up with a clear error when for so long no batch could be drawn and nothing came in, or
    (after a minute at least) the workers have reported nothing: no node has room for them, say."""

    @property
    def most_workers(self) -> int:
        """How many there can be."""
        return self.max_workers or self.workers

    @model_validator(mode="after")
    def _workers_are_in_order(self) -> Self:
        if self.most_workers < self.workers:
            raise ValueError(
                f"max_workers ({self.max_workers}) is below workers ({self.workers}): the "
                "training could never begin"
            )
        return self


class DistillerFile(SharedTables):
    """A configuration file as the distiller reads it."""

    distiller: DistillerTable = DistillerTable()
