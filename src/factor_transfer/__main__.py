"""``python -m factor_transfer``: the same as ``factor-transfer``."""

from factor_transfer.cli.main import main

main()
