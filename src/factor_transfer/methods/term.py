"""The base class of the terms of a distillation loss, and the pair of networks that terms are built for."""

from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

from torch import Tensor, nn
from torch.nn import functional as F

from factor_transfer.data import Batch
from factor_transfer.errors import InputError
from factor_transfer.methods.ranges import check_methods
from factor_transfer.methods.shapes import check_equal_numbers, check_same_images
from factor_transfer.models.inference import eval_mode
from factor_transfer.taps.extract import Seen, Taps
from factor_transfer.taps.stages import stages

Target = Tensor | tuple[Tensor, ...]


def as_taps(taps: str | Sequence[str]) -> list[str]:
    """Taps as a list. A string is one tap, not a sequence of characters."""
    return [taps] if isinstance(taps, str) else list(taps)


def as_modules(modules: nn.Module | Iterable[nn.Module]) -> list[nn.Module]:
    """Modules as a list. A module alone is one of them, also a ``Sequential``, which could be iterated."""
    return [modules] if isinstance(modules, nn.Module) and not isinstance(modules, nn.ModuleList) else list(modules)


class Side:
    """One of the two networks that a term is built for.

    Example:
        >>> import torch
        >>> from factor_transfer import Pair, Side, build_model
        >>> images = torch.randn(2, 3, 32, 32)
        >>> teacher, student = (Side(build_model(name, 10), ["layer3"], images) for name in ("resnet20", "resnet8"))
        >>> teacher.stages, student.maps(["layer3"])
        (['layer1', 'layer2', 'layer3'], [(64, 8, 8)])

    Args:
        model: the teacher or the student, images (B, C, H, W) -> logits (B, K).
        taps: the paths of the modules whose outputs are transferred, as the recipe gives them; or one
            tap.
        images: a few images, preprocessed for the network (B, C, H, W).
    """

    def __init__(self, model: nn.Module, taps: str | Sequence[str], images: Tensor) -> None:
        self.model, self.taps, self.images = model, tuple(as_taps(taps)), images

    @cached_property
    def stages(self) -> list[str]:
        """The taps at the ends of the network's stages, see ``taps.stages.stages``."""
        return stages(self.model, self.images[:2])

    def see(self, taps: str | Sequence[str]) -> Seen:
        """The logits of the images and the features at ``taps``, in evaluation mode."""
        network = Taps(self.model, as_taps(taps))
        with eval_mode(network):
            outputs: Seen = network(self.images)
            return outputs

    def shapes(self, taps: str | Sequence[str]) -> list[tuple[int, ...]]:
        """The shapes of an image's features at ``taps``: (C, H, W) for a map, (C,) for a vector."""
        _, features = self.see(taps)
        return [tuple(features[tap].shape[1:]) for tap in as_taps(taps)]

    def maps(self, taps: str | Sequence[str]) -> list[tuple[int, int, int]]:
        """The channels, height and width of the feature maps at ``taps``.

        Raises:
            InputError: if a feature is not a map.
        """
        found = []
        for tap, shape in zip(as_taps(taps), self.shapes(taps), strict=True):
            if len(shape) != 3:
                raise InputError(
                    f"tap {tap!r} returns a feature of shape {shape} per image; a feature map (C, H, W) is needed"
                )
            found.append((shape[0], shape[1], shape[2]))
        return found

    @cached_property
    def classes(self) -> int:
        """The number of classes: K of the logits (B, K).

        Raises:
            InputError: if the network does not return logits (B, K).
        """
        logits, _ = self.see([])
        if logits is None or logits.dim() != 2:
            shape = None if logits is None else tuple(logits.shape)
            name = type(self.model).__name__
            raise InputError(f"{name} returns an output of shape {shape} for a batch; logits (B, K) are needed")
        return logits.shape[1]


@dataclass(frozen=True)
class Pair:
    """A teacher and a student, from which terms are built.

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
        teacher: the trained teacher.
        student: the untrained student.
        paraphrasers: the trained paraphrasers by tap of the teacher; empty if stage 2 was not run.
        labels: the labels of all training images, int64 (N,); ``None`` if they are not known.
    """

    teacher: Side
    student: Side
    paraphrasers: Mapping[str, nn.Module] = field(default_factory=dict)
    labels: Tensor | None = None

    def classes(self, name: str) -> int:
        """The number of classes of both networks.

        Args:
            name: the name of the term that compares the logits, for the message of an error.

        Raises:
            InputError: if the networks have different numbers of classes, or only one class.
        """
        if self.teacher.classes != self.student.classes:
            raise InputError(
                f"{name} compares logits for the same classes, but the teacher has {self.teacher.classes} classes and "
                f"the student {self.student.classes}; give the teacher a classifier for the student's classes"
            )
        if self.student.classes < 2:
            raise InputError(f"{name} compares logits for two or more classes, but the networks have only one")
        return self.student.classes

    def connect(
        self,
        name: str,
        teacher_taps: str | Sequence[str] | None,
        student_taps: str | Sequence[str] | None,
        defaults: tuple[Sequence[str], Sequence[str]],
    ) -> tuple[list[str], list[str]]:
        """The taps of teacher and student that a term compares, in two lists of equal length.

        Args:
            name: the name of the term, for the message of an error.
            teacher_taps: the teacher's taps from the recipe; ``None`` selects the default ones.
            student_taps: the student's taps from the recipe; ``None`` selects the default ones.
            defaults: the default taps of teacher and student. The last ones of the longer list are used.

        Raises:
            InputError: if the lists differ in length or are empty.
        """
        count = min(len(side) for side in defaults)
        teacher, student = (
            as_taps(given if given is not None else default[-count:])
            for given, default in zip((teacher_taps, student_taps), defaults, strict=True)
        )
        if len(teacher) != len(student) or not teacher:
            raise InputError(
                f"{name} needs as many taps of the student as of the teacher, but got {student} and {teacher}; set "
                f"both transfer.{name}.teacher_taps and transfer.{name}.student_taps"
            )
        return teacher, student


class Term(nn.Module):
    """A loss that is added to the student's cross-entropy and compares the student with the teacher.

    A term declares which outputs of both networks it needs, turns the teacher's outputs into a target, and compares
    the student's outputs with it. The keyword-only arguments of ``__init__``, ``between`` and ``adapt`` are the
    settings that a recipe's ``[transfer.NAME]`` table accepts. Those whose annotation states a range, such as
    ``Annotated[float, Ge(0)]``, are checked when they are given, and an ``InputError`` names the one that is outside.

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
        title: the term's name in the literature, for tables; its name in ``TERMS`` stands there if it is empty.
        weight: the factor that the term's loss is multiplied by.
        cross_entropy: the factor that the student's cross-entropy is multiplied by.
        warmup_epochs: the number of epochs in which the weight rises linearly to its full size.
        teacher_taps: the taps of the teacher whose features the term needs.
        student_taps: the taps of the student whose features the term needs.
        teacher_logits: whether the term needs the teacher's logits. If no term does, the teacher runs only up to its
            last tap.
        uses_taps: whether the term uses the recipe's ``[teacher] tap`` and ``[student] tap``.
        needs_classifier: whether the term needs a teacher that classifies images, because it uses its logits or its
            last layer. The others work with features of any network.
        needs_labels: whether the term needs the labels of the images. If some images have none, it is computed from
            the others.
    """

    title: str = ""
    weight: float = 1.0
    cross_entropy: float = 1.0
    warmup_epochs: float = 0.0
    teacher_taps: Sequence[str] = ()
    student_taps: Sequence[str] = ()
    teacher_logits: bool = False
    uses_taps: bool = False
    needs_classifier: bool = False
    needs_labels: bool = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Let every term, also one of the user's own, check the ranges that its annotations state."""
        super().__init_subclass__(**kwargs)
        check_methods(cls, "__init__", "between", "adapt")

    def set_taps(self, teacher_taps: str | Sequence[str], student_taps: str | Sequence[str], **parts: Sized) -> None:
        """Set the taps of a term that compares them in pairs.

        Args:
            teacher_taps: the taps of the teacher; or one tap.
            student_taps: the taps of the student, one per tap of the teacher.
            parts: further parts of the term, of which there is one per tap, by their name in messages, such as
                ``regressors``.

        Raises:
            InputError: if the numbers of taps and parts differ or are 0.
        """
        self.teacher_taps, self.student_taps = as_taps(teacher_taps), as_taps(student_taps)
        taps = {"taps of the teacher": self.teacher_taps, "taps of the student": self.student_taps}
        check_equal_numbers(type(self).__name__, {**taps, **parts})

    @classmethod
    def needs_paraphraser(cls, settings: Mapping[str, Any]) -> bool:
        """Whether the term needs the paraphraser of stage 2.

        Args:
            settings: settings of ``between``, by name; those that are left out have their defaults.
        """
        return False

    @classmethod
    def between(cls, pair: Pair, **settings: Any) -> Self:
        """The term for two networks, with the trainable modules that it needs. Recipes build terms this way."""
        return cls(**settings)

    @classmethod
    def adapt(cls, pair: Pair, **settings: Any) -> nn.Module:
        """The network that is trained and deployed as the student. For most terms it is the student itself."""
        return pair.student.model

    def check_student(self, student: nn.Module) -> None:
        """Check that the term can be used with a student. Most terms can be used with any.

        Raises:
            InputError: if it cannot, such as a term of ``adapt``'s network with another one.
        """

    def target(self, teacher: Seen) -> Target:
        """The target, from the teacher's outputs. It depends on frozen modules alone and carries no gradient.

        To fill the factor cache, several threads call this method at the same time, so it must not store anything.
        """
        raise NotImplementedError

    def target_settings(self) -> dict[str, Any]:
        """The settings that the target depends on, besides teacher, taps and paraphraser. A change voids the cache."""
        return {}

    def forward(self, student: Seen, target: Any, batch: Batch) -> Tensor:
        """The student's distance from the target, 0-d, before the weight."""
        raise NotImplementedError


def configured(term: type[Term]) -> list[Callable[..., Any]]:
    """The functions whose keyword-only arguments are the settings of a term in a recipe."""
    return [term, term.between, term.adapt]


def match(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Bring two feature maps to the same height and width by average-pooling the larger to the smaller.

    Height and width are matched separately.

    Example:
        >>> import torch
        >>> from factor_transfer import match
        >>> student, teacher = match(torch.randn(2, 16, 8, 8), torch.randn(2, 64, 4, 4))
        >>> student.shape, teacher.shape
        (torch.Size([2, 16, 4, 4]), torch.Size([2, 64, 4, 4]))

    Args:
        student: the student's feature map (B, C, H, W).
        teacher: the teacher's feature map (B, C', H', W').

    Returns:
        Both maps, with height min(H, H') and width min(W, W').

    Raises:
        InputError: if a feature is not a map, or the numbers of samples differ.
    """
    if student.dim() != 4 or teacher.dim() != 4:
        raise InputError(
            f"the student's feature, shape {tuple(student.shape)}, and the teacher's, shape {tuple(teacher.shape)}, "
            "cannot be brought to the same height and width: both must be feature maps (B, C, H, W)"
        )
    check_same_images(student, teacher)
    size = min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3])

    def pooled(feature: Tensor) -> Tensor:
        return feature if feature.shape[2:] == size else F.adaptive_avg_pool2d(feature, size)

    return pooled(student), pooled(teacher)
