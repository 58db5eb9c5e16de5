"""The page: what of a work dir is shown, section by section; a section without content is left out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from factor_transfer.config.recipe import ALONE, Recipe
from factor_transfer.data import Data, Split, describe, in_order
from factor_transfer.errors import printable
from factor_transfer.pipeline.artefact import Artefact
from factor_transfer.report.html import charts, tables
from factor_transfer.report.html import svg as palette
from factor_transfer.report.html.answers import Answers, missed
from factor_transfer.report.html.curves import Curve, parts, read_curves
from factor_transfer.report.html.features import TapReport
from factor_transfer.report.html.images import picture
from factor_transfer.report.html.work_dir import Comparison, WorkDir
from factor_transfer.report.names import name_of

if TYPE_CHECKING:
    from markupsafe import Markup

_COLORS = {"teacher": palette.TEACHER, "baseline": palette.ALONE, "student": palette.STUDENT}
_MISSED = 12  # images
_CLASSES = 30  # of more, those are shown where teacher and student differ most
_LARGEST_MATRIX = 100  # classes


@dataclass
class Page:
    """What the template shows.

    Attributes:
        title: of the page.
        sentence: what came out.
        facts: small print below it: the images and the method.
        costs: a table of what teacher and student cost; ``None`` where ``networks`` says it.
        networks: teacher, student alone and student of a run.
        methods: of a comparison.
        note: what the comparison's figures mean.
        pairs: differences between any two methods.
        comparison: charts.
        curves: charts.
        classes: charts.
        matrices: confusion matrices.
        classes_note: which classes, and of which students.
        features: of each tap.
        names: of the classes.
        missed: images that only the teacher recognises.
        missed_count: how many there are.
        exports: files for devices.
        machine: on which they were tried.
        recipe: as TOML.
        provenance: versions and machine, in words.
    """

    title: str
    sentence: str
    facts: list[str]
    costs: tables.Table | None = None
    networks: tables.Table | None = None
    methods: tables.Table | None = None
    note: str = ""
    pairs: tables.Table | None = None
    comparison: "list[Markup]" = field(default_factory=list)
    curves: "list[Markup]" = field(default_factory=list)
    classes: "list[Markup]" = field(default_factory=list)
    matrices: "list[Markup]" = field(default_factory=list)
    classes_note: str = ""
    features: list[TapReport] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    missed: "list[MissedImage]" = field(default_factory=list)
    missed_count: int = 0
    exports: tables.Table | None = None
    machine: str = ""
    recipe: str = ""
    provenance: list[tuple[str, str]] = field(default_factory=list)


class MissedImage(NamedTuple):
    """An image that only the teacher recognises.

    Attributes:
        image: a data URI.
        label: the right class, which the teacher names.
        answer: the student's.
        teacher_sure: the teacher's probability, 0..1.
        student_sure: the student's.
    """

    image: str
    label: str
    answer: str
    teacher_sure: float
    student_sure: float


class Measured(NamedTuple):
    """What was computed for the page, beside what the work dir holds.

    Attributes:
        figures: of the networks, by role, see ``network_figures``.
        answers: of the networks to the test images, by role; empty if these images cannot be had.
        features: see ``features.paraphrase``; likewise.
    """

    figures: Mapping[str, Mapping[str, Any]]
    answers: Mapping[str, Answers]
    features: list[TapReport]


def compose(found: WorkDir, recipe: Recipe, measured: Measured, data: Data | None, test: Split | None) -> Page:
    """Put the page together.

    Args:
        found: in the work dir.
        recipe: the student's.
        measured: of its networks.
        data: the images; ``None`` if they cannot be had.
        test: of them.
    """
    method = _method(found.student)
    if found.comparison is not None:
        sentence = tables.comparison_sentence(found.comparison)
    else:
        sentence = tables.run_sentence(measured.figures)
    page = Page(printable(recipe.name or found.folder.name), sentence, _facts(found, recipe, data))
    if found.summary is not None:
        page.networks = tables.networks_table(measured.figures, method)
    elif measured.figures:
        page.costs = tables.costs_table(measured.figures)
    if found.comparison is not None:
        _compare(page, found.comparison)
    page.curves = _curves(found)
    if measured.answers and test is not None:
        _answer(page, found, measured.answers, test)
        page.features = measured.features
    page.names = [printable(name) for name in found.student.record["classes"]]
    if found.exports:
        page.exports = tables.exports_table(found.exports)
        page.machine = ", ".join(dict.fromkeys(one.machine.processor for one in found.exports.values()))
    page.recipe = found.recipe
    page.provenance = _provenance(found)
    return page


def render(page: Page) -> str:
    """The page as HTML; all that is no markup of ours is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates", encoding="utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("report.html").render(page=page)


def _method(student: Artefact) -> str:
    name = student.folder.name.removeprefix("student-").rpartition("-seed")[0]
    return ALONE if name == "alone" else name


def _facts(found: WorkDir, recipe: Recipe, data: Data | None) -> list[str]:
    teacher, student = recipe.teacher.model, recipe.student.model
    facts = [f"teacher {teacher}, student {student}" if found.teacher is not None else f"student {student}"]
    if data is not None:
        facts.append(describe(data))
    return [printable(fact) for fact in facts]


def _compare(page: Page, comparison: Comparison) -> None:
    """The section of a comparison."""
    page.methods = tables.methods_table(comparison)
    if len(comparison.methods) > 1 and any(
        one.difference is not None for row in comparison.pairwise.values() for one in row.values()
    ):
        page.pairs = tables.pairs_table(comparison)
    page.note = _note(comparison)
    shades = _shades(comparison)
    teacher = comparison.teacher.top1
    rows: dict[str, tuple[str, list[float], float | None, float | None]] = {}
    points: dict[str, tuple[str, float, float]] = {}
    for method, one in comparison.methods.items():
        values = [run.top1 for run in comparison.runs if run.method == method and run.top1 is not None]
        rows[name_of(method)] = shades[method], values, one.mean, one.interval
        if one.mean is not None and one.cost is not None:
            points[name_of(method)] = shades[method], one.cost, one.mean
    page.comparison.append(charts.seeds(rows, teacher))
    if len(points) > 1:
        page.comparison.append(charts.cost(points, teacher))


def _shades(comparison: Comparison) -> dict[str, str]:
    """The colour of each method; the best one has the student's."""
    best = comparison.best
    others = charts.colors([name for name in comparison.methods if name not in (ALONE, best)])
    return {**others, best: palette.STUDENT, ALONE: palette.ALONE}


def _labels(found: WorkDir) -> dict[str, str]:
    """What the networks are called in charts, by role; the student of a comparison is one of several."""
    named = {} if found.summary is not None else {"student": name_of(_method(found.student))}
    return {role: (tables.ROLES | named)[role] for role in found.networks}


def _stages(found: WorkDir) -> dict[str, tuple[str, Path]]:
    """The networks whose learning curves are shown, with their colours and folders: of a comparison, one a method."""
    labels = _labels(found)
    stages = {labels[role]: (_COLORS[role], done.folder) for role, done in found.networks.items()}
    if found.summary is None and found.comparison is not None:
        seed = found.student.folder.name.rpartition("-seed")[2]
        for method, color in _shades(found.comparison).items():
            folder = found.folder / f"student-{'alone' if method == ALONE else method}-seed{seed}"
            stages.setdefault(name_of(method), (color, folder))
    return stages


def _note(comparison: Comparison) -> str:
    several = len(comparison.seeds) > 1
    spread = "mean ± 95 % interval over the seeds (Student's t)" if several else "of one seed, so without an interval"
    differences = "Differences are taken seed by seed. " if several else ""
    tested = "p is corrected for all rows (Holm's method); below 0.05, a difference is called significant. "
    tested = tested if any(one.p_holm is not None for one in comparison.methods.values()) else ""
    return (
        f"Top-1 on the test images after the last epoch, {spread}. {differences}{tested}The gap is that between the "
        "student alone and the teacher. The training time is the student's own, relative to the student alone."
    )


def _curves(found: WorkDir) -> "list[Markup]":
    """Learning curves of all stages."""
    read = {name: (color, read_curves(folder)) for name, (color, folder) in _stages(found).items()}
    drawn = []
    accuracy = _lines(read, "validation_top1")
    training = _lines(read, "accuracy")
    if accuracy or training:
        title = "Accuracy: validation (solid), training (dashed)" if accuracy else "Accuracy on the training images"
        drawn.append(charts.curves("accuracy", title, "top-1 %", accuracy or training, training if accuracy else None))
    loss = _lines(read, "loss")
    if loss:
        drawn.append(charts.curves("loss", "Training loss, all its parts", "loss", loss, log=True))
    of_student = parts(read[_labels(found)["student"]][1])
    if len(of_student) > 1:
        title = f"Parts of the loss: {_labels(found)['student']}"
        shades = charts.colors(list(of_student))
        named = {
            "cross-entropy" if part == "ce" else name_of(part): (shades[part], of_student[part]) for part in of_student
        }
        drawn.append(charts.curves("parts", title, "weighted", named, log=True))
    if found.paraphraser is not None:
        curves = read_curves(found.paraphraser.folder)
        stages = {"validation": "validation_relative_error", "training": "relative_error"}
        shades = {"validation": palette.TEACHER, "training": palette.MUTED}
        errors = {name: (shades[name], curves[key]) for name, key in stages.items() if key in curves}
        if errors:
            drawn.append(charts.curves("paraphraser", "Paraphraser: what is not rebuilt", "relative error", errors))
    return drawn


def _lines(read: Mapping[str, tuple[str, Mapping[str, Curve]]], key: str) -> charts.Lines:
    return {name: (color, curves[key]) for name, (color, curves) in read.items() if key in curves}


def _answer(page: Page, found: WorkDir, answers: Mapping[str, Answers], test: Split) -> None:
    """The sections of what the networks answer to the test images."""
    classes: list[str] = found.student.record["classes"]
    names = _labels(found)
    accuracies = {role: one.class_accuracy() for role, one in answers.items()}
    chosen = list(range(len(classes)))
    notes = []
    if found.last:
        shown = [done.folder.name for role, done in found.networks.items() if role != "teacher"]
        notes.append(f"The students of one seed, after the last epoch: {', '.join(shown)}.")
    if len(classes) > _CLASSES:
        first, last = (accuracies[role] for role in (next(iter(answers)), "student"))
        order = (first - last).abs().nan_to_num(0).sort(descending=True, stable=True).indices
        chosen = sorted(order[:_CLASSES].tolist())
        notes.append(f"Of the {len(classes)} classes, the {_CLASSES} where the networks differ most.")
    page.classes_note = " ".join(notes)
    lines = {names[role]: (_COLORS[role], accuracy[chosen]) for role, accuracy in accuracies.items()}
    page.classes.append(charts.class_accuracy([classes[index] for index in chosen], lines))
    page.classes.append(
        charts.reliability({names[role]: (_COLORS[role], one.reliability()) for role, one in answers.items()})
    )
    if len(classes) <= _LARGEST_MATRIX:
        for role, one in answers.items():
            page.matrices.append(charts.confusion(f"confusion-{role}", names[role], classes, one.confusion()))
    if "teacher" in answers:
        page.missed_count, some = missed(answers["teacher"], answers["student"], _MISSED)
        images = [image for one in some for image in _image(test, one.place)]
        page.missed = [
            MissedImage(
                picture(image),
                printable(classes[one.label]),
                printable(classes[one.answer]),
                one.teacher_sure,
                one.student_sure,
            )
            for image, one in zip(images, some, strict=True)
        ]


def _image(test: Split, index: int) -> Tensor:
    (batch,) = in_order(test.subset(torch.tensor([index])), 1)
    return batch.images


def _provenance(found: WorkDir) -> list[tuple[str, str]]:
    """Versions and machine of the trainings, as their records have them."""
    rows = []
    for done in found.networks.values():
        record = done.record
        versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
        rows.append((printable(done.folder.name), printable(f"{versions}; {record['machine']}")))
    return rows
