"""The machine's limits, measured in the same run: multiply-adds by instruction set, and reading by cache level."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .. import _native
from .workloads import Workload

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
MEMORY_BYTES = 256 << 20  # of a thread, where no cache is larger
SHARED_CACHE_BYTES = 16 << 20  # read from the last level, of which this process may have but a part


def measure(thread_counts: list[int], seconds: float = 0.1) -> dict[str, Any]:
    """``gflops`` by instruction set, dtype and threads; ``reads``, gigabytes a second by level.

    Each figure is measured for about ``seconds`` seconds, memory's for longer. Empty where the native library is not
    loaded.
    """
    core = _native.core
    if core is None:
        return {"isa": None, "gflops": {}, "reads": []}
    gflops: dict[str, dict[str, dict[str, float]]] = {}
    for isa in core.isas_available():
        gflops[isa] = {}
        for dtype in ("float32", "float64", "bfloat16"):
            try:
                gflops[isa][dtype] = {
                    str(threads): core.multiply_add_gflops(isa, dtype, threads, seconds) for threads in thread_counts
                }
            except ValueError:  # does not multiply bfloat16
                continue
    reads = [
        {
            "level": level,
            "bytes": size,
            "holds": holds,
            "gigabytes": {
                str(threads): core.read_gigabytes(core.isa(), size, threads, seconds) for threads in thread_counts
            },
        }
        for level, size, holds in _levels()
    ]
    return {"isa": core.isa(), "gflops": gflops, "reads": reads}


def _levels() -> list[tuple[str, int, int]]:
    """Each level's name, the bytes to read of it per thread, and how many it holds."""
    sizes = _cache_sizes()
    levels = [(f"L{level}", size // 2, size) for level, size in sorted(sizes.items()) if level < 3]
    if 3 in sizes:
        levels.append(("L3", max(min(sizes[3] // 2, SHARED_CACHE_BYTES), 2 * sizes.get(2, 0)), sizes[3]))
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    memory = min(max(MEMORY_BYTES, 2 * max(sizes.values(), default=0)), physical // 16)
    return [*levels, ("memory", memory, physical)]


def _cache_sizes() -> dict[int, int]:
    """Bytes of data by cache level; empty where the system does not tell."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    sizes = {}
    for cache in CACHES.glob("index*"):
        if (cache / "type").read_text().strip() != "Instruction":
            text = (cache / "size").read_text().strip()
            sizes[int((cache / "level").read_text())] = int(text[:-1]) * units[text[-1]]
    return sizes


def seconds_at_limit(
    limits: dict[str, Any], workload: Workload, precision: str, threads: int, density: float = 1.0
) -> float | None:
    """The shortest time that a step could take by these limits: its arithmetic, or the reading of its weights.

    The peak is that of the instruction set in use; bfloat16 is multiplied as float32 where there is nothing faster.
    """
    peaks = limits["gflops"].get(limits["isa"], {})
    if precision not in peaks and precision == "bfloat16":
        precision = "float32"
    rate = peaks.get(precision, {}).get(str(threads))
    if not rate:
        return None
    arithmetic = workload.flops(density) / (rate * 1e9)
    size = workload.weight_bytes()
    level = next((read for read in limits["reads"] if size <= read["holds"] * threads), limits["reads"][-1])
    traffic = size * workload.weight_passes()
    return float(max(arithmetic, traffic / (level["gigabytes"][str(threads)] * 1e9)))
