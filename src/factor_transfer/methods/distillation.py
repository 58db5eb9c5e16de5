"""Stage 3: training of a student on labels and on the terms that compare it with a teacher."""

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
    """The student's cross-entropy plus a weighted sum of terms: ``L = CE(student, labels) + sum of weight * term``.

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
        needs_logits = any(term.teacher_logits for term in terms.values())
        self.student = Taps(student, student_taps, student_prepare)
        self.teacher = teacher if isinstance(teacher, Teacher) else Teacher(teacher, teacher_prepare)
        self.teacher.want(teacher_taps, needs_logits)
        self.cached: dict[str, CachedTargets] = {}  # cached targets of fixed views: of every term, or empty
        self.cross_entropy = prod(term.cross_entropy for term in terms.values())
        # Tensors, so that a change of their values does not recompile a compiled step.
        for name in terms:
            self.register_buffer(f"warmth_{name}", torch.ones(()), persistent=False)

    def begin_epoch(self, epoch: int) -> None:
        """Set the warm-up factors of the terms' weights for an epoch, counted from 0."""
        for name, term in self.named_terms():
            warmth = min((epoch + 1) / term.warmup_epochs, 1.0) if term.warmup_epochs else 1.0
            self.get_buffer(f"warmth_{name}").fill_(warmth)

    def named_terms(self) -> Iterator[tuple[str, Term]]:
        """The terms with their names."""
        return ((name, cast("Term", term)) for name, term in self.terms.items())

    @torch.no_grad()
    def targets(self, images: Tensor, indices: Tensor | None = None, views: Tensor | None = None) -> dict[str, Target]:
        """The teacher's target for each term, from images (B, C, H, W), or from the cache for fixed views."""
        if self.cached and indices is not None and views is not None:
            return {name: self.cached[name](indices, views) for name, _ in self.named_terms()}
        if not self.terms:
            return {}
        outputs = self.teacher(images)
        return {name: term.target(outputs) for name, term in self.named_terms()}

    def forward(
        self,
        images: Tensor,
        labels: Tensor,
        indices: Tensor | None = None,
        views: Tensor | None = None,
        targets: Mapping[str, Target] | None = None,
    ) -> Losses:
        """Compute the losses of a batch.

        Args:
            images: the student's input before ``student_prepare``, (B, C, H, W).
            labels: the classes of the images, int64 (B,).
            indices: the indices of the images in the training set, int64 (B,). Only a few terms need them.
            views: the indices of the images' fixed views, int64 (B,), if there are fixed views.
            targets: the teacher's targets by term. They are computed from ``images`` if left out.
        """
        if targets is None:
            targets = self.targets(images, indices, views)
        outputs = self.student(images)
        losses = {"loss_ce": self.cross_entropy * F.cross_entropy(outputs.logits, labels)}
        for name, term in self.named_terms():
            distance = term(outputs, targets[name], Batch(images, labels, indices, views))
            losses[f"loss_{name}"] = self.get_buffer(f"warmth_{name}") * term.weight * distance
        return {
            "loss": torch.stack(list(losses.values())).sum(),
            **losses,
            "accuracy": accuracy(outputs.logits, labels),
        }
