"""Stage 3: training of a student on labels and on the terms that compare it with a teacher."""

from collections.abc import Callable, Iterator, Mapping
from math import prod
from typing import cast

import torch
from torch import Tensor, nn

from factor_transfer.data import UNLABELLED, Batch
from factor_transfer.errors import InputError
from factor_transfer.methods.base import CachedTargets, Losses, Method, check_trained, trained_state
from factor_transfer.methods.criterion import Criterion, accuracy, cross_entropy, labelled_rows, loss_of_labels
from factor_transfer.methods.own import errors_of
from factor_transfer.methods.teacher import Teacher
from factor_transfer.methods.term import Target, Term, as_taps
from factor_transfer.taps.extract import Seen, Taps

_CROSS_ENTROPY = cross_entropy()
LABEL_LOSSES = "ce", "labels"  # the losses on labels are "loss_ce" and "loss_labels"


class Distillation(Method):
    """The student's loss on labels plus a weighted sum of terms: ``L = CE(student, labels) + sum of weight * term``.

    Example:
        >>> import torch
        >>> from factor_transfer import Distillation, FactorTransfer, Paraphraser, Translator, build_model
        >>> teacher, student = build_model("resnet20", 10), build_model("resnet8", 10)
        >>> factor = FactorTransfer(Paraphraser(64), Translator(64, 32), "layer3", "layer3", beta=500)
        >>> method = Distillation(student, teacher, {"factor": factor})
        >>> losses = method(torch.randn(2, 3, 32, 32), torch.tensor([3, 7]))
        >>> sorted(losses)
        ['accuracy', 'loss', 'loss_ce', 'loss_factor']

    Args:
        student: the network to train, images (B, C, H, W) -> logits (B, K).
        teacher: the frozen network, images (B, C, H, W) -> logits (B, K); or a ``Teacher``, which several methods may
            share.
        terms: the terms by name. The losses contain each as ``loss_NAME``, weighted, so that the parts add up to the
            loss.
        student_prepare: a module that turns a batch into the student's input, such as ``Normalize``.
        teacher_prepare: the same for the teacher. It is ignored if ``teacher`` is a ``Teacher``, which has its own.
        criterion: the loss on labels: logits (B, K) and labels -> 0-d. The default is the cross-entropy, and the losses
            contain it as ``loss_ce``; they contain another one as ``loss_labels``. ``None`` trains by the terms alone,
            without labels.
        schedule: the factor that the weights of all terms are multiplied by in an epoch, counted from 0, such as
            ``lambda epoch: 1 - epoch / 20`` for a training of 20 epochs. It is 1 if left out. ``begin_epoch`` applies
            it.

    Raises:
        InputError: if ``terms`` is not a mapping from names to terms, or empty without a ``criterion``; or if the
            student is frozen.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        terms: Mapping[str, Term],
        student_prepare: nn.Module | None = None,
        teacher_prepare: nn.Module | None = None,
        criterion: Criterion | None = _CROSS_ENTROPY,
        schedule: Callable[[int], float] | None = None,
    ) -> None:
        super().__init__()
        _check_terms(terms)
        if criterion is None and not terms:
            raise InputError("a student without terms learns from labels alone, so it needs a criterion")
        for term in terms.values():
            term.check_student(student)
        self.criterion, self.schedule = criterion, schedule
        self.terms = nn.ModuleDict(terms)
        student_taps = [tap for term in terms.values() for tap in as_taps(term.student_taps)]
        teacher_taps = [tap for term in terms.values() for tap in as_taps(term.teacher_taps)]
        needs_logits = any(term.teacher_logits for term in terms.values())
        self.student = Taps(student, student_taps, student_prepare)
        self.teacher = teacher if isinstance(teacher, Teacher) else Teacher(teacher, teacher_prepare)
        self.teacher.want(teacher_taps, needs_logits)
        check_trained("the student", student)
        self.cached: dict[str, CachedTargets] = {}  # cached targets of fixed views: of every term, or empty
        self.cross_entropy = prod(term.cross_entropy for term in terms.values())
        # Tensors, so that a change of their values does not recompile a compiled step.
        for name in terms:
            self.register_buffer(f"scale_{name}", torch.ones(()), persistent=False)

    def begin_epoch(self, epoch: int) -> None:
        """Set the weights of the terms for an epoch, counted from 0: their warm-up and their schedule.

        These weights are not part of the state dict: call it again after a state is loaded.
        """
        scheduled = self.schedule(epoch) if self.schedule is not None else 1.0
        for name, term in self.named_terms():
            warmth = min((epoch + 1) / term.warmup_epochs, 1.0) if term.warmup_epochs else 1.0
            self.get_buffer(f"scale_{name}").fill_(scheduled * warmth)

    def named_terms(self) -> Iterator[tuple[str, Term]]:
        """The terms with their names."""
        return ((name, cast("Term", term)) for name, term in self.terms.items())

    def connectors(self) -> dict[str, Tensor]:
        """The weights of the modules that the terms train beside the student, such as translators, by ``TERM.PATH``."""
        return {key: value for key, value in trained_state(self.terms).items() if key.count(".") > 1}

    @torch.no_grad()
    def targets(self, images: Tensor, indices: Tensor | None = None, views: Tensor | None = None) -> dict[str, Target]:
        """The teacher's target for each term, from images (B, C, H, W), or from the cache for fixed views."""
        if self.cached and indices is not None and views is not None:
            return {name: self.cached[name](indices, views) for name, _ in self.named_terms()}
        if not self.terms:
            return {}
        outputs = self.teacher(images)
        targets: dict[str, Target] = {}
        for name, term in self.named_terms():
            with errors_of(name, type(term), "target"):
                targets[name] = term.target(outputs)
        return targets

    def forward(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        indices: Tensor | None = None,
        views: Tensor | None = None,
        targets: Mapping[str, Target] | None = None,
    ) -> Losses:
        """Compute the losses of a batch.

        Args:
            images: the student's input before ``student_prepare``, (B, C, H, W).
            labels: the classes of the images, int64 (B,); ``UNLABELLED`` for images without a label, from which the
                student learns by its terms alone. Probabilities of the classes, (B, K), are possible, too, unless a
                term needs classes. ``None`` if no image has a label.
            indices: the indices of the images in the training set, int64 (B,). Only a few terms need them.
            views: the indices of the images' fixed views, int64 (B,), if there are fixed views.
            targets: the teacher's targets by term. They are computed from ``images`` if left out.

        Raises:
            InputError: if a term needs classes, but the labels are probabilities.
        """
        if targets is None:
            targets = self.targets(images, indices, views)
        outputs = self.student(images)
        logits = cast("Tensor", outputs.logits)
        if labels is None:
            labels = torch.full((len(images),), UNLABELLED, device=images.device)
        losses: Losses = {}
        if self.criterion is not None:
            on_labels = loss_of_labels(self.criterion, logits, labels, self.labelled_share)
            kind = "loss_ce" if isinstance(self.criterion, nn.CrossEntropyLoss) else "loss_labels"
            losses[kind] = self.cross_entropy * on_labels
        batch = Batch(images, labels, indices, views)
        for name, term in self.named_terms():
            if term.needs_labels and labels.is_floating_point():
                raise InputError(f"{name} needs the class of each image, but the labels are probabilities of classes")
            with errors_of(name, type(term), "forward"):
                if term.needs_labels and self.labelled_share != 1.0:
                    distance = self._of_labelled(term, outputs, targets[name], batch)
                else:
                    distance = term(outputs, targets[name], batch)
            if not isinstance(distance, Tensor) or distance.dim():
                found = f"shape {tuple(distance.shape)}" if isinstance(distance, Tensor) else type(distance).__name__
                raise InputError(f"the term {name!r} returned a {found}; its loss must be a 0-d tensor, such as a mean")
            losses[f"loss_{name}"] = self.get_buffer(f"scale_{name}") * term.weight * distance
        return {
            "loss": torch.stack(list(losses.values())).sum(),
            **losses,
            "accuracy": accuracy(logits, labels),
        }

    def _of_labelled(self, term: Term, outputs: Seen, target: Target, batch: Batch) -> Tensor:
        """A term of the labelled images of a batch, 0-d."""
        rows = labelled_rows(batch.labels)
        logits = cast("Tensor", outputs.logits)
        if not len(rows):  # a small part of a batch may have none
            return 0.0 * logits.sum()
        part = Seen(logits[rows], {tap: feature[rows] for tap, feature in outputs.features.items()})
        aim = target[rows] if isinstance(target, Tensor) else tuple(tensor[rows] for tensor in target)
        distance: Tensor = term(part, aim, batch.select(rows))
        share = self.labelled_share
        return distance if share is None else distance * (len(rows) / (share * len(batch.labels)))


def _check_terms(terms: object) -> None:
    """Raise an error if ``terms`` is not a mapping from names to terms."""
    if not isinstance(terms, Mapping | nn.ModuleDict):
        kind = type(terms).__name__
        raise InputError(f"terms must map names to terms, such as {{'kd': KD()}}, but got a {kind}")
    for name, term in terms.items():
        if not isinstance(name, str) or not name or "." in name or name in LABEL_LOSSES or hasattr(nn.ModuleDict, name):
            raise InputError(
                f"{name!r} cannot be the name of a term: it is a text without dots, such as 'kd', and neither a word "
                f"that the losses use, {' or '.join(map(repr, LABEL_LOSSES))}, nor the name of a method of a dict"
            )
        if not isinstance(term, Term):
            kind = f"the class {term.__name__}" if isinstance(term, type) else f"a {type(term).__name__}"
            raise InputError(
                f"the term {name!r} is {kind}, but must be an instance of Term, such as KD() or your own subclass"
            )
