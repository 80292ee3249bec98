"""The training of one worker: a plain class that a test steps, and that Ray Train only wraps.

Rank 0 decides (when to stop, when to save, how much of the budget is spent) and reports; the other
ranks draw, train and follow.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, Self

import numpy as np
import torch
from prometheus_client import CollectorRegistry

from buffer.errors import Interrupted, Starved
from buffer.interface import Replay
from buffer.models import StateDict, autocast_dtype
from buffer.sample import Batch
from buffer.version import Version
from distiller.agreement import Agreement, Orders, Standing
from distiller.checkpoint import random_states, set_random_states
from distiller.config import DistillerFile
from distiller.loader import PriorityPusher, ReplayLoader
from distiller.metrics import DistillerMetrics
from distiller.pair import build_pair
from distiller.ranks import Ranks
from distiller.reporter import Reporter
from distiller.resident import resident_images
from distiller.schedule import crop_size, learning_rate
from distiller.step import DistillationStep, StepResult
from distiller.tally import Budget, Origin, Tally

POLL_SECONDS = 0.2
AUGMENTATION, DRAWS, NETWORKS = range(3)
"""Purposes of random numbers."""


class Trainer:
    """Trains the student on what the buffer gives, until the budget is spent.

    A context: entering it starts the threads that draw and push, and the clock.

    Args:
        config: shared tables and the distiller's, with absolute file names.
        replay: the buffer; used from several threads.
        attempt: the same on every rank; makes all that is published newer than what an earlier
            attempt published.
        ranks: this worker's place among the workers.
        device: of both networks.
        origin: where this training begins; the attempts of one training have the same.
        end_asked: whether the training was asked to end early; rank 0's counts.
        journal: file for rank 0's reports; ``None`` writes nothing.
        metrics: defaults to metrics on a registry of its own.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        config: DistillerFile,
        replay: Replay,
        *,
        attempt: int,
        ranks: Ranks | None = None,
        device: torch.device | None = None,
        origin: Origin = Origin(),  # noqa: B008
        end_asked: Callable[[], bool] = lambda: False,
        journal: Path | None = None,
        metrics: DistillerMetrics | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config, self._replay, self._attempt = config, replay, attempt
        self._ranks, self._device = ranks or Ranks(), device or torch.device("cpu")
        self._origin, self._end_asked = origin, end_asked
        self._metrics, self._clock = metrics or DistillerMetrics(CollectorRegistry()), clock
        self.tally = Tally()
        self.budget = Budget(config.run, self.tally, clock=clock)
        self.pair = build_pair(config, ranks=self._ranks, device=self._device)
        self.step = self._build_step()
        self._loader = self._build_loader()
        self._pusher = PriorityPusher(replay)
        self._reporter = self._build_reporter(journal) if self._ranks.leads else None
        self._stack = ExitStack()
        self._busy_seconds, self._waiting_counted = 0.0, 0.0
        self._earlier_busy, self._earlier_waiting = 0.0, 0.0
        self._agreement = Agreement(self._ranks)
        self._save_at = clock() + config.distiller.checkpoint_seconds

    def _build_step(self) -> DistillationStep:
        return DistillationStep(
            self.pair.trained,
            self.pair.teacher,
            self._config.distiller,
            device=self._device,
            autocast=autocast_dtype(self._config.run.precision, self._device),
            generator=torch.Generator(self._device).manual_seed(self.seed(AUGMENTATION)),
            ranks=self._ranks,
            resident=resident_images(self._config, self._device),
            hints=self.pair.hints(self._config.distiller),
            average=self.pair.average,
        )

    def _build_loader(self) -> ReplayLoader:
        table = self._config.distiller
        return ReplayLoader(
            self._replay,
            batch_size=table.batch_size,
            prefetch=table.prefetch,
            seed=self.seed(DRAWS),
            max_waiting_seconds=table.max_waiting_seconds,
            student_step=lambda: self.tally.step,
            note=self._metrics.observe_refusal,
        )

    def _build_reporter(self, journal: Path | None) -> Reporter:
        return Reporter(
            self._config,
            self._replay,
            self.pair,
            tally=self.tally,
            budget=self.budget,
            attempt=self._attempt,
            device=self._device,
            journal=journal,
            metrics=self._metrics,
            clock=self._clock,
        )

    def seed(self, purpose: int) -> int:
        """Differs between ranks, attempts and purposes: no two of them draw the same numbers."""
        parts = [self._config.run.seed, self._ranks.rank, self._attempt, purpose]
        return int(np.random.SeedSequence(parts).generate_state(1)[0])

    def __enter__(self) -> Self:
        if self._reporter is not None:
            previous = self._replay.progress()
            if previous is not None and previous.version.attempt > self._origin.attempt:
                self.budget.recall(previous)
            self.budget.begin(already_seconds=self._replay.info().seconds - self._origin.seconds)
            self._reporter.begin()
        self.tally.first_share = self._ranks.of_lead(self.tally.first_share)
        self._stack.enter_context(self._pusher)
        self._stack.enter_context(self._loader)
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    @property
    def version(self) -> Version:
        """Of everything published now."""
        return Version(self._attempt, self.tally.step)

    def run(self, save: Callable[[], None]) -> dict[str, Any]:
        """Trains until the budget is spent; rank 0 then measures and publishes the result.

        Args:
            save: called on every rank at the same step, whenever a checkpoint is due.

        Returns:
            The final metrics (see :meth:`Reporter.finish`); empty on the other ranks.

        Raises:
            Starved: the budget ended before the first batch, or a draw was refused for too long.
            Diverged: the loss is not finite.
            Interrupted: the training was asked to end early; its student was saved and published.
            SsdkdError: these, and the others of :data:`~distiller.agreement.LASTING`, are raised on
                all ranks together.
        """
        batch: Batch | None = None
        while True:
            with self._agreement.failures_kept():
                if self._reporter is not None:
                    self._reporter.keep_appointments()
                if batch is None:
                    batch = self._poll()
            orders = self._agree(batch)
            if orders.stop:
                return self._finish()
            if orders.end:
                self._end_early(save)
            if orders.save:
                save()
                self._save_at = self._clock() + self._config.distiller.checkpoint_seconds
            if orders.ready and batch is not None:
                with self._agreement.failures_kept():
                    self.train_step(replace(batch, weight_mean=orders.weight_mean), orders.share)
                batch = None

    def _poll(self) -> Batch | None:
        batch = self._loader.poll(POLL_SECONDS)
        if batch is not None:
            self.step.check(batch)
        return batch

    def _agree(self, batch: Batch | None) -> Orders:
        """One exchange per round of the loop: who is ready, what rank 0 wants, who worked how long.

        Why a rank without a batch does not simply let the others wait for its gradients: rank 0
        could neither end the run nor report that it waits.
        """
        leads = self._ranks.leads
        standing = Standing(
            share=self.budget.share if leads else 0.0,
            end=leads and self._end_asked(),
            save=leads and self.tally.step > 0 and self._clock() >= self._save_at,
            ready=batch is not None,
            weight_mean=0.0 if batch is None else batch.weight_mean,
            busy_seconds=self._busy_seconds,
            waiting_seconds=self._loader.waiting_seconds,
        )
        orders = self._agreement.reach(standing)
        self.tally.busy_seconds = self._earlier_busy + orders.busy_seconds
        self.tally.waiting_seconds = self._earlier_waiting + orders.waiting_seconds
        return orders

    def train_step(self, batch: Batch, share: float) -> StepResult:
        """One step of this rank.

        Args:
            batch: drawn by this rank.
            share: of the budget that is spent, in [0, 1]; the same on every rank.

        Raises:
            Diverged: the loss is not finite.
        """
        if self.tally.first_share is None:
            self.tally.first_share = share
            if self._reporter is not None:
                self._reporter.note_first_step()
        started = self._clock()
        table, first = self._config.distiller, self.tally.first_share
        rate = learning_rate(table, share, first_share=first)
        size = self._config.teacher.image_shape[1:]
        crop = crop_size(table, share, size, first_share=first)
        result = self.step(batch, learning_rate=rate, crop=crop)
        self._count(batch, result, self._clock() - started)
        self._pusher.push(batch.identities, result.priorities, self.version)
        if self._reporter is not None:
            self._reporter.note(batch, result, learning_rate=rate)
        return result

    def _count(self, batch: Batch, result: StepResult, seconds: float) -> None:
        self.tally.step += 1
        self.tally.samples_drawn += len(batch.images) * self._ranks.size
        self.tally.elapsed_seconds = self.budget.elapsed_seconds
        self._busy_seconds += seconds
        waited = self._loader.waiting_seconds - self._waiting_counted
        self._waiting_counted += waited
        self._metrics.observe_step(batch, result, seconds=seconds, waited_seconds=waited)

    def _finish(self) -> dict[str, Any]:
        if self.tally.step == 0:
            size, needed = self._replay.info().size, self._config.buffer.minimum
            raise Starved(
                f"run.seconds ({self._config.run.seconds}): the budget ended before the first "
                f"student step; the buffer holds {size} samples, and {needed} are needed before "
                "the first draw. Give more time, or lower buffer.min_size_to_sample"
            )
        return {} if self._reporter is None else self._reporter.finish()

    def _end_early(self, save: Callable[[], None]) -> NoReturn:
        if self._reporter is not None:
            self._reporter.publish()
        if self.tally.step > 0:
            save()
            reached = f"after {self.tally.step} student steps; the student as it was then is saved"
        else:
            reached = "before the first student step; there is no student to save"
        raise Interrupted(f"the training was asked to end {reached}")

    def state_dict(self) -> dict[str, Any]:
        """Everything but :meth:`Pair.weights`: tensors, numbers and containers only."""
        return {
            "tally": self.tally.as_dict(),
            "trained": self.pair.student.network.state_dict(),
            **self.step.state_dict(),
            **random_states(self._device),
        }

    def load_state_dict(self, student: StateDict, state: Mapping[str, Any]) -> None:
        """Goes on where a checkpoint was taken; before the context is entered.

        Why only rank 0 takes over the random states: they are rank 0's, and the other ranks must
        not repeat its crops.

        Raises:
            ModelError: the weights do not fit the student.
        """
        self.tally.update(state["tally"])
        self.pair.load(student, trained=state.get("trained"), steps=self.tally.step)
        self.step.load_state_dict(state, same_crops=self._ranks.leads)
        self._earlier_busy = self.tally.busy_seconds
        self._earlier_waiting = self.tally.waiting_seconds
        if self._ranks.leads:
            set_random_states(state, self._device)
