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
from factor_transfer.files import load_into, read_weights
from factor_transfer.pipeline.weights.foreign import adapt, read_foreign

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
    assert report == ([f"named as in {source}: {count} of {count} tensors match"] if source else [])


@pytest.mark.parametrize("batch_norm", [False, True])
def test_the_authors_paraphraser_computes_the_same_as_ours(batch_norm: bool) -> None:
    theirs, ours = AuthorsParaphraser(6, 3, batch_norm), Paraphraser(6, batch_norm=batch_norm)
    state, report = adapt(theirs.state_dict(), ours)
    load_into(ours, state, PATH)
    feature = torch.randn(4, 6, 5, 5)
    factor, rebuilt = theirs(feature)
    assert torch.allclose(ours.encode(feature), factor, atol=1e-6)
    assert torch.allclose(ours(feature), rebuilt, atol=1e-6)
    assert report[0].startswith("named as in the authors' paraphraser")


@pytest.mark.parametrize("container", ["model", "state_dict", "net", None])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_in_a_file_of_other_things(container: str | None, prefix: str, tmp_path: Path) -> None:
    state = {prefix + key: value for key, value in resnet().state_dict().items()}
    beside = {"epoch": 3, "best_acc": np.float64(72.3), "meta": {"name": "x"}, "optimizer": {"state": {0: [1, 2]}}}
    torch.save({container: state, **beside} if container else state, tmp_path / "file.pth")
    found = read_foreign(tmp_path / "file.pth")
    assert found.keys() == resnet().state_dict().keys()


def test_what_old_files_do_not_have_is_zero_and_said() -> None:
    state = {key: value for key, value in resnet().state_dict().items() if not key.endswith("num_batches_tracked")}
    adapted, report = adapt(state, resnet())
    load_into(resnet(), adapted, PATH)
    assert report == ["num_batches_tracked, which the file does not have, is 0 in 9 layers"]


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
    with pytest.raises(InputError, match="hold more than tensors"):
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
    assert f"teacher  named as in mmpretrain: {len(own)} of {len(own)} tensors match" in result.out
    assert "paraphraser  named as in the authors' paraphraser: 12 of 12 tensors match" in result.out
    taken = read_weights(Path("runs/tiny/teacher/weights.safetensors"))
    assert all(torch.equal(taken[key], own[key]) for key in own)
    scores = run("test", tiny, "teacher.pth", given_teacher)
    assert scores.code == 0, scores.err
    del own["fc.bias"]
    torch.save(own, "broken.pth")
    refused(run("run", tiny, given_teacher.replace("teacher.pth", "broken.pth")), "missing: fc.bias")
