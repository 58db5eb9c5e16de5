"""The study of CIFAR-10: its pieces, in short; and that what is written of it is what its records say."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

import publish
import report
import study
import tasks
from cifar_files import write_cifar10
from factor_transfer.config.read import read_recipe
from factor_transfer.errors import Diverged, InputError
from factor_transfer.files import sha256, write_json
from factor_transfer.pipeline.artefact import Artefact
from factor_transfer.pipeline.experiment import Experiment
from factor_transfer.report.confidence import estimate
from pieces import Piece, Place, pieces
from plan import HERE, STUDIES
from results import Results, results, tops
from tables import TABLES

(PAIR,) = STUDIES["small"]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A study of which nothing is done."""
    return Place(tmp_path / "work", tmp_path / "records", console=Console(quiet=True))


def record(piece: Piece, place: Place, **content: object) -> None:
    """Write a record as if the piece had been run."""
    made_by = {"settings": piece.settings(place), "made_from": piece.made_from(place)}
    write_json(piece.record(place), made_by | content)


@pytest.mark.parametrize("size", STUDIES)
def test_the_pieces_are_of_valid_recipes(size: str, place: Place) -> None:
    found = list(pieces(size))
    assert len({piece.name for piece in found}) == len(found)
    for number, piece in enumerate(found):
        assert read_recipe(piece.pair.recipe, piece.settings(place)["changes"]).student.epochs
        assert {need.name for need in piece.needs()} <= {earlier.name for earlier in found[:number]}


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with some pieces of a trial of the small study, on a few made-up images."""
    folder = tmp_path_factory.mktemp("study")
    write_cifar10(folder, python=False, count=64)
    study.main(arguments(folder, "--jobs", "2", *ONLY))
    return folder


ONLY = ["--only"] + [
    f"{PAIR.name}/{name}"
    for name in ("teacher", "paraphraser", "k=0.25/paraphraser", "methods/seed0", "k=0.25/seed0", "beta=50/seed0")
]


def arguments(folder: Path, *more: str) -> list[str]:
    return ["small", "--trial", "--data", str(folder), "--work-dir", str(folder / "work"), *more]


def of_trial(folder: Path) -> Place:
    work = folder / "work" / "small-trial"
    return Place(work, work / "records", trial=study.TRIAL, console=Console(quiet=True))


def test_a_piece_is_run_once(trial: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = of_trial(trial).records
    before = {path: path.read_bytes() for path in records.rglob("*.json")}
    assert len(before) == 6
    study.main(arguments(trial, *ONLY))
    assert capsys.readouterr().out.splitlines()[:-1] == []  # nothing was trained
    assert {path: path.read_bytes() for path in records.rglob("*.json")} == before


def test_what_is_written_is_of_the_records(trial: Path) -> None:
    place = of_trial(trial)
    (result,) = results("small", place)
    beta, _, k, *_ = PAIR.variants
    summary = result.summary()
    for method in PAIR.methods:
        runs = result.runs(method)
        assert list(runs) == [0]
        assert (summary[method]["seeds"], summary[method]["mean"]) == (1, runs[0]["test"]["top1"])
    # Variants are not looked at on test images: but for the one that is chosen.
    assert all("test" not in run for variant in (beta, k) for run in result.runs("factor", variant).values())
    assert result.paraphraser(beta) == result.paraphraser()
    assert result.paraphraser(k) != result.paraphraser()
    none = Place(trial, trial / "none")
    files = report.written({"small": place, "full": none})
    pictures = {f"small-{PAIR.name}-{name}.svg" for name in ("curves", "variants")}
    assert {path.name for path in files} == {"README.md", "small.toml"} | pictures
    assert files == report.written({"small": place, "full": none})
    readme = files[HERE / "README.md"].decode()
    assert f"| student alone | {summary['student']['mean']:.2f} |" in readme
    assert "| k=1.0 | not run yet |" in readme
    assert f"student alone {summary['student']['mean']:.2f}" in files[HERE / "small.toml"].decode().splitlines()[2]


def test_what_is_published_is_what_the_records_speak_of(trial: Path) -> None:
    place = of_trial(trial)
    (result,) = results("small", place)
    found = publish.chosen(result, place)
    names = [done.folder.name for done, _ in found]
    assert names[:3] == ["teacher", "paraphraser", "student-alone-seed0"]
    best = names[3].removeprefix("student-").removesuffix("-seed0")
    reached = {method: tops(result.runs(method), "validation")[0] for method in PAIR.methods if method != "student"}
    assert reached[best] == max(reached.values())
    assert found[3][1]["top1"] == result.runs(best)[0]["test"]["top1"]
    for done, said in found:
        assert read_recipe(str(HERE.parents[1] / said["recipe"]), said["command"].split()[3:])
        assert done.weights.is_file()
    result.teacher["teacher"]["weights_sha256"] = "another"
    with pytest.raises(InputError, match="does not hold what"):
        publish.chosen(result, place)


def refused(capsys: pytest.CaptureFixture[str], words: list[str]) -> str:
    """What the command says when it ends with 2."""
    with pytest.raises(SystemExit) as ended:
        study.main(words)
    assert ended.value.code == 2
    return capsys.readouterr().err.replace("\n", " ")


def test_a_record_of_something_else_is_refused(trial: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(trial, folder, symlinks=True)  # links within a work dir are still of it
    place = of_trial(folder)
    teacher, student = Piece(PAIR, "teacher"), Piece(PAIR, "students", None, 0)
    path = teacher.record(place)
    content = json.loads(path.read_text())
    write_json(path, {**content, "test": {}})
    assert teacher.is_done(place)
    with pytest.raises(InputError, match="was made from another"):
        student.is_done(place)
    content["settings"]["recipe"]["teacher"]["epochs"] = 99
    write_json(path, content)
    assert "made by other settings" in refused(capsys, arguments(folder))
    study.main(arguments(folder, "--list"))
    listed = capsys.readouterr().out
    assert listed.count("outdated") == 6
    assert "done" not in listed


def test_a_work_dir_that_lost_what_was_trained(trial: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(trial, folder, symlinks=True)
    shutil.rmtree(of_trial(folder).work / PAIR.name)
    said = refused(capsys, arguments(folder, "--only", f"{PAIR.name}/beta=5000/seed0"))
    assert "is of a training that is not in" in said
    assert not Piece(PAIR, "students", PAIR.variants[1], 0).record(of_trial(folder)).exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", f"{PAIR.name}/method"], f"{PAIR.name}/methods/seed0"),
        (["--only", f"{PAIR.name}/beta=50/seed0"], f"needs {PAIR.name}/teacher, which is not done"),
        (["--jobs", "0"], "--jobs must be at least 1, got 0"),
        (["--minutes", "nan"], "--minutes must be more than 0, got nan"),
    ],
)
def test_bad_arguments(words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refused(capsys, arguments(tmp_path, *words))


def upstream(place: Place) -> None:
    """A teacher and paraphrasers, as if there were such."""
    for piece in pieces("small"):
        if piece.task in ("teacher", "paraphraser"):
            record(piece, place, test={"top1": 64.0, "top5": 99.0})


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> list[Exception]:
    """Trainings that fail with what is put into this list."""
    errors: list[Exception] = []

    def make(several: list[Experiment]) -> list[Artefact | Exception]:
        if len(several) == 1:
            raise errors[0]
        return [errors[0] for _ in several]

    monkeypatch.setattr(tasks, "make_students", make)
    nothing = SimpleNamespace(with_method=lambda *_: None)
    monkeypatch.setattr(tasks, "experiment", lambda *_: nothing)
    return errors


@pytest.mark.parametrize("variant", [None, PAIR.variants[0]])
def test_divergence_is_a_result_and_nothing_else_is(variant: object, place: Place, failing: list[Exception]) -> None:
    upstream(place)
    piece = next(one for one in pieces("small") if one.task == "students" and one.variant == variant)
    failing[:] = [InputError("no room")]
    with pytest.raises(InputError, match="no room"):
        tasks.run(piece, place)
    assert not piece.record(place).exists()
    failing[:] = [Diverged("the loss is not finite")]
    tasks.run(piece, place)
    runs = Results("small", PAIR, place).runs("factor", piece.variant)
    assert runs[0]["error"] == "the loss is not finite"
    assert tops(runs) == {}


def test_a_student_without_a_paraphraser_is_not_trained(place: Place) -> None:
    upstream(place)
    variant = next(variant for variant in PAIR.variants if variant.own_paraphraser)
    record(Piece(PAIR, "paraphraser", variant), place, error="it diverged")
    piece = Piece(PAIR, "students", variant, 0)
    tasks.run(piece, place)
    assert Results("small", PAIR, place).runs("factor", variant)[0]["error"] == "there is no paraphraser: it diverged"


def test_the_choice_is_the_best_on_validation_images(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    upstream(place)
    best, other = PAIR.variants[1], PAIR.variants[0]
    reached = {None: 50.0, best: 60.0, other: 45.0}
    for piece in pieces("small"):
        if piece.task == "students":
            runs = [{"method": "factor", "seed": piece.seed, "validation": {"top1": reached.get(piece.variant, 1.0)}}]
            record(piece, place, runs=runs)
    monkeypatch.setattr(tasks, "_runs", lambda one, place, methods, test: [{"seed": one.seed, "test": test}])
    choice = Piece(PAIR, "choice")
    tasks.run(choice, place)
    found = json.loads(choice.record(place).read_text())
    assert found["variant"] == best.name
    assert found["runs"] == [{"seed": seed, "test": True} for seed in range(3)]

    choice.record(place).unlink()
    diverged = [{"method": "factor", "seed": 0, "error": "it diverged"}]
    record(Piece(PAIR, "students", best, 0), place, runs=diverged)
    tasks.run(choice, place)
    assert json.loads(choice.record(place).read_text())["variant"] is None  # 40 in the mean


def test_differences_are_of_the_same_seeds(place: Place) -> None:
    upstream(place)
    for seed, (alone, taught) in enumerate([(50.0, 53.0), (60.0, 62.0), (70.0, 71.0)]):
        runs: list[dict[str, object]] = [
            {"method": method, "seed": seed, "seconds": 1.0, "test": {"top1": top1, "top5": 99.0}}
            for method, top1 in (("student", alone), ("factor", taught))
        ]
        runs.append({"method": "kd", "seed": seed, "error": "diverged"})
        record(Piece(PAIR, "students", None, seed), place, runs=runs)
    summary = Results("small", PAIR, place).summary()
    factor, kd = summary["factor"], summary["kd"]
    assert (factor["difference"], factor["difference_interval"]) == estimate([3.0, 2.0, 1.0])
    assert factor["gap_closed"] == pytest.approx(0.5)
    assert (kd["seeds"], kd["failed"], kd["mean"]) == (0, 3, None)
    assert "| KD |  |  |  |  | 0 (3 diverged) |" in TABLES["methods"](Results("small", PAIR, place))


def test_what_is_committed_is_what_the_records_say() -> None:
    places = {size: Place(Path(), HERE / "records" / size) for size in STUDIES}
    for path, content in report.written(places).items():
        assert path.read_bytes() == content, f"python {HERE / 'report.py'} writes another {path}"


def test_records_are_of_the_files_in_the_zoo() -> None:
    records = [json.loads(path.read_text()) for path in (HERE / "records").rglob("*.json")]
    stages = [record[key] for record in records for key in ("teacher", "paraphraser") if key in record]
    known = {one["weights_sha256"] for one in [*stages, *(run for record in records for run in record.get("runs", []))]}
    weights = list((HERE.parents[1] / "zoo").rglob("weights.safetensors"))
    assert weights
    assert {sha256(path) for path in weights} <= known
