"""The commands that need no recipe: compress and init."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from factor_transfer.cli.common import Debug, announce, console
from factor_transfer.distributed.launch import launch_info
from factor_transfer.errors import InputError, choose, printable

if TYPE_CHECKING:  # what is heavy is imported where it is used
    from factor_transfer.commands.compress.plan import Wish
    from factor_transfer.export.exporter import StudentExporter

Pictures = Annotated[
    Path, typer.Argument(metavar="PICTURES", help="A folder of pictures, with one folder for each class.")
]
To = Annotated[
    str | None,
    typer.Option(metavar="executorch|onnx", help="Format of the exported file.  [default: what is installed]"),
]
Precision = Annotated[str, typer.Option(metavar="float32|int8", help="Of the exported file.")]
Student = Annotated[str | None, typer.Option(metavar="NAME", help="A network of `show models`, or one from elsewhere.")]
Teacher = Annotated[
    str | None,
    typer.Option(metavar="NAME|NAME=FILE", help="Likewise; or timm:NAME, trained on; or a network with its weights."),
]
Minutes = Annotated[float, typer.Option(metavar="N", help="The time that everything may take on this device.")]


def add_to(app: typer.Typer) -> None:
    """Make them commands of ``app``."""
    for command in (compress, init):
        app.command()(command)


def compress(
    pictures: Pictures,
    to: To = None,
    precision: Precision = "float32",
    student: Student = None,
    teacher: Teacher = None,
    minutes: Minutes = 8.0,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where results go.  [default: compressed/<name of PICTURES>]")
    ] = None,
    debug: Debug = False,
) -> None:
    """From a folder of pictures to a small network for a device; no recipe is needed."""
    wish, exporter = _asked(pictures, to, precision, student, teacher, minutes)
    from factor_transfer.commands.compress.flow import compress as run_compress
    from factor_transfer.commands.compress.flow import next_steps
    from factor_transfer.report.compressed import print_compressed

    found = run_compress(wish, out, exporter, console())
    experiment = found.experiment
    print_compressed(experiment.console, found.summary, found.export, found.file, len(experiment.test))
    for line in next_steps(found):
        experiment.say(line)
    if found.refused is not None:
        raise found.refused


def init(
    pictures: Pictures,
    to: To = None,
    precision: Precision = "float32",
    student: Student = None,
    teacher: Teacher = None,
    minutes: Minutes = 8.0,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The recipe.  [default: <name of PICTURES>.toml]")
    ] = None,
    debug: Debug = False,
) -> None:
    """Write the recipe that compress would train by, and nothing else."""
    wish, exporter = _asked(pictures, to, precision, student, teacher, minutes)
    from factor_transfer.commands.compress.flow import init as write_recipe

    for line in write_recipe(wish, out, exporter, console()):
        typer.echo(printable(line))


def _asked(
    pictures: Path, to: str | None, precision: str, student: str | None, teacher: str | None, minutes: float
) -> "tuple[Wish, StudentExporter | None]":
    """What a person asks for, as far as it can be checked at once; and the exporter, where there is one."""
    if to is not None:
        choose("format", to, ["executorch", "onnx"])
    choose("precision", precision, ["float32", "int8"])
    if launch_info().world > 1:
        raise InputError(
            "compress and init run in one process; to train in several, write the recipe with init and run it with "
            "torchrun"
        )
    from factor_transfer.commands.compress.plan import Wish
    from factor_transfer.export.build import ExportOptions
    from factor_transfer.export.exporter import StudentExporter, first_installed
    from factor_transfer.models.optional import pip_install

    wish = Wish(pictures, minutes, teacher, student)
    wish.check()
    announce(name.partition("=")[0] for name in (teacher, student) if name is not None)
    format = to or first_installed()
    if format is None:
        if precision == "int8":
            raise InputError(
                "--precision int8 is of the exported file, and neither exporter is installed: "
                f"{pip_install('executorch')}, or [onnx]"
            )
        return wish, None
    return wish, StudentExporter(ExportOptions(format, precision))  # type: ignore[arg-type]
