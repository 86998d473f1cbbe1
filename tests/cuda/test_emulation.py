"""The emulated device itself: what it computes, and that mistakes of a kernel show on it."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("ninja", reason="the emulation is built with ninja")
import emulation

pytestmark = pytest.mark.skipif(emulation.compiler() is None, reason="the emulation is written for g++ on Linux")

CLUSTER_SUM, REVERSE, WARP, HASTY, BEYOND_SHARED, AT_DIFFERENT_BARRIERS = range(6)
SEND, SEND_UNANNOUNCED, SEND_ANNOUNCED_TWICE, SEND_TOO_MUCH = range(6, 10)
HALVES = {torch.bfloat16: 0, torch.float16: 1}


def run(kernel, given, result_size, *, blocks=1, threads=64, shared_bytes=256, cluster=1):
    result = emulation.poisoned((result_size,), torch.float32)
    library = emulation.library()
    sizes = (blocks, threads, ctypes.c_int64(shared_bytes), cluster)
    library.tiny_kernel(kernel, *map(emulation.pointer, (given, result)), *sizes)
    emulation.check()
    return result


@pytest.mark.parametrize("seed", range(3))
def test_blocks_of_a_cluster_read_each_others_memory(seed):
    given = torch.arange(6 * 64, dtype=torch.float32)
    with emulation.device(seed=seed):
        result = run(CLUSTER_SUM, given, 6 * 64, blocks=6, cluster=3)
    sums = given.view(2, 3, 64).sum(1, keepdim=True) + 1000 * torch.arange(3).view(1, 3, 1)
    assert torch.equal(result.view(2, 3, 64), sums)


def test_shuffles():
    given = torch.randn(64).round(decimals=2).mul(64).round()
    result = run(WARP, given, 64)
    warps = given.view(2, 32)
    assert torch.equal(result.view(2, 32), (warps.sum(1, keepdim=True) - warps[:, 3:4]).expand(2, 32))


def test_a_missing_barrier_shows():
    given = torch.arange(64.0)
    assert torch.equal(run(REVERSE, given, 64), given.flip(0))
    with emulation.device(skipped_barrier=0):
        assert run(REVERSE, given, 64).isnan().any()


def test_a_copy_is_not_there_before_it_is_waited_for():
    given = torch.arange(64.0)
    too_early, in_time = run(HASTY, given, 128).view(2, 64)
    assert too_early.isnan().all()
    assert torch.equal(in_time, given)


@pytest.mark.parametrize("seed", range(4))
def test_what_is_sent_is_there_as_late_or_as_early_as_can_be(seed):
    given = torch.arange(6 * 64, dtype=torch.float32)
    with emulation.device(seed=seed):
        result = run(SEND, given, 2 * 6 * 64, blocks=6, cluster=3, shared_bytes=512)
    before, after = result.view(2, 2, 3, 64)
    sent = given.view(2, 3, 64).roll(1, dims=1)
    assert torch.equal(before, sent) if seed % 2 else before.isnan().all()
    assert torch.equal(after, sent)


@pytest.mark.parametrize(
    ("arguments", "device"),
    [
        ({"threads": 2048}, {}),
        ({"shared_bytes": 100 << 10}, {"shared_bytes": 99 << 10}),
        ({"blocks": 2, "cluster": 2}, {"capability": 80}),
        ({"blocks": 3, "cluster": 2}, {}),
        ({"blocks": 32, "cluster": 32}, {}),
    ],
)
def test_what_a_device_cannot_do_is_an_error(arguments, device):
    with emulation.device(**device), pytest.raises(RuntimeError, match="cudaErrorInvalidConfiguration"):
        run(REVERSE, torch.zeros(4096), 4096, **arguments)
    emulation.check()  # the error was taken away


def in_a_process(code):
    folder = str(Path(emulation.__file__).parent)
    code = f"import sys, torch; sys.path.insert(0, {folder!r}); import emulation, test_emulation as t; {code}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


def test_threads_at_different_barriers_end_the_process():
    process = in_a_process("t.run(t.AT_DIFFERENT_BARRIERS, torch.zeros(64), 64)")
    assert process.returncode != 0
    assert "threads wait for each other at different barriers" in process.stderr


@pytest.mark.parametrize(
    ("kernel", "cluster", "why"),
    [
        (SEND, 1, "something is sent by a kernel that was not launched as a cluster"),
        (SEND_UNANNOUNCED, 2, "threads wait for each other at different barriers"),
        (SEND_ANNOUNCED_TWICE, 2, "something was announced twice in one phase"),
        (SEND_TOO_MUCH, 2, "more has come than was announced"),
    ],
)
def test_a_mistake_in_sending_ends_the_process(kernel, cluster, why):
    process = in_a_process(f"t.run({kernel}, torch.zeros(128), 256, blocks=2, cluster={cluster}, shared_bytes=512)")
    assert process.returncode != 0
    assert why in process.stderr


@pytest.mark.skipif("address" not in emulation.SANITIZERS, reason="AddressSanitizer is what sees it")
def test_a_read_beyond_shared_memory_ends_the_process():
    process = in_a_process("t.run(t.BEYOND_SHARED, torch.zeros(64), 64)")
    assert process.returncode != 0
    assert "heap-buffer-overflow" in process.stderr


# Numbers


def apply(name, given, dtype, *flags):
    result = torch.empty(given.shape, dtype=dtype)
    arrays = map(emulation.pointer, (given, result))
    getattr(emulation.library(), name)(*flags, *arrays, ctypes.c_int64(given.numel()))
    return result


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_conversions(dtype):
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
    is_bfloat16 = dtype is torch.bfloat16
    wide = apply("widen_all", every, torch.float32, is_bfloat16)
    assert torch.equal(wide.nan_to_num(nan=0.5), every.float().nan_to_num(nan=0.5))
    # Each number, the middle between it and the next, and a little to either side of that.
    finite = every[every.isfinite()].float().sort().values
    middles = (finite[1:].double() + finite[:-1].double()) / 2
    given = torch.cat([finite, *(middles.mul(factor).float() for factor in (1, 1 - 1e-6, 1 + 1e-6))])
    given = torch.cat([given, torch.tensor([torch.inf, -torch.inf, 1e30, -1e30, 65519.0, 65520.0, 1e-30])])
    bits = apply("narrow_all", given, torch.int16, is_bfloat16)
    assert torch.equal(bits, given.to(dtype).view(torch.int16))
    assert apply("narrow_all", torch.tensor([torch.nan]), torch.int16, is_bfloat16).view(dtype).isnan().all()


def as_tf32(values):
    return apply("to_tf32_all", values, torch.int32).view(torch.float32)


def test_tf32_is_the_nearest():
    values = torch.randn(10000) * 10 ** torch.linspace(-30, 30, 10000)
    rounded = as_tf32(values)
    assert torch.all(rounded.view(torch.int32) & 0x1FFF == 0)
    assert torch.all((rounded - values).abs() <= values.abs() * 2**-11)
    limits = torch.tensor([torch.inf, -torch.inf, 0.0, 1 + 2**-11])
    assert torch.equal(as_tf32(limits), torch.tensor([torch.inf, -torch.inf, 0.0, 1 + 2**-10]))
    assert as_tf32(torch.tensor([torch.nan])).isnan().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_products_of_a_warp(dtype):
    depth = 8 if dtype is torch.float32 else 16
    a, b, d = torch.randn(16, depth).to(dtype), torch.randn(depth, 8).to(dtype), torch.randn(16, 8)
    left, right = (as_tf32(a), as_tf32(b)) if dtype is torch.float32 else (a, b)
    expected = d.double() + left.double() @ right.double()
    emulation.library().tiny_product(HALVES.get(dtype, 2), *map(emulation.pointer, (a, b, d)))
    torch.testing.assert_close(d, expected.float(), rtol=1e-6, atol=1e-6)
