"""The study of CIFAR-10: its plan, a short run of its pieces on made-up images, and its page."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import publish
import report
import runner
import study
from cifar_files import write_cifar10
from factor_transfer.config.presets import PRESETS
from factor_transfer.config.read import read_recipe
from factor_transfer.files import sha256
from factor_transfer.pipeline.weights import zoo
from factor_transfer.report.confidence import estimate
from plan import Piece, best, pieces

PLAN = {piece.name: piece for piece in pieces()}

# One epoch of everything, of small networks, on few images: whether it runs, not what it gives.
SHORT = (
    "teacher.model=resnet8",
    "teacher.args={width = 4}",
    "student.args={width = 4}",
    "data.limit=64",
    "data.validation=0.25",
    "cache.views=2",
    *(
        f"{stage}.{setting}"
        for stage in ("teacher", "paraphraser", "student")
        for setting in ("epochs=1", "batch_size=24")
    ),
)


def test_each_piece_needs_earlier_ones_alone() -> None:
    names = [piece.name for piece in pieces()]
    assert len(set(names)) == len(names)
    for number, piece in enumerate(pieces()):
        assert {piece.start, piece.teacher, piece.paraphraser} - {""} <= set(names[:number])
        assert all(not need or PLAN[need].is_pretraining for need in (piece.start, piece.teacher, piece.paraphraser))


@pytest.mark.parametrize("name", PLAN)
def test_a_piece_is_a_valid_recipe(name: str) -> None:
    piece = PLAN[name]
    recipe = read_recipe(piece.recipe, runner.settings(piece))
    if piece.method:
        assert (recipe.method, recipe.student.seed) == (piece.method, piece.seed)
    if piece.teacher:
        zoo_weights = f"zoo:{publish.zoo_name(piece.recipe, piece.teacher)}"
        own_weights = f"runs/cifar10/{piece.teacher.replace('/', '-')}/teacher/weights.safetensors"
        assert recipe.teacher.weights == (own_weights if piece.is_large else zoo_weights)
        assert recipe.teacher.epochs is None
    if piece.start:
        assert getattr(recipe, piece.stage).epochs


@pytest.mark.parametrize("preset", PRESETS)
def test_other_implementations_train_the_paraphraser_as_their_preset_does(preset: str, tmp_path: Path) -> None:
    path = tmp_path / "of-the-preset.toml"
    networks = '[teacher]\nmodel = "resnet20"\nepochs = 1\n[student]\nmodel = "resnet8"\n'
    path.write_text(f'preset = "{preset}"\n[data]\nname = "cifar10"\n{networks}')
    piece = PLAN[f"implementations/{preset}-seed0"]
    found = read_recipe(piece.recipe, runner.settings(piece)).paraphraser
    expected = read_recipe(path).paraphraser
    same = ("optimizer", "learning_rate", "momentum", "weight_decay", "schedule", "epochs", "reconstruction")
    assert [getattr(found, key) for key in same] == [getattr(expected, key) for key in same]


def test_settings_are_compared_on_validation_images_alone() -> None:
    assert all(not piece.test for piece in PLAN.values() if piece.group == "levers")


def test_the_best_setting_on_validation_images_gets_five_seeds_on_test_images(tmp_path: Path) -> None:
    levers = [PLAN[f"levers/{setting}-seed{seed}"] for setting in ("beta=50", "p=2", "k=1") for seed in (0, 1)]

    def record(name: str, top1: float | None) -> None:
        path = tmp_path / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"error": "diverged"} if top1 is None else {"validation": {"top1": top1}}))

    for seed, top1 in enumerate((80.0, 81.0)):
        record(f"small/factor-seed{seed}", top1)
    for piece, top1 in zip(levers[:-1], (79, 83, 81, 81.5, 90), strict=True):
        record(piece.name, top1)
    assert best(levers, tmp_path) == []  # one of them is not done
    record(levers[-1].name, None)  # it diverged, so that the mean of this setting is 45
    found = best(levers, tmp_path)
    assert [piece.name for piece in found] == [f"best/p=2-seed{seed}" for seed in range(5)]
    assert all(piece.test and piece.overrides == levers[2].overrides for piece in found)
    record("small/factor-seed0", 82.0)
    assert best(levers, tmp_path) == []  # the recipe is better than each


@pytest.fixture
def short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """The command line of a study with few pieces, whose records and zoo are in a folder of the test's."""
    chosen = [
        "small/teacher-first-cycle",
        "small/teacher",
        "small/paraphraser",
        "small/student-seed0",
        "small/factor-seed0",
        "small/at-seed0",
        "levers/beta=50-seed0",
        "levers/k=0.25-seed0",
        "levers/paraphraser=none-seed0",
    ]
    some = [replace(PLAN[name], overrides=(*SHORT, *PLAN[name].overrides)) for name in chosen]
    some = [replace(piece, overrides=tuple(one for one in piece.overrides if "epochs=16" not in one)) for piece in some]
    write_cifar10(tmp_path, python=False, count=20)
    (tmp_path / "zoo").mkdir()
    (tmp_path / "zoo" / zoo.INDEX).write_text("{}")
    monkeypatch.setattr(study, "pieces", lambda: some)
    monkeypatch.setattr(runner, "RECORDS", tmp_path / "records")
    monkeypatch.setattr(publish, "ZOO", tmp_path / "zoo")
    monkeypatch.setattr(zoo, "place", lambda: tmp_path / "zoo")

    def command(*words: str) -> None:
        study.main([*words, "--data", str(tmp_path), "--work-dir", str(tmp_path / "work")])

    return command


def test_pieces_leave_records_and_the_weights_that_later_ones_need(
    short: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short("run", "--precision", "32-true", "--debug")
    found = report.read_records(tmp_path / "records")
    assert len(found) == 9
    names = {name.rpartition("/")[2] for name in zoo.entries()}
    assert {"teacher-first-cycle", "teacher", "paraphraser", "student-alone-seed0"} <= names
    assert len(names) == 5  # and the better of the two students with a teacher
    for entry in zoo.entries().values():
        zoo.check(entry)
    factor = found["small/factor-seed0"]
    assert factor["test"].keys() >= {"top1", "top5"}
    assert {"epoch", "loss", "loss_factor", "validation_top1"} <= set(factor["curve"][0])
    assert factor["machine"].keys() == {"platform", "processor"}
    assert "test" not in found["levers/beta=50-seed0"]
    assert "relative_error" in found["levers/k=0.25-seed0"]["paraphraser"]
    # The paraphraser is the zoo's, and its factors are kept once for all.
    assert (tmp_path / "work" / "small-factor-seed0" / "cache").resolve().parent.name == "small"
    assert (tmp_path / "work" / "levers-beta=50-seed0" / "cache").resolve().parent.name == "small"
    assert (tmp_path / "work" / "levers-k=0.25-seed0" / "cache").resolve().parent.name == "small-k=0.25"
    capsys.readouterr()
    short("run", "--precision", "32-true")
    assert "epoch" not in capsys.readouterr().out  # nothing is run twice
    short("status")
    assert capsys.readouterr().out.count(" done") == 9
    # On another machine, which has the records and the zoo alone, it goes on.
    shutil.rmtree(tmp_path / "work")
    (tmp_path / "records" / "small" / "factor-seed0.json").unlink()
    short("run", "--precision", "32-true")
    again = json.loads((tmp_path / "records" / "small" / "factor-seed0.json").read_text())
    assert again["settings"] == factor["settings"]
    assert again["curve"][0]["loss"] == pytest.approx(factor["curve"][0]["loss"], rel=1e-3)


def test_bad_options_give_one_message(short: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (["run", "--only", "smal"], "did you mean 'small'"),
        (["run", "--minutes", "0"], "--minutes more than 0"),
        (["run", "--threads", "0"], "--threads must be at least 1"),
    ):
        with pytest.raises(SystemExit, match=r"^2$"):
            short(*words)
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit, match=r"^2$"):
        study.main(["run", "--data", "nowhere"])
    assert "no CIFAR-10 in nowhere" in capsys.readouterr().err


def students(**top1: list[float | None]) -> dict[str, report.Record]:
    teacher = {"test": {"top1": 90.0, "top5": 99.0}, "setting": "", "method": None}
    found: dict[str, report.Record] = {"small/teacher": teacher}
    for method, values in top1.items():
        for seed, value in enumerate(values):
            record = {"method": method.replace("_", "+"), "seed": seed, "setting": "", "seconds": 1.0}
            reached = {"error": "diverged"} if value is None else {"test": {"top1": value, "top5": 99.0}}
            found[f"small/{method}-seed{seed}"] = record | reached
    return found


def test_tables_have_the_figures_of_the_records() -> None:
    found = students(student=[80.0, 81.0, 82.0], kd=[81.0, 83.0, 83.5], factor=[84.0, 85.5, 85.0], at=[None] * 3)
    table = report.TABLES["methods"](found, "small")
    assert f"| Factor Transfer | {estimate([84.0, 85.5, 85.0]):.2f} |" in table
    assert f"**{estimate([4.0, 4.5, 3.0]):+.2f}**" in table
    assert "| 43% | 3 |" in table  # 3.83 of 9 points
    assert "| AT |  |  |  |  |  | 0 (3 diverged) |" in table
    assert f"{estimate([3.0, 2.5, 1.5]):+.2f}" in report.TABLES["differences"](found, "small")
    assert report.TABLES["methods"](found, "authors") == "Not run yet.\n"


def test_committed_reports_are_those_of_the_records() -> None:
    records = report.read_records(runner.RECORDS)
    assert records
    for path, content in report.made_from(records, report.PAGES).items():
        assert path.read_bytes() == content, f"`python studies/cifar10/study.py report` writes another {path}"


def test_the_zoo_is_of_the_records() -> None:
    known = {record.get("weights_sha256") for record in report.read_records(runner.RECORDS).values()}
    weights = list(publish.ZOO.rglob("weights.safetensors"))
    assert weights
    assert {sha256(path) for path in weights} <= known


def test_the_records_are_of_the_plan() -> None:
    for name, record in report.read_records(runner.RECORDS).items():
        if not name.startswith("short"):
            piece: Piece = PLAN[name]
            assert record["settings"] == runner.settings(piece), f"{name} has other settings"
