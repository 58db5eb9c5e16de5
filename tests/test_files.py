import os
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from factor_transfer import build_model
from factor_transfer import files as checkpoint
from factor_transfer.errors import InputError
from factor_transfer.training import checkpoint as training_state

STATE = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor([1, 2])}


def test_weights_go_and_come_back(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    checkpoint.save_weights(path, {"a": STATE["a"].t(), "b": STATE["b"]})
    read = checkpoint.read_weights(path)
    assert torch.equal(read["a"], STATE["a"].t())
    assert torch.equal(read["b"], STATE["b"])


def test_pytorch_files_of_tensors_are_read(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "w.pth")
    assert torch.equal(checkpoint.read_weights(tmp_path / "w.pth")["a"], STATE["a"])


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch pwned",)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors", "last.ckpt"])
def test_a_file_that_would_run_code_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(pickle.dumps({"a": Evil()}))
    with pytest.raises(InputError, match="damaged"):
        training_state.read_training(path) if name == "last.ckpt" else checkpoint.read_weights(path)
    assert not Path("pwned").exists()


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {"model": {"a": torch.ones(1)}}])
def test_a_file_that_is_no_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(InputError, match="must be a state dict"):
        checkpoint.read_weights(tmp_path / "w.pt")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.safetensors.*No such file"):
        checkpoint.read_weights(tmp_path / "nowhere.safetensors")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    checkpoint.save_weights(folder / "w.safetensors", STATE)
    training_state.save_training(folder / "last.ckpt", {"epoch": 2, "method": STATE})
    return folder


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(share=st.floats(0, 0.999))
def test_a_truncated_file_is_an_error_that_names_it(written: Path, tmp_path: Path, share: float) -> None:
    for name, read in (("w.safetensors", checkpoint.read_weights), ("last.ckpt", training_state.read_training)):
        whole = (written / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(InputError, match=name):
            read(tmp_path / name)


def test_layers_that_do_not_fit_are_named() -> None:
    state = build_model("resnet8", 10).state_dict()
    with pytest.raises(InputError, match=r"fc\.weight: shape \(10, 64\) in the file, \(7, 64\) in the model"):
        checkpoint.load_into(build_model("resnet8", 7), state, Path("w"))
    with pytest.raises(InputError, match=r"missing: layer1\.1\.conv1\.weight[\s\S]*and \d+ more"):
        checkpoint.load_into(build_model("resnet14", 10), state, Path("w"))
    with pytest.raises(InputError, match="not in the model: extra"):
        checkpoint.load_into(nn.Linear(1, 1), {**nn.Linear(1, 1).state_dict(), "extra": torch.ones(1)}, Path("w"))


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    checkpoint.write_atomic(path, b"old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
