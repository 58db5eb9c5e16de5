"""Any recipe is valid, or an error that names the key and the line or the override that says it."""

import re
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import TINY, Run, refused
from factor_transfer.config.keys import keys_of, unknown_keys
from factor_transfer.config.presets import PRESETS
from factor_transfer.config.read import read_recipe
from factor_transfer.config.recipe import Recipe
from factor_transfer.config.toml_lines import Lines
from factor_transfer.errors import InputError
from factor_transfer.methods import TERMS

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")
FEW = settings(max_examples=30)
LINES = TINY.split("\n")
# Of a name or a model, other keys depend.
SAYING = [number for number, line in enumerate(LINES, 1) if "=" in line and not line.startswith(("name", "model"))]


def fault(text: str, *overrides: str) -> str:
    """What reading a recipe says; nothing, if it is valid."""
    Path("any.toml").write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        assert isinstance(read_recipe("any.toml", overrides), Recipe)
    except InputError as error:
        return str(error)
    return ""


def names_key_and_place(message: str, overrides: tuple[str, ...] = ()) -> bool:
    """Whether each fault has its key, and the line or the override that says it."""
    if re.match(r"recipe any\.toml is not valid TOML: .*line \d+", message):
        return True
    head, *faults = message.split("\n")
    said = "|".join([r"line \d+", *(re.escape(repr(text)[1:-1][:40]) + ".*" for text in overrides)])
    # What is missing from the whole recipe is on no line.
    one = re.compile(rf"  (({said}): (unknown|[\w-]+|'.*').*|[a-z]+(\.model|\.name)? is missing.*|… and \d+ more)")
    return head == "recipe any.toml:" and bool(faults) and all(one.fullmatch(line) for line in faults)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("flip = true", "flip = 1", "line 9: augment.flip: .*boolean"),
        ("flip = true", "flop = 1", "line 9: unknown key 'augment.flop'; did you mean 'flip'"),
        ("width = 4", "widht = 4", r"line 25: unknown key 'student.args.widht'; did you mean 'width'"),
        ("milestones = [2]", "milestones = [\n  2, # ]\n\n  'x',\n]", r"line 29: student.milestones.1: .*integer"),
        ("[paraphraser]", "[paraphrasr]", "line 18: unknown key 'paraphrasr'; did you mean 'paraphraser'"),
        ('name = "synthetic"', 'name = "sinthetic"', "line 3: unknown data set 'sinthetic'; did you mean 'synthetic'"),
        ("flip = true", f"flip = '{'x' * 5000}'", "line 9: augment.flip: .*got 'xxx.*…'"),
        ('"resnet8"\nargs = { width = 4 }', '"a:b"\nargs = { x = nan }', "line 25: student.args.x: a number .* finite"),
        ("args = { width = 4 }", "tap = []", "line 23: student: tap is empty"),
        ('model = "resnet8"\nargs = { width = 4 }', "", "line 23: student.model is missing"),
        ("[transfer.factor]\nbeta = 50", "[transfer]\nmethod = 'factr'", "line 32: transfer.method: unknown method"),
        ("[transfer.factor]\nbeta = 50", "transfer.method = 'x'", "line 31: unknown key 'student.transfer'"),
        ("[transfer.factor]\nbeta = 50", "[transfer]", r"line 31: transfer: \[transfer\] is empty"),
        ("beta = 50", "beta = 50\n[[student.x]]\na = 1", "line 33: unknown key 'student.x'"),
        ("beta = 50", f"beta = 50\nx = 1{'0' * 5000}", "not valid TOML: line 33 has an invalid value"),
        ("beta = 50", f"beta = 0x{'f' * 5000}", r"line 32: transfer\.factor\.beta: an integer should be less"),
        ("beta = 50", f"x = {'[' * 5000}", "not valid TOML: line 32 is nested too deeply"),
        ("beta = 50", f"{'a.' * 500}b = 1", "line 32: transfer.factor.a.*nested too deeply"),
        ("beta = 50", "x = [\n1,", "not valid TOML: .*at line 34, the end"),
        ("beta = 50", '"\\u001b[2J\\n" = 3', r"line 32: unknown key 'transfer\.factor\.'\\x1b\[2J\\n''; valid names"),
        ("train = 96", 'root = "a\\u0000b"', "line 4: data.root: a string should not contain the character 0"),
    ],
)  # fmt: skip
def test_a_fault_is_reported_with_its_line(old: str, new: str, message: str) -> None:
    for text in (TINY.replace(old, new), TINY.replace(old, new).replace("\n", "\r\n")):
        assert re.search(rf"any\.toml( is|:\n  ){message}|any\.toml is {message}", found := fault(text)), found
        assert names_key_and_place(found)
        assert len(found) < 1500


def test_a_fault_is_reported_with_its_override(tiny: Path, run: Run) -> None:
    refused(run("run", tiny, "student.epochs=ten"), r"  student\.epochs=ten: Input .*integer.*'ten'$")
    refused(run("run", tiny, "student.seed=3", "studnet.epochs=3"), r"  studnet\.epochs=3: unknown key 'studnet'")
    refused(run("run", tiny, "teacher={}"), r"  teacher=\{\}: teacher\.model is missing$")
    # The last word on it counts; and a fault of the file is none of an override's.
    refused(
        run("run", tiny, "student.epochs=2", "student={epochs='x'}"), r"\n  student=\{epochs='x'\}: student\.epochs"
    )
    tiny.write_text(TINY.replace("flip = true", "flip = 3"))
    refused(run("run", tiny, "augment.crop_padding=2"), r"toml:\n  line 9: augment\.flip")


def test_an_override_is_one_value_or_a_string() -> None:
    assert "teacher.epochs=2: Input should be a valid integer" in fault(TINY, "student.epochs=1\nteacher.epochs=2")
    assert fault(TINY, "student.epochs=1 # or two") == ""


# What no key of a recipe takes, and how much of it there may be.
WRONG: Any = st.one_of(
    st.dates().map(date.isoformat),
    st.datetimes().map(datetime.isoformat),
    st.times().map(time.isoformat),
    st.sampled_from(["nan", "-inf", "1e999", "{ x = 1 }", "[[]]", "[{}, {}]", '"""\n\n x"""', "'a\tb'"]),
    st.integers(2**63).flatmap(lambda size: st.sampled_from([str(size), hex(size), str(-size - 1)])),
    st.integers(1, 20).map(lambda depth: "[\n" * depth + "1" + "\n, # ]\n]" * depth),
)


@FEW
@given(number=st.sampled_from(SAYING), wrong=WRONG, before=st.lists(st.sampled_from(["", "# [", " \t"]), max_size=5))
def test_a_wrong_value_is_named_with_its_line(number: int, wrong: str, before: list[str]) -> None:
    lines = [*LINES]
    lines[number - 1] = f"{lines[number - 1].partition('=')[0]}= {wrong}"
    found = fault("\n".join([*before, *lines]))
    where = set(re.findall(r"line (\d+): ", found))
    assert where == {str(number + len(before))}, found
    assert names_key_and_place(found), found


NAMES = ["name", "model", "epochs", "args", "tap", "mean", "batch_size", "weights", "method", "seed", "views", *TERMS]
TABLES = ["data", "augment", "teacher", "paraphraser", "student", "transfer", "cache"]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
WORDS = st.sampled_from(["digits", "synthetic", "resnet8", "timm:x", "a:b", "factor+kd", *PRESETS])
VALUES: Any = st.recursive(
    st.one_of(st.integers(), st.floats(), st.booleans(), WORDS, TEXT, st.dates(), st.times()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
DOCUMENTS = st.dictionaries(
    st.sampled_from([*TABLES, "preset", "name", "device"]) | TEXT,
    st.dictionaries(st.sampled_from(NAMES) | TEXT, VALUES, max_size=4) | VALUES,
    max_size=5,
)


def quoted(text: str) -> str:
    return '"' + "".join(f"\\U{ord(letter):08x}" for letter in text) + '"'


def to_toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{quoted(key)} = {to_toml(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",\n".join(map(to_toml, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return (
        quoted(value)
        if isinstance(value, str)
        else value.isoformat()
        if isinstance(value, date | time)
        else repr(value)
    )


def written(document: dict[str, Any]) -> str:
    """As TOML: values, then tables under headers."""
    plain = [f"{quoted(key)} = {to_toml(value)}" for key, value in document.items() if not isinstance(value, dict)]
    for key, table in document.items():
        if isinstance(table, dict):
            plain += [f"[{quoted(key)}]", *(f"{quoted(name)} = {to_toml(value)}" for name, value in table.items())]
    return "\n".join(plain)


@FEW
@given(document=DOCUMENTS)
def test_any_document_is_valid_or_named_with_its_lines(document: dict[str, Any]) -> None:
    found = fault(written(document))
    assert not found or names_key_and_place(found), found


@FEW
@given(document=DOCUMENTS)
def test_a_name_that_is_unknown_without_pytorch_is_unknown_with_it(document: dict[str, Any]) -> None:
    document.pop("preset", None)  # an unknown one is reported first
    try:
        found = [message for _, message in unknown_keys(document, keys_of(document))]
    except InputError as error:
        found = [str(error)]
    faults = fault(written(document))
    if "unknown" in faults and "more" not in faults:  # otherwise, a value that no setting can have is reported first
        names = [message.partition(";")[0] for message in found]  # the suggestions depend on the names of models
        assert [name for name in names if name not in faults] == [], faults


@FEW
@given(document=DOCUMENTS, text=TEXT)
def test_any_text_put_into_a_recipe_is_valid_or_named_with_its_line(document: dict[str, Any], text: str) -> None:
    for more in (written(document), text):
        found = fault(f"{TINY}\n{more}")
        assert not found or names_key_and_place(found), found


@FEW
@given(
    keys=st.lists(st.sampled_from([*TABLES, *NAMES]) | TEXT, min_size=1, max_size=4),
    value=VALUES.map(to_toml) | st.text(max_size=8),
)
def test_any_override_is_valid_or_named(keys: list[str], value: str) -> None:
    override = f"{'.'.join(keys)}={value}"
    found = fault(TINY, override)
    plain = re.match(r".* is not of the form KEY=VALUE|.* is a value, not a table of settings", found)
    assert not found or plain or names_key_and_place(found, (override,)), found


def test_a_recipe_too_large_to_be_one(run: Run) -> None:
    Path("large.toml").write_text("#" * 2**18 + "\n")
    refused(run("run", "large.toml"), r"large\.toml has more than 262,144 bytes, too many for a recipe")


def test_a_value_of_very_many_lines_does_not_take_minutes() -> None:
    lines = Lines("x = [\n" + "1,\n" * 50_000 + "]\n" + "y = 1\n" * 2)
    assert lines.of(["x"]) is None
