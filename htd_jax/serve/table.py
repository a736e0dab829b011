"""A table of representations in the memory of the host, in any precision, read from its codes by NumPy."""

import dataclasses
import functools
from typing import Any

import numpy as np

from htd_jax.ops.codes import Encoded, middle, parts

# The number of floats that are decoded at once: they stay in a core's cache.
CELLS = 2**17

# A table with no larger number counts as zeros: its reciprocal would be infinite.
SMALLEST = 1e-36


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Table(Encoded):
    """A table of representations; the fields are those of `htd_jax.ops.precision.Rows`, of NumPy.

    Attributes:
      values: `[n, d]` float32, float16 or int8; for int4, int3 and int2 packed, `[n, w]` uint8.
      scales: `[n]` float32, the factor of each row; None for 1.
      steps: `[d]` float32 for int4, int3 and int2; else None.
      bits: 4, 3 or 2 where there are steps; else None.
    """

    values: np.ndarray
    scales: np.ndarray | None = None
    steps: np.ndarray | None = None
    bits: int | None = None

    @classmethod
    def of(cls, rows: Any) -> "Table":
        """Copies a table of JAX, or returns a `Table` unchanged."""
        if isinstance(rows, cls):
            return rows
        scales, steps = (None if x is None else np.asarray(x) for x in (rows.scales, rows.steps))
        return cls(np.asarray(rows.values), scales, steps, rows.bits)

    @classmethod
    def by_columns(cls, values: np.ndarray, *others: Any) -> "Table":
        """Returns a table whose values lie in memory one dimension after the other, as `codes` reads them."""
        return cls(np.asfortranarray(values), *others)

    def __repr__(self) -> str:
        return f"Table({len(self):,} rows of {self.dim} numbers, {self.precision})"

    def take(self, rows: np.ndarray) -> "Table":
        """Returns the rows `[m]`, encoded."""
        scales = None if self.scales is None else self.scales[rows]
        return Table(np.asfortranarray(self.values[rows]), scales, self.steps, self.bits)

    def codes(self, first: int, last: int) -> np.ndarray:
        """Returns the codes of some rows, `[d, last - first]` float32, before steps and scales."""
        values = self.values[first:last].T
        if self.bits is None:
            return values.astype(np.float32, copy=False)
        codes = np.empty((self.dim, values.shape[1]), np.uint8)
        for part in parts(self.dim, self.bits):
            own = values[part.byte : part.byte + part.length]
            to = codes[part.code : part.code + part.length]
            if part.low:  # the high bit of a code in two places
                to |= part.unpacked(own)
            else:  # in place: a temporary array costs as much as the operation
                np.bitwise_and(np.right_shift(own, part.shift, out=to) if part.shift else own, 2**part.bits - 1, out=to)
        return codes.astype(np.float32)

    def floats(self, first: int = 0, last: int | None = None) -> np.ndarray:
        """Returns the decoded rows from `first` up to `last`, all if they are left out: `[n, d]` float32."""
        last = len(self) if last is None else last
        values = self.codes(first, last).T
        if self.steps is not None and self.bits is not None:
            values = (values - np.float32(middle(self.bits))) * self.steps
        return values if self.scales is None else values * self.scales[first:last, None]

    def blocks(self) -> list[tuple[int, int]]:
        """Returns the first and the last row of blocks of about `CELLS` floats."""
        size = max(64, CELLS // max(1, self.dim) // 64 * 64)
        return [(first, min(first + size, len(self))) for first in range(0, len(self), size)]

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """The lengths of the rows before scales, `[n]` float32."""
        bare = Table(self.values, None, self.steps, self.bits)
        found = np.zeros(len(self), np.float32)
        for first, last in self.blocks():
            rows = bare.floats(first, last)
            largest = np.abs(rows).max(axis=1, initial=0)  # squares of small floats vanish
            safe = np.where(largest > 0, largest, np.float32(1))
            found[first:last] = safe * np.sqrt(np.square(rows / safe[:, None]).sum(axis=1))
        return found

    @functools.cached_property
    def moments(self) -> tuple[float, np.ndarray]:
        """The root mean square of the table's numbers, 1 if all are zero; and Y'Y `[d, d]` float64 of the table divided
        by it."""
        largest = max((float(np.abs(self.floats(*block)).max(initial=0)) for block in self.blocks()), default=0.0)
        largest = largest if largest > SMALLEST else 1.0  # squares of large and of small floats are not floats
        gram = np.zeros((self.dim, self.dim))
        for block in self.blocks():
            rows = self.floats(*block) / np.float32(largest)
            gram += rows.T @ rows
        square = np.trace(gram) / max(1, len(self) * self.dim) or 1.0
        return largest * float(np.sqrt(square)), gram / square
