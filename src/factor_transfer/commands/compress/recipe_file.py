"""The recipe file that ``compress`` writes, and its recognition in later commands."""

import hashlib
import shlex
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factor_transfer.commands.compress.choose import Choice, ChosenNetwork
from factor_transfer.commands.compress.look import Pictures
from factor_transfer.commands.compress.schedule import Epochs
from factor_transfer.config.read import toml_value
from factor_transfer.errors import printable

_SUM = "# Checksum of the lines above, which tells compress whether this file was edited: "


@dataclass(frozen=True)
class Written:
    """The properties of an existing recipe file.

    Attributes:
        command: the command that wrote the file; empty if unknown.
        root: the folder of pictures.
        edited: whether the file was changed since, or was not written by ``compress``.
    """

    command: str
    root: str
    edited: bool


def command_line(
    command: str,
    folder: Path,
    unlabelled: Sequence[Path],
    minutes: float,
    teacher: str | None,
    student: str | None,
    **others: str | None,
) -> str:
    """A command line with the absolute paths of the pictures."""
    options = {"minutes": f"{minutes:g}", "teacher": teacher, "student": student, **others}
    given = [part for more in unlabelled for part in ("--unlabelled", str(more.resolve()))]
    given += [part for name, value in options.items() if value is not None for part in (f"--{name}", value)]
    return printable(shlex.join(["factor-transfer", command, str(folder.resolve()), *given]))


def recipe_name(folder: Path) -> str:
    """The name of the recipe for a folder of pictures."""
    name = "".join(one if one.isprintable() and one not in "/\\" else "-" for one in folder.resolve().name)
    return name.lstrip(".") or "pictures"


def recipe_text(
    command: str, notes: Iterable[str], pictures: Pictures, choice: Choice, epochs: Epochs, shifted: bool, device: str
) -> str:
    """The text of the recipe, with comments.

    Args:
        command: the command that writes the recipe.
        notes: the choices, their reasons, the costs and the next command, in lines.
        pictures: the folder of pictures.
        choice: the networks, image size and batch size.
        epochs: the number of epochs of each stage.
        shifted: whether the images are randomly shifted by a few pixels.
        device: the device type: ``"cpu"``, ``"cuda"`` …
    """
    lines = [
        f"# {command}",
        *(f"# {printable(note)}".rstrip() for note in notes),
        "",
        f"name = {toml_value(recipe_name(pictures.root))}",
        'precision = "auto" # bfloat16 where the device is faster with it',
    ]
    if device == "cpu":
        lines.append('compile = "off" # compilation takes about a minute; "auto" compiles for long trainings')
    lines += [
        "",
        "[data]",
        'name = "folder"',
        f"root = {toml_value(str(pictures.root))}",
        f"size = {choice.size} # in pixels: the shorter side is scaled to this size, and the centre is cropped",
    ]
    if pictures.more:
        folders = ", ".join(toml_value(str(folder)) for folder in pictures.more)
        lines.append(f"unlabelled = [{folders}] # pictures without labels")
    if pictures.channels == 1:
        lines.append("channels = 1 # the pictures are grey")
    lines += ["", "[augment] # applied at random, each time an image is used"]
    if shifted:
        lines.append(f"crop_padding = {max(1, choice.size // 8)} # shifted by up to this many pixels")
    lines.append("flip = true # mirrored; remove this line where left and right matter, as in writing")
    lines += ["", "[teacher]", *_network(choice.teacher, pictures, choice.batch_size, epochs.teacher)]
    paraphraser = {"rate": 0.5, "epochs": epochs.paraphraser, "batch_size": choice.batch_size, "optimizer": "adamw"}
    paraphraser |= {"learning_rate": 0.003, "weight_decay": 0.0, "schedule": "cosine", "keep": "last"}
    lines += ["", "[paraphraser] # factors have half as many channels as the teacher's feature", *_table(paraphraser)]
    lines += ["", "[student]", *_network(choice.student, pictures, choice.batch_size, epochs.student)]
    lines += ["", "[transfer]", f"method = {toml_value('+'.join(choice.transfer))}"]
    for term, settings in choice.transfer.items():
        lines += ["", f"[transfer.{term}]", *_table(settings)]
    text = "\n".join([*lines, "", ""])
    return f"{text}{_SUM}{_digest(text)}\n"


def read_written(path: Path) -> Written | None:
    """The properties of an existing recipe file; ``None`` if the file does not exist."""
    if not path.exists():
        return None
    try:
        text = path.read_text(encoding="utf-8")
        root = str(tomllib.loads(text)["data"]["root"])
    except (OSError, ValueError, KeyError, TypeError):
        return Written("", "", edited=True)
    above, _, digest = text.rpartition(_SUM)
    first = text.partition("\n")[0].removeprefix("# ")
    return Written(first, root, edited=digest.strip() != _digest(above))


def _network(network: ChosenNetwork, pictures: Pictures, batch_size: int, epochs: int) -> list[str]:
    settings: dict[str, Any] = {"model": network.model}
    if network.args:
        settings["args"] = dict(network.args)
    if network.weights is not None:
        settings["weights"] = network.weights
    if network.trained:
        optimizer, rate, weight_decay = network.optimization(pictures.training, batch_size)
        settings |= {"epochs": epochs, "batch_size": batch_size, "optimizer": optimizer, "learning_rate": rate}
        if optimizer == "sgd":
            settings["nesterov"] = True
        settings |= {"weight_decay": weight_decay, "schedule": "cosine", "warmup_epochs": max(1, round(epochs / 20))}
        settings["keep"] = "last"
    return _table(settings)


def _table(settings: Mapping[str, Any]) -> list[str]:
    return [f"{key} = {toml_value(value)}" for key, value in settings.items()]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
