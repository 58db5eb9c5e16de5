"""What the README says works."""

import re

from conftest import ROOT

README = (ROOT / "README.md").read_text()


def test_the_example_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict[str, object] = {}
    exec(code, names)
    assert names["factor"]


def test_its_links_exist() -> None:
    links = {link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")}
    assert links
    for link in links:
        path, _, anchor = link.partition("#")
        text = (ROOT / path).read_text()
        headings = {
            re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in re.findall(r"^#+ (.*)", text, re.M)
        }
        assert not anchor or anchor in headings, link


def test_the_tree_names_every_module() -> None:
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    tree = contributing[contributing.index("## The tree") : contributing.index("## Adding things")]
    package = ROOT / "src" / "factor_transfer"
    modules = {path.stem for path in package.rglob("*.py") if not path.name.startswith("__")}
    assert [name for name in sorted(modules) if not re.search(rf"\b{name}\b", tree)] == []
    packages = {path.parent.name for path in package.rglob("__init__.py")}
    assert [name for name in sorted(packages - {"factor_transfer"}) if f"{name}/" not in tree] == []
