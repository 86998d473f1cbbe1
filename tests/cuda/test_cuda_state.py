"""What ``info()`` and the first call on CUDA say where the library is not built, or cannot run here."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from native_runs import subprocess_environment

import twolayer
from twolayer import _native
from twolayer.registry import ACTIVATIONS

built = pytest.mark.skipif(
    importlib.util.find_spec("twolayer._cuda") is None, reason="_cuda was not built (no nvcc, or TWOLAYER_CUDA=0)"
)
OLD_DRIVER = "The NVIDIA driver on your system is too old (found version 11040).\nPlease update your GPU driver."


class System(SimpleNamespace):
    """A machine, as far as ``_native`` can tell; everything is in order unless a test changes it."""

    built: bool = True
    cuda: str | None = "13.0"
    why_no_gpu: str | None = None
    import_error: str | None = None
    driver_problem: str | None = None


@pytest.fixture
def system(monkeypatch):
    system = System()
    library = SimpleNamespace(driver_problem=lambda: system.driver_problem, __file__="_cuda.so")
    find, load = importlib.util.find_spec, importlib.import_module

    def find_spec(name, package=None):
        return (object() if system.built else None) if name == "._cuda" else find(name, package)

    def import_module(name, package=None):
        if name != "._cuda":
            return load(name, package)
        if system.import_error:
            raise ImportError(system.import_error)
        return library

    def init():
        raise RuntimeError(system.why_no_gpu)

    monkeypatch.delenv("TWOLAYER_DISABLE_NATIVE", raising=False)
    monkeypatch.setattr(_native, "_cuda_found", None)
    monkeypatch.setattr(_native, "_require_native", False)
    monkeypatch.setattr(_native, "_announced", set())
    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    monkeypatch.setattr(importlib, "import_module", import_module)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: system.why_no_gpu is None)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.version, "cuda", system.cuda)
    return system


def test_a_library_that_runs_is_loaded(system):
    assert twolayer.info()["native"]["_cuda"] == {"loaded": True, "reason": None, "path": "_cuda.so"}
    assert _native.get_cuda() is not None


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ({"built": False}, "it was not built; reinstall twolayer with TWOLAYER_CUDA=1 where nvcc is installed"),
        ({"cuda": None}, f"this torch, {torch.__version__}, is built without CUDA; install one that has it"),
        ({"why_no_gpu": "No CUDA GPUs are available"}, "torch can use no GPU: No CUDA GPUs are available"),
        ({"why_no_gpu": OLD_DRIVER}, f"torch can use no GPU: {OLD_DRIVER.partition(chr(10))[0]}"),
        ({"import_error": "libstdc++.so.6: version not found"}, "libstdc++.so.6: version not found (Python "),
        (
            {"driver_problem": "CUDA driver version is insufficient for CUDA runtime version"},
            "CUDA driver version is insufficient for CUDA runtime version; update the driver, or reinstall twolayer "
            "with an older nvcc",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_what_is_in_the_way_is_told(state, reason, system, monkeypatch, recwarn):
    vars(system).update(state)
    monkeypatch.setattr(torch.version, "cuda", system.cuda)
    found = twolayer.info()["native"]["_cuda"]
    assert (found["loaded"], found["path"]) == (False, None)
    assert found["reason"].startswith(reason)
    assert not [w for w in recwarn if w.category is RuntimeWarning]  # asking is no use of it

    assert _native.get_cuda() is _native.get_cuda() is None
    (warning,) = [w for w in recwarn if w.category is RuntimeWarning]
    assert str(warning.message).startswith(f"twolayer's CUDA library is not loaded: {reason}")
    assert str(warning.message).endswith("Its slower reference runs instead.")

    monkeypatch.setattr(_native, "_require_native", True)
    with pytest.raises(ImportError, match=r"^twolayer's CUDA library is not loaded: "):
        _native.get_cuda()


def test_a_disabled_library_is_told(system, monkeypatch):
    monkeypatch.setenv("TWOLAYER_DISABLE_NATIVE", "1")
    assert "unset it to load" in twolayer.info()["native"]["_cuda"]["reason"]


CHILD = """
import json, sys
import twolayer
from twolayer import _native
early = _native._cuda_found is None
state = twolayer.info()["native"]["_cuda"]
print(json.dumps({"early": early, "torch": "torch" in sys.modules, "state": state}))
"""


def test_it_is_looked_for_when_asked_for():
    run = subprocess.run(
        [sys.executable, "-c", CHILD], env=subprocess_environment(), capture_output=True, text=True, check=True
    )
    child = json.loads(run.stdout)
    assert child["early"]
    assert child["torch"] == (importlib.util.find_spec("twolayer._cuda") is not None)
    assert child["state"] == twolayer.info()["native"]["_cuda"]


@built
def test_the_module_is_imported_without_a_gpu_or_torch():
    code = (
        "import sys; from twolayer import _cuda;"
        "print(_cuda.version(), _cuda.driver_problem(), len(_cuda.activations()), 'torch' in sys.modules, sep='|')"
    )
    environment = subprocess_environment(CUDA_VISIBLE_DEVICES="")
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd="/")
    assert run.returncode == 0, run.stderr
    version, problem, activations, imported = run.stdout.strip().split("|")
    assert int(version.split(".")[0]) >= 12
    assert "CUDA of the driver: " in problem
    assert f"of this library: {version}" in problem
    assert (activations, imported) == (str(len(ACTIVATIONS)), "False")
