"""``report.html``: its figures are those of the records, it needs no network, and it fails no training."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from matplotlib.figure import Figure

from conftest import Run, refused
from factor_transfer.pipeline.experiment import Experiment
from factor_transfer.report.html.answers import Answers, missed
from factor_transfer.report.html.svg import chart
from factor_transfer.report.html.tables import comparison_sentence
from factor_transfer.report.metrics import measure

HOSTILE = ["<img src=x onerror=alert(1)>", "$\\frac{$", 'a & "b" --> c', "</script><script>alert(1)</script>"]


class Page(HTMLParser):
    """What a page has: its sections, the cells of its tables, its elements and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.html = path.read_text()
        self.sections: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}  # of each section, all rows
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(self.html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "section":
            self.sections.append(str(dict(attrs)["id"]))
        elif tag == "tr":
            self.tables.setdefault(self.sections[-1], []).append([])
        elif tag in ("th", "td"):
            self.tables[self.sections[-1]][-1].append("")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.tables and self.sections[-1] in self.tables and self.elements[-1][0] in ("th", "td"):
            self.tables[self.sections[-1]][-1][-1] += data.rstrip("\n")  # what is between the cells

    def charts(self) -> list[str]:
        """The descriptions of its charts."""
        return [str(attributes["aria-label"]) for tag, attributes in self.elements if tag == "svg"]

    def images(self) -> list[str]:
        """The sources of its images."""
        return [str(attributes["src"]) for tag, attributes in self.elements if tag == "img"]


def test_the_sentence_of_a_comparison_counts_the_trainings_that_succeeded() -> None:
    figures = {
        "mean": 80.0,
        "interval": None,
        "difference": 5.0,
        "difference_interval": None,
        "p": None,
        "p_holm": None,
    }
    best = Mock(**figures)
    comparison = Mock(best="kd", methods={"kd": best}, seeds=[0, 1, 2], teacher=None, against="student")
    comparison.count.return_value = 1
    assert "A student trained by KD reaches 80.0\u00a0% top-1 over one seed" in comparison_sentence(comparison)
    comparison.count.assert_called_once_with("kd")


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_figures_are_those_of_the_summary(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    page = Page(finished / "report.html")
    _, *rows = page.tables["networks"]
    assert [row[0] for row in rows] == ["teacher", "student alone", "student, Factor Transfer"]
    for row, role in zip(rows, ("teacher", "baseline", "student"), strict=True):
        own = summary[role]
        assert row[1:3] == [f"{own['top1']:.2f}", f"{own['top5']:.2f}"]
        assert row[5].startswith(f"{own['parameters']:,}")
        assert row[6].startswith(f"{own['macs']:,}")
    difference = summary["student"]["top1"] - summary["baseline"]["top1"]
    assert rows[2][3] == f"{difference:+.2f}".replace("-", "−")
    assert f"reaches {summary['student']['top1']:.1f}\u00a0% top-1" in page.text


def test_all_results_of_a_run_are_shown(finished: Path) -> None:
    page = Page(finished / "report.html")
    wanted = ["networks", "curves", "classes", "paraphraser", "provenance"]
    assert [section for section in page.sections if section != "missed"] == wanted
    shown = " ".join(page.charts())
    for words in ("Accuracy", "Parts of the loss", "Paraphraser", "each class", "Reliability", "Confusion matrix"):
        assert words in shown
    assert "[transfer.factor]" in page.text or "[transfer]" in page.text
    assert json.loads((finished / "teacher" / "stage.json").read_text())["machine"] in page.text


def test_the_students_factor_is_beside_the_teachers(finished: Path, work: Path, run: Run) -> None:
    shown = Page(finished / "report.html")
    assert "student's factor" in shown.text
    # Without the translators, as in the zoo, its row is left out.
    (work / "student-factor-seed0" / "connectors.safetensors").unlink()
    assert run("report", work).code == 0
    page = Page(work / "report.html")
    assert "paraphraser" in page.sections
    assert "student's factor" not in page.text
    assert len(page.images()) < len(shown.images())


def test_the_page_loads_nothing_from_the_network(finished: Path) -> None:
    page = Page(finished / "report.html")
    assert page.images()
    for _, attributes in page.elements:
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href", "data", "style", "action"):
                assert "//" not in str(value) or str(value).startswith("data:image/png;base64,"), value
    assert not re.search(r"https?:|@import|url\((?!#)", page.html)
    assert not {"script", "link", "iframe", "object", "metadata"} & {tag for tag, _ in page.elements}


@pytest.mark.charts
def test_the_same_work_dir_has_the_same_report(finished: Path, work: Path, run: Run) -> None:
    expected = (finished / "report.html").read_bytes()
    (work / "report.html").unlink()
    result = run("report", work)
    assert (result.code, result.out.splitlines()[-1]) == (0, str(work / "report.html"))
    assert (work / "report.html").read_bytes() == expected


@pytest.mark.charts
def test_names_from_outside_are_escaped(work: Path, run: Run) -> None:
    record = json.loads((work / "student-factor-seed0" / "stage.json").read_text())
    names = [*HOSTILE, *record["classes"]][: len(record["classes"])]
    edit(work / "student-factor-seed0" / "stage.json", classes=names)
    assert run("report", work).code == 0
    page = Page(work / "report.html")
    assert not {"script"} & {tag for tag, _ in page.elements}
    assert all(source.startswith("data:image/png") for source in page.images())
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert "$\\frac{$" in page.text  # whole, and not taken for mathematics


def test_missing_results_are_left_out(tiny: Path, run: Run) -> None:
    assert run("run", tiny, "transfer.method=student", "--work-dir", "alone").code == 0
    page = Page(Path("alone/report.html"))
    assert not {"paraphraser", "methods", "exports"} & set(page.sections)
    headings, *rows = page.tables["networks"]
    assert "against the student alone" not in headings
    assert [row[0] for row in rows] == ["teacher", "student"]
    assert "trained alone" not in page.text


@pytest.mark.charts
def test_a_comparison(tiny: Path, run: Run) -> None:
    assert run("compare", tiny, "--methods", "student,kd", "--seeds", "2", "--work-dir", "both").code == 0
    found = json.loads(Path("both/comparison.json").read_text())
    page = Page(Path("both/report.html"))
    headings, *rows = page.tables["methods"][:4]
    assert headings[0] == "method"
    assert rows[0][1] == f"{found['teacher']['top1']:.2f}"
    for row, method in zip(rows[1:], ("student", "kd"), strict=True):
        figures = found["methods"][method]
        assert row[1] == f"{figures['mean']:.2f} ± {figures['interval']:.2f}"
        assert row[-1] == "2"
    difference = found["pairwise"]["kd"]["student"]
    cell = f"{difference['difference']:+.2f} ± {difference['interval']:.2f}".replace("-", "−")
    assert rows[2][3] == cell
    assert page.tables["methods"][-1] == ["KD", cell, ""]
    assert page.tables["costs"][1][0] == "teacher"
    assert any(label.startswith("Top-1 of each method and seed") for label in page.charts())
    first = Path("both/report.html").read_bytes()
    assert run("report", "both").code == 0
    assert Path("both/report.html").read_bytes() == first


def test_exported_files(work: Path, run: Run) -> None:
    folder = work / "student-factor-seed0" / "export" / "onnx-int8"
    folder.mkdir(parents=True)
    record = {
        "format": "onnx",
        "precision": "int8",
        "file": {"name": "student.onnx", "bytes": 4321},
        "parity": {"top1_file": 61.5, "equal_predictions": 99.25},
        "costs": {"p50_ms": 0.25, "p95_ms": 0.5},
        "machine": {"processor": "<b>fast</b>"},
    }
    (folder / "export.json").write_text(json.dumps(record))
    assert run("report", work).code == 0
    page = Page(work / "report.html")
    row = ["student-factor-seed0/onnx-int8", "onnx, int8", "4.3 kB", "61.50", "99.25", "0.250", "0.500"]
    assert page.tables["exports"][1] == row
    assert "<b>" not in page.html
    (folder / "export.json").write_text(json.dumps(record | {"costs": {}}))
    refused(run("report", work), r"export\.json is damaged: costs\.p50_ms is missing")


def test_a_report_that_cannot_be_made_fails_no_training(
    work: Path, tiny: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> str:
        raise RuntimeError("no ink")

    monkeypatch.setattr("factor_transfer.report.html.write.render", fail)
    result = run("run", tiny, "--work-dir", work, "--baseline")
    assert result.code == 0
    assert [line for line in result.out.splitlines() if line.startswith("Warning")] == [
        "Warning: the report could not be written: no ink"
    ]


def test_test_images_are_evaluated_once(work: Path, tiny: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    looked, logits = [], Experiment.logits

    def count(self: Experiment, model: Any, split: Any, normalize: Any) -> Any:
        looked.append(split is self.test)
        return logits(self, model, split, normalize)

    monkeypatch.setattr(Experiment, "logits", count)
    assert run("run", tiny, "--work-dir", work, "--baseline").code == 0
    # Each of the networks, for the table and the report; those whose best epoch is not their last, once more.
    assert looked == [True] * (3 + len(list(work.glob("*/last.safetensors"))))


def test_without_the_images_the_records_are_shown(work: Path, run: Run) -> None:
    recipe = work / "student-factor-seed0" / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("train = 96", "train = 144"))
    result = run("report", work)
    assert result.code == 0
    assert "the images differ from those that the student was trained on" in result.out
    page = Page(work / "report.html")
    assert page.sections == ["networks", "curves", "provenance"]
    recipe.write_text(re.sub(r"\[data\][^[]*", '[data]\nname = "folder"\nroot = "gone"\n\n', recipe.read_text()))
    result = run("report", work)
    assert result.code == 0
    assert "the images cannot be read" in result.out


def test_a_folder_that_is_no_work_dir_is_refused(tmp_path: Path, run: Run) -> None:
    refused(run("report", tmp_path / "nowhere"), "the work dir .* does not exist")
    (tmp_path / "photos").mkdir()
    refused(run("report", tmp_path / "photos"), "is not a work dir", r"summary\.json", "`factor-transfer run`")


def test_unfinished_or_damaged_stages_are_refused(work: Path, run: Run) -> None:
    summary = (work / "summary.json").read_text()
    (work / "summary.json").unlink()
    refused(run("report", work), "its run is not finished")
    (work / "summary.json").write_text(summary.replace('"top1": ', '"top1": 1e'))
    refused(run("report", work), r"summary\.json")
    (work / "summary.json").write_text(summary)
    (work / "comparison.json").write_text('{"runs": []}')
    refused(run("report", work), r"comparison\.json is damaged")
    (work / "comparison.json").unlink()
    (work / "teacher" / "metrics.jsonl").write_text('{"epoch": 1}\n[')
    refused(run("report", work), r"cannot read .*metrics\.jsonl")
    (work / "student-factor-seed0" / "recipe.toml").unlink()
    refused(run("report", work), r"has no recipe\.toml")


def test_code_from_outside_runs_by_permission_alone(work: Path, run: Run) -> None:
    record = json.loads((work / "teacher" / "stage.json").read_text())
    edit(work / "teacher" / "stage.json", model=record["model"] | {"name": "elsewhere:build"})
    refused(run("report", work), "elsewhere:build", "--trust-code")


def test_calibration_and_accuracy_are_those_of_the_test_command() -> None:
    torch.manual_seed(0)
    labels = torch.randint(0, 4, (300,))
    logits = torch.randn(300, 4) + 2 * torch.nn.functional.one_hot(labels, 5)[:, :4]
    answers = Answers(logits, labels)
    expected = measure(logits, labels, ("a", "b", "c", "d"), ["calibration"])
    assert answers.reliability().error == pytest.approx(expected["calibration"], abs=1e-3)
    assert answers.class_accuracy().tolist() == pytest.approx(
        [one["top1"] for one in expected["classes"].values()], abs=1e-3
    )
    assert answers.confusion().sum(1).tolist() == labels.bincount(minlength=4).tolist()


def test_images_that_only_the_teacher_recognises() -> None:
    labels = torch.tensor([0, 1, 0, 1])
    teacher = Answers(torch.tensor([[1.0, 0], [0, 3], [0, 1], [0, 2]]), labels)  # wrong of the third
    student = Answers(torch.tensor([[0.0, 1], [1, 0], [1, 0], [0, 1]]), labels)  # right of the last two
    count, found = missed(teacher, student, 1)
    assert count == 2
    assert [(one.number, one.label, one.answer) for one in found] == [(1, 1, 0)]  # of which the teacher is surer


def test_a_chart_takes_the_pages_colours() -> None:
    def paint(figure: Figure) -> None:
        figure.subplots().set_title("<b> $x$")

    drawn = chart("one", 'a "chart"', (2, 2), paint)
    assert drawn == chart("one", 'a "chart"', (2, 2), paint)
    assert "var(--muted)" in drawn
    assert "#0000" not in drawn
    assert "&lt;b&gt; $x$" in drawn
    assert 'aria-label="a &#34;chart&#34;"' in drawn


@pytest.mark.parametrize("command", ["run", "compare"])
def test_results_of_networks_that_were_trained_again_are_refused(command: str, tiny: Path, run: Run) -> None:
    words = [tiny, "--work-dir", "work", "teacher.epochs=1", "paraphraser.epochs=1"]
    if command == "compare":
        words += ["--methods", "student,factor", "--seeds", "1"]
    assert run(command, *words, "student.epochs=1").code == 0
    assert run("report", "work").code == 0
    assert run("train", *words[:5], "student.epochs=2").code == 0
    name = "summary.json" if command == "run" else "comparison.json"
    refused(run("report", "work", "--csv", "table.csv"), f"student-factor-seed0 was trained again, .* since {name}")
    assert not Path("table.csv").exists()
    assert run(command, *words, "student.epochs=2").code == 0
    assert run("report", "work").code == 0
