"""The knobs the controller turns, stored beside the data and in force at the next draw."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from buffer.config import BufferTable
from buffer.errors import SchemaError
from buffer.version import NEVER, Version

Share = Annotated[float, Field(ge=0.0, le=1.0)]


class SamplingParams(BaseModel):
    """How samples are drawn, and how the next ones are made. Every field acts at once.

    The draw of an item i in a buffer of N items: ``P_i = (1 - uniform_share) m_i / sum(m) +
    uniform_share / N`` with ``m_i = (priority_i + eps)^priority_exponent * g(label) * h(cohort)``.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )

    version: Version = NEVER
    """Who set them: (controller attempt, decision). Only newer parameters replace older ones."""

    priority_exponent: Annotated[float, Field(ge=0.0, le=2.0)] = 0.6
    """alpha of SSD-KD: 0 draws uniformly, 1 in proportion to the priority."""

    importance_exponent: Annotated[float, Field(ge=0.0, le=1.0)] = 0.4
    """beta of SSD-KD: 0 leaves the bias of prioritised draws, 1 corrects it fully."""

    uniform_share: Share = 0.0
    """Share of draws made uniformly over all items, whatever their priority."""

    label_balance: Share = 0.0
    """lambda in P(label) ~ M_label^(1 - lambda), M the label's mass: 1 draws every label alike."""

    age_discount: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Mass lost per insertion cohort (an eighth of the buffer) of age: m *= (1 - d)^cohorts."""

    samples_per_insert: Annotated[float, Field(gt=0.0)] | None = None
    """Draws allowed per inserted sample; ``None`` lets both sides run freely."""

    difficulty_exponent: Annotated[float, Field(ge=0.0, le=5.0)] = 1.0
    """gamma of the modulating function: 0 ignores the teacher's confidence."""

    adversarial_weight: Annotated[float, Field(ge=0.0)] = 1.0
    """w_adv: how hard the generator looks for images the student gets wrong."""

    @model_validator(mode="after")
    def _recursion_converges(self) -> SamplingParams:
        product = self.priority_exponent * self.importance_exponent
        if product >= 1.0:
            raise ValueError(
                f"priority_exponent * importance_exponent ({product:g}) is not below 1: "
                "the priorities w * KL would oscillate instead of settling"
            )
        return self


def params_fields(params: SamplingParams) -> dict[str, str]:
    """Sampling parameters as fields of ``params``; numbers keep all their digits."""
    values = params.model_dump(exclude={"version"})
    fields = {name: "" if value is None else f"{value:.17g}" for name, value in values.items()}
    attempt, step = params.version
    return {**fields, "version_attempt": str(attempt), "version_step": str(step)}


def params_of(fields: Mapping[str, str]) -> SamplingParams:
    """The inverse of :func:`params_fields`.

    Raises:
        SchemaError: the fields are not those of sampling parameters.
    """
    try:
        values: dict[str, Any] = {k: float(text) if text else None for k, text in fields.items()}
        version = Version(int(values.pop("version_attempt")), int(values.pop("version_step")))
        return SamplingParams(version=version, **values)
    except (KeyError, TypeError, ValueError) as error:
        raise SchemaError(f"stored sampling parameters cannot be read: {error}") from error


def start_params(table: BufferTable) -> SamplingParams:
    """The sampling parameters a configuration begins with; ``uniform`` is a share of 1."""
    return SamplingParams(
        priority_exponent=table.priority_exponent,
        importance_exponent=table.importance_exponent,
        uniform_share=1.0 if table.selector == "uniform" else table.uniform_share,
        label_balance=table.label_balance,
        age_discount=table.age_discount,
        samples_per_insert=table.samples_per_insert,
        difficulty_exponent=table.difficulty_exponent,
        adversarial_weight=table.adversarial_weight,
    )
