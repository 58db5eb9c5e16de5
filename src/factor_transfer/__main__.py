"""``python -m factor_transfer``: the same as ``factor-transfer``."""

from factor_transfer.cli import main

main()
