"""The results of a comparison as a CSV file."""

import csv
from io import StringIO
from typing import Any

from factor_transfer.report.html.work_dir import Comparison
from factor_transfer.report.names import name_of

COLUMNS = (
    *("row", "method", "setting", "value", "name", "seed", "n"),
    *("top1", "top1_interval", "against", "difference", "difference_interval", "p", "p_holm", "top5", "top1_kept"),
    *("validation_top1", "gap_closed", "cost", "seconds", "error"),
)


def as_csv(comparison: Comparison) -> str:
    """The results as CSV with the columns ``COLUMNS``. Cells without a value are empty, and numbers are not rounded.

    The column ``row`` has the kind of each row: ``teacher``; ``mean``, the figures of a method over its seeds; or
    ``run``, the figures of one method and seed. The difference of a run is that from the reference with the same seed.
    """
    text = StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    teacher = comparison.teacher
    if teacher is not None:
        writer.writerow(
            {"row": "teacher", "method": "teacher", "name": "teacher", "top1": teacher.top1, "top5": teacher.top5}
        )
    writer.writerows(_means(comparison))
    writer.writerows(_runs(comparison))
    return text.getvalue()


def _named(row: str) -> dict[str, str]:
    """The method of a row, the setting that is swept and its value, both empty if there is none, and the row's name."""
    method, _, variant = row.partition(",")
    setting, _, value = variant.partition("=")
    return {"method": method, "setting": setting, "value": value, "name": name_of(row)}


def _means(comparison: Comparison) -> list[dict[str, Any]]:
    return [
        {
            "row": "mean",
            **_named(method),
            "n": comparison.count(method),
            "top1": one.mean,
            "top1_interval": one.interval,
            "against": comparison.against if one.difference is not None else None,
            "difference": one.difference,
            "difference_interval": one.difference_interval,
            "p": one.p,
            "p_holm": one.p_holm,
            "top5": comparison.top5(method),
            "top1_kept": comparison.kept(method),
            "validation_top1": one.validation_top1,
            "gap_closed": one.gap_closed,
            "cost": one.cost,
        }
        for method, one in comparison.methods.items()
    ]


def _runs(comparison: Comparison) -> list[dict[str, Any]]:
    references = {run.seed: run.top1 for run in comparison.runs if run.method == comparison.against}
    rows: list[dict[str, Any]] = []
    for run in comparison.runs:
        reference = references.get(run.seed)
        compared = run.method != comparison.against and run.top1 is not None and reference is not None
        rows.append(
            {
                "row": "run",
                **_named(run.method),
                "seed": run.seed,
                "top1": run.top1,
                "against": comparison.against if compared else None,
                "difference": run.top1 - reference if compared else None,  # type: ignore[operator]
                "top5": run.top5,
                "top1_kept": run.kept,
                "validation_top1": run.validation_top1,
                "seconds": run.seconds,
                "error": run.error,
            }
        )
    return rows
