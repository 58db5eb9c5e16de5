"""Packaging a student for sharing: a self-describing folder that can be uploaded to a model hub."""

import os
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from factor_transfer.config.read import as_toml
from factor_transfer.deploy.model_card import model_card
from factor_transfer.deploy.student import write_student
from factor_transfer.errors import InputError
from factor_transfer.export.record import RECORD, ExportRecord
from factor_transfer.files import sha256, write_json
from factor_transfer.models import build_model, parameters
from factor_transfer.models.inference import eval_mode
from factor_transfer.pipeline import artefact
from factor_transfer.pipeline.artefact import Artefact
from factor_transfer.pipeline.experiment import load_network
from factor_transfer.pipeline.finished_run import Run
from factor_transfer.pipeline.records import Summary, read_record
from factor_transfer.state_dicts import save_weights

CARD = "README.md"

# Networks that timm and torchvision have under the same names and with the same keys, if their arguments are the
# defaults. A student that was built by one of these libraries has its keys already.
_SHARED = {"resnet18", "resnet34", "resnet50"}


def package(
    run: Run, out: Path, to: str | None = None, exported: Sequence[Path] = (), trusted_code: Collection[str] = ()
) -> list[str]:
    """Write a folder with the student's weights, configuration, recipe, exported files' records and model card.

    Args:
        run: the finished run.
        out: the folder to write, which must be empty or not exist.
        to: ``"timm"`` or ``"torchvision"`` to write the weights with the keys of that library as well; ``None``
            otherwise.
        exported: folders with exported files that are not inside the student's folder.
        trusted_code: the code outside this package that may be run, as ``package.module:callable``.

    Returns:
        The names of the files in the folder.

    Raises:
        InputError: if the folder is not empty, an exported file belongs to another student, or the library does not
            have the network.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists already and is not empty; give another folder with --out")
    done = run.student
    network = load_network(done, trusted_code=trusted_code)
    exports = _exports(done, exported)
    summary = _summary(run, exports, trusted_code)
    recipe = run.recipe()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=out.parent) as place:
        folder = Path(place) / "package"
        folder.mkdir()
        record = done.record
        origin = {"trained_sha256": record["weights_sha256"], "fingerprint": done.fingerprint}
        config = write_student(folder, record, network.state_dict(), **origin)
        (folder / artefact.RECIPE).write_text(as_toml(recipe), encoding="utf-8")
        if exports:
            write_json(folder / RECORD, exports)
        facts = {**summary, "method": run.method, "inputs": record["inputs"]}
        facts |= {"data": {"name": recipe.data.name, "title": recipe.data.display_name}}
        facts |= {"versions": record["versions"], "machine": record["machine"]}
        card = model_card(f"{recipe.student.model}-{recipe.data.display_name}", config, facts, exports)
        (folder / CARD).write_text(card, encoding="utf-8")
        if to is not None:
            save_weights(folder / f"{to}.safetensors", _renamed(done, network, to))
        if out.exists():
            out.rmdir()
        os.replace(folder, out)  # noqa: PTH105
    return sorted(path.name for path in out.iterdir())


def _exports(done: Artefact, elsewhere: Sequence[Path]) -> dict[str, Any]:
    """The records of the student's exported files, by format and precision.

    Raises:
        InputError: if a file was exported from another student, has changed, or is missing.
    """
    records = {}
    for path in [*sorted((done.folder / "export").glob(f"*/{RECORD}")), *(folder / RECORD for folder in elsewhere)]:
        record = read_record(path, ExportRecord)
        owner, file = record.student.fingerprint, path.parent / record.file.name
        unchanged = file.is_file() and sha256(file) == record.file.sha256
        if owner != done.fingerprint or not unchanged:
            raise InputError(
                f"{file} was exported from another student, or has changed since; export the student again, or remove "
                f"{path.parent}"
            )
        records[f"{record.format}-{record.precision}"] = record.model_dump(exclude_unset=True)
    return records


def _summary(run: Run, exports: Mapping[str, Any], trusted_code: Collection[str]) -> dict[str, Any]:
    """The figures of student and teacher that ``run`` or ``export`` measured on the test images."""
    figures: dict[str, Any] = {"top1": None, "provenance": "Not measured on test images."}
    sizes = _sizes(run.student, trusted_code)
    teacher: dict[str, Any] | None = None
    if run.teacher is not None:
        teacher = {**_sizes(run.teacher, trusted_code), "top1": None, "model": run.teacher.record["model"]}
    path = run.student.folder.parent / "summary.json"
    summary = read_record(path, Summary) if path.is_file() else None
    if summary is not None and Path(summary.student.weights).parent.name == run.student.folder.name:
        figures["top1"] = summary.student.top1
        figures["provenance"] = "Top-1 on the test split, one run, measured by `factor-transfer run` in PyTorch."
        if teacher is not None and summary.teacher is not None:
            teacher["top1"] = summary.teacher.top1
    if figures["top1"] is None:
        for record in exports.values():
            figures["top1"] = record["parity"]["top1_trained"]
            figures["provenance"] = (
                f"Top-1 on {record['parity']['images']:,} test images, one run, measured by `factor-transfer export` "
                "in PyTorch."
            )
            if teacher is not None and record.get("teacher"):
                teacher["top1"] = record["teacher"]["top1"]
    return {**sizes, **figures, "teacher": teacher}


def _sizes(done: Artefact, trusted_code: Collection[str]) -> dict[str, Any]:
    network = load_network(done, trusted_code=trusted_code)
    return {"parameters": parameters(network), "bytes": done.weights.stat().st_size}


def _renamed(done: Artefact, network: nn.Module, library: str) -> dict[str, torch.Tensor]:
    """The weights with the keys of timm or torchvision, verified by comparing the outputs of the library's network.

    Raises:
        InputError: if the library does not have this network, or is not installed.
    """
    model = dict(done.record["model"])
    name, classes, channels = model.pop("name"), model.pop("num_classes"), model.pop("in_channels")
    theirs = f"{library}:{name}"
    if name.startswith(f"{library}:"):
        theirs = name
    elif name not in _SHARED or model.get("stem", "imagenet") != "imagenet" or model.get("width", 64) != 64:
        raise InputError(
            f"{library} has no network like this {name}; it has {', '.join(sorted(_SHARED))}, with their default "
            "settings"
        )
    arguments = model if theirs == name else {}
    other = build_model(theirs, classes, channels, **arguments)
    state = network.state_dict()
    image = torch.rand(1, channels, *(done.record.get("image") or (0, 224, 224))[1:])
    try:
        other.load_state_dict(state)
        with eval_mode(network), eval_mode(other):
            same = torch.allclose(network(image), other(image), rtol=1e-3, atol=1e-4)
    except RuntimeError as error:
        raise InputError(f"{theirs} has other layers: {str(error).splitlines()[0]}") from error
    if not same:
        raise InputError(f"{theirs} accepts the weights, but has other outputs with them")
    return state
