"""What a network says to pictures: what ``factor-transfer predict`` does."""

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from factor_transfer.data.decode import FORMATS, decode
from factor_transfer.data.sets.image_files import PassedOver, list_images
from factor_transfer.deploy.student import CONFIG, Announce, Student, assemble, open_student
from factor_transfer.errors import InputError, first_line
from factor_transfer.export.formats.runtimes import ENDINGS, open_file, run_over
from factor_transfer.export.graph import bare
from factor_transfer.export.record import RECORD, FileRecord
from factor_transfer.files import sha256
from factor_transfer.models import Normalize, permit
from factor_transfer.pipeline import artefact
from factor_transfer.pipeline.artefact import Artefact
from factor_transfer.pipeline.experiment import load_network
from factor_transfer.pipeline.finished_run import find_run
from factor_transfer.pipeline.records import check_logits, read_record
from factor_transfer.taps.extract import Taps

_BATCH = 128


@dataclass(frozen=True)
class Network:
    """What is asked.

    Attributes:
        classes: names, in the order of the logits.
        image: (C, H, W) of the images that it takes.
        logits: uint8 (B, C, H, W) -> (B, K).
    """

    classes: tuple[str, ...]
    image: tuple[int, ...]
    logits: Callable[[Tensor], Tensor]


def open_network(path: Path, announce: Announce = lambda _: None, trusted_code: Collection[str] = ()) -> Network:
    """A network to ask.

    Args:
        path: of a run or a student in it, its weights, a folder that ``package`` wrote, or a ``.pte`` or ``.onnx`` file
            with its ``export.json`` beside it, or the folder of these two.
        announce: told of networks before they are built, since code from outside may make them.
        trusted_code: names, ``package.module:callable``, of code from outside that may be run.

    Raises:
        InputError: it is none of these, not finished, damaged, or another student's.
    """
    if path.suffix in ENDINGS.values():
        return _exported(path)
    if (path / CONFIG).is_file():
        return _network(open_student(path, trusted_code, announce), path)
    if (path / RECORD).is_file():
        return _exported(path / read_record(path / RECORD, FileRecord).file.name)
    if path.is_file():
        path = path.parent if path.name == artefact.WEIGHTS else path
    run = find_run(path)
    announce(permit(run.models("student"), trusted_code, run.student.folder))
    return _network(_student(run.student, trusted_code), run.student.folder)


def _student(done: Artefact, trusted_code: Collection[str]) -> Student:
    return assemble(done.record, load_network(done, trusted_code=trusted_code))


def _network(student: Student, place: Path) -> Network:
    if student.image is None:
        raise InputError(f"{place} does not say how large its images are; it was trained before that was written down")
    example = torch.zeros(2, *student.image, dtype=torch.uint8)
    try:
        model = Taps(bare(student.model, student.prepare, example))
        with torch.inference_mode():
            tried = model(student.prepare(example)).logits
    except RuntimeError as error:  # too small for its layers, or too large for the memory
        size = " x ".join(map(str, student.image))
        raise InputError(
            f"{place}: its network does not take images of {size}, as it says: {first_line(error)}"
        ) from error
    assert tried is not None
    check_logits(tried, student.classes, place)

    def logits(images: Tensor) -> Tensor:
        with torch.inference_mode():
            logits = model(student.prepare(images)).logits
            assert logits is not None
            return logits

    return Network(student.classes, student.image, logits)


def _exported(path: Path) -> Network:
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    beside = path.parent / RECORD
    if not beside.is_file():
        raise InputError(
            f"{path} has no {RECORD} beside it, which names its classes; `factor-transfer export` writes both"
        )
    record = read_record(beside, FileRecord)
    if sha256(path) != record.file.sha256:
        raise InputError(
            f"{path} is not the file that {RECORD} beside it describes: it was made from another student, or changed "
            "since. Export the student anew"
        )
    normalize, file = Normalize(record.input.mean, record.input.std), open_file(path)
    taken = f"{record.input.dtype} images of {record.input.channels} x {record.input.height} x {record.input.width}"
    own = f"{str(file.dtype).removeprefix('torch.')} images of {' x '.join(map(str, file.shape))}"
    if own != taken or file.classes != len(record.classes):
        raise InputError(
            f"{path} takes {own} and says {file.classes} logits of each; {beside} says that it takes {taken}, and "
            f"names {len(record.classes)} classes: they do not belong together. Export the student anew"
        )

    def logits(images: Tensor) -> Tensor:
        return run_over(file, [images if file.dtype == torch.uint8 else normalize(images)])

    return Network(tuple(record.classes), file.shape, logits)


def find_images(names: Iterable[str]) -> list[Path]:
    """The image files that are meant.

    Args:
        names: files; folders, for all images in them and in theirs, as a folder of training images is read.

    Raises:
        InputError: one does not exist, or a folder has no images.
    """
    found: list[Path] = []
    for name in names:
        path = Path(name)
        if path.is_dir():
            images = list_images(path, PassedOver())
            if not images:
                raise InputError(f"{path} has no images ({', '.join(FORMATS)})")
            found += images
        elif path.is_file():
            found.append(path)
        else:
            raise InputError(f"there is no image {path}")
    if not found:
        raise InputError("no image was named; give files, folders, or - and their names on standard input")
    return found


def predict(network: Network, paths: Sequence[Path], top: int, convert: bool = False) -> list[dict[str, Any]]:
    """What a network says to images.

    Args:
        network: see ``open_network``.
        paths: of the images. One of another size is scaled so that its shorter side fits, and its centre cut out, as
            the images of a folder are for training.
        top: so many classes of each, the likeliest first; all, if there are fewer.
        convert: whether images of other channels are converted, or refused.

    Returns:
        Of each image its ``image`` (the path), ``resized`` and ``top``: dicts of ``class`` and ``probability``, 0..1.

    Raises:
        InputError: an image that cannot be read, or is not as the network takes it.
    """
    results: list[dict[str, Any]] = []
    for some, images, resized in _batches(network.image, paths, convert):
        logits = network.logits(images)
        check_logits(logits, network.classes, "the network")
        probabilities, classes = logits.softmax(1).topk(min(top, len(network.classes)))
        for path, scaled, values, indices in zip(some, resized, probabilities.tolist(), classes.tolist(), strict=True):
            likeliest = [
                {"class": network.classes[index], "probability": round(value, 6)}
                for index, value in zip(indices, values, strict=True)
            ]
            results.append({"image": str(path), "resized": scaled, "top": likeliest})
    return results


def _batches(
    image: tuple[int, ...], paths: Sequence[Path], convert: bool
) -> Iterator[tuple[Sequence[Path], Tensor, list[bool]]]:
    """Images (B, C, H, W), and which were resized; a batch is decoded while the one before it is looked at."""
    parts = [paths[start : start + _BATCH] for start in range(0, len(paths), _BATCH)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # pillow decodes and scales outside the interpreter's lock

        def submit(part: Sequence[Path]) -> list[Future[tuple[np.ndarray, bool]]]:
            return [pool.submit(_picture, path, image, convert) for path in part]

        waiting = submit(parts[0])
        for index, part in enumerate(parts):
            pictures = [future.result() for future in waiting]
            waiting = submit(parts[index + 1]) if index + 1 < len(parts) else []
            stacked = np.stack([pixels for pixels, _ in pictures]).transpose(0, 3, 1, 2)
            yield part, torch.from_numpy(np.ascontiguousarray(stacked)), [resized for _, resized in pictures]


def _picture(path: Path, image: tuple[int, ...], convert: bool) -> tuple[np.ndarray, bool]:
    """One image, uint8 (H, W, C), and whether it had to be resized."""
    channels, height, width = image
    wanted = cast("Literal[1, 3]", channels)
    pixels = decode(path, None, wanted, convert)
    if pixels.shape[:2] == (height, width):
        return pixels, False
    if height != width:
        raise InputError(
            f"{path} has {pixels.shape[1]}×{pixels.shape[0]} pixels, the network takes {width}×{height}: scale it first"
        )
    return decode(path, height, wanted, convert), True
