"""The learning curves of a stage, read from its ``metrics.jsonl``."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from factor_transfer.errors import InputError
from factor_transfer.files import open_regular
from factor_transfer.pipeline.artefact import METRICS

Curve = dict[int, float]  # epoch, from 1 -> figure


def read_curves(folder: Path) -> dict[str, Curve]:
    """The learning curves of a stage, by their names in ``metrics.jsonl``.

    Args:
        folder: the folder of the stage.

    Returns:
        The curves; empty if the stage was not trained.

    Raises:
        InputError: if ``metrics.jsonl`` is damaged.
    """
    path = folder / METRICS
    if not path.exists():
        return {}
    curves: dict[str, Curve] = {}
    try:
        with open_regular(path) as file:
            lines = file.read().decode().splitlines()
        for number, line in enumerate(lines, 1):
            for name, value in _figures(json.loads(line), number).items():
                curves.setdefault(name, {})[number] = value
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    return curves


def _figures(record: Any, number: int) -> Mapping[str, float]:
    """The finite numbers of a line; a diverged epoch may have others, which charts cannot show."""
    if not isinstance(record, dict):
        raise ValueError(f"line {number} is not a JSON object")
    return {
        name: float(value)
        for name, value in record.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def parts(curves: Mapping[str, Curve]) -> dict[str, Curve]:
    """The curves of the parts of the loss, by term, such as ``"ce"`` and ``"factor"``."""
    return {name.removeprefix("loss_"): curve for name, curve in curves.items() if name.startswith("loss_")}
