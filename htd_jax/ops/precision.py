"""Tables in fewer bytes: float32, float16, int8 with a scale per row, or int4 with a step per dimension."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct

from htd_jax.errors import UserError

Precision = Literal["float32", "float16", "int8", "int4"]
PRECISIONS: tuple[Precision, ...] = ("float32", "float16", "int8", "int4")

# The largest code of int8: symmetric, so -128 stays unused.
LARGEST = 127

# The codes of int4 stand for the centres of 16 steps of this width, for a dimension whose root mean square is 1: the
# width of least error for normally distributed numbers (Max, IRE Trans. Inf. Theory, 1960).
STEPS, STEP = 16, 0.3352

# Bytes per row from which int8, narrower and finer, ranks better than int4; see docs/smallest.md.
INT8_FROM = 40


@struct.dataclass
class Rows:
    """A table of representations, in one of `PRECISIONS`.

    Attributes:
      values: `[n, d]` float32 or float16, or int8 codes; for int4 `[n, d / 2]` uint8, the code of dimension j in the
        low half of a byte, that of dimension j + d / 2 in the high half.
      scales: `[n]` float32, the factor of each row; None for 1.
      steps: `[d]` float32 for int4, whose code c stands for (c - 7.5) steps; else None.
    """

    values: jax.Array
    scales: jax.Array | None = None
    steps: jax.Array | None = None

    def __len__(self) -> int:
        return len(self.values)

    @property
    def dim(self) -> int:
        return self.values.shape[1] * (1 if self.steps is None else 2)

    @property
    def precision(self) -> str:
        return str(self.values.dtype) if self.steps is None else "int4"

    @property
    def row_bytes(self) -> int:
        """The size of one row in bytes, with its scale."""
        return row_bytes(self.dim, self.precision)

    def floats(self) -> jax.Array:
        """Returns the decoded rows: `[n, d]` float32."""
        if self.steps is None:
            values = self.values.astype(jnp.float32)
        else:
            codes = jnp.concatenate([self.values & 15, self.values >> 4], axis=1)
            values = _decoded(codes.astype(jnp.float32), self.steps)
        return values if self.scales is None else values * self.scales[:, None]

    def codes(self, j: int) -> jax.Array:
        """Returns the numbers of dimension j of a table whose first axis is the dimensions, before scales and steps."""
        if self.steps is None:
            return self.values[j].astype(jnp.float32)
        half = len(self.values)
        codes = self.values[j] & 15 if j < half else self.values[j - half] >> 4
        return codes.astype(jnp.float32) - (STEPS - 1) / 2

    def take(self, rows: jax.Array) -> "Rows":
        """Returns the rows `[m]`, encoded."""
        return self._by_row(lambda x: x[rows])

    def slice(self, first: jax.Array, size: int) -> "Rows":
        """Returns `size` rows from `first` on, encoded."""
        return self._by_row(lambda x: jax.lax.dynamic_slice_in_dim(x, first, size))

    def padded(self, more: int) -> "Rows":
        """Returns the table with `more` rows added, whose values are meaningless."""
        return self._by_row(lambda x: jnp.pad(x, [(0, more), *[(0, 0)] * (x.ndim - 1)])) if more else self

    def _by_row(self, change: Callable[[jax.Array], jax.Array]) -> "Rows":
        return Rows(change(self.values), None if self.scales is None else change(self.scales), self.steps)


def row_bytes(dim: int, precision: str) -> int:
    """Returns the bytes of a row of `dim` numbers: 4, 2 or 1/2 each, or 1 each and 4 for the scale. The steps of int4,
    4 bytes per dimension, are not counted."""
    return {"float32": 4 * dim, "float16": 2 * dim, "int8": dim + 4, "int4": (dim + 1) // 2}[precision]


def for_bytes(size: int, widest: int) -> tuple[int, Precision]:
    """Returns the width and precision that rank best at `size` bytes per row: int4 for narrow rows, else int8.

    Args:
      size: bytes per row, at least 1.
      widest: the teacher's width; a wider row would gain nothing.
    """
    if size < INT8_FROM:
        return min(2 * size, widest - widest % 2), "int4"
    return min(size - 4, widest), "int8"


def to_precision(table: jax.Array, precision: str) -> Rows:
    """Encodes a table `[n, d]` of floats in another precision.

    The error of float16 is at most 2^-11 of a number, or 2^-25 for numbers under 2^-14. int8 is symmetric, a row's
    scale its largest absolute number / 127: the error is at most half a scale. A row of zeros has scale zero and stays
    zero. int4 has 16 values per dimension, in equal steps, up to 2.5 times its root mean square; larger numbers are
    clipped.

    Raises:
      UserError: if a number is not finite, or beyond the range of float16; if the width is odd, for int4; or if the
        precision is unknown.

    >>> rows = to_precision([[1.0, -2.0, 0.5]], "int8")
    >>> rows.values.tolist(), rows.floats().round(2).tolist(), rows.row_bytes
    ([[64, -127, 32]], [[1.0099999904632568, -2.0, 0.5]], 7)
    """
    table = jnp.asarray(table, jnp.float32)
    largest = float(jnp.abs(table).max(initial=0))
    if precision not in PRECISIONS:
        raise UserError(f"`precision` must be one of {', '.join(PRECISIONS)}, not {precision!r}")
    if not largest < float("inf"):  # nan too
        raise UserError("the table has numbers that are not finite")
    if precision == "float16" and largest > float(jnp.finfo(jnp.float16).max):
        raise UserError(
            f"`precision` float16 holds no number above 65504, and the table has {largest:.4g}; use float32 or int8"
        )
    if precision == "int4" and table.shape[1] % 2:
        width = table.shape[1]
        raise UserError(f"`precision` int4 packs two numbers per byte, so the width must be even, not {width}")
    rows: Rows = jax.jit(encoded, static_argnames="precision")(table, precision)
    return rows


def encoded(table: jax.Array, precision: str) -> Rows:
    """Does what `to_precision` does without its checks, for traced arrays."""
    if precision == "float32":
        return Rows(table)
    if precision == "float16":
        return Rows(table.astype(jnp.float16))
    if precision == "int8":
        scales = jnp.abs(table).max(axis=1, initial=0) / LARGEST
        codes = jnp.where(scales[:, None] > 0, table / scales[:, None], 0)
        return Rows(jnp.clip(jnp.round(codes), -LARGEST, LARGEST).astype(jnp.int8), scales)
    steps = _steps(table)
    codes = _codes(table, steps).astype(jnp.uint8)
    half = table.shape[1] // 2
    return Rows(codes[:, :half] | codes[:, half:] << 4, None, steps)


def rounded(table: jax.Array, precision: str, steps: jax.Array | None = None) -> jax.Array:
    """Encodes and decodes a table, `[n, d]`; the gradient is that of the identity, and zero where int4 clips a number.

    The steps of int4 `[d]` follow from the table, or are those given.

    Source: the straight-through estimator, Bengio et al., 2013.
    """
    if precision == "float32":
        return table
    if precision == "int4":
        steps = _steps(jax.lax.stop_gradient(table)) if steps is None else steps
        decoded = _decoded(_codes(jax.lax.stop_gradient(table), steps), steps)
        largest = STEPS / 2 * steps[None]
        table = jnp.clip(table, -largest, largest)
    else:
        decoded = encoded(jax.lax.stop_gradient(table), precision).floats()
    return decoded + (table - jax.lax.stop_gradient(table))  # exactly the decoded value


def _steps(table: jax.Array) -> jax.Array:
    """Returns the steps of int4, `[d]`."""
    largest = jnp.abs(table).max(axis=0, initial=0)
    safe = jnp.where(largest > 0, largest, 1)  # squares of small floats vanish
    return STEP * safe * jnp.sqrt(jnp.mean((table / safe[None]) ** 2, axis=0))


def _codes(table: jax.Array, steps: jax.Array) -> jax.Array:
    """Returns the codes of int4, 0 to 15, as floats."""
    return jnp.clip(jnp.floor(table / jnp.where(steps > 0, steps, 1)[None]) + STEPS / 2, 0, STEPS - 1)


def _decoded(codes: jax.Array, steps: jax.Array) -> jax.Array:
    return (codes - (STEPS - 1) / 2) * steps[None]
