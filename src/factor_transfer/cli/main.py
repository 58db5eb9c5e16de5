"""The commands of the command line, one function each; the work is done in other packages."""

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
from factor_transfer.cli.common import Csv, Debug, Latex, Overrides, TrustCode, announce, console
from factor_transfer.cli.exit import report_errors
from factor_transfer.distributed.launch import launch_info
from factor_transfer.distributed.openmp import wait_passively
from factor_transfer.errors import InputError, choose
from factor_transfer.versions import OURS, versions

if TYPE_CHECKING:  # heavy modules are imported where they are used, so that `--help` and typing errors are fast
    from factor_transfer.config.recipe import Recipe
    from factor_transfer.pipeline.experiment import Experiment

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
    pretty_exceptions_enable=False,
)

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A TOML file, or a name from `show recipes`.")]
WorkDir = Annotated[
    Path | None, typer.Option(metavar="DIR", help="The folder of the results.", show_default="runs/<recipe>")
]
Fresh = Annotated[
    bool, typer.Option("--fresh", metavar="", help="Start again; existing results are moved to <work dir>/replaced.")
]


def _print_version(wanted: bool) -> None:
    if wanted:
        installed = versions(OURS, "torch")
        print(f"{OURS} {installed[OURS]}, torch {installed['torch']}, Python {platform.python_version()}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool,
        typer.Option("--version", metavar="", callback=_print_version, is_eager=True, help="Show versions and exit."),
    ] = False,
) -> None:
    """Compress a trained network into a small one by Factor Transfer."""


@app.command()
def demo(
    work_dir: Annotated[Path, typer.Option(metavar="DIR", help="The folder of the results.")] = Path("runs/demo"),
    debug: Debug = False,
) -> None:
    """Compare four methods over five seeds on a part of Fashion-MNIST, in two to three minutes."""
    from factor_transfer.commands.demo import demo as run_demo

    run_demo(work_dir, console())


@app.command()
def run(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    work_dir: WorkDir = None,
    baseline: Annotated[
        bool, typer.Option("--baseline", metavar="", help="Also train the student alone, with the same budget.")
    ] = False,
    fresh: Fresh = False,
    debug: Debug = False,
) -> None:
    """Train teacher, paraphraser and student; stages that are up to date are reused."""
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
    experiment = _checked(_experiment(recipe, overrides, work_dir))

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
    """Stage 2: train the paraphraser on the teacher's features (connectors pre-training)."""
    experiment = _checked(_experiment(recipe, overrides, work_dir))

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
    """Stage 3: train the student by the recipe's method (distillation training)."""
    experiment = _checked(_experiment(recipe, overrides, work_dir))

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
        str, typer.Option(metavar="NAMES", help="The methods, separated by commas; a method may be a sum of terms.")
    ] = "student,kd,fitnets,at,factor,factor+kd,at+kd",
    seeds: Annotated[int, typer.Option(metavar="N", help="The number of seeds; the first one is student.seed.")] = 3,
    work_dir: WorkDir = None,
    slurm: Annotated[
        str | None, typer.Option(metavar="PARTITION", help="Submit a Slurm job per method and seed to this partition.")
    ] = None,
    slurm_args: Annotated[
        str,
        typer.Option(
            metavar="'KEY=VALUE ...'", help="The options of the Slurm jobs, such as 'time=60 gpus_per_node=1'."
        ),
    ] = "",
    against: Annotated[
        str, typer.Option(metavar="METHOD", help="The method that the others are compared with.")
    ] = "student",
    jobs: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="The number of parallel processes, with one thread each.",
            show_default="one per processor; 1 on a GPU",
        ),
    ] = None,
    csv: Csv = None,
    latex: Latex = None,
    debug: Debug = False,
) -> None:
    """Compare methods over several seeds, on the same batches; finished trainings are reused."""
    from factor_transfer.config.sweep import split_sweep

    sweep, overrides = split_sweep(overrides or [])
    experiment = _experiment(recipe, overrides, work_dir)

    from factor_transfer.commands.compare import Runner, check_arguments, parse_methods, refuse_failed
    from factor_transfer.commands.compare import compare as run_comparison
    from factor_transfer.commands.jobs import ProcessJobs, default_jobs
    from factor_transfer.commands.slurm import Jobs
    from factor_transfer.config.recipe import ALONE, parse_method
    from factor_transfer.report.comparison import print_comparison
    from factor_transfer.report.paper.write import TableFiles

    if slurm_args and slurm is None:
        raise InputError("--slurm-args is only for Slurm jobs; give the partition with --slurm")
    tables = TableFiles(csv, latex)
    runner: Runner | None = None
    rows = parse_methods(methods) if sweep is None else sweep.rows(parse_methods(methods), experiment.recipe)
    if against not in rows and "," not in against:
        against = "+".join(parse_method(against)) or ALONE
    check_arguments(rows, seeds, against)  # before the images are read
    if slurm is not None:
        runner = Jobs(slurm, slurm_args)
    else:
        count = default_jobs(experiment) if jobs is None else jobs
        runner = ProcessJobs(count) if count != 1 else None
    comparison = run_comparison(experiment, rows, seeds, runner, against)
    print_comparison(experiment.console, comparison, len(experiment.test), seeds)
    names = ("comparison.json", "comparison.png", "comparison.pdf", "comparison.svg", "report.html")
    written = [path for name in names if (path := experiment.work_dir / name).exists()]
    experiment.say("  ".join(map(str, [*written, *tables.write(comparison)])))
    refuse_failed(comparison)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The work dir of a finished run or comparison.")],
    csv: Csv = None,
    latex: Latex = None,
    trust_code: TrustCode = None,
    debug: Debug = False,
) -> None:
    """Write report.html again: tables, charts and images of the results, on one page."""
    from factor_transfer.report.html.write import open_work_dir, write_report
    from factor_transfer.report.paper.write import TableFiles

    tables = TableFiles(csv, latex)
    experiment, models = open_work_dir(folder, console(), trust_code or [])
    announce(models)
    written = tables.write_of(folder)
    experiment.say("  ".join(map(str, [write_report(experiment), *written])))


@app.command()
def check(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    work_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="A work dir, whose finished teacher and paraphraser are used, if any; nothing is written to it.",
            show_default="runs/<recipe>",
        ),
    ] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the results to this file.")] = None,
    debug: Debug = False,
) -> None:
    """Check a recipe on a few batches before a long run: networks, taps, shares of the loss, time and memory."""
    experiment = _experiment(recipe, overrides, work_dir)

    from factor_transfer.commands.check import check as run_check
    from factor_transfer.files import write_json
    from factor_transfer.report.check import print_check

    result = run_check(experiment)
    print_check(experiment.console, result)
    if json is not None:
        write_json(json, result)


@app.command()
def test(
    network: Annotated[
        str, typer.Argument(metavar="RUN|RECIPE", help="A run, a student or teacher in it, or a recipe.")
    ],
    checkpoint: Annotated[
        Path | None,
        typer.Argument(
            metavar="CHECKPOINT", help="With RECIPE: a file of weights, the folder of a stage, or a work dir."
        ),
    ] = None,
    overrides: Overrides = None,
    metrics: Annotated[
        str,
        typer.Option(
            "--metrics",
            "--eval",
            metavar="NAMES",
            help="The metrics, separated by commas: accuracy, precision, recall, f1, calibration.",
        ),
    ] = "accuracy",
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the results to this file.")] = None,
    trust_code: TrustCode = None,
    debug: Debug = False,
) -> None:
    """Evaluate a network on the test split, overall and per class."""
    changes = list(overrides or [])
    is_run = _is_run(network)
    if is_run and checkpoint is not None and "=" in str(checkpoint):  # a run needs no checkpoint
        changes, checkpoint = [str(checkpoint), *changes], None
    if is_run and checkpoint is not None:
        raise InputError(f"{network} is a run, which contains its recipe and its weights; leave out {checkpoint}")
    if not is_run and checkpoint is None:
        raise InputError(
            "there is nothing to test: give the folder of a run, or a recipe and CHECKPOINT; "
            f"{network!r} is not the folder of a run, and no CHECKPOINT was given"
        )

    trusted: list[str] | None = None
    if checkpoint is None:
        from factor_transfer.commands.test import find_tested
        from factor_transfer.models import permit

        read, checkpoint, models = find_tested(Path(network), changes)
        trusted = trust_code or []
        announce(permit(models, trusted, checkpoint, read.data.name))
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
    what: Annotated[
        str, typer.Argument(metavar="models|methods|presets|recipes|schema|zoo|taps", help="What to list.")
    ],
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="For taps: the network whose taps are listed.")
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="For taps: the height and width of the image.", show_default="the usual size"
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """List models, methods, presets, recipes, trained networks (zoo) or taps; or print the JSON Schema of recipes."""
    from factor_transfer.commands import show as listing

    choose("list", what, ["models", "methods", "presets", "recipes", "schema", "zoo", "taps"])
    if what == "taps" and model is None:
        raise InputError(
            "show taps needs a network: `factor-transfer show taps MODEL`; see `factor-transfer show models`"
        )
    if what != "taps" and model is not None:
        raise InputError(f"`factor-transfer show {what}` takes no other argument, got {model!r}")
    if what != "taps" and size is not None:
        raise InputError(f"`factor-transfer show {what}` takes no --size, which is only for taps")
    if what == "schema":
        typer.echo(listing.schema(), nl=False)
        return
    if model is not None:
        announce([model])
    console().print(listing.taps(model, size) if model is not None else getattr(listing, what)())


compress_cli.add_to(app)
deploy_cli.add_to(app)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line: the entry point of ``factor-transfer``."""
    wait_passively()
    given = sys.argv[1:] if arguments is None else list(arguments)
    with report_errors(debug="--debug" in given, last=arguments is None):
        app(args=given, prog_name="factor-transfer")


def _experiment(recipe: str, overrides: list[str] | None, work_dir: Path | None) -> "Experiment":
    read = _recipe(recipe, overrides)
    # Imported after the recipe is read, so that an error in the recipe is reported quickly.
    from factor_transfer.pipeline.experiment import Experiment

    command = shlex.join([recipe, *(overrides or []), *(["--work-dir", str(work_dir)] if work_dir else [])])
    experiment = Experiment(read, work_dir or Path("runs") / read.name, console(), command)
    if launch_info().world > 1:
        _ = experiment.fabric  # connects the processes before any of them reads or writes
    return experiment


def _say(experiment: "Experiment", lines: Iterable[str]) -> None:
    for line in lines:
        experiment.say(line)


def _is_run(network: str) -> bool:
    """Whether a name is the folder of a run or weights in it, not a recipe."""
    path = Path(network)
    return path.is_dir() or (path.suffix == ".safetensors" and path.is_file())


def _checked(experiment: "Experiment") -> "Experiment":
    """The experiment, after a check of its networks and weights; ``run`` and ``compare`` check them themselves."""
    from factor_transfer.pipeline.weights.initial import check_networks

    check_networks(experiment)
    return experiment


def _recipe(recipe: str, overrides: list[str] | None) -> "Recipe":
    """Read a recipe, and print which external code it will run."""
    from factor_transfer.config.read import read_recipe

    read = read_recipe(recipe, overrides or [])
    announce([*read.models, read.data.name])
    return read
