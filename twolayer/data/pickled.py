"""Reads the pickle inside an object ``.npy`` as data. No pickle is ever run.

Loading a pickle lets the file call anything it can name, and even NumPy's own ``__setstate__`` is unsafe on hostile
state: an object dtype whose forged flags deny that it holds objects makes raw bytes into pointers. So nothing here
goes through :mod:`pickle`: ``pickletools`` decodes the opcodes, the machine below knows the two dozen that NumPy's
arrays need, and the six names it admits stand for the code in this file, not for NumPy's. Whatever else the file
asks for is a ``ValueError``.

What NumPy writes (``ndarray.__reduce__``, ``dtype.__reduce__`` and ``generic.__reduce__``):
    array   REDUCE _reconstruct(ndarray, (0,), b"b")   BUILD (1, shape, dtype, is_fortran, bytes or list)
    dtype   REDUCE dtype(code, align, copy)            BUILD (3, byte order, None, None, None, -1, -1, flags)
    scalar  REDUCE scalar(dtype, bytes)
    bytes   REDUCE _codecs.encode(text, "latin1")      only before protocol 3, which brought the opcode for bytes;
            REDUCE __builtin__.bytes()                 and when there are none
"""

from __future__ import annotations

import enum
import io
import math
import pickletools
import re
from dataclasses import dataclass
from typing import Any

import numpy as np


class _Name(enum.Enum):
    """What an admitted global stands for; never a callable."""

    NDARRAY = enum.auto()
    DTYPE = enum.auto()
    RECONSTRUCT = enum.auto()
    SCALAR = enum.auto()
    ENCODE = enum.auto()
    BYTES = enum.auto()


_ADMITTED = {
    ("numpy", "ndarray"): _Name.NDARRAY,
    ("numpy", "dtype"): _Name.DTYPE,
    ("numpy.core.multiarray", "_reconstruct"): _Name.RECONSTRUCT,  # NumPy 1
    ("numpy._core.multiarray", "_reconstruct"): _Name.RECONSTRUCT,  # NumPy 2
    ("numpy.core.multiarray", "scalar"): _Name.SCALAR,
    ("numpy._core.multiarray", "scalar"): _Name.SCALAR,
    ("__builtin__", "bytes"): _Name.BYTES,  # safe: it stands for b"" below, and takes no argument
    ("_codecs", "encode"): _Name.ENCODE,  # safe: it stands for str.encode("latin1") below, no other codec is reachable
}
_DTYPE_CODE = re.compile(r"b1|[iu][1248]|f[248]|c8|c16|O[48]")

_IGNORED = {"PROTO", "FRAME"}
_LITERALS = {
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT",
    "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8",
}  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass
class _Dtype:
    value: np.dtype[Any]


@dataclass
class _Array:
    value: np.ndarray | None = None  # None between REDUCE and BUILD


_ELEMENTS = (int, float, str, bytes, type(None), np.generic, _Array)


def unpickle_array(data: bytes) -> np.ndarray:
    """Return the array that the pickle ``data`` describes, of numbers or of objects that are numbers, text or arrays.

    ``ValueError`` when the pickle holds anything else, is damaged, or describes far more than its own size in bytes.
    """
    stream, machine = io.BytesIO(data), _Machine(2 * len(data))
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name == "STOP":
                if trailing := len(data) - stream.tell():
                    raise ValueError(f"expected the pickle to end the file; {trailing} bytes follow it")
                return machine.result()
            machine.step(opcode.name, argument)
    except (IndexError, KeyError) as error:  # stack, mark or memo entry that is not there
        raise ValueError("the pickle is damaged: it uses a value that it never made") from error
    raise AssertionError("pickletools.genops ends with STOP or an error")


class _Machine:
    """The pickle machine, less everything that calls, imports or sets an attribute."""

    def __init__(self, budget: int) -> None:
        # Bytes that may still be made. An honest file makes each of its own at most twice, from text and as an array;
        # one that asks for more uses the same bytes again and again to fill the memory.
        self.budget = budget
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def step(self, opcode: str, argument: Any) -> None:
        if opcode in _LITERALS:
            self.stack.append(argument)
        elif opcode in _CONSTANTS:
            self.stack.append(_CONSTANTS[opcode])
        elif opcode in _TUPLES:
            self.stack.append(self.pop(_TUPLES[opcode]))
        elif opcode not in _IGNORED:
            self.act(opcode, argument)

    def act(self, opcode: str, argument: Any) -> None:
        match opcode:
            case "MARK":
                self.marks.append(len(self.stack))
            case "TUPLE":
                self.stack.append(self.pop_marked())
            case "EMPTY_LIST":
                self.stack.append([])
            case "APPEND":
                self.extend(self.pop(1))
            case "APPENDS":
                self.extend(self.pop_marked())
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self.stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.stack[-1]
            case "BINGET" | "LONG_BINGET":
                self.stack.append(self.memo[argument])
            case "GLOBAL":
                self.stack.append(_admit(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                self.stack.append(_admit(*self.pop(2)))
            case "REDUCE":
                self.stack.append(self.reduce(*self.pop(2)))
            case "BUILD":
                target, state = self.pop(2)
                self.build(target, state)
                self.stack.append(target)
            case _:
                raise ValueError(
                    f"expected only opcodes that np.save writes under Python 3; got {opcode}; nothing was run"
                )

    def pop(self, count: int) -> tuple[Any, ...]:
        floor = self.marks[-1] if self.marks else 0
        if len(self.stack) - count < floor:
            raise IndexError("stack underflow")
        return self.pop_from(len(self.stack) - count)

    def pop_marked(self) -> tuple[Any, ...]:
        return self.pop_from(self.marks.pop())

    def pop_from(self, start: int) -> tuple[Any, ...]:
        values = tuple(self.stack[start:])
        del self.stack[start:]
        return values

    def extend(self, values: tuple[Any, ...]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise ValueError(f"expected a list to append to; got {type(target).__name__}")
        target.extend(values)

    def spend(self, size: int) -> None:
        self.budget -= size
        if self.budget < 0:
            raise ValueError("the pickle uses its bytes again and again: it describes more data than it holds")

    def reduce(self, function: Any, arguments: Any) -> Any:
        match function, arguments:
            case _Name.RECONSTRUCT, (_Name.NDARRAY, (0,), b"b"):
                return _Array()
            case _Name.DTYPE, (str(code), _, _):
                return _dtype(code)
            case _Name.SCALAR, (_Dtype(dtype), bytes(data)):
                return self.numbers((), dtype, data, "C")[()]
            case _Name.BYTES, ():
                return b""
            case _Name.ENCODE, (str(text), "latin1"):
                self.spend(len(text))
                return text.encode("latin1")
        raise ValueError(f"expected a call that rebuilds a NumPy array; got {_called(function)}; nothing was run")

    def build(self, target: Any, state: Any) -> None:
        match target, state:
            # The flags are dropped: forged ones are how a pickle makes NumPy take bytes for pointers.
            case _Dtype(dtype), (3, "<" | ">" | "|" | "=" as order, None, None, None, int(), int(), int()):
                target.value = dtype.newbyteorder(order)
            case _Array(None), (1, tuple(shape), _Dtype(dtype), int(), list(items)) if dtype.kind == "O":
                target.value = self.objects(_checked(shape), items)
            case _Array(None), (1, tuple(shape), _Dtype(dtype), int(is_fortran), bytes(data)):
                target.value = self.numbers(_checked(shape), dtype, data, "F" if is_fortran else "C")
            case _:
                raise ValueError(f"expected the state of a NumPy array or of a plain dtype for {_called(target)}")

    def numbers(self, shape: tuple[int, ...], dtype: np.dtype[Any], data: bytes, order: Any) -> np.ndarray:
        if dtype.kind == "O":
            raise ValueError("expected the items of an object array as a list; got bytes")
        expected = math.prod(shape) * dtype.itemsize
        if len(data) != expected:
            raise ValueError(f"expected {expected} bytes for an array of shape {shape}, {dtype}; got {len(data)}")
        self.spend(expected)
        return np.frombuffer(bytearray(data), dtype).reshape(shape, order=order)  # bytearray: the result can be written

    def objects(self, shape: tuple[int, ...], items: list[Any]) -> np.ndarray:
        expected = math.prod(shape)
        if len(items) != expected:
            raise ValueError(f"expected {expected} items for an object array of shape {shape}; got {len(items)}")
        self.spend(len(items))
        array = np.empty(len(items), object)
        for i, item in enumerate(items):
            if not isinstance(item, _ELEMENTS):
                raise ValueError(f"expected arrays, numbers or text in an object array; got {_called(item)}")
            array[i] = _built(item) if isinstance(item, _Array) else item
        return array.reshape(shape)  # a list stands in C order, whatever the Fortran flag says

    def result(self) -> np.ndarray:
        (value,) = self.pop(len(self.stack)) if len(self.stack) == 1 else (None,)
        if not isinstance(value, _Array):
            raise ValueError(f"expected one NumPy array; got {_called(value)}")
        return _built(value)


def _admit(module: Any, name: Any) -> _Name:
    if not (isinstance(module, str) and isinstance(name, str)):
        raise ValueError(f"expected the name of a global as text; got {_called(module)} and {_called(name)}")
    try:
        return _ADMITTED[module, name]
    except KeyError:
        raise ValueError(
            f"the pickle asks for {f'{module}.{name}'[:80]!r}; only NumPy's arrays are admitted and nothing was run"
        ) from None


def _dtype(code: str) -> _Dtype:
    if not _DTYPE_CODE.fullmatch(code):
        raise ValueError(f"expected a bool, integer, float, complex or object dtype; got {code[:20]!r}")
    return _Dtype(np.dtype(object if code.startswith("O") else code))


def _checked(shape: tuple[Any, ...]) -> tuple[int, ...]:
    if not all(isinstance(size, int) and size >= 0 for size in shape):
        raise ValueError("expected an array shape of integers, none negative")
    return shape


def _built(array: _Array) -> np.ndarray:
    if array.value is None:
        raise ValueError("the pickle uses an array before its data have come")
    return array.value


def _called(value: Any) -> str:
    """A short name for an error; never the repr of a value, which a hostile file can make exponentially long."""
    return value.name if isinstance(value, _Name) else type(value).__name__.lstrip("_")
