"""The whole configuration file, and the checks that need more than one table. No torch, no ray."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from buffer.controller.config import ControllerFile
from buffer.errors import ConfigError
from buffer.parsing import Table, override, parse, read_raw
from distiller.config import DistillerFile
from synthesizer.config import SynthesizerFile

CONFIGS = Path(__file__).parent / "configs"
DEFAULT_CONFIG = CONFIGS / "digits.yaml"


PAGE_PORT = 9466
Port = Annotated[int, Field(ge=0, le=65535)]
SinkName = Literal["tensorboard", "wandb", "mlflow"]


class MonitoringTable(Table):
    """How a run can be watched while it goes on. See ``docs/monitoring.md``."""

    port: Port | None = 9464
    """Of the pipeline: its metrics, and Prometheus' discovery of all others. 0, or one that is
    taken: any that is free; the log says which. ``null``: nothing is exported anywhere."""
    node_port: Port = 9465
    """Of the exporter on each node, likewise."""
    interval_seconds: Annotated[float, Field(gt=0)] | None = 5.0
    """How often the run's state is recorded: for ``timeline.jsonl``, and whoever else shows it.
    ``null``: nothing is recorded, pictures neither."""
    pictures_seconds: Annotated[float, Field(gt=0)] | None = 30.0
    """How often pictures of the buffer's samples are taken; later in a run whenever it has become
    a thirtieth of itself longer. ``null``: never."""
    sinks: tuple[SinkName, ...] = ()
    """Tools for comparing runs that take the same: numbers, histograms, pictures. Each needs the
    extra of its name."""
    page_port: Port | None = None
    """Of the run page while the run goes on, which ``ssdkd run --ui`` sets to 9466; 0, or one that
    is taken: any that is free. ``null``: it is not served."""
    page_host: str = "127.0.0.1"
    """Where the run page listens. Whoever reaches it sees the configuration and the pictures, also
    on a cluster: ``0.0.0.0`` shows them to the network."""


class PipelineConfig(SynthesizerFile, DistillerFile, ControllerFile):
    """Every table of a configuration file: what the pipeline reads."""

    monitoring: MonitoringTable = MonitoringTable()

    @model_validator(mode="after")
    def _sinks_get_something(self) -> Self:
        if self.monitoring.sinks and self.monitoring.interval_seconds is None:
            raise ValueError(
                f"monitoring.sinks ({', '.join(self.monitoring.sinks)}): "
                "monitoring.interval_seconds is null, they would get nothing"
            )
        return self

    @model_validator(mode="after")
    def _tables_fit_each_other(self) -> Self:
        drawn, made = self.distiller.batch_size, self.synthesizer.batch_size
        if made > self.buffer.capacity:
            raise ValueError(
                f"synthesizer.batch_size ({made}) exceeds buffer.capacity "
                f"({self.buffer.capacity}): a round would evict its own samples"
            )
        window = self.buffer.error_buffer
        if self.buffer.samples_per_insert is not None and window is not None:
            in_flight = drawn * self.distiller.most_workers * (self.distiller.prefetch + 1)
            least = max(in_flight, made * self.buffer.samples_per_insert)
            if window < least:
                raise ValueError(
                    f"buffer.error_buffer ({window:g}) is below what the larger side has in flight "
                    f"({least:g} draws): synthesizers and distillers would block each other"
                )
        table = self.synthesizer
        least, most = table.min_actors or 1, table.max_actors or table.actors
        if not least <= table.actors <= most:
            raise ValueError(
                f"synthesizer.actors ({table.actors}) is not between min_actors ({least}) and "
                f"max_actors ({most}): their number would change at once"
            )
        if self.controller.policy != "off" and (
            self.controller.interval_seconds < self.distiller.probe_seconds
        ):
            raise ValueError(
                f"controller.interval_seconds ({self.controller.interval_seconds:g}) is shorter "
                f"than distiller.probe_seconds ({self.distiller.probe_seconds:g}): decisions would "
                "wait for their reward"
            )
        return self


def load(path: Path, assignments: Sequence[str] = ()) -> PipelineConfig:
    """Parses a configuration file with ``table.key=value`` overrides, filling derived defaults.

    Raises:
        ConfigError: the file cannot be read, or a setting is impossible.
    """
    return with_defaults(parse(PipelineConfig, override(read_raw(path), assignments)))


def with_defaults(config: PipelineConfig) -> PipelineConfig:
    """Fills the settings whose default follows from other tables."""
    if config.buffer.error_buffer is not None:
        return config
    in_flight = config.distiller.most_workers * (config.distiller.prefetch + 1)
    spi = config.buffer.samples_per_insert or 1.0
    larger = max(
        in_flight * config.distiller.batch_size,
        config.synthesizer.actors * config.synthesizer.batch_size * spi,
    )
    table = config.buffer.model_copy(update={"error_buffer": 10.0 * larger})
    return config.model_copy(update={"buffer": table})


def shipped() -> dict[str, str]:
    """Names of the shipped configurations and the first comment line of each."""
    found = {}
    for path in sorted(CONFIGS.glob("*.yaml")):
        first = path.read_text(encoding="utf-8").splitlines()[0]
        found[path.stem] = first.lstrip("# ").rstrip()
    return found


def locate(name: str | None) -> Path:
    """A configuration by path, or by the name of a shipped one; the demo's for ``None``.

    Raises:
        ConfigError: there is neither such a file nor such a shipped configuration.
    """
    if name is None:
        return DEFAULT_CONFIG
    path = Path(name)
    if path.is_file():
        return path
    if name in shipped():
        return CONFIGS / f"{name}.yaml"
    raise ConfigError(
        f"config ({name}): no such file in {Path.cwd()}, and no shipped configuration of that "
        f"name (there are {', '.join(shipped())}); a job finds what is sent along: --working-dir"
    )


__all__ = ["CONFIGS", "PipelineConfig", "load", "locate", "shipped", "with_defaults"]
