"""Files made to attack: none of them runs anything, and none of them fills the memory."""

from __future__ import annotations

import copyreg
import os
import pickle
import re
import struct
import sys
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from data_files import CORE, TRAIN_IMAGES, npy_of_pickle, object_array, plain_npy, small_arrays, write_idx_folder
from hypothesis import given, settings
from hypothesis import strategies as st

from twolayer.data import load_mnist, load_npy
from twolayer.data.pickled import unpickle_array

# --- a small assembler ----------------------------------------------------------------------------


def text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value.encode())]) + value.encode()  # SHORT_BINUNICODE


def name(module: str, attribute: str) -> bytes:
    return text(module) + text(attribute) + b"\x93"  # STACK_GLOBAL


EMPTY = name(CORE, "_reconstruct") + name("numpy", "ndarray") + b"K\0\x85C\x01b\x87R"  # (ndarray, (0,), b"b")
U1_DTYPE, OBJECT_DTYPE = (name("numpy", "dtype") + text(code) + b"\x89\x88\x87R" for code in ("u1", "O8"))


def dtype_state(order: str, flags: int, fields: bytes = b"NNN") -> bytes:
    """BUILD with (3, order, *fields, -1, -1, flags)."""
    return b"(K\x03" + text(order) + fields + b"J\xff\xff\xff\xff" * 2 + b"K" + bytes([flags]) + b"tb"


U1, OBJECT = U1_DTYPE + dtype_state("|", 0), OBJECT_DTYPE + dtype_state("|", 63)


def array(dtype: bytes, shape: bytes, data: bytes) -> bytes:
    return EMPTY + b"(K\x01" + shape + dtype + b"\x89" + data + b"tb"  # BUILD with (1, shape, dtype, False, data)


def program(*parts: bytes) -> bytes:
    return b"\x80\x04" + b"".join(parts) + b"."


ONE = array(U1, b"K\x01\x85", b"C\x01a")


def test_the_assembler_writes_what_numpy_reads() -> None:
    """Else what it writes below would be refused for a slip in it, and prove nothing."""
    items = b"](" + array(U1, b"K\x02\x85", b"C\x02ab") + b"K\x07e"
    result = pickle.loads(program(array(OBJECT, b"K\x02\x85", items)))
    assert result.shape == (2,)
    assert result[0].tobytes() == b"ab"
    assert result[1] == 7


# --- attacks that run in a loader that trusts the file --------------------------------------------


class Call:
    """Pickles as a call of ``function(*arguments)``."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[object, ...]:
        return self.call


def calls(mark: Path) -> dict[str, bytes]:
    """A call that makes the file ``mark``, pickled wherever a value can stand."""
    touch = f"open({str(mark)!r}, 'w').close()"
    run = {
        "os.system": Call(os.system, f'{sys.executable} -c "{touch}"'),
        "eval": Call(eval, touch),
        "exec": Call(exec, touch),
    }
    places: dict[str, Callable[[Call], object]] = {
        "bare": lambda call: call,
        "in an object array": lambda call: object_array([call]),
        "in an array in an array": lambda call: object_array([object_array([call])]),
        "in a list in an array": lambda call: object_array([[call]]),
        "as a subtype": lambda call: Call(np.empty(0).__reduce__()[0], Call(type, np.ndarray), call, b"b"),
        "as a dtype": lambda call: Call(np.dtype, call),
    }
    return {f"{kind} {place}": pickle.dumps(put(run[kind]), 4) for kind in run for place, put in places.items()}


def tricks(mark: Path) -> dict[str, bytes]:
    """Ways to a call, or to an attribute, that a plain list of names can miss; each makes ``mark``."""
    source, path = text(f"open({str(mark)!r}, 'w').close()"), text(str(mark))
    run, attr, maildir = name("builtins", "exec"), name("builtins", "getattr"), name("mailbox", "Maildir")
    return {
        "getattr": program(
            attr, attr, name("os", "path"), text("os"), b"\x86R", text("mkdir"), b"\x86R", path, b"\x85R"
        ),
        "dotted name": program(name("os", "path.os.mkdir"), path, b"\x85R"),
        "dotted from an admitted function": program(name(CORE, "_reconstruct.__class__"), b"0", run, source, b"\x85R"),
        "dotted from an admitted class": program(name("numpy", "ndarray.tofile"), ONE, path, b"\x86R"),
        "from an admitted module": program(name("numpy", "save"), path, ONE, b"\x86R"),
        "GLOBAL": b"\x80\x02cbuiltins\nexec\n" + source + b"\x85R.",
        "INST": program(b"(", source, b"ibuiltins\nexec\n"),
        "OBJ": program(b"(", run, source, b"o"),
        "copyreg": program(name("copyreg", "_reconstructor"), maildir, maildir, path, b"\x87R"),
        "setstate": program(name("functools", "partial"), run, b"\x85R(", run, source, b"\x85}Ntb)R"),
        "extension": program(b"\x82\xf0", source, b"\x85R"),
    }


def attacks(mark: Path) -> dict[str, bytes]:
    return calls(mark) | tricks(mark)


@pytest.fixture
def extension() -> Iterator[None]:
    """``exec`` as a copyreg extension already used once: pickle then takes it from its cache, past ``find_class``."""
    copyreg.add_extension("builtins", "exec", 0xF0)
    pickle.loads(b"\x80\x02\x82\xf0.")
    yield
    copyreg.remove_extension("builtins", "exec", 0xF0)


@pytest.mark.usefixtures("extension")
@pytest.mark.parametrize("attack", attacks(Path("mark")))
def test_no_attack_runs(tmp_path: Path, attack: str) -> None:
    mark, path = tmp_path / "mark", tmp_path / "mnist.npy"
    path.write_bytes(npy_of_pickle(attacks(mark)[attack]))
    for load in (load_npy, load_mnist):
        with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: .*nothing was run"):
            load(path)
    assert not any(tmp_path.glob("mark*"))

    with suppress(Exception):  # most attacks do their work and then fail to be an array
        np.load(path, allow_pickle=True)
    assert any(tmp_path.glob("mark*")), "the attack does not work even where it is let, so that it proves nothing"


# --- pickles that are no arrays, or no pickles ----------------------------------------------------

SLOTS = b"N}" + text("__defaults__") + b")s\x86b"  # BUILD with (None, {"__defaults__": ()}): setattr on its target
REFUSED = {
    "setattr on an admitted function": (program(name(CORE, "_reconstruct"), SLOTS), "EMPTY_DICT"),
    "state for an admitted function": (program(name(CORE, "_reconstruct"), b"Nb"), "dtype for RECONSTRUCT"),
    "state for an admitted class": (program(name("numpy", "ndarray"), b"Nb"), "dtype for NDARRAY"),
    "admitted names as the array": (program(name("numpy", "ndarray")), "one NumPy array; got NDARRAY"),
    "array that was never filled": (program(EMPTY), "before its data have come"),
    "array filled twice": (program(ONE, b"(K\x01K\x01\x85", U1, b"\x89C\x01atb"), "plain dtype for Array"),
    "array inside itself": (program(EMPTY, b"q\0(K\x01K\x01\x85", OBJECT, b"\x89]h\0atb"), "before its data have come"),
    "bytes for objects": (program(array(OBJECT, b"K\x01\x85", b"C\x08AAAAAAAA")), "as a list; got bytes"),
    "flags that deny objects": (
        program(array(OBJECT_DTYPE + dtype_state("|", 0), b"K\x01\x85", b"C\x08AAAAAAAA")),
        "as a list; got bytes",
    ),
    "scalar of objects": (program(name(CORE, "scalar"), OBJECT, b"C\x08AAAAAAAA\x86R"), "as a list; got bytes"),
    "list for numbers": (program(array(U1, b"K\x01\x85", b"]K\x07a")), "plain dtype for Array"),
    "tuple in an object array": (program(array(OBJECT, b"K\x01\x85", b"])a")), "in an object array; got tuple"),
    "dtype in an object array": (program(array(OBJECT, b"K\x01\x85", b"]" + U1 + b"a")), "object array; got Dtype"),
    "fields": (program(U1_DTYPE, dtype_state("|", 0, b"N)]")), "plain dtype for Dtype"),
    "byte order that is none": (program(U1_DTYPE, dtype_state("!", 0)), "plain dtype for Dtype"),
    "structured dtype": (program(name("numpy", "dtype"), text("u1,O"), b"\x89\x88\x87R"), "got 'u1,O'"),
    "long dtype": (program(name("numpy", "dtype"), text("u1" * 99), b"\x89\x88\x87R"), "got 'u1u1u1u1u1u1u1u1u1u1'"),
    "negative size": (program(array(U1, b"J\xff\xff\xff\xff\x85", b"C\x01a")), "integers, none negative"),
    "size that is text": (program(array(U1, text("1") + b"\x85", b"C\x01a")), "integers, none negative"),
    "shape without its data": (program(array(U1, b"K\x02\x85", b"C\x01a")), "expected 2 bytes .* got 1"),
    "shape without its items": (program(array(OBJECT, b"K\x02\x85", b"]")), "expected 2 items .* got 0"),
    "too many dimensions": (program(array(U1, b"(" + b"K\x01" * 99 + b"t", b"C\x01a")), "dimension"),
    "another codec": (program(name("_codecs", "encode"), text("a"), text("rot13"), b"\x86R"), "got ENCODE"),
    "text beyond latin1": (program(name("_codecs", "encode"), text("語"), text("latin1"), b"\x86R"), "latin-1"),
    "bytes of a size": (program(name("__builtin__", "bytes"), b"K\x09\x85R"), "got BYTES"),
    "another subtype": (program(name(CORE, "_reconstruct"), b"NK\0\x85C\x01b\x87R"), "got RECONSTRUCT"),
    "call of an array": (program(ONE, b")R"), "rebuilds a NumPy array; got Array"),
    "NEWOBJ": (program(name("numpy", "ndarray"), b")\x81"), "got NEWOBJ"),
    "persistent id": (program(b"Pid\n"), "got PERSID"),
    "out-of-band buffer": (program(b"\x97"), "got NEXT_BUFFER"),
    "name that is no text": (program(b"K\x01K\x02\x93"), "as text; got int and int"),
    "append to no list": (program(b"K\x01K\x02a"), "list to append to; got int"),
    "two results": (program(ONE, ONE), "one NumPy array"),
    "no result": (program(), "one NumPy array"),
    "stack underflow": (program(b"\x86"), "never made"),
    "underflow of a mark": (program(b"K\x01(\x85"), "never made"),
    "no mark": (program(b"K\x01t"), "never made"),
    "no such memo": (program(b"h\x07"), "never made"),
    "no STOP": (b"\x80\x04K\x01", "before seeing STOP"),
    "no such opcode": (program(b"\xff"), "opcode b'\\\\xff' unknown"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    data, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        unpickle_array(data)


FRAGMENTS = [
    *(name(CORE, "_reconstruct"), name(CORE, "scalar"), name("numpy", "ndarray"), name("numpy", "dtype")),
    *(name("_codecs", "encode"), EMPTY, U1, OBJECT, ONE, text("u1"), text("latin1"), b"C\x01b", b"K\x01", b"N"),
    *(bytes([opcode]) for opcode in b"()t]aeRb0\x85\x86\x87\x88\x93\x94"),
    *(b"h\x00", b"h\x01", b"q\x00"),
]


@settings(max_examples=500, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(FRAGMENTS), max_size=30))
def test_any_program_gives_an_array_or_a_value_error(parts: list[bytes]) -> None:
    try:
        result = unpickle_array(program(*parts))
    except ValueError:
        return
    assert type(result) is np.ndarray


# --- files made to fill the memory ----------------------------------------------------------------


@contextmanager
def memory_below(limit: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < limit


TERA = b"\x8a\x06" + (2**40).to_bytes(6, "little")  # LONG1
MANY = 100_000
# Memo 0 is something large, and the pieces after it use it: as an array, as bytes, as an object array.
STORED_BYTES = b"B" + struct.pack("<I", MANY) + bytes(MANY) + b"q\0"
STORED_TEXT = b"X" + struct.pack("<I", MANY) + bytes(MANY) + b"q\0"
STORED_LIST = b"](" + b"N" * MANY + b"eq\0"
AS_NUMBERS = array(U1, b"J" + struct.pack("<i", MANY) + b"\x85", b"h\0")
AS_BYTES = name("_codecs", "encode") + b"h\0" + text("latin1") + b"\x86R"
AS_OBJECTS = array(OBJECT, b"J" + struct.pack("<i", MANY) + b"\x85", b"h\0")
TWICE = (bytes([0x68, i, 0x68, i, 0x86, 0x71, i + 1]) for i in range(200))  # memo i + 1 is the tuple of memo i, twice
DOUBLED = b"()q\0" + b"".join(TWICE) + b"t"
BOMBS = {
    "shape of numbers": (npy_of_pickle(program(array(U1, TERA + b"\x85", b"C\x01a"))), "expected 1099511627776 bytes"),
    "shape of objects": (npy_of_pickle(program(array(OBJECT, TERA + b"\x85", b"]"))), "expected 1099511627776 items"),
    "shape in the header": (
        plain_npy(np.zeros(1), {"descr": "<f8", "fortran_order": False, "shape": (2**40,)}),
        "expected 8796093022208 bytes of data; got 8",
    ),
    "bytes": (npy_of_pickle(program(b"\x8e" + struct.pack("<Q", 2**40) + b"a")), "expected 1099511627776 bytes"),
    "text": (npy_of_pickle(program(b"\x8d" + struct.pack("<Q", 2**40) + b"a")), "expected 1099511627776 bytes"),
    "frame": (npy_of_pickle(program(b"\x95" + struct.pack("<Q", 2**40))), "one NumPy array"),
    "memo index": (npy_of_pickle(program(b"Nr\xff\xff\xff\xff")), "one NumPy array; got NoneType"),
    "header": (b"\x93NUMPY\x02\x00\xff\xff\xff\xff{", "version 1.0"),
    "bytes as many arrays": (npy_of_pickle(program(b"](", STORED_BYTES, AS_NUMBERS * 999, b"e")), "again and again"),
    "text as many bytes": (npy_of_pickle(program(b"](", STORED_TEXT, AS_BYTES * 9999, b"e")), "again and again"),
    "list as many arrays": (npy_of_pickle(program(b"](", STORED_LIST, AS_OBJECTS * 999, b"e")), "again and again"),
    "tuples of tuples": (npy_of_pickle(program(DOUBLED)), "one NumPy array; got tuple"),
    "tuples of tuples called": (npy_of_pickle(program(name("numpy", "dtype"), DOUBLED, b"R")), "got DTYPE"),
}


@pytest.mark.parametrize("case", BOMBS)
def test_bomb_is_refused_in_little_memory(tmp_path: Path, case: str) -> None:
    data, message = BOMBS[case]
    path = tmp_path / "bomb.npy"
    path.write_bytes(data)
    with memory_below(50 << 20), pytest.raises(ValueError, match=message) as error:
        load_npy(path)
    assert str(error.value).startswith(f"{path}: ")
    assert len(str(error.value)) < 1000


def test_idx_that_declares_more_than_it_has(tmp_path: Path) -> None:
    write_idx_folder(tmp_path, small_arrays(), "")
    for count, message in ((2**32 - 1, "expected at most"), (10**6, "the file is truncated")):
        (tmp_path / TRAIN_IMAGES).write_bytes(struct.pack(">4B3I", 0, 0, 8, 3, count, 28, 28) + bytes(784))
        with memory_below(50 << 20), pytest.raises(ValueError, match=message):
            load_mnist(tmp_path)


def test_zip_that_declares_too_much(tmp_path: Path) -> None:
    path = tmp_path / "mnist.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x_train.npy", bytes(100))
        archive.infolist()[0].file_size = 1 << 40  # goes into the directory, which is written on closing
    with pytest.raises(ValueError, match=r"expected at most .* bytes in x_train"):
        load_mnist(path)
