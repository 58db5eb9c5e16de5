"""The files of a comparison for a paper: the same figures as in the record, and text that LaTeX can read."""

import csv
import json
import re
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from conftest import Run, refused
from factor_transfer.commands.compare import pairwise, summarize
from factor_transfer.methods import KD, TERMS
from factor_transfer.report.comparison import print_comparison
from factor_transfer.report.html.work_dir import Comparison
from factor_transfer.report.paper.csv_rows import COLUMNS, as_csv
from factor_transfer.report.paper.latex import as_latex, escaped
from factor_transfer.report.plot import plot_comparison

METHODS = ["student", "kd", "my_term"]


@pytest.fixture
def results() -> dict[str, Any]:
    """The content of ``comparison.json`` of three methods and four seeds; a run of the last one failed."""
    top1: dict[str, list[float | None]] = {
        "student": [80.0, 81, 79, 80],
        "kd": [81.0, 82.2, 79.9, 80.8],
        "my_term": [80.1, 80.9, 79.2, None],
    }
    runs: list[dict[str, Any]] = [
        {"method": method, "seed": seed, "top1": value, "top5": None if value is None else 96.0 + seed, "seconds": 2.0}
        for method, values in top1.items()
        for seed, value in enumerate(values)
    ]
    runs[-1] |= {"error": "not finite,\nsee above", "seconds": None}
    for run in runs:
        run["top1_kept"] = None if run["top1"] is None else run["top1"] + 0.5
    return {
        "runs": runs,
        "teacher": {"top1": 90.0, "top5": 99.5, "loss": 0.3},
        "classes": 10,
        "against": "student",
        "methods": summarize(runs, METHODS, 90.0),
        "pairwise": pairwise(runs, METHODS),
    }


def test_csv_has_each_run_and_each_mean(results: dict[str, Any]) -> None:
    rows = list(csv.DictReader(as_csv(Comparison.model_validate(results)).splitlines(keepends=True)))
    assert tuple(rows[0]) == COLUMNS
    assert [row["row"] for row in rows] == ["teacher", *["mean"] * 3, *["run"] * 12]
    assert float(rows[0]["top1"]) == 90
    kd = rows[2]
    expected = results["methods"]["kd"]
    assert (kd["method"], kd["name"], kd["n"], kd["seed"]) == ("kd", "KD", "4", "")
    for column, key in (("top1", "mean"), ("top1_interval", "interval"), ("difference", "difference")):
        assert float(kd[column]) == expected[key]
    assert float(kd["top5"]) == 97.5
    assert float(kd["top1_kept"]) == pytest.approx(expected["mean"] + 0.5)
    run = next(row for row in rows if (row["method"], row["seed"]) == ("kd", "1"))
    assert float(run["difference"]) == pytest.approx(1.2)
    assert float(run["top1_kept"]) == pytest.approx(82.7)
    assert rows[4]["difference"] == ""  # of the reference from itself
    assert (rows[3]["n"], rows[-1]["top1"], rows[-1]["error"]) == ("3", "", "not finite,\nsee above")


def test_the_last_and_the_delivered_epoch_are_distinguished_also_in_older_files(results: dict[str, Any]) -> None:
    screen = Console(file=StringIO(), width=400)
    print_comparison(screen, results, 1000, 4)
    sentence = "last.safetensors has the weights of the last epoch (top1_last in comparison.json); weights.safetensors,"
    assert sentence in screen.file.getvalue()  # type: ignore[attr-defined]
    assert results["methods"]["kd"]["top1_last"] == results["methods"]["kd"]["mean"]
    for run in results["runs"]:
        run["top1_best"] = run.pop("top1_kept")
    for figures in results["methods"].values():
        del figures["top1_last"], figures["top1_kept"]
    older = Comparison.model_validate(results)
    assert older.kept("kd") == pytest.approx(results["methods"]["kd"]["mean"] + 0.5)
    screen = Console(file=StringIO(), width=400)
    print_comparison(screen, results, 1000, 4)
    assert "safetensors" not in screen.file.getvalue()  # type: ignore[attr-defined]


def test_latex_has_the_table(results: dict[str, Any]) -> None:
    text = as_latex(Comparison.model_validate(results))
    body = [line.removesuffix(r" \\").split(" & ") for line in text.splitlines() if line.endswith(r"\\")]
    assert {len(row) for row in body} == {5}
    assert [row[0] for row in body] == ["method", "teacher", "student alone", "KD", r"my\_term"]
    figures = results["methods"]["kd"]
    assert body[3][1] == rf"${figures['mean']:.2f} \pm {figures['interval']:.2f}$"
    assert body[3][2] == rf"${figures['difference']:+.2f} \pm {figures['difference_interval']:.2f}^{{*}}$"
    assert "*" not in body[4][2]
    assert [row[4] for row in body[2:]] == ["$4$", "$4$", "$3$"]
    assert r"\usepackage{booktabs}" in text
    code = re.sub(r"(?m)^%.*$", "", text)
    assert not re.findall(r"(?<!\\)[%#]", code)
    assert code.count("$") % 2 == 0
    assert code.count("{") == code.count("}")


def test_special_characters_are_escaped_in_latex() -> None:
    assert escaped(r"a_b & 50% $x^2$ #1 {~} \input") == (
        r"a\_b \& 50\% \$x\textasciicircum{}2\$ \#1 \{\textasciitilde{}\} \textbackslash{}input"
    )
    assert "\n" not in escaped("two\nlines")


def test_one_seed_and_a_method_that_failed_are_shown_as_such(results: dict[str, Any]) -> None:
    runs = [run | ({"top1": None, "top5": None} if run["method"] == "kd" else {}) for run in results["runs"][::4]]
    one = Comparison.model_validate(results | {"runs": runs, "methods": summarize(runs, METHODS, 90.0), "pairwise": {}})
    text = as_latex(one)
    assert r"KD & failed &  &  & $0$ \\" in text
    assert r"my\_term & $80.10$ & $+0.10$ & $96.00$ & $1$ \\" in text
    assert r"\pm" not in text


def test_pictures_have_the_same_bytes_each_time(results: dict[str, Any], tmp_path: Path) -> None:
    first, second = (
        {path.suffix: path.read_bytes() for path in plot_comparison(results, tmp_path / name / "comparison.png")}
        for name in ("one", "two")
    )
    assert first == second
    assert [content[:5] for content in first.values()] == [b"\x89PNG\r", b"%PDF-", b"<?xml"]
    assert not re.search(rb"CreationDate|<dc:date>", first[".pdf"] + first[".svg"])


def test_compare_and_report_write_the_same_tables(tiny: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TERMS, "my_term", KD)
    tiny.write_text(tiny.read_text().replace("epochs = 3", "epochs = 1"))
    refused(run("compare", tiny, "--csv", "."), r"--csv \. is a folder")
    assert not Path("runs").exists()
    files = ("--csv", "results/all.csv", "--latex", "table.tex")
    result = run("compare", tiny, "--methods", "my_term", "--seeds", "1", *files)
    assert result.code == 0, result.err
    shown = result.out.splitlines()[-1]
    assert all(name in shown for name in ("comparison.pdf", "comparison.svg", "results/all.csv", "table.tex"))
    rows = list(csv.DictReader(Path("results/all.csv").read_text().splitlines()))
    found = json.loads(Path("runs/tiny/comparison.json").read_text())
    assert [float(row["top1"]) for row in rows if row["row"] == "run"] == [entry["top1"] for entry in found["runs"]]
    again = run("report", "runs/tiny", "--csv", "again.csv", "--latex", "again.tex")
    assert again.code == 0, again.err
    assert Path("again.csv").read_bytes() == Path("results/all.csv").read_bytes()
    assert Path("again.tex").read_bytes() == Path("table.tex").read_bytes()


def test_a_run_has_no_table_of_a_comparison(work: Path, run: Run) -> None:
    refused(run("report", work, "--latex", "table.tex"), r"has no comparison\.json.*`factor-transfer compare`")
    assert not Path("table.tex").exists()
