"""The zoo: trained networks that come with the package, with their records and logs.

It is laid out as work dirs are: ``DATA/TEACHER-STUDENT/`` has the folders of finished stages. ``zoo.json`` says what
each of them reaches, ``SHA256SUMS`` what its files should be.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from factor_transfer.errors import InputError, choose
from factor_transfer.files import read_json, sha256
from factor_transfer.pipeline.artefact import RECORD, WEIGHTS

INDEX, SUMS = "zoo.json", "SHA256SUMS"
PREFIX = "zoo:"


@dataclass(frozen=True)
class Entry:
    """A finished stage of the zoo.

    Attributes:
        name: such as ``"cifar10/resnet20-resnet8/teacher"``.
        folder: where it lies, or would lie: what is large is only listed.
        network: such as ``"resnet20"``; ``"paraphraser"`` of ``resnet20``.
        data: what it was trained on.
        top1: in percent, on the test images; ``None`` of a paraphraser.
        top5: likewise.
        recipe: what it was trained by.
        command: that makes it again.
    """

    name: str
    folder: Path
    network: str
    data: str
    top1: float | None
    top5: float | None
    recipe: str
    command: str

    @property
    def is_here(self) -> bool:
        """Whether its files are."""
        return self.folder.is_dir()


_ENTRY = TypeAdapter(Entry)


def place() -> Path | None:
    """The folder of the zoo, if the package was installed with it."""
    here = Path(__file__)
    # Beside the package when installed, at the checkout's root when developed.
    folders = here.parents[2] / "zoo_files", here.parents[4] / "zoo"
    return next((folder for folder in folders if (folder / INDEX).is_file()), None)


def entries() -> dict[str, Entry]:
    """All that is listed, by name.

    Raises:
        InputError: the list is damaged.
    """
    folder = place()
    if folder is None:
        return {}
    content = read_json(folder / INDEX)
    try:
        listed = TypeAdapter(dict[str, dict[str, Any]]).validate_python(content)
        return {
            name: _ENTRY.validate_python({**said, "name": name, "folder": folder / name})
            for name, said in listed.items()
        }
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"]))
        raise InputError(f"{folder / INDEX} is damaged: {where}: {fault['msg']}") from error


def find(name: str) -> Entry:
    """An entry that is here, whole.

    Raises:
        InputError: there is none of that name, only its figures are here, or its files are damaged.
    """
    known = entries()
    entry = known[choose("network of the zoo", name, known)]
    if not entry.is_here:
        raise InputError(f"{name} is too large to come with the package; to make it: {entry.command}")
    check(entry)
    return entry


def weights_file(weights: str) -> Path:
    """The file that a recipe's ``weights`` name: a path, or ``"zoo:NAME"`` for a network of the zoo.

    Raises:
        InputError: the zoo has no such network, or it is damaged.
    """
    if weights.startswith(PREFIX):
        return find(weights.removeprefix(PREFIX)).folder / WEIGHTS
    return Path(weights).expanduser()


def holds(folder: Path) -> bool:
    """Whether a folder is the zoo's, which nothing is written into."""
    own = place()
    return own is not None and folder.resolve().is_relative_to(own.resolve())


def check(entry: Entry) -> None:
    """See that an entry's files are those that were put there.

    Raises:
        InputError: they are not.
    """
    sums = {path: digest for path, digest in _sums().items() if path.is_relative_to(entry.folder)}
    unknown = {entry.folder / name for name in (RECORD, WEIGHTS)} - sums.keys()
    if unknown:
        raise InputError(f"{SUMS} has no SHA-256 of {min(unknown)}")
    for path, expected in sums.items():
        if not path.is_file() or sha256(path) != expected:
            raise InputError(f"{path} is {'damaged' if path.is_file() else 'missing'}: {SUMS} has another SHA-256")


def _sums() -> dict[Path, str]:
    """SHA-256 of the zoo's files, in the format of ``sha256sum``."""
    folder = place()
    assert folder is not None
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {folder / SUMS}: {error}") from error
    pairs = [line.split("  ", 1) for line in lines]
    if any(len(pair) != 2 for pair in pairs):
        raise InputError(f"{folder / SUMS} is damaged")
    return {folder / name: digest for digest, name in pairs}
