"""The shell commands of docs/cli.md run, in turns with its Python, as a reader would type them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from native_runs import subprocess_environment
from test_docs import ROOT, blocks

for module in ("pandas", "pyarrow", "safetensors", "sklearn", "matplotlib", "tensorboard"):
    pytest.importorskip(module)

GUIDE = ROOT / "docs" / "cli.md"
FUNCTION = f'set -eo pipefail; twolayer() {{ "{sys.executable}" -m twolayer "$@"; }}\n'


def test_the_commands_run_and_print_what_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    printed = ""
    for block in blocks.code_blocks(GUIDE):
        if block.language.startswith("python"):  # fragments read what the commands wrote
            exec(compile(block.code, str(GUIDE), "exec"), namespace)
        if block.language == "sh":
            done = subprocess.run(
                ["bash", "-c", FUNCTION + block.code],
                env=subprocess_environment(),
                capture_output=True,
                encoding="utf-8",
                timeout=120,
            )
            assert (done.returncode, done.stderr) == (0, ""), block.code
            printed += done.stdout
    shown = next(block.code for block in blocks.code_blocks(GUIDE) if block.code.startswith("tumours.csv:"))
    for line in shown.splitlines():
        known = line.partition(" in ")[0] if " epochs in " in line else line.partition("accuracy")[0]
        assert known in printed
    for name in ("curve.png", "predictions.csv", "confusion.png", "pictures/learning_curve.png"):
        assert Path(name).exists()
