"""Methods against each other: the statistics by hand, and the command on small real work."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import ttest_rel

from conftest import Run, refused
from factor_transfer.commands.compare import pairwise, parse_methods, summarize
from factor_transfer.data import DATASETS, Split
from factor_transfer.data.sets.synthetic import load_synthetic
from factor_transfer.data.split import Source
from factor_transfer.errors import InputError
from factor_transfer.methods import KD, TERMS
from factor_transfer.report.confidence import Estimate, estimate, holm, p_value


def runs(**top1: Sequence[float | None]) -> list[dict[str, Any]]:
    return [
        {"method": method.replace("_", "+"), "seed": seed, "top1": value, "seconds": 2.0 if method == "kd" else 1.0}
        for method, values in top1.items()
        for seed, value in enumerate(values)
    ]


def test_the_interval_is_students() -> None:
    # t(0.975, 2 degrees of freedom) = 4.3027, from a table.
    mean, interval = estimate([1.0, 2.0, 6.0])
    deviation = math.sqrt(((1 - 3) ** 2 + (2 - 3) ** 2 + (6 - 3) ** 2) / 2)
    assert mean == 3
    assert interval == pytest.approx(4.3027 * deviation / math.sqrt(3), rel=1e-4)
    assert estimate([4.0]) == (4.0, None)


def test_a_difference_is_significant_if_its_interval_excludes_zero() -> None:
    assert Estimate(2.0, 1.9).significant
    assert Estimate(-2.0, 1.9).significant
    assert not Estimate(2.0, 2.1).significant
    assert not Estimate(2.0, None).significant
    assert f"{Estimate(2.0, 1.5):+.2f}" == "+2.00 ± 1.50"
    assert f"{Estimate(-0.25, None):+.2f}" == "-0.25"


def test_differences_are_paired_by_seed() -> None:
    found = summarize(runs(student=[80, 90, 70], kd=[82, 91, 73]), ["student", "kd"], teacher=90)
    assert found["student"]["difference"] is None
    assert found["kd"]["mean"] == pytest.approx(82)
    assert found["kd"]["difference"] == pytest.approx(2)
    # 2, 1 and 3: the spread of the seeds themselves, 10 points, is not in it.
    assert found["kd"]["difference_interval"] == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)
    assert not found["kd"]["significant"]
    assert found["kd"]["gap_closed"] == pytest.approx(0.2)
    assert found["kd"]["cost"] == pytest.approx(2)


def test_a_failed_run_is_counted_and_its_seed_left_out_of_the_pairs() -> None:
    found = summarize(runs(student=[80, 90, 70], kd=[82, None, 73]), ["student", "kd"], teacher=90)
    assert found["kd"]["failed"] == 1
    assert found["kd"]["difference"] == pytest.approx(2.5)
    assert found["kd"]["gap_closed"] == pytest.approx(2.5 / 15)
    nothing = summarize(runs(student=[80, 90], kd=[None, None]), ["student", "kd"], teacher=70)["kd"]
    assert nothing == {**dict.fromkeys(nothing), "failed": 2}


def test_a_teacher_below_the_student_leaves_no_gap_to_close() -> None:
    assert summarize(runs(student=[80], kd=[82]), ["student", "kd"], teacher=79)["kd"]["gap_closed"] is None


def test_holms_correction_by_hand() -> None:
    # The smallest of three counts three times, the next twice, the last once; none becomes less than one before it.
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([None, 0.5, 0.6]) == [None, 1.0, 1.0]
    assert holm([]) == []


def test_the_p_value_is_that_of_scipys_paired_test() -> None:
    one, other = [80.0, 81.5, 79.0, 80.2], [79.1, 80.0, 79.3, 79.9]
    differences = [a - b for a, b in zip(one, other, strict=True)]
    assert p_value(differences) == pytest.approx(ttest_rel(one, other).pvalue)
    assert p_value([1.0]) is None
    assert p_value([1.0, 1.0]) is None
    # Equal differences of rounded percentages, such as one of 30 images in each seed, are no evidence.
    rounded = [round(100 * (29 - 28) / 30, 4), round(100 * 29 / 30, 4) - round(100 * 28 / 30, 4), 3.3334]
    assert p_value(rounded) is None
    assert not estimate(rounded).significant


def test_significance_is_corrected_for_all_that_is_tested() -> None:
    alone, kd, at = [80.0, 81.0, 79.0, 80.0], [81.0, 82.2, 79.9, 80.8], [80.4, 81.5, 79.1, 80.9]
    found = summarize(runs(student=alone, kd=kd, at=at), ["student", "kd", "at"], 90)
    assert [found[name]["p_holm"] for name in ("kd", "at")] == pytest.approx(
        [2 * ttest_rel(kd, alone).pvalue, ttest_rel(at, alone).pvalue]
    )
    assert found["kd"]["significant"]
    assert found["at"]["p"] < 0.1
    assert not found["at"]["significant"]


def test_any_two_methods_are_compared() -> None:
    some = runs(student=[80, 90, 70], kd=[82, 91, 73], at=[81, 90.5, None])
    found = summarize(some, ["student", "kd", "at"], teacher=90, against="kd")
    assert found["kd"]["difference"] is None
    assert found["student"]["difference"] == pytest.approx(-2)
    assert found["at"]["difference"] == pytest.approx(-0.75)
    assert found["at"]["gap_closed"] == pytest.approx(0.75 / 5)  # the gap is the student alone's, whatever is compared
    matrix = pairwise(some, ["student", "kd", "at"])
    assert matrix["kd"]["student"]["difference"] == -matrix["student"]["kd"]["difference"] == pytest.approx(2)
    assert matrix["kd"]["student"]["p"] == matrix["student"]["kd"]["p"] == pytest.approx(p_value([2, 1, 3]))
    p_values = [matrix[a][b]["p"] for a, b in (("student", "kd"), ("student", "at"), ("kd", "at"))]
    assert [matrix[a][b]["p_holm"] for a, b in (("student", "kd"), ("student", "at"), ("kd", "at"))] == holm(p_values)
    assert set(matrix["at"]) == {"student", "kd"}


def test_methods_are_named_in_one_way_and_the_student_alone_is_always_there() -> None:
    assert parse_methods("kd+factor, at") == ["student", "factor+kd", "at"]
    assert parse_methods("kd,student") == ["student", "kd"]
    for methods, message in (
        ("kd,factor,kd", "names 'kd' twice"),
        ("factor+kd,kd+factor", r"names 'factor\+kd' twice"),
        ("kd+kd", "names 'kd' twice"),
        ("fitnet", "did you mean 'fitnets'"),
        ("student+kd", "combines 'student' with other terms"),
    ):
        with pytest.raises(InputError, match=message):
            parse_methods(methods)


METHODS = "student,kd,fitnets,at,factor,factor+kd,at+kd"
LATER = ",".join(name for name in TERMS if name not in METHODS.split(","))
ALL = f"{METHODS},{LATER}"


@pytest.fixture
def quick(tiny: Path) -> Path:
    """The tiny recipe, with an epoch or two a stage."""
    text = tiny.read_text().replace("epochs = 3", "epochs = 1").replace("[student]", "[student]\nkeep = 'best'")
    tiny.write_text(text + "\n[transfer.crd]\nnegatives = 20\n[transfer.kd]\nalpha = 0.5\n")
    return tiny


def test_compare_writes_figures_and_a_picture_and_reuses_its_results(quick: Path, run: Run) -> None:
    result = run("compare", quick, "--methods", ALL, "--seeds", "1")
    assert result.code == 0, result.err
    found = json.loads(Path("runs/tiny/comparison.json").read_text())
    names = ALL.split(",")
    assert [(entry["seed"], entry["method"]) for entry in found["runs"]] == [(0, name) for name in names]
    assert list(found["methods"]) == names
    for entry in found["runs"]:
        top1 = {"top1", "top1_last", "top1_kept", "top1_best"}
        also = {"top5", "validation_top1", "loss", "seconds", "settings", "weights_sha256"}
        assert set(entry) == {"method", "seed", *top1, *also}
        assert list(entry["settings"]) == [name for name in entry["method"].split("+") if name != "student"]
        assert len({entry[name] for name in top1}) == 1  # one epoch: the last is the best
    assert found["runs"][5]["settings"]["kd"]["alpha"] == 0.5
    assert set(found["teacher"]) == {"top1", "top5", "loss"}
    assert Path("runs/tiny/comparison.png").read_bytes().startswith(b"\x89PNG")
    for words in ("Factor Transfer + KD", "student alone", "One seed gives no interval"):
        assert words in result.out
    assert found["against"] == "student"
    assert set(found["pairwise"]) == set(names)
    other = run("compare", quick, "--methods", "kd,factor", "--seeds", "2", "--against", "kd")
    assert other.code == 0, other.err
    for words in ("difference from KD", "95 % interval", "Not significant"):
        assert words in other.out
    runs = json.loads(Path("runs/tiny/comparison.json").read_text())["runs"]
    assert [(entry["seed"], entry["method"]) for entry in runs] == [
        (seed, name) for seed in (0, 1) for name in ("student", "kd", "factor")
    ]
    refused(
        run("compare", quick, "--methods", "kd", "--against", "at"),
        "--against names 'at', which is not among the compared methods",
    )
    refused(run("compare", quick, "--methods", "kd", "--against", "kd,factor"), "--against names 'kd,factor'")
    again = run("compare", quick, "--methods", "student,kd", "--seeds", "2")
    assert again.out.count("up to date") == 2 + 2 * 2 - 1  # teacher (no paraphraser is asked for) and four students
    assert not re.search(r"epoch +1/", again.out)


def test_methods_of_a_seed_start_from_the_same_weights_and_see_the_same_batches(
    quick: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    forward = KD.forward

    def look(self: KD, student: Any, target: Any, batch: Any) -> Any:
        if self.training:
            seen.append(
                (batch.images.float().sum() + batch.labels.float().dot(student.logits.argmax(1).float())).item()
            )
        return forward(self, student, target, batch)

    monkeypatch.setattr(KD, "forward", look)
    assert run("compare", quick, "--methods", "kd", "--seeds", "1").code == 0
    first = seen.copy()
    seen.clear()
    assert run("compare", quick, "--methods", "kd,factor+kd", "--seeds", "1").code == 0
    assert len(first) == len(seen) == 3  # kd is up to date
    assert seen[0] == first[0]  # the same images, and the same answers before the first step


def test_a_failed_run_is_marked_in_its_row(quick: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    quick.write_text(quick.read_text() + "[transfer.at]\nweight = 1e38\n")
    result = run("compare", quick, "--methods", "at,kd", "--seeds", "1")
    refused(result, "every seed failed for these methods:\n  at: .*not finite")
    found = json.loads(Path("runs/tiny/comparison.json").read_text())
    failed, good = (next(entry for entry in found["runs"] if entry["method"] == name) for name in ("at", "kd"))
    assert failed["top1"] is None
    assert "not finite" in failed["error"]
    assert good["top1"] is not None
    assert found["methods"]["at"]["failed"] == 1
    assert "Failed: at, seed 0: " in result.out


def test_methods_that_cannot_be_compared_are_refused_before_training(quick: Path, run: Run) -> None:
    refused(run("compare", quick, "--methods", "kd,kd"), "names 'kd' twice")
    refused(run("compare", quick, "--methods", "kd,factr"), "unknown method 'factr'; did you mean 'factor'")
    refused(run("compare", quick, "--methods", "KD,Factor"), "unknown method 'KD'; did you mean 'kd'")
    refused(run("compare", quick, "--seeds", "0"), "--seeds must be at least 1")
    refused(run("compare", quick, "transfer.fitnets.teacher_taps=['layr1']", "--methods", "fitnets"), "layr1.*'layer1'")
    text = quick.read_text()
    start, end = text.index("[paraphraser]"), text.index("[student]")
    quick.write_text(text[:start] + text[end:].replace("[transfer.factor]\nbeta = 50", ""))
    refused(run("compare", quick, "--methods", "kd,factor"), "factor needs a paraphraser.*paraphraser")
    assert not Path("runs").exists()


def test_images_are_opened_once_for_all_methods_and_seeds(
    quick: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def counted(**options: Any) -> Source:
        source = load_synthetic(**options)
        opened.append("training")

        def test() -> Split:
            opened.append("test")
            return source.test()

        return replace(source, test=test)

    monkeypatch.setitem(DATASETS, "synthetic", wraps(load_synthetic)(counted))
    done = run("compare", quick, "--methods", "student,kd,at", "--seeds", "2")
    assert done.code == 0, done.err
    assert opened == ["training", "test"]
