"""The second stage of the distiller's configuration: what cannot be known from one table alone.

Takes no cluster resource.
"""

from __future__ import annotations

from buffer.config import IMPORT_STRING
from buffer.errors import ConfigError
from buffer.models import build, check_outputs
from distiller.config import DistillerFile
from distiller.evaluation import EvaluationSet

LARGEST_DRAW = 4096


def validate(config: DistillerFile) -> None:
    """Checks the distiller's settings against each other and against the test data.

    Raises:
        ConfigError: naming field, value and consequence.
        ModelError: ``evaluation.data`` is an import string that names nothing.
    """
    _check_batch(config)
    _check_cached_logits(config)
    if config.evaluation.data is not None:
        EvaluationSet.load(config.evaluation, config.teacher)


def check_networks(config: DistillerFile) -> None:
    """Builds both networks and shows them blank images.

    Why apart from :func:`validate`: a pipeline does this once for all its services.

    Raises:
        ConfigError: the teacher's weights are a function.
        ModelError: a network cannot be built, or weights do not fit it.
    """
    weights = config.teacher.weights
    if weights is not None and IMPORT_STRING.fullmatch(weights):
        raise ConfigError(
            f"teacher.weights ({weights}) is a function that makes a teacher, which only the "
            "pipeline calls: services would train different ones; give the file that it wrote"
        )
    check_outputs(build(config.teacher), config.teacher, field="teacher")
    check_outputs(build(config.student), config.student, field="student")


def _check_batch(config: DistillerFile) -> None:
    wanted = config.distiller.batch_size
    if wanted > LARGEST_DRAW:
        raise ConfigError(
            f"distiller.batch_size ({wanted}) exceeds {LARGEST_DRAW}: the buffer answers no larger "
            "draw; use more workers"
        )
    if config.buffer.capacity < wanted:
        raise ConfigError(
            f"buffer.capacity ({config.buffer.capacity}) is smaller than a batch "
            f"(distiller.batch_size {wanted}): every step would repeat samples"
        )
    if config.buffer.minimum < wanted:
        raise ConfigError(
            f"buffer.min_size_to_sample ({config.buffer.minimum}) is smaller than a batch "
            f"(distiller.batch_size {wanted}): the first steps would repeat samples"
        )


def _check_cached_logits(config: DistillerFile) -> None:
    table = config.distiller
    augmented = table.crop_padding > 0 or table.flip or table.mixup > 0
    if table.teacher_logits == "cached" and augmented:
        raise ConfigError(
            f"distiller.teacher_logits (cached) with crop_padding ({table.crop_padding}), flip "
            f"({table.flip}) and mixup ({table.mixup:g}): stored logits are of the image before "
            "augmentation, the student would learn wrong targets; set crop_padding 0, flip false "
            "and mixup 0, or recompute"
        )
