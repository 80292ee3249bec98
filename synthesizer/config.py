"""The synthesizer's configuration table."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from buffer.config import Positive, SharedTables
from buffer.parsing import OFF_IS_A_WORD, Kwargs, Table


class SynthesizerTable(Table):
    """How synthetic images are made."""

    method: str = "fast_meta"
    """An inversion method of ``synthesizer.methods``, or an import string of one from outside."""
    kwargs: Kwargs = Field(default_factory=dict)
    """Settings of the method; see its class."""
    batch_size: Positive = 256
    """Images per round."""
    label_mode: Literal["target", "argmax"] = "target"
    """``target``: cross-entropy against uniformly drawn labels; ``argmax``: the teacher's own."""
    bn_weight: Annotated[float, Field(ge=0)] = 10.0
    """w_bn: weight of the BatchNorm moment term."""
    task_weight: Annotated[float, Field(ge=0)] = 0.5
    """w_task: weight of the modulated cross-entropy."""
    adversarial_agreement_only: bool = True
    """Count the adversarial term only where teacher and student agree (Fast-DFKD's mask)."""
    warm_up_samples: Annotated[int, Field(ge=0)] | None = None
    """The adversarial term begins when so many samples have been inserted; ``None``: as many as the
    buffer holds, when it has filled once."""
    diversity: Annotated[Literal["share", "stretched", "off"], OFF_IS_A_WORD] = "share"
    """First factor of phi: ``1 - count/|R|``, ``1 - count/max count``, or 1."""
    difficulty: bool = True
    """Second factor of phi: ``(1 - confidence)^gamma``, or 1."""
    normalize_modulation: bool = True
    """Divide phi by its batch mean, so that it balances the batch without weakening the term."""
    crop_padding: Annotated[int, Field(ge=0)] = 4
    """Generated images are padded and cropped at random by up to so many pixels while inverted."""
    flip: bool = True
    """Flip generated images at random while inverted."""
    checkpoint_seconds: Annotated[float, Field(gt=0)] = 60.0
    """How often an actor saves what it has learned; after a crash it goes on from there."""
    actors: Positive = 1
    """Synthesizer actors, to begin with."""
    min_actors: Positive | None = None
    """Never fewer, if their number is left to the run; default: 1."""
    max_actors: Positive | None = None
    """Leaves their number to the run, up to so many: more while distillers wait for samples, fewer
    while they wait themselves. A number ordered by hand is where that goes on; one that is not
    between ``min_actors`` and this ends it for the run. ``None``: there are ``actors``, until
    somebody scales by hand."""
    cpus: Annotated[float, Field(gt=0)] | None = None
    """CPUs of one actor; default: an even share of the machine among actors and workers."""
    gpus: Annotated[float, Field(ge=0, le=1)] = 0.0
    """GPU of one actor; a fraction lets services share one."""


class SynthesizerFile(SharedTables):
    """A configuration file as the synthesizer reads it."""

    synthesizer: SynthesizerTable = SynthesizerTable()
