"""The version of this package, and those of others, as records have them."""

__version__ = "0.1.0"

OURS = "factor-transfer"


def versions(*packages: str) -> dict[str, str]:
    """The version of each package, by its name.

    This package's own is not asked of the installer: a checkout on ``PYTHONPATH`` that is not installed has one, too.
    """
    from importlib.metadata import version  # not at the start: every import of the package would wait for it

    return {name: __version__ if name == OURS else version(name) for name in packages}
