"""``factor-transfer compress`` and ``init``: from a folder of pictures to a student, without a recipe."""

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import Outcome, Run, refused
from factor_transfer.commands.compress.choose import (
    ChosenNetwork,
    choose_batch_size,
    choose_networks,
    choose_transfer,
    sizes,
)
from factor_transfer.commands.compress.look import Pictures, look
from factor_transfer.commands.compress.measure import Measured, measure
from factor_transfer.commands.compress.schedule import Costs, Epochs, plan_epochs, replan
from factor_transfer.config.read import read_recipe
from factor_transfer.errors import InputError

COSTS = Costs(teacher_s=200, paraphraser_s=100, student_s=200, alone_s=100, once_s=800, memory_mb=500, disk_mb=1)
SMALL = "--teacher", "resnet8", "--student", "resnet8", "--minutes", "88"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two classes of noise, dark and bright, in mixed sizes and formats; and a text file."""
    root, generator = tmp_path / "pictures", np.random.default_rng(0)
    for label, name in enumerate(("dark", "bright")):
        (root / name).mkdir(parents=True)
        for index in range(20):
            height, width = 8 + index % 3, 8 + index % 5
            pixels = generator.integers(128 * label, 128 + 128 * label, (height, width, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index}.{'webp' if index == 3 else 'png'}")
    (root / "notes.txt").write_text("nothing")
    return root


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is measured: what a stage costs is given, such that SMALL has time for five epochs."""
    monkeypatch.setattr("factor_transfer.commands.compress.schedule._LEAST_STEPS", 1)
    monkeypatch.setattr("factor_transfer.commands.compress.schedule._WORTH", float("inf"))  # all stages are faster
    monkeypatch.setattr(
        "factor_transfer.commands.compress.measure.measure", lambda *_: Measured(COSTS, teacher=300_000, student=80_000)
    )


@pytest.fixture
def no_exporter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("factor_transfer.export.exporter.installed", lambda _: False)
    monkeypatch.setattr("factor_transfer.export.formats.optional.installed", lambda _: False)


def compressed(run: Run, *arguments: str | Path) -> Outcome:
    result = run("compress", *arguments)
    assert result.code == 0, result.err
    return result


def test_a_folder_becomes_a_student_and_the_same_command_reuses_it(
    pictures: Path, run: Run, quick: None, no_exporter: None
) -> None:
    result = compressed(run, pictures, *SMALL)
    for words in (
        "2 classes (bright, dark)",
        "skipped: .txt: 1",
        "images of 9×9 pixels; the shorter sides of the pictures are 8 to 10 pixels, with a median of 9",
        "teacher resnet8 (300,000 parameters), student resnet8 (80,000)",
        "of 88 minutes: teacher 33.3 (10 epochs), paraphraser 5.0 (3 epochs), student 16.7 (5 epochs)",
        "500 MB of memory and 1 MB on disk",
        "| student alone",
        "| student, Factor Transfer |",
        "-m pip install 'factor-transfer[executorch]'",
        "factor-transfer predict compressed/pictures PICTURE",
    ):
        assert words in result.out, result.out
    assert result.out.index("cost ") < result.out.index("teacher  epoch")
    folder = Path("compressed/pictures")
    assert {path.name for path in folder.iterdir() if not path.name.startswith(".")} == {
        *("compress.toml", "recipe.json", "report.html", "summary.json"),
        *("teacher", "paraphraser", "student-factor-seed0", "student-alone-seed0"),
    }
    text = (folder / "compress.toml").read_text()
    assert f"# factor-transfer compress {pictures} --minutes 88 --teacher resnet8 --student resnet8\n" in text
    recipe = read_recipe(folder / "compress.toml")
    assert recipe.name == "pictures"
    assert (recipe.method, recipe.student.epochs, recipe.data.size) == ("factor", 5, 9)  # type: ignore[attr-defined]
    summary = (folder / "summary.json").read_bytes()
    again = compressed(run, pictures, *SMALL)
    assert "compress.toml exists for the same pictures and options" in again.out
    assert again.out.count("up to date") == 4
    assert "epoch  1/5" not in again.out
    assert (folder / "summary.json").read_bytes() == summary
    # The recipe is one like any other.
    ran = run("run", folder / "compress.toml", "--work-dir", folder, "--baseline")
    assert ran.out.count("up to date") == 4
    assert run("predict", folder, pictures / "dark" / "0.png").code == 0
    # What a person changes is kept.
    (folder / "compress.toml").write_text(text.replace("beta = 100", "beta = 300"))
    refused(run("compress", pictures, *SMALL), "was changed since compress wrote it", "factor-transfer run .*--out")
    assert "beta = 300" in (folder / "compress.toml").read_text()


def test_students_are_trained_for_less_if_the_teacher_takes_too_long(
    pictures: Path, run: Run, quick: None, no_exporter: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("factor_transfer.commands.compress.schedule._MOST", (6, 6))
    monkeypatch.setattr("factor_transfer.commands.compress.plan._FEW", 6)
    fast = Costs(1e-6, 1e-6, 1e-6, 1e-6, once_s=0.01, memory_mb=500, disk_mb=1)  # what nothing can be in truth
    monkeypatch.setattr("factor_transfer.commands.compress.measure.measure", lambda *_: Measured(fast, 9, 8))
    result = compressed(run, pictures, *SMALL[:-1], "1")
    assert "the students are trained for 5 epochs instead of 6" in result.out
    assert "runs again" not in result.out  # the images stay the same for all stages
    recipe = read_recipe("compressed/pictures/compress.toml")
    assert (recipe.teacher.epochs, recipe.student.epochs) == (6, 5)
    assert result.out.count("epoch 5/5") == 2
    assert compressed(run, pictures, *SMALL[:-1], "1").out.count("up to date") == 4


def test_students_are_trained_for_longer_if_the_teacher_takes_little_time(
    pictures: Path, run: Run, quick: None, no_exporter: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("factor_transfer.commands.compress.schedule._WORTH", 1.25)
    monkeypatch.setattr("factor_transfer.commands.compress.schedule._MOST", (10, 10))
    result = compressed(run, pictures, *SMALL)
    assert "minutes are left after the teacher, more than planned; to use them, the students are trained" in result.out
    assert "for 10 epochs instead of 5" in Path("compressed/pictures/compress.toml").read_text()
    recipe = read_recipe("compressed/pictures/compress.toml")
    assert (recipe.teacher.epochs, recipe.student.epochs) == (10, 10)
    assert "runs again" not in result.out
    assert compressed(run, pictures, *SMALL).out.count("up to date") == 4


def test_other_options_make_another_recipe_and_other_pictures_need_another_folder(
    pictures: Path, run: Run, quick: None, no_exporter: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise InputError("stopped")

    monkeypatch.setattr("factor_transfer.commands.compress.flow.run", stop)
    refused(run("compress", pictures, *SMALL, "--out", "out"), "stopped")
    refused(run("compress", pictures, *SMALL[:-1], "500", "--out", "out"), "stopped")
    assert "--minutes 500 " in Path("out/compress.toml").read_text().partition("\n")[0]
    pictures.rename(pictures.with_name("others"))
    refused(run("compress", "others", *SMALL, "--out", "out"), "out has the results of other pictures, .*pictures")


def test_init_writes_the_recipe_alone(pictures: Path, run: Run, quick: None, no_exporter: None) -> None:
    result = run("init", pictures, *SMALL)
    assert result.code == 0, result.err
    assert "factor-transfer run pictures.toml --baseline" in result.out
    assert sorted(path.name for path in Path().iterdir()) == ["pictures", "pictures.toml"]
    text = Path("pictures.toml").read_text()
    assert read_recipe("pictures.toml").teacher.epochs == 10
    assert run("init", pictures, *SMALL).code == 0  # nobody has changed it
    assert Path("pictures.toml").read_text() == text
    Path("pictures.toml").write_text(f"# mine\n{text}")
    refused(run("init", pictures, *SMALL), "pictures.toml exists, and was changed")
    assert run("init", pictures, *SMALL, "--out", "other.toml").code == 0


def test_the_cost_of_an_epoch_is_measured(pictures: Path, run: Run, no_exporter: None) -> None:
    result = run("init", pictures, "--teacher", "resnet8", "--student", "resnet8", "--minutes", "1000")
    assert result.code == 0, result.err
    assert read_recipe("pictures.toml").student.epochs == 200
    measured = measure(Path("pictures.toml").read_text(), look(pictures), None)
    assert measured.teacher == measured.student == 77_522
    costs = measured.costs
    assert min(costs.teacher_s, costs.paraphraser_s, costs.student_s, costs.alone_s, costs.once_s, costs.disk_mb) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere does not exist"),
        (["pictures/notes.txt"], "is a file, not a folder"),
        (["pictures/dark"], "has no folders; expected one folder per class"),
        (["single"], "there is only one class, 'dark'"),
        (["empty"], "has no folders"),
        (["pictures", "--minutes", "0"], "--minutes must be more than 0, got 0"),
        (["pictures", "--minutes", "9"], r"--minutes 9 is too short for 29 training images .* Give --minutes 85\.2"),
        (["pictures", "--student", "resnet9"], "unknown student 'resnet9'; did you mean"),
        (["pictures", "--teacher", "resnet9"], "unknown teacher 'resnet9'"),
        (["pictures", "--teacher", "pictures/notes.txt"], "is a file, which does not name its network; .* resnet18="),
        (["pictures", "--teacher", "resnet20=none.pt"], "no file of weights none.pt"),
        (["pictures", "--to", "tflite"], "unknown format 'tflite'"),
        (["pictures", "--precision", "int4"], "unknown precision 'int4'"),
        (["pictures", "--to", "onnx"], "onnx is not installed; .* -m pip install"),
        (["pictures", "--precision", "int8"], "no exporter is installed"),
        (["pictures", "--out", "pictures"], "pictures is not empty and was not made by compress"),
        (["pictures", "--out", "pictures/notes.txt"], "is a file, not a folder"),
    ],
)
def test_bad_input_is_refused_before_training(
    pictures: Path, run: Run, quick: None, no_exporter: None, arguments: list[str], message: str
) -> None:
    Path("empty").mkdir()
    Path("single").mkdir()
    Path("single", "dark").symlink_to(pictures / "dark")
    before = sorted(Path().rglob("*"))
    refused(run("compress", *arguments), message)
    assert sorted(Path().rglob("*")) == before


def test_a_folder_whose_name_is_no_text_is_refused(pictures: Path, run: Run) -> None:
    folder = os.fsdecode(b"pict\xfcres")
    shutil.copytree(pictures, folder)
    refused(run("init", folder), r"pict.*res: its name is not UTF-8")
    refused(run("compress", pictures, "--unlabelled", folder), r"pict.*res: its name is not UTF-8")


def test_too_few_pictures_for_8_bits_are_refused_before_training(pictures: Path, run: Run) -> None:
    pytest.importorskip("onnxruntime")
    refused(
        run("compress", pictures, *SMALL, "--to", "onnx", "--precision", "int8"),
        "29 calibration images are too few",
    )
    assert not Path("compressed").exists()


def test_the_exported_file_is_in_table_and_report_and_is_made_once(
    pictures: Path, run: Run, quick: None, no_measurement: None
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    result = compressed(run, pictures, *SMALL, "--to", "onnx", "--out", "out")
    file = "out/student-factor-seed0/export/onnx-float32/student.onnx"
    assert re.search(r"\| student\.onnx, float32 +\| +\d+\.\d\d \| +0\.\d\d \|", result.out), result.out
    assert f"factor-transfer predict {file} PICTURE" in result.out
    assert "onnx-float32" in Path("out/report.html").read_text()
    record = Path(file).with_name("export.json")
    written = record.stat().st_mtime_ns
    again = compressed(run, pictures, *SMALL, "--to", "onnx", "--out", "out")
    assert "student.onnx  up to date" in again.out
    assert record.stat().st_mtime_ns == written


def test_a_teacher_with_weights_is_used_without_training(finished: Path, pictures: Path, run: Run, quick: None) -> None:
    weights = finished / "teacher" / "weights.safetensors"
    result = run("init", pictures, "--teacher", f"resnet8={weights}", "--minutes", "900")
    assert result.code == 0, result.err
    recipe = read_recipe("pictures.toml")
    assert recipe.teacher.weights == str(weights)
    assert recipe.teacher.epochs is None
    assert recipe.teacher.args.model_dump() == {"width": 8}
    assert recipe.data.size == 8  # type: ignore[attr-defined]  # what that teacher was trained on


def test_pictures_without_labels_join_the_training(pictures: Path, run: Run, quick: None, no_exporter: None) -> None:
    Path("camera", "day").mkdir(parents=True)
    for index in range(40):
        pixels = np.random.default_rng(100 + index).integers(0, 256, (9, 8, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(f"camera/day/{index}.png")
    more: list[str | Path] = [pictures, "--unlabelled", "camera", *SMALL[:-1], "140"]
    result = compressed(run, *more)
    for words in (
        "40 unlabelled images (",
        "Transfer (beta = 100), KD (alpha = 0.5, temperature = 2), which also use the 40 pictures without labels",
        "student-factor+kd-seed0  each batch has ",
    ):
        assert words in result.out, result.out
    text = Path("compressed/pictures/compress.toml").read_text()
    assert f"--unlabelled {Path('camera').resolve()} --minutes 140" in text.partition("\n")[0]
    assert compressed(run, *more).out.count("up to date") == 4
    refused(run("compress", pictures, "--unlabelled", "nowhere", *SMALL, "--out", "x"), "nowhere does not exist")


def test_an_epoch_with_pictures_without_labels_is_longer_than_one_of_the_teacher() -> None:
    planned = plan_epochs(COSTS, 1e6, 0, 1000, 36, fine_tuned=False, unlabelled=49_000)
    assert planned == Epochs(200, 20, 60)  # 60 epochs of 50,000 images, and 200 of 1000
    assert plan_epochs(COSTS, 800, 0, 1000, 36, fine_tuned=False, unlabelled=49_000) == Epochs(200, 3, 7)


def folder_of(side: int, training: int = 1000) -> Pictures:
    return Pictures(Path("/pictures"), 10, training, 200, (side // 2, side, 2 * side), 3, 0.001)


def test_images_are_no_larger_than_the_pictures_and_the_device_allows() -> None:
    assert sizes(folder_of(300), "cpu", None) == [64, 32]
    assert sizes(folder_of(300), "cuda", None) == [224, 128, 64, 32]
    assert sizes(folder_of(50), "cpu", None) == [48, 32]
    assert sizes(folder_of(28), "cpu", None) == [28]
    given = ChosenNetwork("resnet8", weights="file", trained=False, size=40)
    assert sizes(folder_of(300), "cpu", given) == [40]


def test_the_network_that_is_not_named_suits_the_other() -> None:
    def chosen(size: int, device: str, teacher: str | None = None, student: str | None = None) -> tuple[str, str]:
        named = [None if name is None else ChosenNetwork(name) for name in (teacher, student)]
        found = choose_networks(size, device, *named)
        return found[0].model, found[1].model

    assert chosen(32, "cpu") == ("resnet20", "resnet8")
    assert chosen(32, "cuda") == ("resnet56", "resnet20")
    assert chosen(224, "cuda") == ("resnet34", "resnet18")
    assert chosen(32, "cpu", student="vgg8") == ("vgg13", "vgg8")
    assert chosen(32, "cpu", teacher="resnet56") == ("resnet56", "resnet20")
    assert chosen(32, "cpu", student="mobilenet_v2") == ("resnet20", "mobilenet_v2")
    teacher, student = choose_networks(32, "cuda", ChosenNetwork("resnet34", {"width": 16}), None)
    assert teacher.args == {"stem": "cifar", "width": 16}
    assert student == ChosenNetwork("resnet18", {"stem": "cifar", "width": 16})
    assert choose_networks(128, "cuda", None, None)[1].args == {"stem": "imagenet"}


def test_fewer_images_are_trained_with_a_stronger_weight_decay() -> None:
    network = ChosenNetwork("resnet8")
    assert network.optimization(1080, 36) == ("sgd", 0.11, 0.003)
    assert network.optimization(50_000, 128) == ("sgd", 0.2, 0.0005)
    assert ChosenNetwork("timm:resnet18", weights="pretrained").optimization(1080, 32) == ("adamw", 0.0003, 0.01)


def test_kd_is_added_for_many_images() -> None:
    assert choose_transfer(1080) == {"factor": {"beta": 100}}
    assert list(choose_transfer(50_000)) == list(choose_transfer(300, 400)) == ["factor", "kd"]
    assert list(choose_transfer(300, 300)) == ["factor"]
    assert choose_transfer(300, 5_000)["factor"] == choose_transfer(5_300)["factor"]


def test_the_last_batch_is_as_full_as_can_be() -> None:
    assert choose_batch_size(1080, "cpu") == 36
    for images in (2, 3, 10, 29, 100, 1001, 5000, 50_000):
        size = choose_batch_size(images, "cpu")
        assert 1 <= size <= max(1, images // 2)
        assert size <= 192


def test_the_time_decides_the_epochs() -> None:
    assert plan_epochs(COSTS, 1000, 0, 1000, 36, fine_tuned=False) == Epochs(144, 24, 72)
    assert plan_epochs(COSTS, 1000, 30_000, 1000, 36, fine_tuned=False).student < 50
    assert plan_epochs(COSTS, 1e6, 0, 1000, 36, fine_tuned=False) == Epochs(200, 30, 200)
    assert plan_epochs(COSTS, 1e6, 0, 50_000, 128, fine_tuned=False) == Epochs(60, 20, 60)
    assert plan_epochs(COSTS, 1e6, 0, 50_000, 128, fine_tuned=True).teacher == 20
    with pytest.raises(InputError, match=r"for 6 epochs, .* about 98\.2 minutes, .* 200 .* Give --minutes 98\.2"):
        plan_epochs(COSTS, 50, 0, 1000, 36, fine_tuned=False)


def test_the_students_are_trained_for_the_time_that_is_left() -> None:
    planned = Epochs(40, 13, 40)  # 13 * 100 + 40 * 300 + 800 seconds behind the teacher
    assert replan(planned, COSTS, 1.0, 14_100, least=5, most=200) == planned
    assert replan(planned, COSTS, 1.0, 14_000, least=5, most=200) == Epochs(40, 13, 39)
    assert replan(planned, COSTS, 2.0, 13_500, least=5, most=200) == Epochs(40, 6, 17)
    assert replan(planned, COSTS, 2.0, 0, least=5, most=200) == Epochs(40, 3, 5)
    assert replan(planned, COSTS, 2.0, 0, least=60, most=200) == planned
    # 17 * 100 + 50 * 300 + 800 seconds are 0.9 times 19,445
    assert replan(planned, COSTS, 1.0, 19_445, least=5, most=200) == Epochs(40, 17, 50)
    assert replan(planned, COSTS, 1.0, 19_440, least=5, most=200) == planned  # for 49 epochs, it is not worth it
    assert replan(planned, COSTS, 1.0, 1e6, least=5, most=60) == Epochs(40, 20, 60)
