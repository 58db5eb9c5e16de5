"""The artefact of a stage: the files in its folder, and whether they match the current inputs.

A stage writes ``weights.safetensors``; ``last.safetensors``, if the saved weights are not those of the last epoch;
``connectors.safetensors``, the translators and other modules that a student's terms have trained beside it;
``stage.json`` with its inputs, model, figures, versions and the SHA-256 of the weights; and ``metrics.jsonl``. While it
is running, there is also a checkpoint, ``last.ckpt``.
"""

import hashlib
import json
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factor_transfer.errors import InputError
from factor_transfer.files import read_json, sha256, write_json
from factor_transfer.pipeline.records import StageRecord, read_record
from factor_transfer.state_dicts import State, read_weights, save_weights
from factor_transfer.training.checkpoint import remove_training
from factor_transfer.versions import OURS, versions

RECORD, WEIGHTS, METRICS, RUNNING = "stage.json", "weights.safetensors", "metrics.jsonl", "last.ckpt"
RECIPE = "recipe.toml"  # in a student's folder: the last recipe that requested this student
LAST = "last.safetensors"
CONNECTORS = "connectors.safetensors"
STATES = WEIGHTS, LAST
_MARK = "recipe.json"


@dataclass(frozen=True)
class Artefact:
    """A finished stage.

    Attributes:
        folder: the folder of the stage.
        record: the content of ``stage.json``.
    """

    folder: Path
    record: dict[str, Any]

    @property
    def weights(self) -> Path:
        """The path of the weights file."""
        return self.folder / WEIGHTS

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of weights, network and normalisation, by which later stages identify this one."""
        identity = {key: self.record.get(key) for key in ("weights_sha256", "model", "mean", "std", "in_channels")}
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    @property
    def has_classifier(self) -> bool:
        """Whether the network classifies images; ``False`` for a teacher that was given for its features alone."""
        return bool(self.record.get("classifier", True))

    def state(self) -> State:
        """Read the weights."""
        return read_weights(self.weights)

    def connectors(self) -> State:
        """Read the weights of the modules that were trained beside the network; empty if there are none.

        Raises:
            InputError: if they are damaged.
        """
        expected = self.record.get("connectors_sha256")
        if expected is None or not (self.folder / CONNECTORS).exists():  # the zoo leaves them out
            return {}
        _check(self.folder / CONNECTORS, expected)
        return read_weights(self.folder / CONNECTORS)

    def last_state(self) -> State:
        """Read the weights of the last epoch, which may be the same as ``state()``.

        Raises:
            InputError: if they are damaged.
        """
        expected = self.record.get("last_sha256")
        if expected is None:
            if (self.folder / LAST).exists():
                raise InputError(f"{self.folder / RECORD} is damaged: last_sha256, the SHA-256 of {LAST}, is missing")
            return self.state()
        _check(self.folder / LAST, expected)
        return read_weights(self.folder / LAST)


def find(folder: Path) -> Artefact | None:
    """The finished stage in a folder, or ``None`` if there is none.

    Args:
        folder: the folder of the stage.

    Raises:
        InputError: if its record or weights are damaged, or its weights are missing.
    """
    if not (folder / RECORD).exists():
        return None
    record = _read_record(folder)
    if not record["finished"]:
        return None
    if not (folder / WEIGHTS).is_file():
        raise InputError(
            f"weights {folder / WEIGHTS} are missing; add --fresh to the stage's command to train it again"
        )
    _check(folder / WEIGHTS, record.get("weights_sha256"))
    return Artefact(folder, record)


def begin(folder: Path, inputs: Mapping[str, Any]) -> None:
    """Record the inputs of a stage before it starts."""
    write_json(folder / RECORD, {"finished": False, "inputs": inputs})


def record_threads(folder: Path, count: int) -> None:
    """Record the number of threads that an unfinished stage is trained with."""
    record = _read_record(folder)
    if record.get("threads") != count:
        write_json(folder / RECORD, {**record, "threads": count})


def recorded_threads(folder: Path) -> int | None:
    """The number of threads that a stage was trained with; ``None`` if it is not known."""
    count = _read_record(folder).get("threads")
    return None if count is None else int(count)


def finish(
    folder: Path,
    state: State,
    record: Mapping[str, Any],
    last: State | None = None,
    connectors: State | None = None,
) -> Artefact:
    """Write the weights and the record of a stage, which marks it as finished, and remove its checkpoint.

    Args:
        folder: the folder of the stage.
        state: the weights.
        record: further keys of the record.
        last: the weights of the last epoch; ``None`` if they are the same.
        connectors: the weights of the modules that were trained beside the network; ``None`` if there are none.

    Returns:
        The finished stage.
    """
    sums = {}
    for name, file, weights in (
        ("weights", WEIGHTS, state),
        ("last", LAST, last),
        ("connectors", CONNECTORS, connectors),
    ):
        if weights is not None:
            save_weights(folder / file, weights)
            sums[f"{name}_sha256"] = sha256(folder / file)
    done = Artefact(folder, complete(folder, {**record, **sums}))
    remove_training(folder / RUNNING)
    return done


def complete(folder: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """Mark a stage, or a part of the cache, as finished.

    Args:
        folder: the folder, whose record has the inputs.
        record: further keys of the record.

    Returns:
        The complete record.
    """
    begun = _read_record(folder)
    complete_record = {
        "finished": True,
        **record,
        **({"threads": begun["threads"]} if "threads" in begun else {}),
        "inputs": begun["inputs"],
        "versions": versions(OURS, "torch", "lightning-fabric"),
        "machine": platform.platform(),
    }
    write_json(folder / RECORD, complete_record)
    return complete_record


def differences(folder: Path, inputs: Mapping[str, Any]) -> list[str]:
    """The inputs that changed since a stage was recorded, one line per key.

    Args:
        folder: the folder of the stage.
        inputs: the current inputs.
    """
    then, now = dict(_flat(_read_record(folder)["inputs"])), dict(_flat(inputs))
    return [
        f"{key}: {_short(then.get(key))} then, {_short(now.get(key))} now"
        for key in {**then, **now}
        if then.get(key) != now.get(key)
    ]


def archive(folder: Path) -> Path:
    """Move a stage into ``replaced/`` in the work dir, so that nothing that was trained is lost.

    Args:
        folder: the folder of the stage.

    Returns:
        The new folder.
    """
    number = 1
    while (target := folder.parent / "replaced" / f"{folder.name}-{number}").exists():
        number += 1
    target.parent.mkdir(exist_ok=True)
    folder.rename(target)
    return target


def is_work_dir(folder: Path) -> bool:
    """Whether a folder is the work dir of a recipe."""
    return (folder / _MARK).is_file()


def trained_precision(work_dir: Path) -> str | None:
    """The precision that the stages of a work dir are trained in; ``None`` if there is no stage."""
    for folder in sorted(work_dir.iterdir()) if work_dir.is_dir() else []:
        try:
            found = read_json(folder / RECORD)["inputs"]["precision"]
        except (InputError, OSError, KeyError, TypeError):
            continue
        if found in ("32-true", "bf16-mixed"):
            return str(found)
    return None


def check_owner(work_dir: Path, recipe: str) -> bool:
    """Check that a folder can be the work dir of a recipe.

    Args:
        work_dir: the folder.
        recipe: the name of the recipe.

    Returns:
        Whether the folder is the work dir of this recipe already.

    Raises:
        InputError: if the folder belongs to another recipe, contains other files, or cannot be read.
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
    """Make a folder the work dir of a recipe. The caller must hold the folder's lock, see ``lock.hold``.

    Args:
        work_dir: the folder.
        recipe: the name of the recipe.

    Raises:
        InputError: if the folder belongs to another recipe, contains other files, or cannot be written.
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
            f"weights {path} are damaged: their SHA-256 is {found[:12]}…, but {RECORD} has "
            f"{str(expected)[:12]}…\nAdd --fresh to the stage's command to train it again"
        )


def _read_record(folder: Path) -> dict[str, Any]:
    remedy = "add --fresh to the stage's command to train it again"
    return read_record(folder / RECORD, StageRecord, remedy).model_dump(exclude_unset=True)


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _short(value: Any) -> str:
    text = "absent" if value is None else repr(value)
    return f"{text[:14]}…'" if len(text) > 60 else text
