from pathlib import Path

import pytest

from buffer.errors import ConfigError
from deploy.config import CONFIGS, DEFAULT_CONFIG, load, locate, shipped

NEEDS_WEIGHTS = ["teacher.weights=teacher.pt"]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_configuration_parses_and_says_what_it_is(path: Path) -> None:
    config = load(path, NEEDS_WEIGHTS)
    assert config.buffer.error_buffer is not None
    assert len(shipped()[path.stem]) > 20


def test_the_default_configuration_is_the_demo() -> None:
    assert locate(None) == DEFAULT_CONFIG
    assert load(DEFAULT_CONFIG).teacher.weights == "deploy.digits:teacher"


def test_the_student_inherits_what_it_sees_from_the_teacher() -> None:
    config = load(DEFAULT_CONFIG)
    assert config.student.image_shape == config.teacher.image_shape
    assert config.student.mean == config.teacher.mean


def test_overrides_reach_nested_values_and_are_read_as_yaml() -> None:
    config = load(DEFAULT_CONFIG, ["run.seed=7", "student.kwargs.width=8", "distiller.flip=true"])
    assert (config.run.seed, config.student.kwargs["width"], config.distiller.flip) == (7, 8, True)


def test_the_error_buffer_defaults_to_ten_batches_of_the_larger_side() -> None:
    config = load(DEFAULT_CONFIG, ["distiller.batch_size=300", "distiller.prefetch=1"])
    assert config.buffer.error_buffer == 10 * 2 * 300


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["buffer.size=3"], r"buffer\.size \(3\): Extra inputs are not permitted"),
        (["nonsense=1"], r"nonsense \(1\): Extra inputs"),
        (["run.steps=10"], r"run\.seconds \(100.*\) and run\.steps \(10\): set exactly one"),
        (["student.classes=9"], r"student\.classes \(9\) differs from teacher\.classes \(10\)"),
        (["student.image_shape=[1, 4, 4]"], r"student\.image_shape .* differs from teacher"),
        (["teacher.weights=null"], r"teacher\.weights \(None\): an untrained teacher"),
        (["teacher.mean=[0.1, 0.2]"], r"mean \(\[0.1, 0.2\]\) has 2 values for 1 channels"),
        (["buffer.min_size_to_sample=9999"], r"min_size_to_sample \(9999\) exceeds capacity"),
        (
            ["buffer.priority_exponent=2", "buffer.importance_exponent=0.5"],
            r"priority_exponent \* importance_exponent \(1\) is not below 1",
        ),
        (
            ["buffer.samples_per_insert=1e-9"],
            r"buffer\.samples_per_insert \(.*\): is below 0\.001: the training would wait all but",
        ),
        (
            ["buffer.lease_seconds=0.001"],
            r"buffer\.lease_seconds \(0\.001\): is below 1: inserts would take longer, and fail",
        ),
        (["buffer.capacity=100"], r"synthesizer\.batch_size \(200\) exceeds buffer\.capacity"),
        (
            ["buffer.samples_per_insert=4", "buffer.error_buffer=10"],
            r"buffer\.error_buffer \(10\) is below what the larger .* would block each other",
        ),
        (
            ["controller.interval_seconds=1"],
            r"controller\.interval_seconds \(1\) is shorter than distiller\.probe_seconds",
        ),
        (
            ["monitoring.interval_seconds=null", "monitoring.sinks=[wandb]"],
            r"monitoring\.sinks \(wandb\): monitoring\.interval_seconds is null, .* get nothing",
        ),
        (["run.out=runs/{other}"], r"run\.out \(runs/\{other\}\): only \{name\} can be filled in"),
        (["teacher.factory=resnet"], r"teacher\.factory \('resnet'\)"),
        (
            ["synthesizer.kwargs={latent_lr: .inf}"],
            r"synthesizer\.kwargs: latent_lr: inf is no finite number, .* could not be written",
        ),
        (
            ["teacher.kwargs={stages: [{since: 2026-01-01}]}"],
            r"teacher\.kwargs: stages: since: 2026-01-01 is no string, number, list or table",
        ),
    ],
)
def test_impossible_settings_are_refused_by_name(assignments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(DEFAULT_CONFIG, assignments)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("run.seed", r"override \(run\.seed\): expected table\.key=value"),
        ("=3", r"override \(=3\): expected table\.key=value"),
        ("run.seed.deeper=3", r"override \(run\.seed\.deeper=3\): seed is a value, not a table"),
        ("run.seed=[", r"override \(run\.seed=\[\): the value is not YAML"),
    ],
)
def test_malformed_overrides_are_refused(tmp_path: Path, assignment: str, message: str) -> None:
    file = tmp_path / "seeded.yaml"
    file.write_text(DEFAULT_CONFIG.read_text().replace("name: demo", "name: demo\n  seed: 1"))
    with pytest.raises(ConfigError, match=message):
        load(file, [assignment])


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [", "is not YAML"), ("- 1\n- 2\n", "holds list, not tables"), ("", "holds NoneType")],
)
def test_files_that_are_no_configuration_are_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load(file)


def test_a_missing_configuration_is_refused_with_the_shipped_names() -> None:
    with pytest.raises(ConfigError, match=r"config \(nowhere\): no such file.*digits"):
        locate("nowhere")
