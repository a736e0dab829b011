"""Tables of rows in fewer bytes: float32, float16, or int8 with a scale a row."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct

from htd_jax.errors import UserError

Precision = Literal["float32", "float16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("float32", "float16", "int8")

# The largest code of int8: symmetric, so -128 stays unused.
LARGEST = 127


@struct.dataclass
class Rows:
    """A table of representations, in one of `PRECISIONS`.

    Attributes:
      values: `[n, d]` float32 or float16, or int8 codes.
      scales: `[n]` float32 of int8 codes, which stand for codes times their row's scale; else None.
    """

    values: jax.Array
    scales: jax.Array | None = None

    def __len__(self) -> int:
        return len(self.values)

    @property
    def dim(self) -> int:
        return self.values.shape[1]

    @property
    def precision(self) -> str:
        return str(self.values.dtype)

    @property
    def row_bytes(self) -> int:
        """Of one row, with its scale."""
        return row_bytes(self.dim, self.precision)

    def floats(self) -> jax.Array:
        """What the rows stand for: `[n, d]` float32."""
        values = self.values.astype(jnp.float32)
        return values if self.scales is None else values * self.scales[:, None]

    def take(self, rows: jax.Array) -> "Rows":
        """The rows `[m]`, as they are."""
        return jax.tree.map(lambda x: x[rows], self)


def row_bytes(dim: int, precision: str) -> int:
    """Bytes of a row of `dim` numbers: 4 or 2 each, or 1 each and 4 for the scale."""
    return {"float32": 4 * dim, "float16": 2 * dim, "int8": dim + 4}[precision]


def to_precision(table: jax.Array, precision: str) -> Rows:
    """A table `[n, d]` of floats in another precision.

    float16 is off by at most 2^-11 of a number, or 2^-25 where it is under 2^-14. int8 is symmetric, a row's scale its
    largest absolute number / 127: off by at most half a scale. A row of zeros has scale zero and stays one.

    Raises:
      UserError: a number that is not finite, one beyond float16, or an unknown precision.

    >>> rows = to_precision([[1.0, -2.0, 0.5]], "int8")
    >>> rows.values.tolist(), rows.floats().round(2).tolist(), rows.row_bytes
    ([[64, -127, 32]], [[1.0099999904632568, -2.0, 0.5]], 7)
    """
    table = jnp.asarray(table, jnp.float32)
    largest = float(jnp.abs(table).max(initial=0))
    if not largest < float("inf"):  # nan too
        raise UserError("the table holds numbers that are not finite")
    if precision == "float32":
        return Rows(table)
    if precision == "float16":
        if largest > float(jnp.finfo(jnp.float16).max):
            raise UserError(f"float16 ends at 65504, and the table holds {largest:.4g}; use float32 or int8")
        return Rows(table.astype(jnp.float16))
    if precision == "int8":
        return _to_int8(table)
    raise UserError(f"unknown precision {precision!r}; known: {', '.join(PRECISIONS)}")


@jax.jit
def _to_int8(table: jax.Array) -> Rows:
    scales = jnp.abs(table).max(axis=1, initial=0) / LARGEST
    codes = jnp.where(scales[:, None] > 0, table / scales[:, None], 0)
    return Rows(jnp.clip(jnp.round(codes), -LARGEST, LARGEST).astype(jnp.int8), scales)
