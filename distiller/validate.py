"""The second stage of the distiller's configuration: what cannot be known from one table alone.

Takes no cluster resource.
"""

from __future__ import annotations

from buffer.config import IMPORT_STRING, ModelSpec
from buffer.errors import ConfigError, ModelError
from buffer.models import NormalizedModel, build, check_outputs
from distiller.config import DistillerFile
from distiller.evaluation import EvaluationSet
from distiller.hints import Hints
from distiller.schedule import crop_sizes

LARGEST_DRAW = 4096
NEEDED = {"features": "of one shape (or set attention)", "attention": "of one height and width"}
"""By kinds of hints: what layers have to be."""


def validate(config: DistillerFile) -> None:
    """Checks the distiller's settings against each other and against the test data.

    Raises:
        ConfigError: naming field, value and consequence.
        ModelError: ``evaluation.data`` is an import string that names nothing.
    """
    _check_batch(config)
    _check_cached_logits(config)
    _check_gpus(config)
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
    teacher, student = build(config.teacher), build(config.student)
    check_outputs(teacher, config.teacher, field="teacher")
    check_outputs(student, config.student, field="student")
    check_crops(config, teacher, student)
    check_hints(config, teacher, student)


def check_crops(config: DistillerFile, teacher: NormalizedModel, student: NormalizedModel) -> None:
    """Shows both networks blank crops of all sizes that they will see.

    Raises:
        ConfigError: one of them cannot take such images.
    """
    *crops, _ = _sizes(config)
    for size in crops:
        for field, network in (("teacher", teacher), ("student", student)):
            try:
                check_outputs(network, _of_size(getattr(config, field), size), field=field)
            except ModelError as error:
                raise ConfigError(
                    f"distiller.first_crop ({config.distiller.first_crop:g}): the training would "
                    f"end at crops of {size[0]} x {size[1]} pixels, {error}; set 1"
                ) from error


def check_hints(config: DistillerFile, teacher: NormalizedModel, student: NormalizedModel) -> None:
    """Compares what the watched layers of both networks make of blank images.

    Raises:
        ConfigError: a network has no such layer, or what it says cannot be compared.
    """
    field, kind = "distiller.hint_layers", config.distiller.hints
    for layer in config.distiller.hint_layers:
        for whose, network in (("teacher", teacher.network), ("student", student.network)):
            if layer not in dict(network.named_modules()):
                names = ", ".join(name for name, _ in network.named_children())
                raise ConfigError(
                    f"{field} ({layer}): the {whose} has no layer of this name, there is nothing "
                    f"to compare; it has {names}, and what is in them"
                )
        watch = Hints(student.network, teacher.network, [layer], kind=kind)
        try:
            for size in _sizes(config):
                with watch:
                    check_outputs(teacher, _of_size(config.teacher, size), field="teacher")
                    check_outputs(student, _of_size(config.student, size), field="student")
                watch.losses()
        except KeyError as error:
            raise ConfigError(
                f"{field} ({layer}): teacher or student does not call it, there is nothing to "
                "compare; name a layer that both call, such as a part of it"
            ) from error
        except (RuntimeError, AttributeError) as error:
            raise ConfigError(
                f"{field} ({layer}): its outputs in teacher and student are no activations "
                f"{NEEDED[kind]}, their {kind} cannot be compared: {error}"
            ) from error


def _sizes(config: DistillerFile) -> list[tuple[int, int]]:
    _, height, width = config.teacher.image_shape
    return crop_sizes(config.distiller, (height, width))


def _of_size(spec: ModelSpec, size: tuple[int, int]) -> ModelSpec:
    return spec.model_copy(update={"image_shape": (spec.image_shape[0], *size)})


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
    if table.teacher_logits != "cached":
        return
    if table.hint_layers:
        raise ConfigError(
            f"distiller.hint_layers ({', '.join(table.hint_layers)}) with teacher_logits (cached): "
            "the teacher sees no images, so that its layers say nothing to compare; set [], or "
            "recompute"
        )
    if table.first_crop < 1.0:
        raise ConfigError(
            f"distiller.first_crop ({table.first_crop:g}) with teacher_logits (cached): stored "
            "logits are of whole images, the student would learn wrong targets; set 1, or recompute"
        )
    if table.crop_padding > 0 or table.flip or table.mixup > 0:
        raise ConfigError(
            f"distiller.teacher_logits (cached) with crop_padding ({table.crop_padding}), flip "
            f"({table.flip}) and mixup ({table.mixup:g}): stored logits are of the image before "
            "augmentation, the student would learn wrong targets; set crop_padding 0, flip false "
            "and mixup 0, or recompute"
        )


def _check_gpus(config: DistillerFile) -> None:
    table = config.distiller
    workers = table.max_workers or table.workers
    if workers > 1 and 0 < table.gpus <= 0.5:
        raise ConfigError(
            f"distiller.gpus ({table.gpus:g}) with {workers} workers: two of them would be put on "
            "one GPU, where NCCL refuses to exchange their gradients; set distiller.workers 1, "
            "which fills a GPU alone, or distiller.gpus 1"
        )
