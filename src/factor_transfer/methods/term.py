"""A term: one way to learn from a teacher, beside the labels. Terms add up."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

from torch import Tensor, nn
from torch.nn import functional as F

from factor_transfer.data import Batch
from factor_transfer.errors import InputError
from factor_transfer.models.inference import eval_mode
from factor_transfer.taps.extract import Seen, Taps
from factor_transfer.taps.stages import stages

Target = Tensor | tuple[Tensor, ...]


class Side:
    """The teacher, or the student, as terms find it when they are made.

    Example:
        >>> import torch
        >>> from factor_transfer import Pair, Side, build_model
        >>> images = torch.randn(2, 3, 32, 32)
        >>> teacher, student = (Side(build_model(name, 10), ["layer3"], images) for name in ("resnet20", "resnet8"))
        >>> teacher.stages, student.maps(["layer3"])
        (['layer1', 'layer2', 'layer3'], [(64, 8, 8)])

    Args:
        model: the network.
        taps: where the recipe says to look.
        images: a few, as the network takes them (B, C, H, W).
    """

    def __init__(self, model: nn.Module, taps: Sequence[str], images: Tensor) -> None:
        self.model, self.taps, self.images = model, tuple(taps), images

    @cached_property
    def stages(self) -> list[str]:
        """The taps at the ends of its stages, see ``anatomy.stages``."""
        return stages(self.model, self.images[:2])

    def see(self, taps: Sequence[str]) -> Seen:
        """What it says to the images, in evaluation mode."""
        network = Taps(self.model, taps)
        with eval_mode(network):
            seen: Seen = network(self.images)
            return seen

    def shapes(self, taps: Sequence[str]) -> list[tuple[int, ...]]:
        """Of the features at ``taps``: (C, H, W) of a map, (C,) of a vector."""
        _, features = self.see(taps)
        return [tuple(features[tap].shape[1:]) for tap in taps]

    def maps(self, taps: Sequence[str]) -> list[tuple[int, int, int]]:
        """Channels, height and width of the feature maps at ``taps``.

        Raises:
            InputError: one of them is no map.
        """
        found = []
        for tap, shape in zip(taps, self.shapes(taps), strict=True):
            if len(shape) != 3:
                raise InputError(f"tap {tap!r} returns shape {shape} for an image; a feature map (C, H, W) is needed")
            found.append((shape[0], shape[1], shape[2]))
        return found

    @cached_property
    def classes(self) -> int:
        """How many it tells apart: K of its logits (B, K)."""
        logits, _ = self.see([])
        if logits is None or logits.dim() != 2:
            shape = None if logits is None else tuple(logits.shape)
            raise InputError(f"{type(self.model).__name__} returns {shape} for a batch; logits (B, K) are needed")
        return logits.shape[1]


@dataclass(frozen=True)
class Pair:
    """What terms are made from.

    Example:
        >>> import torch
        >>> from factor_transfer import Pair, Side, build_model
        >>> images = torch.randn(2, 3, 32, 32)
        >>> teacher, student = (Side(build_model(name, 10), ["layer3"], images) for name in ("resnet20", "resnet8"))
        >>> teacher.stages, student.maps(["layer3"])
        (['layer1', 'layer2', 'layer3'], [(64, 8, 8)])
        >>> Pair(teacher, student).classes("kd")
        10

    Attributes:
        teacher: trained.
        student: not yet.
        paraphrasers: trained, one for each of the teacher's taps; empty where there is none.
        labels: int64 (N,): of all training images.
    """

    teacher: Side
    student: Side
    paraphrasers: Mapping[str, nn.Module] = field(default_factory=dict)
    labels: Tensor | None = None

    def classes(self, name: str) -> int:
        """How many classes both networks tell apart.

        Args:
            name: of the term that compares their logits, for the message.

        Raises:
            InputError: not as many the one as the other, or one only.
        """
        if self.teacher.classes != self.student.classes:
            raise InputError(
                f"{name} compares answers to the same classes, but the teacher has {self.teacher.classes} and the "
                f"student {self.student.classes}; give the teacher a head for the student's classes"
            )
        if self.student.classes < 2:
            raise InputError(f"{name} compares answers to several classes, but there is one class only")
        return self.student.classes

    def connect(
        self,
        name: str,
        teacher_taps: Sequence[str] | None,
        student_taps: Sequence[str] | None,
        defaults: tuple[Sequence[str], Sequence[str]],
    ) -> tuple[list[str], list[str]]:
        """The taps of a term that reads features, each of the teacher's with one of the student's.

        Args:
            name: of the term, for the message.
            teacher_taps: what the recipe says, if it does.
            student_taps: likewise.
            defaults: of teacher and student; where one has more than the other, its last ones are taken.

        Raises:
            InputError: not as many of the one as of the other.
        """
        count = min(len(side) for side in defaults)
        teacher, student = (
            list(given if given is not None else default[-count:])
            for given, default in zip((teacher_taps, student_taps), defaults, strict=True)
        )
        if len(teacher) != len(student) or not teacher:
            raise InputError(
                f"{name} needs as many taps of the student as of the teacher, got {student} and {teacher}: give both "
                f"transfer.{name}.teacher_taps and transfer.{name}.student_taps"
            )
        return teacher, student


class Term(nn.Module):
    """One way to learn from a teacher: a loss beside the student's cross-entropy.

    A term says what it wants from both networks, turns the teacher's side into a target, and compares the
    student with it. The keyword-only arguments of ``__init__``, ``between`` and ``adapt`` are what a recipe's
    ``[transfer.NAME]`` may say.

    Example:
        >>> from torch.nn import functional as F
        >>> from factor_transfer import Term
        >>> class Logits(Term):
        ...     teacher_logits = True
        ...
        ...     def target(self, teacher):
        ...         return teacher.logits
        ...
        ...     def forward(self, student, target, batch):
        ...         return F.mse_loss(student.logits, target)

    Attributes:
        weight: what its loss is multiplied by.
        cross_entropy: what the student's cross-entropy is multiplied by.
        warmup_epochs: in so many epochs the weight rises to its full size, linearly.
        teacher_taps: features wanted from the teacher.
        student_taps: features wanted from the student.
        teacher_logits: whether they are wanted; if no term wants them, the teacher stops at its last tap.
        uses_taps: whether it looks where ``[teacher] tap`` and ``[student] tap`` say.
        needs_paraphraser: whether stage 2 must have been run.
    """

    weight: float = 1.0
    cross_entropy: float = 1.0
    warmup_epochs: float = 0.0
    teacher_taps: Sequence[str] = ()
    student_taps: Sequence[str] = ()
    teacher_logits: bool = False
    uses_taps: bool = False
    needs_paraphraser: bool = False

    @classmethod
    def between(cls, pair: Pair, **settings: Any) -> Self:
        """The term for two networks, with all that it needs between them; how a recipe's terms are made."""
        return cls(**settings)

    @classmethod
    def adapt(cls, pair: Pair, **settings: Any) -> nn.Module:
        """What takes the student's place, trained and deployed; the student itself, mostly."""
        return pair.student.model

    def target(self, teacher: Seen) -> Target:
        """What the teacher says. It depends on the frozen side alone, and carries no gradient."""
        raise NotImplementedError

    def target_settings(self) -> dict[str, Any]:
        """What the target depends on besides the teacher, its taps and the paraphraser: a cache is of that alone."""
        return {}

    def forward(self, student: Seen, target: Any, batch: Batch) -> Tensor:
        """The student's distance from the target, 0-d, before the weight."""
        raise NotImplementedError


def match(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Bring two feature maps to one height and width: the larger is average-pooled to the smaller, side by side.

    Args:
        student: (B, C, H, W).
        teacher: (B, C', H', W').

    Returns:
        Both, of height min(H, H') and width min(W, W').

    Raises:
        InputError: one of them is no map.
    """
    if student.dim() != 4 or teacher.dim() != 4:
        raise InputError(
            f"the student's feature {tuple(student.shape)} and the teacher's {tuple(teacher.shape)} cannot be matched: "
            "both must be maps (B, C, H, W), whose larger height and width are then average-pooled to the smaller"
        )
    size = min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3])

    def pooled(feature: Tensor) -> Tensor:
        return feature if feature.shape[2:] == size else F.adaptive_avg_pool2d(feature, size)

    return pooled(student), pooled(teacher)
