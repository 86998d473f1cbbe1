"""What all tests stand on."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_interrupts():
    """A shell ignores SIGINT in what it runs in the background, and so would the tests of Ctrl-C, in children too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


# Where the tests of the CUDA path run.


@pytest.fixture
def gpu() -> str:
    """The device "cuda", where there is one."""
    from twolayer import _native

    module, reason = _native.cuda_state()
    if module is None:
        pytest.skip(f"no CUDA: {reason}")
    return "cuda"


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The device "cpu", whose tensors go the way of those on CUDA, to kernels that run as C++."""
    pytest.importorskip("pybind11", reason="building needs pybind11")
    pytest.importorskip("ninja", reason="building needs ninja")
    import emulated_module  # in tests/cuda, as the tests that want this
    import emulation

    if emulation.compiler() is None:
        pytest.skip("the emulation is written for g++")
    override = emulated_module.put_in_place(monkeypatch)
    yield "cpu"
    override._destroy()


@pytest.fixture(params=["cuda", "emulated"])
def device(request: pytest.FixtureRequest) -> str:
    """The device of a test's tensors: ``gpu``, then ``emulated``."""
    return request.getfixturevalue("gpu" if request.param == "cuda" else "emulated")
