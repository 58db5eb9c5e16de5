"""Write all tables and pictures of the study from its records; nothing in them is typed by hand.

    python studies/cifar10/report.py [--check]

With --check nothing is written; the exit code is 1 if something is not what the records say.
"""

import argparse
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from factor_transfer.cli.exit import ending
from factor_transfer.config.read import shipped
from pictures import curves, variants
from pieces import Place
from plan import HERE, STUDIES
from results import Results, results
from tables import TABLES, costs, headline

_BLOCK = re.compile(rf"(<!-- ({'|'.join(STUDIES)}) ({'|'.join(TABLES)}) -->\n).*?(<!-- end -->)", re.DOTALL)
_HEADER = re.compile(r"^# (Result|Cost): .*$", re.MULTILINE)


def written(places: Mapping[str, Place]) -> dict[Path, bytes]:
    """The files that the records make, or that have something of them.

    Args:
        places: of each study.

    Raises:
        InputError: a record is of something else than the study would write now.
    """
    found = {study: results(study, place) for study, place in places.items()}
    files: dict[Path, bytes] = {}
    for readme in (HERE / "README.md", HERE.parents[1] / "README.md"):
        text = readme.read_text(encoding="utf-8")
        files[readme] = _BLOCK.sub(lambda match: match[1] + _block(found[match[2]], match[3]) + match[4], text).encode()
    for study, pairs in found.items():
        for result in pairs:
            if not result.is_begun:
                continue
            recipe = shipped().get(result.pair.recipe, Path(result.pair.recipe))
            files[recipe] = _headed(recipe.read_text(encoding="utf-8"), result).encode()
            name = f"{study}-{result.pair.name}"
            files[HERE / f"{name}-curves.svg"] = curves(result)
            if result.pair.variants:
                files[HERE / f"{name}-variants.svg"] = variants(result)
    return files


def _headed(recipe: str, result: Results) -> str:
    """A recipe with figures in its first lines."""
    said = {"Result": headline(result), "Cost": costs(result)}
    return _HEADER.sub(lambda match: f"# {match[1]}: {said[match[1]]}", recipe, count=2)


def _block(pairs: list[Results], table: str) -> str:
    done = [result for result in pairs if result.is_begun and (table != "variants" or result.pair.variants)]
    if not done:
        return "\nNot run yet.\n\n"
    headings = [f"**{result.pair.name}**\n\n" if len(pairs) > 1 else "" for result in done]
    return "".join(f"\n{head}{TABLES[table](result)}\n" for head, result in zip(headings, done, strict=True))


def main() -> None:
    """Write them, or see that they are as they should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    changed = []
    with ending(debug=False):
        for path, content in written({study: Place(Path(), HERE / "records" / study) for study in STUDIES}).items():
            if not path.is_file() or path.read_bytes() != content:
                changed.append(path.name)
                if not check:
                    path.write_bytes(content)
    print(f"{'other than the records say' if check else 'written'}: {', '.join(changed)}" if changed else "up to date")
    sys.exit(check and bool(changed))


if __name__ == "__main__":
    main()
