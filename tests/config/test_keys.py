"""The names of keys that are known without PyTorch are those of the code."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT, Run
from factor_transfer.config.keys import SCHEMA, keys_of, keys_of_type, unknown_keys
from factor_transfer.config.read import read_recipe
from factor_transfer.config.recipe import recipe_type
from factor_transfer.config.sections import Named
from factor_transfer.data import DATASETS, open_data
from factor_transfer.errors import InputError
from factor_transfer.models import MODELS
from factor_transfer.settings import options

MISSPELT = [
    "student.epoch=3",
    "studnet.epochs=3",
    "seed=3",
    "data.root=x",
    "student.args.widht=3",
    "transfer.factr.beta=3",
    "checkpoint.every.hours=3",
    "student.finetune={epochs=3, epoch=3}",
    "student.model=resnet21",
    "data.name=cifar11",
    "preset=autors",
]


def test_the_schema_is_that_of_the_code() -> None:
    tool = ROOT / "tools" / "make_schema.py"
    code = f"import runpy, sys; sys.stdout.write(runpy.run_path({str(tool)!r})['text']())"
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert made == SCHEMA.read_text(), "run `python tools/make_schema.py`"


@pytest.mark.parametrize(
    ("data", "model"), [("digits", "resnet8"), ("folder", "vgg8"), ("package:function", "timm:resnet18")]
)
def test_the_keys_are_those_of_the_recipes_type(data: str, model: str) -> None:
    document = {"data": {"name": data}, "teacher": {"model": model}, "student": {"model": model}}
    assert keys_of(document) == keys_of_type(recipe_type(document))


def test_the_keys_of_each_data_set_and_model() -> None:
    for name, opener in DATASETS.items():
        found = keys_of({"data": {"name": name}})["data"]
        assert list(found) == list(options("data", opener, open_data, base=Named).model_fields)
    for name, builder in MODELS.items():
        found = keys_of({"student": {"model": name}})["student"]["args"]
        assert list(found) == list(options("args", builder).model_fields)


def test_a_misspelt_name_is_reported_as_by_the_code(tiny: Path) -> None:
    expected = []
    for override in MISSPELT:
        with pytest.raises(InputError) as fault:
            read_recipe(tiny, [override])
        expected.append(str(fault.value))
    code = f"""
import json, sys
from factor_transfer.config.read import read_recipe
from factor_transfer.errors import InputError
found = []
for override in {MISSPELT!r}:
    try:
        read_recipe({str(tiny)!r}, [override])
    except InputError as error:
        found.append(str(error))
assert "torch" not in sys.modules
print(json.dumps(found))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == expected


@pytest.mark.parametrize(
    "document",
    [
        {"student": 3, "data": [1], "teacher": {"model": 3, "args": 4}},
        {"data": {"name": ["digits"]}, "student": {"model": {}}},
        {"augment": {"flip": {"x": 1}}, "transfer": {"factor": []}},
        {"student": {"model": "timm:x", "args": {"anything": 1}}},
    ],
)
def test_only_names_are_checked(document: dict[str, Any]) -> None:
    assert list(unknown_keys(document, keys_of(document))) == []


def test_the_schema_is_printed_as_it_is(run: Run) -> None:
    assert run("show", "schema").out == SCHEMA.read_text()
