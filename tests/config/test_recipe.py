import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factor_transfer.config.read import read_recipe, shipped
from factor_transfer.data import open_data
from factor_transfer.errors import InputError
from factor_transfer.models import build_model
from factor_transfer.training.optim import Optimization

HEADER = re.compile(r"# (factor-transfer run recipes/\S+\.toml.*)\n# Cost: (.+)\n# Result: (.+)\n")

FACTOR = {"beta": 500.0, "p": 1.0, "batch_norm": False, "attention": False, "tap_weights": None, "paraphrase": True}


@pytest.mark.parametrize("name", shipped())
def test_shipped_recipes_are_valid_and_begin_with_command_cost_and_result(name: str) -> None:
    recipe = read_recipe(name)
    assert recipe.name == shipped()[name].stem
    header = HEADER.match(shipped()[name].read_text())
    assert header
    assert f"recipes/{name}.toml" in header[1]
    assert "TODO" not in header[0]


def test_settings_reach_the_code_that_uses_them(tiny: Path) -> None:
    recipe = read_recipe(tiny, ["student.weight_decay=0", "student.tap=layer2", "name=other"])
    assert recipe.name == "other"
    assert recipe.student.optimization == Optimization(schedule="step", milestones=[2], weight_decay=0.0)
    assert recipe.student.tap == "layer2"
    assert recipe.terms["factor"].model_dump() == FACTOR | {"beta": 50.0}
    assert len(open_data(**recipe.data.arguments).train) == 72
    build_model(recipe.student.model, 4, **recipe.student.args.model_dump())


def test_defaults_are_the_functions_own(tmp_path: Path) -> None:
    path = tmp_path / "short.toml"
    path.write_text(
        '[data]\nname = "digits"\n[teacher]\nmodel = "resnet20"\nepochs = 1\n[paraphraser]\nepochs = 1\n'
        '[student]\nmodel = "resnet8"\nepochs = 1\n[transfer.factor]\n'
    )
    recipe = read_recipe(path)
    assert recipe.terms["factor"].model_dump() == FACTOR
    assert recipe.paraphraser is not None
    assert recipe.paraphraser.model_dump()["rate"] == 0.5
    assert recipe.teacher.optimization == Optimization()
    untouched = {"student": None, "mixup": None, "cutmix": None}
    assert recipe.augment.model_dump() == {"crop_padding": 0, "flip": False, **untouched}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data.root=/a b/c", "/a b/c"),
        ('data.root="quoted"', "quoted"),
        ("data.root=data", "data"),
        ("data.root=~/x", "~/x"),
    ],
)
def test_strings_need_no_quotes_in_overrides(tiny: Path, override: str, expected: str) -> None:
    recipe = read_recipe(tiny, ["data={name='cifar10'}", override])
    assert recipe.data.model_dump()["root"] == expected


def test_a_shipped_recipe_is_found_by_its_name() -> None:
    by_name, by_path = (
        read_recipe(recipe) for recipe in ("digits/resnet20-resnet8", shipped()["digits/resnet20-resnet8"])
    )
    assert by_name.model_dump() == by_path.model_dump()


KEYS = st.sampled_from(
    ["data", "teacher", "paraphraser", "student", "transfer", "name", "model", "epochs", "args", "tap", "beta", "x"]
)
VALUES = st.one_of(
    st.integers(-5, 5),
    st.booleans(),
    st.sampled_from(["digits", "resnet8", "", "x"]),
    st.floats(allow_nan=False),
    st.lists(st.integers(0, 3), max_size=2),
)


def to_toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(map(to_toml, value)) + "]"
    return f'"{value}"' if isinstance(value, str) else repr(value)


@settings(max_examples=60)
@given(keys=st.lists(KEYS, min_size=1, max_size=3), value=VALUES)
def test_any_override_gives_a_recipe_or_one_message(tiny: Path, keys: list[str], value: object) -> None:
    message = ""
    try:
        read_recipe(tiny, [f"{'.'.join(keys)}={to_toml(value)}"])
    except InputError as error:
        message = str(error)
    assert len(message.splitlines()) < 12


@settings(max_examples=100)
@given(text=st.text(max_size=60) | st.binary(max_size=60))
def test_any_text_gives_a_recipe_or_one_message(tmp_path: Path, text: str | bytes) -> None:
    path = tmp_path / "any.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    with pytest.raises(InputError, match=r"any\.toml"):
        read_recipe(path)


@pytest.mark.parametrize(
    ("changes", "warnings"),
    [
        ([], []),
        (["student.milestones=[1,2]"], []),
        (["student.schedule=cosine"], ['student.milestones has no effect with schedule = "cosine"']),
        (["student.milestones=[2,3,9]"], ["student.milestones has 3, 9, which student.epochs = 3 does not reach"]),
        (["teacher.warmup_epochs=3"], ["teacher.warmup_epochs = 3 is the whole training of 3 epochs"]),
        (["transfer.method=dkd"], ["weight of dkd rises over 20 epochs .* reaches at most 15%"]),
        (["transfer.method=dkd", "transfer.dkd.warmup_epochs=3"], []),
    ],
)
def test_settings_without_effect_get_a_warning(changes: list[str], warnings: list[str], tiny: Path) -> None:
    found = read_recipe(tiny, changes).warnings
    assert len(found) == len(warnings)
    assert all(re.search(pattern, text) for pattern, text in zip(warnings, found, strict=True)), found
