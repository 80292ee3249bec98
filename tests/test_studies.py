"""The studies can be run, and their tables reckon right."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from buffer.models import build
from deploy.config import CONFIGS, PipelineConfig, load
from distiller.networks import digits_cnn
from distiller.validate import check_crops, check_hints
from synthesizer.inverter import build_method
from tests.benchmarks.studies import fashion
from tests.benchmarks.studies import study as studies
from tests.benchmarks.studies.figures import NONE, figures, moved, on_pool
from tests.benchmarks.studies.pool import agreements
from tests.benchmarks.studies.study import QUESTIONS, Study, configuration, overrides, study
from tests.benchmarks.studies.tables import advantage, revision, spread, time_to
from tests.benchmarks.studies.turns import by_turns

NAMES = sorted(path.stem for path in QUESTIONS.glob("*.yaml"))


def configured(asked: Study, arm: str) -> PipelineConfig:
    """An arm's configuration; its teacher knows nothing."""
    sets = ["teacher.weights=x", *overrides(asked, arm, seed=0)]
    config = load(configuration(asked), sets)
    teacher = config.teacher.model_copy(update={"weights": None})
    return config.model_copy(update={"teacher": teacher})


@pytest.mark.parametrize("name", NAMES)
def test_every_arm_is_a_valid_configuration_and_differs_from_the_others(name: str) -> None:
    asked = study(name)
    runs = {
        (configured(asked, arm).model_dump_json(), str(asked.other_turns.get(arm)))
        for arm in asked.arms
    }
    assert len(runs) == len(asked.arms) > 1
    assert set(asked.other_turns) <= set(asked.arms)


@pytest.mark.parametrize("name", NAMES)
def test_every_arms_method_and_networks_take_its_settings(name: str) -> None:
    asked = study(name)
    for arm in asked.arms:
        config = configured(asked, arm)
        build_method(config)
        teacher, student = build(config.teacher), build(config.student)
        check_crops(config, teacher, student)
        check_hints(config, teacher, student)


def test_fashions_teacher_is_trained_once_and_can_be_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    np.savez(
        tmp_path / "data" / "fashion_mnist_train.npz",
        images=random.integers(0, 256, (fashion.BATCH, 28, 28), dtype=np.uint8),
        labels=random.integers(0, 10, fashion.BATCH),
    )
    monkeypatch.setattr(fashion, "SHARED", tmp_path)
    spec = configured(study("fashion-parts"), "all").teacher
    path = fashion.teacher(spec, tmp_path, seed=0)
    build(spec.model_copy(update={"weights": str(path)}))
    trained = path.stat()
    assert fashion.teacher(spec, tmp_path, seed=0).stat() == trained


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., PipelineConfig]:
    """Makes configurations of tiny networks for the digits."""
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    torch.manual_seed(1)
    safetensors.torch.save_file(digits_cnn(width=4).state_dict(), path)

    def make(*sets: str) -> PipelineConfig:
        small = [
            f"teacher.weights={path}",
            "teacher.kwargs.width=4",
            "student.kwargs.width=4",
            "synthesizer.batch_size=20",
            "synthesizer.kwargs={width: 8, inner_steps: 2, latent_dim: 8}",
            "distiller.batch_size=16",
            "buffer.min_size_to_sample=40",
            "buffer.probe_capacity=0",
        ]
        return load(CONFIGS / "digits.yaml", [*small, *sets])

    return make


def turns(config: PipelineConfig, out: Path) -> dict[str, Any]:
    out.mkdir()
    return by_turns(config, out, steps=6, ratio=2.0)


def test_by_turns_a_seed_says_all(digits: Callable[..., PipelineConfig], tmp_path: Path) -> None:
    made = {}
    for name, seed in (("one", 3), ("same", 3), ("other", 4)):
        found = turns(digits(f"run.seed={seed}"), tmp_path / name)
        assert (found["student_steps"], found["samples_inverted"]) == (6, 100)
        made[name] = (tmp_path / name / "student.safetensors").read_bytes()
    assert made["one"] == made["same"] != made["other"]


def test_students_are_asked_about_each_runs_images(
    digits: Callable[..., PipelineConfig], tmp_path: Path
) -> None:
    outs = {name: tmp_path / name for name in ("student", "teacher")}
    for seed, out in enumerate(outs.values()):
        turns(digits(f"run.seed={seed}"), out)
    # One student knows everything: it is the teacher.
    config = load(outs["teacher"] / "config.yaml")
    shutil.copy(str(config.teacher.weights), outs["teacher"] / "student.safetensors")
    found = agreements(outs, 30)
    assert found["teacher"] == {"student": 100.0, "teacher": 100.0}
    assert found["student"].keys() == outs.keys()
    assert all(value < 100.0 for value in found["student"].values())
    pools = [np.load(out / "pool-30.npy") for out in outs.values()]
    assert pools[0].shape == (30, 1, 8, 8)
    assert not np.array_equal(*pools)


@pytest.fixture
def own_studies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No questions, records and runs but a test's own."""
    for folder in ("QUESTIONS", "RECORDS", "RUNS"):
        monkeypatch.setattr(studies, folder, tmp_path / folder)
    studies.QUESTIONS.mkdir()


def test_a_seed_is_judged_if_the_folders_of_all_its_runs_are_at_hand(
    own_studies: None, digits: Callable[..., PipelineConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    (studies.QUESTIONS / "toy.yaml").write_text(
        "{title: toy, question: which, config: digits, arms: {one: [], other: []}, pool: 30}"
    )
    (studies.RUNS / "toy").mkdir(parents=True)
    for arm, seed, at_hand in (("one", 0, True), ("other", 0, True), ("one", 1, False)):
        studies.write("toy", {"arm": arm, "seed": seed})
        if at_hand:
            turns(digits(f"run.seed={len(arm)}"), studies.RUNS / "toy" / f"{arm}-{seed}")
    studies.judge("toy")
    judged = {key: record.get("pool_agreements") for key, record in studies.records("toy").items()}
    assert judged["one", 0].keys() == {"other"}
    assert judged["other", 0].keys() == {"one"}
    assert judged["one", 1] is None
    assert "seed 1: not judged, folders of one are not at hand" in capsys.readouterr().out


def test_a_run_is_recorded_once_with_all_its_settings_and_compared_when_made_again(
    own_studies: None,
    digits: Callable[..., PipelineConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(studies, "SHARED", tmp_path)
    weights = Path(str(digits().teacher.weights))
    shutil.copy(weights, tmp_path)
    asked = {
        "title": "toy",
        "question": "which",
        "config": "digits",
        "overrides": [
            f"teacher.weights=$SHARED/{weights.name}",
            "teacher.kwargs.width=4",
            "buffer.min_size_to_sample=200",
            "buffer.probe_capacity=0",
        ],
        "arms": {"one": ["distiller.batch_size=16"]},
        "seeds": [5],
        "turns": {"steps": 2, "ratio": 1.0},
    }
    (studies.QUESTIONS / "toy.yaml").write_text(json.dumps(asked))
    studies.run("toy", (), ())
    record = studies.records("toy")["one", 5]
    assert record["student_steps"] == 2
    assert record["config"]["teacher"]["weights"] == f"$SHARED/{weights.name}"
    assert record["config"]["distiller"]["batch_size"] == 16
    assert str(tmp_path) not in json.dumps(record)
    capsys.readouterr()
    studies.run("toy", (), ())
    assert capsys.readouterr().out == ""
    studies.run("toy", (), (), again=True)
    assert "times the last: " in capsys.readouterr().out
    assert studies.records("toy")["one", 5] == record
    assert (studies.RUNS / "toy" / "one-5" / "student.safetensors").exists()


def run(seed: int, pool: float, *accuracies: float, arm: str = "first") -> dict[str, Any]:
    """A record with measurements at equal distances over 100 seconds."""
    shares = [(number + 1) / len(accuracies) for number in range(len(accuracies))]
    curve = [[0, 100 * s, s, a] for s, a in zip(shares, accuracies, strict=True)]
    judged = {"first": 90.0, "better": 10.0, "third": pool - 5, "fourth": pool + 5}
    return {"arm": arm, "seed": seed, "pool_agreements": judged, "curve": curve}


def test_the_time_to_a_goal_is_that_of_the_mean_curve() -> None:
    runs = [run(0, 0, 20, 60, 80, 80), run(1, 0, 40, 60, 60, 80)]
    assert time_to(60, runs) == "50 s"
    assert time_to(70, runs) == "75 s"
    assert time_to(81, runs) == "-"
    assert time_to(10, runs) == "25 s"  # the first that is known
    assert time_to(10, [{"seed": 0}]) == "-"


def test_an_advantage_is_paired_by_seed_and_of_third_arms_images() -> None:
    first = [run(0, 50.0), run(1, 60.0), run(2, 70.0), run(3, 99.0)]
    better = [run(seed, pool, arm="better") for seed, pool in ((2, 72.0), (0, 51.0), (1, 63.0))]
    # Differences 1, 3 and 2: mean 2, standard error 1/sqrt(3), t with two degrees 4.303.
    assert advantage(better, first) == "+2.00 (-0.48 to +4.48)"
    assert advantage(better[:1], first) == "+2.00"
    assert advantage(first, first) == "-"
    assert advantage([{"arm": "unjudged", "seed": 0}], first) == "-"
    judged = {"pool_agreements": {"first": 1.0, "better": 2.0}}
    two_arms = [run(0, 0.0, arm=arm) | judged for arm in ("first", "better")]
    assert advantage(two_arms[1:], two_arms[:1]) == "-"


def test_agreement_is_of_other_arms_images_each_arm_counting_the_same() -> None:
    judged = run(0, 60.0)
    assert on_pool(judged) == pytest.approx((10 + 55 + 65) / 3)
    assert on_pool(judged, without="better") == pytest.approx(60.0)
    assert math.isnan(on_pool({"arm": "first"}))


def test_of_one_value_there_is_no_deviation() -> None:
    assert spread([1.0]) == "1.00"
    assert spread([1.0, 3.0]) == "2.00 (1.41)"
    assert spread([1.0, NONE, 3.0]) == "2.00 (1.41)"
    assert spread([NONE, NONE]) == "-"


def test_what_moved_since_the_last_run_is_said_in_ratios() -> None:
    before = {"student": 91.0, "steps": 100.0, "inverted": 10.0, "idle": 0.0, "gone": 1.0}
    now = {"student": 90.5, "steps": 85.0, "inverted": 10.5, "idle": 3.0, "new": 1.0}
    assert moved(now, before) == "times the last: steps 0.85; not compared: gone, idle, new"
    assert moved(before | {"student": 89.5, "idle": 1.0}, before | {"idle": 1.0}) == (
        "times the last: student -1.50"
    )
    assert moved({"steps": 1.0}, {"steps": 1.0}) == "times the last: nothing moved"
    assert "no earlier run" in moved(before, {})


def test_what_is_learned_a_second_is_of_wall_time_since_the_first_step() -> None:
    told = {"arm": "a", "student_accuracy": 1.0, "agreement": 1.0, "student_steps": 1}
    times = {"wall_seconds": 110.0, "first_step_at_seconds": 10.0, "distillation_seconds": 190.0}
    counts = {"samples_inverted": 60, "samples_drawn": 2000, "inversion_seconds": 30.0}
    found = figures(told | times | counts | {"gpu_utilization": 0.0})
    assert (found["learned a second"], found["inverted a busy second"]) == (20.0, 2.0)
    assert found["GPU, %"] == 0.0
    assert "GPU memory, MiB" not in found


def test_a_revision_tells_a_changed_tree() -> None:
    assert revision({"git_revision": "0123456789"}) == "0123456"
    assert revision({"git_revision": "0123456789-dirty"}) == "0123456+"
    assert revision({"git_revision": None}) == "unknown"
