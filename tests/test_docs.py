"""The documents: their Python runs and prints what they show, links lead somewhere, numbers are those of the tests."""

from __future__ import annotations

import importlib
import io
import json
import os
import re
import sys
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import test_elementary
from cases import BFLOAT16_COMPUTE_BOUND, BFLOAT16_ROUNDING_BOUND, BOUNDS, TRAINING_BOUNDS, name_of

import twolayer
from twolayer.data import DatasetNotFoundError, digits_as_mnist

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "docs"))
blocks = importlib.import_module("blocks")

README, README_ZH = ROOT / "README.md", ROOT / "README.zh.md"
DOCUMENTS = [
    README,
    README_ZH,
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "examples/README.md",
    *sorted(ROOT.glob("docs/*.md")),
]
every_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)

# What a code block may be. Only "python" runs; "python fragment" is a piece of a file, which could not; "output" is
# what the block above it prints; those in braces say something to the site's builder.
LANGUAGES = {"python", "python fragment", "output", "cpp", "sh", "text", "{eval-rst}", "{include}", "{toctree}"}


def prose(document: Path) -> str:
    """The document without its code blocks."""
    return re.sub(r"^( *)```.*?^\1```$", "", document.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(document: Path) -> set[str]:
    """The headings as GitHub names them in links."""
    headings = re.findall(r"^#+ (.*)$", prose(document), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_document
def test_every_code_block_says_what_it_is(document: Path) -> None:
    assert {block.language.split(" ../")[0] for block in blocks.code_blocks(document)} <= LANGUAGES


WITH_PYTHON = [path for path in DOCUMENTS if any(block.language == "python" for block in blocks.code_blocks(path))]
TRANSLATIONS = {blocks.TUTORIAL_ZH: blocks.TUTORIAL, README_ZH: README}  # of the same code
PAGES = [path for path in WITH_PYTHON if path not in (*TRANSLATIONS, blocks.TUTORIAL)]


def assert_prints_what_it_shows(document: Path) -> None:
    for block, printed, shown in blocks.outputs(document):
        assert shown is None or blocks.is_output(printed, shown), f"{document.name}, line {block.line}: {printed}"


@pytest.mark.parametrize("document", PAGES, ids=lambda path: path.name)
def test_python_runs_from_top_to_bottom(document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert_prints_what_it_shows(document)


def test_the_documents_that_promise_python_have_it() -> None:
    names = {path.name for path in WITH_PYTHON}
    assert names >= {"README.md", "README.zh.md", "engine.md", "numerics.md", "tutorial.md", "tutorial.zh.md"}


def test_the_tutorial_prints_what_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        twolayer.load_mnist(download=False)
    except DatasetNotFoundError as error:
        pytest.skip(f"the outputs shown are those on MNIST: {error}")
    assert_prints_what_it_shows(blocks.TUTORIAL)


def test_the_tutorials_notebook_runs_on_other_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it prints of scikit-learn's digits in place of MNIST stands in a file; ``UPDATE=1`` writes that."""
    digits = digits_as_mnist()
    arrays = {part: getattr(digits, part) for part in ("x_train", "y_train", "x_test", "y_test")}
    np.savez(tmp_path / "mnist.npz", **arrays)
    monkeypatch.setenv("TWOLAYER_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__main__"}
    printed = io.StringIO()
    with redirect_stdout(printed):
        for cell in json.loads(blocks.NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "code":
                exec("".join(cell["source"]), namespace)
    expected = ROOT / "tests" / "tutorial_on_digits.txt"
    if os.environ.get("UPDATE"):
        expected.write_text(printed.getvalue(), encoding="utf-8")
    assert blocks.is_output(printed.getvalue(), expected.read_text(encoding="utf-8")), printed.getvalue()


def test_the_tutorials_notebook_is_its_page() -> None:
    assert blocks.NOTEBOOK.read_text(encoding="utf-8") == blocks.notebook(blocks.TUTORIAL), "run: python docs/blocks.py"


@pytest.mark.parametrize(
    ("printed", "shown", "same"),
    [
        ("loss 0.8386\n", "loss 0.8387\n", True),
        ("loss 0.8386\n", "loss 0.8389\n", False),
        ("loss 2.3e-05", "loss 2.2e-05", True),
        ("loss 2.3e-05", "loss 2.0e-05", False),
        ("60,000 rows", "60,000 rows", True),
        ("60,001 rows", "60,000 rows", False),
        ("12 µs", "450 µs", True),
        ("12 rows", "450 rows", False),
        ("loss nan", "loss 0.1", False),
        ("a 7", "an 7", False),
        ("1 2", "1", False),
        ("", "1", False),
    ],
)
def test_output_is_compared_within_its_digits(printed: str, shown: str, same: bool) -> None:
    assert blocks.is_output(printed, shown) == same


@every_document
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(document)):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        linked = document.parent / path if path else document
        assert linked.exists(), f"{target} does not exist"
        assert not anchor or anchor in anchors(linked), f"{linked.name} has no heading {anchor}"


@every_document
def test_paths_named_exist(document: Path) -> None:
    named = re.findall(r"`((?:csrc|twolayer|tests|docs|benchmarks|\.ci)/[^`\s]*)`", prose(document))
    missing = [path for path in named if not list(ROOT.glob(path.rstrip("/")))]
    new = {"csrc/cpu/simd/sse4.h", "csrc/cpu/isa_sse4.cpp"}  # what CONTRIBUTING has one write
    assert set(missing) <= new


@pytest.mark.parametrize("translation", TRANSLATIONS, ids=lambda path: path.name)
def test_a_translation_has_the_same_code_and_outputs(translation: Path) -> None:
    pages = (TRANSLATIONS[translation], translation)
    original, translated = ([block[:2] for block in blocks.code_blocks(page)] for page in pages)
    assert len(original) > 3
    assert translated == original


def test_both_readmes_have_the_same_comparison() -> None:
    sections = [
        re.findall(r"<!-- compare -->.*?<!-- /compare -->", readme.read_text(encoding="utf-8"), flags=re.DOTALL)
        for readme in (README, README_ZH)
    ]
    assert len(sections[0]) == 1
    assert sections[1] == sections[0]


# The site


def test_every_public_name_is_in_the_reference() -> None:
    reference = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    described = set(re.findall(r"^\.\. (?:auto|py:)\w+:: twolayer\.(\w+)$", reference, flags=re.MULTILINE))
    assert set(twolayer.__all__) - described == set(), "write them into docs/api.md"


def test_the_figures_are_those_of_the_committed_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import tables

    found = json.loads(tables.RESULTS.read_text(encoding="utf-8"))
    assert not found["quick"]
    for name, marks in {"README.md": 1, "README.zh.md": 1, "docs/performance.md": 2}.items():
        document = (ROOT / name).read_text(encoding="utf-8")
        assert len(re.findall(r"<!-- /bench", document)) == marks
        assert tables.with_sections(document, found) == document, "run: python benchmarks/tables.py"


def test_bounds_are_those_of_the_tests() -> None:
    numerics = prose(ROOT / "docs/numerics.md")
    for function, (single, double) in test_elementary.BOUNDS.items():
        assert f"\n| {function} | {single} | {double} |\n" in numerics
    for dtype, bound in BOUNDS.items():
        training = f" {TRAINING_BOUNDS[dtype]:.0e} " if dtype in TRAINING_BOUNDS else " "
        assert f"\n| {name_of(dtype)} | {bound} eps |{training}|\n" in numerics
    assert f"is held to {BFLOAT16_ROUNDING_BOUND:.0e} against" in numerics
    assert f"to {BFLOAT16_COMPUTE_BOUND:.0e} against the exact run" in numerics
