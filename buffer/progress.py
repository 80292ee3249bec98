"""What a distiller reports and the controller reads."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from buffer.errors import SchemaError
from buffer.version import NEVER, Version

Phase = Literal["filling", "distilling", "finished"]


class ProbeReport(BaseModel):
    """One set of probe samples, measured before and after training under one setting.

    The student never trains on probe samples, so the drop of their KL per second is the
    controller's reward: data-free, and comparable because both measure the same members.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        ser_json_inf_nan="constants",  # a student may diverge, and its readers must get to know
    )

    params_version: Version
    """The sampling parameters in force between the two measurements."""
    members: int
    """How many probe samples were measured."""
    before_kl: float
    """Mean KL(teacher || student) at T = 1, nats, when these parameters came into force."""
    after_kl: float
    """The same at the last measurement."""
    before_agreement: float
    """Share of equal argmax, in [0, 1], when these parameters came into force."""
    after_agreement: float
    """The same at the last measurement."""
    seconds: float
    """Training time between the two measurements."""


class StudentProgress(BaseModel):
    """The state of the student, published by the distiller's rank 0 every few seconds."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        ser_json_inf_nan="constants",  # a student may diverge, and its readers must get to know
    )

    version: Version = NEVER
    """(distiller attempt, student step)."""
    phase: Phase = "filling"
    """Waiting for the buffer's first samples, training, or done."""
    elapsed_share: float = 0.0
    """Share of the budget that is spent, in [0, 1]; schedules follow it."""
    elapsed_seconds: float = 0.0
    """Wall time since the run began, or the training if it is on its own; evaluation excluded."""
    evaluation_seconds: float = 0.0
    """Time spent on test data; not part of the budget."""
    first_step_at_seconds: float | None = None
    """``elapsed_seconds`` at the first student step of the run."""
    inserted_at_first_step: int | None = None
    """Samples inserted before the first student step; unknown if the buffer was away just then."""
    samples_drawn: int = 0
    """Samples the student has trained on, over all workers."""
    busy_seconds: float = 0.0
    """Seconds in optimisation steps, summed over workers."""
    waiting_seconds: float = 0.0
    """Seconds waiting for batches, summed over workers."""
    loss: float = 0.0
    """Weighted training loss, mean of the last interval."""
    kl_mean: float = 0.0
    """KL(teacher || student) at T = 1 of drawn samples, mean of the last interval, nats."""
    kl_quantiles: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """The same: 10th, 50th and 90th percentile."""
    agreement: float = 0.0
    """Share of equal argmax on drawn samples, in [0, 1], last interval."""
    ess_ratio: float = 1.0
    """Effective sample size of the priorities, ``1 / sum_i P_i^2``, over the number of items; in
    (0, 1], estimated from the draws of the last interval."""
    mean_age: float = 0.0
    """Mean age of the buffer's items in student steps, estimated from the draws of the last
    interval."""
    probe: ProbeReport | None = None
    """The newest probe measurement, if the controller is on."""


def read_progress(data: bytes) -> StudentProgress:
    """Progress from its JSON.

    Raises:
        SchemaError: the bytes are something else.
    """
    try:
        return StudentProgress.model_validate_json(data)
    except ValidationError as error:
        raise SchemaError(f"stored progress cannot be read: {error}") from error
