"""The version of this package and of other packages, for records."""

__version__ = "0.1.0"

OURS = "factor-transfer"


def versions(*packages: str) -> dict[str, str]:
    """The versions of packages by name.

    This package's own version does not come from the installed metadata, so that it is also known for a checkout on
    ``PYTHONPATH`` that is not installed.
    """
    from importlib.metadata import version  # imported here, because it would slow down every import of the package

    return {name: __version__ if name == OURS else version(name) for name in packages}
