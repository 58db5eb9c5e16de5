"""Stage 3, distillation training: the student learns from labels and, through its method's terms, from the teacher."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from factor_transfer.config.read import as_toml
from factor_transfer.config.recipe import Recipe
from factor_transfer.data import Batch
from factor_transfer.data.augment.crops import OF_STUDENT
from factor_transfer.distributed import collectives
from factor_transfer.errors import InputError
from factor_transfer.files import write_atomic
from factor_transfer.methods import (
    TERMS,
    Distillation,
    Pair,
    Paraphraser,
    ReusedClassifier,
    Side,
    Supervised,
    Teacher,
    Term,
    cross_entropy,
)
from factor_transfer.methods.own import errors_of
from factor_transfer.methods.schedule import weight_factor
from factor_transfer.methods.term import as_taps
from factor_transfer.models import Normalize
from factor_transfer.pipeline import artefact
from factor_transfer.pipeline.artefact import Artefact
from factor_transfer.pipeline.experiment import Experiment
from factor_transfer.pipeline.finished_run import folder_name
from factor_transfer.pipeline.provenance import (
    code_provenance,
    frozen_provenance,
    training_provenance,
    unlabelled_provenance,
)
from factor_transfer.pipeline.stages.cache import Cache
from factor_transfer.pipeline.stages.finetune import fine_tuning, untuned_folder
from factor_transfer.pipeline.stages.paraphraser import load_paraphrasers, new_paraphrasers, require_paraphraser
from factor_transfer.pipeline.stages.sizes import print_sizes
from factor_transfer.pipeline.stages.stage import StageTraining, in_work_dir, start_stage, train
from factor_transfer.pipeline.stages.teacher import frozen_teacher, require_teacher
from factor_transfer.pipeline.weights.initial import init_network
from factor_transfer.pipeline.weights.trial import depends_on_logits
from factor_transfer.settings import chosen


def make_student(experiment: Experiment, fresh: bool = False) -> Artefact:
    """Train the student by the recipe's method, or return it if it is up to date.

    Args:
        experiment: the experiment. Its work dir must have the teacher and the paraphraser that the method needs.
        fresh: whether to train the student again even if it is up to date.

    Returns:
        The finished stage.
    """
    (student,) = make_students([experiment], fresh)
    if isinstance(student, Exception):
        raise student
    return student


@in_work_dir
def make_students(experiments: Sequence[Experiment], fresh: bool = False) -> list[Artefact | Exception]:
    """Train the students of several methods in lockstep: they share the batches and the teacher's forward passes.

    Args:
        experiments: experiments of one recipe and seed, with different methods or variants.
        fresh: whether to train students again that are up to date.

    Returns:
        The finished stage of each experiment, or the error of one that failed, so that the others continue.
    """
    teachers: dict[str, Teacher] = {}
    prepared = [_attempt(partial(_student, one, teachers, fresh)) for one in experiments]
    students = _train(experiments, prepared, teachers)
    followed = [
        student
        if isinstance(student, Exception) or experiment.recipe.student.finetune is None
        else _attempt(partial(_fine_tuning, experiment, student, fresh))
        for experiment, student in zip(experiments, students, strict=True)
    ]
    return _train(experiments, followed, {})


def _attempt(prepare: Callable[[], Artefact | StageTraining]) -> Artefact | StageTraining | Exception:
    """The result of ``prepare``, or its error."""
    try:
        return prepare()
    except (InputError, RuntimeError, MemoryError) as error:
        return error


def _train(
    experiments: Sequence[Experiment],
    students: Sequence[Artefact | Exception | StageTraining],
    teachers: Mapping[str, Teacher],
) -> list[Artefact | Exception]:
    """Train those of several students that are not up to date, side by side where they have the same batches."""
    trainings = [student for student in students if isinstance(student, StageTraining)]
    for teacher in teachers.values():
        teacher.shared = len(trainings) > 1
    if not trainings:
        return [student for student in students if not isinstance(student, StageTraining)]
    _fill(experiments[0], [training.method for training in trainings if isinstance(training.method, Distillation)])
    trained: dict[Path, Artefact | Exception] = {}
    for group in _with_the_same_batches(trainings):
        folders = [training.folder for training in group]
        try:
            outcomes = train(group)
        except (InputError, RuntimeError, MemoryError) as error:
            outcomes = [error] * len(group)
        trained |= dict(zip(folders, outcomes, strict=True))
    return [trained[student.folder] if isinstance(student, StageTraining) else student for student in students]


def _with_the_same_batches(trainings: Sequence[StageTraining]) -> list[list[StageTraining]]:
    """The groups of students with the same settings of ``[student]`` that are trained on the same images.

    Where there are images without labels, a student alone needs the labelled ones.
    """
    unlabelled = trainings[0].experiment.data.unlabelled is not None and trainings[0].stage == "student"
    groups: dict[str, list[StageTraining]] = {}
    for training in sorted(trainings, key=lambda one: unlabelled and not isinstance(one.method, Supervised)):
        labelled = unlabelled and isinstance(training.method, Supervised)
        settings = training.section.model_dump_json(exclude={"labels"})
        groups.setdefault(f"{labelled} {settings}", []).append(training)
    return list(groups.values())


@in_work_dir
def fill_cache(experiments: Sequence[Experiment]) -> None:
    """Cache the targets of several methods before any of their students is trained.

    Args:
        experiments: experiments of one recipe, with different methods. If it has no ``[cache] views``, nothing is done.
    """
    teachers: dict[str, Teacher] = {}
    trainings = [_training(experiment, teachers, *_upstream(experiment)) for experiment in experiments]
    _fill(experiments[0], [training.method for training in trainings if isinstance(training.method, Distillation)])


def _fill(experiment: Experiment, methods: Sequence[Distillation]) -> None:
    """Set the cached targets of methods; targets that are not cached yet are computed first."""
    views = experiment.views
    if views is not None and methods:
        terms = {name: term for method in methods for name, term in method.named_terms()}
        cached = Cache(experiment, require_teacher(experiment), views).targets(terms)
        for method in methods:
            method.cached = {name: cached[name] for name, _ in method.named_terms()}


def _student(experiment: Experiment, teachers: dict[str, Teacher], fresh: bool) -> Artefact | StageTraining:
    """A student that is up to date, or its training; the frozen teacher that it needs is added to ``teachers``."""
    teacher, paraphraser = _upstream(experiment)
    folder = _first_folder(experiment)
    done = start_stage(experiment, folder, student_provenance(experiment, teacher, paraphraser), fresh)
    _write_recipe(experiment, folder)
    return done or _training(experiment, teachers, teacher, paraphraser)


def _fine_tuning(experiment: Experiment, untuned: Artefact, fresh: bool) -> Artefact | StageTraining:
    """A fine-tuned student that is up to date, or its training."""
    folder = student_folder(experiment.work_dir, experiment.recipe)
    found = fine_tuning(experiment, folder, untuned, fresh)
    _write_recipe(experiment, folder)
    return found


def _write_recipe(experiment: Experiment, folder: Path) -> None:
    collectives.on_rank_zero(lambda: write_atomic(folder / artefact.RECIPE, as_toml(experiment.recipe).encode()))


def _first_folder(experiment: Experiment) -> Path:
    """The folder of the student, or that of the student before fine-tuning, if it will be fine-tuned."""
    recipe = experiment.recipe
    folder = student_folder if recipe.student.finetune is None else untuned_folder
    return folder(experiment.work_dir, recipe)


def _upstream(experiment: Experiment) -> tuple[Artefact | None, Artefact | None]:
    """The teacher and the paraphraser; ``None`` for each that the student's method does not need."""
    teacher = require_teacher(experiment) if experiment.recipe.terms else None
    if teacher is None or not experiment.recipe.needs_paraphraser:
        return teacher, None
    return teacher, require_paraphraser(experiment, teacher)


def _training(
    experiment: Experiment, teachers: dict[str, Teacher], teacher: Artefact | None, paraphraser: Artefact | None
) -> StageTraining:
    section, folder = experiment.recipe.student, _first_folder(experiment)
    frozen = None
    if teacher is not None:
        if teacher.fingerprint not in teachers:
            model, normalize = experiment.load(teacher), experiment.normalize(teacher)
            teachers[teacher.fingerprint] = frozen_teacher(experiment, model, normalize)
        frozen = teachers[teacher.fingerprint]
    paraphrasers = load_paraphrasers(experiment, paraphraser) if paraphraser else {}
    # The student's weights are the first random numbers drawn, so students of all methods start from the same ones.
    student, record = init_network(experiment, "student", section)
    normalize = experiment.normalize((record["mean"], record["std"]))
    method = build_student_method(experiment, student, normalize, frozen, paraphrasers)
    if isinstance(method, Distillation):
        student = method.student.model  # a term may have replaced it
    if isinstance(student, ReusedClassifier):
        record["reused_classifier"] = student.record
    return StageTraining(experiment, folder, section, method, student, record)


def student_provenance(
    experiment: Experiment, teacher: Artefact | None, paraphraser: Artefact | None
) -> dict[str, Any]:
    """The inputs of the student stage, with the teacher and the paraphraser that its terms need."""
    recipe = experiment.recipe
    inputs = training_provenance(experiment, recipe.student, student=recipe.student, **recipe.terms)
    inputs["augment"] |= recipe.augment.model_dump(mode="json", include=OF_STUDENT, exclude_none=True)
    if any(TERMS[name].uses_taps for name in recipe.terms):
        inputs["taps"] = " → ".join(", ".join(taps) for taps in experiment.taps)
    inputs |= frozen_provenance(experiment, has_teacher=teacher is not None) | unlabelled_provenance(experiment)
    if teacher is not None:
        inputs["teacher"] = teacher.fingerprint
        if recipe.transfer.schedule != "constant":
            inputs["schedule_of_terms"] = recipe.transfer.schedule
    if paraphraser is not None:
        inputs["paraphraser"] = paraphraser.fingerprint
    return inputs | code_provenance(recipe.terms)


def student_folder(work_dir: Path, recipe: Recipe) -> Path:
    """The folder of the student of the recipe's method, variant and seed."""
    return work_dir / folder_name(recipe.row, recipe.student.seed)


def build_student_method(
    experiment: Experiment,
    student: nn.Module,
    normalize: Normalize,
    teacher: Teacher | None,
    paraphrasers: Mapping[str, Paraphraser],
) -> Supervised | Distillation:
    """The method that trains the student: its cross-entropy and the terms of the recipe's method.

    Args:
        experiment: the experiment, whose recipe names the terms.
        student: the network to train; a term may replace it.
        normalize: the module that turns raw images into the student's input.
        teacher: the frozen teacher, see ``frozen_teacher``, which several methods may share; ``None`` for a method
            without terms.
        paraphrasers: the trained paraphrasers by tap; empty if no term needs them.

    Raises:
        InputError: if a term cannot be used between these two networks.
    """
    own_prepare, section = experiment.student_input(normalize), experiment.recipe.student
    criterion = cross_entropy(section.label_smoothing)
    if teacher is None or not experiment.recipe.terms:
        return Supervised(student, own_prepare, criterion)
    teacher_taps, student_taps = experiment.taps
    teacher_model, prepare = teacher.module.model, teacher.module.prepare
    examples = experiment.examples
    pair = Pair(
        Side(teacher_model, teacher_taps, examples if prepare is None else prepare(examples)),
        Side(student, student_taps, normalize(examples)),
        paraphrasers,
        experiment.data.train.labels,
    )
    terms = experiment.recipe.terms
    for name in terms:
        adapted = TERMS[name].adapt(pair, **chosen(terms[name], TERMS[name].adapt))
        if adapted is not student:
            if len(terms) > 1:
                raise InputError(f"{name} replaces the student's network, so it cannot be combined with other terms")
            student = experiment.fabric.to_device(adapted)
            pair = replace(pair, student=Side(student, student_taps, pair.student.images))
    built: dict[str, Term] = {}
    for name in terms:
        arguments = chosen(terms[name], TERMS[name], TERMS[name].between)
        with errors_of(name, TERMS[name], "between"):
            built[name] = TERMS[name].between(pair, **arguments).to(experiment.fabric.device)
    assert section.epochs is not None  # a student is always trained
    return Distillation(
        student,
        teacher,
        built,
        own_prepare,
        criterion=None if section.labels == "none" else criterion,
        schedule=partial(weight_factor, experiment.recipe.transfer.schedule, epochs=section.epochs),
    )


def preflight(experiment: Experiment, methods: Iterable[str]) -> None:
    """Run every method once with the recipe's untrained networks, to find errors before hours of training.

    Args:
        experiment: the experiment.
        methods: the names of the methods, such as ``"factor+kd"``, or the rows of a comparison, see ``Recipe.row``.

    Raises:
        InputError: if a tap does not exist, or a term cannot be used between these networks.
    """
    targets: dict[str, tuple[Any, ...]] = {}
    state = torch.random.get_rng_state()
    for method in methods:
        other = experiment.with_method(method)
        recipe = other.recipe
        for warning in recipe.warnings:
            other.say_once(f"Warning: {warning}")
        student, teacher = other.build(recipe.student), other.build(recipe.teacher)
        student_input, teacher_input = (
            other.normalize(other.statistics(section)) for section in (recipe.student, recipe.teacher)
        )
        paraphrasers = new_paraphrasers(other, teacher, teacher_input) if other.recipe.needs_paraphraser else {}
        distillation = build_student_method(
            other, student, student_input, Teacher(teacher, teacher_input), paraphrasers
        )
        if isinstance(distillation, Distillation):
            print_sizes(other, distillation, paraphrasers)
            for name, term in distillation.named_terms():
                target = as_taps(term.teacher_taps), term.teacher_logits, term.target_settings()
                if experiment.views is not None and targets.setdefault(name, target) != target:
                    raise InputError(
                        f"{recipe.variant} changes what the factor cache holds for {name}, but all rows of a "
                        "comparison share the cache; leave out [cache] views"
                    )
        distillation.eval()
        device = experiment.fabric.device
        batch = experiment.examples[:2], experiment.data.train.labels[:2].to(device), torch.arange(2, device=device)
        with torch.no_grad():
            distillation(*batch)
        if isinstance(distillation, Distillation) and distillation.criterion is None:
            _check_classifier(recipe, distillation, Batch(*batch))
    torch.random.set_rng_state(state)


def _check_classifier(recipe: Recipe, method: Distillation, batch: Batch) -> None:
    """Raise an error if nothing trains the classifier of a student that learns without labels."""
    learned = isinstance(method.student.model, ReusedClassifier) or depends_on_logits(method, method.student, batch)
    if not learned and recipe.student.finetune is None:
        raise InputError(
            f'student.labels = "none": {recipe.method} compares features only, so the student\'s classifier would not '
            "be trained; add a term that compares logits, such as kd, or fine-tune it with student.finetune.epochs"
        )
