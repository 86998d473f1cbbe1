"""The documents: their Python runs, their links and paths lead somewhere, their numbers are those of the tests."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

import pytest
import test_elementary
from cases import BFLOAT16_COMPUTE_BOUND, BFLOAT16_ROUNDING_BOUND, BOUNDS, TRAINING_BOUNDS, name_of

ROOT = Path(__file__).resolve().parents[1]
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

# What a code block may be. Only "python" runs; "python fragment" is a piece of a file, which could not.
LANGUAGES = {"python", "python fragment", "cpp", "sh", "text"}


class Block(NamedTuple):
    language: str
    code: str
    line: int  # of the document, where the code begins, from 1


def code_blocks(document: Path) -> list[Block]:
    """All fenced code blocks, also those within lists, without their indentation."""
    blocks: list[Block] = []
    indentation, language, code, first = "", None, "", 0
    for number, line in enumerate(document.read_text(encoding="utf-8").splitlines(), start=1):
        fence = re.fullmatch(r"( *)```(.*)", line)
        if language is None:
            if fence:
                indentation, language, code, first = fence[1], fence[2].strip(), "", number + 1
        elif fence:
            blocks.append(Block(language, code, first))
            language = None
        else:
            code += line.removeprefix(indentation) + "\n"
    assert language is None, f"{document.name}: a code block is not closed"
    return blocks


def prose(document: Path) -> str:
    """The document without its code blocks."""
    return re.sub(r"^( *)```.*?^\1```$", "", document.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(document: Path) -> set[str]:
    """The headings as GitHub names them in links."""
    headings = re.findall(r"^#+ (.*)$", prose(document), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_document
def test_every_code_block_says_what_it_is(document: Path) -> None:
    assert {block.language for block in code_blocks(document)} <= LANGUAGES


WITH_PYTHON = [path for path in DOCUMENTS if any(block.language == "python" for block in code_blocks(path))]


@pytest.mark.parametrize("document", WITH_PYTHON, ids=lambda path: path.name)
def test_python_runs_from_top_to_bottom(document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": document.stem}
    for block in code_blocks(document):
        if block.language == "python":
            above = "\n" * (block.line - 1)  # so that a traceback names the document's line
            exec(compile(above + block.code, str(document), "exec"), namespace)


def test_the_documents_that_promise_python_have_it() -> None:
    assert {path.name for path in WITH_PYTHON} >= {"README.md", "README.zh.md", "engine.md", "numerics.md"}


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


def test_both_readmes_have_the_same_code_and_comparison() -> None:
    english, chinese = ([block[:2] for block in code_blocks(readme)] for readme in (README, README_ZH))
    assert len(english) > 3
    assert chinese == english
    sections = [
        re.findall(r"<!-- compare -->.*?<!-- /compare -->", readme.read_text(encoding="utf-8"), flags=re.DOTALL)
        for readme in (README, README_ZH)
    ]
    assert len(sections[0]) == 1
    assert sections[1] == sections[0]


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
