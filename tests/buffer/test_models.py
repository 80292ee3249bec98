from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch
from pydantic import ValidationError
from torch import nn

from buffer.config import ModelSpec
from buffer.errors import ModelError
from buffer.models import (
    NormalizedModel,
    autocast_dtype,
    build,
    check_outputs,
    from_bytes,
    load_weights,
    read_weights,
    resolve,
    to_bytes,
)


def spec(**changes: object) -> ModelSpec:
    fields: dict[str, object] = {
        "factory": "torch.nn:Flatten",
        "classes": 4,
        "image_shape": (1, 2, 2),
        "mean": (0.5,),
        "std": (0.25,),
    }
    return ModelSpec.model_validate(fields | changes)


def test_inputs_are_normalised_by_the_model() -> None:
    model = build(spec())
    images = torch.rand(5, 1, 2, 2)
    assert torch.allclose(model(images), (images.flatten(1) - 0.5) / 0.25)


def test_an_unknown_module_is_refused() -> None:
    with pytest.raises(ModelError, match=r"nowhere:net: there is no module nowhere"):
        resolve("nowhere:net")
    with pytest.raises(ModelError, match=r"there is no module torch\.nowhere\.deep"):
        resolve("torch.nowhere.deep:net")


def test_a_missing_package_is_named_although_the_modules_name_begins_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nothere_yet.py").write_text("import nothere")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModelError, match=r"nothere_yet needs the package nothere, which is not"):
        resolve("nothere_yet:net")


def test_a_module_that_cannot_be_imported_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "half_there.py").write_text("from torch import nothing_of_the_kind")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        ModelError, match=r"half_there cannot be imported: cannot import name 'nothing_of_the_kind"
    ):
        resolve("half_there:net")


class Silent(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        raise ValueError


def test_a_network_that_fails_without_a_word_is_refused_all_the_same() -> None:
    model = NormalizedModel(Silent(), (0.5,), (0.25,))
    with pytest.raises(ModelError, match=r"cannot take such images: ValueError$"):
        check_outputs(model, spec(), field="student")


@pytest.mark.parametrize("error", ["KeyError('depth')", "RuntimeError('depth')"])
def test_a_factory_that_fails_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: str
) -> None:
    name = f"failing_{error[:3].lower()}"
    (tmp_path / f"{name}.py").write_text(f"def net():\n    raise {error}\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModelError, match=rf"{name}:net with kwargs {{}}: '?depth"):
        build(spec(factory=f"{name}:net"))


def test_more_classes_than_cells_can_name_are_refused() -> None:
    assert spec(classes=2**16).classes == 2**16
    with pytest.raises(ValidationError, match="classes"):
        spec(classes=2**16 + 1)


def test_a_typing_error_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(ModelError, match=r"did you mean torch\.nn:Flatten\?"):
        resolve("torch.nn:Flaten")


def test_something_that_cannot_be_called_is_refused() -> None:
    with pytest.raises(ModelError, match="is str, not a callable"):
        resolve("torch:__name__")


def test_wrong_arguments_name_the_factory() -> None:
    with pytest.raises(ModelError, match=r"torch\.nn:Flatten with kwargs \{'width': 3\}"):
        build(spec(kwargs={"width": 3}))


def test_a_factory_that_makes_no_module_is_refused() -> None:
    with pytest.raises(ModelError, match=r"builtins:dict returned dict, not a torch module"):
        build(spec(factory="builtins:dict"))


def test_outputs_of_another_number_of_classes_are_refused() -> None:
    with pytest.raises(ModelError, match=r"teacher\.classes \(5\): .* returns \(2, 4\)"):
        check_outputs(build(spec()), spec(classes=5), field="teacher")


def test_images_the_network_cannot_take_are_refused() -> None:
    wrong = spec(factory="torch.nn:Linear", kwargs={"in_features": 7, "out_features": 4})
    with pytest.raises(ModelError, match=r"student\.image_shape .* cannot take such images"):
        check_outputs(build(wrong), wrong, field="student")


def test_checking_outputs_leaves_the_mode_as_it_was() -> None:
    model = build(spec()).train()
    check_outputs(model, spec(), field="teacher")
    assert model.training


def test_weights_that_do_not_fit_list_the_first_layers_and_change_nothing() -> None:
    network, other = nn.Linear(2, 3), nn.Linear(2, 4)
    before = network.weight.clone()
    with pytest.raises(
        ModelError, match=r"weight: the weights have \(4, 2\), the network \(3, 2\)"
    ):
        load_weights(network, other.state_dict(), origin="file")
    assert torch.equal(network.weight, before)


def test_missing_and_foreign_layers_are_named_and_the_rest_counted() -> None:
    weights = {f"foreign{i}": torch.zeros(1) for i in range(6)}
    with pytest.raises(ModelError, match=r"(?s)weight: not in the weights.*and 3 more"):
        load_weights(nn.Linear(2, 3), weights, origin="file")


def test_older_batchnorm_weights_without_a_counter_are_welcome() -> None:
    state = {k: v + 1 for k, v in nn.BatchNorm1d(3).state_dict().items() if "num_batches" not in k}
    network = nn.BatchNorm1d(3)
    load_weights(network, state, origin="file")
    assert torch.equal(network.weight, torch.full((3,), 2.0))


def test_both_kinds_of_weights_files_are_read(tmp_path: Path) -> None:
    state = nn.Linear(2, 3).state_dict()
    torch.save(state, tmp_path / "w.pt")
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    for name in ("w.pt", "w.safetensors"):
        assert torch.equal(read_weights(tmp_path / name)["weight"], state["weight"])


class Intruder:
    touched = False

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (setattr, (Intruder, "touched", True))


def test_a_weights_file_never_runs_code(tmp_path: Path) -> None:
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Intruder(), protocol=2))
    torch.save({"weight": Intruder()}, tmp_path / "evil_zip.pt")
    for name in ("evil.pt", "evil_zip.pt"):
        with pytest.raises(ModelError, match="cannot be read safely"):
            read_weights(tmp_path / name)
    assert not Intruder.touched


@pytest.mark.parametrize("content", [b"", b"not weights at all"])
@pytest.mark.parametrize("name", ["bad.pt", "bad.safetensors"])
def test_damaged_weights_files_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=r"weights \(.*bad.* cannot be read safely"):
        read_weights(tmp_path / name)


def test_a_missing_weights_file_is_refused(tmp_path: Path) -> None:
    for name in ("none.pt", "none.safetensors"):
        with pytest.raises(ModelError, match="there is no such file"):
            read_weights(tmp_path / name)


def test_a_checkpoint_that_is_no_state_dict_is_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "w.pt")
    with pytest.raises(ModelError, match="hold dict, not a plain state dict"):
        read_weights(tmp_path / "w.pt")


def test_weights_survive_the_journey_through_bytes() -> None:
    model = NormalizedModel(nn.Linear(2, 3), (0.0,), (1.0,))
    state = from_bytes(to_bytes(model))
    assert set(state) == {"weight", "bias"}
    assert torch.equal(state["weight"], model.network.state_dict()["weight"])


def test_bytes_that_are_no_weights_are_refused() -> None:
    with pytest.raises(ModelError, match="student snapshot is not safetensors"):
        from_bytes(b"12345678nonsense")


def test_precision_can_be_forced_either_way() -> None:
    cpu = torch.device("cpu")
    assert autocast_dtype("float32", cpu) is None
    assert autocast_dtype("bfloat16", cpu) is torch.bfloat16
