"""The image files in a folder, and the other files that are skipped."""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from factor_transfer.data.decode import ENDINGS
from factor_transfer.errors import InputError, printable
from factor_transfer.files import check_name, check_regular

# Names of files and folders that operating systems, storage devices and archivers create, in lower case. So are all
# names that begin with a dot.
SYSTEM = frozenset(
    {
        "@eadir",
        "@recycle",
        "@recently-snapshot",
        "@tmp",
        "#recycle",
        "#snapshot",
        "$recycle.bin",
        "__macosx",
        "__pycache__",
        "desktop.ini",
        "ehthumbs.db",
        "lost+found",
        "network trash folder",
        "system volume information",
        "temporary items",
        "thumbs.db",
        "thumbs.db:encryptable",
    }
)

# Why something is skipped.
HIDDEN, BROKEN, BACK, AGAIN = (
    "hidden or system files and folders",
    "broken links",
    "links to a folder that contains them",
    "folders that were reached by another path",
)
_NAMED = 3  # the number of names that are shown per kind
_KINDS = 6  # the number of kinds that are shown


class Skipped:
    """The files and folders that were skipped: their number by kind, and the first names.

    Attributes:
        counts: the number of files and folders of each kind.
    """

    def __init__(self) -> None:
        self.counts = Counter[str]()
        self._names: dict[str, list[str]] = {}

    def add(self, kind: str, name: str) -> None:
        """Count a file or folder.

        Args:
            kind: an ending, such as ``".txt"``, or a reason, such as ``HIDDEN``.
            name: the name of the file or folder.
        """
        self.counts[kind] += 1
        names = self._names.setdefault(kind, [])
        if len(names) < _NAMED and name not in names:
            names.append(name)

    def __str__(self) -> str:
        """Such as ``"hidden or system files and folders: 4 (@eaDir, .DS_Store), .txt: 2"``; empty if there are none."""
        # Reasons come before endings, and frequent ones before rare ones.
        kinds = sorted(self.counts, key=lambda kind: (kind.startswith("."), -self.counts[kind], kind))
        parts = [f"{printable(kind)}: {self.counts[kind]:,}{self._first(kind)}" for kind in kinds[:_KINDS]]
        rest = sum(self.counts[kind] for kind in kinds[_KINDS:])
        return ", ".join([*parts, f"others: {rest:,}"] if rest else parts)

    def _first(self, kind: str) -> str:
        if kind.startswith("."):
            return ""
        return f" ({', '.join(printable(name) for name in self._names[kind])})"


def class_name(name: str) -> str:
    """The name of the class whose folder is called ``name``, in Unicode's normal form C.

    Without this, a folder that was copied between macOS and Linux, which encode the same name differently, could become
    another class.

    Args:
        name: the name of the folder.
    """
    return unicodedata.normalize("NFC", name)


def list_folders(folder: Path, skipped: Skipped) -> dict[str, list[Path]]:
    """The folders inside a folder, by the names of the classes that they stand for. Links are followed.

    Hidden and system folders are skipped, and so are files.

    Args:
        folder: the folder.
        skipped: the record that skipped files and folders are added to.

    Returns:
        The folders of each name. There are several if the same name is encoded in different ways.

    Raises:
        InputError: if the folder cannot be read, or a name is not UTF-8.
    """
    found: dict[str, list[Path]] = {}
    for path, kind in _entries(folder, skipped):
        if kind == "folder" and not _leads_back(path, skipped):
            found.setdefault(class_name(path.name), []).append(path)
        elif kind == "image":
            skipped.add("images outside the folders of classes", path.name)
    return found


def list_images(folder: Path, skipped: Skipped) -> list[Path]:
    """All image files in a folder and the folders inside it, sorted. Links are followed.

    A folder is read only once even if several links lead to it, and links to a folder that contains them are skipped.

    Args:
        folder: the folder.
        skipped: the record that skipped files and folders are added to.

    Raises:
        InputError: if a folder cannot be read, an image is not a regular file, or a name is not UTF-8.
    """
    images: list[Path] = []
    seen: set[tuple[int, int]] = set()
    pending, links = [folder], list[Path]()
    # Links are followed last, so that a link to a folder inside this one changes nothing.
    while pending or links:
        current = pending.pop() if pending else links.pop()
        status = current.stat()
        if (status.st_dev, status.st_ino) in seen:
            skipped.add(AGAIN, current.name)
            continue
        seen.add((status.st_dev, status.st_ino))
        for path, kind in _entries(current, skipped):
            if kind == "image":
                images.append(path)
            elif kind == "folder" and not _leads_back(path, skipped):
                (links if path.is_symlink() else pending).append(path)
        if not pending:
            links.sort(reverse=True)
    return sorted(images)


def folder_names(folder: Path) -> list[str]:
    """The sorted names of the folders in a folder, without hidden and system folders; empty if it cannot be read."""
    try:
        with os.scandir(folder) as found:
            return sorted(entry.name for entry in found if not _is_hidden(entry.name) and _kind(entry)[0])
    except OSError:
        return []


def holds_images(folder: Path) -> bool:
    """Whether a folder directly contains image files."""
    return any(kind == "image" for _, kind in _entries(folder, Skipped()))


def _entries(folder: Path, skipped: Skipped) -> Iterator[tuple[Path, str]]:
    """The entries of a folder that are a ``"folder"`` or an ``"image"``, sorted; others are added to ``skipped``."""
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(
            f"{printable(str(folder))}: cannot be read: {error.strerror}; data.root=… sets the folder of the images"
        ) from error
    for entry in entries:
        name = entry.name
        if _is_hidden(name):
            skipped.add(HIDDEN, name)
            continue
        ending = os.path.splitext(name)[1].lower()  # noqa: PTH122  # a path object is slow for a million files
        is_folder, is_file = _kind(entry)
        if not is_folder and not is_file and not Path(entry).exists():
            skipped.add(BROKEN, name)
        elif is_folder or ending in ENDINGS:
            path = Path(entry)
            check_name(path)
            if not is_folder and not is_file:
                check_regular(path, path.stat().st_mode)
            yield path, "folder" if is_folder else "image"
        else:
            skipped.add(ending or "files without an ending", name)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in SYSTEM


def _kind(entry: os.DirEntry[str]) -> tuple[bool, bool]:
    """Whether an entry is a folder, and whether it is a regular file. Links are followed."""
    try:
        return entry.is_dir(), entry.is_file()
    except OSError:  # for example, a link to itself
        return False, False


def _leads_back(path: Path, skipped: Skipped) -> bool:
    """Whether a path is a link to a folder that contains it, which is then added to ``skipped``."""
    if not path.is_symlink():
        return False
    target = path.resolve()
    # Each parent is resolved, since it may be a link itself.
    back = any(parent.resolve().is_relative_to(target) for parent in path.parents)
    if back:
        skipped.add(BACK, path.name)
    return back
