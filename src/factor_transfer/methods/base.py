"""The one contract of all training: ``losses = method(images, labels)``.

``losses`` is a dict of 0-d tensors on the device. ``"loss"`` is what is minimised; ``"loss_…"`` are its parts,
as they enter the sum; anything else is a figure to show. What is not inside a ``Frozen`` is trained.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from factor_transfer.taps import Taps

Losses = dict[str, Tensor]


class Frozen(nn.Module):
    """A module that is used, never trained: no gradient, evaluation mode, whatever ``train()`` says.

    Args:
        module: its parameters are set to need no gradient, in place.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> "Frozen":
        """Stay in evaluation mode."""
        super().train(False)
        return self

    @torch.no_grad()
    def forward(self, *args: Any) -> Any:
        """What the module returns, without a graph."""
        return self.module(*args)


def trained_state(method: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of all that is trained: the state without the frozen parts."""
    frozen = _frozen_prefixes(method)
    return {key: value for key, value in method.state_dict().items() if not key.startswith(frozen)}


def load_trained_state(method: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put back what ``trained_state`` gave.

    Raises:
        RuntimeError: if the keys are not the same or a shape differs.
    """
    missing, unexpected = method.load_state_dict(state, strict=False)
    missing = [key for key in missing if not key.startswith(_frozen_prefixes(method))]
    if missing or unexpected:
        raise RuntimeError(f"missing: {missing}, unexpected: {unexpected}")


def _frozen_prefixes(method: nn.Module) -> tuple[str, ...]:
    return tuple(f"{name}." for name, module in method.named_modules() if isinstance(module, Frozen))


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of right answers in a batch, in percent; 0-d."""
    return 100 * (logits.detach().argmax(1) == labels).float().mean()


class Supervised(nn.Module):
    """Training on labels alone: the teacher, or a student without one.

    Args:
        model: images -> logits (B, K).
        prepare: turns a batch into the network's input, such as ``Normalize``.
    """

    def __init__(self, model: nn.Module, prepare: nn.Module | None = None) -> None:
        super().__init__()
        self.model = Taps(model, prepare=prepare)

    def forward(self, images: Tensor, labels: Tensor) -> Losses:
        """Cross-entropy of images (B, C, H, W) and labels int64 (B,)."""
        logits, _ = self.model(images)
        loss = F.cross_entropy(logits, labels)
        return {"loss": loss, "accuracy": accuracy(logits, labels)}


@dataclass(frozen=True)
class Pair:
    """What a term may be made from.

    Attributes:
        teacher_tap: the teacher's feature.
        student_tap: the student's.
        teacher_shape: of that feature: channels, height, width.
        student_shape: likewise.
        paraphraser: trained on the teacher's feature.
    """

    teacher_tap: str
    student_tap: str
    teacher_shape: tuple[int, int, int]
    student_shape: tuple[int, int, int]
    paraphraser: nn.Module


class Term(nn.Module):
    """One way to learn from a teacher: a loss beside the student's cross-entropy.

    A term says what it wants from both networks, turns the teacher's side into a target, and compares the
    student with it. Those of its arguments that have a default are what a recipe's ``[transfer.NAME]`` may say.

    Attributes:
        weight: what its loss is multiplied by.
        teacher_taps: features wanted from the teacher.
        student_taps: features wanted from the student.
        teacher_logits: whether they are wanted; if no term wants them, the teacher stops at its last tap.
    """

    weight: float = 1.0
    teacher_taps: tuple[str, ...] = ()
    student_taps: tuple[str, ...] = ()
    teacher_logits: bool = False

    @classmethod
    def between(cls, pair: Pair, **settings: Any) -> Self:
        """The term for two networks, with all that it needs between them; how a recipe's terms are made."""
        raise NotImplementedError

    def target(self, logits: Tensor | None, features: Mapping[str, Tensor]) -> Tensor:
        """What the teacher says. It depends on the frozen side alone, and carries no gradient."""
        raise NotImplementedError

    def forward(self, logits: Tensor, features: Mapping[str, Tensor], target: Tensor, labels: Tensor) -> Tensor:
        """The student's distance from the target, 0-d, before the weight."""
        raise NotImplementedError


class Distillation(nn.Module):
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
        teacher: likewise. Frozen.
        terms: by name; each appears as ``loss_NAME``, weighted, so that the parts add up to the loss.
        student_prepare: turns a batch into the student's input, such as ``Normalize``.
        teacher_prepare: the same for the teacher.
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
        self.teacher = Frozen(Taps(teacher, teacher_taps, teacher_prepare, logits=wants_logits))

    def _terms(self) -> Iterator[tuple[str, Term]]:
        return ((name, cast("Term", term)) for name, term in self.terms.items())

    @torch.no_grad()
    def targets(self, images: Tensor) -> dict[str, Tensor]:
        """What the teacher says to images (B, C, H, W), term by term."""
        logits, features = self.teacher(images)
        return {name: term.target(logits, features) for name, term in self._terms()}

    def forward(self, images: Tensor, labels: Tensor, targets: Mapping[str, Tensor] | None = None) -> Losses:
        """The losses of images (B, C, H, W) and labels int64 (B,).

        Args:
            images: what the student sees.
            labels: the right answers.
            targets: of the teacher, if they are at hand; worked out from ``images`` otherwise.
        """
        if targets is None:
            targets = self.targets(images)
        logits, features = self.student(images)
        losses = {"loss_ce": F.cross_entropy(logits, labels)}
        for name, term in self._terms():
            losses[f"loss_{name}"] = term.weight * term(logits, features, targets[name], labels)
        return {
            "loss": torch.stack(list(losses.values())).sum(),
            **losses,
            "accuracy": accuracy(logits, labels),
        }
