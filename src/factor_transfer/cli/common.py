"""Arguments, options and console output that the commands share."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from factor_transfer.distributed.launch import launch_info

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Settings of the recipe to override, such as student.epochs=10."),
]
Debug = Annotated[bool, typer.Option("--debug", metavar="", help="Show the full traceback of an error.")]


TrustCode = Annotated[
    list[str] | None,
    typer.Option(
        "--trust-code",
        metavar="NAME",
        help="External code, as package.module:callable, that RUN's files name and that may run; can be repeated.",
    ),
]
Csv = Annotated[
    Path | None, typer.Option("--csv", metavar="FILE", help="Also write the results of the comparison as CSV.")
]
Latex = Annotated[
    Path | None,
    typer.Option("--latex", metavar="FILE", help="Also write the table of the comparison for LaTeX, with booktabs."),
]


def console() -> Console:
    """The console of standard output, wide enough for tables if it is no terminal.

    With several processes, only the first one prints.
    """
    if launch_info().rank:
        return Console(quiet=True)
    terminal = Console(highlight=False)
    return terminal if terminal.is_terminal else Console(highlight=False, width=160)


def announce(models: Iterable[str | Mapping[str, Any]], to_stderr: bool = False) -> None:
    """Print which external code a command will run, before it runs.

    Args:
        models: see ``factor_transfer.models.announce``.
        to_stderr: print to standard error, for a command whose standard output is data.
    """
    from factor_transfer.models import announce as lines

    for line in lines(models):
        screen = Console(stderr=True, highlight=False) if to_stderr else console()
        screen.print(line, markup=False, soft_wrap=True)
