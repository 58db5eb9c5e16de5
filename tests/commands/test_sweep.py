"""Several values of a setting: a row of the comparison for each."""

import csv
import json
from pathlib import Path

import pytest
from rich.console import Console

from conftest import Run, refused
from factor_transfer.commands import slurm
from factor_transfer.commands.compare import parse_methods
from factor_transfer.config.read import as_toml, read_recipe, with_setting
from factor_transfer.config.sweep import Sweep, split_sweep
from factor_transfer.errors import InputError
from factor_transfer.pipeline.experiment import Experiment
from factor_transfer.pipeline.finished_run import folder_name, method_of
from factor_transfer.pipeline.stages.student import student_folder
from factor_transfer.report.names import name_of

BETAS = ("factor,transfer.factor.beta=50", "factor,transfer.factor.beta=500")


@pytest.mark.parametrize(
    "override",
    [
        "student.milestones=[1,2]",
        "student.epochs=3",
        "data.root=/pictures/cats, dogs",
        "data.root='cats,dogs'",
        "student={model='resnet8',epochs=3}",
    ],
)
def test_one_value_is_no_sweep(override: str) -> None:
    assert split_sweep([override]) == (None, [override])


def test_a_sweep_is_separated_from_the_other_settings() -> None:
    sweep, others = split_sweep(["teacher.epochs=2", "student.schedule=cosine,step", "name=x"])
    assert sweep == Sweep("student.schedule", ["cosine", "step"])
    assert others == ["teacher.epochs=2", "name=x"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["teacher.epochs=1,2"], r"teacher\.epochs=1,2: only settings of \[student\] and \[transfer\.\*\]"),
        (["data.root=cats,dogs"], r"""has quotes: data\.root='"cats,dogs"'"""),
        (["compile=on,off"], "only settings of"),
        (["transfer.factor=1,2"], "only settings of"),
        (["student.seed=0,1"], "--seeds N trains every method"),
        (["transfer.method=kd,factor"], "--methods names the methods"),
        (["transfer.facto.beta=1,2"], "did you mean 'factor'"),
        (["student.epochs=1,2", "transfer.kd.alpha=0.1,0.5"], "only one setting can have several values"),
        (["student.epochs=1,2,1"], r"student\.epochs has the value 1 twice"),
    ],
)
def test_settings_that_cannot_be_swept_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        split_sweep(overrides)


def test_a_setting_of_a_term_makes_rows_of_the_methods_that_have_it(tiny: Path) -> None:
    recipe = read_recipe(tiny)
    beta = Sweep("transfer.factor.beta", ["50", "500"])
    methods = parse_methods("student,kd,factor,factor+kd")
    both = [f"factor+kd,transfer.factor.beta={value}" for value in (50, 500)]
    assert beta.rows(methods, recipe) == ["student", "kd", *BETAS, *both]
    with pytest.raises(InputError, match="no method of --methods has the term 'factor'"):
        beta.rows(["student", "kd"], recipe)
    with pytest.raises(InputError, match=r"transfer\.factor\.beta=x: .*should be a valid number, got 'x'"):
        beta._replace(values=["50", "x"]).rows(methods, recipe)
    with pytest.raises(InputError, match=r"beta=1 and transfer\.factor\.beta=1\.0 are the same setting"):
        beta._replace(values=["1", "50", "1.0"]).rows(methods, recipe)
    with pytest.raises(InputError, match=r"unknown key 'transfer\.factor\.bet'; did you mean 'beta'"):
        beta._replace(key="transfer.factor.bet").rows(methods, recipe)


def test_a_setting_of_the_student_makes_rows_of_all_methods(tiny: Path) -> None:
    epochs = Sweep("student.epochs", ["3", "5"])  # 3 is the recipe's own
    expected = ["student", "student,student.epochs=5", "kd,student.epochs=3", "kd,student.epochs=5"]
    assert epochs.rows(["student", "kd"], read_recipe(tiny)) == expected


def test_the_schedule_of_terms_makes_rows_of_the_methods_that_have_terms(tiny: Path) -> None:
    (schedule, others) = split_sweep(["transfer.schedule=constant,linear"])
    assert schedule is not None
    assert not others
    rows = schedule.rows(["student", "kd"], read_recipe(tiny))
    assert rows == ["student", "kd,transfer.schedule=constant", "kd,transfer.schedule=linear"]
    assert name_of(rows[2]) == "KD, schedule = linear"
    with pytest.raises(InputError, match="no method of --methods has terms"):
        schedule.rows(["student"], read_recipe(tiny))


@pytest.mark.parametrize("given", ["student.args={}", "student.args={width=4}"])
def test_another_network_has_its_own_defaults(tiny: Path, given: str) -> None:
    Path("process.toml").write_text(as_toml(read_recipe(tiny, [given])))  # which has the defaults of the network, too
    swept = with_setting(read_recipe("process.toml"), "student.model=resnet8x4")
    plain = read_recipe(tiny, [given, "student.model=resnet8x4"])
    assert swept.student.args.model_dump() == plain.student.args.model_dump()


def test_rows_have_distinct_folders_and_can_be_read_from_them(tiny: Path) -> None:
    experiment = Experiment(read_recipe(tiny), Path("runs/tiny"), Console(quiet=True), str(tiny))
    rows = ["student", "student,student.epochs=5", "factor", *BETAS, "factor+kd,transfer.factor.beta=50"]
    folders = [student_folder(Path(), experiment.with_method(row, 7).recipe).name for row in rows]
    assert len(set(folders)) == len(rows)
    assert folders[3] == "student-factor,transfer.factor.beta=50-seed7"
    for row, folder in zip(rows, folders, strict=True):
        assert folder_name(row, 7) == folder
        assert method_of(folder) == row
    names = ["student alone", "student alone, epochs = 5", "Factor Transfer", "Factor Transfer, beta = 50"]
    assert [name_of(row) for row in rows[:4]] == names
    assert name_of(rows[-1]) == "Factor Transfer + KD, factor.beta = 50"
    # The recipe that is written beside a student leads back to its folder, and so do the settings of a Slurm job.
    swept = experiment.with_method(BETAS[1], 7).recipe
    Path("again.toml").write_text(as_toml(swept))
    assert student_folder(Path(), read_recipe("again.toml")).name == "student-factor,transfer.factor.beta=500-seed7"
    job = read_recipe(tiny, [*slurm._as_overrides(BETAS[1]), "student.seed=7"])
    assert student_folder(Path(), job) == student_folder(Path(), swept)
    assert job.terms["factor"].model_dump()["beta"] == 500
    # A comparison of the same recipe without a sweep does not touch these folders.
    other = Experiment(swept, Path("runs/tiny"), Console(quiet=True), str(tiny)).with_method("factor", 7)
    assert student_folder(Path(), other.recipe).name == "student-factor-seed7"


def test_a_sweep_of_a_term(tiny: Path, run: Run) -> None:
    tiny.write_text(tiny.read_text().replace("epochs = 3", "epochs = 1"))
    given = ["compare", tiny, "--methods", "student,factor", "--seeds", "1", "--csv", "table.csv"]
    result = run(*given, "transfer.factor.beta=50,500", "--jobs", "2")
    assert result.code == 0, result.err
    assert "Factor Transfer, beta = 500" in result.out
    assert " cost | validation % |" in result.out
    assert "Choose a value by it" in result.out
    assert "significance is unknown: Factor Transfer, beta = 50; Factor Transfer, beta = 500." in result.out
    found = json.loads(Path("runs/tiny/comparison.json").read_text())
    assert [entry["method"] for entry in found["runs"]] == ["student", *BETAS]
    assert [entry["settings"]["factor"]["beta"] for entry in found["runs"][1:]] == [50, 500]
    for row, beta in zip(BETAS, (50, 500), strict=True):
        record = json.loads(Path("runs/tiny", folder_name(row, 0), "stage.json").read_text())
        assert record["inputs"]["factor"]["beta"] == beta
    rows = [row for row in csv.DictReader(Path("table.csv").read_text().splitlines()) if row["row"] == "run"]
    assert [(row["method"], row["setting"], row["value"]) for row in rows] == [
        ("student", "", ""),
        ("factor", "transfer.factor.beta", "50"),
        ("factor", "transfer.factor.beta", "500"),
    ]
    assert run("report", "runs/tiny").code == 0
    assert "Factor Transfer, beta = 500" in Path("runs/tiny/report.html").read_text()
    record = json.loads(Path("runs/tiny", folder_name(BETAS[0], 0), "stage.json").read_text())
    assert float(rows[1]["validation_top1"]) == record["validation"]["top1"]
    assert rows[1]["against"] == "student"
    more = run(*given, "transfer.factor.beta=50,500,5000", "--against", BETAS[0], "--jobs", "1")
    assert more.code == 0, more.err
    assert more.out.count("up to date") >= 5  # teacher, paraphraser, and three students
    assert "difference from Factor Transfer, beta = 50, seed by seed" in more.out


def test_a_sweep_of_the_student(tiny: Path, run: Run) -> None:
    tiny.write_text(tiny.read_text().replace("epochs = 3", "epochs = 1"))
    given = ["compare", tiny, "--methods", "kd", "--seeds", "1"]
    result = run(*given, "student.learning_rate=0.1,1e38")
    refused(result, "every seed failed for these methods", "not finite")  # and the others are there
    found = json.loads(Path("runs/tiny/comparison.json").read_text())
    assert [(entry["method"], entry["top1"] is None) for entry in found["runs"]] == [
        ("student", False),
        ("student,student.learning_rate=1e38", True),
        ("kd,student.learning_rate=0.1", False),
        ("kd,student.learning_rate=1e38", True),
    ]
    taps = run(*given, "student.tap=layer2,layer3")
    assert taps.code == 0, taps.err
    two = [json.loads(path.read_text())["inputs"] for path in Path("runs/tiny").glob("student-kd,*layer*/stage.json")]
    assert len(two) == 2


def test_faults_of_a_sweep_are_reported_before_training(tiny: Path, run: Run) -> None:
    given = ["compare", tiny, "--methods", "factor", "--seeds", "1"]
    refused(run(*given, "student.batch_size=24,1000"), r"student\.batch_size is 1000, larger than the training set")
    refused(run(*given, "student.tap=layer3,nowhere"), "nowhere")
    refused(
        run(*given, "transfer.factor.paraphrase=true,false", "cache.views=1"), "changes what the factor cache holds"
    )
    refused(run("run", tiny, "transfer.factor.beta=50,500"), r"transfer\.factor\.beta.*'50,500'")
    assert not Path("runs").exists()
