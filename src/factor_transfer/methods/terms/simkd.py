"""SimKD (Chen, Mei, Zhang, Wang, Feng, Chen: Knowledge Distillation with the Reused Teacher Classifier, CVPR 2022).

arXiv 2203.14001. The teacher's classifier is put behind the student, whose feature only has to become the teacher's.
"""

import copy
from collections.abc import Sequence
from typing import Annotated, Any, Self

import torch
from annotated_types import Ge
from torch import Tensor, nn
from torch.nn import functional as F

from factor_transfer.data import Batch
from factor_transfer.errors import InputError
from factor_transfer.methods.term import Pair, Side, Target, Term, match
from factor_transfer.models.classifier import find_classifier
from factor_transfer.models.inference import eval_mode
from factor_transfer.taps.extract import Seen, Taps


class Projector(nn.Sequential):
    """Convolutions 1x1, 3x3 and 1x1, each with batch norm and ReLU (the authors' code).

    Args:
        in_channels: of the student's feature.
        out_channels: of the teacher's.
        reduction: in the middle there are so many times fewer channels than the teacher has.
    """

    def __init__(self, in_channels: int, out_channels: int, reduction: int) -> None:
        self.sizes = in_channels, out_channels, reduction
        middle = max(1, out_channels // reduction)
        layers: list[nn.Module] = []
        for before, after, kernel in (
            (in_channels, middle, 1),
            (middle, middle, 3),
            (middle, out_channels, 1),
        ):
            convolution = nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=False)
            layers += [convolution, nn.BatchNorm2d(after), nn.ReLU()]
        super().__init__(*layers)


class ReusedClassifier(nn.Module):
    """What SimKD deploys: the student up to a tap, a projector, and the teacher's classifier, which is frozen.

    Args:
        student: changed in place: its ``idle`` modules become identities. What follows the tap still runs, on nothing
            that counts: stopping there could not be exported.
        tap: the student's last feature map.
        projector: brings it to the teacher's channels.
        classifier: of the teacher; takes the map's mean over its places.
        idle: modules of the student with weights that nothing before the tap needs.
    """

    def __init__(
        self, student: nn.Module, tap: str, projector: Projector, classifier: nn.Linear, idle: Sequence[str] = ()
    ) -> None:
        super().__init__()
        for path in idle:
            parent, _, name = path.rpartition(".")
            setattr(student.get_submodule(parent), name, nn.Identity())
        self.body = Taps(student, [tap])
        self.projector = projector
        self.classifier = classifier.requires_grad_(False)
        self.tap, self.idle = tap, list(idle)

    @property
    def record(self) -> dict[str, Any]:
        """What ``rebuild`` wants beside the student; JSON can say it."""
        student_channels, teacher_channels, reduction = self.projector.sizes
        return {
            "tap": self.tap,
            "student_channels": student_channels,
            "teacher_channels": teacher_channels,
            "reduction": reduction,
            "classes": self.classifier.out_features,
            "bias": self.classifier.bias is not None,
            "idle": self.idle,
        }

    @classmethod
    def rebuild(
        cls,
        student: nn.Module,
        *,
        tap: str,
        student_channels: int,
        teacher_channels: int,
        reduction: int,
        classes: int,
        bias: bool,
        idle: Sequence[str],
    ) -> Self:
        """The same network with new weights, for those of a file."""
        projector = Projector(student_channels, teacher_channels, reduction)
        return cls(student, tap, projector, nn.Linear(teacher_channels, classes, bias), idle)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) -> logits (B, K)."""
        feature = self.projector(self.body(images).features[self.tap])
        logits: Tensor = self.classifier(feature.mean((2, 3)))
        return logits


class SimKD(Term):
    """The student's projected feature follows the teacher's last; labels are not looked at (section 3.2).

    The student of the ``Distillation`` is a ``ReusedClassifier``, see ``adapt``.

    Example:
        >>> import torch
        >>> from factor_transfer import Distillation, Pair, Side, SimKD, build_model
        >>> teacher, student = build_model("resnet20", 10), build_model("resnet8", 10)
        >>> images, labels = torch.randn(4, 3, 32, 32), torch.tensor([3, 7, 3, 0])
        >>> pair = Pair(Side(teacher, ["layer3"], images), Side(student, ["layer3"], images))
        >>> deployed = SimKD.adapt(pair)  # with a projector and the teacher's classifier
        >>> pair = Pair(pair.teacher, Side(deployed, ["layer3"], images))
        >>> losses = Distillation(deployed, teacher, {"simkd": SimKD.between(pair)})(images, labels)
        >>> sorted(losses)
        ['accuracy', 'loss', 'loss_ce', 'loss_simkd']

    Args:
        teacher_tap: the feature map whose mean over places is what the teacher's classifier takes.
        weight: 1 is the authors'.
    """

    cross_entropy = 0.0
    uses_taps = True

    def __init__(self, teacher_tap: str, *, weight: Annotated[float, Ge(0)] = 1.0) -> None:
        super().__init__()
        self.teacher_taps, self.student_taps, self.weight = (teacher_tap,), ("projector",), weight

    @classmethod
    def adapt(cls, pair: Pair, *, reduction: Annotated[int, Ge(1)] = 2, **settings: Any) -> nn.Module:
        """The student with a projector and a copy of the teacher's classifier.

        Args:
            pair: its student is changed in place: what lies behind the tap is taken out.
            reduction: of the projector's channels; 2 is the authors'.
            settings: the term's others, which are not looked at.

        Raises:
            InputError: a teacher whose logits are not one linear layer of its averaged last feature, or features that
                are no maps.
        """
        pair.classes("simkd")
        tap = _tap(pair.student)
        ((in_channels, *_),), ((out_channels, *_),) = pair.student.maps([tap]), pair.teacher.maps([_tap(pair.teacher)])
        classifier = copy.deepcopy(_classifier(pair.teacher))
        projector = Projector(in_channels, out_channels, reduction)
        network = ReusedClassifier(pair.student.model, tap, projector, classifier, _idle(pair.student, tap))
        with eval_mode(network):
            try:
                network(pair.student.images[:2])
            except (RuntimeError, TypeError, AttributeError) as error:
                raise InputError(
                    f"simkd takes out what {type(pair.student.model).__name__} has behind {tap!r}, but then it does "
                    f"not run ({str(error).splitlines()[0]}); name its last feature map as its tap"
                ) from error
        return network

    @classmethod
    def between(cls, pair: Pair, **settings: Any) -> Self:
        """The term for a teacher and what ``adapt`` made of the student."""
        if not isinstance(pair.student.model, ReusedClassifier):
            raise InputError("simkd trains what SimKD.adapt makes of the student; put that in the student's place")
        return cls(_tap(pair.teacher), **settings)

    def target(self, teacher: Seen) -> Target:
        """The teacher's feature (B, C, H, W)."""
        return teacher.features[self.teacher_taps[0]]

    def forward(self, student: Seen, target: Tensor, batch: Batch) -> Tensor:
        """Mean squared error of the projected feature, 0-d; the larger map is pooled, see ``match``.

        The authors pool a larger map of the student before the projector, here it is pooled behind it: the network
        does not depend on the size of the teacher's map then.
        """
        own, other = match(student.features["projector"], target)
        return F.mse_loss(own.float(), other.float())


def _tap(side: Side) -> str:
    return side.taps[-1] if side.taps else side.stages[-1]


def _classifier(teacher: Side) -> nn.Linear:
    """The teacher's last linear layer, which says its logits of the averaged feature at its tap."""
    tap = _tap(teacher)
    logits, features = teacher.see([tap])
    classifier = find_classifier(teacher.model, teacher.images[:2])
    vector = features[tap].mean((2, 3))
    if logits is not None and isinstance(classifier, nn.Linear) and classifier.in_features == vector.shape[1]:
        with torch.no_grad():
            computed = classifier(vector)
        # Rounding apart: an average may be taken in another order, or in half precision.
        if computed.shape == logits.shape and (computed - logits).abs().max() <= 1e-3 * logits.abs().max():
            return classifier
    raise InputError(
        "simkd needs a teacher whose logits are its last linear layer of its last feature map, averaged over its "
        f"places; {type(teacher.model).__name__} is none, with the feature at {tap!r}: name another tap or choose "
        "another term"
    )


def _idle(student: Side, tap: str) -> list[str]:
    """Modules with weights that the feature at ``tap`` does not depend on."""
    network = Taps(student.model, [tap], logits=False)
    parameters = [parameter for parameter in student.model.parameters() if parameter.requires_grad]
    with eval_mode(network), torch.enable_grad():
        feature = network(student.images[:2]).features[tap]
        gradients = torch.autograd.grad(feature.sum(), parameters, allow_unused=True)
    unused = {id(one) for one, gradient in zip(parameters, gradients, strict=True) if gradient is None}
    return [
        path
        for path, module in student.model.named_modules()
        if next(module.children(), None) is None
        and (own := list(module.parameters()))
        and all(id(parameter) in unused for parameter in own)
    ]
