"""Stub."""

from factor_transfer.checkpoint import read_weights


def read_foreign(path):
    """Stub."""
    return read_weights(path)


def adapt(state, module):
    """Stub."""
    return state, []
