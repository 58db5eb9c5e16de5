"""The connectors of Factor Transfer (Kim, Park, Kwak, NeurIPS 2018; arXiv 1802.04977), and stage 2.

The paraphraser is a convolutional autoencoder of the teacher's feature map, trained without labels. Its code is the
*factor*. The translator learns to compute the same factor from the student's feature map.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal, cast

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn
from torch.nn import functional as F

from factor_transfer.errors import InputError, choose
from factor_transfer.methods.base import CachedTargets, Losses, Method, check_trained
from factor_transfer.methods.ranges import within_ranges
from factor_transfer.methods.shapes import check_channels, check_equal_numbers
from factor_transfer.methods.teacher import Teacher
from factor_transfer.methods.term import as_taps

LEAK = 0.1  # slope of the leaky ReLUs, as in the authors' code


def _stack(layer: type[nn.Conv2d] | type[nn.ConvTranspose2d], channels: list[int], batch_norm: bool) -> nn.Sequential:
    """3x3 layers with the given channels, each followed by a leaky ReLU. Height and width stay the same."""
    modules: list[nn.Module] = []
    for before, after in pairwise(channels):
        modules.append(layer(before, after, kernel_size=3, stride=1, padding=1))
        if batch_norm:
            modules.append(nn.BatchNorm2d(after))
        modules.append(nn.LeakyReLU(LEAK))
    return nn.Sequential(*modules)


class Paraphraser(nn.Module):
    """A convolutional autoencoder of the teacher's feature map (paper, section 3.1).

    The channels are m→m, m→z, z→z in the encoder and z→z, z→m, m→m in the decoder, as in the authors' code.

    Example:
        >>> import torch
        >>> from factor_transfer import Paraphraser
        >>> paraphraser = Paraphraser(64, rate=0.5)
        >>> feature = torch.randn(2, 64, 8, 8)
        >>> paraphraser.encode(feature).shape, paraphraser(feature).shape
        (torch.Size([2, 32, 8, 8]), torch.Size([2, 64, 8, 8]))

    Args:
        in_channels: the number of channels of the teacher's feature, m, at least 1.
        rate: the paraphrase rate k, above 0 and at most 16. The factor has z = round(m * k) channels.
        batch_norm: whether a batch norm precedes each activation. The authors' code has none.

    Raises:
        InputError: if an argument is out of range, or the factor would have no channels.
    """

    @within_ranges
    def __init__(
        self,
        in_channels: Annotated[int, Ge(1)],
        *,
        rate: Annotated[float, Gt(0), Le(16)] = 0.5,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.factor_channels = round(in_channels * rate)
        if self.factor_channels < 1:
            raise InputError(
                f"a paraphrase rate of {rate} leaves none of {in_channels} channels; it must be at least "
                f"{1 / in_channels:.3g} (the paper uses 0.5)"
            )
        m, z = in_channels, self.factor_channels
        self.encoder = _stack(nn.Conv2d, [m, m, z, z], batch_norm)
        self.decoder = _stack(nn.ConvTranspose2d, [z, z, m, m], batch_norm)

    def encode(self, feature: Tensor) -> Tensor:
        """The factor (B, z, H, W) of a feature (B, m, H, W)."""
        factor: Tensor = self.encoder(feature)
        return factor

    def decode(self, factor: Tensor) -> Tensor:
        """The reconstructed feature (B, m, H, W) of a factor (B, z, H, W)."""
        reconstruction: Tensor = self.decoder(factor)
        return reconstruction

    def forward(self, feature: Tensor) -> Tensor:
        """The reconstruction (B, m, H, W) of a feature (B, m, H, W)."""
        return self.decode(self.encode(feature))


class Unchanged(Paraphraser):
    """A paraphraser that is the identity: the factor is the teacher's feature itself.

    Args:
        in_channels: the number of channels of the teacher's feature and of the factor, m.
    """

    @within_ranges
    def __init__(self, in_channels: Annotated[int, Ge(1)]) -> None:
        nn.Module.__init__(self)
        self.in_channels = self.factor_channels = in_channels
        self.encoder = self.decoder = nn.Sequential()


def as_paraphrasers(paraphrasers: Paraphraser | Sequence[Paraphraser]) -> list[Paraphraser]:
    """Paraphrasers as a list, also one alone.

    Raises:
        InputError: if one of them is no ``Paraphraser``.
    """
    given: Any = paraphrasers
    alone = isinstance(given, Paraphraser | nn.Sequential | str) or not isinstance(given, Iterable)
    found: list[Any] = [given] if alone else list(given)
    for one in found:
        if not isinstance(one, Paraphraser):
            kind = f"the class {one.__name__}" if isinstance(one, type) else f"a {type(one).__name__}"
            raise InputError(
                f"a Paraphraser is needed, but got {kind}; make an autoencoder of your own a subclass of Paraphraser "
                "that has its own encode and decode"
            )
    return found


class Translator(nn.Module):
    """Convolutions c→c, c→z, z→z that compute a factor from the student's feature (paper, section 3.2).

    Example:
        >>> import torch
        >>> from factor_transfer import Translator
        >>> Translator(16, 32)(torch.randn(2, 16, 8, 8)).shape
        torch.Size([2, 32, 8, 8])

    Args:
        in_channels: the number of channels of the student's feature, c, at least 1.
        out_channels: the number of channels of the teacher's factor, z, at least 1.
        batch_norm: whether a batch norm precedes each activation. The authors' code has none.

    Raises:
        InputError: if a number of channels is below 1.
    """

    @within_ranges
    def __init__(
        self, in_channels: Annotated[int, Ge(1)], out_channels: Annotated[int, Ge(1)], *, batch_norm: bool = False
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.layers = _stack(nn.Conv2d, [in_channels, in_channels, out_channels, out_channels], batch_norm)

    def forward(self, feature: Tensor) -> Tensor:
        """The student's factor (B, z, H, W) of a feature (B, c, H, W)."""
        factor: Tensor = self.layers(feature)
        return factor


def unit(feature: Tensor) -> Tensor:
    """Flatten each sample and divide it by its L2 norm; (B, D). An all-zero sample stays zero and has no gradient."""
    flat = feature.flatten(1).float()  # the 8 significant bits of bfloat16 are too few for a sum of squares
    nonzero = (flat.detach() != 0).any(1, keepdim=True)
    # The gradient of the norm is not defined at zero, so all-zero rows are excluded.
    return F.normalize(flat.where(nonzero, 1.0), dim=1) * nonzero


def _unit_distance(reconstruction: Tensor, feature: Tensor) -> Tensor:
    return (unit(reconstruction) - unit(feature)).pow(2).sum(1).mean()


def _squared_sum(reconstruction: Tensor, feature: Tensor) -> Tensor:
    return F.mse_loss(reconstruction.float(), feature.float(), reduction="sum")


Reconstruction = Literal["l1", "l2", "l2-sum", "l2-unit"]

RECONSTRUCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": F.l1_loss,
    "l2": F.mse_loss,
    "l2-sum": _squared_sum,
    "l2-unit": _unit_distance,
}


class ParaphraserTraining(Method):
    """Stage 2: the paraphraser learns to reconstruct the frozen teacher's feature, without labels.

    Example:
        >>> import torch
        >>> from factor_transfer import Paraphraser, ParaphraserTraining, build_model
        >>> method = ParaphraserTraining(build_model("resnet20", 10), "layer3", Paraphraser(64))
        >>> losses = method(torch.randn(2, 3, 32, 32), torch.tensor([3, 7]))  # the labels are not used
        >>> losses["loss"].backward()

    Args:
        teacher: the frozen network, which runs only up to the last tap; or a ``Teacher``.
        tap: the tap of the feature (B, m, H, W) to paraphrase, or several taps.
        paraphraser: the paraphraser of that feature, with ``in_channels`` m. Several taps need one paraphraser each.
        prepare: a module that turns a batch into the teacher's input, such as ``Normalize``. It is ignored if
            ``teacher`` is a ``Teacher``, which has its own.
        reconstruction: the distance between a feature and its reconstruction that is minimised. ``"l1"``: the mean
            absolute difference (the authors' code). ``"l2"``: the mean squared difference (paper, equation 1;
            RepDistiller). ``"l2-sum"``: the sum of squared differences over the batch (torchdistill). ``"l2-unit"``:
            the squared distance of the two after each is divided by its L2 norm, averaged over samples (mmrazor).

    Raises:
        InputError: if the numbers of taps and paraphrasers differ, one of them is no ``Paraphraser`` or is frozen, as
            those of a ``FactorTransfer`` are, or ``reconstruction`` is unknown.
    """

    classifies = False

    def __init__(
        self,
        teacher: nn.Module,
        tap: str | Sequence[str],
        paraphraser: Paraphraser | Sequence[Paraphraser],
        prepare: nn.Module | None = None,
        *,
        reconstruction: Reconstruction = "l1",
    ) -> None:
        super().__init__()
        self.taps, paraphrasers = as_taps(tap), as_paraphrasers(paraphraser)
        check_equal_numbers("ParaphraserTraining", {"taps": self.taps, "paraphrasers": paraphrasers})
        self.distance = RECONSTRUCTIONS[choose("reconstruction", reconstruction, RECONSTRUCTIONS)]
        self.teacher = teacher if isinstance(teacher, Teacher) else Teacher(teacher, prepare)
        self.teacher.want(self.taps, logits=False)
        for one in paraphrasers:
            check_trained("a paraphraser's encoder", getattr(one, "encoder", one))
        self.paraphrasers = nn.ModuleList(paraphrasers)
        self.cached: CachedTargets | None = None  # the cached features of fixed views, one per tap, or None

    def features(self, images: Tensor, indices: Tensor | None, views: Tensor | None) -> tuple[Tensor, ...]:
        """The teacher's features (B, m, H, W), one per tap."""
        if self.cached is not None and indices is not None and views is not None:
            cached: tuple[Tensor, ...] = self.cached(indices, views)
            return cached
        outputs = self.teacher(images)
        return tuple(outputs.features[tap] for tap in self.taps)

    def forward(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        indices: Tensor | None = None,
        views: Tensor | None = None,
    ) -> Losses:
        """Compute the reconstruction loss for images (B, C, H, W), summed over taps.

        ``relative_error`` is the mean absolute error of the reconstruction relative to the feature's mean magnitude,
        averaged over taps: 0 is perfect, and a paraphraser that returned zeros would have 1.

        Raises:
            InputError: if a paraphraser was made for another number of channels, or returns another shape.
        """
        features = self.features(images, indices, views)
        losses, errors = [], []
        for tap, feature, module in zip(self.taps, features, self.paraphrasers, strict=True):  # (B, m, H, W)
            paraphraser = cast("Paraphraser", module)
            check_channels("paraphraser", paraphraser.in_channels, "teacher", tap, feature)
            reconstruction = paraphraser(feature)
            if reconstruction.shape != feature.shape:
                raise InputError(
                    f"the paraphraser of {tap!r} returns a reconstruction of shape {tuple(reconstruction.shape)} for a "
                    f"feature of shape {tuple(feature.shape)}; they must be the same"
                )
            losses.append(self.distance(reconstruction, feature))
            magnitude = feature.abs().mean().clamp_min(1e-12)
            errors.append(F.l1_loss(reconstruction.detach(), feature) / magnitude)
        return {"loss": torch.stack(losses).sum(), "relative_error": torch.stack(errors).mean()}
