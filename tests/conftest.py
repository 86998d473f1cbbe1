"""What all tests stand on."""

import signal

import pytest


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_interrupts():
    """A shell ignores SIGINT in what it runs in the background, and so would the tests of Ctrl-C, in children too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
