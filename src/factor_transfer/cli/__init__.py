"""The command line."""

from factor_transfer.distributed.signals import while_importing

with while_importing():
    from factor_transfer.cli.main import main

__all__ = ["main"]
