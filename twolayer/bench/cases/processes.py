"""What only a process can be asked: time while another is busy, memory, import."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from ..contest import Contest
from ..document import CaseResult, Row
from .training import DENSE


def busy(contest: Contest, result: CaseResult, quick: bool) -> None:
    """One thread and two, without and with a process that spins on one core."""
    if not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2 or len(contest.thread_counts) < 2:
        result.judge("busy", None, "it takes two cores whose use can be told")
        return
    contenders = contest.contenders(result, "twolayer.fit")
    contest.run(result, DENSE, contenders, cell={"other process": "none"})
    with _spinning():
        contest.run(result, DENSE, contenders, cell={"other process": "spins"})
    cell = {"other process": "spins"}
    one, two = (result.best("twolayer.fit", **cell, threads=threads) for threads in (1, 2))
    ratio = two.us / one.us if one and two and one.us and two.us else None
    result.judge("busy", ratio, "both while the other spins")


@contextlib.contextmanager
def _spinning() -> Iterator[None]:
    """A process that spins, on the last of two cores, which are all that this process and its workers may use."""
    core = max(os.sched_getaffinity(0))
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        os.sched_setaffinity(process.pid, {core})
        yield
    finally:
        process.kill()
        process.wait()


_MEMORY = """
import json, os, re
import numpy as np
import twolayer

def status(field):
    with open("/proc/self/status") as file:
        return int(re.search(field + r":\\s+(\\d+)", file.read()).group(1)) * 1024

net = twolayer.NumpyNet(1, 1, 1)
twolayer.fit(net, np.zeros((2, 1), np.float32), np.zeros((2, 1), np.float32), loss="mse")  # loads the code
draw = np.random.default_rng(0)
x, y = draw.integers(0, 256, (60_000, 784), dtype=np.{dtype}), draw.integers(0, 10, 60_000)
net = twolayer.NumpyNet(784, {hidden}, 10)
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak so far is forgotten
before = status("VmRSS")
twolayer.fit(net, x, y, batch_size={batch}, input_scale=1 / 255, optimizer="{optimizer}")
print(json.dumps(status("VmHWM") - before))
"""


def memory(contest: Contest, result: CaseResult, quick: bool) -> None:
    """The peak of a process's memory in ``fit`` less what it had before, on 60,000 rows of 784 bytes."""
    needed = []
    for hidden, batch, optimizer in ((100, 64, "sgd"), (100, 4096, "sgd"), (1024, 64, "adam"), (1024, 4096, "sgd")):
        program = _MEMORY
        for name, value in {"dtype": "uint8", "hidden": hidden, "batch": batch, "optimizer": optimizer}.items():
            program = program.replace(f"{{{name}}}", str(value))
        cell = {"hidden": hidden, "batch": batch, "optimizer": optimizer}
        row = Row(cell, "twolayer.fit", max(contest.thread_counts))
        try:
            needed.append((_output(program) / 1e6, f"784-{hidden}-10, batch {batch}, {optimizer}"))
            row.cell["MB"] = round(needed[-1][0], 1)
        except subprocess.CalledProcessError as error:
            row.error = (error.stderr.strip().splitlines() or ["failed"])[-1]
        result.rows.append(row)
    pinned = [figure for figure in needed if figure[1].startswith("784-100-10")]
    result.judge("memory", *max(pinned, default=(None, "not measured")))


_IMPORT = """
import json, time
import numpy
started = time.perf_counter()
import twolayer
twolayer.NumpyNet
imported = time.perf_counter() - started
x, y = numpy.random.default_rng(0).standard_normal((1000, 20)).astype("f"), numpy.zeros(1000, int)
seconds = []
for _ in range(5):
    net = twolayer.NumpyNet(20, 64, 3)
    started = time.perf_counter()
    twolayer.fit(net, x, y, epochs=20)
    seconds.append(time.perf_counter() - started)
print(json.dumps([imported, seconds[0], sorted(seconds[1:])[2]]))
"""


def startup(contest: Contest, result: CaseResult, quick: bool) -> None:
    """Importing twolayer after NumPy, and the first fit of 320 steps of a small net, each in new processes."""
    with tempfile.TemporaryDirectory() as folder:  # for the bytecode, which an installed package comes with
        compiled = {"PYTHONPYCACHEPREFIX": folder, "PYTHONDONTWRITEBYTECODE": ""}
        _output(_IMPORT, **compiled)
        found = [_output(_IMPORT, **compiled) for _ in range(3 if quick else 9)]
    threads = max(contest.thread_counts)
    for name, values in zip(("import", "first fit", "later fits"), zip(*found, strict=True), strict=True):
        middle = 1e6 * statistics.median(values)
        result.rows.append(
            Row({"what": name}, "twolayer", threads, middle, 1e6 * min(values), 1e6 * max(values), len(values))
        )
    imported, first, later = (row.us or 0.0 for row in result.rows)
    result.judge("import", imported / 1000, "import twolayer, twolayer.NumpyNet")
    result.judge("first-fit", first / later, f"{first / 1000:.1f} ms over {later / 1000:.1f} ms")


def _output(program: str, **variables: str) -> Any:
    """What a new process with these environment variables prints, as JSON."""
    environment = {**os.environ, **variables, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, encoding="utf-8", check=True
    )
    return json.loads(done.stdout)
