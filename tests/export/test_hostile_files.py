"""Exported files that are damaged or mean harm: one message, exit code 2, and the command itself lives on."""

import json
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from conftest import Run, refused
from factor_transfer.errors import InputError
from factor_transfer.export.formats import runtimes
from factor_transfer.export.formats.runtimes import open_file
from factor_transfer.files import sha256

STUDENT = "student-factor-seed0"
needs_onnx = pytest.mark.skipif(find_spec("onnxruntime") is None, reason="the extra onnx is not installed")
needs_executorch = pytest.mark.skipif(find_spec("executorch") is None, reason="the extra executorch is not installed")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "one.png"
    Image.new("L", (8, 8)).save(path)
    return path


def beside(path: Path, classes: int = 4, dtype: str = "float32") -> Path:
    """Whoever makes a file that means harm writes the record beside it, too."""
    record: dict[str, Any] = {
        "file": {"name": path.name, "sha256": sha256(path), "bytes": path.stat().st_size},
        "classes": [str(number) for number in range(classes)],
        "input": {"mean": [0.5], "std": [0.25], "dtype": dtype, "channels": 1, "height": 8, "width": 8},
    }
    (path.parent / "export.json").write_text(json.dumps(record))
    return path


def made(
    nodes: Callable[[Any], list[Any]],
    shape: tuple[Any, ...] = (1, 1, 8, 8),
    output: str = "FLOAT",
    given: Sequence[Any] = ("n", "k"),
) -> bytes:
    """An ONNX model of ``nodes``, from ``images`` to ``logits``."""
    import onnx

    helper, kinds = onnx.helper, onnx.TensorProto
    graph = helper.make_graph(
        nodes(helper),
        "g",
        [helper.make_tensor_value_info("images", kinds.FLOAT, list(shape))],
        [helper.make_tensor_value_info("logits", getattr(kinds, output), list(given))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def for_ever(helper: Any) -> list[Any]:
    import onnx

    kinds = onnx.TensorProto
    body = helper.make_graph(
        [helper.make_node("Identity", ["going"], ["on"]), helper.make_node("Identity", ["value"], ["next"])],
        "body",
        [
            helper.make_tensor_value_info("turn", kinds.INT64, []),
            helper.make_tensor_value_info("going", kinds.BOOL, []),
            helper.make_tensor_value_info("value", kinds.FLOAT, [1, 64]),
        ],
        [
            helper.make_tensor_value_info("on", kinds.BOOL, []),
            helper.make_tensor_value_info("next", kinds.FLOAT, [1, 64]),
        ],
    )
    true = helper.make_tensor("true", kinds.BOOL, [], [True])
    return [
        helper.make_node("Constant", [], ["yes"], value=true),
        helper.make_node("Flatten", ["images"], ["flat"]),
        helper.make_node("Loop", ["", "yes", "flat"], ["logits"], body=body),
    ]


def huge(helper: Any) -> list[Any]:
    import onnx

    shape = helper.make_tensor("shape", onnx.TensorProto.INT64, [2], [1, 2**38])  # a terabyte
    return [
        helper.make_node("Constant", [], ["shape"], value=shape),
        helper.make_node("ConstantOfShape", ["shape"], ["logits"]),
    ]


def text(helper: Any) -> list[Any]:
    import onnx

    return [
        helper.make_node("Flatten", ["images"], ["flat"]),
        helper.make_node("Cast", ["flat"], ["logits"], to=onnx.TensorProto.STRING),
    ]


def flat(helper: Any) -> list[Any]:
    return [helper.make_node("Flatten", ["images"], ["logits"])]


def summed(helper: Any) -> list[Any]:
    return [helper.make_node("ReduceSum", ["images"], ["logits"], keepdims=0)]


@needs_onnx
@pytest.mark.parametrize(
    ("nodes", "shape", "output", "message"),
    [
        pytest.param(for_ever, (1, 1, 8, 8), "FLOAT", "it takes too long", id="an endless loop"),
        pytest.param(huge, (1, 1, 8, 8), "FLOAT", "cannot be loaded", id="a terabyte"),
        pytest.param(text, (1, 1, 8, 8), "STRING", r"returns tensor\(string\)", id="text"),
        pytest.param(flat, (1, 64), "FLOAT", r"its input has the shape \[64\]", id="input of two dimensions"),
        pytest.param(flat, (1, 1, "h", "w"), "FLOAT", "its input has the shape", id="input of any size"),
        pytest.param(summed, (1, 1, 8, 8), "FLOAT", r"it returns float32 of shape \[\]|tuple index", id="a number"),
        pytest.param(
            flat, (1, 1, 8, 8), "FLOAT", "returns 64 logits per image.* has 4 classes", id="logits of other classes"
        ),
    ],
)
def test_a_malicious_onnx_file(
    run: Run,
    picture: Path,
    monkeypatch: pytest.MonkeyPatch,
    nodes: Callable[[Any], list[Any]],
    shape: tuple[Any, ...],
    output: str,
    message: str,
) -> None:
    monkeypatch.setattr(runtimes, "LOAD_S", 60.0 if nodes is not for_ever else 2.0)
    path = Path("evil.onnx")
    path.write_bytes(made(nodes, shape, output, [] if nodes is summed else ["n", "k"]))
    refused(run("predict", beside(path), picture), r"evil\.onnx", message)


@needs_onnx
@pytest.mark.parametrize("within", ["initializer", "constant", "loop"])
def test_weights_in_other_files_are_not_read(run: Run, picture: Path, within: str) -> None:
    """Neither from the working directory nor from where the file lies."""
    import onnx

    Path("secret.bin").write_bytes(np.ones(64, "float32").tobytes())

    def nodes(helper: Any) -> list[Any]:
        tensor = onnx.TensorProto(name="weight", data_type=onnx.TensorProto.FLOAT, dims=[1, 64])
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="secret.bin")
        constant = helper.make_node("Constant", [], ["weight"], value=tensor)
        flat = helper.make_node("Flatten", ["images"], ["flat"])
        if within != "loop":
            return [constant, flat, helper.make_node("Add", ["flat", "weight"], ["logits"])]
        branch = helper.make_graph(
            [constant], "b", [], [helper.make_tensor_value_info("weight", onnx.TensorProto.FLOAT, [1, 64])]
        )
        true = helper.make_tensor("true", onnx.TensorProto.BOOL, [], [True])
        return [
            helper.make_node("Constant", [], ["yes"], value=true),
            helper.make_node("If", ["yes"], ["logits"], then_branch=branch, else_branch=branch),
        ]

    model = onnx.load_model_from_string(made(nodes))
    if within == "initializer":
        model.graph.initializer.append(model.graph.node[0].attribute[0].t)
        del model.graph.node[0]
    Path("evil.onnx").write_bytes(model.SerializeToString())
    refused(run("predict", beside(Path("evil.onnx"), 64), picture), r"weights in other files \(external data\)")


WORKER = """
import json, os, signal, sys, time
def say(**answer):
    sys.stdout.write(json.dumps(answer) + "\\n")
    sys.stdout.flush()
def killed(name):
    os.kill(os.getpid(), getattr(signal, name))
    time.sleep(60)
def ready():
    say(ready=True)
    say(shape=[1, 8, 8], dtype="uint8", dynamic=True, classes=4)
    sys.stdin.buffer.read(8 + 64)
"""
BEHAVIOUR = {
    "killed('SIGSEGV')": "loaded.* ends the process that runs it, by SIGSEGV",
    "say(ready=True); killed('SIGABRT')": "loaded.* by SIGABRT",
    "ready(); killed('SIGBUS')": "run.* by SIGBUS",
    "ready(); sys.exit(0)": "with exit code 0",
    "ready(); time.sleep(60)": "it takes too long",
    "print('no answer')": "the reply of its process is invalid",
    "print('[' * 60000)": "the reply of its process is invalid",
    "print('[]')": "the reply of its process is invalid",
    "sys.stdout.write('x' * 10**6)": "the reply of its process is invalid",
    "say(ready=True); say(shape=[1, 8], dtype='uint8', dynamic=True, classes=4)": "its description .* is invalid",
    "say(ready=True); say(shape=[1, 8, '8'], dtype='uint8', dynamic=True, classes=4)": "its description .* is invalid",
    "say(ready=True); say(shape=[1, 8, 8], dtype='string', dynamic=True, classes=4)": "its description .* is invalid",
    "say(ready=True); say(shape=[1, 8, 8], dtype='uint8', dynamic=True, classes=-1)": "its description .* is invalid",
    "ready(); say(shape=[1, 5])": r"returns logits of shape \[1, 5\]",
    "ready(); say(shape=[10**12, 4])": "returns logits of shape",
    "ready(); say(shape=[1, 4]); sys.exit(3)": "with exit code 3",
    "say(error='\\x1b[2J gone')": r"\\x1b\[2J gone",
}


@needs_onnx
@pytest.mark.parametrize("behaviour", BEHAVIOUR)
def test_any_failure_of_the_process_that_runs_a_file_is_reported(
    run: Run, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, behaviour: str
) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER + behaviour + "\n")
    monkeypatch.setattr(runtimes, "command", lambda: [sys.executable, "-P", str(script)])
    monkeypatch.setattr(runtimes, "LOAD_S", 30.0 if "too long" not in BEHAVIOUR[behaviour] else 2.0)
    Path("a.onnx").write_bytes(b"whatever")
    result = run("predict", beside(Path("a.onnx"), dtype="uint8"), picture)
    refused(result, r"a\.onnx cannot be ", BEHAVIOUR[behaviour])
    assert "\x1b" not in result.err


@needs_executorch
@settings(max_examples=3)
@given(share=st.floats(0, 1, exclude_max=True), change=st.binary(min_size=1, max_size=8))
def test_any_changed_executorch_file_is_refused_or_answers(
    run: Run, exported_digits: Path, picture: Path, share: float, change: bytes
) -> None:
    device = exported_digits / "device"
    whole, record = (device / "student.pte").read_bytes(), json.loads((device / "export.json").read_text())
    at = int(share * len(whole))
    path = Path("student.pte")
    path.write_bytes(whole[:at] + change + whole[at + len(change) :])
    record["file"] |= {"sha256": sha256(path), "bytes": path.stat().st_size}
    Path("export.json").write_text(json.dumps(record))
    result = run("predict", path, picture)
    if result.code:
        refused(result, r"student\.pte|finite")
    else:
        assert "nan" not in result.out


@needs_onnx
def test_a_module_in_the_working_directory_is_not_imported(run: Run, picture: Path) -> None:
    for name in ("torch", "numpy", "onnx", "onnxruntime", "types", "json"):
        Path(f"{name}.py").write_text(f"open({str(Path.cwd() / 'ran')!r}, 'w').close()\n")
    Path("flat.onnx").write_bytes(made(flat))
    assert run("predict", beside(Path("flat.onnx"), 64), picture).code == 0
    assert not Path("ran").exists()


@needs_onnx
def test_one_process_runs_all_images_and_ends_with_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("flat.onnx").write_bytes(made(flat, ("n", 1, 8, 8)))
    started: list[int] = []
    popen = runtimes.subprocess.Popen

    def noted(*arguments: Any, **settings: Any) -> Any:
        process = popen(*arguments, **settings)
        started.append(process.pid)
        return process

    monkeypatch.setattr(runtimes.subprocess, "Popen", noted)
    file = open_file(Path("flat.onnx"))
    images = torch.rand(300, 1, 8, 8)
    assert torch.equal(runtimes.run_over(file, images.split(100)), images.flatten(1))
    with pytest.raises(InputError, match="takes"):
        file.run(images[:, :, :4])
    assert len(started) == 1
    del file
    assert not Path(f"/proc/{started[0]}").exists()
