"""The recipe that ``compress`` writes: its text, and how the file is known again."""

import hashlib
import shlex
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factor_transfer.commands.compress.choose import Choice, ChosenNetwork
from factor_transfer.commands.compress.look import Pictures
from factor_transfer.commands.compress.schedule import Epochs
from factor_transfer.config.read import toml_value
from factor_transfer.errors import printable

_SUM = "# By this sum of what stands above it, compress knows the file as its own: "


@dataclass(frozen=True)
class Written:
    """What a file that is there says of itself.

    Attributes:
        command: the command that wrote it; empty if it is not known.
        root: the folder of pictures.
        edited: whether somebody has changed it since, or ``compress`` did not write it.
    """

    command: str
    root: str
    edited: bool


def command_line(
    command: str, folder: Path, minutes: float, teacher: str | None, student: str | None, **others: str | None
) -> str:
    """A command as a person would type it, with the pictures' absolute path."""
    options = {"minutes": f"{minutes:g}", "teacher": teacher, "student": student, **others}
    given = [part for name, value in options.items() if value is not None for part in (f"--{name}", value)]
    return printable(shlex.join(["factor-transfer", command, str(folder.resolve()), *given]))


def recipe_name(folder: Path) -> str:
    """A recipe's name, after a folder of pictures."""
    name = "".join(one if one.isprintable() and one not in "/\\" else "-" for one in folder.resolve().name)
    return name.lstrip(".") or "pictures"


def recipe_text(
    command: str, notes: Iterable[str], pictures: Pictures, choice: Choice, epochs: Epochs, shifted: bool, device: str
) -> str:
    """The recipe, with comments.

    Args:
        command: the command that asks for it.
        notes: what was chosen and why, what it costs, and how to go on, in lines.
        pictures: the folder.
        choice: what is trained.
        epochs: for how long.
        shifted: whether the images are shown shifted by a few pixels.
        device: ``"cpu"``, ``"cuda"`` …
    """
    lines = [
        f"# {command}",
        *(f"# {printable(note)}".rstrip() for note in notes),
        "",
        f"name = {toml_value(recipe_name(pictures.root))}",
        'precision = "auto" # bfloat16 where the device computes faster in it',
    ]
    if device == "cpu":
        lines.append('compile = "off" # compiling takes about a minute; "auto" does so where a training is long')
    lines += [
        "",
        "[data]",
        'name = "folder"',
        f"root = {toml_value(str(pictures.root))}",
        f"size = {choice.size} # the shorter side is scaled to so many pixels, and the centre cut out",
    ]
    if pictures.channels == 1:
        lines.append("channels = 1 # the pictures are grey")
    lines += ["", "[augment] # at random, each time that an image is shown"]
    if shifted:
        lines.append(f"crop_padding = {max(1, choice.size // 8)} # shifted by up to so many pixels")
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
    """What a recipe that is there says of itself; ``None`` if there is no such file."""
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
