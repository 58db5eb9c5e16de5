"""The tables and pictures of the study, made from its records alone: the same bytes for the same records."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from factor_transfer.commands.compare import pairwise, summarize
from factor_transfer.files import read_json
from factor_transfer.report.confidence import Estimate, as_estimate, estimate
from factor_transfer.report.html.tables import p_value
from factor_transfer.report.names import name_of
from factor_transfer.report.plot import picture
from factor_transfer.training.log import duration

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

PAGES = HERE / "README.md", ROOT / "README.md", ROOT / "docs" / "results.md"

Record = Mapping[str, Any]

_BLOCK = re.compile(r"(<!-- study (\w+) (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_METHODS = ("student", "kd", "fitnets", "at", "factor", "factor+kd", "at+kd")


def read_records(folder: Path) -> dict[str, Record]:
    """All records, by the name of their piece."""
    found = {
        path.relative_to(folder).with_suffix("").as_posix(): read_json(path) for path in sorted(folder.rglob("*.json"))
    }
    return dict(sorted(found.items()))


def write_report(records: Path = HERE / "records", pages: Iterable[Path] = PAGES) -> list[Path]:
    """Write the tables into the files that have a place for them, and the pictures beside this one.

    Returns:
        The files that have changed.
    """
    changed = []
    for path, content in made_from(read_records(records), pages).items():
        if not path.is_file() or path.read_bytes() != content:
            path.write_bytes(content)
            changed.append(path)
    return changed


def made_from(records: Mapping[str, Record], pages: Iterable[Path]) -> dict[Path, bytes]:
    """The content of all files that are made from the records."""
    made: dict[Path, bytes] = {}
    for path in pages:
        text = path.read_text(encoding="utf-8")
        made[path] = _BLOCK.sub(lambda m: f"{m[1]}\n{TABLES[m[3]](records, m[2])}\n{m[4]}", text).encode()
    for group in ("short", "small", "authors"):
        if any(record.get("method") for record in _of(records, group)):
            made[HERE / f"{group}-curves.svg"] = _curves(records, group)
    return made


def _of(records: Mapping[str, Record], group: str) -> list[Record]:
    return [record for name, record in records.items() if name.startswith(f"{group}/")]


def _runs(records: Mapping[str, Record], group: str, split: str = "test") -> list[dict[str, Any]]:
    """The students of a group that were trained by its recipe as it is, as ``summarize`` takes them."""
    found = [record for record in _of(records, group) if record.get("method") and not record["setting"]]
    return [
        {
            "method": record["method"],
            "seed": record["seed"],
            "top1": record.get(split, {}).get("top1"),
            "top5": record.get(split, {}).get("top5"),
            "seconds": record.get("seconds", 0.0),
        }
        for record in found
    ]


def _methods(records: Mapping[str, Record], group: str) -> str:
    runs, teacher = _runs(records, group), records.get(f"{group}/teacher")
    methods = [method for method in _METHODS if any(run["method"] == method for run in runs)]
    if "student" not in methods or teacher is None:
        return "Not run yet.\n"
    lines = [["teacher", f"{teacher['test']['top1']:.2f}", f"{teacher['test']['top5']:.2f}", "", "", "", ""]]
    summary = summarize(runs, methods, teacher["test"]["top1"])
    for method, figures in summary.items():
        good = [run for run in runs if run["method"] == method and run["top1"] is not None]
        failed = f" ({figures['failed']} diverged)" if figures["failed"] else ""
        closed, p = figures["gap_closed"], figures["p_holm"]
        lines.append(
            [
                name_of(method),
                _cell(as_estimate(figures, "mean")),
                f"{mean(run['top5'] for run in good):.2f}" if good else "",
                _signed(as_estimate(figures, "difference"), bool(figures["significant"])),
                "" if p is None else p_value(p).removeprefix("= "),
                "" if closed is None else f"{closed:.0%}",
                f"{len(good)}{failed}",
            ]
        )
    head = ["", "top-1 %", "top-5 %", "difference from alone", "p (Holm)", "gap closed", "seeds"]
    note = (
        "10,000 test images, after the last epoch; mean ± 95 % interval over the seeds. Differences are paired by "
        "seed; bold where p, corrected for all rows, is below 0.05."
    )
    return _table(head, lines, note)


def _differences(records: Mapping[str, Record], group: str) -> str:
    runs = _runs(records, group)
    methods = [method for method in _METHODS if any(run["method"] == method for run in runs)]
    rivals = [method for method in ("kd", "fitnets", "at", "at+kd", "factor") if method in methods]
    factors = [method for method in methods if "factor" in method]
    if not rivals or not factors:
        return "Not run yet.\n"
    matrix = pairwise(runs, methods)
    lines = [
        [name_of(method), *(_pair(matrix[method][rival]) if method != rival else "" for rival in rivals)]
        for method in factors
    ]
    note = "Top-1 points on the test images, paired by seed, with 95 % intervals; in brackets p, corrected (Holm)."
    return _table(["", *(f"against {name_of(rival)}" for rival in rivals)], lines, note)


def _pair(figures: Mapping[str, Any]) -> str:
    if figures["difference"] is None:
        return ""
    p = figures["p_holm"]
    said = _signed(Estimate(figures["difference"], figures["interval"]), p is not None and p < 0.05)
    return said if p is None else f"{said} ({p_value(p).removeprefix('= ')})"


def _settings(records: Mapping[str, Record], group: str) -> str:
    """Settings of Factor Transfer against the recipe, on validation images; on test images if all saw them."""
    base_group = "short" if group == "shortlevers" else "small"
    varied = [record for record in _of(records, group) if record["setting"] and record.get("method")]
    if not varied:
        return "Not run yet.\n"
    split = "test" if any("test" in record for record in varied) else "validation"
    base = {run["seed"]: run["top1"] for run in _runs(records, base_group, split) if run["method"] == "factor"}
    lines = [["the recipe", _mean(base), "", _error(records.get(f"{base_group}/paraphraser", {})), str(len(base))]]
    for setting in dict.fromkeys(record["setting"] for record in varied):
        own = [record for record in varied if record["setting"] == setting]
        reached = {record["seed"]: record[split]["top1"] for record in own if split in record}
        both = sorted(reached.keys() & {seed for seed, value in base.items() if value is not None})
        difference = estimate([reached[seed] - base[seed] for seed in both]) if both else None
        # Where features are transferred as they are, the paraphraser that the recipe trains is not used.
        used = own[0].get("paraphraser") and "transfer.factor.paraphrase=false" not in own[0]["settings"]
        error = _error({"validation": own[0]["paraphraser"]}) if used else ""
        diverged = len(own) - len(reached)
        seeds = f"{len(reached)}" + (f" ({diverged} diverged)" if diverged else "")
        lines.append([setting, _mean(reached), _signed(difference), error, seeds])
    head = ["", f"{split} top-1 %", "difference", "reconstruction's relative error", "seeds"]
    note = (
        "Factor Transfer, mean ± 95 % interval over the seeds, paired; bold where the interval, which is "
        "not corrected for the number of settings, excludes zero."
    )
    return _table(head, lines, note)


def _cost(records: Mapping[str, Record], group: str) -> str:
    found = [record for record in _of(records, group) if "seconds" in record]
    if not found:
        return "Not run yet.\n"
    machines = sorted({f"{_device(record)}, {record.get('precision', '32-true')}" for record in found})
    versions = sorted({record["versions"]["torch"] for record in found})
    took = duration(sum(record["seconds"] for record in found))
    return f"{took} of training (h:mm:ss) on {'; '.join(machines)}; torch {', '.join(versions)}.\n"


def _device(record: Record) -> str:
    return str(record.get("device") or record["machine"]["processor"])


def _mean(values: Mapping[int, float | None]) -> str:
    good = [value for value in values.values() if value is not None]
    return f"{estimate(good):.2f}" if good else "diverged"


def _error(record: Record) -> str:
    error = record.get("validation", {}).get("relative_error")
    return "" if error is None else f"{error:.3f}"


def _cell(value: Estimate | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _signed(difference: Estimate | None, bold: bool | None = None) -> str:
    if difference is None:
        return ""
    return f"**{difference:+.2f}**" if (difference.significant if bold is None else bold) else f"{difference:+.2f}"


def _table(head: Sequence[str], lines: Sequence[Sequence[str]], note: str) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join([*(f"| {' | '.join(row)} |" for row in rows), "", note, ""])


def _networks(records: Mapping[str, Record], group: str) -> str:
    """The networks of the zoo, with links to their files from a page in ``docs``."""
    lines = []
    for name, entry in read_json(ROOT / "zoo" / "zoo.json").items():
        if entry["top1"] is not None:
            folder = f"../zoo/{name}".replace("+", "%2B")
            files = f"[weights]({folder}/weights.safetensors), [log]({folder}/metrics.jsonl)"
            if not (ROOT / "zoo" / name).is_dir():
                files = f"too large; `{entry['command']}`"
            figures = [f"{entry[key]:.2f}" for key in ("top1", "top5")]
            recipe = f"[recipe](../{entry['recipe']})"
            lines.append([entry["data"], f"`{name}`", entry["network"], *figures, recipe, files])
    head = ["data set", "name", "network", "top-1 %", "top-5 %", "recipe", "files"]
    return _table(head, lines, "On the 10,000 test images.")


TABLES = {"networks": _networks, "methods": _methods, "differences": _differences, "settings": _settings, "cost": _cost}


def _curves(records: Mapping[str, Record], group: str) -> bytes:
    """Top-1 on validation images after each epoch, the mean over seeds, as SVG."""
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    students = [record for record in _of(records, group) if record.get("method") and not record["setting"]]
    for method in _METHODS:
        curves = [record["curve"] for record in students if record["method"] == method and "curve" in record]
        if curves:
            epochs = [line["epoch"] for line in curves[0]]
            means = [mean(curve[i]["validation_top1"] for curve in curves) for i in range(len(epochs))]
            axes.plot(epochs, means, "--" if method == "student" else "-", label=name_of(method), linewidth=1.2)
    teacher = records.get(f"{group}/teacher")
    if teacher is not None:
        axes.axhline(teacher["validation"]["top1"], color="0.5", linestyle=":", label="teacher")
    axes.set_xlabel("epoch")
    axes.set_ylabel("top-1 % on validation images, mean over seeds")
    axes.legend(frameon=False, fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return picture(figure, ".svg")
