"""The image files in a folder, and what lies between them and is none."""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from factor_transfer.data.decode import ENDINGS
from factor_transfer.errors import InputError, printable
from factor_transfer.files import check_regular

# What operating systems, storage devices and archivers put into folders beside what people do, in lower case; all that
# begins with a dot is theirs, too.
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

# Why something is passed over.
HIDDEN, BROKEN, BACK, AGAIN = (
    "hidden or system files and folders",
    "broken links",
    "links that lead back to where they lie",
    "folders that another path leads to",
)
_NAMED = 3  # of each kind
_KINDS = 6  # that are told apart


class PassedOver:
    """What was passed over: how much of each kind, and the first names.

    Attributes:
        counts: of each kind.
    """

    def __init__(self) -> None:
        self.counts = Counter[str]()
        self._names: dict[str, list[str]] = {}

    def add(self, why: str, name: str) -> None:
        """Count one.

        Args:
            why: its kind, such as ``".txt"``, or one of the reasons of this module.
            name: of the file or folder.
        """
        self.counts[why] += 1
        names = self._names.setdefault(why, [])
        if len(names) < _NAMED and name not in names:
            names.append(name)

    def __str__(self) -> str:
        """Such as ``"hidden or system files and folders: 4 (@eaDir, .DS_Store), .txt: 2"``; empty if there is none."""
        # Reasons first, in the order of this module, then endings, the most frequent first.
        kinds = sorted(self.counts, key=lambda why: (why.startswith("."), -self.counts[why], why))
        parts = [f"{printable(why)}: {self.counts[why]:,}{self._first(why)}" for why in kinds[:_KINDS]]
        rest = sum(self.counts[why] for why in kinds[_KINDS:])
        return ", ".join([*parts, f"others: {rest:,}"] if rest else parts)

    def _first(self, why: str) -> str:
        if why.startswith("."):
            return ""
        return f" ({', '.join(printable(name) for name in self._names[why])})"


def class_name(name: str) -> str:
    """The name of a class whose folder is called ``name``: in Unicode's normal form C.

    The same name may be written in several ways. macOS and Linux differ in which, so that a copied folder would be
    another class.
    """
    return unicodedata.normalize("NFC", name)


def list_folders(folder: Path, passed_over: PassedOver) -> dict[str, list[Path]]:
    """The folders in ``folder``, by the names of the classes that they would be; links are followed.

    Hidden and system folders are passed over, and so are files.

    Args:
        folder: in which.
        passed_over: what is passed over is added to it.

    Returns:
        For each name its folders, of which there are several if they are written in different ways.

    Raises:
        InputError: the folder cannot be read, or a name is not UTF-8.
    """
    found: dict[str, list[Path]] = {}
    for path, kind in _look_into(folder, passed_over):
        if kind == "folder" and not _leads_back(path, passed_over):
            found.setdefault(class_name(path.name), []).append(path)
        elif kind == "image":
            passed_over.add("images in no class's folder", path.name)
    return found


def list_images(folder: Path, passed_over: PassedOver) -> list[Path]:
    """All image files in a folder and in those within it, sorted; links are followed.

    No folder is looked into twice, whatever links lead to it, and none that a link leads back to.

    Args:
        folder: in which.
        passed_over: what is passed over is added to it.

    Raises:
        InputError: a folder cannot be read, an image is no regular file, or a name is not UTF-8.
    """
    images: list[Path] = []
    seen: set[tuple[int, int]] = set()
    waiting, links = [folder], list[Path]()
    # Links after all that lies here itself, so that a link to something here changes nothing.
    while waiting or links:
        place = waiting.pop() if waiting else links.pop()
        status = place.stat()
        if (status.st_dev, status.st_ino) in seen:
            passed_over.add(AGAIN, place.name)
            continue
        seen.add((status.st_dev, status.st_ino))
        for path, kind in _look_into(place, passed_over):
            if kind == "image":
                images.append(path)
            elif kind == "folder" and not _leads_back(path, passed_over):
                (links if path.is_symlink() else waiting).append(path)
        if not waiting:
            links.sort(reverse=True)
    return sorted(images)


def folder_names(folder: Path) -> list[str]:
    """The names of the folders in one, sorted, but for hidden and system folders; none if it cannot be read."""
    try:
        with os.scandir(folder) as found:
            return sorted(entry.name for entry in found if not _is_systems(entry.name) and _kind(entry)[0])
    except OSError:
        return []


def holds_images(folder: Path) -> bool:
    """Whether image files lie in a folder itself."""
    return any(kind == "image" for _, kind in _look_into(folder, PassedOver()))


def _look_into(folder: Path, passed_over: PassedOver) -> Iterator[tuple[Path, str]]:
    """What is in a folder, sorted: each ``"folder"`` and each ``"image"``; the rest is passed over."""
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(
            f"{printable(str(folder))}: cannot be read: {error.strerror}; data.root=… names the folder of images"
        ) from error
    for entry in entries:
        name = entry.name
        if _is_systems(name):
            passed_over.add(HIDDEN, name)
            continue
        ending = os.path.splitext(name)[1].lower()  # noqa: PTH122  # of perhaps a million
        is_folder, is_file = _kind(entry)
        if not is_folder and not is_file and not Path(entry).exists():
            passed_over.add(BROKEN, name)
        elif is_folder or ending in ENDINGS:
            path = Path(entry)
            _check_text(path)
            if not is_folder and not is_file:
                check_regular(path, path.stat().st_mode)
            yield path, "folder" if is_folder else "image"
        else:
            passed_over.add(ending or "files without an ending", name)


def _is_systems(name: str) -> bool:
    return name.startswith(".") or name.lower() in SYSTEM


def _kind(entry: os.DirEntry[str]) -> tuple[bool, bool]:
    """Whether it is a folder, and whether it is a regular file; links are followed."""
    try:
        return entry.is_dir(), entry.is_file()
    except OSError:  # such as a link to itself
        return False, False


def _leads_back(path: Path, passed_over: PassedOver) -> bool:
    """Whether a link leads to a folder that it lies in; it is then passed over."""
    if not path.is_symlink():
        return False
    target = path.resolve()
    # Each folder on the way may be a link itself, and so lie in several.
    back = any(place.resolve().is_relative_to(target) for place in path.parents)
    if back:
        passed_over.add(BACK, path.name)
    return back


def _check_text(path: Path) -> None:
    try:
        path.name.encode()
    except UnicodeEncodeError:
        raise InputError(
            f"{printable(str(path))}: its name is not UTF-8 ({os.fsencode(path.name)!r}); rename it (convmv does that "
            "for many)"
        ) from None
