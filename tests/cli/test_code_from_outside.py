"""External code runs where a recipe says ``module:callable``, and says so; nowhere else, whatever a file holds."""

import builtins
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import Run, refused
from factor_transfer.errors import InputError, printable
from factor_transfer.models import announce, build_model
from factor_transfer.models import optional as library

OWN = """
from pathlib import Path
from torch import nn

Path("ran").touch()

def small(num_classes, in_channels, **args):
    return nn.Sequential(nn.Conv2d(in_channels, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(4, num_classes))
"""


class Runs:
    def __reduce__(self) -> Any:
        return os.system, ("touch ran",)


@pytest.fixture
def own(tmp_path: Path) -> str:
    """Somebody's module within a package; of a name of its own, since Python imports a name once."""
    package = tmp_path / f"own_{tmp_path.name}"
    package.mkdir()
    (package / "__init__.py").write_text("from pathlib import Path\nPath('ran').touch()\n")
    (package / "nets.py").write_text(OWN)
    return f"{package.name}.nets:small"


def test_a_command_names_external_code_before_it_runs(own: str, tiny: Path, run: Run, tmp_path: Path) -> None:
    place = tmp_path / own.partition(".")[0] / "nets.py"
    assert announce([own, "resnet8", own, "timm:resnet18"]) == [f"runs external code: {own} ({place})"]
    assert not Path("ran").exists()  # not even the package that it is in
    arguments = ["teacher", tiny, f"teacher={{model='{own}', epochs=1, batch_size=24, tap='0'}}"]
    result = run(*arguments)
    assert result.code == 0, result.err
    assert result.out.splitlines()[0] == f"runs external code: {own} ({place})"
    assert result.out.count("external code") == 1
    assert Path("ran").exists()
    for command in (["test", tiny, "runs/tiny/teacher", *arguments[2:]], ["show", "taps", own]):
        assert run(*command).out.splitlines()[0] == result.out.splitlines()[0]
    assert announce(["nowhere.at_all:x", ":", ".:x", "a..b:c"])[0] == (
        "runs external code: nowhere.at_all:x (not found)"
    )


def test_nothing_is_announced_without_external_code(tiny: Path, run: Run) -> None:
    assert "external code" not in run("teacher", tiny, "teacher.epochs=1").out


@pytest.mark.parametrize("model", [":", "a:", ".:x", "\u00e9 :x", "a.b:c:d"])
def test_an_invalid_name_of_code_is_refused(model: str, tiny: Path, run: Run) -> None:
    refused(
        run("teacher", tiny, f"teacher={{model='{model}', epochs=1, batch_size=24, tap='0'}}"),
        "is not a valid model name; a name with a colon is",
    )


def test_code_named_in_a_stages_record_is_not_run(own: str, work: Path, tiny: Path, run: Run) -> None:
    record = json.loads((work / "teacher" / "stage.json").read_text())
    record["model"] = {"name": own, "num_classes": 4, "in_channels": 3}
    (work / "teacher" / "stage.json").write_text(json.dumps(record))
    refused(run("test", tiny, work / "teacher"), "external code .* that their recipe names")
    assert not Path("ran").exists()


def test_naming_code_for_the_teacher_does_not_allow_it_for_a_student(
    own: str, work: Path, tiny: Path, run: Run
) -> None:
    """Nor with other arguments."""
    given = f"teacher={{model='{own}', epochs=1, batch_size=24, tap='0', args={{depth=1}}}}"
    for stage in ("teacher", "student-factor-seed0"):
        record = json.loads((work / stage / "stage.json").read_text())
        record["model"] = {"name": own, "num_classes": 4, "in_channels": 3}
        if stage != "teacher":
            record["model"]["depth"] = 1
        (work / stage / "stage.json").write_text(json.dumps(record))
        refused(run("test", tiny, work / stage, given), "external code builds")
    assert not Path("ran").exists()
    record["model"]["depth"] = 1
    record["stage"] = "teacher"
    (work / stage / "stage.json").write_text(json.dumps(record))
    refused(run("test", tiny, work / stage, given), "do not fit")
    assert Path("ran").exists()


HOSTILE = "\x1b[2K\x1b[1A\r[bold]\u202e"


def test_names_and_arguments_from_files_are_printed_escaped(work: Path, tiny: Path, run: Run) -> None:
    record = json.loads((work / "teacher" / "stage.json").read_text())
    for model in (
        {"name": f"torch.hub:{HOSTILE}"},
        {"name": f"{HOSTILE}:load"},
        {"name": HOSTILE},
        {"name": "resnet8", HOSTILE: HOSTILE},
        {"name": "resnet8", "width": HOSTILE},
        {"name": "timm:resnet18", HOSTILE: HOSTILE},
    ):
        whole = {"num_classes": 4, "in_channels": 3, **model}
        (work / "teacher" / "stage.json").write_text(json.dumps(record | {"model": whole}))
        result = run("test", tiny, work / "teacher")
        refused(result)
        assert not {"\x1b", "\r", "\u202e"} & set(result.err)
        (line,) = announce([whole]) or [""]
        assert line.isprintable()
    classes = [f"{number}{HOSTILE}" for number in range(4)]
    (work / "teacher" / "stage.json").write_text(json.dumps(record | {"classes": classes}))
    refused(run("test", tiny, work / "teacher"), r"\\x1b\[2K")


def test_words_of_all_languages_are_printed_unescaped() -> None:
    for text in ("plain", "naïve 猫 🐈", "می\u200cخواهم", "a\nb"):
        assert printable(text, newlines=True) == text
    assert printable("a\nb\x1b\ud800\u2028") == r"a\nb\x1b\ud800\u2028"


@pytest.mark.parametrize("key", ["name", "num_classes", "in_channels", "pretrained"])
def test_settings_cannot_replace_the_name_of_the_network(own: str, tiny: Path, run: Run, key: str) -> None:
    override = f"teacher={{model='timm:resnet18', epochs=1, args={{{key}='{own}'}}}}"
    refused(run("teacher", tiny, override), f"teacher.args: '{key}' is not a setting")
    assert not Path("ran").exists()


def test_a_path_in_a_recipe_is_a_path_to_data(own: str, tiny: Path, run: Run, tmp_path: Path) -> None:
    outside = tmp_path.parent / f"{tmp_path.name}.py"
    outside.write_text(OWN)
    up = f"../{outside.name}"
    for override in (f"teacher.weights='{up}'", f"paraphraser.weights='{up}'"):
        refused(run("run", tiny, override), rf"weights {up} are damaged, or contain more than tensors")
    for override in (f"data={{name='cifar10', root='{up}'}}", f"data={{name='folder', root='{up}'}}"):
        refused(run("run", tiny, override), outside.name)
    for name in ("..", "../x", "/x", "a/../../x", "a\\nb"):
        refused(run("run", tiny, f'name="{name}"'), "name=.*: String should match")
    refused(run("run", tiny, f"teacher.model={outside}"), "unknown teacher.model")
    assert not Path("ran").exists()
    assert not list(tmp_path.parent.glob("x*"))


def test_a_pickle_among_a_zoos_weights_does_not_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, torchvision_operators: None
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    url: str = library.library("torchvision").models.get_model_weights("squeezenet1_1").DEFAULT.url
    fetched = tmp_path / "hub" / "checkpoints" / url.rpartition("/")[2]
    fetched.parent.mkdir(parents=True)
    torch.save({"features.0.weight": Runs()}, fetched)
    with pytest.raises(InputError, match="torchvision cannot build 'squeezenet1_1'"):
        build_model("torchvision:squeezenet1_1", 1000, pretrained=True)
    assert not Path("ran").exists()
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_a_program_beside_a_network_on_the_hub_does_not_run(
    monkeypatch: pytest.MonkeyPatch, torchvision_operators: None
) -> None:
    folder = Path("hub")
    folder.mkdir()
    config = {"model_type": "theirs", "auto_map": {"AutoConfig": "theirs.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "theirs.py").write_text(OWN)
    monkeypatch.setattr(builtins, "input", lambda *_: "y")  # whoever would be asked
    with pytest.raises(InputError, match="transformers cannot build"):
        build_model("transformers:hub", 4)
    assert not Path("ran").exists()
