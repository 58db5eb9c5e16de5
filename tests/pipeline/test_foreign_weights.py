"""Weights from elsewhere: renamed, matched, reported; never loosely loaded."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from conftest import Run, refused
from factor_transfer import Paraphraser, build_model
from factor_transfer.errors import InputError
from factor_transfer.pipeline.weights.foreign import adapt, read_foreign
from factor_transfer.state_dicts import load_into, read_weights

PATH = Path("elsewhere.pth")


def resnet() -> nn.Module:
    torch.manual_seed(0)
    return build_model("resnet8", 3, width=4)


def authors(key: str) -> str:
    return key.replace(".downsample.", ".shortcut.").replace("fc.", "linear.")


def mmpretrain(key: str) -> str:
    return f"head.{key}" if key.startswith("fc.") else f"backbone.{key}"


class AuthorsParaphraser(nn.Module):
    """Written from the description of the authors' code: conv0 … deconv2, in attributes of those names."""

    def __init__(self, m: int, z: int, batch_norm: bool) -> None:
        super().__init__()
        for side, layer, sizes in (
            ("", nn.Conv2d, [(m, m), (m, z), (z, z)]),
            ("de", nn.ConvTranspose2d, [(z, z), (z, m), (m, m)]),
        ):
            for index, (before, after) in enumerate(sizes):
                setattr(self, f"{side}conv{index}", layer(before, after, 3, 1, 1))
                if batch_norm:
                    setattr(self, f"bn{index}{'_de' if side else ''}", nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        outputs = []
        for side in ("", "de"):
            for index in range(3):
                x = getattr(self, f"{side}conv{index}")(x)
                norm = getattr(self, f"bn{index}{'_de' if side else ''}", nn.Identity())
                x = F.leaky_relu(norm(x), 0.1)
            outputs.append(x)
        return outputs[0], outputs[1]


@pytest.mark.parametrize(
    ("rename", "source"), [(authors, "the authors' code"), (mmpretrain, "mmpretrain"), (str, None)]
)
def test_a_network_named_as_elsewhere_computes_the_same(rename: Any, source: str | None) -> None:
    theirs = resnet().eval()
    count = len(theirs.state_dict())
    state, report = adapt({rename(key): value for key, value in theirs.state_dict().items()}, resnet())
    ours = build_model("resnet8", 3, width=4).eval()
    load_into(ours, state, PATH)
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(ours(images), theirs(images))
    assert report == ([f"the names are those of {source}: {count} of {count} tensors match"] if source else [])


@pytest.mark.parametrize("batch_norm", [False, True])
def test_the_authors_paraphraser_computes_the_same_as_ours(batch_norm: bool) -> None:
    theirs, ours = AuthorsParaphraser(6, 3, batch_norm), Paraphraser(6, batch_norm=batch_norm)
    state, report = adapt(theirs.state_dict(), ours)
    load_into(ours, state, PATH)
    feature = torch.randn(4, 6, 5, 5)
    factor, rebuilt = theirs(feature)
    assert torch.allclose(ours.encode(feature), factor, atol=1e-6)
    assert torch.allclose(ours(feature), rebuilt, atol=1e-6)
    assert report[0].startswith("the names are those of the authors' paraphraser")


@pytest.mark.parametrize("container", ["model", "state_dict", "net", None])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_in_a_file_of_other_things(container: str | None, prefix: str, tmp_path: Path) -> None:
    state = {prefix + key: value for key, value in resnet().state_dict().items()}
    beside = {"epoch": 3, "best_acc": np.float64(72.3), "meta": {"name": "x"}, "optimizer": {"state": {0: [1, 2]}}}
    torch.save({container: state, **beside} if container else state, tmp_path / "file.pth")
    found = read_foreign(tmp_path / "file.pth")
    assert found.keys() == resnet().state_dict().keys()


def test_counters_missing_in_old_files_are_zero_with_a_note() -> None:
    state = {key: value for key, value in resnet().state_dict().items() if not key.endswith("num_batches_tracked")}
    adapted, report = adapt(state, resnet())
    load_into(resnet(), adapted, PATH)
    assert report == ["num_batches_tracked is missing in the file and set to 0 in 9 layers"]


@given(st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=12))
def test_one_layer_too_many_is_an_error_that_names_it(extra: str) -> None:
    model = resnet()
    state, _ = adapt({**model.state_dict(), f"extra.{extra}": torch.zeros(1)}, model)
    with pytest.raises(InputError, match=f"not in the model: extra.{extra}"):
        load_into(model, state, PATH)


def test_one_layer_too_few_is_an_error_that_names_it() -> None:
    model = resnet()
    state = {mmpretrain(key): value for key, value in model.state_dict().items() if key != "layer2.0.conv1.weight"}
    with pytest.raises(InputError, match=r"missing: layer2\.0\.conv1\.weight"):
        load_into(model, adapt(state, model)[0], PATH)


class Malicious:
    def __reduce__(self) -> Any:
        return os.system, ("touch ran",)


def test_a_file_that_would_run_code_does_not(tmp_path: Path) -> None:
    torch.save({"model": resnet().state_dict(), "best_acc": Malicious()}, tmp_path / "file.pth")
    with pytest.raises(InputError, match="contain more than tensors"):
        read_foreign(tmp_path / "file.pth")
    assert not Path("ran").exists()


def test_a_file_of_no_weights_is_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "accuracy": 72.0}, tmp_path / "file.pth")
    with pytest.raises(InputError, match=r"must be a state dict.*'model'"):
        read_foreign(tmp_path / "file.pth")


def test_a_teacher_and_a_paraphraser_from_elsewhere_in_a_recipe(tiny: Path, run: Run, finished: Path) -> None:
    own = read_weights(finished / "teacher" / "weights.safetensors")
    torch.save({"state_dict": {mmpretrain(key): value for key, value in own.items()}, "meta": {}}, "teacher.pth")
    paraphraser = AuthorsParaphraser(32, 16, batch_norm=False)
    torch.save({"state_dict": paraphraser.state_dict(), "epoch": 5}, "paraphraser.pth")
    given_teacher = "teacher={model='resnet8', args={width=8}, weights='teacher.pth'}"
    result = run("run", tiny, given_teacher, "paraphraser={weights='paraphraser.pth'}")
    assert result.code == 0, result.err
    assert f"teacher  the names are those of mmpretrain: {len(own)} of {len(own)} tensors match" in result.out
    assert "paraphraser  the names are those of the authors' paraphraser: 12 of 12 tensors match" in result.out
    taken = read_weights(Path("runs/tiny/teacher/weights.safetensors"))
    assert all(torch.equal(taken[key], own[key]) for key in own)
    scores = run("test", tiny, "teacher.pth", given_teacher)
    assert scores.code == 0, scores.err
    del own["fc.bias"]
    torch.save(own, "broken.pth")
    refused(run("run", tiny, given_teacher.replace("teacher.pth", "broken.pth")), "missing: fc.bias")


def carried(kind: str) -> dict[str, Any]:
    """A file as people carry it, of a ResNet whose average over the training is something else."""
    state = resnet().state_dict()
    average = {key: value + 1 if value.is_floating_point() else value for key, value in state.items()}
    return {
        "tutorial": {"model_state_dict": state, "optimizer_state_dict": {}, "epoch": 1},
        "lightning": {"state_dict": {f"model.{key}": value for key, value in state.items()}, "epoch": 3},
        "wrapped twice": {f"net.model.{key}": value for key, value in state.items()},
        "averaged": {"n_averaged": torch.tensor(3), **{f"module.{key}": value for key, value in state.items()}},
        "average beside": {"model": state, "model_ema": {f"module.{key}": value for key, value in average.items()}},
        "average alone": {"state_dict_ema": state, "arch": "resnet8"},
    }[kind]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("tutorial", []),
        ("lightning", ["the prefix 'model.' of all names is removed"]),
        ("wrapped twice", ["the prefix 'net.model.' of all names is removed"]),
        ("averaged", ["the average of 3 models"]),
        ("average beside", ["model is used; weights_key='model_ema' selects the average in the same file"]),
        ("average alone", []),
    ],
)
def test_files_from_common_training_scripts(kind: str, said: list[str], tmp_path: Path) -> None:
    torch.save(carried(kind), tmp_path / "file.pth")
    notes: list[str] = []
    state, report = adapt(read_foreign(tmp_path / "file.pth", notes=notes), resnet())
    own = resnet()
    load_into(own, state, PATH)
    assert all(torch.equal(value, resnet().state_dict()[key]) for key, value in own.state_dict().items())
    assert notes + report == said


def test_a_key_chooses_among_several_weights(tiny: Path, run: Run, finished: Path) -> None:
    own = read_weights(finished / "teacher" / "weights.safetensors")
    other = {key: value * 2 if key.endswith("conv1.weight") else value for key, value in own.items()}
    torch.save({"model": own, "model_ema": {f"module.{key}": value for key, value in other.items()}}, "both.pth")
    given = "teacher={model='resnet8', args={width=8}, weights='both.pth'KEY}"
    for key, expected in (("", own), (", weights_key='model_ema'", other)):
        done = run("teacher", tiny, given.replace("KEY", key))
        assert done.code == 0, done.err
        found = read_weights(Path("runs/tiny/teacher/weights.safetensors"))
        assert all(torch.equal(value, found[name]) for name, value in expected.items())
    refused(run("teacher", tiny, given.replace("KEY", ", weights_key='ema'")), "it has them under 'model', 'model_ema'")
    assert "up to date" in run("teacher", tiny, given.replace("KEY", ", weights_key='model_ema'")).out


def test_a_classifier_for_other_classes_starts_anew_where_the_network_is_trained_on(
    tiny: Path, run: Run, finished: Path
) -> None:
    own = read_weights(finished / "teacher" / "weights.safetensors")
    head = {"fc.weight": torch.randn(1000, own["fc.weight"].shape[1]), "fc.bias": torch.randn(1000)}
    torch.save({**own, **head}, "thousand.pth")
    on = run("teacher", tiny, "teacher.weights=thousand.pth", "teacher.epochs=1", "teacher.learning_rate=1e-9")
    assert on.code == 0, on.err
    assert "its classifier, fc, is for 1000 classes; a new one for 4 classes" in on.out
    found = read_weights(Path("runs/tiny/teacher/weights.safetensors"))
    assert torch.allclose(found["layer3.0.conv2.weight"], own["layer3.0.conv2.weight"], atol=1e-5)
    taken = run("teacher", tiny, "teacher={model='resnet8', args={width=8}, weights='thousand.pth'}")
    refused(taken, "the classifier, fc, is for 1000 classes, but the data has 4. Set epochs")
    # Another layer of another shape is no classifier.
    torch.save({**own, **head, "conv1.weight": torch.randn(8, 3, 5, 5)}, "other.pth")
    refused(run("teacher", tiny, "teacher.weights=other.pth"), r"conv1\.weight: shape \(8, 3, 5, 5\)")


@pytest.mark.parametrize("command", ["teacher", "pretrain", "train", "run", "compare"])
def test_a_refused_file_leaves_the_work_dir_as_it_was(command: str, tiny: Path, run: Run, work: Path) -> None:
    def content() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in sorted(work.rglob("*")) if path.is_file()}

    before = content()
    torch.save({"fc.weight": torch.zeros(2, 2)}, "bad.pth")
    for side in ("teacher", "student"):
        refused(run(command, tiny, f"{side}.weights=bad.pth", "--work-dir", work), "bad.pth do not fit")
        assert content() == before
