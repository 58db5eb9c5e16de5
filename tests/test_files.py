import errno
import json
import os
import pickle
import tempfile
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from conftest import Run, refused
from factor_transfer import build_model, files, state_dicts
from factor_transfer.errors import InputError
from factor_transfer.training import checkpoint as training_state

STATE = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor([1, 2])}


def test_weights_are_written_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    state_dicts.save_weights(path, {"a": STATE["a"].t(), "b": STATE["b"]})
    read = state_dicts.read_weights(path)
    assert torch.equal(read["a"], STATE["a"].t())
    assert torch.equal(read["b"], STATE["b"])


def test_pytorch_files_of_tensors_are_read(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "w.pth")
    assert torch.equal(state_dicts.read_weights(tmp_path / "w.pth")["a"], STATE["a"])


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch pwned",)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors", "last.ckpt"])
def test_a_file_that_would_run_code_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(pickle.dumps({"a": Evil()}))
    with pytest.raises(InputError, match="damaged"):
        training_state.read_training(path) if name == "last.ckpt" else state_dicts.read_weights(path)
    assert not Path("pwned").exists()


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {"model": {"a": torch.ones(1)}}])
def test_a_file_that_is_no_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(InputError, match="must be a state dict"):
        state_dicts.read_weights(tmp_path / "w.pt")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.safetensors.*No such file"):
        state_dicts.read_weights(tmp_path / "nowhere.safetensors")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    state_dicts.save_weights(folder / "w.safetensors", STATE)
    training_state.save_training(folder / "last.ckpt", {"epoch": 2, "method": STATE})
    return folder


@settings(max_examples=40)
@given(share=st.floats(0, 0.999))
def test_a_truncated_file_is_an_error_that_names_it(written: Path, tmp_path: Path, share: float) -> None:
    for name, read in (("w.safetensors", state_dicts.read_weights), ("last.ckpt", training_state.read_training)):
        whole = (written / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(InputError, match=name):
            read(tmp_path / name)


def test_layers_that_do_not_fit_are_named() -> None:
    state = build_model("resnet8", 10).state_dict()
    with pytest.raises(InputError, match=r"fc\.weight: shape \(10, 64\) in the weights, \(7, 64\) in the model"):
        state_dicts.load_into(build_model("resnet8", 7), state, Path("w"))
    with pytest.raises(InputError, match=r"missing: layer1\.1\.conv1\.weight[\s\S]*and \d+ more"):
        state_dicts.load_into(build_model("resnet14", 10), state, Path("w"))
    with pytest.raises(InputError, match="not in the model: extra"):
        state_dicts.load_into(nn.Linear(1, 1), {**nn.Linear(1, 1).state_dict(), "extra": torch.ones(1)}, Path("w"))


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    files.write_atomic(path, b"old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_writing_to_a_link_replaces_its_target(tiny: Path, finished: Path, run: Run) -> None:
    Path("real.json").write_text("{}")
    Path("there").mkdir()
    for name, target in (("link", "real.json"), ("chain", "link"), ("dangling", "there/new.json")):
        Path(name).symlink_to(target)
        result = run("test", tiny, finished / "teacher", "--json", name)
        assert result.code == 0, result.err
        assert Path(name).is_symlink()
        assert "top1" in json.loads(Path(name).resolve().read_text())
        Path("real.json").write_text("{}")
    Path("loop").symlink_to("loop")
    refused(run("test", tiny, finished / "teacher", "--json", "loop"), "loop|levels of symbolic links")
    refused(run("test", tiny, finished / "teacher", "--json", "there"), "there")


def test_results_can_be_written_to_special_files(tiny: Path, finished: Path, run: Run) -> None:
    """A pipe, a terminal, an open file: as ``--json /dev/stdout`` and ``--json >(jq .top1)`` are."""
    os.mkfifo("pipe")
    Path("link").symlink_to("pipe")
    for name in ("pipe", "link"):
        heard: list[str] = []
        reader = threading.Thread(target=lambda heard=heard: heard.append(Path("pipe").read_text()))
        reader.start()
        assert run("test", tiny, finished / "teacher", "--json", name).code == 0
        reader.join()
        assert "top1" in json.loads(heard[0])
        assert Path("pipe").is_fifo()
    if Path("/dev/shm").is_dir():  # a file in memory is one like others
        with tempfile.TemporaryDirectory(dir="/dev/shm") as place:
            for number in (1, 2):
                files.write_json(Path(place, "a.json"), {"number": number})
            assert files.read_json(Path(place, "a.json")) == {"number": 2}
    leader, follower = os.openpty()
    files.write_atomic(Path(os.ttyname(follower)), b"heard")
    assert os.read(leader, 9) == b"heard"
    with Path("open").open("w+b") as file:
        file.write(b"before ")
        file.flush()
        files.write_atomic(Path(f"/dev/fd/{file.fileno()}"), b"after")
        assert Path("open").read_bytes() == b"before after"
    os.close(leader)
    os.close(follower)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_modes_respect_the_umask(tmp_path: Path, digits_run: Path, run: Run, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        files.write_json(tmp_path / "new" / "a.json", {})
        assert run("package", digits_run, "--out", tmp_path / "shared").code == 0
    finally:
        os.umask(before)
    for folder in ("new", "shared"):
        assert (tmp_path / folder).stat().st_mode & 0o777 == mode | (mode & 0o444) >> 2
        assert {path.stat().st_mode & 0o777 for path in (tmp_path / folder).iterdir()} == {mode}


def test_a_full_disk_names_file_and_remedy(
    tiny: Path, finished: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    refused(
        run("test", tiny, finished / "teacher", "--json", "a.json"),
        r"cannot write a\.json: No space",
        "free some space",
    )
    refused(run("teacher", tiny), "No space left", "free some space", "--work-dir")


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_special_files_do_not_block_reading(kind: str, digits_run: Path, tiny: Path, work: Path, run: Run) -> None:
    def put(path: Path) -> None:
        path.unlink()
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "device":
            path.symlink_to("/dev/zero")
        else:
            path.mkdir()

    assert run("package", digits_run, "--out", "shared").code == 0
    put(Path("shared/model.safetensors"))
    refused(run("predict", "shared", "shared"), r"model\.safetensors", "regular file|folder")
    put(work / "teacher" / "stage.json")
    refused(run("run", tiny, "--work-dir", work), r"stage\.json", "regular file|folder")
    for name in ("w.pth", "w.safetensors"):
        Path(name).touch()
        put(Path(name))
        with pytest.raises(InputError, match=rf"{name} is a (FIFO|device|folder)"):
            state_dicts.read_weights(Path(name))


def holding(**changes: torch.Tensor) -> nn.Module:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    state = model.state_dict()
    state_dicts.load_into(
        model, {**state, **{key.replace("_", ".", 1): value for key, value in changes.items()}}, Path("w")
    )
    return model


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.full((2, 1, 1, 1), float("nan")), r"not finite: 0\.weight"),
        (torch.full((2, 1, 1, 1), 1e300, dtype=torch.float64), r"not finite: 0\.weight"),
        (torch.full((2, 1, 1, 1), complex(0, float("nan"))), r"0\.weight: torch\.complex64 in the weights"),
        (
            torch.ones(2, 1, 1, 1, dtype=torch.bool),
            r"0\.weight: torch\.bool in the weights, torch\.float32 in the model",
        ),
        (torch.ones(2, 1, 1, 1, dtype=torch.uint8), r"0\.weight: torch\.uint8 in the weights"),
        (torch.ones(2, 1, 1, 1).to_sparse(), r"0\.weight: not a dense tensor"),
        (torch.ones(2, 1, 1, 1, device="meta"), r"0\.weight: not a dense tensor"),
    ],
)
def test_weights_that_a_model_cannot_hold(weight: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        holding(**{"0_weight": weight})


def test_negative_variances_and_invalid_counters() -> None:
    with pytest.raises(InputError, match=r"variances below zero: 1\.running_var"):
        holding(**{"1_running_var": torch.tensor([1.0, -1e-3])})
    with pytest.raises(InputError, match=r"num_batches_tracked: torch\.float32"):
        holding(**{"1_num_batches_tracked": torch.tensor(float("nan"))})
    assert holding(**{"1_num_batches_tracked": torch.tensor(7.0)}).state_dict()["1.num_batches_tracked"] == 7
    held = holding(**{"0_weight": torch.full((2, 1, 1, 1), 0.5, dtype=torch.float64)}).state_dict()["0.weight"]
    assert held.dtype == torch.float32


@pytest.mark.parametrize("text", ["NaN", "-Infinity", "1e999", '"\\ud800"', '{"\\ud800": 1}', "\ufeff{}"])
def test_json_that_is_not_finite_or_no_text(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(f"[{text}]")
    with pytest.raises(InputError, match=r"cannot read .*a\.json: "):
        files.read_json(tmp_path / "a.json")
