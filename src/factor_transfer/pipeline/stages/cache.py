"""The factor cache: what the teacher says to fixed views of the training images, worked out once in the whole pipeline.

``[cache] views = V`` in a recipe. In the work dir, ``cache/teacher`` has the features that stage 2 learns from, and the
logits; ``cache/factor``, ``cache/kd`` … have the targets of the terms. All methods and seeds share them.
"""

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from factor_transfer.data import Views
from factor_transfer.distributed import collectives
from factor_transfer.errors import InputError, Interrupted
from factor_transfer.methods import Term
from factor_transfer.methods.base import CachedTargets
from factor_transfer.pipeline import artefact
from factor_transfer.pipeline.artefact import Artefact
from factor_transfer.pipeline.experiment import EVALUATION_BATCH, Experiment
from factor_transfer.pipeline.provenance import cache_provenance
from factor_transfer.pipeline.stages.cache_files import Store, room
from factor_transfer.pipeline.stages.teacher import frozen_teacher
from factor_transfer.taps.extract import Seen
from factor_transfer.training.log import duration

_LOOKS = 4  # images whose tensors are worked out again before what is kept is trusted
_NEAR = 0.02  # of those from the kept ones, relative to the largest: bfloat16 has eight bits


@dataclass(frozen=True)
class _Wanted:
    """Something to keep.

    Attributes:
        name: of its folder.
        taps: of the teacher, that it is made from.
        logits: whether it is made from those, too.
        answer: makes it from what the teacher says.
        settings: that it depends on besides.
    """

    name: str
    taps: Sequence[str]
    logits: bool
    answer: Callable[[Seen], Tensor | Sequence[Tensor]]
    settings: Mapping[str, Any] = field(default_factory=dict)


# Indices int64 (B,) of images and the number of a view -> what the teacher says to them.
_See = Callable[[Tensor, int], Seen]


class Cache:
    """What is kept of a teacher.

    Args:
        experiment: whose work dir it is in.
        taught: the teacher.
        views: of the training images.
    """

    def __init__(self, experiment: Experiment, taught: Artefact, views: Views) -> None:
        self.experiment, self.taught, self.views = experiment, taught, views
        self.folder = experiment.work_dir / "cache"

    def features(self) -> CachedTargets:
        """The teacher's features at its taps, for stage 2; worked out now, as far as that is not done."""
        taps = self.experiment.taps[0]
        return lambda indices, views: self._teacher(indices, views)[: len(taps)]

    def targets(self, terms: dict[str, Term]) -> dict[str, CachedTargets]:
        """The targets of terms, by name; worked out now, as far as that is not done."""
        wanted = {
            name: _Wanted(name, list(term.teacher_taps), term.teacher_logits, term.target, term.target_settings())
            for name, term in terms.items()
        }
        # What stage 2 has kept is enough for some; for all others together the teacher is asked once more.
        there = (self.folder / "teacher" / artefact.RECORD).exists()
        known = self.experiment.taps[0] if there else []
        enough = [one for one in wanted.values() if known and set(one.taps) <= set(known)]
        others = [one for one in wanted.values() if one not in enough]
        kept: dict[str, CachedTargets] = {}
        if enough:
            kept |= self._keep(enough, self._remembered)
        if others:
            kept |= self._keep(others, self._asked(others))
        return kept

    @cached_property
    def _teacher(self) -> CachedTargets:
        taps = self.experiment.taps[0]

        def answer(seen: Seen) -> Sequence[Tensor]:
            assert seen.logits is not None
            return [*(seen.features[tap] for tap in taps), seen.logits]

        wanted = _Wanted("teacher", taps, True, answer)
        return self._keep([wanted], self._asked([wanted]))["teacher"]

    def _remembered(self, indices: Tensor, view: int) -> Seen:
        *features, logits = self._teacher(indices, torch.full_like(indices, view))
        return Seen(logits, dict(zip(self.experiment.taps[0], features, strict=True)))

    def _asked(self, wanted: Iterable[_Wanted]) -> _See:
        experiment = self.experiment
        teacher = frozen_teacher(experiment, experiment.load(self.taught), experiment.normalize(self.taught))
        for one in wanted:
            teacher.want(one.taps, one.logits)
        images, draws, device = experiment.data.train.images, self.views.draws, experiment.fabric.device

        def see(indices: Tensor, view: int) -> Seen:
            where = indices.cpu()
            return teacher(experiment.augment.apply(images[where].to(device), draws[view, where].to(device)))

        return see

    def _keep(self, wanted: Sequence[_Wanted], see: _See) -> dict[str, CachedTargets]:
        """What is kept of each, whole; what is there is used if it is what would be written now."""
        train = self.experiment.data.train
        some = torch.linspace(0, len(train) - 1, _LOOKS, device=self.experiment.fabric.device).long()
        with self.experiment.fabric.autocast():
            seen = see(some, 0)
        answers: dict[str, list[Tensor]] = {}
        stores: dict[str, Store] = {}
        kept: dict[str, CachedTargets] = {}
        for one in wanted:
            with torch.no_grad():
                now = one.answer(seen)
            answers[one.name] = several = [now] if isinstance(now, Tensor) else list(now)
            if any(len(value) != _LOOKS for value in several):
                raise InputError(f"{one.name} cannot be kept in a cache: its target is not one of each image")
            shapes = [value.shape[1:] for value in several]
            store = stores[one.name] = Store(self.folder / one.name, shapes, len(train), self.views.count)
            kept[one.name] = _first(store) if isinstance(now, Tensor) else store

        def make() -> None:
            missing = [one for one in wanted if not self._trusted(one, stores[one.name], some, answers[one.name])]
            if missing:
                self._fill(missing, stores, see)

        collectives.on_rank_zero(make)
        if collectives.rank():
            for store in stores.values():
                store.open()
        return kept

    def _trusted(self, one: _Wanted, store: Store, some: Tensor, now: Sequence[Tensor]) -> bool:
        """Whether all of it is there, and as it should be; what is not is removed, unless it can be gone on with."""
        inputs = cache_provenance(self.experiment, self.taught, one.name, one.taps, one.settings)
        there = (store.folder / artefact.RECORD).exists()
        changed = artefact.differences(store.folder, inputs) if there else []
        if there and not changed and store.is_reserved():
            store.open()
            try:
                if store.folder not in self.experiment.verified:
                    store.verify()
                    self.experiment.verified.add(store.folder)
                whole = store.done == store.views
                near = [_near(a, b) for a, b in zip(store(some, torch.zeros_like(some)), now, strict=True)]
                if all(near) or not store.done:
                    return whole
                changed = ["other figures now"]
            except InputError as error:
                changed = [str(error)]
        if store.folder.exists():
            why = "; ".join(changed) or "it is not whole"
            self.experiment.say(f"cache  {one.name} is made anew: {why}")
            shutil.rmtree(store.folder)
        artefact.begin(store.folder, inputs)
        return False

    def _fill(self, missing: Sequence[_Wanted], stores: dict[str, Store], see: _See) -> None:
        """Ask view by view, for all together."""
        filled = [stores[one.name] for one in missing]
        room(self.folder, filled)
        for store in filled:
            store.reserve()
            self.experiment.say(
                f"cache  {store.folder.name}: {store.views} views of {store.images:,} images, "
                f"{store.nbytes / 1e9:.2f} GB in {store.folder}"
            )
        began, first = time.perf_counter(), min(store.done for store in filled)
        try:
            for view in range(first, self.views.count):
                for indices in self._parts():
                    with torch.no_grad(), self.experiment.fabric.autocast():
                        seen = see(indices, view)
                        for one, store in zip(missing, filled, strict=True):
                            if store.done <= view:
                                answer = one.answer(seen)
                                store.write(view, indices, [answer] if isinstance(answer, Tensor) else answer)
                for store in filled:
                    store.finish(view)
                left = (time.perf_counter() - began) / (view + 1 - first) * (self.views.count - view - 1)
                self.experiment.say(f"cache  view {view + 1} of {self.views.count}  {duration(left)} left")
            for store in filled:
                artefact.complete(store.folder, {"stage": "cache", "shapes": store.shapes})
        except (KeyboardInterrupt, Interrupted) as error:
            raise Interrupted(
                f"stopped while the cache was filled; {filled[0].done} of {self.views.count} views are kept in "
                f"{self.folder}\nThe same command goes on from there",
                getattr(error, "signal", 2),
            ) from None

    def _parts(self) -> Iterator[Tensor]:
        everything = torch.arange(len(self.experiment.data.train), device=self.experiment.fabric.device)
        return iter(everything.split(EVALUATION_BATCH))


def _first(store: Store) -> CachedTargets:
    return lambda indices, views: store(indices, views)[0]


def _near(kept: Tensor, now: Tensor) -> bool:
    return bool((kept - now.float()).abs().max() <= _NEAR * now.abs().max())
