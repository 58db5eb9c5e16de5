"""The commands that bring a student to where it is used: export, predict, package."""

import json as json_format
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from factor_transfer.cli.common import Debug, Overrides, TrustCode, announce, console
from factor_transfer.errors import InputError, choose, printable

RunArgument = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run's folder, or a student's in it; or a student of `show zoo`.")
]


def add_to(app: typer.Typer) -> None:
    """Make them commands of ``app``."""
    for command in (export, predict, package):
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
    trust_code: TrustCode = None,
    debug: Debug = False,
) -> None:
    """The student as a file for a device, tried on all test images by its own runtime."""
    choose("format", format, ["executorch", "onnx"])
    choose("precision", precision, ["float32", "int8"])
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
        raise InputError(f"{run} is of the zoo, which nothing is written into; give a folder with --out")
    recipe = found.recipe(overrides or [])
    trusted = trust_code or []
    announce(permit(found.models("teacher", "student"), trusted, found.student.folder))
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
            metavar="RUN|FILE", help="A run, weights, a packaged student, a .pte or .onnx file or its folder."
        ),
    ],
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGE...", help="Pictures, folders, or - : names on standard input.")
    ],
    top: Annotated[int, typer.Option(metavar="N", min=1, help="Classes of each, the likeliest first.")] = 5,
    json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
    convert: Annotated[
        bool, typer.Option("--convert", help="Take images of other channels, converted as for training.")
    ] = False,
    trust_code: TrustCode = None,
    debug: Debug = False,
) -> None:
    """Classes and probabilities of pictures."""
    from factor_transfer.deploy.predict import find_images, open_network
    from factor_transfer.deploy.predict import predict as ask

    names = [line for name in images for line in (sys.stdin.read().splitlines() if name == "-" else [name]) if line]
    opened, paths = open_network(network, partial(announce, aside=True), trust_code or []), find_images(names)
    results = ask(opened, paths, top, convert)
    resized = sum(result["resized"] for result in results)
    if resized:
        _, height, width = opened.image
        number = f"{resized} of {len(results)} images"
        typer.echo(f"Note: scaled to {width}×{height} pixels, their centre cut out: {number}", err=True)
    if json:
        text = json_format.dumps(results, ensure_ascii=False, indent=2)
        # What of a file's name is no text is kept as JSON can say it: "\udce9".
        typer.echo(text.encode(errors="backslashreplace").decode())
        return
    for result in results:
        answers = "  ".join(f"{each['class']} {each['probability']:.2%}" for each in result["top"])
        typer.echo(printable(f"{result['image']}  {answers}"))


def package(
    run: RunArgument,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where to; a new folder.")],
    to: Annotated[
        str | None, typer.Option(metavar="timm|torchvision", help="Also write the weights with that library's keys.")
    ] = None,
    exported: Annotated[
        list[Path] | None,
        typer.Option("--export", metavar="DIR", help="A folder that export wrote with --out; may be given again."),
    ] = None,
    trust_code: TrustCode = None,
    debug: Debug = False,
) -> None:
    """The student to share: weights, recipe, figures and a model card, in one folder."""
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
