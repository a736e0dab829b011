"""The layout of tables in few bytes, for arrays of NumPy and of JAX."""

import functools
from typing import Any, Literal, NamedTuple

Precision = Literal["float32", "float16", "int8", "int4", "int3", "int2"]
PRECISIONS: tuple[Precision, ...] = ("float32", "float16", "int8", "int4", "int3", "int2")

# Bits per number of the precisions with a step per dimension.
BITS = {"int4": 4, "int3": 3, "int2": 2}


def row_bytes(dim: int, precision: str) -> int:
    """Returns the bytes of a row of `dim` numbers: 4 or 2 each, or 1 each and 4 for the scale, or 4, 3 or 2 bits each,
    rounded up to a byte. The steps of int4, int3 and int2, 4 bytes per dimension, are not counted.

    >>> [row_bytes(26, precision) for precision in PRECISIONS]
    [104, 52, 30, 13, 10, 7]
    """
    if precision in BITS:
        return packed_bytes(dim, BITS[precision])
    return {"float32": 4 * dim, "float16": 2 * dim, "int8": dim + 4}[precision]


def packed_bytes(dim: int, bits: int) -> int:
    """Returns the bytes of `dim` codes of so many bits, rounded up."""
    return -(-bits * dim // 8)


class Encoded:
    """What tables in any precision have in common, those of NumPy and those of JAX.

    Attributes: see `htd_jax.ops.precision.Rows`.
    """

    values: Any
    scales: Any
    steps: Any
    bits: int | None

    def __len__(self) -> int:
        return len(self.values)

    @property
    def dim(self) -> int:
        return self.values.shape[1] if self.steps is None else len(self.steps)

    @property
    def precision(self) -> str:
        return str(self.values.dtype) if self.bits is None else f"int{self.bits}"

    @property
    def row_bytes(self) -> int:
        """The size of one row in bytes, with its scale."""
        return row_bytes(self.dim, self.precision)


class Part(NamedTuple):
    """Where some bits of consecutive codes are: bits `low` to `low + bits` of code `code` + i are in byte `byte` + i,
    from bit `shift` on, for `length` codes."""

    code: int
    byte: int
    length: int
    low: int
    shift: int
    bits: int

    def packed(self, codes: Any) -> Any:
        return (codes >> self.low & 2**self.bits - 1) << self.shift

    def unpacked(self, packed: Any) -> Any:
        return (packed >> self.shift & 2**self.bits - 1) << self.low


@functools.cache
def parts(dim: int, bits: int) -> tuple[Part, ...]:
    """Returns the layout of packed codes, see `precision.pack`."""
    width = packed_bytes(dim, bits)
    places = range(8 // bits)  # of whole codes in a byte
    layout = [Part(i * width, 0, min(width, dim - i * width), 0, bits * i, bits) for i in places]
    first = width * len(places)
    if (rest := dim - first) > 0:
        after = width - rest
        layout += [
            Part(first, 0, rest, 0, 6, 2),
            Part(first, rest, min(after, rest), 2, 6, 1),
            Part(first + after, rest, rest - after, 2, 7, 1),
        ]
    return tuple(part for part in layout if part.length > 0)


def middle(bits: int) -> float:
    """The code, between two, that stands for 0."""
    return (2**bits - 1) / 2
