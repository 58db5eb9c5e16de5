"""The content of the page, section by section. Sections without content are omitted."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from factor_transfer.config.recipe import ALONE, Recipe
from factor_transfer.data import Data, Split, describe, in_order
from factor_transfer.errors import printable
from factor_transfer.pipeline.finished_run import folder_name, method_of
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
_MISSED = 12  # the number of images shown that only the teacher recognises
_CLASSES = 30  # the number of classes shown; of more, those where teacher and student differ most
_LARGEST_MATRIX = 100  # the largest number of classes for which confusion matrices are shown


@dataclass
class Page:
    """The content of the page, for the template.

    Attributes:
        title: the title of the page.
        sentence: the main result, in one sentence.
        facts: the images and the networks, in lines below the sentence.
        costs: the table of the costs of teacher and student; ``None`` if ``networks`` has them.
        networks: the table of the networks of a run: teacher, student alone and student.
        methods: the table of the methods of a comparison.
        note: the explanation of the figures of a comparison.
        pairs: the table of the differences between any two methods.
        comparison: the charts of a comparison.
        curves: the learning curves.
        classes: the charts by class.
        matrices: the confusion matrices.
        classes_note: the classes and students that the charts by class show.
        features: the report on the paraphraser of each tap.
        names: the names of the classes.
        missed: images that only the teacher recognises.
        missed_count: the number of all images that only the teacher recognises.
        exports: the table of the exported files.
        machine: the processor that the exported files were measured on.
        recipe: the recipe, as TOML.
        provenance: the versions and machine of each training.
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
        image: the image, as a data URI.
        label: the name of the true class, which the teacher predicts.
        answer: the name of the class that the student predicts.
        teacher_sure: the teacher's probability of its prediction, in 0..1.
        student_sure: the student's probability of its prediction, in 0..1.
    """

    image: str
    label: str
    answer: str
    teacher_sure: float
    student_sure: float


class Measured(NamedTuple):
    """The results that are computed for the page, in addition to the content of the work dir.

    Attributes:
        figures: the figures of the networks by role, see ``network_figures``.
        answers: the networks' outputs for the test images by role; empty if the images are not available.
        features: the reports on the paraphrasers, see ``features.paraphrase``; empty if the images are not available.
    """

    figures: Mapping[str, Mapping[str, Any]]
    answers: Mapping[str, Answers]
    features: list[TapReport]


def compose(found: WorkDir, recipe: Recipe, measured: Measured, data: Data | None, test: Split | None) -> Page:
    """Compose the content of the page.

    Args:
        found: the content of the work dir.
        recipe: the recipe of the student.
        measured: the results that were computed for the page.
        data: the images; ``None`` if they are not available.
        test: the test images; ``None`` if they are not available.
    """
    method = method_of(found.student.folder.name)
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
        _add_comparison(page, found.comparison)
    page.curves = _curves(found)
    if measured.answers and test is not None:
        _add_predictions(page, found, measured.answers, test)
        page.features = measured.features
    page.names = [printable(name) for name in found.student.record["classes"]]
    if found.exports:
        page.exports = tables.exports_table(found.exports)
        page.machine = ", ".join(dict.fromkeys(one.machine.processor for one in found.exports.values()))
    page.recipe = found.recipe
    page.provenance = _provenance(found)
    return page


def render(page: Page) -> str:
    """The page as HTML. All text is escaped."""
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


def _facts(found: WorkDir, recipe: Recipe, data: Data | None) -> list[str]:
    teacher, student = recipe.teacher.model, recipe.student.model
    facts = [f"teacher {teacher}, student {student}" if found.teacher is not None else f"student {student}"]
    if data is not None:
        facts.append(describe(data))
    return [printable(fact) for fact in facts]


def _add_comparison(page: Page, comparison: Comparison) -> None:
    """Add the section about a comparison to the page."""
    page.methods = tables.methods_table(comparison)
    if len(comparison.methods) > 1 and any(
        one.difference is not None for row in comparison.pairwise.values() for one in row.values()
    ):
        page.pairs = tables.pairs_table(comparison)
    page.note = _note(comparison)
    shades = _shades(comparison)
    teacher = None if comparison.teacher is None else comparison.teacher.top1
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
    """The colour of each method; the best one has the colour of the student."""
    best = comparison.best
    others = charts.colors([name for name in comparison.methods if name not in (ALONE, best)])
    return {**others, best: palette.STUDENT, ALONE: palette.ALONE}


def _labels(found: WorkDir) -> dict[str, str]:
    """The names of the networks in charts, by role; the student of a comparison is named by its method."""
    named = {} if found.summary is not None else {"student": name_of(method_of(found.student.folder.name))}
    return {role: (tables.ROLES | named)[role] for role in found.networks}


def _stages(found: WorkDir) -> dict[str, tuple[str, Path]]:
    """The networks whose learning curves are shown, with colours and folders; for a comparison, one per method."""
    labels = _labels(found)
    stages = {labels[role]: (_COLORS[role], done.folder) for role, done in found.networks.items()}
    if found.summary is None and found.comparison is not None:
        seed = found.student.folder.name.rpartition("-seed")[2]
        for method, color in _shades(found.comparison).items():
            folder = found.folder / folder_name(method, int(seed))
            stages.setdefault(name_of(method), (color, folder))
    return stages


def _note(comparison: Comparison) -> str:
    several = len(comparison.seeds) > 1
    spread = "mean ± 95 % interval over the seeds (Student's t)" if several else "for one seed, so without an interval"
    differences = "Differences are computed seed by seed. " if several else ""
    tested = "p is corrected for all rows (Holm's method); a difference with p below 0.05 is called significant. "
    tested = tested if any(one.p_holm is not None for one in comparison.methods.values()) else ""
    delivered = "The delivered weights are those of the epoch that validation chose. "
    delivered = delivered if any(run.kept not in (None, run.top1) for run in comparison.runs) else ""
    return (
        f"Top-1 on the test images after the last epoch, {spread}. {delivered}{differences}{tested}The gap is the one "
        "between the student alone and the teacher. The training time is that of the student, relative to the student "
        "alone."
    )


def _curves(found: WorkDir) -> "list[Markup]":
    """The learning curves of all stages."""
    read = {name: (color, read_curves(folder)) for name, (color, folder) in _stages(found).items()}
    drawn = []
    accuracy = _lines(read, "validation_top1")
    training = _lines(read, "accuracy")
    if accuracy or training:
        title = "Accuracy: validation (solid), training (dashed)" if accuracy else "Accuracy on the training images"
        drawn.append(charts.curves("accuracy", title, "top-1 %", accuracy or training, training if accuracy else None))
    loss = _lines(read, "loss")
    if loss:
        drawn.append(charts.curves("loss", "Training loss, sum of all parts", "loss", loss, log=True))
    student_parts = parts(read[_labels(found)["student"]][1])
    if len(student_parts) > 1:
        title = f"Parts of the loss: {_labels(found)['student']}"
        shades = charts.colors(list(student_parts))
        named = {
            "cross-entropy" if part == "ce" else name_of(part): (shades[part], curve)
            for part, curve in student_parts.items()
        }
        drawn.append(charts.curves("parts", title, "weighted", named, log=True))
    if found.paraphraser is not None:
        curves = read_curves(found.paraphraser.folder)
        stages = {"validation": "validation_relative_error", "training": "relative_error"}
        shades = {"validation": palette.TEACHER, "training": palette.MUTED}
        errors = {name: (shades[name], curves[key]) for name, key in stages.items() if key in curves}
        if errors:
            drawn.append(charts.curves("paraphraser", "Paraphraser: reconstruction error", "relative error", errors))
    return drawn


def _lines(read: Mapping[str, tuple[str, Mapping[str, Curve]]], key: str) -> charts.Lines:
    return {name: (color, curves[key]) for name, (color, curves) in read.items() if key in curves}


def _add_predictions(page: Page, found: WorkDir, answers: Mapping[str, Answers], test: Split) -> None:
    """Add the sections about the networks' predictions for the test images to the page."""
    classes: list[str] = found.student.record["classes"]
    names = _labels(found)
    accuracies = {role: one.class_accuracy() for role, one in answers.items()}
    chosen = list(range(len(classes)))
    notes = []
    if found.last:
        shown = [done.folder.name for role, done in found.networks.items() if role != "teacher"]
        notes.append(f"The students are those of one seed, after the last epoch: {', '.join(shown)}.")
    if len(classes) > _CLASSES:
        first, last = (accuracies[role] for role in (next(iter(answers)), "student"))
        order = (first - last).abs().nan_to_num(0).sort(descending=True, stable=True).indices
        chosen = sorted(order[:_CLASSES].tolist())
        notes.append(f"Of the {len(classes)} classes, the {_CLASSES} where the networks differ most are shown.")
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
        page.missed_count, examples = missed(answers["teacher"], answers["student"], _MISSED)
        images = [image for one in examples for image in _image(test, one.number)]
        page.missed = [
            MissedImage(
                picture(image),
                printable(classes[one.label]),
                printable(classes[one.answer]),
                one.teacher_sure,
                one.student_sure,
            )
            for image, one in zip(images, examples, strict=True)
        ]


def _image(test: Split, index: int) -> Tensor:
    (batch,) = in_order(test.subset(torch.tensor([index])), 1)
    return batch.images


def _provenance(found: WorkDir) -> list[tuple[str, str]]:
    """The versions and the machine of each training, from its record."""
    rows = []
    for done in found.networks.values():
        record = done.record
        versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
        rows.append((printable(done.folder.name), printable(f"{versions}; {record['machine']}")))
    return rows
