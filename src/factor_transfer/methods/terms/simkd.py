"""SimKD (Chen, Mei, Zhang, Wang, Feng, Chen: Knowledge Distillation with the Reused Teacher Classifier, CVPR 2022).

arXiv 2203.14001. The student reuses the teacher's classifier, and only its last feature is trained to match the
teacher's.
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
from factor_transfer.methods.ranges import within_ranges
from factor_transfer.methods.shapes import check_same_shape
from factor_transfer.methods.term import Pair, Side, Target, Term, match
from factor_transfer.models.classifier import find_classifier
from factor_transfer.models.inference import eval_mode
from factor_transfer.taps.extract import Seen, Taps


class Projector(nn.Sequential):
    """Convolutions 1x1, 3x3 and 1x1, each followed by batch norm and ReLU, as in the authors' code.

    Args:
        in_channels: the number of channels of the student's feature.
        out_channels: the number of channels of the teacher's feature.
        reduction: the factor by which the 3x3 convolution has fewer channels than the teacher's feature.
    """

    @within_ranges
    def __init__(
        self,
        in_channels: Annotated[int, Ge(1)],
        out_channels: Annotated[int, Ge(1)],
        reduction: Annotated[int, Ge(1)],
    ) -> None:
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
    """The network that SimKD deploys: the student up to a tap, a projector, and the teacher's frozen classifier.

    Args:
        student: the student. Its ``idle`` modules are replaced by identities in place. The modules after the tap still
            run, although their outputs are not used, because a network that stops early cannot be exported.
        tap: the tap of the student's last feature map.
        projector: the module that maps the student's feature to the teacher's number of channels.
        classifier: the teacher's classifier, applied to the mean of the projected map over its positions.
        idle: the paths of the student's modules that have weights and do not contribute to the feature at ``tap``.
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
        """The arguments of ``rebuild`` besides the student, as values that JSON can represent."""
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
        """The same network with new weights, ready to load saved ones."""
        projector = Projector(student_channels, teacher_channels, reduction)
        return cls(student, tap, projector, nn.Linear(teacher_channels, classes, bias), idle)

    def forward(self, images: Tensor) -> Tensor:
        """The logits (B, K) of images (B, C, H, W)."""
        feature = self.projector(self.body(images).features[self.tap])
        logits: Tensor = self.classifier(feature.mean((2, 3)))
        return logits


class SimKD(Term):
    """The student's projected feature follows the teacher's last feature; labels are not used (section 3.2).

    The student of the ``Distillation`` must be a ``ReusedClassifier``, see ``adapt``.

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
        teacher_tap: the tap of the teacher's feature map whose mean over positions is the input of its classifier.
        weight: the factor that the loss is multiplied by. The authors use 1.
    """

    title = "SimKD"
    cross_entropy = 0.0
    uses_taps = True
    needs_classifier = True

    def __init__(self, teacher_tap: str, *, weight: Annotated[float, Ge(0)] = 1.0) -> None:
        super().__init__()
        self.teacher_taps, self.student_taps, self.weight = (teacher_tap,), ("projector",), weight

    @classmethod
    def adapt(cls, pair: Pair, *, reduction: Annotated[int, Ge(1)] = 2, **settings: Any) -> nn.Module:
        """The student with a projector and a copy of the teacher's classifier.

        Args:
            pair: the networks. The student is changed in place: modules after the tap that have weights are removed.
            reduction: the reduction of the projector's channels. The authors use 2.
            settings: the other settings of the term, which are ignored.

        Raises:
            InputError: if the teacher's logits are not a linear function of its averaged last feature map, if a feature
                is not a map, or if the student does not run without the removed modules.
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
                    f"simkd removes the modules of {type(pair.student.model).__name__} that follow {tap!r}, but the "
                    f"network does not run without them ({str(error).splitlines()[0]}); set student.tap to its last "
                    "feature map"
                ) from error
        return network

    @classmethod
    def between(cls, pair: Pair, **settings: Any) -> Self:
        """The term for a teacher and a student that ``adapt`` returned.

        Raises:
            InputError: if the student is not a ``ReusedClassifier``.
        """
        term = cls(_tap(pair.teacher), **settings)
        term.check_student(pair.student.model)
        return term

    def check_student(self, student: nn.Module) -> None:
        """Check that the student is one that ``adapt`` returned.

        Raises:
            InputError: if it is not a ``ReusedClassifier``.
        """
        if not isinstance(student, ReusedClassifier):
            raise InputError("simkd needs the network that SimKD.adapt returns as the student")

    def target(self, teacher: Seen) -> Target:
        """The teacher's feature (B, C, H, W)."""
        return teacher.features[self.teacher_taps[0]]

    def forward(self, student: Seen, target: Tensor, batch: Batch) -> Tensor:
        """The mean squared error of the projected feature, 0-d. The larger map is pooled, see ``match``.

        The authors' code pools a larger map of the student before the projector. Here it is pooled after the projector,
        so that the deployed network does not depend on the size of the teacher's map.

        Raises:
            InputError: if the projector does not return the teacher's number of channels.
        """
        projected, teacher = match(student.features["projector"], target)
        check_same_shape("SimKD", projected, teacher)
        return F.mse_loss(projected.float(), teacher.float())


def _tap(side: Side) -> str:
    return side.taps[-1] if side.taps else side.stages[-1]


def _classifier(teacher: Side) -> nn.Linear:
    """The teacher's last linear layer, which computes its logits from the averaged feature at its tap."""
    tap = _tap(teacher)
    logits, features = teacher.see([tap])
    classifier = find_classifier(teacher.model, teacher.images[:2])
    vector = features[tap].mean((2, 3))
    if logits is not None and isinstance(classifier, nn.Linear) and classifier.in_features == vector.shape[1]:
        with torch.no_grad():
            computed = classifier(vector)
        # The outputs may differ by rounding, for example if the network averages in another order or precision.
        if computed.shape == logits.shape and (computed - logits).abs().max() <= 1e-3 * logits.abs().max():
            return classifier
    raise InputError(
        "simkd needs a teacher whose last linear layer computes the logits from its last feature map, averaged over "
        f"positions; {type(teacher.model).__name__} does not do so with the feature at {tap!r}: name another tap or "
        "choose another term"
    )


def _idle(student: Side, tap: str) -> list[str]:
    """The paths of modules that have weights and do not contribute to the feature at ``tap``."""
    network = Taps(student.model, [tap], logits=False)
    parameters = [parameter for parameter in student.model.parameters() if parameter.requires_grad]
    with eval_mode(network), torch.enable_grad():
        feature = network(student.images[:2]).features[tap]
        gradients = torch.autograd.grad(feature.sum(), parameters, allow_unused=True)
    unused = {id(parameter) for parameter, gradient in zip(parameters, gradients, strict=True) if gradient is None}
    return [
        path
        for path, module in student.model.named_modules()
        if next(module.children(), None) is None
        and (weights := list(module.parameters()))
        and all(id(parameter) in unused for parameter in weights)
    ]
