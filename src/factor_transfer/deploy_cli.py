"""The commands that bring a student to where it is used: export, predict, package."""

from pathlib import Path
from typing import Annotated

import typer

from factor_transfer.errors import choose
from factor_transfer.terminal import Debug, Overrides, console

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, or of a student in it.")]


def add_to(app: typer.Typer) -> None:
    """Make them commands of ``app``."""
    for command in (export,):
        app.command()(command)


def export(
    run: RunArgument,
    overrides: Overrides = None,
    format: Annotated[str, typer.Option(metavar="executorch|onnx", help="Of the file.")] = "executorch",
    precision: Annotated[str, typer.Option(metavar="float32|int8", help="Of weights and activations.")] = "float32",
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where to.  [default: a folder in the student's]")
    ] = None,
    raw_input: Annotated[
        bool, typer.Option("--raw-input", help="Leave the preprocessing out: normalised float32 images in.")
    ] = False,
    dynamic_batch: Annotated[
        bool, typer.Option("--dynamic-batch", help="A file for 1 to 64 images at once, and not for one.")
    ] = False,
    calibration: Annotated[
        int, typer.Option(metavar="N", min=1, help="int8: training images that the scales are chosen by.")
    ] = 256,
    tolerance: Annotated[
        float, typer.Option(metavar="POINTS", min=0, help="int8: top-1 that may be lost, in percentage points.")
    ] = 1.0,
    qat: Annotated[
        int, typer.Option(metavar="EPOCHS", min=0, help="int8: quantisation-aware fine-tuning beforehand.")
    ] = 0,
    debug: Debug = False,
) -> None:
    """The student as a file for a device, tried on all test images by its own runtime."""
    choose("format", format, ["executorch", "onnx"])
    choose("precision", precision, ["float32", "int8"])
    from factor_transfer.experiment import Experiment
    from factor_transfer.export.deliver import Wish, export_student
    from factor_transfer.export.program import Form
    from factor_transfer.finished import find_run
    from factor_transfer.report.export import print_export

    found = find_run(run)
    recipe = found.recipe(overrides or [])
    experiment = Experiment(recipe, found.student.folder.parent, console(), str(run))
    form = Form(raw=not raw_input, dynamic=dynamic_batch)
    wish = Wish(format, precision, form, calibration, tolerance, qat)  # type: ignore[arg-type]
    record = export_student(experiment, found, wish, out, lambda network: network)
    folder = out or found.student.folder / "export" / f"{format}-{precision}"
    print_export(experiment.console, record, str(folder / record["file"]["name"]))
