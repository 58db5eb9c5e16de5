"""The commands that deploy a student: export, predict, package."""

import json as json_format
import os
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from factor_transfer.cli.common import Debug, Overrides, TrustCode, announce, console
from factor_transfer.errors import InputError, choose, printable

RunArgument = Annotated[
    Path, typer.Argument(metavar="RUN", help="The folder of a run or of one of its students, or a name of `show zoo`.")
]


def add_to(app: typer.Typer) -> None:
    """Add these commands to ``app``."""
    for command in (export, predict, package):
        app.command()(command)


def export(
    run: RunArgument,
    overrides: Overrides = None,
    format: Annotated[str, typer.Option(metavar="executorch|onnx", help="The format of the file.")] = "executorch",
    precision: Annotated[
        str, typer.Option(metavar="float32|int8", help="The precision of weights and activations.")
    ] = "float32",
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The folder to write.", show_default="a folder in the student's folder"),
    ] = None,
    raw_input: Annotated[
        bool,
        typer.Option(
            "--raw-input", metavar="", help="Leave out the preprocessing: the file takes normalised float32 images."
        ),
    ] = False,
    dynamic_batch: Annotated[
        bool,
        typer.Option("--dynamic-batch", metavar="", help="Accept batches of 1 to 64 images instead of single images."),
    ] = False,
    calibration: Annotated[
        int,
        typer.Option(metavar="N", min=1, help="For int8: the number of training images to calibrate the scales with."),
    ] = 256,
    tolerance: Annotated[
        float,
        typer.Option(
            metavar="POINTS", min=0, help="For int8: the largest accepted loss of top-1, in percentage points."
        ),
    ] = 1.0,
    qat: Annotated[
        int,
        typer.Option(
            metavar="EPOCHS", min=0, help="For int8: epochs of quantisation-aware fine-tuning before the export."
        ),
    ] = 0,
    trust_code: TrustCode = None,
    debug: Debug = False,
) -> None:
    """Export a student to a file for a device, and verify the file on all test images in its own runtime."""
    choose("format", format, ["executorch", "onnx"])
    choose("precision", precision, ["float32", "int8"])
    if qat and precision != "int8":
        raise InputError("--qat fine-tunes for 8 bits; give --precision int8, too")
    from factor_transfer.export.build import ExportOptions
    from factor_transfer.export.export import export_folder, export_student
    from factor_transfer.export.graph import InputSpec
    from factor_transfer.models import permit
    from factor_transfer.pipeline.artefact import RECIPE
    from factor_transfer.pipeline.experiment import Experiment
    from factor_transfer.pipeline.finished_run import find_run
    from factor_transfer.pipeline.weights.zoo import holds
    from factor_transfer.report.export import print_export

    found = find_run(run)
    if out is None and holds(found.student.folder):
        raise InputError(f"{run} is a network of the zoo, which is not written to; give a folder with --out")
    recipe = found.recipe(overrides or [])
    trusted = trust_code or []
    announce(permit(found.models("teacher", "student"), trusted, found.student.folder, recipe.data.name))
    work_dir = found.student.folder.parent
    command = shlex.join([str(found.student.folder / RECIPE), *(overrides or []), "--work-dir", str(work_dir)])
    experiment = Experiment(recipe, work_dir, console(), command, trusted)
    form = InputSpec(raw=not raw_input, dynamic=dynamic_batch)
    options = ExportOptions(format, precision, form, calibration, tolerance, qat)  # type: ignore[arg-type]
    record = export_student(experiment, found, options, out)
    folder = out or export_folder(found.student, options)
    print_export(experiment.console, record, str(folder / record["file"]["name"]))


def predict(
    network: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|FILE",
            help="A run, a student of `show zoo`, weights, a packaged student, or a .pte or .onnx file or its folder.",
        ),
    ],
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGE", help="Pictures or folders; - reads names from standard input.")
    ],
    top: Annotated[
        int, typer.Option(metavar="N", min=1, help="The number of classes to print per picture, most likely first.")
    ] = 5,
    json: Annotated[bool, typer.Option("--json", metavar="", help="Print the results as a JSON list.")] = False,
    convert: Annotated[
        bool,
        typer.Option(
            "--convert", metavar="", help="Accept images with other channels, and convert them as for training."
        ),
    ] = False,
    trust_code: TrustCode = None,
    debug: Debug = False,
) -> None:
    """Print the most likely classes of pictures and their probabilities."""
    from factor_transfer.deploy.predict import find_images, open_network
    from factor_transfer.deploy.predict import predict as predict_images

    names = [line for name in images for line in (_names_from_stdin() if name == "-" else [name]) if line]
    opened, paths = open_network(network, partial(announce, to_stderr=True), trust_code or []), find_images(names)
    results = predict_images(opened, paths, top, convert)
    resized = sum(result["resized"] for result in results)
    if resized:
        _, height, width = opened.image
        typer.echo(
            f"Note: {resized} of {len(results)} images were scaled and centre-cropped to {width}×{height} pixels",
            err=True,
        )
    if json:
        text = json_format.dumps(results, ensure_ascii=False, indent=2)
        # Bytes of a file name that are not valid UTF-8 are written as JSON escapes such as "\udce9".
        typer.echo(text.encode(errors="backslashreplace").decode())
        return
    for result in results:
        answers = "  ".join(f"{each['class']} {each['probability']:.2%}" for each in result["top"])
        typer.echo(printable(f"{result['image']}  {answers}"))


def package(
    run: RunArgument,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write, new or empty.")],
    to: Annotated[
        str | None,
        typer.Option(metavar="timm|torchvision", help="Also write the weights with the keys of this library."),
    ] = None,
    exported: Annotated[
        list[Path] | None,
        typer.Option("--export", metavar="DIR", help="A folder that export wrote with --out; can be repeated."),
    ] = None,
    trust_code: TrustCode = None,
    debug: Debug = False,
) -> None:
    """Write a folder to share a student: weights, recipe, figures and a model card."""
    if to is not None:
        choose("library", to, ["timm", "torchvision"])
    from factor_transfer.deploy.package import package as write_folder
    from factor_transfer.models import permit
    from factor_transfer.pipeline.finished_run import find_run

    found = find_run(run)
    trusted = trust_code or []
    announce(permit(found.models("teacher", "student"), trusted, found.student.folder))
    names = write_folder(found, out, to, exported or [], trusted)
    typer.echo(printable(f"{out}  {'  '.join(names)}"))


def _names_from_stdin() -> list[str]:
    """The lines of standard input. A file's name may be any bytes."""
    return [os.fsdecode(line.removesuffix(b"\r")) for line in sys.stdin.buffer.read().split(b"\n")]
