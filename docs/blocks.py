"""The code blocks of a page: run, their output compared or written back, and the page as a notebook.

``python docs/blocks.py`` runs all pages, the tutorial on MNIST, writes what they print into them, and the notebook.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

DOCS = Path(__file__).resolve().parent
TUTORIAL, TUTORIAL_ZH, NOTEBOOK = DOCS / "tutorial.md", DOCS / "tutorial.zh.md", DOCS / "tutorial.ipynb"

NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?(?!\w)")
MEASURED = re.compile(r" (?:s|ms|µs|times)\b")  # after a number that is another one in every run


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
    if language is not None:
        raise ValueError(f"{document.name}: a code block is not closed")
    return blocks


def outputs(document: Path) -> Iterator[tuple[Block, str, str | None]]:
    """Run the Python blocks from top to bottom; give each, what it printed, and the output block after it, if any."""
    namespace: dict[str, Any] = {"__name__": document.stem}
    blocks = code_blocks(document)
    for block, following in itertools.zip_longest(blocks, blocks[1:]):
        if block.language != "python":
            continue
        above = "\n" * (block.line - 1)  # so that a traceback names the document's line
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(above + block.code, str(document), "exec"), namespace)
        shown = following.code if following and following.language == "output" else None
        yield block, printed.getvalue(), shown


def is_output(printed: str, shown: str) -> bool:
    """Whether both say the same: words alike, numbers within two of the last digit shown, measured times at all."""
    words, others = NUMBER.split(shown), NUMBER.split(printed)
    numbers, found = NUMBER.findall(shown), NUMBER.findall(printed)
    if len(numbers) != len(found) or [w.split() for w in words] != [w.split() for w in others]:
        return False
    after = words[1:]
    return all(
        MEASURED.match(rest) or abs(_value(number) - _value(other)) <= 2 * _last_digit(number) * (1 + 1e-9)
        for number, other, rest in zip(numbers, found, after, strict=True)
    )


def _value(number: str) -> float:
    return float(number.replace(",", ""))


def _last_digit(number: str) -> float:
    """What one more in the last place of ``number`` is; 0 for an integer, which is exact."""
    mantissa, _, exponent = number.partition("e")
    decimals = len(mantissa.partition(".")[2])
    return 10.0 ** (int(exponent or 0) - decimals) if decimals or exponent else 0.0


def with_outputs(text: str, printed: list[str]) -> str:
    """The page's text with the contents of its output blocks replaced, in order."""
    replacements = iter(printed)
    pattern = r"(^```output\n).*?(^```$)"
    return re.sub(pattern, lambda match: match[1] + next(replacements) + match[2], text, flags=re.DOTALL | re.MULTILINE)


def notebook(document: Path) -> str:
    """The page as a Jupyter notebook, in JSON: text, code, and the outputs that the page shows."""
    cells: list[dict[str, Any]] = []
    pieces = re.split(r"^```(python|output)\n(.*?)^```$", document.read_text(encoding="utf-8"), flags=re.DOTALL | re.M)
    texts, kinds, codes = pieces[0::3], pieces[1::3], pieces[2::3]
    for text, kind, code in zip(texts, ["", *kinds], ["", *codes], strict=True):
        if kind == "python":
            cells.append(_cell("code", code, execution_count=None, outputs=[]))
        elif kind == "output":
            cells[-1]["outputs"] = [{"name": "stdout", "output_type": "stream", "text": code.splitlines(keepends=True)}]
        if text.strip():
            cells.append(_cell("markdown", text))
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    whole = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, ensure_ascii=False, indent=1, sort_keys=True) + "\n"


def _cell(kind: str, source: str, **more: Any) -> dict[str, Any]:
    return {"cell_type": kind, "metadata": {}, "source": source.strip("\n").splitlines(keepends=True), **more}


def main() -> None:
    pages = [page for page in sorted({*DOCS.glob("*.md")} - {TUTORIAL_ZH}) if "```output" in page.read_text("utf-8")]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # for the files that pages write
        for page in pages:
            printed = [text for _, text, shown in outputs(page) if shown is not None]
            for written in (TUTORIAL, TUTORIAL_ZH) if page == TUTORIAL else (page,):
                written.write_text(with_outputs(written.read_text(encoding="utf-8"), printed), encoding="utf-8")
        os.chdir(DOCS)
    NOTEBOOK.write_text(notebook(TUTORIAL), encoding="utf-8")


if __name__ == "__main__":
    main()
