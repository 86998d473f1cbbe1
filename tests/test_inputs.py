"""Every form in which data may come: dtypes, layouts, sparse matrices, iterables, targets and weights."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse
import torch
from cases import name_of
from native_runs import subprocess_environment
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from training_runs import (
    ROWS,
    assert_changed,
    assert_near,
    assert_same_bits,
    make_data,
    make_net,
    one_torch_thread,  # noqa: F401
    train_with_torch,
)

import twolayer
from twolayer import Trainer, fit

X, Y = make_data(dtype=torch.float32)
OPTIONS = {"batch_size": 8, "epochs": 2, "optimizer": "adam", "lr": 0.01}
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=name_of)


def assert_trains_as(x, expected_x, dtype=torch.float32, y=Y, expected_y=None, expected_options=None, **options):
    """``x`` with these options trains and evaluates to the bits of ``expected_x``, which is of the net's dtype."""
    net, expected = make_net(dtype=dtype), make_net(dtype=dtype)
    expected_y = y if expected_y is None else expected_y
    plain = OPTIONS | (options if expected_options is None else expected_options)
    history = fit(net, x, y, **OPTIONS | options)
    assert history.loss == fit(expected, expected_x, expected_y, **plain).loss
    assert_same_bits(net, expected)
    assert_changed(net, make_net(dtype=dtype))
    evaluated = Trainer(net, **options).evaluate(x, y)
    assert evaluated == Trainer(expected, **without_epochs(plain)).evaluate(expected_x, expected_y)


def without_epochs(options):
    return {name: value for name, value in options.items() if name != "epochs"}


# Numbers

INTEGERS = np.random.default_rng(0).integers(0, 120, (ROWS, 9))


@every_dtype
@pytest.mark.parametrize(
    "kind", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "float32", "float64"]
)
@pytest.mark.parametrize("torch_tensor", [False, True], ids=["NumPy", "torch"])
def test_numbers_of_every_type_are_inputs(kind, torch_tensor, dtype):
    given = INTEGERS.astype(kind)
    x = torch.from_numpy(given) if torch_tensor else given
    assert_trains_as(x, INTEGERS.astype(name_of(dtype)), dtype, lr=1e-4)


@every_dtype
def test_truth_values_are_inputs(dtype):
    given = INTEGERS > 60
    for x in (given, torch.from_numpy(given)):
        assert_trains_as(x, given.astype(name_of(dtype)), dtype)


@every_dtype
def test_bfloat16_tensors_are_inputs(dtype):
    x = X.bfloat16()
    assert not x.float().equal(X)
    assert_trains_as(x, x.to(dtype), dtype)
    apart = torch.stack([x, x], dim=-1)
    for view in (apart[..., 0], torch.cat([x, x], dim=1)[:, :9], x.clone().requires_grad_()):
        assert_trains_as(view, x.to(dtype), dtype)


def test_float64_inputs_are_rounded_to_the_nets_float32():
    x = X.double() + 1e-9
    assert_trains_as(x, x.float())
    assert_trains_as(X, X.double(), torch.float64)


@every_dtype
@pytest.mark.parametrize("kind", ["uint8", "float32", "float64", "bfloat16", "int32"])
def test_inputs_are_scaled_and_shifted(kind, dtype):
    x = torch.from_numpy(INTEGERS).to(getattr(torch, kind))
    scale, shift = (np.asarray(v, name_of(dtype)) for v in (1 / 51, -0.75))
    expected = INTEGERS.astype(name_of(dtype)) * scale + shift
    for given in (x, x.numpy()) if kind != "bfloat16" else (x,):
        net, plain = make_net(dtype=dtype), make_net(dtype=dtype)
        history = fit(net, given, Y, input_scale=1 / 51, input_shift=-0.75, **OPTIONS)
        # The engine may round once where NumPy rounds twice.
        bound = 1e-5 if dtype is torch.float32 else 1e-13
        np.testing.assert_allclose(history.loss, fit(plain, expected, Y, **OPTIONS).loss, rtol=bound)
        assert_near(net, plain, bound)


def test_a_scale_of_a_power_of_two_is_exact():
    x = INTEGERS.astype(np.uint8)
    assert_trains_as(x, x.astype(np.float32) / 64 - 1, input_scale=1 / 64, input_shift=-1.0, expected_options={})


# Layouts


def aligned_to_one_byte(array):
    return np.frombuffer(b"." + array.tobytes(), array.dtype, offset=1).reshape(array.shape)


LAYOUTS = {
    "Fortran order": np.asfortranarray,
    "rows apart": lambda a: np.concatenate([a, a], axis=1)[:, : a.shape[1]],
    "rows very far apart": lambda a: np.repeat(a, 1000, axis=0)[::1000],
    "columns apart": lambda a: np.stack([a, a], axis=-1)[..., 0],
    "rows in reverse": lambda a: a[::-1].copy()[::-1],
    "columns in reverse": lambda a: a[:, ::-1].copy()[:, ::-1],
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "big-endian in reverse": lambda a: a[::-1].astype(a.dtype.newbyteorder(">"))[::-1],
    "not aligned": aligned_to_one_byte,
    "read-only": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
    "a subclass": lambda a: a.view(np.recarray),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["uint8", "float32", "float64", "int16"])
def test_arrays_may_lie_in_memory_in_any_way(kind, layout):
    given = LAYOUTS[layout](INTEGERS.astype(kind))
    before = given.copy()
    assert_trains_as(given, INTEGERS.astype(np.float32), lr=1e-4)
    np.testing.assert_array_equal(given, before)


def test_one_row_may_stand_for_all():
    row = X[:1]
    assert_trains_as(row.expand(ROWS, 9), row.repeat(ROWS, 1))


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "a subclass"])
@pytest.mark.parametrize("what", ["classes", "values", "weights"])
def test_targets_and_weights_may_lie_in_memory_in_any_way(what, layout):
    def laid_out(array):
        array = np.asarray(array)
        return LAYOUTS[layout](array[:, None])[:, 0] if array.ndim == 1 else LAYOUTS[layout](array)

    net, expected = make_net(dtype=torch.float32), make_net(dtype=torch.float32)
    values = make_data("mse", torch.float32)[1]
    weight = np.linspace(0, 2, ROWS, dtype=np.float32)
    y, options = {
        "classes": (Y, {}),
        "values": (values, {"loss": "mse"}),
        "weights": (Y, {"sample_weight": weight}),
    }[what]
    fit(expected, X, y, **OPTIONS, **options)
    if what == "weights":
        options = {"sample_weight": laid_out(weight)}
    else:
        y = laid_out(y)
    fit(net, X, y, **OPTIONS, **options)
    assert_same_bits(net, expected)


# Memory

MEASURED = """
import resource, sys
import numpy as np
from twolayer import NumpyNet, fit

def data_in_use():
    with open("/proc/self/status") as status:
        return 1024 * int(next(line for line in status if line.startswith("VmData")).split()[1])

def train(x, in_features, **options):
    net = NumpyNet(in_features, 4, 3)
    y = np.zeros(x.shape[0], np.uint8)
    fit(net, x[:64], y[:64], **options)  # makes the threads and whatever else is made once
    limit = data_in_use() + int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    history = fit(net, x, y, batch_size=256, validation=0.1, **options)
    assert history.steps == -(-round(0.9 * x.shape[0]) // 256), history
    print(history.loss[0])
"""

MEMORY_MAPPED = "x = np.load(sys.argv[1], mmap_mode='r'); train(x, 784, {options})"
SPARSE = "import scipy.sparse; x = scipy.sparse.load_npz(sys.argv[1]); train(x, x.shape[1])"


def train_with_little_memory(code, file, megabytes):
    return subprocess.run(
        [sys.executable, "-c", MEASURED + code, str(file), str(megabytes << 20)],
        env=subprocess_environment(),
        cwd="/",
        capture_output=True,
        text=True,
        timeout=120,
    )


needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and limits RLIMIT_DATA")


@needs_proc
@pytest.mark.parametrize(
    ("kind", "rows", "options"), [("uint8", 100_000, "input_scale=1 / 255"), ("float32", 25_000, "")]
)
def test_a_mapped_file_larger_than_memory_is_never_copied(kind, rows, options, tmp_path):
    file = tmp_path / "x.npy"
    x = np.lib.format.open_memmap(file, "w+", kind, (rows, 784))  # 78 MB, mostly holes
    x[::100, ::7] = 3
    del x
    run = train_with_little_memory(MEMORY_MAPPED.format(options=options), file, 24)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) < 1.2


@needs_proc
def test_the_limit_on_memory_is_felt(tmp_path):
    file = tmp_path / "x.npy"
    np.lib.format.open_memmap(file, "w+", np.int16, (100_000, 784)).flush()  # of this type there is a float copy
    run = train_with_little_memory(MEMORY_MAPPED.format(options=""), file, 24)
    assert "MemoryError" in run.stderr


@needs_proc
def test_a_sparse_matrix_is_not_made_dense(tmp_path):
    columns = np.random.default_rng(0).integers(0, 4_000, 60_000)
    x = scipy.sparse.csr_matrix((np.ones(60_000, np.float32), columns, np.arange(0, 60_001, 3)), (20_000, 4_000))
    scipy.sparse.save_npz(tmp_path / "x.npz", x)  # 320 MB if it were dense
    run = train_with_little_memory(SPARSE, tmp_path / "x.npz", 24)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) < 1.2


# Sparse matrices


def sparse_data(rows=ROWS, dtype=np.float32):
    rng = np.random.default_rng(0)
    dense = np.where(rng.random((rows, 9)) < 0.3, rng.standard_normal((rows, 9)), 0).astype(dtype)
    dense[[0, 5, rows - 1]] = 0  # empty rows
    return dense


def unsorted(csr):
    csr = csr.copy()
    for row in range(csr.shape[0]):
        entries = slice(csr.indptr[row], csr.indptr[row + 1])
        csr.indices[entries], csr.data[entries] = csr.indices[entries][::-1].copy(), csr.data[entries][::-1].copy()
    csr.has_sorted_indices = False
    return csr


def with_wide_indices(csr):
    csr = csr.copy()
    csr.indices, csr.indptr = csr.indices.astype(np.int64), csr.indptr.astype(np.int64)
    return csr


SPARSE_FORMS = {
    "matrix": scipy.sparse.csr_matrix,
    "array": scipy.sparse.csr_array,
    "not sorted": lambda dense: unsorted(scipy.sparse.csr_matrix(dense)),
    "int64 indices": lambda dense: with_wide_indices(scipy.sparse.csr_matrix(dense)),
    "explicit zeros": lambda dense: scipy.sparse.csr_matrix(
        (dense.ravel(), np.tile(np.arange(9), len(dense)), np.arange(0, dense.size + 1, 9)), dense.shape
    ),
    "rows of another": lambda dense: scipy.sparse.csr_matrix(np.concatenate([dense, dense]))[: len(dense)],
    "torch": lambda dense: torch.from_numpy(dense).to_sparse_csr(),
    "torch, int32 indices": lambda dense: torch.sparse_csr_tensor(
        *(torch.from_numpy(part.astype(np.int32)) for part in csr_parts(dense)[:2]), csr_parts(dense)[2], dense.shape
    ),
}


def csr_parts(dense):
    csr = scipy.sparse.csr_matrix(dense)
    return csr.indptr, csr.indices, torch.from_numpy(csr.data)


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("form", SPARSE_FORMS)
@every_dtype
def test_sparse_matrices_give_what_dense_ones_give(form, dtype):
    dense = sparse_data(dtype=name_of(dtype))
    assert_trains_as(SPARSE_FORMS[form](dense), dense, dtype, dropout=0.2)


@pytest.mark.parametrize("kind", ["float64", "uint8", "int64", "bool"])
def test_sparse_numbers_of_other_types(kind):
    dense = (10 * sparse_data()).astype(kind)
    assert_trains_as(scipy.sparse.csr_matrix(dense), dense.astype(np.float32))


def test_entries_named_twice_add_up():
    twice = scipy.sparse.csr_matrix(
        (np.float32([1, 2, 4, 8, 16]), [3, 3, 0, 3, 8], [0, 4, 4, 5] + [5] * (ROWS - 3)), (ROWS, 9)
    )
    dense = np.zeros((ROWS, 9), np.float32)
    dense[0, [0, 3]], dense[2, 8] = (4, 11), 16
    assert_trains_as(twice, dense)
    assert twice.nnz == 5  # and the matrix was not tidied up on the way


def test_a_matrix_without_any_entry():
    net, expected = make_net(dtype=torch.float32), make_net(dtype=torch.float32)
    fit(net, scipy.sparse.csr_matrix((ROWS, 9), dtype=np.float32), Y)
    fit(expected, np.zeros((ROWS, 9), np.float32), Y)
    assert_same_bits(net, expected)
    assert net[0].weight.equal(make_net(dtype=torch.float32)[0].weight)
    assert not net[0].bias.equal(make_net(dtype=torch.float32)[0].bias)


def corrupt(**parts):
    csr = scipy.sparse.csr_matrix(sparse_data())
    for name, (index, value) in parts.items():
        getattr(csr, name)[index] = value
    return csr


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (scipy.sparse.coo_matrix(sparse_data()), TypeError, r"x must be in CSR format \(x.tocsr\(\)\); got coo"),
        (scipy.sparse.csc_array(sparse_data()), TypeError, r"x must be in CSR format \(x.tocsr\(\)\); got csc"),
        (torch.from_numpy(sparse_data()).to_sparse_coo(), TypeError, "x must be a dense tensor"),
        (
            scipy.sparse.csr_matrix((ROWS, 8)),
            ValueError,
            r"x must have shape \(rows, 9\), as the net has; got \(37, 8\)",
        ),
        (scipy.sparse.csr_matrix((0, 9)), ValueError, "x must have at least one row; got none"),
        (scipy.sparse.csr_matrix((36, 9)), ValueError, r"y must have shape \(36,\), one class for each row of x"),
        (corrupt(indices=(3, 9)), ValueError, r"x.indices must hold columns in \[0, 9\); got 9"),
        (corrupt(indices=(3, -1)), ValueError, r"x.indices must hold columns in \[0, 9\); got -1"),
        (corrupt(indptr=(3, 90)), ValueError, "x.indptr must not descend"),
        (corrupt(indptr=(-1, 9)), ValueError, "x.indptr must run from 0 to the number of values"),
        (corrupt(indptr=(0, 1)), ValueError, "x.indptr must run from 0 to the number of values"),
        (scipy.sparse.csr_matrix(sparse_data().astype(complex)), TypeError, "x must hold real numbers; got complex128"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_other_sparse_matrices_are_refused(x, error, message):
    net = make_net(dtype=torch.float32)
    with pytest.raises(error, match=message):
        fit(net, x, Y)
    assert_same_bits(net, make_net(dtype=torch.float32))


def test_a_sparse_matrix_is_not_shifted():
    with pytest.raises(ValueError, match="input_scale and input_shift go with a dense x; x is sparse"):
        fit(make_net(), scipy.sparse.csr_matrix(sparse_data()), Y, input_scale=0.5)


# Iterables of batches

BATCHES = list(zip(X.split(8), Y.split(8), strict=True))


@pytest.mark.parametrize(
    "batches",
    [
        DataLoader(TensorDataset(X, Y), batch_size=8),
        BATCHES,
        tuple([x.numpy(), y.numpy()] for x, y in BATCHES),
        [(x.double().numpy(), y.numpy().astype(np.uint8)) for x, y in BATCHES],
    ],
    ids=["DataLoader", "list", "lists of NumPy arrays", "of other types"],
)
def test_batches_of_an_iterable_are_steps(batches):
    net, expected = make_net(dtype=torch.float32), make_net(dtype=torch.float32)
    options = {"optimizer": "adam", "lr": 0.01, "epochs": 3, "dropout": 0.2}
    history = fit(net, batches, validation=(X, Y), **options)
    apart = fit(expected, X, Y, batch_size=8, shuffle=False, validation=(X, Y), **options)
    assert_same_bits(net, expected)
    assert (history.loss, history.last_batch_loss) == (apart.loss, apart.last_batch_loss)
    assert (history.val_loss, history.steps) == (apart.val_loss, 15)


def test_an_iterable_is_gone_through_anew_each_epoch():
    order = torch.Generator().manual_seed(3)
    loader = DataLoader(TensorDataset(X, Y), batch_size=8, shuffle=True, generator=order)
    net, expected = make_net(dtype=torch.float32), make_net(dtype=torch.float32)
    fit(net, loader, epochs=3)
    order.manual_seed(3)
    trainer = Trainer(expected)
    firsts = []
    for _ in range(3):
        for step, (x, y) in enumerate(loader):
            trainer.step(x, y)
            if step == 0:
                firsts.append(x)
    assert_same_bits(net, expected)
    assert not firsts[0].equal(firsts[1])


def test_batches_may_be_of_different_sizes_and_kinds():
    dense = sparse_data()
    batches = [
        (dense[:3], Y[:3]),
        (scipy.sparse.csr_matrix(dense[3:20]), Y[3:20]),
        (torch.from_numpy(dense[20:]).double(), Y[20:]),
    ]
    net, expected = make_net(dtype=torch.float32), make_net(dtype=torch.float32)
    history = fit(net, batches)
    trainer = Trainer(expected)
    losses = [trainer.step(dense[a:b], Y[a:b]) for a, b in ((0, 3), (3, 20), (20, 37))]
    assert_same_bits(net, expected)
    assert history.loss == pytest.approx([np.average(losses, weights=[3, 17, 17])], rel=1e-14)


def test_batches_may_bring_sample_weights():
    weight = torch.linspace(0.5, 2, ROWS)
    net, expected = make_net(dtype=torch.float32), make_net(dtype=torch.float32)
    fit(net, DataLoader(TensorDataset(X, Y, weight), batch_size=8), epochs=2)
    fit(expected, X, Y, sample_weight=weight, batch_size=8, shuffle=False, epochs=2)
    assert_same_bits(net, expected)


@pytest.mark.parametrize(
    ("batches", "options", "error", "message"),
    [
        (
            (batch for batch in BATCHES),
            {},
            TypeError,
            "x must be an iterable of batches .* once per epoch.*; got generat",
        ),
        (iter(BATCHES), {}, TypeError, "x must be an iterable of batches .* once per epoch.*; got list_iterator"),
        (X, {}, TypeError, r"without y, x must be an iterable of batches \(x, y\).*; got Tensor"),
        (X.numpy(), {}, TypeError, r"without y, x must be an iterable of batches \(x, y\).*; got ndarray"),
        (3, {}, TypeError, "without y, x must be an iterable of batches.*; got int"),
        ([], {}, ValueError, "x must give at least one batch; it gave none"),
        ([X], {}, TypeError, r"x must give batches \(x, y\) or \(x, y, sample_weight\); got a Tensor"),
        ([(X,)], {}, TypeError, r"x must give batches \(x, y\) or \(x, y, sample_weight\); got a tuple of 1"),
        ([(X[:, :3], Y)], {}, ValueError, r"x must have shape \(rows, 9\), as the net has; got \(37, 3\)"),
        (BATCHES, {"sample_weight": np.ones(37)}, ValueError, "sample_weight goes with x and y; with an iterable"),
        (BATCHES, {"validation": 0.1}, ValueError, r"validation must be \(x, y\) with an iterable of batches; got 0.1"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else None,
)
def test_other_iterables_are_refused(batches, options, error, message):
    net = make_net(dtype=torch.float32)
    with pytest.raises(error, match=message):
        fit(net, batches, **options)
    assert_same_bits(net, make_net(dtype=torch.float32))


def test_what_an_iterable_raises_leaves_the_net_at_the_last_step():
    class Broken:
        def __iter__(self):
            yield from BATCHES[:2]
            raise OSError("the disk is gone")

    net, expected = make_net(dtype=torch.float32), make_net(dtype=torch.float32)
    with pytest.raises(OSError, match="the disk is gone"):
        fit(net, Broken(), epochs=3)
    fit(expected, X[:16], Y[:16], batch_size=8, shuffle=False)
    assert_same_bits(net, expected)


# Targets


@pytest.mark.parametrize("kind", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"])
@pytest.mark.parametrize("torch_tensor", [False, True], ids=["NumPy", "torch"])
def test_classes_may_be_of_every_integer_type(kind, torch_tensor):
    y = Y.numpy().astype(kind)
    assert_trains_as(X, X, y=torch.from_numpy(y) if torch_tensor else y, expected_y=Y)


@pytest.mark.parametrize("kind", ["uint8", "int64", "bool", "float16", "float64"])
def test_values_may_be_of_every_type(kind):
    y = (np.random.default_rng(0).random((ROWS, 5)) < 0.5).astype(kind)
    assert_trains_as(X, X, y=y, expected_y=y.astype(np.float32), loss="bce_with_logits")


@pytest.mark.parametrize("loss", ["mse", "mse_sum", "l1", "huber", "smooth_l1", "bce_with_logits"])
def test_one_row_of_values_stands_for_all(loss):
    row = torch.linspace(0, 1, 5)
    assert_trains_as(X, X, y=row, expected_y=row.repeat(ROWS, 1), loss=loss, lr=1e-3)


@pytest.mark.parametrize(
    ("y", "loss", "error", "message"),
    [
        (Y.float(), "cross_entropy", TypeError, "y must hold integer classes .* or a distribution .*; got float32"),
        (Y.bool(), "cross_entropy", TypeError, "y must hold integer classes .* or a distribution .*; got bool"),
        (torch.full((5,), 0.2), "cross_entropy", TypeError, r"y must hold integer classes \(37,\) or a distribution"),
        (torch.rand(36, 5), "cross_entropy", ValueError, r"y must have shape \(37, 5\)"),
        (torch.where(torch.arange(37) == 11, 5, Y), "cross_entropy", ValueError, r"\[0, 5\); row 11 holds 5"),
        (torch.where(torch.arange(37) == 11, -1, Y), "cross_entropy", ValueError, r"\[0, 5\); row 11 holds -1"),
        (torch.rand(37, 4), "mse", ValueError, r"y must have shape \(37, 5\) or \(5,\); got \(37, 4\)"),
        (Y, "mse", ValueError, r"y must have shape \(37, 5\) or \(5,\); got \(37,\)"),
        (np.full((37, 5), "a"), "mse", TypeError, "y must hold real numbers for loss 'mse'; got <U1"),
        (torch.rand(37, 5).to_sparse(), "mse", TypeError, "y must be a dense tensor"),
        (Y.tolist(), "cross_entropy", TypeError, "y must be a torch.Tensor or a NumPy array; got list"),
    ],
    ids=lambda value: value[:25] if isinstance(value, str) else None,
)
def test_other_targets_are_refused(y, loss, error, message):
    net = make_net(dtype=torch.float32)
    with pytest.raises(error, match=message):
        fit(net, X, y, loss=loss)
    assert_same_bits(net, make_net(dtype=torch.float32))


# What rows and classes count for

XD, YD = make_data()
WEIGHT = torch.tensor([0.5, 1.0, 2.0, 0.0, 4.0], dtype=torch.float64)
LABELS = torch.where(torch.arange(ROWS) % 4 == 1, 2, YD)
DISTRIBUTIONS = torch.rand(ROWS, 5, generator=torch.Generator().manual_seed(5), dtype=torch.float64).softmax(1)


@pytest.mark.parametrize("class_weight", [None, WEIGHT], ids=["", "class_weight"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize(
    ("distributions", "ignore_index"),
    [(False, -100), (False, 2), (False, 7), (True, -100)],
    ids=["classes", "one of them ignored", "another ignored", "distributions"],
)
def test_cross_entropy_is_torchs(distributions, class_weight, label_smoothing, ignore_index):
    y = DISTRIBUTIONS if distributions else torch.where(LABELS == 2, 7, LABELS) if ignore_index == 7 else LABELS
    options = {"label_smoothing": label_smoothing, "ignore_index": ignore_index}
    net, plain = make_net(), make_net().to_sequential()
    history = fit(net, XD, y, lr=0.2, batch_size=8, epochs=3, class_weight=class_weight, **options)
    losses = train_with_torch(
        plain,
        XD,
        lambda z, rows: nn.functional.cross_entropy(z, y[rows], weight=class_weight, **options),
        torch.optim.SGD(plain.parameters(), 0.2),
    )
    assert_near(net, plain)
    np.testing.assert_allclose(history.loss, losses, rtol=1e-12)
    if not distributions:
        whole = nn.functional.cross_entropy(net(XD), y, weight=class_weight, **options).item()
        trainer = Trainer(net, class_weight=class_weight, **options)
        assert trainer.evaluate(XD, y)["loss"] == pytest.approx(whole, rel=1e-13)


def test_a_batch_in_which_nothing_counts_is_no_number_as_in_torch():
    y = torch.full((ROWS,), -100)
    net = make_net()
    with pytest.raises(twolayer.NonFiniteLossError):
        fit(net, XD, y)
    assert_same_bits(net, make_net())


@pytest.mark.parametrize("loss", ["cross_entropy", "mse", "mse_sum", "l1", "smooth_l1", "huber", "bce_with_logits"])
@pytest.mark.parametrize("given", ["classes", "distributions"])
def test_a_sample_weight_is_how_often_a_row_is_there(loss, given):
    y = {"cross_entropy": YD if given == "classes" else DISTRIBUTIONS}.get(loss, make_data("mse")[1])
    counts = torch.arange(ROWS) % 4  # some rows are not there at all
    net, expected = make_net(), make_net()
    options = {"loss": loss, "lr": 1e-3 if loss == "mse_sum" else 0.2, "shuffle": False, "epochs": 5}
    history = fit(net, XD, y, sample_weight=counts, batch_size=ROWS, **options)
    repeated = [t.repeat_interleave(counts, dim=0) for t in (XD, y)]
    apart = fit(expected, *repeated, batch_size=int(counts.sum()), **options)
    assert_near(net, expected)
    np.testing.assert_allclose(history.loss, apart.loss, rtol=1e-12)
    weighed = Trainer(net, loss=loss).evaluate(XD, y, counts)["loss"]
    assert weighed == pytest.approx(Trainer(net, loss=loss).evaluate(*repeated)["loss"], rel=1e-12)


def test_sample_weights_go_with_their_rows_and_with_class_weights():
    weight = torch.rand(ROWS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    net, plain = make_net(), make_net().to_sequential()
    fit(net, XD, YD, sample_weight=weight, class_weight=WEIGHT, lr=0.2, batch_size=8, epochs=3)

    def loss_of(z, rows):
        losses = nn.functional.cross_entropy(z, YD[rows], weight=WEIGHT, reduction="none")
        return (weight[rows] * losses).sum() / (weight[rows] * WEIGHT[YD[rows]]).sum()

    train_with_torch(plain, XD, loss_of, torch.optim.SGD(plain.parameters(), 0.2))
    assert_near(net, plain)


def test_multi_label_is_torchs():
    y = (torch.rand(ROWS, 5, generator=torch.Generator().manual_seed(5)) < 0.3).double()
    assert set(y.sum(dim=1).tolist()) >= {0.0, 1.0, 2.0}
    net, plain = make_net(), make_net().to_sequential()
    history = fit(net, XD, y, loss="bce_with_logits", lr=0.5, batch_size=8, epochs=3, validation=(XD, y))
    train_with_torch(
        plain,
        XD,
        lambda z, rows: nn.functional.binary_cross_entropy_with_logits(z, y[rows]),
        torch.optim.SGD(plain.parameters(), 0.5),
    )
    assert_near(net, plain)
    expected = nn.functional.binary_cross_entropy_with_logits(plain(XD), y).item()
    assert history.val_loss[-1] == pytest.approx(expected, rel=1e-12)
    assert history.val_accuracy == []
