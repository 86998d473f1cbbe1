"""Arrays of more than 2³¹ numbers, of which the last block alone is computed: untouched pages cost nothing."""

from __future__ import annotations

import mmap
from math import prod

import pytest
import torch
from torch import Tensor

from twolayer.registry import ACTIVATIONS

pytest.importorskip("ninja", reason="the emulation is built with ninja")
import emulation

pytestmark = pytest.mark.skipif(emulation.compiler() is None, reason="the emulation is written for g++ on Linux")

DTYPE = torch.bfloat16
MAP_NORESERVE = 0x4000  # as on Linux; in the mmap module from Python 3.13 on
TANH = ACTIVATIONS["tanh"].id
BEYOND = (1 << 31) + 3
LAST = 5  # rows of a batch of BEYOND // 8 + LAST that no tile of a power of two has filled


def sparse(*shape: int) -> Tensor:
    """Zeros."""
    try:
        pages = mmap.mmap(-1, prod(shape) * DTYPE.itemsize, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
    except OSError as error:
        pytest.skip(f"no address space: {error}")
    return torch.frombuffer(pages, dtype=DTYPE).view(shape)


def sparse_draw(*shape: int, last: int = LAST) -> Tensor:
    """Random numbers between −1 and 1 in the last rows, zero before."""
    tensor = sparse(*shape)
    tensor[-last:] = torch.randn(tensor[-last:].shape).tanh()
    return tensor


def draw(*shape: int) -> Tensor:
    return torch.randn(shape).to(DTYPE)


def assert_close(result: Tensor, expected: Tensor) -> None:
    assert expected.abs().min() > 0
    torch.testing.assert_close(result.double(), expected, rtol=2e-2, atol=2e-2)


def run(name: str, sizes: tuple[int, int, int, int], arrays: list[Tensor | None]) -> None:
    with emulation.device(last_clusters=1):
        emulation.call_net(name, sizes, TANH, arrays, DTYPE)


def test_forward():
    batch, hidden, out = BEYOND // 8 + LAST, 16, 9
    x, w1, b1, w2, b2 = sparse_draw(batch, 8), draw(hidden, 8), draw(hidden), draw(out, hidden), draw(out)
    saved, y = sparse(batch, hidden), sparse(batch, out)
    run("forward", (batch, 8, hidden, out), [x, w1, b1, w2, b2, saved, y, None, None])
    h = torch.tanh(x[-LAST:].double() @ w1.double().T + b1.double())
    assert_close(saved[-LAST:], h)
    assert_close(y[-LAST:], h @ w2.double().T + b2.double())


def test_grad_x():
    batch, hidden, out = BEYOND // 8 + LAST, 9, 8
    grad_y, saved = sparse_draw(batch, out), sparse_draw(batch, hidden)
    w1, w2, grad_x = draw(hidden, 8), draw(out, hidden), sparse(batch, 8)
    run("backward", (batch, 8, hidden, out), [grad_y, grad_x, w1, w2, saved, grad_x, *[None] * 6])
    grad_z = (grad_y[-LAST:].double() @ w2.double()) * (1 - saved[-LAST:].double() ** 2)
    assert_close(grad_x[-LAST:], grad_z @ w1.double())


def test_grad_w1():
    width = 1 << 17
    hidden = BEYOND // width + 9
    grad_y, x, w2, saved = draw(3, 2), draw(3, width), draw(2, hidden), draw(3, hidden).tanh()
    grad_w1 = sparse(hidden, width)
    run("backward", (3, width, hidden, 2), [grad_y, x, None, w2, saved, None, grad_w1, *[None] * 5])
    grad_z = (grad_y.double() @ w2.double()) * (1 - saved.double() ** 2)
    assert_close(grad_w1[-1:, -16:], grad_z[:, -1:].T @ x[:, -16:].double())


def test_grad_w2():
    hidden = 1 << 17
    out = BEYOND // hidden + 9
    grad_y, saved, grad_w2 = draw(3, out), draw(3, hidden).tanh(), sparse(out, hidden)
    run("backward", (3, 1, hidden, out), [grad_y, None, None, None, saved, None, None, None, grad_w2, *[None] * 3])
    assert_close(grad_w2[-1:, -16:], grad_y[:, -1:].double().T @ saved[:, -16:].double())


def test_passes():
    rows, hidden = BEYOND // 64 + 1, 64
    z, h = sparse_draw(rows, hidden, last=1), sparse(rows, hidden)
    library, dtype = emulation.library(), emulation.DTYPES[DTYPE]
    count = emulation.ctypes.c_int64(z.numel())
    with emulation.device(last_clusters=1):
        library.activate(dtype, count, TANH, emulation.pointers([z, h]))
        assert_close(h[-1], z[-1].double().tanh())
        grad = z  # in place of another
        before = grad[-1].double()
        library.derive(dtype, count, TANH, emulation.pointers([h, grad]))
    emulation.check()
    assert_close(grad[-1], before * (1 - h[-1].double() ** 2))
