"""The factor cache: the outputs of a teacher for fixed views of the training images, computed once per work dir.

``[cache] views = V`` in a recipe enables it. In the work dir, ``cache/teacher`` has the features that stage 2 learns
from and the logits; ``cache/factor``, ``cache/kd`` … have the targets of the terms. All methods and seeds share them.
"""

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from factor_transfer.data import Views
from factor_transfer.distributed import collectives
from factor_transfer.distributed.threads import OnePerThread, side_by_side
from factor_transfer.errors import InputError, Interrupted
from factor_transfer.methods import Term
from factor_transfer.methods.base import CachedTargets
from factor_transfer.methods.term import as_taps
from factor_transfer.models.inference import copy_network
from factor_transfer.pipeline import artefact
from factor_transfer.pipeline.artefact import Artefact
from factor_transfer.pipeline.experiment import EVALUATION_BATCH, Experiment
from factor_transfer.pipeline.provenance import cache_provenance
from factor_transfer.pipeline.stages.cache_files import Store, check_room
from factor_transfer.pipeline.stages.teacher import frozen_teacher
from factor_transfer.taps.extract import Seen
from factor_transfer.training.log import duration

# On a CPU, the images of one call of the teacher. Their number does not depend on the number of threads, since the
# last bits of the outputs might depend on it.
_CPU_BATCH = 250
_SAMPLES = 4  # images whose tensors are computed again before those on disk are used
# How far a tensor on disk may be from one computed now, relative to the largest value: bfloat16 has eight bits.
_TOLERANCE = 0.02


@dataclass(frozen=True)
class _Entry:
    """Something that is computed from the teacher's outputs and cached.

    Attributes:
        name: the name of its folder.
        taps: the taps of the teacher that it is computed from.
        logits: whether it is also computed from the logits.
        compute: turns the teacher's outputs into the tensors to store.
        settings: the other settings that it depends on.
    """

    name: str
    taps: Sequence[str]
    logits: bool
    compute: Callable[[Seen], Tensor | Sequence[Tensor]]
    settings: Mapping[str, Any] = field(default_factory=dict)


# Indices int64 (B,) of images and the number of a view -> the teacher's outputs for them.
_Outputs = Callable[[Tensor, int], Seen]
# A function and values -> the function is called for each of them.
_Call = Callable[[Callable[[Tensor], object], Iterable[Tensor]], None]


class Cache:
    """The cached outputs of a teacher.

    Args:
        experiment: the experiment whose work dir has the cache.
        teacher: the finished teacher.
        views: the fixed views of the training images.
    """

    def __init__(self, experiment: Experiment, teacher: Artefact, views: Views) -> None:
        self.experiment, self.teacher, self.views = experiment, teacher, views
        self.folder = experiment.work_dir / "cache"

    def features(self) -> CachedTargets:
        """The teacher's features at its taps, for stage 2; those that are not cached yet are computed now."""
        taps, cached = self.experiment.taps[0], self._features_and_logits
        return lambda indices, views: cached(indices, views)[: len(taps)]

    def targets(self, terms: dict[str, Term]) -> dict[str, CachedTargets]:
        """The targets of terms, by name; those that are not cached yet are computed now."""
        entries = {
            name: _Entry(name, as_taps(term.teacher_taps), term.teacher_logits, term.target, term.target_settings())
            for name, term in terms.items()
        }
        # Some targets can be computed from the features that stage 2 has cached. For all others together, the teacher
        # is run once more.
        has_features = (self.folder / "teacher" / artefact.RECORD).exists()
        cached_taps = self.experiment.taps[0] if has_features else []
        from_features = [entry for entry in entries.values() if cached_taps and set(entry.taps) <= set(cached_taps)]
        from_teacher = [entry for entry in entries.values() if entry not in from_features]
        targets: dict[str, CachedTargets] = {}
        if from_features:
            targets |= self._cached(from_features, self._cached_outputs)
        if from_teacher:
            targets |= self._cached(from_teacher, self._teacher_outputs(from_teacher))
        return targets

    @cached_property
    def _features_and_logits(self) -> CachedTargets:
        taps = self.experiment.taps[0]

        def compute(outputs: Seen) -> Sequence[Tensor]:
            assert outputs.logits is not None
            return [*(outputs.features[tap] for tap in taps), outputs.logits]

        entry = _Entry("teacher", taps, True, compute)
        return self._cached([entry], self._teacher_outputs([entry]))["teacher"]

    def _cached_outputs(self, indices: Tensor, view: int) -> Seen:
        *features, logits = self._features_and_logits(indices, torch.full_like(indices, view))
        return Seen(logits, dict(zip(self.experiment.taps[0], features, strict=True)))

    def _teacher_outputs(self, entries: Iterable[_Entry]) -> _Outputs:
        experiment = self.experiment
        teacher = frozen_teacher(experiment, experiment.load(self.teacher), experiment.normalize(self.teacher))
        for entry in entries:
            teacher.want(entry.taps, entry.logits)
        teachers = OnePerThread(teacher, copy_network)
        images, draws, device = experiment.data.pool.images, self.views.draws, experiment.fabric.device

        def outputs(indices: Tensor, view: int) -> Seen:
            chosen = indices.cpu()
            return teachers()(experiment.augment.apply(images[chosen].to(device), draws[view, chosen].to(device)))

        return outputs

    def _cached(self, entries: Sequence[_Entry], outputs: _Outputs) -> dict[str, CachedTargets]:
        """The complete tensors of each entry; those on disk are used if they are what would be written now."""
        pool = self.experiment.data.pool
        samples = torch.linspace(0, len(pool) - 1, _SAMPLES, device=self.experiment.fabric.device).long()
        with torch.no_grad(), self.experiment.fabric.autocast():
            sample_outputs = outputs(samples, 0)
            values = [entry.compute(sample_outputs) for entry in entries]
        expected: dict[str, list[Tensor]] = {}
        stores: dict[str, Store] = {}
        cached: dict[str, CachedTargets] = {}
        for entry, value in zip(entries, values, strict=True):
            expected[entry.name] = tensors = [value] if isinstance(value, Tensor) else list(value)
            if any(len(tensor) != _SAMPLES for tensor in tensors):
                raise InputError(f"{entry.name} cannot be cached: its target does not have one row per image")
            shapes = [tensor.shape[1:] for tensor in tensors]
            store = stores[entry.name] = Store(self.folder / entry.name, shapes, len(pool), self.views.count)
            cached[entry.name] = _single(store) if isinstance(value, Tensor) else store

        def complete() -> None:
            missing = [
                entry
                for entry in entries
                if not self._is_complete(entry, stores[entry.name], samples, expected[entry.name])
            ]
            if missing:
                self._fill(missing, stores, outputs)

        collectives.on_rank_zero(complete)
        if collectives.rank():
            for store in stores.values():
                store.open()
        return cached

    def _is_complete(self, entry: _Entry, store: Store, samples: Tensor, expected: Sequence[Tensor]) -> bool:
        """Whether an entry is complete and valid; what is invalid is removed, what is only incomplete is continued."""
        inputs = cache_provenance(self.experiment, self.teacher, entry.name, entry.taps, entry.settings)
        exists = (store.folder / artefact.RECORD).exists()
        changed = artefact.differences(store.folder, inputs) if exists else []
        if exists and not changed and store.is_reserved():
            store.open()
            try:
                if store.folder not in self.experiment.verified:
                    store.verify()
                    self.experiment.verified.add(store.folder)
                found = store(samples, torch.zeros_like(samples))
                if not store.done or all(_is_near(a, b) for a, b in zip(found, expected, strict=True)):
                    return store.done == store.views
                changed = ["the teacher's outputs are different now"]
            except InputError as error:
                changed = [str(error)]
        if store.folder.exists():
            reason = "; ".join(changed) or "it is incomplete"
            self.experiment.say(f"cache  {entry.name} is computed again: {reason}")
            shutil.rmtree(store.folder)
        artefact.begin(store.folder, inputs)
        return False

    def _fill(self, missing: Sequence[_Entry], stores: dict[str, Store], outputs: _Outputs) -> None:
        """Compute missing entries together, view by view."""
        filled = [stores[entry.name] for entry in missing]
        check_room(self.folder, filled)
        for store in filled:
            store.reserve()
            self.experiment.say(
                f"cache  {store.folder.name}: {store.views} views of {store.images:,} images, "
                f"{store.nbytes / 1e9:.2f} GB in {store.folder}"
            )
        start, first = time.perf_counter(), min(store.done for store in filled)

        def fill(view: int, written: Sequence[tuple[_Entry, Store]], indices: Tensor) -> None:
            with torch.no_grad(), self.experiment.fabric.autocast():
                batch_outputs = outputs(indices, view)
                for entry, store in written:
                    value = entry.compute(batch_outputs)
                    store.write(view, indices, [value] if isinstance(value, Tensor) else value)

        try:
            with self._threads() as call:
                for view in range(first, self.views.count):
                    written = [pair for pair in zip(missing, filled, strict=True) if pair[1].done <= view]
                    call(partial(fill, view, written), self._batches())
                    for store in filled:
                        store.finish(view)
                    left = (time.perf_counter() - start) / (view + 1 - first) * (self.views.count - view - 1)
                    self.experiment.say(f"cache  view {view + 1} of {self.views.count}  {duration(left)} left")
            for store in filled:
                artefact.complete(store.folder, {"stage": "cache", "shapes": store.shapes})
        except (KeyboardInterrupt, Interrupted) as error:
            raise Interrupted(
                f"the cache has {filled[0].done} of {self.views.count} views, which are saved in {self.folder}",
                getattr(error, "signal", 2),
            ) from None

    def _batches(self) -> Iterator[Tensor]:
        everything = torch.arange(len(self.experiment.data.pool), device=self.experiment.fabric.device)
        return iter(everything.split(_CPU_BATCH if self._is_on_cpus() else EVALUATION_BATCH))

    def _threads(self) -> AbstractContextManager[_Call]:
        """The threads that fill the cache: on a CPU, as many as the training may have."""
        if not self._is_on_cpus():
            return nullcontext(_one_after_the_other)
        given = self.experiment.recipe.threads
        return side_by_side(self.experiment.cache_threads or (torch.get_num_threads() if given == "auto" else given))

    def _is_on_cpus(self) -> bool:
        fabric = self.experiment.fabric
        return fabric.device.type == "cpu" and fabric.world_size == 1


def _one_after_the_other(function: Callable[[Tensor], object], values: Iterable[Tensor]) -> None:
    for value in values:
        function(value)


def _single(store: Store) -> CachedTargets:
    return lambda indices, views: store(indices, views)[0]


def _is_near(cached: Tensor, computed: Tensor) -> bool:
    return bool((cached - computed.float()).abs().max() <= _TOLERANCE * computed.abs().max())
