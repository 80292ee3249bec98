"""A training on disk: the student as safetensors, the rest as tensors and plain numbers.

Both are read without running code from them, so a checkpoint from anywhere is safe to open.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from buffer.models import StateDict, read_weights

STUDENT = "student.safetensors"
STATE = "state.pt"


def save(folder: Path, student: StateDict, state: Mapping[str, Any]) -> None:
    """Writes a checkpoint into an existing, empty folder.

    Args:
        folder: where.
        student: the network's weights, under its own parameter names.
        state: tensors, numbers, strings and containers of them.
    """
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in student.items()}
    safetensors.torch.save_file(weights, folder / STUDENT)
    torch.save(dict(state), folder / STATE)


def load(folder: Path) -> tuple[StateDict, dict[str, Any]]:
    """The student's weights and the rest of the state.

    Raises:
        ModelError: the weights are missing or damaged.
    """
    student = read_weights(folder / STUDENT)
    state: dict[str, Any] = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    return student, state


def random_states(device: torch.device) -> dict[str, Tensor]:
    """The states of torch's own random generators, under ``torch`` and, on a GPU, ``cuda``."""
    states = {"torch": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_random_states(states: Mapping[str, Any], device: torch.device) -> None:
    """Goes on from :func:`random_states`, as far as they were saved on such a device."""
    torch.set_rng_state(states["torch"])
    if "cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
