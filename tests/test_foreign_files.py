"""Files of weights from elsewhere: what is read, what is left aside, and what is refused."""

import argparse
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from factor_transfer.checkpoint import read_weights, save_weights
from factor_transfer.errors import InputError
from factor_transfer.foreign import read_foreign

STATE = {"conv.weight": torch.arange(6.0).view(2, 3), "bn.num_batches_tracked": torch.tensor(7)}

BESIDE = {
    "epoch": 240,
    "best_acc": np.float64(72.5),
    "accuracy": torch.tensor(72.5),
    "top5": np.float32(91),
    "step": np.int64(3),
    "optimizer": {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"lr": 0.05, "params": [0]}]},
    "meta": {"classes": ["cat", "dog"], "version": None},
}


@pytest.mark.parametrize("beside", [{}, BESIDE])
@pytest.mark.parametrize("name", ["model", "state_dict", "net"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_state_dict_is_found_among_other_entries(tmp_path: Path, prefix: str, name: str, beside: dict) -> None:
    torch.save({**beside, name: {prefix + key: value for key, value in STATE.items()}}, tmp_path / "w.pth.tar")
    torch.testing.assert_close(read_foreign(tmp_path / "w.pth.tar"), STATE, rtol=0, atol=0)


def test_a_numpy_scalar_of_a_file_from_before_numpy_2(tmp_path: Path) -> None:
    torch.save(
        {"net": {"a": torch.ones(1)}, "acc": np.float64(1)}, tmp_path / "new.t7", _use_new_zipfile_serialization=False
    )
    content = (tmp_path / "new.t7").read_bytes()
    assert b"numpy._core.multiarray" in content
    (tmp_path / "old.t7").write_bytes(content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert read_foreign(tmp_path / "old.t7")["a"] == 1


def test_plain_files_are_read(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "w.pth")
    save_weights(tmp_path / "w.safetensors", {f"module.{key}": value for key, value in STATE.items()})
    for name in ("w.pth", "w.safetensors"):
        torch.testing.assert_close(read_foreign(tmp_path / name), STATE, rtol=0, atol=0)


def test_a_prefix_that_not_all_names_have_stays(tmp_path: Path) -> None:
    state = {"module.a": torch.ones(1), "b": torch.ones(1)}
    torch.save(state, tmp_path / "w.pth")
    assert read_foreign(tmp_path / "w.pth").keys() == state.keys()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "must be a state dict.* or hold one as 'model', 'state_dict', 'net'"),
        ({"a": 1}, "must be a state dict"),
        ({"epoch": 1, "weights": {"a": torch.ones(1)}}, "must be a state dict"),
        ({"model": {"a": torch.ones(1), "b": 1}}, "must be a state dict"),
        ({"model": {"a": np.float64(1)}}, "must be a state dict"),
        ({"model": {1: torch.ones(1)}}, "must be a state dict"),
        ({"model": {"a": torch.ones(1)}, "net": {"a": torch.ones(1)}}, "hold model and net"),
        ({"model": {"a": torch.ones(1)}, "opt": argparse.Namespace(lr=1)}, "argparse.Namespace is in it.*state dict"),
        ({"model": {"a": torch.ones(1)}, "curve": np.ones(3)}, "_reconstruct is in it"),
        ({"model": nn.Linear(1, 1)}, "torch.nn.modules.linear.Linear is in it"),
    ],
)
def test_a_file_that_holds_no_state_dict_is_refused(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(InputError, match=rf"w\.pth.*{message}"):
        read_foreign(tmp_path / "w.pth")


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.pth.*No such file"):
        read_foreign(tmp_path / "nowhere.pth")
    for name in ("w.pth", "w.safetensors"):
        (tmp_path / name).write_bytes(b"none of these")
        with pytest.raises(InputError, match=rf"{name} are damaged"):
            read_foreign(tmp_path / name)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch pwned",)


class Disguised:
    """Asks for the call by way of what stands in for NumPy's."""

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return np.dtype, (Evil(),)


@pytest.mark.parametrize("evil", [Evil(), Disguised()])
@pytest.mark.parametrize("zipped", [False, True])
def test_a_file_that_would_run_code_is_refused(tmp_path: Path, evil: object, zipped: bool) -> None:
    content = {"model": {"a": torch.ones(1)}, "best_acc": evil}
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    (tmp_path / "bare.pth").write_bytes(pickle.dumps({"a": evil}, protocol=2))
    for name in ("w.pth", "bare.pth"):
        with pytest.raises(InputError, match=r"damaged, or hold more than tensors: \w+\.system is in it"):
            read_foreign(tmp_path / name)
    assert not Path("pwned").exists()


def test_numpy_scalars_are_let_in_here_alone(tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.ones(1)}, "best_acc": np.float64(1)}, tmp_path / "w.pth")
    before = set(torch.serialization.get_safe_globals())
    read_foreign(tmp_path / "w.pth")
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(InputError, match="hold more than tensors"):
        read_weights(tmp_path / "w.pth")
