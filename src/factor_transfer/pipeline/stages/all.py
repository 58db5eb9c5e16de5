"""The three stages: teacher, paraphraser, student. Each leaves an artefact, reused while its inputs are the same."""

from collections.abc import Sequence
from pathlib import Path

import torch

from factor_transfer.config.read import as_toml
from factor_transfer.config.recipe import Recipe
from factor_transfer.config.sections import Training
from factor_transfer.data import Views
from factor_transfer.distributed import collectives
from factor_transfer.errors import InputError
from factor_transfer.files import write_atomic
from factor_transfer.methods import (
    TERMS,
    Distillation,
    ParaphraserTraining,
    ReusedClassifier,
    Supervised,
    Teacher,
)
from factor_transfer.pipeline import artefact
from factor_transfer.pipeline.artefact import Artefact
from factor_transfer.pipeline.experiment import Experiment
from factor_transfer.pipeline.provenance import paraphraser_inputs, student_inputs, teacher_inputs
from factor_transfer.pipeline.stages.build import (
    as_product,
    connect,
    frozen_teacher,
    load_paraphrasers,
    new_paraphrasers,
)
from factor_transfer.pipeline.stages.cache import Cache
from factor_transfer.pipeline.stages.stage import StageTraining, begin, finish, in_work_dir, require, train
from factor_transfer.pipeline.weights.initial import init_network, load_foreign
from factor_transfer.settings import chosen


def make_teacher(experiment: Experiment, fresh: bool = False) -> Artefact:
    """Stage 1: train the teacher on labels, or take the weights that the recipe names."""
    with in_work_dir(experiment):
        return _make_teacher(experiment, fresh)


def _make_teacher(experiment: Experiment, fresh: bool) -> Artefact:
    section = experiment.recipe.teacher
    folder = experiment.work_dir / "teacher"
    done = begin(experiment, folder, teacher_inputs(experiment), fresh)
    if done:
        return done
    model, record = init_network(experiment, "teacher", section)
    if section.epochs is None:
        record |= {"stage": "teacher", "epoch": None, "seconds": 0.0}
        return finish(folder, model.state_dict(), record)
    normalize = experiment.normalize((record["mean"], record["std"]))
    return _only(train([StageTraining(experiment, folder, section, Supervised(model, normalize), model, record)]))


def make_paraphraser(experiment: Experiment, fresh: bool = False) -> Artefact:
    """Stage 2, connectors pre-training: the paraphraser learns to rebuild the teacher's feature."""
    section = experiment.recipe.paraphraser
    if section is None:
        raise InputError("the recipe says nothing of a paraphraser; add [paraphraser] to it")
    if not experiment.taps[0]:
        raise InputError("no feature map was found in the teacher; name one as teacher.tap")
    with in_work_dir(experiment):
        return _make_paraphraser(experiment, section, fresh)


def _make_paraphraser(experiment: Experiment, section: Training, fresh: bool) -> Artefact:
    taught = _teacher(experiment)
    folder = experiment.work_dir / "paraphraser"
    done = begin(experiment, folder, paraphraser_inputs(experiment, taught), fresh)
    if done:
        return done
    model, taps = experiment.load(taught), experiment.taps[0]
    normalize = experiment.normalize(taught)
    torch.manual_seed(section.seed)
    paraphrasers = new_paraphrasers(experiment, model, normalize)
    product = as_product(paraphrasers)
    record = {"in_channels": {tap: paraphraser.in_channels for tap, paraphraser in paraphrasers.items()}}
    if section.weights is not None:
        load_foreign(experiment, "paraphraser", section.weights, product)
    if section.epochs is None:
        return finish(folder, product.state_dict(), {"stage": "paraphraser", **record, "epoch": None, "seconds": 0.0})
    several, distance = list(paraphrasers.values()), chosen(section, ParaphraserTraining)
    method = ParaphraserTraining(frozen_teacher(experiment, model, normalize), taps, several, **distance)
    views = _views(experiment)
    if views is not None:
        method.kept = Cache(experiment, taught, views).features()
    return _only(train([StageTraining(experiment, folder, section, method, product, record)], views))


def make_student(experiment: Experiment, fresh: bool = False) -> Artefact:
    """Stage 3, distillation training: the student learns from labels and, by the method's terms, from the teacher."""
    return _only(make_students([experiment], fresh))


def make_students(experiments: Sequence[Experiment], fresh: bool = False) -> list[Artefact | Exception]:
    """Stage 3 of several methods, side by side: they share the batches, and the teacher's pass over each.

    Args:
        experiments: of one recipe and seed, with different methods.
        fresh: make those that are done anew.

    Returns:
        Of each, what it delivers; where there are several, the error of one that failed.
    """
    with in_work_dir(experiments[0]):
        return _make_students(experiments, fresh)


def _make_students(experiments: Sequence[Experiment], fresh: bool) -> list[Artefact | Exception]:
    made: list[Artefact | Exception | StageTraining] = []
    teachers: dict[str, Teacher] = {}
    for experiment in experiments:
        try:
            made.append(_student(experiment, teachers, fresh))
        except (InputError, RuntimeError, MemoryError) as error:
            if len(experiments) == 1:
                raise
            made.append(error)
    courses = [one for one in made if isinstance(one, StageTraining)]
    for teacher in teachers.values():
        teacher.shared = len(courses) > 1
    if not courses:
        return [one for one in made if not isinstance(one, StageTraining)]
    _fill(experiments[0], [course.method for course in courses if isinstance(course.method, Distillation)])
    trained = iter(train(courses, _views(experiments[0])))
    return [next(trained) if isinstance(one, StageTraining) else one for one in made]


def fill_cache(experiments: Sequence[Experiment]) -> None:
    """Keep what students of several methods will want of the teacher, before any of them is trained.

    Args:
        experiments: of one recipe, with different methods. Without ``[cache] views`` nothing is to be done.
    """
    with in_work_dir(experiments[0]):
        teachers: dict[str, Teacher] = {}
        courses = [_course(experiment, teachers, *_upstream(experiment)) for experiment in experiments]
        _fill(experiments[0], [course.method for course in courses if isinstance(course.method, Distillation)])


def _fill(experiment: Experiment, methods: Sequence[Distillation]) -> None:
    """Give methods what is kept for them; what is not yet there is worked out now."""
    views = _views(experiment)
    if views is not None and methods:
        terms = {name: term for method in methods for name, term in method.named_terms()}
        kept = Cache(experiment, _teacher(experiment), views).targets(terms)
        for method in methods:
            method.kept = {name: kept[name] for name, _ in method.named_terms()}


def _student(experiment: Experiment, teachers: dict[str, Teacher], fresh: bool) -> Artefact | StageTraining:
    """A student that is up to date, or how to train it; a teacher that it looks at is put into ``teachers``."""
    taught, pretrained = _upstream(experiment)
    folder = student_folder(experiment.work_dir, experiment.recipe)
    done = begin(experiment, folder, student_inputs(experiment, taught, pretrained), fresh)
    collectives.on_rank_zero(lambda: write_atomic(folder / artefact.RECIPE, as_toml(experiment.recipe).encode()))
    return done or _course(experiment, teachers, taught, pretrained)


def _upstream(experiment: Experiment) -> tuple[Artefact | None, Artefact | None]:
    """The teacher and the paraphraser, as far as the student's method needs them."""
    terms = experiment.recipe.terms
    taught = _teacher(experiment) if terms else None
    if taught is None or not any(TERMS[name].needs_paraphraser for name in terms):
        return taught, None
    return taught, require(experiment, "paraphraser", "pretrain", lambda: paraphraser_inputs(experiment, taught))


def _course(
    experiment: Experiment, teachers: dict[str, Teacher], taught: Artefact | None, pretrained: Artefact | None
) -> StageTraining:
    section, folder = experiment.recipe.student, student_folder(experiment.work_dir, experiment.recipe)
    if taught is not None and taught.fingerprint not in teachers:
        teachers[taught.fingerprint] = frozen_teacher(experiment, experiment.load(taught), experiment.normalize(taught))
    paraphrasers = load_paraphrasers(experiment, pretrained) if pretrained else {}
    # Of what is random the student comes first: students of all methods start from the same weights.
    student, record = init_network(experiment, "student", section)
    normalize = experiment.normalize((record["mean"], record["std"]))
    if taught is None:
        return StageTraining(experiment, folder, section, Supervised(student, normalize), student, record)
    method = connect(experiment, student, teachers[taught.fingerprint], normalize, paraphrasers)
    student = method.student.model
    if isinstance(student, ReusedClassifier):
        record["reused_classifier"] = student.record
    return StageTraining(experiment, folder, section, method, student, record)


def student_folder(work_dir: Path, recipe: Recipe) -> Path:
    """Where the student of the recipe's method and seed lies."""
    return work_dir / f"student-{'+'.join(recipe.terms) or 'alone'}-seed{recipe.student.seed}"


def _views(experiment: Experiment) -> Views | None:
    """The views of the training images, if the recipe wants them fixed."""
    cache = experiment.recipe.cache
    return Views(experiment.augment, len(experiment.data.train), cache.views, cache.seed) if cache.views else None


def _teacher(experiment: Experiment) -> Artefact:
    return require(experiment, "teacher", "teacher", lambda: teacher_inputs(experiment))


def _only(made: list[Artefact | Exception]) -> Artefact:
    (one,) = made
    assert isinstance(one, Artefact)  # the only one that is trained raises its error
    return one
