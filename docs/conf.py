"""The documentation as a site, built by Sphinx: ``make docs``."""

import os
import sys
from pathlib import Path

from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent))

import made

from factor_transfer.versions import __version__

project = "factor-transfer"
author = "the authors of factor-transfer"
copyright = author
release = version = __version__

# Notebooks use one thread: their figures are then the same on any number of processors, and none is waited for.
os.environ["OMP_NUM_THREADS"] = "1"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_build"]
templates_path: list[str] = []

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_use_ivar = True
highlight_language = "none"  # commands and output, where a block names no language
copybutton_exclude = ".linenos, .gp, .go"
# Types of libraries: their inventories are on the internet, which a build does not need.
nitpick_ignore = [("py:exc", "InputError"), ("py:class", "factor_transfer.methods.terms.reviewkd.Fusion")]
nitpick_ignore_regex = [
    ("py:.*", r"(torch|nn|F|collections|typing|annotated_types|pathlib)\..*"),
    ("py:.*", r"(Tensor|Module|Path|Any|Self|Mapping|Sequence|Iterator|Callable|Ge|Gt|Le|Lt)"),
]

html_theme = "furo"
html_title = "factor-transfer"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#1f6f5c", "color-brand-content": "#1f6f5c"},
    "dark_css_variables": {"color-brand-primary": "#7fd1b9", "color-brand-content": "#7fd1b9"},
}


def setup(app: Sphinx) -> None:
    """Fill the places of the pages that are made from the code."""
    app.connect("source-read", made.fill)
    app.connect("env-get-outdated", made.outdated)
    app.connect("autodoc-process-docstring", _without_type, priority=400)  # before napoleon's


def _without_type(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Keep napoleon from taking the words before a colon, in the first line about a property, for a type."""
    if what == "property" and lines:
        lines[0] = lines[0].replace(": ", " – ", 1)
