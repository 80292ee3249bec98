"""Folders of invented runs, written in a second by those who write them in a real one."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from buffer.controller.journal import Journal as ControllerJournal
from buffer.memory import InMemoryReplayBuffer
from buffer.params import SamplingParams
from buffer.progress import ProbeReport, StudentProgress
from buffer.sample import Sample
from buffer.version import Version
from deploy import report
from deploy.config import DEFAULT_CONFIG, PipelineConfig, load
from deploy.pictures import draw
from deploy.sink import Snapshot, Synthesizers
from deploy.supervisor import Totals
from deploy.timeline import Timeline
from distiller.journal import Journal

BEGAN = 1_790_000_000.0
STEPS_PER_SECOND = 50
ARMS: dict[str, dict[str, float]] = {
    "start": {},
    "uniform": {"uniform_share": 0.5},
    "sharp": {"priority_exponent": 0.9},
}


class Recording:
    """Writes an invented run, as long as it is let go on.

    Args:
        out: the folder.
        sets: settings of its configuration other than the demo's.
        classes: that images are of.
        size: samples in its buffer.
        began_seconds: age of the run, if earlier pipelines have written to the folder.
    """

    def __init__(
        self,
        out: Path,
        *sets: str,
        classes: int = 10,
        size: int = 400,
        began_seconds: float = 0.0,
        attempt: int = 1,
    ) -> None:
        own = [f"teacher.classes={classes}", f"buffer.capacity={size}"]
        self.config: PipelineConfig = load(DEFAULT_CONFIG, [*own, *sets])
        self.out, self.elapsed, self._attempt = out, began_seconds, attempt
        out.mkdir(exist_ok=True)
        report.write_config(self.config, out)
        self._random = np.random.default_rng(attempt)
        self._replay = InMemoryReplayBuffer(self.config.buffer, seed=0)
        self._timeline = Timeline(out, report.environment)
        self._metrics = Journal(out / "metrics.jsonl")
        self._decisions = 0
        self._sequence = 0
        self._version = Version(0, 0)

    def go_on(
        self,
        seconds: float,
        *,
        every: float = 2.0,
        pictures: bool = True,
        evaluated: bool = True,
        controlled: bool = True,
    ) -> Recording:
        """Writes what a run does in so many seconds; pictures and a decision every ten."""
        for moment in np.arange(every, seconds + every / 2, every):
            self.elapsed += every
            self._fill()
            self._report()
            snapshot = self._snapshot()
            self._timeline.note(snapshot)
            if moment % 10 < every:
                picture = draw(self._replay, self.config.teacher, snapshot)
                if pictures and picture is not None:
                    self._timeline.show(picture)
                if controlled:
                    self._decide()
            if evaluated and moment % 25 < every:
                accuracy = 100 - 60 * math.exp(-self.elapsed / 40)
                point = [self._step, self.elapsed, self.elapsed / 100, accuracy]
                self._metrics.write_evaluation(Version(self._attempt, self._step), point)
        return self

    def end(self, **result: Any) -> Recording:
        """Writes how it ended."""
        known = json.loads(json.dumps(report.public(self.config)))
        report.write_result(
            {
                "method": "fast_meta",
                "teacher_accuracy": 98.6,
                "student_accuracy": 93.1,
                "agreement": 93.4,
                "loyalty": 88.0,
                "wall_seconds": self.elapsed,
                "samples_inverted": 46060,
                "samples_drawn": 128 * self._step,
                "student_steps": self._step,
                "synthesizer_idle_share": 0.02,
                "distiller_idle_share": 0.06,
                "interrupted": False,
                "error": None,
                "controller_failure": None,
                "config": known,
                **report.environment(),
                **result,
            },
            self.out,
        )
        return self

    @property
    def _step(self) -> int:
        return int(self.elapsed * STEPS_PER_SECOND)

    def _fill(self) -> None:
        table = self.config.teacher
        favoured = np.arange(table.classes) % 7 + 2.0
        labels = self._random.choice(
            table.classes, self.config.buffer.capacity // 8, p=favoured / favoured.sum()
        )
        noise = 20 + 100 * math.exp(-self.elapsed / 30)
        samples = [
            Sample(
                image=self._image(int(label), noise),
                predicted_class=int(label),
                confidence=float(self._random.beta(6, 1.2)),
                disagreement=float(self._random.gamma(1.0, 0.6)),
                target_label=int(label if self._random.random() < 0.9 else labels[0]),
                born=Version(self._attempt, max(0, self._step - 5)),
            )
            for label in labels
        ]
        self._sequence += 1
        self._replay.insert(samples, producer="p", sequence=self._sequence)

    def _image(self, label: int, noise: float) -> NDArray[np.uint8]:
        """A stroke whose direction and place tell the class."""
        channels, height, width = self.config.teacher.image_shape
        rows, columns = np.mgrid[0:height, 0:width] / max(height, width) - 0.5
        angle = label * 2.4
        across = rows * math.cos(angle) + columns * math.sin(angle) - 0.2 * math.sin(label)
        stroke = 220 * np.exp(-((across / 0.13) ** 2))
        tinted = np.stack([stroke * (1 - 0.3 * ((label + c) % 3)) for c in range(channels)])
        noisy = tinted + self._random.normal(0, noise, tinted.shape)
        whole: NDArray[np.uint8] = noisy.clip(0, 255).astype(np.uint8)
        return whole

    def _report(self) -> None:
        wobble = float(self._random.normal(0, 0.02))
        distance = 0.25 + math.exp(-self.elapsed / 15) + wobble
        agreement = min(1.0, 0.9 - 0.7 * math.exp(-self.elapsed / 20) + wobble)
        progress = StudentProgress(
            version=Version(self._attempt, self._step),
            phase="distilling",
            elapsed_share=min(1.0, self.elapsed / 100),
            elapsed_seconds=self.elapsed,
            samples_drawn=128 * self._step,
            busy_seconds=0.9 * self.elapsed,
            waiting_seconds=0.1 * self.elapsed + math.sin(self.elapsed / 9) / 2,
            loss=2 * distance,
            kl_mean=distance,
            kl_quantiles=(0.2 * distance, 0.8 * distance, 2.2 * distance),
            agreement=agreement,
            ess_ratio=0.9 + wobble,
            mean_age=200 + 10 * wobble,
            probe=ProbeReport(
                params_version=self._version,
                members=64,
                before_kl=distance,
                after_kl=0.95 * distance,
                before_agreement=agreement,
                after_agreement=agreement,
                seconds=5.0,
            ),
        )
        self._replay.publish_progress(progress)
        rate = 0.05 * (1 + math.cos(math.pi * min(1.0, self.elapsed / 100)))
        self._metrics.write(progress, learning_rate=rate)

    def _snapshot(self) -> Snapshot:
        wanted = 2 if self.elapsed > 30 else 1
        restarts = int(self.elapsed > 50)
        return Snapshot(
            time=BEGAN + self.elapsed,
            elapsed_seconds=self.elapsed,
            synthesizers=Synthesizers(
                wanted,
                {"running": wanted - (50 < self.elapsed < 55)},
                Totals(0.95 * self.elapsed, 0.05 * self.elapsed, int(self.elapsed), restarts),
            ),
            buffer=self._replay.info(),
            params=self._replay.params(),
            progress=self._replay.progress(),
        )

    def _decide(self) -> None:
        journal = ControllerJournal(self.out / "controller.jsonl")
        if self._decisions == 0:
            params = SamplingParams().model_dump(mode="json")
            journal.write("start", policy="learned", params=params, arms=ARMS, resumed=False)
        earned_by, self._decisions = self._version, self._decisions + 1
        self._version = Version(self._attempt, self._decisions)
        arm = [*ARMS][int(self._random.integers(len(ARMS)))]
        params = SamplingParams(version=self._version, **ARMS[arm])
        self._replay.set_params(params)
        journal.write(
            "decision",
            arm=arm,
            params=params.model_dump(mode="json"),
            reward=float(self._random.normal(0.01, 0.02)),
            report={"params_version": earned_by},
        )
        # At the time of the invented run, not of this one.
        path = self.out / "controller.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        lines[-1]["time"] = BEGAN + self.elapsed
        lines[0]["time"] = BEGAN
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
