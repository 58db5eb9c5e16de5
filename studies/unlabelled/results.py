"""The report of the study, from its records: a page with tables, a picture, and a table for other pages."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import shares
from cases import DATA_SETS, Case, DataSet
from factor_transfer.files import read_json
from factor_transfer.report.confidence import as_estimate, estimate
from factor_transfer.report.names import name_of
from picture import draw

HERE = Path(__file__).parent
PICTURE = "unlabelled.svg"
# Pages that have a place for the table of a case with unlabelled images, which stands for the one without, too.
PAGES = HERE.parents[1] / "README.md", HERE.parents[1] / "docs" / "unlabelled.md"

Record = Mapping[str, Any]

_PLACE = re.compile(r"(<!-- unlabelled (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)

_HEAD = f"""# Images without labels

What are images without labels worth? Here, few of the training images have labels. *All images* means that the
paraphraser and the terms of a method also use the others, without their labels; *labelled images* means that these are
left out.

In words:

- **Few labels and a strong teacher**: with 600 labels of Fashion-MNIST, and a teacher that has learned from all labels,
  the images without labels help each method. *Factor Transfer + KD* makes the student as good as a student alone that
  has all 60,000 labels. On CIFAR-10 with 5,000 labels, *KD* and *Factor Transfer + KD* make the student better than a
  student alone that has all 50,000.
- **Few labels for the teacher, too**: with 600 labels, the images without labels help each method as well. With *KD* or
  *Factor Transfer + KD*, the student becomes better than the large teacher, which has the same labels. With 3,000
  labels, *Factor Transfer + KD* reaches its teacher, with and without the other images.
- **More labels**: with 3,000 labels and a teacher that has learned from all, *Factor Transfer + KD* is as good with the
  labelled images alone. The images without labels make no measurable difference to it, to *KD* and to *AT*.
- **Factor Transfer alone** gains from the images without labels where there are 600 labels. In the three other cases it
  loses by them: its term teaches the features alone, and the classifier learns from the few labelled images of each
  batch. So combine it with KD (`factor+kd`) where most images have no labels.

    python studies/unlabelled/study.py run --fashion-mnist FOLDER --cifar10 FOLDER    # trains what this page shows
    python studies/unlabelled/study.py report                                         # writes it from the records

Figures are top-1 in percent on the 10,000 test images: mean and 95 % interval over the seeds. Differences are paired by
seed. *Gap closed* compares with a student alone that has all labels: 0 % is the student alone with few labels, 100 % is
the student alone with all of them. All students take about the same number of steps of 128 images. The student alone
never uses images without labels; its two figures are of two trainings on the labelled images. No test image and no
label of an unlabelled image had any influence on a training or a setting, and no setting was tuned here.

![Top-1 of each method with and without unlabelled images]({PICTURE})
"""


def write_report(cases: Sequence[Case]) -> None:
    """Write all files that are made from the records."""
    for path, content in made_from(cases).items():
        path.write_bytes(content)


def made_from(cases: Sequence[Case], records: Path = HERE / "records") -> dict[Path, bytes]:
    """The content of all files that are made from the records: the page of the study, its picture, and other pages.

    Args:
        cases: the cases of the study.
        records: the folder of their records.
    """
    found = {case: read_json(file) for case in cases if (file := records / f"{case.name}.json").exists()}
    sections = [_HEAD]
    groups: list[Case] = []  # cases with unlabelled images, which stand for those without, too
    for data in DATA_SETS:
        reference = found.get(Case(data, data.images))
        own = {replace(case, unlabelled=True) for case in found if case.data is data and not case.is_reference}
        ordered = sorted(own, key=lambda case: (case.labels, case.own_teacher))
        if reference is not None or ordered:
            sections.append(f"## {data.title}\n\n{data.networks} ([recipe]({data.recipe.name})); {data.seeds} seeds.\n")
        if reference is not None:
            sections.append(_reference(data, reference))
        sections += [_section(group, found, reference) for group in ordered]
        groups += ordered
    sections.append(shares.section())
    by_name = {case.name: case for case in cases}

    def filled(place: re.Match[str]) -> str:
        return f"{place[1]}\n{_short(by_name[place[2]], found)}\n{place[3]}"

    pages = {page: _PLACE.sub(filled, page.read_text(encoding="utf-8")) for page in PAGES}
    pages[HERE / "README.md"] = "\n".join(sections)
    return {HERE / PICTURE: draw(found, groups), **{page: text.encode() for page, text in pages.items()}}


def _reference(data: DataSet, record: Record) -> str:
    rows = [_row(name_of(method), [_mean(record, method)]) for method in record["methods"]]
    teacher = _row("teacher", [f"{record['teacher']['top1']:.2f}"])
    return "\n".join([f"### All {data.images:,} labels\n", *_table(["top-1 %"]), teacher, *rows, ""])


def _short(group: Case, found: Mapping[Case, Record]) -> str:
    """The table of a case for other pages: without and with the images that have no labels."""
    few, every = (found[replace(group, unlabelled=unlabelled)] for unlabelled in (False, True))
    full = _top1(found[Case(group.data, group.data.images)], "student")
    rest = group.data.images - group.labels
    lines = _table([f"{group.labels:,} labelled images", f"and {rest:,} without labels", "gap closed"])
    for method in group.methods:
        closed = "" if method == "student" else _closed(every, method, full)
        lines.append(_row(name_of(method), [_mean(few, method), _mean(every, method), closed]))
    lines.append(_row(f"student alone, all {group.data.images:,} labels", [f"{full:.2f}", "", "100%"]))
    note = f"{group.data.title}, top-1 on 10,000 test images, mean ± 95 % interval over {group.data.seeds} seeds."
    return "\n".join([*lines, "", note, ""])


def _closed(record: Record, method: str, full: float) -> str:
    alone = _top1(record, "student")
    return f"{(_top1(record, method) - alone) / (full - alone):.0%}"


def _section(group: Case, found: Mapping[Case, Record], reference: Record | None) -> str:
    pair = {case.unlabelled: record for case, record in found.items() if replace(case, unlabelled=True) == group}
    teacher = next(iter(pair.values()))["teacher"]["top1"]
    head = ["labelled images", "all images", "all − labelled images", "all images − student alone", "gap closed"]
    lines = [f"### {group.title} ({teacher:.2f} %)\n", *_table(head)]
    for method in group.methods:
        few, every = (pair[key] if key in pair and method in pair[key]["methods"] else None for key in (False, True))
        if few is None and every is None:
            continue
        cells = ["" if record is None else _mean(record, method) for record in (few, every)]
        more = gain = closed = ""
        if method != "student" and few is not None and every is not None:
            own, others = _by_seed(every, method), _by_seed(few, method)
            more = f"{estimate([own[seed] - others[seed] for seed in others]):+.2f}"
        if method != "student" and every is not None:
            gain = _figure(every["methods"][method], "difference", "+.2f")
            if reference is not None:
                closed = _closed(every, method, _top1(reference, "student"))
        lines.append(_row(name_of(method), [*cells, more, gain, closed]))
    return "\n".join([*lines, ""])


def _table(columns: Sequence[str]) -> list[str]:
    return [_row("", columns), _row("---", ["---:"] * len(columns))]


def _row(name: str, cells: Sequence[str]) -> str:
    return f"| {name} | {' | '.join(cells)} |"


def _top1(record: Record, method: str) -> float:
    return float(record["methods"][method]["mean"])


def _by_seed(record: Record, method: str) -> dict[int, float]:
    return {run["seed"]: run["top1"] for run in record["runs"] if run["method"] == method}


def _mean(record: Record, method: str) -> str:
    figures = record["methods"].get(method)
    return "" if figures is None else _figure(figures, "mean", ".2f")


def _figure(figures: Mapping[str, Any], of: str, spec: str) -> str:
    found = as_estimate(figures, of)
    return "" if found is None else f"{found:{spec}}"
