"""The examples run, say what they gain, and hold themselves to the quality of plain PyTorch."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = ["probe", "tabular", "policy", "sweep", "coordinates"]


def printed(name, monkeypatch, capsys, *options):
    """What the example prints in its quick run."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"](["--quick", *options])
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_example_runs_and_both_ways_learn_the_same(name, monkeypatch, capsys, tmp_path):
    options = ["--save", str(tmp_path / "drawn.png")] if name == "coordinates" else []
    lines = printed(name, monkeypatch, capsys, *options)
    ways = [line for line in lines if re.search(r"\d s +[\d.]+ ×$", line)]
    assert len(ways) % 2 == 0 and len(ways) >= 2
    for plain, ours in zip(ways[::2], ways[1::2], strict=True):
        assert plain.startswith("  plain PyTorch") and plain.endswith(" 1.0 ×")
        assert ours.startswith("  twolayer")
    if options:
        assert (tmp_path / "drawn.png").read_bytes().startswith(b"\x89PNG")


def test_every_example_is_described_and_run():
    described = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == {*SCRIPTS, "plain", "ddp"}
    assert all(f"{name}.py" in described for name in names)
