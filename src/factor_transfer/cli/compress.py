"""The commands that need no recipe: compress and init."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from factor_transfer.cli.common import Debug, announce, console
from factor_transfer.distributed.launch import launch_info
from factor_transfer.errors import InputError, choose, printable

if TYPE_CHECKING:  # heavy modules are imported where they are used
    from factor_transfer.commands.compress.plan import Request
    from factor_transfer.export.exporter import StudentExporter

Pictures = Annotated[Path, typer.Argument(metavar="PICTURES", help="A folder of pictures, with one folder per class.")]
To = Annotated[
    str | None,
    typer.Option(metavar="executorch|onnx", help="The format of the exported file.", show_default="the installed one"),
]
Precision = Annotated[str, typer.Option(metavar="float32|int8", help="The precision of the exported file.")]
Student = Annotated[
    str | None, typer.Option(metavar="NAME", help="The student: a network of `show models`, or an external one.")
]
Teacher = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|NAME=FILE",
        help="The teacher: a network to train, timm:NAME to fine-tune, or NAME=FILE with trained weights.",
    ),
]
Unlabelled = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="DIR", help="A folder of pictures without labels, from which the student learns, too; can be repeated."
    ),
]
Minutes = Annotated[float, typer.Option(metavar="N", help="The time for everything, in minutes on this device.")]


def add_to(app: typer.Typer) -> None:
    """Add these commands to ``app``."""
    for command in (compress, init):
        app.command()(command)


def compress(
    pictures: Pictures,
    to: To = None,
    precision: Precision = "float32",
    student: Student = None,
    teacher: Teacher = None,
    minutes: Minutes = 8.0,
    unlabelled: Unlabelled = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The folder of the results.", show_default="compressed/<name of PICTURES>"),
    ] = None,
    debug: Debug = False,
) -> None:
    """Train a small network on a folder of pictures and export it for a device; no recipe is needed."""
    request, exporter = _parse_request(pictures, to, precision, student, teacher, minutes, unlabelled)
    from factor_transfer.commands.compress.flow import compress as run_compress
    from factor_transfer.commands.compress.flow import next_steps
    from factor_transfer.report.compressed import print_compressed

    result = run_compress(request, out, exporter, console())
    experiment = result.experiment
    print_compressed(experiment.console, result.summary, result.export, result.file, len(experiment.test))
    for line in next_steps(result):
        experiment.say(line)
    if result.export_error is not None:
        raise result.export_error


def init(
    pictures: Pictures,
    to: To = None,
    precision: Precision = "float32",
    student: Student = None,
    teacher: Teacher = None,
    minutes: Minutes = 8.0,
    unlabelled: Unlabelled = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The file of the recipe.", show_default="<name of PICTURES>.toml"),
    ] = None,
    debug: Debug = False,
) -> None:
    """Write the recipe that compress would use, without training."""
    request, exporter = _parse_request(pictures, to, precision, student, teacher, minutes, unlabelled)
    from factor_transfer.commands.compress.flow import init as write_recipe

    for line in write_recipe(request, out, exporter, console()):
        typer.echo(printable(line))


def _parse_request(
    pictures: Path,
    to: str | None,
    precision: str,
    student: str | None,
    teacher: str | None,
    minutes: float,
    unlabelled: list[Path] | None,
) -> "tuple[Request, StudentExporter | None]":
    """The checked options of the command line, and the exporter, if one is installed."""
    if to is not None:
        choose("format", to, ["executorch", "onnx"])
    choose("precision", precision, ["float32", "int8"])
    if launch_info().world > 1:
        raise InputError(
            "compress and init run in a single process; to train in several processes, write the recipe with init and "
            "run it with torchrun"
        )
    from factor_transfer.commands.compress.plan import Request
    from factor_transfer.export.build import ExportOptions
    from factor_transfer.export.exporter import StudentExporter, first_installed
    from factor_transfer.models.optional import pip_install

    request = Request(pictures, minutes, teacher, student, tuple(unlabelled or ()))
    request.check()
    announce(name.partition("=")[0] for name in (teacher, student) if name is not None)
    format = to or first_installed()
    if format is None:
        if precision == "int8":
            raise InputError(
                "--precision int8 is for the exported file, but no exporter is installed: "
                f"{pip_install('executorch')}, or [onnx]"
            )
        return request, None
    return request, StudentExporter(ExportOptions(format, precision))  # type: ignore[arg-type]
