"""Stage 3: a student learns from labels and, term by term, from a teacher."""

from collections.abc import Iterator, Mapping
from math import prod
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from factor_transfer.data import Batch
from factor_transfer.methods.base import CachedTargets, Losses, Method, accuracy
from factor_transfer.methods.teacher import Teacher
from factor_transfer.methods.term import Target, Term
from factor_transfer.taps.extract import Taps


class Distillation(Method):
    """The student's cross-entropy plus any terms: ``L = CE(student, labels) + sum of weight * term``.

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
        student: images -> logits (B, K). Trained.
        teacher: likewise. Frozen. Or a ``Teacher``, which several methods may share.
        terms: by name; each appears as ``loss_NAME``, weighted, so that the parts add up to the loss.
        student_prepare: turns a batch into the student's input, such as ``Normalize``.
        teacher_prepare: the same for the teacher; a ``Teacher`` has its own.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        terms: Mapping[str, Term],
        student_prepare: nn.Module | None = None,
        teacher_prepare: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.terms = nn.ModuleDict(terms)
        student_taps = [tap for term in terms.values() for tap in term.student_taps]
        teacher_taps = [tap for term in terms.values() for tap in term.teacher_taps]
        wants_logits = any(term.teacher_logits for term in terms.values())
        self.student = Taps(student, student_taps, student_prepare)
        self.teacher = teacher if isinstance(teacher, Teacher) else Teacher(teacher, teacher_prepare)
        self.teacher.want(teacher_taps, wants_logits)
        self.cached: dict[str, CachedTargets] = {}  # targets of fixed views, where those of every term are at hand
        self.cross_entropy = prod(term.cross_entropy for term in terms.values())
        # Tensors, so that a compiled step need not be compiled anew when they change.
        for name in terms:
            self.register_buffer(f"warmth_{name}", torch.ones(()), persistent=False)

    def begin_epoch(self, epoch: int) -> None:
        """Weights rise during the first epochs, where a term says so."""
        for name, term in self.named_terms():
            warmth = min((epoch + 1) / term.warmup_epochs, 1.0) if term.warmup_epochs else 1.0
            self.get_buffer(f"warmth_{name}").fill_(warmth)

    def named_terms(self) -> Iterator[tuple[str, Term]]:
        """The terms, with their names."""
        return ((name, cast("Term", term)) for name, term in self.terms.items())

    @torch.no_grad()
    def targets(self, images: Tensor, indices: Tensor | None = None, views: Tensor | None = None) -> dict[str, Target]:
        """What the teacher says to images (B, C, H, W), term by term; of fixed views, what is kept of that."""
        if self.cached and indices is not None and views is not None:
            return {name: self.cached[name](indices, views) for name, _ in self.named_terms()}
        if not self.terms:
            return {}
        seen = self.teacher(images)
        return {name: term.target(seen) for name, term in self.named_terms()}

    def forward(
        self,
        images: Tensor,
        labels: Tensor,
        indices: Tensor | None = None,
        views: Tensor | None = None,
        targets: Mapping[str, Target] | None = None,
    ) -> Losses:
        """The losses of images (B, C, H, W) and labels int64 (B,).

        Args:
            images: what the student sees.
            labels: the right answers.
            indices: int64 (B,): which of the training images they are; few terms ask.
            views: int64 (B,): which of their fixed views, where there are such.
            targets: of the teacher, if they are at hand; worked out from ``images`` otherwise.
        """
        if targets is None:
            targets = self.targets(images, indices, views)
        seen = self.student(images)
        losses = {"loss_ce": self.cross_entropy * F.cross_entropy(seen.logits, labels)}
        for name, term in self.named_terms():
            distance = term(seen, targets[name], Batch(images, labels, indices, views))
            losses[f"loss_{name}"] = self.get_buffer(f"warmth_{name}") * term.weight * distance
        return {
            "loss": torch.stack(list(losses.values())).sum(),
            **losses,
            "accuracy": accuracy(seen.logits, labels),
        }
