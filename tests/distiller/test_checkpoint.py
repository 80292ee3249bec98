from __future__ import annotations

import pickle

import pytest
import torch

from buffer.errors import ModelError
from distiller import checkpoint
from distiller.networks import digits_cnn


def test_what_is_saved_is_loaded(tmp_path):
    student = digits_cnn(2).state_dict()
    state = {"step": 3, "curve": [[1, 2.5]], "rng": torch.get_rng_state(), "none": None}
    checkpoint.save(tmp_path, student, state)
    weights, loaded = checkpoint.load(tmp_path)
    assert weights.keys() == student.keys()
    assert all(torch.equal(weights[name], student[name]) for name in student)
    assert torch.equal(loaded.pop("rng"), state.pop("rng"))
    assert loaded == state


def test_a_channels_last_student_is_saved_in_plain_order(tmp_path):
    student = digits_cnn(4).to(memory_format=torch.channels_last).state_dict()
    checkpoint.save(tmp_path, student, {})
    weights, _ = checkpoint.load(tmp_path)
    assert all(torch.equal(weights[name], student[name]) for name in student)


def test_a_checkpoint_never_runs_code(tmp_path):
    checkpoint.save(tmp_path, digits_cnn(2).state_dict(), {})

    class Evil:
        def __reduce__(self):
            return (print, ("code ran",))

    torch.save({"evil": Evil()}, tmp_path / checkpoint.STATE)
    with pytest.raises(pickle.UnpicklingError):
        checkpoint.load(tmp_path)


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(ModelError, match=r"student\.safetensors\): there is no such file"):
        checkpoint.load(tmp_path)
