"""Classifying image files with a trained network, as ``factor-transfer predict`` does."""

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
from factor_transfer.data.sets.image_files import Skipped, list_images
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
    """A network that is ready to classify images.

    Attributes:
        classes: the names of the K classes, in the order of the logits.
        image: the shape (C, H, W) of the images that it takes.
        logits: a function that computes logits (B, K) of raw images, uint8 (B, C, H, W).
    """

    classes: tuple[str, ...]
    image: tuple[int, ...]
    logits: Callable[[Tensor], Tensor]


def open_network(path: str | Path, announce: Announce = lambda _: None, trusted_code: Collection[str] = ()) -> Network:
    """Open a trained network for classifying images.

    Args:
        path: the folder of a run or of a student in it, its weights file, a folder that ``save_student`` or
            ``factor-transfer package`` wrote, a ``.pte`` or ``.onnx`` file with its ``export.json`` in the same folder,
            the folder of these two, or the name of a network in the zoo.
        announce: a function that is called with the network's record before it is built, since that may run code
            outside this package.
        trusted_code: the code outside this package that may be run, as ``package.module:callable``.

    Raises:
        InputError: if the path is none of these, the run is not finished, or a file is damaged or does not belong to
            the student.
    """
    path = Path(path)
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
        raise InputError(f"the record in {place} lacks the size of its images; it was trained by an older version")
    example = torch.zeros(2, *student.image, dtype=torch.uint8)
    try:
        model = Taps(bare(student.model, student.prepare, example))
        with torch.inference_mode():
            example_logits = model(student.prepare(example)).logits
    except RuntimeError as error:  # the images are too small for its layers, or too large for the memory
        size = " x ".join(map(str, student.image))
        raise InputError(
            f"{place}: its network does not accept images of size {size}, which its record specifies: "
            f"{first_line(error)}"
        ) from error
    assert example_logits is not None
    check_logits(example_logits, student.classes, place)

    def logits(images: Tensor) -> Tensor:
        with torch.inference_mode():
            logits = model(student.prepare(images)).logits
            assert logits is not None
            return logits

    return Network(student.classes, student.image, logits)


def _exported(path: Path) -> Network:
    if not path.is_file():
        raise InputError(f"the file {path} does not exist")
    record_path = path.parent / RECORD
    if not record_path.is_file():
        raise InputError(
            f"{record_path} is missing, which contains the names of the classes of {path.name}; "
            "`factor-transfer export` writes both files"
        )
    record = read_record(record_path, FileRecord)
    if sha256(path) != record.file.sha256:
        raise InputError(
            f"{path} is not the file that {RECORD} beside it describes: it was exported from another student, or has "
            "changed since. Export the student again"
        )
    normalize, file = Normalize(record.input.mean, record.input.std), open_file(path)
    recorded = f"{record.input.dtype} images of {record.input.channels} x {record.input.height} x {record.input.width}"
    actual = f"{str(file.dtype).removeprefix('torch.')} images of {' x '.join(map(str, file.shape))}"
    if actual != recorded or file.classes != len(record.classes):
        raise InputError(
            f"{path} takes {actual} and returns {file.classes} logits per image, but {record_path} describes a file "
            f"that takes {recorded} and has {len(record.classes)} classes. Export the student again"
        )

    def logits(images: Tensor) -> Tensor:
        return run_over(file, [images if file.dtype == torch.uint8 else normalize(images)])

    return Network(tuple(record.classes), file.shape, logits)


def find_images(names: Iterable[str]) -> list[Path]:
    """The image files with the given names, or in the given folders.

    Args:
        names: the paths of image files, and of folders, which are searched like a folder of training images.

    Raises:
        InputError: if a path does not exist, or a folder has no images.
    """
    paths: list[Path] = []
    for name in names:
        path = Path(name)
        if path.is_dir():
            images = list_images(path, Skipped())
            if not images:
                raise InputError(f"{path} has no images ({', '.join(FORMATS)})")
            paths += images
        elif path.is_file():
            paths.append(path)
        else:
            raise InputError(f"the image {path} does not exist")
    if not paths:
        raise InputError("no image was given; give files or folders, or - to read their names from standard input")
    return paths


def predict(network: Network, paths: Sequence[str | Path], top: int, convert: bool = False) -> list[dict[str, Any]]:
    """Classify image files.

    Example:
        >>> from PIL import Image
        >>> from factor_transfer.deploy.predict import open_network, predict
        >>> Image.new("RGB", (64, 64), "skyblue").save("sky.png")
        >>> network = open_network("cifar10/resnet20-resnet8/student-factor+kd-seed0")  # or the folder of a run
        >>> (result,) = predict(network, ["sky.png"], top=2)
        >>> result["image"], result["resized"], [sorted(entry) for entry in result["top"]]
        ('sky.png', True, [['class', 'probability'], ['class', 'probability']])

    Args:
        network: the network, see ``open_network``.
        paths: the paths of the images. An image of another size is scaled and cropped like a training image in a
            folder: its shorter side is scaled to fit, and the centre is cropped.
        top: the number of classes to return per image, the most probable first; all if there are fewer.
        convert: whether to convert images with other channels or with transparency; they are an error otherwise.

    Returns:
        For each image, its path (``image``), whether it was resized (``resized``), and its most probable classes
        (``top``) as dicts of ``class`` and ``probability``, in 0..1.

    Raises:
        InputError: if an image cannot be read, or the network does not accept it.
    """
    results: list[dict[str, Any]] = []
    for batch_paths, images, resized in _batches(network.image, paths, convert):
        logits = network.logits(images)
        check_logits(logits, network.classes, "the network")
        probabilities, classes = logits.softmax(1).topk(min(top, len(network.classes)))
        rows = zip(batch_paths, resized, probabilities.tolist(), classes.tolist(), strict=True)
        for path, scaled, values, indices in rows:
            predictions = [
                {"class": network.classes[index], "probability": round(value, 6)}
                for index, value in zip(indices, values, strict=True)
            ]
            results.append({"image": str(path), "resized": scaled, "top": predictions})
    return results


def _batches(
    image: tuple[int, ...], paths: Sequence[str | Path], convert: bool
) -> Iterator[tuple[Sequence[str | Path], Tensor, list[bool]]]:
    """The images (B, C, H, W) of each batch, and which were resized; a batch is decoded while the last one is used."""
    parts = [paths[start : start + _BATCH] for start in range(0, len(paths), _BATCH)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # pillow decodes and scales outside the interpreter's lock

        def submit(part: Sequence[str | Path]) -> list[Future[tuple[np.ndarray, bool]]]:
            return [pool.submit(_picture, Path(path), image, convert) for path in part]

        pending = submit(parts[0])
        for index, part in enumerate(parts):
            pictures = [future.result() for future in pending]
            pending = submit(parts[index + 1]) if index + 1 < len(parts) else []
            stacked = np.stack([pixels for pixels, _ in pictures]).transpose(0, 3, 1, 2)
            yield part, torch.from_numpy(np.ascontiguousarray(stacked)), [resized for _, resized in pictures]


def _picture(path: Path, image: tuple[int, ...], convert: bool) -> tuple[np.ndarray, bool]:
    """One image, uint8 (H, W, C), and whether it was resized."""
    _, height, width = image
    channels = cast("Literal[1, 3]", image[0])
    pixels = decode(path, None, channels, convert)
    if pixels.shape[:2] == (height, width):
        return pixels, False
    if height != width:
        raise InputError(
            f"{path} has {pixels.shape[1]}×{pixels.shape[0]} pixels, but the network takes {width}×{height}; scale it "
            "first"
        )
    return decode(path, height, channels, convert), True
