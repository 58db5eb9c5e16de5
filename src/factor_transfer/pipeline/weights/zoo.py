"""The zoo: trained networks that come with the package, with their records and logs.

It has the layout of work dirs: ``DATA/TEACHER-STUDENT/`` contains the folders of finished stages. ``zoo.json`` lists
their accuracies, and ``SHA256SUMS`` the checksums of their files.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from factor_transfer.errors import InputError, choose
from factor_transfer.files import read_json, sha256

INDEX, SUMS = "zoo.json", "SHA256SUMS"
PREFIX = "zoo:"


@dataclass(frozen=True)
class Entry:
    """A finished stage of the zoo.

    Attributes:
        name: the name of the entry, such as ``"cifar10/resnet20-resnet8/teacher"``.
        folder: the folder of the stage. It does not exist if the weights are too large to come with the package.
        network: the name of the network, such as ``"resnet20"``, or ``"paraphraser"`` and the teacher's name.
        data: the data set that it was trained on.
        top1: the top-1 accuracy on the test images, in percent; ``None`` for a paraphraser.
        top5: the top-5 accuracy on the test images, in percent; ``None`` for a paraphraser.
        recipe: the recipe that it was trained with.
        command: the command that trains it again.
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
        """Whether the files of the entry are installed."""
        return self.folder.is_dir()


_ENTRY = TypeAdapter(Entry)


def place() -> Path | None:
    """The folder of the zoo; ``None`` if the package was installed without it."""
    module = Path(__file__)
    # In the package when it is installed, at the root of the repository in a checkout.
    folders = module.parents[2] / "zoo_files", module.parents[4] / "zoo"
    return next((folder for folder in folders if (folder / INDEX).is_file()), None)


def entries() -> dict[str, Entry]:
    """All entries by name, including those whose files are not installed.

    Raises:
        InputError: if ``zoo.json`` is damaged.
    """
    folder = place()
    if folder is None:
        return {}
    content = read_json(folder / INDEX)
    try:
        listed = TypeAdapter(dict[str, dict[str, Any]]).validate_python(content)
        return {
            name: _ENTRY.validate_python({**record, "name": name, "folder": folder / name})
            for name, record in listed.items()
        }
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"]))
        raise InputError(f"{folder / INDEX} is damaged: {where}: {fault['msg']}") from error


def find(name: str) -> Entry:
    """The entry of a name, with verified files.

    Args:
        name: the name of the entry.

    Raises:
        InputError: if there is no entry of this name, its files are not installed, or its files are damaged.
    """
    known = entries()
    entry = known[choose("network of the zoo", name, known)]
    if not entry.is_here:
        raise InputError(f"{name} is too large to come with the package; to train it: {entry.command}")
    check(entry)
    return entry


def weights_file(weights: str) -> Path:
    """The file that the ``weights`` of a recipe refer to.

    Args:
        weights: a path, or ``"zoo:NAME"`` for a network of the zoo.

    Raises:
        InputError: if the zoo has no such network, or its files are missing or damaged.
    """
    if weights.startswith(PREFIX):
        from factor_transfer.pipeline.artefact import WEIGHTS

        return find(weights.removeprefix(PREFIX)).folder / WEIGHTS
    return Path(weights).expanduser()


def holds(folder: Path) -> bool:
    """Whether a folder belongs to the zoo, which is read-only."""
    root = place()
    return root is not None and folder.resolve().is_relative_to(root.resolve())


def check(entry: Entry) -> None:
    """Verify the checksums of an entry's files.

    Args:
        entry: the entry.

    Raises:
        InputError: if a file is missing or damaged, or has no checksum.
    """
    from factor_transfer.pipeline.artefact import (
        RECORD,
        WEIGHTS,
    )  # not above, so that a list of the zoo needs no PyTorch

    sums = {path: digest for path, digest in _sums().items() if path.is_relative_to(entry.folder)}
    unknown = {entry.folder / name for name in (RECORD, WEIGHTS)} - sums.keys()
    if unknown:
        raise InputError(f"{SUMS} does not list the SHA-256 of {min(unknown)}")
    for path, expected in sums.items():
        if not path.is_file():
            raise InputError(f"{path} is missing, although {SUMS} lists it")
        if sha256(path) != expected:
            raise InputError(f"{path} is damaged: its SHA-256 differs from the one in {SUMS}")


def _sums() -> dict[Path, str]:
    """The SHA-256 of each file of the zoo, read from the output of ``sha256sum``."""
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
