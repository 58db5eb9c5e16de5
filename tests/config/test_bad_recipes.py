"""Bad recipes, names and command lines: one clear message on one screen, exit code 2, no traceback, nothing lost."""

from pathlib import Path

import pytest

from conftest import Run, refused

STUDENT = "student-factor-seed0"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("student.epoch=3", "unknown key 'student.epoch'; did you mean 'epochs'"),
        ("studnet.epochs=3", "unknown key 'studnet'; did you mean 'student'"),
        ("seed=3", "unknown key 'seed'; did you mean 'teacher.seed'"),
        ("data.root=x", "unknown key 'data.root'"),
        ("student.args.widht=3", "unknown key 'student.args.widht'; did you mean 'width'"),
        ("transfer.factr.beta=3", "unknown key 'transfer.factr'; did you mean 'factor'"),
        ("student.epochs=ten", "student.epochs=.*: .*integer.*'ten'"),
        ("student.epochs=true", "student.epochs=.*: .*integer.*True"),
        ("augment.flip=1", "augment.flip=.*: .*boolean.*1"),
        ("transfer.factor.beta=-1", "transfer.factor.beta=.*: .*greater than or equal to 0"),
        ("transfer.factor.beta=inf", "transfer.factor.beta=.*: .*finite"),
        ("student=3", "student=3: .*3"),
        ("student.epochs.more=3", "'epochs' is a value"),
        ("epochs", "not of the form KEY=VALUE"),
        ("teacher={model='resnet8'}", "give epochs, to train it, or weights"),
        ("student={model='resnet8', weights='x'}", ": epochs is missing"),
        (
            "teacher={model='resnet8', epochs=1, mean=[123.7, 116.3, 103.5], std=[58.4, 57.1, 57.4]}",
            "mean and std are those of pixel values in 0..1; divide those of values in 0..255 by 255",
        ),
        ("data.mean=[123.7, 116.3, 103.5]", "data.mean and data.std are those of pixel values in 0..1"),
        ("name='\udce9'", "name=.*: a string should be UTF-8"),
        ("student.mean=[0.5]", "both mean and std"),
        ("student={model='resnet8', epochs=1, mean=[0.5], std=[0.0]}", "student.std.0: .*greater than 0"),
        ("transfer.method=factor+factor", "method 'factor.factor' names 'factor' twice"),
        ("transfer.method=factr", "unknown method 'factr'; did you mean 'factor'"),
        ("transfer.method=student+kd", "combines 'student' with other terms"),
        ("preset=autors", "unknown preset 'autors'; did you mean 'authors'"),
        ("paraphraser.reconstruction=l3", "paraphraser.reconstruction=.*: .*'l1', 'l2'"),
        ("transfer={}", "name a term, such as .transfer.factor"),
        ("student.model=resnet21", "unknown student.model 'resnet21'; did you mean 'resnet"),
        ("data.name=cifar11", "unknown data set 'cifar11'; did you mean 'cifar10'"),
        ("student={model='resnet8', epochs=1, nesterov=true, momentum=0.0}", "nesterov needs a momentum"),
        ("teacher.seed=100000000000000000000", "teacher.seed=.*: .*less than"),
        ("paraphraser.rate=1000", "paraphraser.rate=.*: .*less than"),
        ("device=tpu", "device=.*: .*'auto', 'cpu'"),
    ],
)
def test_a_recipe_with_an_invalid_setting(tiny: Path, run: Run, override: str, message: str) -> None:
    refused(run("run", tiny, override), message, "tiny.toml|KEY|value")
    assert not Path("runs").exists()


def test_a_missing_recipe(run: Run) -> None:
    refused(run("run", "digits/resnet20-resnet9"), "no recipe 'digits/resnet20-resnet9'; did you mean 'digits/resnet20")
    refused(run("run", "nowhere.toml"), r"cannot read recipe nowhere\.toml: No such file")


def test_an_unreadable_recipe(tmp_path: Path, run: Run) -> None:
    (tmp_path / "bad.toml").write_text("[data\nname = 3")
    refused(run("run", tmp_path / "bad.toml"), r"bad\.toml is not valid TOML.*line 1")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    refused(run("run", tmp_path / "bytes.toml"), r"bytes\.toml is not valid TOML")
    refused(run("run", tmp_path), "cannot read recipe .*directory")
    (tmp_path / "empty.toml").write_text("")
    refused(run("run", tmp_path / "empty.toml"), "data is missing", "student is missing")


def test_a_command_line_that_makes_no_sense(run: Run) -> None:
    for arguments in (["walk"], ["run"], ["run", "x", "--wrok-dir", "y"]):
        assert run(*arguments).code == 2


def test_an_unknown_tap(tiny: Path, run: Run) -> None:
    for key in ("teacher.tap", "student.tap"):
        refused(run("run", tiny, f"{key}=layr3"), f"{key}, of resnet8: unknown tap 'layr3'; did you mean")
    refused(run("run", tiny, "teacher.tap=fc"), "'fc' returns a feature of shape")
    refused(run("run", tiny, "teacher.tap=['layer2', 'layer3']"), "as many taps of the student as of the teacher")
    # Told before anything was trained.
    assert not Path("runs/tiny/teacher").exists()


def test_unknown_metrics_and_things_to_show(finished: Path, tiny: Path, run: Run) -> None:
    refused(run("test", tiny, finished / STUDENT, "--metrics", "f1,recal"), "unknown metric 'recal'.*'recall'")
    refused(run("show", "model"), "unknown list 'model'; did you mean 'models'")
    refused(run("show", "taps", "resnet21"), "unknown model 'resnet21'")
    refused(run("show", "taps"), "show taps needs a network: `factor-transfer show taps MODEL`")
