"""The factor cache, through the command line: what is kept, what is asked, and what a kill leaves."""

import hashlib
import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from conftest import Run, refused
from factor_transfer.config.read import read_recipe
from factor_transfer.data import Augment, Batches, Split, Views
from factor_transfer.errors import InputError
from factor_transfer.methods import Teacher
from factor_transfer.pipeline.artefact import find
from factor_transfer.pipeline.experiment import Experiment
from factor_transfer.pipeline.stages import cache
from factor_transfer.pipeline.stages.cache_files import Store
from factor_transfer.pipeline.stages.paraphraser import load_paraphrasers, make_paraphraser
from factor_transfer.pipeline.stages.student import fill_cache, make_students

VIEWS = ["cache.views=2", "student.epochs=2", "paraphraser.epochs=2"]
IMAGES, VALIDATION = 72, 24  # of the tiny recipe


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory, finished: Path) -> Path:
    """A work dir with a teacher alone. Not to be changed: copy it."""
    folder = tmp_path_factory.mktemp("taught")
    shutil.copy(finished / "recipe.json", folder)
    shutil.copytree(finished / "teacher", folder / "teacher")
    return folder


@pytest.fixture
def work(taught: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(taught, tmp_path / "work"))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each pass of a teacher was of."""
    counts: list[int] = []
    forward = Teacher.forward

    def counted(self: Teacher, images: Tensor) -> Any:
        counts.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(Teacher, "forward", counted)
    return counts


def test_each_image_is_seen_in_all_its_views_in_turn() -> None:
    images = torch.zeros(40, 3, 8, 8, dtype=torch.uint8)
    split = Split(images, torch.zeros(40, dtype=torch.long))
    augment = Augment(crop_padding=2, flip=True)
    batches = Batches(split, 16, 5, augment, torch.device("cpu"), Views(augment, 40, 3, 0))
    seen = []
    for epoch in range(7):
        which = torch.full((40,), -1)
        for batch in batches.epoch(epoch):
            assert batch.views is not None
            which[batch.indices] = batch.views
        seen.append(which)
    for first in range(5):
        turn = torch.stack(seen[first : first + 3]).sort(0).values
        assert (turn == torch.arange(3)[:, None]).all()  # none again before all were there
    assert seen[0].bincount(minlength=3).min() > 5  # and not all images in the same one


def cached(work: Path) -> dict[str, bytes]:
    return {str(path.relative_to(work)): path.read_bytes() for path in sorted(work.glob("cache/*/*.bin"))}


def test_the_teacher_is_asked_once_for_each_view_in_the_whole_pipeline(
    work: Path, tiny: Path, run: Run, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    verified: list[str] = []
    monkeypatch.setattr(Store, "verify", lambda store: verified.append(store.folder.name))
    result = run("run", tiny, *VIEWS, "--work-dir", work, "--baseline")
    assert result.code == 0, result.err
    # Every image in each of two views, and the paraphraser's validation; the rest are looks at a few.
    assert sum(count for count in asked if count > 4) == 2 * IMAGES + 2 * VALIDATION
    assert "cache  teacher: 2 views of 72 images, 0.00 GB" in result.out
    assert {path.parent.name for path in work.glob("cache/*/*.bin")} == {"teacher", "factor"}
    record = json.loads((work / "cache" / "factor" / "stage.json").read_text())
    assert record["finished"]
    assert record["inputs"]["cache"] == {"views": 2, "seed": 0}

    # Other seeds and methods share it; those that want other features ask once more, all together.
    asked.clear()
    verified.clear()
    result = run(
        "compare", tiny, *VIEWS, "--methods", "factor,factor+kd,at,fitnets", "--seeds", "2", "--work-dir", work
    )
    assert result.code == 0, result.err
    assert "student-factor-seed0  up to date" in result.out
    assert sorted(verified) == ["at", "factor", "fitnets", "kd", "teacher"]  # once, for two seeds
    assert sum(count for count in asked if count > 4) == 2 * IMAGES
    assert {path.parent.name for path in work.glob("cache/*/*.bin")} == {"teacher", "factor", "kd", "at", "fitnets"}


def test_it_is_filled_before_any_student_is_trained(work: Path, tiny: Path, run: Run, asked: list[int]) -> None:
    experiment = Experiment(read_recipe(str(tiny), VIEWS), work, Console(quiet=True), "")
    make_paraphraser(experiment)
    fill_cache([experiment.with_method(method) for method in ("student", "factor", "at+kd")])
    assert {path.parent.name for path in work.glob("cache/*/*.bin")} == {"teacher", "factor", "at", "kd"}
    assert list(work.glob("student-*")) == []
    before = cached(work)
    asked.clear()
    result = run("compare", tiny, *VIEWS, "--methods", "factor,at+kd", "--work-dir", work)
    assert result.code == 0, result.err
    assert max(asked) <= 4  # nothing but looks at a few images
    assert cached(work) == before


def test_factors_and_plain_features_are_cached_separately(work: Path, tiny: Path, run: Run) -> None:
    assert run("run", tiny, *VIEWS, "--work-dir", work).code == 0
    result = run("run", tiny, *VIEWS, "transfer.factor.paraphrase=false", "--work-dir", work)
    assert result.code == 0, result.err
    (again,) = [line for line in result.out.splitlines() if line.startswith("cache  factor is computed again: ")]
    assert "paraphrase: absent then, False now" in again
    assert "paraphraser: " in again  # its weights then, absent now


def test_the_cache_has_the_teachers_outputs(work: Path, tiny: Path, run: Run) -> None:
    assert run("run", tiny, *VIEWS, "--work-dir", work).code == 0
    experiment = Experiment(read_recipe(str(tiny), VIEWS), work, Console(quiet=True), "")
    views = Views(experiment.augment, IMAGES, 2)
    taught = find(work / "teacher")
    paraphraser = find(work / "paraphraser")
    assert taught is not None
    assert paraphraser is not None
    (tap,) = experiment.taps[0]
    teacher = Teacher(experiment.load(taught), experiment.normalize(taught))
    teacher.want([tap], logits=True)
    images = experiment.data.train.images[:]
    expected = []
    for view in range(2):
        seen = teacher(experiment.augment.apply(images, views.draws[view]))
        assert seen.logits is not None
        with torch.no_grad():
            factor = load_paraphrasers(experiment, paraphraser)[tap].encode(seen.features[tap])
        expected.append((seen.features[tap], seen.logits, factor))
    stores = {
        "teacher": Store(work / "cache" / "teacher", [value.shape[1:] for value in expected[0][:2]], IMAGES, 2),
        "factor": Store(work / "cache" / "factor", [expected[0][2].shape[1:]], IMAGES, 2),
    }
    for view in range(2):
        wanted = {"teacher": expected[view][:2], "factor": expected[view][2:]}
        for name, store in stores.items():
            store.open()
            kept = store(torch.arange(IMAGES), torch.full((IMAGES,), view))
            for found, value in zip(kept, wanted[name], strict=True):
                assert (found - value).abs().max() < 0.02 * value.abs().max(), (name, view)


def test_a_given_paraphraser_encodes_features_in_bfloat16(work: Path, tiny: Path, run: Run, tmp_path: Path) -> None:
    half = [*VIEWS, "precision=bf16-mixed"]
    assert run("run", tiny, *half, "--work-dir", work).code == 0
    # The features have not been cached by a second stage here: the teacher computes them, in bfloat16.
    weights = {stage: f'weights = "{work / stage / "weights.safetensors"}"' for stage in ("teacher", "paraphraser")}
    given = [f'teacher={{model = "resnet8", args = {{width = 8}}, {weights["teacher"]}}}']
    given += [f"paraphraser={{{weights['paraphraser']}}}"]
    result = run("run", tiny, *half, *given, "--work-dir", tmp_path / "other")
    assert result.code == 0, result.err
    own, other = (
        torch.frombuffer(bytearray(next(folder.glob("cache/factor/*.bin")).read_bytes()), dtype=torch.bfloat16)
        for folder in (work, tmp_path / "other")
    )
    assert torch.allclose(own.float(), other.float(), rtol=0.02, atol=0.01 * float(own.abs().max()))


def test_a_kill_while_it_is_filled_loses_one_view(
    work: Path, tiny: Path, run: Run, asked: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    through = Path(shutil.copytree(work, tmp_path / "through"))
    assert run("run", tiny, *VIEWS, "--work-dir", through).code == 0
    finish = Store.finish

    def dies(self: Store, view: int) -> None:
        if view == 1:
            raise SystemError("killed")
        finish(self, view)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "finish", dies)
        with pytest.raises(SystemError, match="killed"):
            run("run", tiny, *VIEWS, "--work-dir", work, "--debug")
    asked.clear()
    result = run("run", tiny, *VIEWS, "--work-dir", work)
    assert result.code == 0, result.err
    assert sum(count for count in asked if count > 4) == IMAGES + 2 * VALIDATION  # the second view alone
    assert cached(work) == cached(through)
    weights = [folder / "student-factor-seed0" / "weights.safetensors" for folder in (work, through)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.parametrize("threads", [1, 3])
def test_ctrl_c_during_filling_reports_the_finished_views(
    work: Path, tiny: Path, run: Run, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    write, only_once = Store.write, iter([signal.SIGINT])

    def stopped(self: Store, view: int, *rest: Any) -> None:
        if view == 1:
            for number in only_once:
                os.kill(os.getpid(), number)
            time.sleep(0.2)  # a signal that another thread sends takes a moment
        write(self, view, *rest)

    monkeypatch.setattr(cache, "_CPU_BATCH", 20)
    monkeypatch.setattr(Store, "write", stopped)
    result = run("pretrain", tiny, *VIEWS, f"threads={threads}", "--work-dir", work)
    assert result.code == 130
    assert "the cache has 1 of 2 views" in result.err
    assert torch.get_num_threads() == 1


def test_several_threads_write_the_bytes_of_one(
    work: Path, tiny: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The features of the teacher, and what is computed from them; and an error in a thread is that of the command."""
    monkeypatch.setattr(cache, "_CPU_BATCH", 20)
    one = Path(shutil.copytree(work, tmp_path / "one"))
    threads: set[int] = set()
    write = Store.write

    def watched(self: Store, *rest: Any) -> None:
        assert torch.get_num_threads() == 1
        threads.add(threading.get_ident())
        write(self, *rest)

    monkeypatch.setattr(Store, "write", watched)
    for folder, count in ((one, 1), (work, 3)):
        threads.clear()
        experiment = Experiment(read_recipe(str(tiny), VIEWS), folder, Console(quiet=True), "")
        experiment.cache_threads = count
        make_paraphraser(experiment)
        fill_cache([experiment.with_method(method) for method in ("factor", "at+kd")])
        assert (threading.get_ident() in threads) == (count == 1)
    assert cached(one) == cached(work)

    monkeypatch.setattr(Store, "write", lambda *_: (_ for _ in ()).throw(InputError("no more")))
    refused(run("run", tiny, *VIEWS, "cache.seed=1", "threads=3", "--work-dir", work), "no more")


def test_another_paraphraser_or_damage_refills_it(work: Path, tiny: Path, run: Run) -> None:
    assert run("run", tiny, *VIEWS, "--work-dir", work).code == 0
    before = cached(work)
    result = run("run", tiny, *VIEWS, "paraphraser.seed=3", "--work-dir", work)
    assert "cache  factor is computed again: paraphraser: " in result.out
    assert "cache  teacher is computed again" not in result.out
    changed = {name for name, content in cached(work).items() if content != before[name]}
    assert changed == {"cache/factor/0.bin"}

    path = work / "cache" / "factor" / "0.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    result = run("train", tiny, *VIEWS, "paraphraser.seed=3", "student.seed=5", "--work-dir", work)
    assert f"cache  factor is computed again: {path} is damaged in view 2\n" in result.out
    assert path.read_bytes() == whole
    path.write_bytes(whole[::-1])  # whole, but of another teacher, or of a machine that rounds otherwise
    halves = whole[::-1][: len(whole) // 2], whole[::-1][len(whole) // 2 :]
    sums = [[hashlib.sha256(half).hexdigest()] for half in halves]
    path.with_name("progress.json").write_text(json.dumps({"sha256": sums}))
    result = run("train", tiny, *VIEWS, "paraphraser.seed=3", "student.seed=7", "--work-dir", work)
    assert "cache  factor is computed again: the teacher's outputs are different now" in result.out
    path.with_name("progress.json").write_text("[]")
    result = run("train", tiny, *VIEWS, "paraphraser.seed=3", "student.seed=8", "--work-dir", work)
    assert "cache  factor is computed again: " in result.out
    assert "progress.json is damaged" in result.out
    path.write_bytes(b"")
    result = run("train", tiny, *VIEWS, "paraphraser.seed=3", "student.seed=6", "--work-dir", work)
    assert "cache  factor is computed again: it is incomplete" in result.out


def test_a_full_disk_gives_one_message_and_loses_nothing(
    work: Path, tiny: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(work)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=1000))
        result = run("pretrain", tiny, *VIEWS, "--work-dir", work)
    refused(result, "the cache .* needs 0.00 GB, the disk has 0.00 GB free", "cache.views=2, or none")
    assert not cached(work)
    assert run("pretrain", tiny, *VIEWS, "--work-dir", work).code == 0


def test_views_are_inputs_of_a_stage(work: Path, tiny: Path, run: Run) -> None:
    assert run("run", tiny, *VIEWS, "--work-dir", work).code == 0
    result = run("train", tiny, *VIEWS[1:], "--work-dir", work)
    refused(result, "cache.views: 2 then, absent now", "factor-transfer pretrain")


def test_lockstep_from_the_cache_equals_separate_trainings(work: Path, tiny: Path, run: Run) -> None:
    assert run("pretrain", tiny, *VIEWS, "--work-dir", work).code == 0
    experiment = Experiment(read_recipe(str(tiny), VIEWS), work, Console(quiet=True), "")
    states = []
    for groups in ([["student", "factor", "kd"]], [["kd"], ["factor"], ["student"]]):
        for group in groups:
            for done in make_students([experiment.with_method(method) for method in group], fresh=True):
                assert not isinstance(done, Exception)
                states.append((done.folder.name, done.record["weights_sha256"]))
    assert sorted(states[:3]) == sorted(states[3:])
