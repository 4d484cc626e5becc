"""Reads what `torch.save` wrote: tensors and plain values, and nothing else, in memory that the file's size bounds.

A pickle is a program that can call any function. Here it can call four, all of this file; every other name in it
becomes a `Foreign`, or is refused. `torch.load` would hand TorchScript archives to `torch.jit`, and with `weights_only`
there are still hundreds of callables, some of which allocate whatever size a file names.

There are two formats: a zip archive with `data.pkl` and a member for each storage (since PyTorch 1.6), and before that
several pickles in a row, followed by the storages.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

MAGIC = 0x1950A86A20F9469CFC6C
"""What the older format begins with, as a pickle."""
OLD_START = pickle.dumps(MAGIC, 2)
OLD_VERSION = 1001
ZIP_START = b"PK\x03\x04"
DATA = "/data.pkl"
"""Ends the name of the member of a zip archive that describes the tensors."""
MOST_DIMENSIONS = 64
_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_KEYS = (str, int, float, bool, bytes, type(None))
"""Types that keys of dicts may have. A tuple's hash could exhaust the stack."""


class Foreign(NamedTuple):
    """Stands for an object that is neither a tensor nor a plain value. Nothing of the object exists here."""

    kind: str
    """Name of its class, such as `lib.train.admin.stats.StatValue`."""


def read_tensor_file(path: Path, only_plain: bool, with_tensors: bool = True) -> Any:
    """The object in a file of `torch.save`: dicts, lists, tuples, numbers, text and tensors.

    `only_plain`: refuse a file that has other objects, instead of replacing each by a `Foreign`. `with_tensors`: False
    leaves the tensors of an archive unread; they are on torch's device `meta`, which has no numbers. A file that is
    damaged can raise any error of zip, pickle and torch.
    """
    with path.open("rb") as file:
        zipped = file.read(len(ZIP_START)) == ZIP_START
    if zipped:
        return _read_archive(path, only_plain, with_tensors)
    return _read_stream(path.read_bytes(), only_plain)


def _read_archive(path: Path, only_plain: bool, with_tensors: bool) -> Any:
    budget = _Budget(path.stat().st_size)
    storages: dict[str, Tensor] = {}
    with zipfile.ZipFile(path) as archive:
        root = next(name for name in archive.namelist() if name.endswith(DATA)).removesuffix(DATA)

        def member(name: str, size: int | None = None) -> zipfile.ZipInfo:
            info = archive.getinfo(f"{root}/{name}")
            if info.compress_type != zipfile.ZIP_STORED or size not in (None, info.file_size):
                raise pickle.UnpicklingError(f"{name} is compressed or of another size than it should be")
            budget.spend(info.file_size)
            return info

        def storage(dtype: torch.dtype, key: str, numel: int) -> Tensor:
            if key not in storages:
                info = member(f"data/{key}", numel * dtype.itemsize)
                storages[key] = torch.empty(numel, dtype=dtype, device=None if with_tensors else "meta")
                if with_tensors:
                    with archive.open(info) as file:
                        _fill(storages[key], file)
            return storages[key]

        if f"{root}/byteorder" in archive.namelist() and archive.read(member("byteorder")) != b"little":
            raise pickle.UnpicklingError("it was written on a machine with another byte order")
        content = archive.read(member(DATA[1:]))
        return _Unpickler(io.BytesIO(content), storage, only_plain).load()


def _read_stream(content: bytes, only_plain: bool) -> Any:
    file, budget = io.BytesIO(content), _Budget(len(content))
    storages: dict[str, Tensor] = {}

    def storage(dtype: torch.dtype, key: str, numel: int) -> Tensor:
        if key not in storages:
            budget.spend(numel * dtype.itemsize)
            storages[key] = torch.zeros(numel, dtype=dtype)
        return storages[key]

    def load() -> Any:
        return _Unpickler(file, storage, only_plain).load()

    if (load(), load()) != (MAGIC, OLD_VERSION):
        raise pickle.UnpicklingError("it does not begin as a file of torch.save")
    load()  # sizes of C's types on the machine that wrote it
    result, keys = load(), load()
    if sorted(keys) != sorted(storages):
        raise pickle.UnpicklingError("the list of its storages is not that of its tensors")
    for key in keys:
        if int.from_bytes(file.read(8), "little") != storages[key].numel():
            raise pickle.UnpicklingError("a storage has another size than its tensors")
        _fill(storages[key], file)
    return result


class _Budget:
    """Bytes that may still be read: all parts together are not larger than their file."""

    def __init__(self, size: int) -> None:
        self._left = size

    def spend(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise pickle.UnpicklingError("its parts claim to be larger than the file")


def _fill(flat: Tensor, file: Any) -> None:
    """Reads a storage's bytes from a file."""
    if flat.numel() and file.readinto(flat.view(torch.uint8).numpy()) < flat.nbytes:
        raise EOFError("it is cut off within a tensor")


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    """What a pickle calls for each tensor: a view of a 1-D storage."""
    if not isinstance(storage, Tensor) or not (isinstance(size, tuple) and isinstance(stride, tuple)):
        raise pickle.UnpicklingError("a tensor without storage or shape")
    if not len(size) == len(stride) <= MOST_DIMENSIONS or not _are_counts(offset, *size, *stride):
        raise pickle.UnpicklingError("a tensor's shape is not one")
    if math.prod(size) > storage.numel():
        raise pickle.UnpicklingError("a tensor is larger than its storage")
    return storage.as_strided(size, stride, storage.storage_offset() + offset)  # which checks the bounds


def _rebuild_parameter(data: Any, *_: Any) -> Any:
    return data


def _ordered_dict(*arguments: Any) -> dict[Any, Any]:
    """The arguments may be a list of pairs, as Python 2 wrote them. `_move` empties the list."""
    return _move(arguments, list, lambda pairs: pairs, {})


def _counter(*arguments: Any) -> Counter[Any]:
    """A learning-rate schedule's milestones."""
    return _move(arguments, dict, dict.items, Counter())


def _move(arguments: tuple[Any, ...], kind: Any, items: Callable[[Any], Any], target: Any) -> Any:
    """Moves the items of the one argument, if any, into `target`: naming it many times must not fill the memory."""
    if arguments:
        (source,) = arguments
        if type(source) is not kind:
            raise pickle.UnpicklingError(f"a {type(target).__name__} of something else than a {kind.__name__}")
        for key, value in items(source):
            if type(key) in _KEYS:
                target[key] = value
        source.clear()
    return target


class _Name(NamedTuple):
    """A class or function that a pickle mentions."""

    name: str
    make: Callable[..., Any] | None
    """What is called in its place, or None for what is left out."""


_CALLABLE: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "collections.OrderedDict": _ordered_dict,
    "collections.Counter": _counter,
}


def _are_counts(*values: Any) -> bool:
    return all(type(value) is int and value >= 0 for value in values)


class _Unpickler(pickle._Unpickler):
    """Python's own unpickler, with every operation replaced that calls, builds, hashes or allocates by a number.

    (The one in C allocates 64 GB for a pickle of ten bytes that numbers its only object 2**32 - 1.)
    """

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    stack: list[Any]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, file: io.BytesIO, storage: Callable[[torch.dtype, str, int], Tensor], only_plain: bool) -> None:
        super().__init__(file, encoding="utf-8")
        self._storage, self._only_plain = storage, only_plain

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        full = f"{module}.{name}"
        if full not in _CALLABLE and self._only_plain:
            raise pickle.UnpicklingError(f"it names {full[:200]}, which is neither a tensor nor a plain value")
        return _Name(full, _CALLABLE.get(full))

    def persistent_load(self, saved: Any) -> Tensor:
        """A storage: ("storage", dtype, key, device, number of elements), and in old files a part of one."""
        if type(saved) is not tuple or len(saved) not in (5, 6) or saved[0] != "storage":
            raise pickle.UnpicklingError("it refers to something else than a storage")
        _, dtype, key, _, numel = saved[:5]
        if not (isinstance(dtype, torch.dtype) and isinstance(key, str) and _are_counts(numel)):
            raise pickle.UnpicklingError("a storage's description is not one")
        flat = self._storage(dtype, key, numel)
        if len(saved) == 5 or saved[5] is None:
            return flat
        _, start, length = saved[5]
        if not _are_counts(start, length) or start + length > flat.numel():
            raise pickle.UnpicklingError("a part of a storage is not within it")
        return flat[start : start + length]

    def _make(self, what: Any, arguments: Any) -> Any:
        if isinstance(what, _Name) and what.make is not None and type(arguments) is tuple:
            return what.make(*arguments)
        return self._foreign(what.name if isinstance(what, _Name) else "object")

    def _foreign(self, kind: str) -> Foreign:
        if self._only_plain:
            raise pickle.UnpicklingError(f"it holds a {kind[:200]}, which is neither a tensor nor a plain value")
        return Foreign(kind)

    def _set(self, target: Any, items: list[Any]) -> None:
        if type(target) is dict:
            for key, value in zip(items[::2], items[1::2], strict=True):
                if type(key) in _KEYS:
                    target[key] = value
                else:
                    self._foreign("key of another type")
        else:
            self._foreign("dict of another type")

    def _append(self, target: Any, items: list[Any]) -> None:
        if type(target) is list:
            target.extend(items)
        else:
            self._foreign("list of another type")

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = self._make(self.stack[-1], arguments)

    def load_newobj_ex(self) -> None:
        self.stack.pop()
        self.load_reduce()

    def load_obj(self) -> None:
        what, *arguments = self.pop_mark()
        self.stack.append(self._make(what, tuple(arguments)))

    def load_build(self) -> None:
        self.stack.pop()

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.stack.append({})
        self._set(self.stack[-1], items)

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set(self.stack[-1], [key, value])

    def load_setitems(self) -> None:
        items = self.pop_mark()
        self._set(self.stack[-1], items)

    def load_append(self) -> None:
        item = self.stack.pop()
        self._append(self.stack[-1], [item])

    def load_appends(self) -> None:
        items = self.pop_mark()
        self._append(self.stack[-1], items)

    def load_empty_set(self) -> None:
        self.stack.append(self._foreign("set"))

    def load_additems(self) -> None:
        self.pop_mark()

    def load_frozenset(self) -> None:
        self.pop_mark()
        self.load_empty_set()

    def load_unsupported(self) -> None:
        raise pickle.UnpicklingError("it has an operation that torch.save does not write")


_Unpickler.dispatch |= {
    code[0]: method
    for codes, method in (
        ((pickle.REDUCE, pickle.NEWOBJ), _Unpickler.load_reduce),
        ((pickle.NEWOBJ_EX,), _Unpickler.load_newobj_ex),
        ((pickle.OBJ,), _Unpickler.load_obj),
        ((pickle.BUILD,), _Unpickler.load_build),
        ((pickle.DICT,), _Unpickler.load_dict),
        ((pickle.SETITEM,), _Unpickler.load_setitem),
        ((pickle.SETITEMS,), _Unpickler.load_setitems),
        ((pickle.APPEND,), _Unpickler.load_append),
        ((pickle.APPENDS,), _Unpickler.load_appends),
        ((pickle.EMPTY_SET,), _Unpickler.load_empty_set),
        ((pickle.ADDITEMS,), _Unpickler.load_additems),
        ((pickle.FROZENSET,), _Unpickler.load_frozenset),
        ((pickle.INST, pickle.EXT1, pickle.EXT2, pickle.EXT4), _Unpickler.load_unsupported),
        ((pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER), _Unpickler.load_unsupported),
    )
    for code in codes
}
