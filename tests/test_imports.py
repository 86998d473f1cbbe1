"""What is imported, and when: nothing heavy with the package, and nothing more by a first training."""

from __future__ import annotations

import functools
import subprocess
import sys

import pytest
from native_runs import subprocess_environment

FIRST_USE = """
import sys
import numpy as np
ours = set(sys.modules)
import twolayer
fit, net = twolayer.fit, twolayer.NumpyNet(9, 20, 5)
imported = set(sys.modules)
fit(net, np.ones((30, 9), np.float32), np.arange(30) % 5)
net.predictor()(np.ones(9))
print(*sorted(imported - ours))
print(*sorted(set(sys.modules) - imported))
"""


@functools.cache
def modules_of_first_use():
    """What looking up ``fit`` and making a net imports, and what training and predicting then import besides."""
    run = subprocess.run(
        [sys.executable, "-c", FIRST_USE],
        env=subprocess_environment(),
        cwd="/",
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    return [line.split() for line in run.stdout.split("\n")[:2]]


@pytest.mark.parametrize(
    "heavy", ["torch", "scipy", "sklearn", "matplotlib", "rich", "importlib.metadata", "difflib", "email", "asyncio"]
)
def test_import_brings_nothing_heavy(heavy):
    imported, _ = modules_of_first_use()
    assert "twolayer.training.session" in imported
    assert heavy not in imported


def test_a_first_training_imports_nothing():
    assert modules_of_first_use()[1] == []
