"""The report of the study, from its records: a page with tables, and a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cases import IMAGES, SEEDS, Case
from picture import draw

from factor_transfer.files import read_json
from factor_transfer.report.confidence import as_estimate, estimate
from factor_transfer.report.names import name_of

PICTURE = "unlabelled.svg"

_HEAD = f"""# Images without labels

`python studies/unlabelled/study.py run --data FOLDER` trains what this page shows, and `study.py report` writes it
from the records in `records/`. Fashion-MNIST; a ResNet-20 of width 8 teaches a ResNet-8 of width 8
([recipe.toml](recipe.toml)). Of the 60,000 training images, 600 or 3,000 have labels. *All images* means that the
paraphraser and the terms of a method also use the others, without their labels; *labelled images* means that they
are left out. All students take about the same number of steps of 128 images, so the student alone is the same in
both. Top-1 in percent on the 10,000 test images, {SEEDS} seeds: mean and 95 % interval. No test image and no label
of an unlabelled image had any influence on a training or a setting. No setting was tuned here: they are those of
the demo. Differences are paired by seed; the last column says how far a method with all images comes from the student
alone to a student alone that has all labels.

![Top-1 of each method with and without unlabelled images]({PICTURE})
"""


def write_report(cases: Sequence[Case], records: Path, path: Path) -> None:
    """Write the page with the table of each number of labels and each kind of teacher, and the picture beside it.

    Args:
        cases: the cases of the study.
        records: the folder of their records.
        path: the page to write.
    """
    found = {case: read_json(file) for case in cases if (file := records / f"{case.name}.json").exists()}
    reference = next((record for case, record in found.items() if case.is_reference), None)
    sections = [_HEAD]
    if reference is not None:
        sections.append(_reference(reference))
    groups = sorted({(case.labels, case.own_teacher) for case in found if not case.is_reference})
    for labels, own in groups:
        pair = {
            case.unlabelled: record
            for case, record in found.items()
            if (case.labels, case.own_teacher) == (labels, own)
        }
        sections.append(_section(labels, own, pair, reference))
    path.write_text("\n".join(sections), encoding="utf-8")
    path.with_name(PICTURE).write_bytes(draw(found, groups))


def _reference(record: dict[str, Any]) -> str:
    rows = [_row(name_of(method), [_mean(record, method)]) for method in record["methods"]]
    teacher = _row("teacher", [f"{record['teacher']['top1']:.2f}"])
    return "\n".join([f"## All {IMAGES:,} labels\n", *_table(["top-1 %"]), teacher, *rows, ""])


def _section(labels: int, own: bool, pair: dict[bool, dict[str, Any]], reference: dict[str, Any] | None) -> str:
    teacher = "the teacher learned from the same labels" if own else "the teacher learned from all labels"
    first = next(iter(pair.values()))
    lines = [f"## {labels:,} labels; {teacher} ({first['teacher']['top1']:.2f} %)\n"]
    head = ["labelled images", "all images", "all − labelled images", "all images − student alone", "of the gap closed"]
    lines += _table(head)
    alone = next((_top1(record, "student") for record in pair.values() if "student" in record["methods"]), None)
    full = None if reference is None else _top1(reference, "student")
    for method in dict.fromkeys(method for record in pair.values() for method in record["methods"]):
        cells = [_mean(pair[key], method) if key in pair else "" for key in (False, True)]
        together = pair.get(True, {"methods": {}})
        more = gain = closed = ""
        if method != "student" and all(method in pair.get(key, {"methods": {}})["methods"] for key in (False, True)):
            few, every = (_by_seed(pair[key], method) for key in (False, True))
            more = f"{estimate([every[seed] - few[seed] for seed in few]):+.2f}"
        if method != "student" and method in together["methods"] and alone is not None:
            figures = together["methods"][method]
            gain = _figure(figures, "difference", "+.2f")
            if full is not None:
                closed = f"{(figures['mean'] - alone) / (full - alone):.0%}"
        lines.append(_row(name_of(method), [*cells, more, gain, closed]))
    return "\n".join([*lines, ""])


def _table(columns: Sequence[str]) -> list[str]:
    return [_row("", columns), _row("---", ["---:"] * len(columns))]


def _row(name: str, cells: Sequence[str]) -> str:
    return f"| {name} | {' | '.join(cells)} |"


def _top1(record: dict[str, Any], method: str) -> float:
    return float(record["methods"][method]["mean"])


def _by_seed(record: dict[str, Any], method: str) -> dict[int, float]:
    return {run["seed"]: run["top1"] for run in record["runs"] if run["method"] == method}


def _mean(record: dict[str, Any], method: str) -> str:
    figures = record["methods"].get(method)
    return "" if figures is None else _figure(figures, "mean", ".2f")


def _figure(figures: dict[str, Any], of: str, spec: str) -> str:
    found = as_estimate(figures, of)
    return "" if found is None else f"{found:{spec}}"
