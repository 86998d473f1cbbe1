"""Where the tests of the CUDA path run."""

from __future__ import annotations

from collections.abc import Iterator

import emulated_module
import emulation
import pytest

from twolayer import _native


@pytest.fixture
def gpu() -> str:
    """The device "cuda", where there is one."""
    module, reason = _native.cuda_state()
    if module is None:
        pytest.skip(f"no CUDA: {reason}")
    return "cuda"


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The device "cpu", whose tensors go the way of those on CUDA, to kernels that run as C++."""
    if emulation.compiler() is None:
        pytest.skip("emulation needs g++")
    pytest.importorskip("pybind11", reason="building needs pybind11")
    pytest.importorskip("ninja", reason="building needs ninja")
    override = emulated_module.put_in_place(monkeypatch)
    yield "cpu"
    override._destroy()


@pytest.fixture(params=["cuda", "emulated"])
def device(request: pytest.FixtureRequest) -> str:
    """The device of a test's tensors: ``gpu``, then ``emulated``."""
    return request.getfixturevalue("gpu" if request.param == "cuda" else "emulated")
