"""The base class of the terms that compare logits alone."""

from typing import Any, Self

from torch import Tensor

from factor_transfer.data import Batch
from factor_transfer.methods.term import Pair, Target, Term
from factor_transfer.taps.extract import Seen


class LogitsTerm(Term):
    """A term that compares the two networks' logits. Subclasses define ``distance``."""

    teacher_logits = True
    needs_classifier = True

    @classmethod
    def between(cls, pair: Pair, **settings: Any) -> Self:
        """The term for two networks that have the same classes, at least two."""
        pair.classes(cls.__name__.lower())
        return cls(**settings)

    def target(self, teacher: Seen) -> Target:
        """The teacher's logits (B, K)."""
        assert teacher.logits is not None
        return teacher.logits

    def forward(self, student: Seen, target: Tensor, batch: Batch) -> Tensor:
        """The distance of the student's logits (B, K) from the teacher's, 0-d."""
        assert student.logits is not None
        return self.distance(student.logits, target, batch.labels)

    def distance(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """The distance of the student's logits (B, K) from the teacher's (B, K), 0-d; labels are int64 (B,)."""
        raise NotImplementedError
