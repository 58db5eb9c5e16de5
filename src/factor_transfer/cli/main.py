"""The command line. A command is a function; what it does is elsewhere."""

import platform
import shlex
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from factor_transfer.cli import compress as compress_cli
from factor_transfer.cli import deploy as deploy_cli
from factor_transfer.cli.common import Debug, Overrides, TrustCode, announce, console
from factor_transfer.cli.exit import report_errors
from factor_transfer.distributed.launch import launch_info
from factor_transfer.distributed.openmp import wait_passively
from factor_transfer.errors import InputError, choose
from factor_transfer.versions import OURS, versions

if TYPE_CHECKING:  # what is heavy is imported where it is used: `--help` and a typing error need not wait for it
    from factor_transfer.config.recipe import Recipe
    from factor_transfer.pipeline.experiment import Experiment

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
    pretty_exceptions_enable=False,
)

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A TOML file, or a name of `show recipes`.")]
WorkDir = Annotated[Path | None, typer.Option(metavar="DIR", help="Where results go.  [default: runs/<recipe>]")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Start anew; what is there is kept in <work dir>/replaced.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        installed = versions(OURS, "torch")
        print(f"{OURS} {installed[OURS]}, torch {installed['torch']}, Python {platform.python_version()}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show versions and exit.")
    ] = False,
) -> None:
    """Compress a trained network into a small one by Factor Transfer."""


@app.command()
def demo(
    work_dir: Annotated[Path, typer.Option(metavar="DIR", help="Where results go.")] = Path("runs/demo"),
    debug: Debug = False,
) -> None:
    """All stages on a part of Fashion-MNIST, four methods over five seeds; ends with a table."""
    from factor_transfer.commands.demo import demo as run_demo

    run_demo(work_dir, console())


@app.command()
def run(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    work_dir: WorkDir = None,
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Also train the student alone, with the same budget.")
    ] = False,
    fresh: Fresh = False,
    debug: Debug = False,
) -> None:
    """Teacher, paraphraser and student; what is up to date is reused."""
    experiment = _experiment(recipe, overrides, work_dir)

    from factor_transfer.commands.run import run as run_stages
    from factor_transfer.report.results import after_run, next_lines, print_results

    summary = run_stages(experiment, baseline, fresh)
    print_results(experiment.console, [summary], len(experiment.test))
    _say(experiment, next_lines(after_run(experiment)))


@app.command()
def teacher(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    work_dir: WorkDir = None,
    fresh: Fresh = False,
    debug: Debug = False,
) -> None:
    """Stage 1: train the teacher."""
    experiment = _tried(_experiment(recipe, overrides, work_dir))

    from factor_transfer.pipeline.stages.teacher import make_teacher
    from factor_transfer.report.results import after_teacher, stage_lines

    _say(experiment, stage_lines(make_teacher(experiment, fresh), after_teacher(experiment)))


@app.command()
def pretrain(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    work_dir: WorkDir = None,
    fresh: Fresh = False,
    debug: Debug = False,
) -> None:
    """Stage 2, connectors pre-training: train the paraphraser on the teacher's features."""
    experiment = _tried(_experiment(recipe, overrides, work_dir))

    from factor_transfer.pipeline.stages.paraphraser import make_paraphraser
    from factor_transfer.report.results import after_paraphraser, stage_lines

    _say(experiment, stage_lines(make_paraphraser(experiment, fresh), after_paraphraser(experiment)))


@app.command()
def train(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    work_dir: WorkDir = None,
    fresh: Fresh = False,
    debug: Debug = False,
) -> None:
    """Stage 3, distillation training: train the student with the teacher's factors."""
    experiment = _tried(_experiment(recipe, overrides, work_dir))

    from factor_transfer.pipeline.stages.student import make_student, preflight
    from factor_transfer.report.results import after_student, stage_lines

    preflight(experiment, [experiment.recipe.method])
    done = make_student(experiment, fresh)
    _say(experiment, stage_lines(done, after_student(done)))


@app.command()
def compare(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    methods: Annotated[
        str, typer.Option(metavar="NAMES", help="Separated by commas; a sum of terms is a method.")
    ] = "student,kd,fitnets,at,factor,factor+kd,at+kd",
    seeds: Annotated[int, typer.Option(metavar="N", help="How many, from student.seed on.")] = 3,
    work_dir: WorkDir = None,
    slurm: Annotated[
        str | None, typer.Option(metavar="PARTITION", help="Send a Slurm job for each method and seed.")
    ] = None,
    slurm_args: Annotated[
        str, typer.Option(metavar="'KEY=VALUE ...'", help="What each job may use, such as 'time=60 gpus_per_node=1'.")
    ] = "",
    against: Annotated[
        str, typer.Option(metavar="METHOD", help="The method that the others are compared with.")
    ] = "student",
    jobs: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Processes side by side, of one thread each.  [default: one per processor; 1 on a GPU]"
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Methods against each other, over seeds, on the same batches; what is done is not done again."""
    experiment = _experiment(recipe, overrides, work_dir)

    from factor_transfer.commands.compare import Runner, parse_methods, refuse_failed
    from factor_transfer.commands.compare import compare as run_comparison
    from factor_transfer.commands.jobs import ProcessJobs, default_jobs
    from factor_transfer.commands.slurm import Jobs
    from factor_transfer.report.comparison import print_comparison

    runner: Runner | None = None
    if slurm is not None:
        runner = Jobs(slurm, slurm_args)
    else:
        count = default_jobs(experiment) if jobs is None else jobs
        runner = ProcessJobs(count) if count != 1 else None
    (reference,) = set(parse_methods(against)) - {"student"} or {"student"}
    comparison = run_comparison(experiment, parse_methods(methods), seeds, runner, reference)
    print_comparison(experiment.console, comparison, len(experiment.test), seeds)
    written = (experiment.work_dir / name for name in ("comparison.json", "comparison.png", "report.html"))
    experiment.say("  ".join(str(path) for path in written if path.exists()))
    refuse_failed(comparison)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The work dir of a finished run or comparison.")],
    trust_code: TrustCode = None,
    debug: Debug = False,
) -> None:
    """Make report.html anew: tables, charts and images of what came out, on one page."""
    from factor_transfer.report.html.write import open_work_dir, write_report

    experiment, models = open_work_dir(folder, console(), trust_code or [])
    announce(models)
    path = write_report(experiment)
    experiment.say(str(path))


@app.command()
def check(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    work_dir: WorkDir = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the figures here.")] = None,
    debug: Debug = False,
) -> None:
    """Look before a long run: networks, taps, each term's share, time and memory, from a few batches."""
    experiment = _experiment(recipe, overrides, work_dir)

    from factor_transfer.commands.check import check as look
    from factor_transfer.files import write_json
    from factor_transfer.report.check import print_check

    found = look(experiment)
    print_check(experiment.console, found)
    if json is not None:
        write_json(json, found)


@app.command()
def test(
    network: Annotated[
        str, typer.Argument(metavar="RUN|RECIPE", help="A run, a student or teacher in it; or a recipe.")
    ],
    checkpoint: Annotated[
        Path | None,
        typer.Argument(metavar="[CHECKPOINT]", help="Of a RECIPE: weights, the folder of a stage, or a work dir."),
    ] = None,
    overrides: Overrides = None,
    metrics: Annotated[
        str,
        typer.Option("--metrics", "--eval", metavar="NAMES", help="Of accuracy, precision, recall, f1, calibration."),
    ] = "accuracy",
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the figures here.")] = None,
    trust_code: TrustCode = None,
    debug: Debug = False,
) -> None:
    """Figures of a network on the test split, overall and a class."""
    changes = list(overrides or [])
    of_run = _is_place(network)
    if of_run and checkpoint is not None and "=" in str(checkpoint):  # a run needs no checkpoint
        changes, checkpoint = [str(checkpoint), *changes], None
    if of_run and checkpoint is not None:
        raise InputError(f"{network} is a run, which has its recipe and its weights; leave out {checkpoint}")
    if not of_run and checkpoint is None:
        raise InputError(
            f"what is to be tested? Give a run's folder, or a recipe and CHECKPOINT; got {network!r} alone"
        )

    trusted: list[str] | None = None
    if checkpoint is None:
        from factor_transfer.commands.test import find_tested
        from factor_transfer.models import permit

        read, checkpoint, models = find_tested(Path(network), changes)
        trusted = trust_code or []
        announce(permit(models, trusted, checkpoint))
    else:
        read = _recipe(network, changes)

    from factor_transfer.commands.test import score
    from factor_transfer.files import write_json
    from factor_transfer.report.test import test_table

    names = [name.strip() for name in metrics.split(",") if name.strip()]
    screen = console()
    say = partial(screen.print, highlight=False, markup=False, soft_wrap=True)
    result = score(read, checkpoint, names, say, trusted)
    line = f"{checkpoint}  top-1 {result['top1']:.2f} %  top-5 {result['top5']:.2f} %"
    screen.print(line, markup=False, soft_wrap=True)
    if result.get("note"):
        screen.print(f"Note: {result['note']}", markup=False, soft_wrap=True)
    screen.print(test_table(result))
    if json is not None:
        write_json(json, result)


@app.command()
def show(
    what: Annotated[str, typer.Argument(metavar="models|methods|presets|recipes|zoo|taps", help="What to list.")],
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="Whose taps.")] = None,
    size: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Taps: height and width of the image.  [default: the usual]")
    ] = None,
    debug: Debug = False,
) -> None:
    """List models, methods, presets, recipes, trained networks (zoo), or the taps of a model."""
    from factor_transfer.commands import show as listing

    choose("thing to show", what, ["models", "methods", "presets", "recipes", "zoo", "taps"])
    if what == "taps" and model is None:
        raise InputError("whose taps? Say `factor-transfer show taps MODEL`, see `factor-transfer show models`")
    if what != "taps" and model is not None:
        raise InputError(f"`factor-transfer show {what}` takes no further name, got {model!r}")
    if what != "taps" and size is not None:
        raise InputError(f"`factor-transfer show {what}` takes no --size; it is for taps")
    announce([model or ""])
    console().print(listing.taps(model, size) if model is not None else getattr(listing, what)())


compress_cli.add_to(app)
deploy_cli.add_to(app)


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point."""
    wait_passively()
    given = sys.argv[1:] if arguments is None else list(arguments)
    with report_errors(debug="--debug" in given, last=arguments is None):
        app(args=given, prog_name="factor-transfer")


def _experiment(recipe: str, overrides: list[str] | None, work_dir: Path | None) -> "Experiment":
    read = _recipe(recipe, overrides)
    # Imported after the recipe is read, as all that is heavy: a misspelt recipe need not wait for it.
    from factor_transfer.pipeline.experiment import Experiment

    command = shlex.join([recipe, *(overrides or []), *(["--work-dir", str(work_dir)] if work_dir else [])])
    experiment = Experiment(read, work_dir or Path("runs") / read.name, console(), command)
    if launch_info().world > 1:
        _ = experiment.fabric  # the processes meet before any of them reads or writes
    return experiment


def _say(experiment: "Experiment", lines: Iterable[str]) -> None:
    for line in lines:
        experiment.say(line)


def _is_place(network: str) -> bool:
    """Whether a name is a run's folder, or weights in it, and no recipe."""
    path = Path(network)
    return path.is_dir() or (path.suffix == ".safetensors" and path.is_file())


def _tried(experiment: "Experiment") -> "Experiment":
    """The experiment, after its networks and weights have been tried, as ``run`` and ``compare`` do themselves."""
    from factor_transfer.pipeline.weights.initial import check_networks

    check_networks(experiment)
    return experiment


def _recipe(recipe: str, overrides: list[str] | None) -> "Recipe":
    """Read it; and before anything is done, say whose code it will run."""
    from factor_transfer.config.read import read_recipe

    read = read_recipe(recipe, overrides or [])
    announce(read.models)
    return read
