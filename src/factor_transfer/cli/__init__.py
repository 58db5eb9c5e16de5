"""The command line."""

from factor_transfer.cli.main import main

__all__ = ["main"]
