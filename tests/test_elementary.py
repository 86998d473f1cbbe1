"""The vector layer (csrc/cpu/simd) and the activations (csrc/math) on every instruction set this machine runs.

``native/elementary.cpp`` makes them a small C library, compiled here once. ULP errors are measured against the exact
value, which for float32 is float64 arithmetic and for float64 is mpmath's.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import multiprocessing
import os
import platform
import shlex
import shutil
import subprocess
from pathlib import Path

import mpmath
import numpy as np
import pytest
import scipy.special
import torch

from twolayer.reference import numpy as reference

ROOT = Path(__file__).resolve().parents[1]
FLAGS = ["-std=c++20", "-O2", "-fPIC", "-shared", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wno-psabi"]

ISAS = ["portable", "neon"] if platform.machine() in ("aarch64", "arm64") else ["portable", "avx2", "avx512"]
DTYPES = [np.float32, np.float64]
BFLOAT16 = np.dtype(np.uint16)  # its bits

# Bounds in ULP, float32 then float64; the same table stands in csrc/cpu/simd/elementary.h.
BOUNDS = {
    "exp": (1.1, 1.1),
    "log1p": (1.6, 1.6),
    "tanh": (2.6, 2.6),
    "sigmoid": (2.5, 2.5),
    "gaussian": (1.3, 1.3),
    "normal_cdf": (6, 7),
    "sin": (1.7, 1.0),
    "cos": (1.7, 1.0),
}

IN_FLOAT64 = {
    "exp": np.exp,
    "log1p": np.log1p,
    "tanh": np.tanh,
    "sigmoid": scipy.special.expit,
    "gaussian": lambda z: np.exp(-0.5 * z * z),
    "normal_cdf": scipy.special.ndtr,
    "sin": np.sin,
    "cos": np.cos,
}

BY_MPMATH = {
    "exp": mpmath.exp,
    "log1p": mpmath.log1p,
    "tanh": mpmath.tanh,
    "sigmoid": lambda x: 1 / (1 + mpmath.exp(-x)),
    "gaussian": lambda z: mpmath.exp(-z * z / 2),
    "normal_cdf": lambda z: mpmath.erfc(-z / mpmath.sqrt(2)) / 2,
    "sin": mpmath.sin,
    "cos": mpmath.cos,
}

# Where a float64 sample is drawn from: where the function is neither constant nor out of range.
FLOAT64_RANGE = {
    "exp": (-745, 709),
    "log1p": (-1, 1e3),
    "tanh": (-20, 20),
    "sigmoid": (-740, 40),
    "gaussian": (-38, 38),
    "normal_cdf": (-38, 9),
    "sin": (-1e6, 1e6),
    "cos": (-1e6, 1e6),
}

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
every_function = pytest.mark.parametrize("function", BOUNDS)
every_activation = pytest.mark.parametrize("activation", reference.ACTIVATIONS)


class Library:
    """The compiled functions on one instruction set, taking and returning NumPy arrays."""

    def __init__(self, path: Path, isa: str) -> None:
        self.path, self.isa = path, isa
        self._library = ctypes.CDLL(str(path))
        self.float_lanes = self._library.float_lanes(isa.encode())

    def lanes(self, dtype):
        return self.float_lanes * 4 // np.dtype(dtype).itemsize

    def apply_at(self, kind, name, dtype, source, target, count):
        """Apply a function to ``count`` elements at address ``source``; the result goes to address ``target``."""
        apply = self._library.apply_float if dtype == np.float32 else self._library.apply_double
        apply.restype = ctypes.c_bool
        texts = [text.encode() for text in (self.isa, kind, name)]
        if not apply(*texts, ctypes.c_void_p(source), ctypes.c_void_p(target), ctypes.c_int64(count)):
            raise LookupError(f"the library has no {kind} {name!r}")

    def convert_at(self, conversion, source, target, count):
        """The same for ``widen`` and ``narrow``, between bfloat16 and float32, and their ``_scalar`` forms."""
        convert = getattr(self._library, conversion)
        convert(self.isa.encode(), ctypes.c_void_p(source), ctypes.c_void_p(target), ctypes.c_int64(count))

    def __call__(self, name, x, kind="function"):
        x = np.ascontiguousarray(x)
        y = np.empty_like(x)
        self.apply_at(kind, name, x.dtype, x.ctypes.data, y.ctypes.data, x.size)
        return y

    def convert(self, conversion, x, dtype):
        y = np.empty(x.shape, dtype)
        self.convert_at(conversion, x.ctypes.data, y.ctypes.data, x.size)
        return y


@pytest.fixture(scope="session")
def library_path(tmp_path_factory):
    compiler = shlex.split(os.environ.get("CXX", "")) or [name for name in ("g++", "clang++") if shutil.which(name)][:1]
    if not compiler:
        pytest.skip("no C++ compiler: neither $CXX, g++ nor clang++")
    path = tmp_path_factory.mktemp("elementary") / "elementary.so"
    folders = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'tests'}"]
    source = ROOT / "tests/native/elementary.cpp"
    subprocess.run([*compiler, *FLAGS, *WARNINGS, *folders, str(source), "-o", str(path)], check=True)
    return path


@pytest.fixture(params=ISAS)
def simd(library_path, request):
    library = Library(library_path, request.param)
    if not library.float_lanes:
        pytest.skip(f"this machine has no {request.param}")
    return library


def ulp_errors(y, exact):
    """|y - exact| in units of the last place of ``exact`` in y's dtype; 0 where both are the same infinity or NaN."""
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = exact.astype(y.dtype)
        errors = np.abs(y - exact) / np.spacing(np.abs(rounded)).astype(exact.dtype)
    errors[(y == rounded) & np.isinf(rounded) | np.isnan(y) & np.isnan(exact)] = 0
    return np.where(np.isnan(errors), np.inf, errors)


def assert_within(bound, errors, x, y):
    worst = int(np.argmax(errors))
    assert errors[worst] <= bound, f"{errors[worst]:.3f} ULP at {x[worst]!r}, which gave {y[worst]!r}"


def float32_sample():
    """Every 20,011th float32 (subnormals, infinities and NaNs among them), and densely the numbers around 0."""
    everywhere = np.arange(0, 2**32, 20_011, dtype=np.uint64).astype(np.uint32).view(np.float32)
    return np.concatenate([everywhere, np.linspace(-20, 20, 100_001, dtype=np.float32)])


@every_function
def test_float32_stays_within_its_bound(simd, function):
    x = float32_sample()
    with np.errstate(all="ignore"):
        exact = IN_FLOAT64[function](x.astype(np.float64))
    y = simd(function, x)
    assert_within(BOUNDS[function][0], ulp_errors(y, exact), x, y)


@every_function
def test_float64_stays_within_its_bound(simd, function):
    rng = np.random.default_rng(1)
    low, high = FLOAT64_RANGE[function]
    tiny = np.exp(rng.uniform(-60, 0, 200)) * rng.choice([-0.99, 0.99], 200)
    samples = [rng.uniform(*interval, 700) for interval in ((low, high), (max(low, -9), 9), (-1, 1))]
    x = np.concatenate([*samples, tiny])
    y = simd(function, x)
    with mpmath.workprec(160):
        exact = [BY_MPMATH[function](mpmath.mpf(float(value))) for value in x]
        distances = [abs(mpmath.mpf(float(value)) - truth) for value, truth in zip(y, exact, strict=True)]
        places = np.spacing(np.abs(np.array(exact, dtype=np.float64)))
        errors = np.array([float(d / float(place)) for d, place in zip(distances, places, strict=True)])
    assert_within(BOUNDS[function][1], errors, x, y)


INF, NAN = math.inf, math.nan
SPECIAL_VALUES = {
    "exp": [(0.0, 1.0), (-0.0, 1.0), (-INF, 0.0), (INF, INF), (1e4, INF), (-1e4, 0.0)],
    "log1p": [(0.0, 0.0), (-0.0, -0.0), (-1.0, -INF), (-1.5, NAN), (-INF, NAN), (INF, INF)],
    "tanh": [(0.0, 0.0), (-0.0, -0.0), (INF, 1.0), (-INF, -1.0), (1e30, 1.0)],
    "sigmoid": [(0.0, 0.5), (-0.0, 0.5), (INF, 1.0), (-INF, 0.0), (1e30, 1.0), (-1e30, 0.0)],
    "gaussian": [(0.0, 1.0), (-0.0, 1.0), (INF, 0.0), (-INF, 0.0), (1e30, 0.0)],
    "normal_cdf": [(0.0, 0.5), (-0.0, 0.5), (INF, 1.0), (-INF, 0.0), (1e30, 1.0), (-1e30, 0.0)],
    "sin": [(0.0, 0.0), (-0.0, -0.0), (INF, NAN), (-INF, NAN)],
    "cos": [(0.0, 1.0), (-0.0, 1.0), (INF, NAN), (-INF, NAN)],
}


@every_dtype
@every_function
def test_special_values(simd, function, dtype):
    x, expected = np.array([*SPECIAL_VALUES[function], (NAN, NAN)], dtype).T
    y = simd(function, x)
    np.testing.assert_array_equal(y, expected)
    numbers = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(y[numbers]), np.signbit(expected[numbers]))


EXACT_FUNCTIONS = {"abs": np.abs, "round_nearest": np.rint, "sqrt": np.sqrt}


@every_dtype
@pytest.mark.parametrize("function", EXACT_FUNCTIONS)
def test_exact_functions_equal_numpy(simd, function, dtype):
    edges = [0.0, -0.0, INF, -INF, NAN, 2.0**22 + 0.5, 2.0**51 + 0.5, -(2.0**60), 1e-40]
    x = np.array([*np.arange(-8, 8, 0.25), *edges], dtype)
    with np.errstate(invalid="ignore"):
        expected = EXACT_FUNCTIONS[function](x)
    y = simd(function, x)
    np.testing.assert_array_equal(y, expected)
    numbers = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(y[numbers]), np.signbit(expected[numbers]))


@every_dtype
@pytest.mark.parametrize(
    ("function", "combine"), [("sum_everywhere", np.add), ("maximum_everywhere", np.maximum)], ids=["sum", "maximum"]
)
def test_reductions_combine_halves_in_a_fixed_order(simd, function, combine, dtype):
    x = np.random.default_rng(2).standard_normal(simd.lanes(dtype)).astype(dtype)
    half = x
    while half.size > 1:
        half = combine(*np.split(half, 2))
    np.testing.assert_array_equal(simd(function, x), np.repeat(half, x.size))


# Partial vectors and lanes


@every_dtype
@every_function
def test_a_lane_depends_on_nothing_but_its_argument(simd, function, dtype):
    rng = np.random.default_rng(3)
    lanes = simd.lanes(dtype)
    x = (rng.standard_normal(4 * lanes + 1) * 10.0 ** rng.integers(-3, 8, 4 * lanes + 1)).astype(dtype)
    x[:4] = INF, NAN, -0.0, 1e30
    alone = np.concatenate([simd(function, value) for value in x.reshape(-1, 1)])
    for first in range(lanes + 1):  # every element in every lane, beside other neighbours, in full and partial vectors
        np.testing.assert_array_equal(simd(function, x[first:]), alone[first:])


@every_dtype
def test_a_partial_load_gives_zeros_beyond(simd, dtype):
    for count in range(1, simd.lanes(dtype)):
        x = np.full(count, 3, dtype)
        np.testing.assert_array_equal(simd("sum_everywhere", x), np.full(count, 3 * count, dtype))


@every_dtype
def test_a_partial_store_leaves_the_rest(simd, dtype):
    lanes = simd.lanes(dtype)
    source = np.arange(1, lanes + 1, dtype=dtype)
    for count in range(lanes):
        target = np.full(lanes, -1, dtype)
        simd.apply_at("function", "identity", dtype, source.ctypes.data, target.ctypes.data, count)
        np.testing.assert_array_equal(target[:count], source[:count])
        assert (target[count:] == -1).all()


def touch_guarded_memory(path: Path) -> None:
    """Load and store every partial length against both ends of a page whose neighbours may not be touched."""
    page = mmap.PAGESIZE
    memory = mmap.mmap(-1, 3 * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    for guard in (start, start + 2 * page):
        if libc.mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(page), 0):
            raise OSError(ctypes.get_errno(), "mprotect failed")
    for library in (library for library in (Library(path, isa) for isa in ISAS) if library.float_lanes):
        for dtype in DTYPES:
            for count in range(library.lanes(dtype) + 1):
                for address in (start + page, start + 2 * page - count * np.dtype(dtype).itemsize):
                    library.apply_at("function", "identity", dtype, address, address, count)
        floats = np.zeros(library.float_lanes, np.float32)
        for count in range(library.float_lanes + 1):
            for address in (start + page, start + 2 * page - count * BFLOAT16.itemsize):
                library.convert_at("widen", address, floats.ctypes.data, count)
                library.convert_at("narrow", floats.ctypes.data, address, count)


def test_partial_vectors_touch_nothing_outside(library_path):
    process = multiprocessing.get_context("spawn").Process(target=touch_guarded_memory, args=(library_path,))
    process.start()
    process.join()
    assert process.exitcode == 0  # -11 is a segmentation fault


# bfloat16

EVERY_BFLOAT16 = np.arange(2**16, dtype=BFLOAT16)


@pytest.mark.parametrize("form", ["", "_scalar"])
def test_widening_bfloat16_equals_torch(simd, form):
    expected = torch.from_numpy(EVERY_BFLOAT16.view(np.int16)).view(torch.bfloat16).float().numpy()
    wide = simd.convert("widen" + form, EVERY_BFLOAT16, np.float32)
    np.testing.assert_array_equal(wide.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("form", ["", "_scalar"])
def test_narrowing_to_bfloat16_equals_torch(simd, form):
    wide = EVERY_BFLOAT16.astype(np.uint32) << 16
    around_the_ties = np.concatenate([wide | low for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)])
    anywhere = np.random.default_rng(4).integers(0, 2**32, 100_000, dtype=np.uint32)
    x = np.concatenate([around_the_ties, anywhere]).view(np.float32)
    expected = torch.from_numpy(x).bfloat16().view(torch.int16).numpy().view(BFLOAT16)
    narrow = simd.convert("narrow" + form, x, BFLOAT16)
    nan = np.isnan(x)
    np.testing.assert_array_equal(narrow[~nan], expected[~nan])
    assert np.isnan(simd.convert("widen", narrow[nan], np.float32)).all()  # torch's own payloads differ between paths


# Activations


@every_dtype
@every_activation
def test_activations_equal_the_reference(simd, activation, dtype):
    z = np.array([*np.linspace(-8, 8, 4001), *np.linspace(-90, 90, 1001), 0.0, -0.0, 20.0, -1e6, 1e6], dtype)
    epsilon = np.finfo(dtype).eps  # gelu_tanh' takes most of them: its error is that of 1 - sigmoid, times up to 25
    for kind, function in zip(("value", "derivative"), reference.ACTIVATIONS[activation], strict=True):
        expected = function(z.astype(np.float64))
        np.testing.assert_allclose(simd(activation, z, kind), expected, rtol=64 * epsilon, atol=4 * epsilon)


@pytest.mark.parametrize(("activation", "bound"), [("gelu", 7), ("silu", 3.5), ("softplus", 2.5)])
def test_negative_tails_keep_their_relative_precision(simd, activation, bound):
    z = np.linspace(-13, -1, 20_001, dtype=np.float32)
    exact = {
        "gelu": lambda z: z * scipy.special.ndtr(z),
        "silu": lambda z: z * scipy.special.expit(z),
        "softplus": lambda z: np.log1p(np.exp(z)),
    }[activation](z.astype(np.float64))
    y = simd(activation, z, "value")
    assert_within(bound, ulp_errors(y, exact), z, y)


# value and derivative at -infinity, infinity and NaN; where torch has NaN for 0 * inf, the limit
LIMITS = {
    "identity": [(-INF, 1), (INF, 1), (NAN, 1)],
    "relu": [(0, 0), (INF, 1), (NAN, 1)],
    "sigmoid": [(0, 0), (1, 0), (NAN, NAN)],
    "tanh": [(-1, 0), (1, 0), (NAN, NAN)],
    "gelu": [(0, 0), (INF, 1), (NAN, NAN)],
    "gelu_tanh": [(0, 0), (INF, 1), (NAN, NAN)],
    "silu": [(0, 0), (INF, 1), (NAN, NAN)],
    "softplus": [(0, 0), (INF, 1), (NAN, NAN)],
    "leaky_relu": [(-INF, 0.01), (INF, 1), (NAN, 0.01)],
    "relu_squared": [(0, 0), (INF, INF), (NAN, NAN)],
    "sine": [(NAN, NAN), (NAN, NAN), (NAN, NAN)],
}


@every_dtype
@every_activation
def test_limits_of_activations(simd, activation, dtype):
    z = np.array([-INF, INF, NAN], dtype)
    value, derivative = np.array(LIMITS[activation], dtype).T
    np.testing.assert_array_equal(simd(activation, z, "value"), value)
    np.testing.assert_array_equal(simd(activation, z, "derivative"), derivative)
