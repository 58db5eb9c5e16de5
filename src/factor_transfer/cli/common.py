"""What all commands share: their words, and where they are printed."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import typer
from rich.console import Console

from factor_transfer.distributed.launch import launch_info

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change, such as student.epochs=10."),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


TrustCode = Annotated[
    list[str] | None,
    typer.Option(
        "--trust-code",
        metavar="NAME",
        help="Code from outside, package.module:callable, that RUN's files name and that may run; may be given again.",
    ),
]


def console() -> Console:
    """Standard output; where it is no terminal, wide enough for a table. Of several processes the first one speaks."""
    if launch_info().rank:
        return Console(quiet=True)
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=160)


def announce(models: Iterable[str | Mapping[str, Any]], aside: bool = False) -> None:
    """Before anything is done, say whose code a command will run; ``aside``, on standard error, of what prints data."""
    from factor_transfer.models import announce as lines

    for line in lines(models):
        screen = Console(stderr=True, highlight=False) if aside else console()
        screen.print(line, markup=False, soft_wrap=True)
