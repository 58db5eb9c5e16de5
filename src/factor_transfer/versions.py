"""The version of this package, and those of others, as records have them."""

from importlib.metadata import version

__version__ = "0.1.0"

OURS = "factor-transfer"


def versions(*packages: str) -> dict[str, str]:
    """The version of each package, by its name.

    This package's own is not asked of the installer: a checkout on ``PYTHONPATH`` that is not installed has one, too.
    """
    return {name: __version__ if name == OURS else version(name) for name in packages}
