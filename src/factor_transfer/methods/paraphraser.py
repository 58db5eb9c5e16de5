"""The connectors of Factor Transfer (Kim, Park, Kwak, NeurIPS 2018; arXiv 1802.04977), and stage 2.

The paraphraser is a convolutional autoencoder of the teacher's feature map, trained without labels; what it keeps is
the *factor*. The translator, at the student, learns to say the same.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Annotated, Literal

import torch
from annotated_types import Gt, Le
from torch import Tensor, nn
from torch.nn import functional as F

from factor_transfer.errors import InputError
from factor_transfer.methods.base import CachedTargets, Losses, Method
from factor_transfer.methods.teacher import Teacher

LEAK = 0.1  # slope of the leaky ReLUs, as in the authors' code


def _stack(layer: type[nn.Conv2d] | type[nn.ConvTranspose2d], channels: list[int], batch_norm: bool) -> nn.Sequential:
    """3x3 layers that keep height and width, through ``channels``, a leaky ReLU after each."""
    modules: list[nn.Module] = []
    for before, after in pairwise(channels):
        modules.append(layer(before, after, kernel_size=3, stride=1, padding=1))
        if batch_norm:
            modules.append(nn.BatchNorm2d(after))
        modules.append(nn.LeakyReLU(LEAK))
    return nn.Sequential(*modules)


class Paraphraser(nn.Module):
    """Encoder m→m, m→z, z→z and decoder z→z, z→m, m→m (paper, section 3.1; constants of the authors' code).

    Example:
        >>> import torch
        >>> from factor_transfer import Paraphraser
        >>> paraphraser = Paraphraser(64, rate=0.5)
        >>> feature = torch.randn(2, 64, 8, 8)
        >>> paraphraser.encode(feature).shape, paraphraser(feature).shape
        (torch.Size([2, 32, 8, 8]), torch.Size([2, 64, 8, 8]))

    Args:
        in_channels: m, channels of the teacher's feature.
        rate: the paraphrase rate k; the factor has z = round(m * k) channels.
        batch_norm: a batch norm before each activation. The authors have none.

    Raises:
        InputError: if the factor would have no channel.
    """

    def __init__(
        self, in_channels: int, *, rate: Annotated[float, Gt(0), Le(16)] = 0.5, batch_norm: bool = False
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.factor_channels = round(in_channels * rate) if math.isfinite(rate) else 0
        if self.factor_channels < 1:
            raise InputError(
                f"a paraphrase rate of {rate} leaves no channel of {in_channels}; give one of at least "
                f"{1 / in_channels:.3g}; the paper's is 0.5"
            )
        m, z = in_channels, self.factor_channels
        self.encoder = _stack(nn.Conv2d, [m, m, z, z], batch_norm)
        self.decoder = _stack(nn.ConvTranspose2d, [z, z, m, m], batch_norm)

    def encode(self, feature: Tensor) -> Tensor:
        """Feature (B, m, H, W) -> factor (B, z, H, W)."""
        factor: Tensor = self.encoder(feature)
        return factor

    def decode(self, factor: Tensor) -> Tensor:
        """Factor (B, z, H, W) -> feature (B, m, H, W)."""
        reconstruction: Tensor = self.decoder(factor)
        return reconstruction

    def forward(self, feature: Tensor) -> Tensor:
        """Feature (B, m, H, W) -> its reconstruction, the same shape."""
        return self.decode(self.encode(feature))


class Unchanged(Paraphraser):
    """The paraphraser that does nothing: the factor is the teacher's feature itself.

    Args:
        in_channels: m, channels of the teacher's feature, and of the factor.
    """

    def __init__(self, in_channels: int) -> None:
        nn.Module.__init__(self)
        self.in_channels = self.factor_channels = in_channels
        self.encoder = self.decoder = nn.Sequential()


class Translator(nn.Module):
    """Convolutions c→c, c→z, z→z at the student (paper, section 3.2).

    Example:
        >>> import torch
        >>> from factor_transfer import Translator
        >>> Translator(16, 32)(torch.randn(2, 16, 8, 8)).shape
        torch.Size([2, 32, 8, 8])

    Args:
        in_channels: c, channels of the student's feature.
        out_channels: z, channels of the teacher's factor.
        batch_norm: a batch norm before each activation. The authors have none.
    """

    def __init__(self, in_channels: int, out_channels: int, *, batch_norm: bool = False) -> None:
        super().__init__()
        self.layers = _stack(nn.Conv2d, [in_channels, in_channels, out_channels, out_channels], batch_norm)

    def forward(self, feature: Tensor) -> Tensor:
        """Feature (B, c, H, W) -> factor (B, z, H, W)."""
        factor: Tensor = self.layers(feature)
        return factor


def unit(feature: Tensor) -> Tensor:
    """Each sample flattened and divided by its L2 norm, (B, D); an all-zero one stays zero, without gradient."""
    flat = feature.flatten(1).float()  # a sum of squares needs more than bf16's eight bits
    alive = (flat.detach() != 0).any(1, keepdim=True)
    # The norm of zeros has no gradient that means anything: those rows are kept out of it.
    return F.normalize(flat.where(alive, 1.0), dim=1) * alive


def _unit_distance(rebuilt: Tensor, feature: Tensor) -> Tensor:
    return (unit(rebuilt) - unit(feature)).pow(2).sum(1).mean()


def _squared_sum(rebuilt: Tensor, feature: Tensor) -> Tensor:
    return F.mse_loss(rebuilt.float(), feature.float(), reduction="sum")


Reconstruction = Literal["l1", "l2", "l2-sum", "l2-unit"]

RECONSTRUCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": F.l1_loss,
    "l2": F.mse_loss,
    "l2-sum": _squared_sum,
    "l2-unit": _unit_distance,
}


class ParaphraserTraining(Method):
    """Stage 2: the paraphraser learns to rebuild the frozen teacher's feature; labels are not looked at.

    Example:
        >>> import torch
        >>> from factor_transfer import Paraphraser, ParaphraserTraining, build_model
        >>> method = ParaphraserTraining(build_model("resnet20", 10), "layer3", Paraphraser(64))
        >>> losses = method(torch.randn(2, 3, 32, 32), torch.tensor([3, 7]))  # the labels are not used
        >>> losses["loss"].backward()

    Args:
        teacher: frozen; run no further than the tap. Or a ``Teacher``.
        tap: the feature to paraphrase (B, m, H, W); or several.
        paraphraser: with ``in_channels`` m; for several taps, as many.
        prepare: turns a batch into the teacher's input, such as ``Normalize``; a ``Teacher`` has its own.
        reconstruction: what is minimised, between a feature and what is rebuilt of it. ``"l1"``: mean absolute
            difference (the authors' code). ``"l2"``: mean squared difference (paper, equation 1; RepDistiller).
            ``"l2-sum"``: its sum over the batch (torchdistill). ``"l2-unit"``: squared distance of both divided by
            their lengths, the mean over samples (mmrazor).
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
        self.taps = [tap] if isinstance(tap, str) else list(tap)
        paraphrasers = [paraphraser] if isinstance(paraphraser, Paraphraser) else list(paraphraser)
        if len(self.taps) != len(paraphrasers):
            raise InputError(f"there are {len(self.taps)} taps and {len(paraphrasers)} paraphrasers; give one a tap")
        self.teacher = teacher if isinstance(teacher, Teacher) else Teacher(teacher, prepare)
        self.teacher.want(self.taps, logits=False)
        self.paraphrasers = nn.ModuleList(paraphrasers)
        self.distance = RECONSTRUCTIONS[reconstruction]
        self.cached: CachedTargets | None = None  # the features of fixed views, one a tap, where they are at hand

    def features(self, images: Tensor, indices: Tensor | None, views: Tensor | None) -> tuple[Tensor, ...]:
        """The teacher's features (B, m, H, W), one a tap."""
        if self.cached is not None and indices is not None and views is not None:
            cached: tuple[Tensor, ...] = self.cached(indices, views)
            return cached
        seen = self.teacher(images)
        return tuple(seen.features[tap] for tap in self.taps)

    def forward(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        indices: Tensor | None = None,
        views: Tensor | None = None,
    ) -> Losses:
        """Losses of images (B, C, H, W), the sum over taps.

        ``relative_error`` is the part of the feature's magnitude that is not rebuilt, the mean over taps: 0 is
        perfect, and a paraphraser that returned zeros would have 1.
        """
        features = self.features(images, indices, views)
        losses, errors = [], []
        for feature, paraphraser in zip(features, self.paraphrasers, strict=True):  # (B, m, H, W)
            rebuilt = paraphraser(feature)
            losses.append(self.distance(rebuilt, feature))
            magnitude = feature.abs().mean().clamp_min(1e-12)
            errors.append(F.l1_loss(rebuilt.detach(), feature) / magnitude)
        return {"loss": torch.stack(losses).sum(), "relative_error": torch.stack(errors).mean()}
