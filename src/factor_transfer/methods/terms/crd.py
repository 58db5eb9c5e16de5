"""CRD (Tian, Krishnan, Isola: Contrastive Representation Distillation, ICLR 2020; arXiv 1910.10699)."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Self, cast

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn
from torch.nn import functional as F

from factor_transfer.data import Batch
from factor_transfer.distributed import collectives
from factor_transfer.errors import InputError
from factor_transfer.methods.ranges import within_ranges
from factor_transfer.methods.term import Pair, Target, Term
from factor_transfer.taps.extract import Seen


def pooled(feature: Tensor) -> Tensor:
    """A feature map (B, C, H, W) averaged over its positions, or a vector (B, C) unchanged; (B, C), float32."""
    return feature.float().flatten(2).mean(2) if feature.dim() > 2 else feature.float()


@within_ranges
def nce_loss(positive: Tensor, negative: Tensor, weight: Tensor | float, noise: Annotated[float, Gt(0)]) -> Tensor:
    """The loss of noise contrastive estimation, which distinguishes one positive from the negatives (equation 18).

    With ``h = p / (p + noise)``, it is ``-log h(positive) - sum of weight * log(1 - h(negative))``.

    Args:
        positive: the logarithm of p for each sample's own image, (B, 1).
        negative: the logarithm of p for each sample's negatives, (B, M).
        weight: the weight of each negative, (B, M) or a number.
        noise: the number of negatives divided by the number of training images.

    Returns:
        The loss, averaged over samples, 0-d.

    Raises:
        InputError: if shapes do not fit, or ``noise`` is not above 0.
    """
    if positive.dim() != 2 or positive.shape != (len(negative), 1):
        raise InputError(
            f"nce_loss needs one positive per sample, (B, 1), but the positives have shape {tuple(positive.shape)} and "
            f"the negatives {tuple(negative.shape)}"
        )
    if isinstance(weight, Tensor) and weight.dim() and weight.shape != negative.shape:
        raise InputError(
            f"nce_loss needs one weight per negative or a number, but the weights have shape {tuple(weight.shape)} and "
            f"the negatives {tuple(negative.shape)}"
        )
    shift = math.log(noise)
    return (F.softplus(shift - positive).sum(1) + (weight * F.softplus(negative - shift)).sum(1)).mean()


class CRD(Term):
    """The two networks' embeddings of an image attract each other and repel those of images of other classes.

    The embedding of each network is compared with a memory bank that holds the other network's embeddings of all
    training images. Both embeddings are trained. In training mode, each step updates the memory banks and draws
    negatives with torch's random generator. In evaluation mode nothing is updated or drawn, and all possible negatives
    enter the loss with equal weights. The defaults are those of the authors' code (RepDistiller).

    Example:
        >>> import torch
        >>> from factor_transfer import CRD, Distillation, Pair, Side, build_model
        >>> teacher, student = build_model("resnet20", 10), build_model("resnet8", 10)
        >>> images, labels = torch.randn(4, 3, 32, 32), torch.tensor([3, 7, 3, 0])
        >>> pair = Pair(Side(teacher, ["layer3"], images), Side(student, ["layer3"], images), labels=labels)
        >>> method = Distillation(student, teacher, {"crd": CRD.between(pair, negatives=8)})
        >>> losses = method(images, labels, indices=torch.arange(4))
        >>> sorted(losses)
        ['accuracy', 'loss', 'loss_ce', 'loss_crd']

    Args:
        student_channels: the number of channels of the student's feature.
        teacher_channels: the number of channels of the teacher's feature.
        labels: the labels of all training images, int64 (N,).
        teacher_tap: the tap of the teacher's feature: a map, which is averaged over its positions, or a vector.
        student_tap: the tap of the student's feature, a map or a vector.
        dimension: the size of the embeddings.
        negatives: the number of images of other classes that each image is compared with. If there are fewer of them
            for some class, the negatives of all classes are drawn with replacement.
        temperature: the temperature τ. A lower one gives more weight to the nearest negatives.
        momentum: the share of the old embedding when an entry of a memory bank is updated.
        weight: the factor that the loss is multiplied by.

    Raises:
        InputError: if all training images have the same class.
    """

    title = "CRD"
    needs_labels = True
    classes: Tensor  # (N,): the class of each image, counted from 0
    order: Tensor  # (N,): image indices sorted by class, so that each class is one contiguous run
    counts: Tensor  # number of images of each class
    starts: Tensor  # position in ``order`` where the run of each class starts

    def __init__(
        self,
        student_channels: Annotated[int, Ge(1)],
        teacher_channels: Annotated[int, Ge(1)],
        labels: Tensor,
        teacher_tap: str,
        student_tap: str,
        *,
        dimension: Annotated[int, Ge(1)] = 128,
        negatives: Annotated[int, Ge(1)] = 16384,
        temperature: Annotated[float, Gt(0)] = 0.07,
        momentum: Annotated[float, Ge(0), Lt(1)] = 0.5,
        weight: Annotated[float, Ge(0)] = 0.8,
    ) -> None:
        super().__init__()
        self.teacher_taps, self.student_taps, self.weight = (teacher_tap,), (student_tap,), weight
        self.negatives, self.temperature, self.momentum = negatives, temperature, momentum
        self.embed = nn.ModuleDict(
            {"student": nn.Linear(student_channels, dimension), "teacher": nn.Linear(teacher_channels, dimension)}
        )
        bound = math.sqrt(3 / dimension)  # the expected squared length of a row is 1
        for side in self.embed:
            self.register_buffer(f"memory_{side}", torch.empty(len(labels), dimension).uniform_(-bound, bound))
            self.register_buffer(f"z_{side}", torch.zeros(()))  # 0 until it is estimated in the first step
        _, classes, counts = labels.cpu().unique(return_inverse=True, return_counts=True)
        if len(counts) < 2:
            raise InputError("crd needs images of two or more classes, but all training images have the same class")
        self.replacement = negatives > len(labels) - int(counts.max())
        for name, value in {
            "classes": classes,
            "order": classes.argsort(stable=True),
            "counts": counts,
            "starts": counts.cumsum(0) - counts,
        }.items():
            self.register_buffer(name, value, persistent=False)

    @classmethod
    def between(
        cls, pair: Pair, *, teacher_tap: str | None = None, student_tap: str | None = None, **settings: Any
    ) -> Self:
        """The term for two networks. The default taps are the ends of their last stages.

        Raises:
            InputError: if the pair has no labels of the training images.
        """
        if pair.labels is None:
            raise InputError("crd draws negatives from other classes and needs the labels of all training images")
        taps = teacher_tap or pair.teacher.stages[-1], student_tap or pair.student.stages[-1]
        (teacher,), (student,) = pair.teacher.shapes(taps[:1]), pair.student.shapes(taps[1:])
        return cls(student[0], teacher[0], pair.labels, *taps, **settings)

    def target(self, teacher: Seen) -> Target:
        """The teacher's pooled feature (B, C)."""
        return pooled(teacher.features[self.teacher_taps[0]])

    def forward(self, student: Seen, target: Tensor, batch: Batch) -> Tensor:
        """The sum of the losses of both networks' embeddings, 0-d.

        Raises:
            InputError: if the batch has no indices, shapes do not fit, or an index is not of a training image.
        """
        if batch.indices is None:
            raise InputError(
                "crd stores an embedding of each training image and needs the indices of a batch's images: pass "
                "indices, int64 (B,)"
            )
        features = {"student": pooled(student.features[self.student_taps[0]]), "teacher": target}
        if not features["student"].shape[:1] == target.shape[:1] == batch.indices.shape:
            raise InputError(
                f"crd needs features and indices of the same images, but the student's feature has shape "
                f"{tuple(features['student'].shape)}, the teacher's {tuple(target.shape)} and the indices "
                f"{tuple(batch.indices.shape)}"
            )
        self._check_sources(features, batch.indices)
        # Scores are divided by a small temperature, for which the 8 significant bits of bfloat16 are too few.
        with torch.autocast(target.device.type, enabled=False):
            embeddings = {side: self._embedding(side, feature) for side, feature in features.items()}
            drawn = self.draw(batch.indices) if self.training else None
            losses = [
                self._loss("student", embeddings["student"], self.get_buffer("memory_teacher"), batch.indices, drawn),
                self._loss("teacher", embeddings["teacher"], self.get_buffer("memory_student"), batch.indices, drawn),
            ]
        if self.training:
            indices = collectives.all_gather_rows(batch.indices)
            for side, embedding in embeddings.items():
                self._update_memory(side, collectives.all_gather_rows(embedding.detach()), indices)
        return losses[0] + losses[1]

    def _embedding(self, side: str, feature: Tensor) -> Tensor:
        # The layer may have been converted to another type than that of the pooled feature.
        layer = cast("nn.Linear", self.embed[side])
        embedding: Tensor = layer(feature.to(layer.weight.dtype))
        return F.normalize(embedding.float(), dim=1)

    def _check_sources(self, features: Mapping[str, Tensor], indices: Tensor) -> None:
        for side, feature in features.items():
            channels = cast("nn.Linear", self.embed[side]).in_features
            if feature.shape[1:] != (channels,):
                tap = (self.teacher_taps if side == "teacher" else self.student_taps)[0]
                raise InputError(
                    f"crd takes features of {channels} channels of the {side}, but its tap {tap!r} returns a feature "
                    f"whose mean over positions has shape {tuple(feature.shape)}"
                )
        # On a GPU, the check would wait for the device, whose own check of indices ends the program.
        if indices.device.type == "cpu" and len(indices) and not torch.compiler.is_compiling():
            first, last, total = int(indices.min()), int(indices.max()), len(self.classes)
            if first < 0 or last >= total:
                raise InputError(
                    f"crd was made for {total} training images, whose indices are 0 to {total - 1}, but the batch has "
                    f"indices from {first} to {last}"
                )

    def draw(self, indices: Tensor) -> Tensor:
        """Draw negatives for images (B,): the indices of images of other classes, int64 (B, negatives)."""
        classes, total = self.classes[indices, None], len(self.classes)
        if not self.replacement:
            keys = torch.rand(len(indices), total, device=indices.device)
            return keys.masked_fill_(self.classes == classes, -1).topk(self.negatives, sorted=False).indices
        starts, counts = self.starts[classes], self.counts[classes]
        positions = torch.randint(2**62, (len(indices), self.negatives), device=indices.device) % (total - counts)
        return self.order[positions + counts * (positions >= starts)]

    def _loss(self, side: str, anchor: Tensor, memory: Tensor, indices: Tensor, drawn: Tensor | None) -> Tensor:
        # One product with the whole memory bank, then a gather: gathering the rows of all negatives would take 1 GB.
        scores = anchor @ memory.float().T / self.temperature  # (B, N)
        positive = scores.gather(1, indices[:, None])
        if drawn is None:
            is_negative = (self.classes != self.classes[indices, None]).float()
            negative, weight = scores, is_negative * self.negatives / is_negative.sum(1, keepdim=True)
        else:
            negative, weight = scores.gather(1, drawn), torch.ones((), device=scores.device)
        with torch.no_grad():
            mean = (positive.exp().sum() + (weight * negative.exp()).sum()) / (len(indices) * (1 + self.negatives))
            estimated = self.get_buffer(f"z_{side}")
            z = torch.where(estimated > 0, estimated.float(), mean * len(memory))
            if self.training:
                collectives.broadcast_from_rank_zero([z])
                setattr(self, f"z_{side}", z)
        return nce_loss(positive - z.log(), negative - z.log(), weight, self.negatives / len(memory))

    def _update_memory(self, side: str, embedding: Tensor, indices: Tensor) -> None:
        memory = self.get_buffer(f"memory_{side}")
        updated = F.normalize(self.momentum * memory[indices].float() + (1 - self.momentum) * embedding, dim=1)
        # Not in place, because the backward pass of the loss still needs the old memory bank.
        setattr(self, f"memory_{side}", memory.index_copy(0, indices, updated.to(memory.dtype)))
