"""The site's configuration: ``make docs``. Nothing is fetched from the network."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from twolayer import __version__

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "twolayer"
author = "twolayer contributors"
copyright = author
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 3
suppress_warnings = ["misc.highlighting_failure"]  # of fragments of files, with "…" for what is left out

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say them, with shapes
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = f"twolayer {release}"
html_theme_options = {"navigation_with_keys": True}
html_show_sphinx = False


INCLUDED = {
    "../CONTRIBUTING.md": "contributing.md",
    "../CHANGELOG.md": "changelog.md",
    "../benchmarks/README.md": "benchmarks.md",
    "../examples/README.md": "examples.md",
    "../benchmarks/results/bench.md": "results.md",
    "../benchmarks/results/avx2/bench.md": "results-avx2.md",
    "../benchmarks/results/zen5/bench.md": "results-zen5.md",
    "../benchmarks/results/gpu-h200.md": "results-gpu-h200.md",
    "../benchmarks/results/gpu-h200-fit.md": "results-gpu-h200-fit.md",
    "../benchmarks/results/gpu-h200-sweep.md": "results-gpu-h200-sweep.md",
}


def lead_to_pages(app: Sphinx, page: str, source: list[str]) -> None:
    """Links to files outside this folder lead to the pages that include them."""
    for file, included in INCLUDED.items():
        source[0] = source[0].replace(f"]({file}", f"]({included}")


def add_how_to_pages(app: Sphinx, page: str, source: list[str]) -> None:
    """Where the index says HOW-TO stands every page that it does not name itself."""
    if page == "index":
        named = set(re.findall(r"^(?:.* <)?([\w.-]+)>?$", source[0], flags=re.MULTILINE))
        rest = sorted(app.env.found_docs - named - {page})
        source[0] = source[0].replace("HOW-TO", "\n".join(rest))


def setup(app: Sphinx) -> None:
    app.connect("source-read", lead_to_pages)
    app.connect("source-read", add_how_to_pages)
