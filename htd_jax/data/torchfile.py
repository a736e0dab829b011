"""The tensors of a PyTorch checkpoint, read without PyTorch and without running code from the file.

`torch.save` writes a zip archive: `data.pkl`, a pickle of the object with a reference for every storage, and each
storage's bytes as `data/<key>` (torch/serialization.py, since version 1.6). A pickle is a program for a small stack
machine, and a general unpickler calls what the file names. This reader imports no name from the file: it interprets the
opcodes itself, builds containers, numbers and strings, recognises the few names that make up tensors, and replaces all
other objects, such as configurations and functions, by one inert value.
"""

import itertools
import math
import pickletools
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import ml_dtypes
import numpy as np

from htd_jax.data.files import MOST_ARRAYS, MOST_PICKLE
from htd_jax.errors import UserError, reading, reason, shown

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

# The dtypes of storages, by name.
STORAGES: dict[str, np.dtype[Any]] = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": BFLOAT16,
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
    "ComplexFloatStorage": np.dtype(np.complex64),
    "ComplexDoubleStorage": np.dtype(np.complex128),
}

# The start of files from before the zip archive: a pickle of a magic number.
LEGACY = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"

# The longest key of a dict that is searched for tensors; names are keys joined with dots.
LONGEST_KEY = 200

# The largest depth of nested containers that is searched; checkpoints have three levels.
DEPTH = 8


class Tensor(NamedTuple):
    """Location of a tensor: in storage `key` from `offset` on, with `strides` in numbers per axis."""

    key: str
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Checkpoint:
    """A file written by `torch.save`.

    Attributes:
      tensors: the tensors in dicts, lists and tuples, by their path joined with dots: `state_dict.users.weight`.

    Raises:
      UserError: if the file cannot be read, is damaged, or has another format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with reading(path, "a torch checkpoint"):
            with open(path, "rb") as file:
                start = file.read(64)
                file.seek(0, 2)
                self._size = file.tell()
            if LEGACY in start:
                raise UserError(
                    f"{shown(path)}: in the format of torch before 1.6; save it again with a current torch: "
                    "torch.save(torch.load(path), path)"
                )
            if not start.startswith(b"PK"):
                raise UserError(f"{shown(path)}: not a torch checkpoint, which is a zip archive")
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
                pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
                if len(pickles) != 1:
                    raise UserError(f"{shown(path)}: not a torch checkpoint: the zip archive holds no data.pkl")
                self._root = pickles[0].removesuffix("data.pkl")
                program = self._member(archive, "data.pkl", MOST_PICKLE)
                order = self._member(archive, "byteorder", 16) if self._root + "byteorder" in names else b"little"
            if order not in (b"little", b"big"):
                raise ValueError("its byte order is neither little nor big")
            self._order: Literal["<", ">"] = "<" if order == b"little" else ">"
            self.tensors = dict(itertools.islice(_tensors(_run(program)), MOST_ARRAYS + 1))
        if len(self.tensors) > MOST_ARRAYS:
            raise UserError(f"{shown(path)}: holds more than {MOST_ARRAYS} tensors, which is the most that is read")

    def read(self, name: str) -> np.ndarray:
        """Returns a tensor, as a view of its storage.

        Raises:
          UserError: if its storage is missing or damaged, or the tensor reaches beyond it.
        """
        tensor = self.tensors[name]
        at = f"{shown(self.path)}: {shown(name)}"
        count = math.prod(tensor.shape)
        last = tensor.offset + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides))
        try:
            with zipfile.ZipFile(self.path) as archive:
                data = self._member(archive, f"data/{tensor.key}", self._size)
        except UserError:
            raise
        except MemoryError:
            raise UserError(f"{at}: too large for the memory of this machine") from None
        except Exception as error:
            raise UserError(f"{at}: damaged ({reason(error)})") from None
        if len(data) % tensor.dtype.itemsize:
            raise UserError(f"{at}: damaged: its storage is not a whole number of {tensor.dtype}")
        numbers = np.frombuffer(data, np.uint8).view(self._stored(tensor.dtype))
        # A stride of 0 repeats numbers: a few bytes could become a table of any size.
        if count and (last >= len(numbers) or count > len(numbers)):
            raise UserError(f"{at}: damaged: it reaches past the end of its storage")
        numbers = numbers.astype(numbers.dtype.newbyteorder("="), copy=False).view(tensor.dtype)
        if not count:
            return np.empty(tensor.shape, tensor.dtype)
        strides = [stride * tensor.dtype.itemsize for stride in tensor.strides]
        return np.lib.stride_tricks.as_strided(numbers[tensor.offset :], tensor.shape, strides, writeable=False)

    def _stored(self, dtype: np.dtype) -> np.dtype:
        """Returns the dtype in the file's byte order; numpy supports none for bfloat16."""
        plain = np.dtype(np.uint16) if dtype == BFLOAT16 else dtype
        return plain.newbyteorder(self._order)

    def _member(self, archive: zipfile.ZipFile, name: str, most: int) -> bytes:
        info = archive.getinfo(self._root + name)
        if info.compress_type != zipfile.ZIP_STORED:
            raise UserError(f"{shown(self.path)}: compressed, which torch does not do; save it again with torch")
        if info.file_size > min(most, self._size):
            raise ValueError(f"{name} claims to have {info.file_size} bytes")
        return archive.read(info)


class _Inert:
    """Stands for objects that are not needed."""

    __slots__ = ()


class _Name(NamedTuple):
    """A name in the file, which is not imported."""

    module: str
    name: str


class _Mark:
    __slots__ = ()


INERT, MARK = _Inert(), _Mark()

# Opcodes that push their argument, and opcodes that push a constant or an empty container.
_CARRIES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
_PUSHES: dict[str, Callable[[], Any]] = {
    **{"NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False, "MARK": lambda: MARK},
    **{"EMPTY_TUPLE": tuple, "EMPTY_SET": lambda: INERT, "EMPTY_DICT": dict, "EMPTY_LIST": list},
}
# The number of values that opcodes pop; others pop back to the last mark.
_POPS = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "SETITEM": 2, "APPEND": 1, "NEWOBJ": 2, "NEWOBJ_EX": 3}


def _run(program: bytes) -> Any:
    """Runs a pickle: returns its containers, numbers and strings, with a `Tensor` per tensor and `INERT` for the rest.

    Raises:
      Exception: of any type, if the program is invalid.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def pop(count: int) -> list[Any]:
        if count > len(stack) or any(x is MARK for x in stack[-count:]):
            raise ValueError("its pickle pops more than it pushed")
        taken = stack[-count:]
        del stack[-count:]
        return taken

    def pop_for(name: str) -> list[Any]:
        if name in _POPS:
            return pop(_POPS[name])
        at = next(at for at in range(len(stack) - 1, -1, -1) if stack[at] is MARK)
        taken = stack[at + 1 :]
        del stack[at:]
        return taken

    argument: Any
    for opcode, argument, _ in pickletools.genops(program):
        name = opcode.name
        if name in _CARRIES:
            stack.append(argument)
        elif name in _PUSHES:
            stack.append(_PUSHES[name]())
        elif name in ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"):
            memo[len(memo) if name == "MEMOIZE" else argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(memo[argument])
        elif name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
            stack.append(tuple(pop_for(name)))
        elif name == "LIST":
            stack.append(pop_for(name))
        elif name in ("DICT", "SETITEM", "SETITEMS"):
            pairs = pop_for(name)
            if name == "DICT":
                stack.append({})
            if type(stack[-1]) is dict:  # other keys never lead to tables, and may recurse when hashed
                stack[-1].update((key, value) for key, value in zip(pairs[::2], pairs[1::2]) if _is_key(key))
        elif name in ("APPEND", "APPENDS"):
            values = pop_for(name)
            if type(stack[-1]) is list:
                stack[-1].extend(values)
        elif name in ("ADDITEMS", "POP_MARK"):
            pop_for(name)
        elif name == "GLOBAL":
            stack.append(_Name(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            module, attribute = pop(2)
            is_name = type(module) is str and type(attribute) is str
            stack.append(_Name(module, attribute) if is_name else INERT)
        elif name == "REDUCE":
            stack.append(_called(*pop(2)))
        elif name == "BUILD":
            pop(1)  # an object's state
        elif name in ("NEWOBJ", "NEWOBJ_EX", "INST", "OBJ", "FROZENSET"):
            pop_for(name)
            stack.append(INERT)
        elif name == "BINPERSID":
            stack.append(("a storage", *pop(1)))
        elif name == "POP":
            stack.pop()
        elif name == "DUP":
            stack.append(stack[-1])
        elif name == "STOP":
            return stack.pop()
        elif name not in ("PROTO", "FRAME"):
            raise ValueError(f"its pickle holds {name}, which torch does not write")
    raise ValueError("its pickle has no end")


def _is_key(key: Any) -> bool:
    """Returns whether a key may lead to tensors: others may recurse, or take long, whenever they are hashed."""
    if type(key) is int:
        return abs(key) < 2**63
    return type(key) in (str, float, bytes, bool, type(None))


def _called(what: Any, arguments: Any) -> Any:
    """Returns the result of a call in the pickle: a tensor, a dict, or `INERT`."""
    if type(what) is not _Name or type(arguments) is not tuple:
        return INERT
    if what == ("collections", "OrderedDict"):
        pairs = arguments[0] if arguments and type(arguments[0]) is list else []
        made = {pair[0]: pair[1] for pair in pairs if len(pair) == 2 and _is_key(pair[0])}
        pairs.clear()  # moved, so that a pickle that asks for one list again and again takes no longer
        return made
    if what == ("torch._utils", "_rebuild_tensor_v2"):
        changed = len(arguments) > 6 and arguments[6]  # views that negate or conjugate when they are read
        return INERT if changed else _tensor(*arguments[:4])
    if what.module == "torch._utils" and what.name in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
        return arguments[0]
    return INERT


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> Any:
    """Returns a `Tensor`; `INERT` if its dtype is unknown.

    Raises:
      ValueError: if it is not a tensor.
    """
    whole = lambda x: type(x) is int and 0 <= x < 2**62
    kind, key = storage[1][1:3]
    if storage[0] != "a storage" or storage[1][0] != "storage" or type(kind) is not _Name or type(key) is not str:
        raise ValueError("a tensor without a storage")
    if type(shape) is not tuple or type(strides) is not tuple or len(shape) != len(strides) or len(shape) > 64:
        raise ValueError("a tensor without a shape")
    if not (whole(offset) and all(map(whole, shape + strides))):
        raise ValueError("a tensor with an invalid shape, strides or offset")
    dtype = STORAGES.get(kind.name)
    return INERT if kind.module != "torch" or dtype is None else Tensor(key, dtype, offset, shape, strides)


def _tensors(top: Any) -> Iterator[tuple[str, Tensor]]:
    """Yields the tensors in nested containers, with their paths; a container that occurs repeatedly, only once."""
    seen: set[int] = set()
    waiting: list[tuple[tuple[Any, ...], Any]] = [((), top)]
    while waiting:
        path, value = waiting.pop()
        if type(value) is Tensor:
            yield ".".join(map(str, path)) or "tensor", value
        elif type(value) in (dict, list, tuple) and id(value) not in seen and len(path) < DEPTH:
            seen.add(id(value))
            parts = list(value.items() if type(value) is dict else enumerate(value))
            parts = [(key, part) for key, part in parts if not isinstance(key, (str, bytes)) or len(key) < LONGEST_KEY]
            waiting += [((*path, key), part) for key, part in parts[::-1]]
