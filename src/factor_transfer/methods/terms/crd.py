"""CRD (Tian, Krishnan, Isola: Contrastive Representation Distillation, ICLR 2020; arXiv 1910.10699)."""

import math
from typing import Annotated, Any, Self

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn
from torch.nn import functional as F

from factor_transfer.data import Batch
from factor_transfer.distributed import collectives
from factor_transfer.errors import InputError
from factor_transfer.methods.term import Pair, Target, Term
from factor_transfer.taps.extract import Seen


def pooled(feature: Tensor) -> Tensor:
    """A feature map (B, C, H, W) averaged over its places, or a vector (B, C) as it is; (B, C), float32."""
    return feature.float().flatten(2).mean(2) if feature.dim() > 2 else feature.float()


def nce_loss(positive: Tensor, negative: Tensor, weight: Tensor | float, noise: float) -> Tensor:
    """Noise contrastive estimation: tell the one positive from the negatives (equation 18).

    With ``h = p / (p + noise)``, it is ``-log h(positive) - sum of weight * log(1 - h(negative))``.

    Args:
        positive: log of p for each sample's own image, (B, 1).
        negative: log of p for others, (B, M).
        weight: how often each of those counts, (B, M).
        noise: number of negatives / number of training images.

    Returns:
        0-d, the mean over samples.
    """
    shift = math.log(noise)
    return (F.softplus(shift - positive).sum(1) + (weight * F.softplus(negative - shift)).sum(1)).mean()


class CRD(Term):
    """An image's embeddings of student and teacher are near each other, and far from those of other classes' images.

    Each side's embedding is compared with a memory of the other's embeddings of all training images. Both embeddings
    are trained. In training a step moves the memories and draws from torch's generator; in evaluation mode neither is
    done, and the loss is its mean over all draws. Defaults are the authors' (RepDistiller).

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
        student_channels: of the student's feature.
        teacher_channels: of the teacher's.
        labels: int64 (N,): of all training images.
        teacher_tap: a feature map, which is averaged over its places, or a vector.
        student_tap: likewise.
        dimension: of the embeddings.
        negatives: images of other classes that each image is compared with. If a class has fewer, they are drawn with
            replacement, for all classes.
        temperature: τ; a lower one looks at the nearest more.
        momentum: share of what a memory keeps when its image is seen again.
        weight: of the loss.

    Raises:
        InputError: all images are of one class.
    """

    classes: Tensor  # (N,), 0..
    order: Tensor  # (N,): images sorted by class, so that those of other classes are all but one run of them
    counts: Tensor  # images of each class
    starts: Tensor  # where its run starts

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
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
        bound = math.sqrt(3 / dimension)  # rows are about of length 1
        for side in self.embed:
            self.register_buffer(f"memory_{side}", torch.empty(len(labels), dimension).uniform_(-bound, bound))
            self.register_buffer(f"z_{side}", torch.zeros(()))  # 0: not known yet
        _, classes, counts = labels.cpu().unique(return_inverse=True, return_counts=True)
        if len(counts) < 2:
            raise InputError("crd draws negatives of other classes, but all training images are of one class")
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
        """The term for two networks; taps are the ends of their last stages if none are named.

        Raises:
            InputError: the training images' labels are not known.
        """
        if pair.labels is None:
            raise InputError("crd needs the labels of all training images, to draw negatives of other classes")
        taps = teacher_tap or pair.teacher.stages[-1], student_tap or pair.student.stages[-1]
        (teacher,), (student,) = pair.teacher.shapes(taps[:1]), pair.student.shapes(taps[1:])
        return cls(student[0], teacher[0], pair.labels, *taps, **settings)

    def target(self, teacher: Seen) -> Target:
        """The teacher's pooled feature (B, C)."""
        return pooled(teacher.features[self.teacher_taps[0]])

    def forward(self, student: Seen, target: Tensor, batch: Batch) -> Tensor:
        """The sum of both sides' losses, 0-d.

        Raises:
            InputError: it is not said which training images these are.
        """
        if batch.indices is None:
            raise InputError(
                "crd remembers an embedding of each training image: give their indices int64 (B,) beside the labels"
            )
        features = {"student": pooled(student.features[self.student_taps[0]]), "teacher": target}
        # Distances are divided by a small temperature: bf16's eight bits are too few.
        with torch.autocast(target.device.type, enabled=False):
            embeddings = {side: F.normalize(self.embed[side](feature), dim=1) for side, feature in features.items()}
            drawn = self.draw(batch.indices) if self.training else None
            losses = [
                self._loss("student", embeddings["student"], self.get_buffer("memory_teacher"), batch.indices, drawn),
                self._loss("teacher", embeddings["teacher"], self.get_buffer("memory_student"), batch.indices, drawn),
            ]
        if self.training:
            indices = collectives.all_gather_rows(batch.indices)
            for side, embedding in embeddings.items():
                self._remember(side, collectives.all_gather_rows(embedding.detach()), indices)
        return losses[0] + losses[1]

    def draw(self, indices: Tensor) -> Tensor:
        """Negatives of each image (B,): indices of images of other classes, int64 (B, negatives)."""
        own, total = self.classes[indices, None], len(self.classes)
        if not self.replacement:
            keys = torch.rand(len(indices), total, device=indices.device)
            return keys.masked_fill_(self.classes == own, -1).topk(self.negatives, sorted=False).indices
        starts, counts = self.starts[own], self.counts[own]
        places = torch.randint(2**62, (len(indices), self.negatives), device=indices.device) % (total - counts)
        return self.order[places + counts * (places >= starts)]

    def _loss(self, side: str, anchor: Tensor, memory: Tensor, indices: Tensor, drawn: Tensor | None) -> Tensor:
        # One product with the whole memory, then a gather: a row of the memory for each negative would be 1 GB.
        scores = anchor @ memory.T / self.temperature  # (B, N)
        positive = scores.gather(1, indices[:, None])
        if drawn is None:
            others = (self.classes != self.classes[indices, None]).float()
            negative, weight = scores, others * self.negatives / others.sum(1, keepdim=True)
        else:
            negative, weight = scores.gather(1, drawn), torch.ones((), device=scores.device)
        with torch.no_grad():
            mean = (positive.exp().sum() + (weight * negative.exp()).sum()) / (len(indices) * (1 + self.negatives))
            known = self.get_buffer(f"z_{side}")
            z = torch.where(known > 0, known, mean * len(memory))
            if self.training:
                collectives.broadcast_from_rank_zero([z])
                setattr(self, f"z_{side}", z)
        return nce_loss(positive - z.log(), negative - z.log(), weight, self.negatives / len(memory))

    def _remember(self, side: str, embedding: Tensor, indices: Tensor) -> None:
        memory = self.get_buffer(f"memory_{side}")
        moved = F.normalize(self.momentum * memory[indices] + (1 - self.momentum) * embedding, dim=1)
        # Not in place: the loss's gradient still needs what was there.
        setattr(self, f"memory_{side}", memory.index_copy(0, indices, moved))
