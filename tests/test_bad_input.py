"""Each kind of bad input: one clear message on one screen, exit code 2, no traceback, nothing lost."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from conftest import Outcome, Run
from factor_transfer import build_model
from factor_transfer.checkpoint import read_training

STUDENT = "student-factor-seed0"


def refused(result: Outcome, *messages: str) -> None:
    """It ended with code 2 and one message that says all of ``messages`` (regular expressions)."""
    assert result.code == 2
    assert result.err.startswith("Error: ")
    assert "Traceback" not in result.err
    assert len(result.err.splitlines()) <= 20
    for message in messages:
        assert re.search(message, result.err), result.err


@pytest.fixture
def work(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "work"))


# ---- recipes


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("student.epoch=3", "unknown key 'student.epoch'; did you mean 'epochs'"),
        ("studnet.epochs=3", "unknown key 'studnet'; did you mean 'student'"),
        ("seed=3", "unknown key 'seed'; did you mean 'teacher.seed'"),
        ("data.root=x", "unknown key 'data.root'"),
        ("student.args.widht=3", "unknown key 'student.args.widht'; did you mean 'width'"),
        ("transfer.factr.beta=3", "unknown key 'transfer.factr'; did you mean 'factor'"),
        ("student.epochs=ten", "student.epochs: .*integer.*'ten'"),
        ("student.epochs=true", "student.epochs: .*integer.*True"),
        ("augment.flip=1", "augment.flip: .*boolean.*1"),
        ("transfer.factor.beta=-1", "transfer.factor.beta: .*greater than or equal to 0"),
        ("transfer.factor.beta=inf", "transfer.factor.beta: .*finite"),
        ("student=3", "student: .*3"),
        ("student.epochs.more=3", "'epochs' is a value"),
        ("epochs", "not of the form KEY=VALUE"),
        ("teacher.weights=x", "either epochs.* or weights"),
        ("transfer={}", "name a term: .*transfer.factor"),
        ("student.model=resnet21", "unknown student.model 'resnet21'; did you mean 'resnet"),
        ("data.name=cifar11", "unknown data set 'cifar11'; did you mean 'cifar10'"),
        ("student={model='resnet8', epochs=1, nesterov=true, momentum=0.0}", "nesterov needs a momentum"),
        ("teacher.seed=100000000000000000000", "teacher.seed: .*less than"),
        ("paraphraser.rate=1000", "paraphraser.rate: .*less than"),
        ("device=tpu", "device: .*'auto', 'cpu'"),
    ],
)
def test_a_recipe_that_says_what_it_cannot(tiny: Path, run: Run, override: str, message: str) -> None:
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


# ---- names


def test_an_unknown_tap(tiny: Path, run: Run) -> None:
    for key in ("teacher.tap", "student.tap"):
        refused(run("run", tiny, f"{key}=layr3"), "unknown tap 'layr3'; did you mean 'layer3'")
    refused(run("run", tiny, "teacher.tap=fc"), "'fc' returns shape")
    refused(run("run", tiny, "teacher.tap=layer2"), "layer2 is 16 x 4 x 4, the student's layer3 16 x 2 x 2")
    # Told before anything was trained.
    assert not Path("runs/tiny/teacher").exists()


def test_unknown_metrics_and_things_to_show(finished: Path, tiny: Path, run: Run) -> None:
    refused(run("test", tiny, finished / STUDENT, "--metrics", "f1,recal"), "unknown metric 'recal'.*'recall'")
    refused(run("show", "model"), "unknown thing to show 'model'; did you mean 'models'")
    refused(run("show", "taps", "resnet21"), "unknown model 'resnet21'")
    refused(run("show", "taps"), "whose taps")


# ---- data


def test_a_missing_data_file(tiny: Path, tmp_path: Path, run: Run) -> None:
    refused(run("teacher", tiny, "data={name='cifar10', root='nowhere'}"), "nowhere", r"data\.root", r"download=true")
    refused(run("teacher", tiny, "data={name='folder', root='nowhere'}"), "nowhere")


def cifar(folder: Path) -> Path:
    (folder / "cifar-10-batches-bin").mkdir(parents=True)
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        records = bytearray((1 + 3072) * 10)
        records[:: 1 + 3072] = bytes(range(10))
        (folder / "cifar-10-batches-bin" / f"{name}.bin").write_bytes(records)
    return folder


def test_a_truncated_or_corrupted_data_file(tiny: Path, tmp_path: Path, run: Run) -> None:
    override = f"data={{name='cifar10', root='{cifar(tmp_path / 'c')}'}}"
    batch = tmp_path / "c" / "cifar-10-batches-bin" / "data_batch_3.bin"
    whole = batch.read_bytes()
    batch.write_bytes(whole[:-1])
    refused(run("teacher", tiny, override), r"data_batch_3\.bin: 30,729 bytes")
    batch.write_bytes(b"\x0b" + whole[1:])
    refused(run("teacher", tiny, override), r"data_batch_3\.bin: image 0 has label 11")
    batch.unlink()
    refused(run("teacher", tiny, override), r"data_batch_3\.bin missing")


def pictures(folder: Path, sizes: tuple[int, ...] = (8,)) -> str:
    for label in "ab":
        (folder / label).mkdir(parents=True)
        for index in range(20):
            side = sizes[index % len(sizes)]
            Image.new("RGB", (side, side), (index, 0, 0)).save(folder / label / f"{index}.png")
    return f"data={{name='folder', root='{folder}'}}"


def test_a_corrupted_image(tiny: Path, tmp_path: Path, run: Run) -> None:
    override = pictures(tmp_path / "p")
    for content in (b"no image", (tmp_path / "p" / "a" / "3.png").read_bytes()[:40]):
        for index in range(20):  # wherever the split puts them
            (tmp_path / "p" / "a" / f"{index}.png").write_bytes(content)
        refused(run("teacher", tiny, override), r"p/a/\d+\.png: cannot be read as an image")


def test_an_empty_class_folder(tiny: Path, tmp_path: Path, run: Run) -> None:
    override = pictures(tmp_path / "p")
    (tmp_path / "p" / "c").mkdir()
    refused(run("teacher", tiny, override), "p/c: has no images")


def test_images_of_differing_sizes_without_size(tiny: Path, tmp_path: Path, run: Run) -> None:
    refused(run("teacher", tiny, pictures(tmp_path / "p", (8, 9))), r"8×8.*9×9|9×9.*8×8", r"data\.size")


def test_one_class_or_a_class_without_training_images(tiny: Path, tmp_path: Path, run: Run) -> None:
    override = pictures(tmp_path / "p")
    shutil.rmtree(tmp_path / "p" / "b")
    refused(run("teacher", tiny, override), "one class only, 'a'")
    refused(run("teacher", tiny, "data.limit=3"), "no training image is left of class 'pattern")


def test_testing_on_images_that_may_have_been_trained_on(tiny: Path, tmp_path: Path, run: Run) -> None:
    override, small = (
        pictures(tmp_path / "p"),
        ["teacher.batch_size=8", "paraphraser.batch_size=8", "student.batch_size=8"],
    )
    assert run("teacher", tiny, override, *small).code == 0
    assert run("test", tiny, "runs/tiny/teacher", override).code == 0
    refused(run("test", tiny, "runs/tiny/teacher", override, "data.split_seed=1"), "another cut of the images")


def test_other_channels(finished: Path, tiny: Path, run: Run) -> None:
    refused(run("test", tiny, finished / "teacher", "data.channels=1"), "takes images of 3 channels, .* have 1")


def test_a_batch_larger_than_the_training_set(tiny: Path, run: Run) -> None:
    refused(run("run", tiny, "student.batch_size=73"), "student.batch_size is 73, larger .* of 72 images")
    assert not Path("runs/tiny/teacher").exists()


# ---- weights and checkpoints


def test_a_missing_or_damaged_checkpoint(work: Path, tiny: Path, run: Run) -> None:
    refused(run("test", tiny, work / "nowhere"), "no checkpoint .*nowhere")
    weights = work / STUDENT / "weights.safetensors"
    whole = weights.read_bytes()
    for damaged in (whole[:-10], whole[:200] + bytes([whole[200] ^ 1]) + whole[201:]):
        weights.write_bytes(damaged)
        refused(run("test", tiny, work / STUDENT), r"student-factor-seed0/weights\.safetensors are damaged", "SHA-256")
        refused(run("run", tiny, "--work-dir", work), r"weights\.safetensors are damaged", "--fresh")
    (work / "bare.safetensors").write_bytes(whole[:-10])
    refused(run("test", tiny, work / "bare.safetensors"), r"bare\.safetensors are damaged")
    refused(run("test", tiny, work / "paraphraser"), "holds a paraphraser")
    weights.write_bytes(whole)
    refused(run("test", tiny, work / STUDENT, "data.classes=3"), "4 classes .* has 3 classes")


def test_a_damaged_training_checkpoint(work: Path, tiny: Path, run: Run) -> None:
    record = json.loads((work / STUDENT / "stage.json").read_text())
    (work / STUDENT / "stage.json").write_text(json.dumps({"finished": False, "inputs": record["inputs"]}))
    (work / STUDENT / "last.ckpt").write_bytes(b"PK\x03\x04 half a file")
    refused(run("train", tiny, "--work-dir", work), r"last\.ckpt is damaged", "--fresh")
    assert run("train", tiny, "--work-dir", work, "--fresh").code == 0


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            lambda: build_model("resnet8", 7, width=8),
            r"fc\.weight: shape \(7, 32\) in the file, \(4, 32\) in the model",
        ),
        (lambda: build_model("resnet14", 4, width=8), r"not in the model: layer1\.1\.conv1\.weight"),
    ],
)
def test_teacher_weights_that_do_not_fit(tiny: Path, tmp_path: Path, run: Run, model: object, message: str) -> None:
    torch.save(model().state_dict(), tmp_path / "teacher.pth")  # type: ignore[operator]
    tiny.write_text(tiny.read_text().replace("epochs = 3", f'weights = "{tmp_path}/teacher.pth"', 1))
    refused(run("run", tiny), r"teacher\.pth do not fit ResNet", message)
    (tmp_path / "teacher.pth").unlink()
    refused(run("run", tiny), r"cannot read .*teacher\.pth")


# ---- stages


def test_a_paraphraser_or_teacher_that_is_missing(work: Path, tiny: Path, run: Run) -> None:
    shutil.rmtree(work / "paraphraser")
    mend = f"factor-transfer pretrain {tiny} --work-dir {work}"
    refused(run("train", tiny, "--work-dir", work), "the paraphraser is missing: .*work/paraphraser", re.escape(mend))
    shutil.rmtree(work / "teacher")
    mend = f"factor-transfer teacher {tiny} --work-dir {work}"
    refused(run("train", tiny, "--work-dir", work), "the teacher is missing", re.escape(mend))
    refused(run("pretrain", tiny, "--work-dir", work), "the teacher is missing", re.escape(mend))


def test_a_paraphraser_trained_on_another_teacher_or_tap(work: Path, tiny: Path, run: Run) -> None:
    before = (work / STUDENT / "weights.safetensors").read_bytes()
    taps = ["teacher.tap=layer2", "student.tap=layer2"]
    mend = f"factor-transfer pretrain {tiny} {' '.join(taps)} --work-dir {work}"
    refused(run("train", tiny, *taps, "--work-dir", work), "tap: 'layer3' then, 'layer2' now", re.escape(mend))
    assert run("teacher", tiny, "teacher.seed=5", "--work-dir", work).code == 0
    result = run("train", tiny, "teacher.seed=5", "--work-dir", work)
    refused(result, "the paraphraser in .* another one", "teacher: '[0-9a-f]+…' then, '[0-9a-f]+…' now", "pretrain")
    refused(run("train", tiny, "--work-dir", work), "the teacher in .* another one", "teacher.seed: 5 then, 0 now")
    assert (work / STUDENT / "weights.safetensors").read_bytes() == before


def test_a_work_dir_that_belongs_to_another_recipe(work: Path, tiny: Path, tmp_path: Path, run: Run) -> None:
    other = tiny.with_name("other.toml")
    other.write_text(tiny.read_text())
    refused(run("run", other, "--work-dir", work), "work dir .* belongs to the recipe 'tiny', not to 'other'")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    refused(run("run", tiny, "--work-dir", tmp_path / "mine"), "mine is not empty and was not made by factor-transfer")
    refused(run("run", tiny, "--work-dir", tiny), "cannot use work dir")


def test_a_loss_that_is_not_finite(tiny: Path, run: Run) -> None:
    explode = ["teacher.schedule=step", "teacher.milestones=[2]", "teacher.gamma=1e38"]
    result = run("teacher", tiny, *explode)
    refused(result, r"not finite in epoch 3, step \d: loss (nan|inf), accuracy", r"checkpoint is kept: .*last\.ckpt")
    checkpoint = read_training(Path("runs/tiny/teacher/last.ckpt"))
    assert checkpoint["epoch"] == 2
    assert all(value.isfinite().all() for value in checkpoint["method"].values())


def test_weights_that_the_last_step_broke(tiny: Path, run: Run) -> None:
    """One step an epoch: the loss was still finite, what it left is not, and is neither kept nor passed on."""
    result = run("run", tiny, "teacher.batch_size=72", "teacher.learning_rate=1e38", "teacher.epochs=1")
    refused(result, "not finite at the end of epoch 1: ", "lower learning_rate")
    assert "checkpoint is kept" not in result.err
    assert not Path("runs/tiny/teacher/weights.safetensors").exists()
    assert not Path("runs/tiny/paraphraser").exists()


def test_a_stage_folder_of_unknown_origin_is_not_gone_on_with(work: Path, tiny: Path, run: Run) -> None:
    (work / STUDENT / "stage.json").unlink()
    result = run("run", tiny, "--work-dir", work)
    assert result.code == 0
    assert f"kept in {work / 'replaced' / STUDENT}-1" in result.out.replace("\n", " ")


def test_damaged_records(work: Path, tiny: Path, run: Run) -> None:
    record = json.loads((work / "teacher" / "stage.json").read_text())
    for damage in ({"model": {"name": "resnet8"}}, {"mean": [0.5]}, {"classes": None}):
        (work / "teacher" / "stage.json").write_text(json.dumps({**record, **damage}))
        refused(run("test", tiny, work / "teacher"), "teacher/stage.json is damaged|takes images of 3 channels")
    for text in ("[]", "{", '{"finished": true}'):
        (work / "teacher" / "stage.json").write_text(text)
        refused(run("run", tiny, "--work-dir", work), r"teacher/stage\.json")
    (work / "recipe.json").write_text("[]")
    refused(run("run", tiny, "--work-dir", work), "belongs to the recipe None")


def test_missing_weights_say_how_to_get_them_back(work: Path, tiny: Path, run: Run) -> None:
    (work / STUDENT / "weights.safetensors").unlink()
    refused(run("run", tiny, "--work-dir", work), "are missing; add --fresh")
    assert run("train", tiny, "--work-dir", work, "--fresh").code == 0


def test_ctrl_c(tiny: Path, tmp_path: Path, run: Run) -> None:
    """130, as a shell expects of a program that was interrupted; the stage goes on where it was."""
    arguments = ["teacher", str(tiny), "teacher.epochs=90"]
    # A shell starts background jobs with SIGINT ignored, and this test must not depend on how it was started.
    start = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    start += "from factor_transfer.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", start, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = Path("runs/tiny/teacher/metrics.jsonl")
    deadline = time.monotonic() + 60
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    kept = re.search(
        r"Stopped: stopped in teacher; epoch (\d+) of 90 is kept in .*last\.ckpt\nThe same command, without", error
    )
    assert kept, error
    assert "Traceback" not in error
    result = run(*arguments)
    assert result.code == 0
    assert f"epoch {int(kept[1]) + 1:>2}/90" in result.out
    assert f"epoch {int(kept[1]):>2}/90" not in result.out


def test_debug_shows_the_traceback(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    process = subprocess.run(
        [sys.executable, "-m", "factor_transfer", "run", str(tiny), "student.epochs=ten", "--debug"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode != 0
    assert "Traceback" in process.stderr
    assert "InputError" in process.stderr
