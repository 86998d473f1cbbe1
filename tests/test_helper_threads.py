"""Where the engine's helper threads run: never on the processor that the calling thread is on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import pytest
from native_runs import subprocess_environment

linux_only = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system tells no thread's processors")
two_processors = pytest.mark.skipif(
    hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) < 2, reason="there is one processor only"
)

SCRIPT = """
    import json, os, sys, time
    import numpy as np
    import twolayer

    allowed = json.loads(sys.argv[1])
    os.sched_setaffinity(0, allowed)
    x = np.random.default_rng(0).standard_normal((640, 300), dtype=np.float32)
    y = np.arange(640) % 10
    threads = set(os.listdir("/proc/self/task"))

    def run(count):
        net = twolayer.NumpyNet(300, 100, 10, seed=0)
        twolayer.fit(net, x, y, epochs=3, threads=count)
        return [np.asarray(p).tobytes().hex() for p in net.parameters()]

    def helpers():
        started = set(os.listdir("/proc/self/task")) - threads
        return sorted(sorted(os.sched_getaffinity(int(helper))) for helper in started)

    same = run(2) == run(1)
    until = time.monotonic() + 20  # a new helper is placed once it has begun to run
    while helpers() == [allowed] and len(allowed) > 1 and time.monotonic() < until:
        run(2)
    print(json.dumps([same, helpers()]))
"""


def placed(allowed: list[int]) -> tuple[bool, list[list[int]]]:
    """Whether two threads gave the bits of one, and the processors of every thread that was started for it."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), json.dumps(allowed)],
        env=subprocess_environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    same, helpers = json.loads(done.stdout)
    return same, helpers


@linux_only
@two_processors
def test_a_helper_keeps_off_the_calling_threads_processor():
    allowed = sorted(os.sched_getaffinity(0))[:2]
    same, helpers = placed(allowed)
    assert same
    assert helpers in ([[allowed[0]]], [[allowed[1]]])


@linux_only
def test_where_there_is_one_processor_helpers_share_it():
    allowed = sorted(os.sched_getaffinity(0))[:1]
    same, helpers = placed(allowed)
    assert same
    assert helpers == [allowed]
