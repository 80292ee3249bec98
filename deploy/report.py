"""What a run leaves behind: ``result.json``, ``config.yaml``, the student, a picture of samples."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image
from rich.table import Table as RichTable

from buffer.errors import RateLimited
from buffer.interface import Replay
from buffer.models import autocast_dtype
from buffer.sample import Batch
from deploy.config import PipelineConfig

GALLERY_COLUMNS = 10
GALLERY_BATCH, GALLERY_DRAWS = 256, 16
MAX_ROWS = 100


def clear(out: Path) -> None:
    """Removes an earlier run's results, so that none is mistaken for this one's."""
    for name in (
        *("result.json", "student.safetensors", "samples.png", "report.html"),
        *("metrics.jsonl", "controller.jsonl", "timeline.jsonl", "pictures.jsonl"),
    ):
        (out / name).unlink(missing_ok=True)
    for folder in ("pictures", "tensorboard"):
        shutil.rmtree(out / folder, ignore_errors=True)


def public(config: PipelineConfig) -> dict[str, Any]:
    """The tables, without a Redis URL that may hold a password (user part or query)."""
    tables = config.model_dump(mode="json")
    url = tables["buffer"]["url"] or ""
    if "@" in url or "?" in url:
        tables["buffer"]["url"] = None
    return tables


def write_config(config: PipelineConfig, out: Path) -> None:
    """Writes the configuration as resolved, so that the run can be made again."""
    text = yaml.safe_dump(public(config), sort_keys=False)
    write_atomically(out / "config.yaml", text.encode())


def write_result(result: Mapping[str, Any], out: Path) -> None:
    """Writes ``result.json``."""
    text = json.dumps(result, indent=2, sort_keys=False, allow_nan=False)
    write_atomically(out / "result.json", text.encode() + b"\n")


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file so that a reader, or a crash, sees the old one or the new one."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
    os.replace(partial, path)


def versions() -> dict[str, str]:
    """The versions a result depends on, of what is installed."""
    found = {"python": platform.python_version()}
    for name in ("ssdkd", "torch", "ray", "redis", "numpy"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def git_revision() -> str | None:
    """The commit of the source tree, with ``-dirty`` if it was changed.

    ``None`` outside of git, and where we are installed in somebody else's repository.
    """
    here = Path(__file__)

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=here.parent, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return None


def environment() -> dict[str, Any]:
    """What a run runs on: versions, git revision, machine."""
    return {"versions": versions(), "git_revision": git_revision(), "machine": machine()}


def machine() -> dict[str, Any]:
    """What this computer is: system, processor, memory, GPUs. Not its name: reports travel."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    gpus = range(torch.cuda.device_count())
    return {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gibibytes": round(memory / 2**30, 1),
        "gpus": [torch.cuda.get_device_name(number) for number in gpus],
    }


def _processor() -> str:
    """Its model where Linux says it, its architecture elsewhere, and what vectors it computes with.

    Why the vectors: clouds hide the model, and one with bfloat16 is twice as fast as one without.
    """
    model = platform.machine()
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    bfloat16 = autocast_dtype("auto", torch.device("cpu")) is not None
    return f"{model}, {torch.backends.cpu.get_cpu_capability()}{', bfloat16' * bfloat16}"


def gallery(replay: Replay, classes: int) -> Image.Image | None:
    """A grid of buffered samples, a row per predicted class; ``None`` if none can be drawn.

    At most ``MAX_ROWS`` classes and ten distinct samples each.
    """
    drawn = _draw(replay)
    if not drawn:
        return None
    _, first = np.unique(np.concatenate([b.identities for b in drawn]), return_index=True)
    images = np.concatenate([batch.images for batch in drawn])[first]
    predicted = np.concatenate([batch.predicted_classes for batch in drawn])[first]
    rows = min(classes, MAX_ROWS)
    _, channels, height, width = images.shape
    grid = np.full(
        (channels, rows * (height + 1) + 1, GALLERY_COLUMNS * (width + 1) + 1), 255, np.uint8
    )
    for row in range(rows):
        for column, image in enumerate(images[predicted == row][:GALLERY_COLUMNS]):
            top, left = row * (height + 1) + 1, column * (width + 1) + 1
            grid[:, top : top + height, left : left + width] = image
    return _picture(grid)


def _draw(replay: Replay) -> list[Batch]:
    """What fills a gallery; nothing if there is too little to draw from."""
    try:
        return [
            replay.sample(GALLERY_BATCH, seed=seed, counted=False) for seed in range(GALLERY_DRAWS)
        ]
    except RateLimited:
        return []


def _picture(grid: NDArray[np.uint8]) -> Image.Image:
    """An image of a ``[C, H, W]`` array; small ones are enlarged, other than RGB shown as grey."""
    channels, height, width = grid.shape
    pixels = grid.transpose(1, 2, 0) if channels == 3 else grid.mean(0).astype(np.uint8)
    factor = max(1, 320 // width)
    return Image.fromarray(pixels).resize(
        (width * factor, height * factor), Image.Resampling.NEAREST
    )


def summary(result: Mapping[str, Any], out: Path) -> RichTable:
    """The table shown at the end of a run."""
    table = RichTable(title=f"{result['config']['run']['name']}: {result['method']}")
    table.add_column("measure")
    table.add_column("value", justify="right")
    for name, key, unit in (
        ("teacher accuracy", "teacher_accuracy", " %"),
        ("student accuracy", "student_accuracy", " %"),
        ("agreement", "agreement", " %"),
        ("samples inverted", "samples_inverted", ""),
        ("samples drawn", "samples_drawn", ""),
        ("student steps", "student_steps", ""),
        ("wall time", "wall_seconds", " s"),
    ):
        table.add_row(name, _shown(result[key], unit))
    table.add_row("outputs", str(out))
    return table


def _shown(value: float | int | None, unit: str) -> str:
    if value is None:
        return "not measured"
    return f"{value:,}{unit}" if isinstance(value, int) else f"{value:,.2f}{unit}"
