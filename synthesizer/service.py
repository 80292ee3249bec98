"""The Ray edge: a synthesizer as an actor that can be created on any node from plain data."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from buffer import logs
from buffer.errors import BufferUnavailable
from buffer.parsing import parse
from synthesizer.config import SynthesizerFile

if TYPE_CHECKING:
    from synthesizer.actor import Synthesizer

PATIENCE_SECONDS = 120.0
"""The buffer may be away for so long before the process is started afresh."""


class SynthesizerService:
    """One synthesizer behind Ray. Constructed from plain data only.

    It does nothing until ``run`` is called, which occupies the actor's main thread; ``status`` and
    ``stop`` answer meanwhile from the concurrency group ``control``.

    Args:
        config: the tables of :class:`~synthesizer.config.SynthesizerFile` as JSON.
        url: of the Redis server.
        index: number of this synthesizer; names the producer.
        threads: CPU threads of torch.
        checkpoint: file of what it has learned, on a path that its successor can read.
    """

    def __init__(
        self, config: str, *, url: str, index: int, threads: int, checkpoint: str | None = None
    ) -> None:
        self._tables = parse(SynthesizerFile, json.loads(config))
        logs.configure(self._tables.run.log_level, f"synthesizer-{index}")
        self._url, self._index, self._threads = url, index, threads
        self._checkpoint = None if checkpoint is None else Path(checkpoint)
        self._stopping = threading.Event()
        self._synthesizer: Synthesizer | None = None

    def run(self) -> None:
        """Makes images until :meth:`stop`; see :meth:`~synthesizer.actor.Synthesizer.run`.

        Why the buffer is looked for here: what a constructor raises reaches the driver as text, and
        one that waited for a buffer that is away could not be stopped.
        """
        try:
            synthesizer = self._begin()
        except BufferUnavailable:
            if self._stopping.is_set():
                return
            raise
        self._synthesizer = synthesizer
        if not self._stopping.is_set():
            synthesizer.run()

    @ray.method(concurrency_group="control")
    def status(self) -> dict[str, Any]:
        """:class:`~synthesizer.tally.SynthesizerStatus` as a dictionary, ``pid`` and ``node``.

        Empty until there is one.
        """
        if self._synthesizer is None:
            return {}
        return asdict(self._synthesizer.status()) | {
            "pid": os.getpid(),
            "node": ray.get_runtime_context().get_node_id(),
        }

    @ray.method(concurrency_group="control")
    def stop(self) -> None:
        """Lets :meth:`run` end after the round in hand."""
        self._stopping.set()
        if self._synthesizer is not None:
            self._synthesizer.stop()

    def _begin(self) -> Synthesizer:
        """Connects, once the buffer is there, and builds the synthesizer."""
        # Imported here: the driver that only starts actors needs neither torch nor redis.
        import torch

        from buffer.connect import connect
        from buffer.metrics import ClientMetrics, process_registry
        from synthesizer.actor import Synthesizer
        from synthesizer.metrics import SynthesizerMetrics
        from synthesizer.patience import Patience

        tables, producer = self._tables, f"synthesizer-{self._index}"
        registry = process_registry()
        observer = ClientMetrics(registry)
        patience = Patience(
            PATIENCE_SECONDS, seed=self._index, stopping=self._stopping, note=lambda waited: None
        )
        replay = patience.insist(
            lambda: connect(tables.buffer, url=self._url, run=tables.run.name, observer=observer)
        )
        # A restarted actor must not make its predecessor's images again.
        attempt = patience.insist(lambda: replay.begin_attempt(producer))
        return Synthesizer(
            tables,
            replay,
            producer=producer,
            device=torch.device("cuda" if ray.get_gpu_ids() else "cpu"),
            threads=self._threads,
            seed=actor_seed(tables.run.seed, self._index, attempt),
            checkpoint=self._checkpoint,
            metrics=SynthesizerMetrics(registry),
            patience_seconds=PATIENCE_SECONDS,
        )


def actor_seed(seed: int, index: int, attempt: int) -> int:
    """A seed in [0, 2^63) that differs between actors, and between an actor and its successor."""
    import numpy as np

    words = np.random.SeedSequence([seed, index, attempt]).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))


def options(config: SynthesizerFile, *, cpus: float) -> dict[str, Any]:
    """Ray options of one actor."""
    return {
        "num_cpus": cpus,
        "num_gpus": config.synthesizer.gpus,
        "concurrency_groups": {"control": 2},
    }


def start(
    config: SynthesizerFile,
    *,
    url: str,
    index: int,
    cpus: float | None = None,
    checkpoints: Path | None = None,
    place: PlacementGroupSchedulingStrategy | None = None,
) -> Any:
    """Creates the actor ``synthesizer-{index}`` in the namespace of the driver.

    It does nothing until its ``run`` is called.

    Args:
        config: validated; tables of other services are left out of what the actor gets.
        url: of the Redis server, reachable from every node.
        index: number of this synthesizer.
        cpus: of the actor, also its torch threads (at least 1); default: ``synthesizer.cpus``,
            else 1.
        checkpoints: folder in which it keeps what it has learned, absolute, shared by all nodes;
            one that is started again goes on from there. Default: it begins anew.
        place: where; default: wherever there is room.
    """
    share = cpus or config.synthesizer.cpus or 1.0
    known = config.model_dump(mode="json", include=set(SynthesizerFile.model_fields))
    actor = ray.remote(**options(config, cpus=share))(SynthesizerService)
    name = f"synthesizer-{index}"
    where = {} if place is None else {"scheduling_strategy": place}
    return actor.options(name=name, **where).remote(
        json.dumps(known),
        url=url,
        index=index,
        threads=max(1, int(share)),
        checkpoint=None if checkpoints is None else str(checkpoints / f"{name}.pt"),
    )


def forget(checkpoints: Path) -> None:
    """Removes what the synthesizers of an earlier run have learned."""
    for file in checkpoints.glob("synthesizer-*.pt"):
        file.unlink()
