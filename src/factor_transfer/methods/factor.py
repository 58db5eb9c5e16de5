"""Factor Transfer (Kim, Park, Kwak: Paraphrasing Complex Network, NeurIPS 2018; arXiv 1802.04977).

The paraphraser is a convolutional autoencoder of the teacher's last feature map, trained without labels; what it
keeps is the *factor*. The translator, at the student, learns to say the same.
"""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, Self

from annotated_types import Ge, Gt, Le
from torch import Tensor, nn
from torch.nn import functional as F

from factor_transfer.errors import InputError
from factor_transfer.methods.base import Frozen, Losses, Pair, Term
from factor_transfer.taps import Taps

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

    Args:
        in_channels: m, channels of the teacher's feature.
        rate: the paraphrase rate k; the factor has z = round(m * k) channels.
        batch_norm: a batch norm before each activation. The authors have none.

    Raises:
        InputError: if the factor would have no channel.
    """

    def __init__(self, in_channels: int, rate: Annotated[float, Gt(0), Le(16)] = 0.5, batch_norm: bool = False) -> None:
        super().__init__()
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
        return self.encoder(feature)

    def decode(self, factor: Tensor) -> Tensor:
        """Factor (B, z, H, W) -> feature (B, m, H, W)."""
        return self.decoder(factor)

    def forward(self, feature: Tensor) -> Tensor:
        """Feature (B, m, H, W) -> its reconstruction, the same shape."""
        return self.decode(self.encode(feature))


class Translator(nn.Module):
    """Convolutions c→c, c→z, z→z at the student (paper, section 3.2).

    Args:
        in_channels: c, channels of the student's feature.
        out_channels: z, channels of the teacher's factor.
        batch_norm: a batch norm before each activation. The authors have none.
    """

    def __init__(self, in_channels: int, out_channels: int, batch_norm: bool = False) -> None:
        super().__init__()
        self.layers = _stack(nn.Conv2d, [in_channels, in_channels, out_channels, out_channels], batch_norm)

    def forward(self, feature: Tensor) -> Tensor:
        """Feature (B, c, H, W) -> factor (B, z, H, W)."""
        return self.layers(feature)


def _unit(factor: Tensor) -> Tensor:
    """Each sample flattened and divided by its L2 norm, (B, D); an all-zero one stays zero, without gradient."""
    flat = factor.flatten(1).float()  # a sum of squares needs more than bf16's eight bits
    alive = (flat.detach() != 0).any(1, keepdim=True)
    # The norm of zeros has no gradient that means anything: those rows are kept out of it.
    return F.normalize(flat.where(alive, 1.0), dim=1) * alive


def factor_loss(student_factor: Tensor, teacher_factor: Tensor, p: float = 1) -> Tensor:
    """Distance of two factors' directions: mean of ``|F_T / ‖F_T‖ - F_S / ‖F_S‖|^p`` (paper, equation 4).

    The scale of either factor does not matter. The mean is over samples and elements, as in the authors' code,
    and no p-th root is drawn. With p = 1 it is at most 2 / √D, and √(2 / D) if the factors are not negatively
    correlated, where D = z * H * W: one weight means different strengths at different D.

    Args:
        student_factor: (B, ...); gradient flows into it.
        teacher_factor: the same shape.
        p: exponent, at least 1. The paper's experiments use 1.

    Returns:
        0-d, float32.

    Raises:
        InputError: if the shapes differ.
    """
    if student_factor.shape != teacher_factor.shape:
        raise InputError(
            f"the student's factor has shape {tuple(student_factor.shape)}, the teacher's "
            f"{tuple(teacher_factor.shape)}; they must be the same"
        )
    return (_unit(student_factor) - _unit(teacher_factor)).abs().pow(p).mean()


class FactorTransfer(Term):
    """The term of stage 3: ``beta * factor_loss(translator(x_S), paraphraser.encode(x_T))`` (paper, equation 2).

    Args:
        paraphraser: trained; its encoder is used, frozen.
        translator: trained together with the student, and left behind with it.
        teacher_tap: the feature the paraphraser was trained on.
        student_tap: the feature the translator reads.
        beta: weight. 500 is the authors', for ResNet-56 on CIFAR-10 (D = 2,048); see ``factor_loss`` on D.
        p: exponent of the distance.
    """

    def __init__(
        self,
        paraphraser: Paraphraser,
        translator: Translator,
        teacher_tap: str,
        student_tap: str,
        *,
        beta: Annotated[float, Ge(0)] = 500.0,
        p: Annotated[float, Ge(1)] = 1.0,
    ) -> None:
        super().__init__()
        if not (math.isfinite(beta) and beta >= 0):
            raise InputError(f"beta must be finite and not negative, got {beta}")
        if not (math.isfinite(p) and p >= 1):
            raise InputError(f"p must be finite and at least 1, got {p}")
        self.encoder = Frozen(paraphraser.encoder)
        self.translator = translator
        self.teacher_taps = (teacher_tap,)
        self.student_taps = (student_tap,)
        self.weight = beta
        self.p = p

    @classmethod
    def between(cls, pair: Pair, **settings: Any) -> Self:
        """The term for two networks, with a new translator of the pair's shapes."""
        if not isinstance(pair.paraphraser, Paraphraser):
            raise InputError(f"factor transfer needs a Paraphraser, got a {type(pair.paraphraser).__name__}")
        translator = Translator(pair.student_shape[0], pair.paraphraser.factor_channels)
        return cls(pair.paraphraser, translator, pair.teacher_tap, pair.student_tap, **settings)

    def target(self, logits: Tensor | None, features: Mapping[str, Tensor]) -> Tensor:
        """The teacher's factor (B, z, H, W)."""
        return self.encoder(features[self.teacher_taps[0]])

    def forward(self, logits: Tensor, features: Mapping[str, Tensor], target: Tensor, labels: Tensor) -> Tensor:
        """Distance of the translated feature (B, c, H, W) from the teacher's factor, 0-d."""
        return factor_loss(self.translator(features[self.student_taps[0]]), target, self.p)


class ParaphraserTraining(nn.Module):
    """Stage 2: the paraphraser learns to rebuild the frozen teacher's feature; labels are not looked at.

    The loss is the mean absolute difference, as in the authors' code (the paper squares it: equation 1).

    Args:
        teacher: frozen; run no further than the tap.
        tap: the feature to paraphrase (B, m, H, W).
        paraphraser: with ``in_channels`` m.
        prepare: turns a batch into the teacher's input, such as ``Normalize``.
    """

    def __init__(
        self, teacher: nn.Module, tap: str, paraphraser: Paraphraser, prepare: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.teacher = Frozen(Taps(teacher, [tap], prepare, logits=False))
        self.paraphraser = paraphraser
        self.tap = tap

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Losses:
        """Losses of images (B, C, H, W).

        ``relative_error`` is the part of the feature's magnitude that is not rebuilt: 0 is perfect, and a
        paraphraser that returned zeros would have 1.
        """
        _, features = self.teacher(images)
        feature = features[self.tap]  # (B, m, H, W)
        loss = F.l1_loss(self.paraphraser(feature), feature)
        relative = loss.detach() / feature.abs().mean().clamp_min(1e-12)
        return {"loss": loss, "relative_error": relative}
