"""What all tests stand on."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

IN_SEVERAL_PROCESSES = "PYTEST_XDIST_WORKER" in os.environ


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_interrupts():
    """A shell ignores SIGINT in what it runs in the background, and so would the tests of Ctrl-C, in children too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that run alone come first, when nobody is in a long test that they would have to wait for."""
    items.sort(key=lambda item: item.get_closest_marker("alone") is None)


@contextlib.contextmanager
def locked(path: Path, exclusive: bool) -> Iterator[None]:
    import fcntl

    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        yield  # closing the file unlocks it


@pytest.fixture(autouse=True)
def in_turn(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing else is tested while a test marked ``alone`` runs, whatever the number of pytest's processes."""
    if not IN_SEVERAL_PROCESSES:
        yield
        return
    alone = request.node.get_closest_marker("alone") is not None
    shared = tmp_path_factory.getbasetemp().parent  # of all processes of this run
    with contextlib.ExitStack() as room:
        with locked(shared / "door", alone):  # held by who waits to be alone, so that nobody comes in before
            room.enter_context(locked(shared / "room", alone))
        yield


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


@pytest.fixture
def emulated_cuda() -> Any:
    """The module ``_cuda`` with kernels that run as C++, for tensors on the CPU."""
    pytest.importorskip("pybind11", reason="building needs pybind11")
    pytest.importorskip("ninja", reason="building needs ninja")
    import emulated_module
    import emulation

    if emulation.compiler() is None:
        pytest.skip("the emulation is written for g++")
    return emulated_module.load()


@pytest.fixture(params=["cuda", "emulated"])
def cuda_engine(request: pytest.FixtureRequest) -> Any:
    """``cuda_engine(dtype, config)``: a ``DeviceEngine`` on the GPU, then on the emulated device."""
    from device_engine import DeviceEngine

    from twolayer import _native

    if request.param == "emulated":
        return functools.partial(DeviceEngine, request.getfixturevalue("emulated_cuda"), "cpu")
    device = request.getfixturevalue("gpu")
    return functools.partial(DeviceEngine, _native.get_cuda(), device)
