"""What a stage leaves in its folder, and whether it is what is wanted now.

``weights.safetensors``; ``last.safetensors``, if those are not the last epoch's; ``stage.json``: the inputs it was made
from, the model, figures, versions, the weights' SHA-256; ``metrics.jsonl``; while the stage is running, ``last.ckpt``.
"""

import hashlib
import json
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factor_transfer.errors import InputError
from factor_transfer.files import State, read_json, read_weights, save_weights, sha256, write_json
from factor_transfer.pipeline.records import StageRecord, read_record
from factor_transfer.training.checkpoint import remove_training
from factor_transfer.versions import OURS, versions

RECORD, WEIGHTS, METRICS, RUNNING = "stage.json", "weights.safetensors", "metrics.jsonl", "last.ckpt"
RECIPE = "recipe.toml"  # of a student: the recipe that last asked for it
LAST = "last.safetensors"
STATES = WEIGHTS, LAST
_MARK = "recipe.json"


@dataclass(frozen=True)
class Artefact:
    """A finished stage.

    Attributes:
        folder: where it lies.
        record: what ``stage.json`` says.
    """

    folder: Path
    record: dict[str, Any]

    @property
    def weights(self) -> Path:
        """The file of its weights."""
        return self.folder / WEIGHTS

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what it computes, weights, network and normalisation: what later stages remember of it."""
        what = {key: self.record.get(key) for key in ("weights_sha256", "model", "mean", "std", "in_channels")}
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()

    def state(self) -> State:
        """Its weights."""
        return read_weights(self.weights)

    def last_state(self) -> State:
        """Its weights after the last epoch, which may be the same.

        Raises:
            InputError: they are damaged.
        """
        expected = self.record.get("last_sha256")
        if expected is None:
            if (self.folder / LAST).exists():
                raise InputError(f"{self.folder / RECORD} is damaged: last_sha256 is missing, of {LAST} beside it")
            return self.state()
        _check(self.folder / LAST, expected)
        return read_weights(self.folder / LAST)


def find(folder: Path) -> Artefact | None:
    """The finished stage in ``folder``, or ``None`` if there is none.

    Raises:
        InputError: it is damaged.
    """
    if not (folder / RECORD).exists():
        return None
    record = _read_record(folder)
    if not record["finished"]:
        return None
    if not (folder / WEIGHTS).is_file():
        raise InputError(
            f"weights {folder / WEIGHTS} are missing; add --fresh to the stage's command to make them anew"
        )
    _check(folder / WEIGHTS, record.get("weights_sha256"))
    return Artefact(folder, record)


def begin(folder: Path, inputs: Mapping[str, Any]) -> None:
    """Write down what a stage is made from, before it starts."""
    write_json(folder / RECORD, {"finished": False, "inputs": inputs})


def finish(folder: Path, state: State, record: Mapping[str, Any], last: State | None = None) -> Artefact:
    """Write a stage's weights and its record; then it is finished, and its checkpoint is removed.

    Args:
        folder: the stage's.
        state: its weights.
        record: what else to remember.
        last: the weights of the last epoch, if they are others.
    """
    save_weights(folder / WEIGHTS, state)
    sums = {"weights_sha256": sha256(folder / WEIGHTS)}
    if last is not None:
        save_weights(folder / LAST, last)
        sums["last_sha256"] = sha256(folder / LAST)
    done = Artefact(folder, complete(folder, {**record, **sums}))
    remove_training(folder / RUNNING)
    return done


def complete(folder: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """Write down that what ``folder`` holds is finished; what the record says then."""
    whole = {
        "finished": True,
        **record,
        "inputs": _read_record(folder)["inputs"],
        "versions": versions(OURS, "torch", "lightning-fabric"),
        "machine": platform.platform(),
    }
    write_json(folder / RECORD, whole)
    return whole


def differences(folder: Path, inputs: Mapping[str, Any]) -> list[str]:
    """In which inputs the stage in ``folder`` differs from ``inputs``; one line each."""
    then, now = dict(_flat(_read_record(folder)["inputs"])), dict(_flat(inputs))
    return [
        f"{key}: {_short(then.get(key))} then, {_short(now.get(key))} now"
        for key in {**then, **now}
        if then.get(key) != now.get(key)
    ]


def archive(folder: Path) -> Path:
    """Move a stage out of the way, into ``replaced/`` beside it: what was trained is never thrown away."""
    number = 1
    while (target := folder.parent / "replaced" / f"{folder.name}-{number}").exists():
        number += 1
    target.parent.mkdir(exist_ok=True)
    folder.rename(target)
    return target


def is_work_dir(folder: Path) -> bool:
    """Whether a recipe has claimed this folder."""
    return (folder / _MARK).is_file()


def trained_precision(work_dir: Path) -> str | None:
    """The precision in which the stages of a work dir were, or are being, trained; ``None`` if there is no stage."""
    for folder in sorted(work_dir.iterdir()) if work_dir.is_dir() else []:
        try:
            found = read_json(folder / RECORD)["inputs"]["precision"]
        except (InputError, OSError, KeyError, TypeError):
            continue
        if found in ("32-true", "bf16-mixed"):
            return str(found)
    return None


def check_owner(work_dir: Path, recipe: str) -> bool:
    """See that a folder may be a recipe's work dir; whether it is so already.

    Raises:
        InputError: it belongs to another recipe, holds something else, or cannot be read.
    """
    mark = work_dir / _MARK
    try:
        if mark.exists():
            content = read_json(mark)
            owner = content.get("recipe") if isinstance(content, dict) else None
            if owner != recipe:
                raise InputError(
                    f"work dir {work_dir} belongs to the recipe {owner!r}, not to {recipe!r}; "
                    "give another one with --work-dir"
                )
            return True
        if work_dir.exists() and any(not entry.name.startswith(".") for entry in work_dir.iterdir()):
            raise InputError(
                f"work dir {work_dir} is not empty and was not made by factor-transfer; give another --work-dir"
            )
    except OSError as error:
        raise InputError(f"cannot use work dir {work_dir}: {error.strerror}") from error
    return False


def claim(work_dir: Path, recipe: str) -> None:
    """Make a folder a recipe's work dir. Of two recipes that want it at the same time, the lock's holder gets it.

    Raises:
        InputError: it belongs to another recipe, holds something else, or cannot be written.
    """
    if check_owner(work_dir, recipe):
        return
    try:
        write_json(work_dir / _MARK, {"recipe": recipe})
    except OSError as error:
        raise InputError(f"cannot use work dir {work_dir}: {error.strerror}") from error


def _check(path: Path, expected: str | None) -> None:
    found = sha256(path)
    if found != expected:
        raise InputError(
            f"weights {path} are damaged: their SHA-256 is {found[:12]}…, {RECORD} beside them says "
            f"{str(expected)[:12]}…\nAdd --fresh to the stage's command to make them anew"
        )


def _read_record(folder: Path) -> dict[str, Any]:
    mend = "add --fresh to the stage's command to make it anew"
    return read_record(folder / RECORD, StageRecord, mend).model_dump(exclude_unset=True)


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _short(value: Any) -> str:
    text = "absent" if value is None else repr(value)
    return f"{text[:14]}…'" if len(text) > 60 else text
