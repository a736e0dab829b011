"""Tables in fewer bytes: float32, float16, int8 with a scale per row, or int4, int3, int2 with a step per dimension."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from htd_jax.errors import UserError
from htd_jax.ops.codes import BITS, PRECISIONS, Encoded, Precision, middle, packed_bytes, parts
from htd_jax.ops.shards import largest, total

# The largest code of int8: symmetric, so -128 stays unused.
LARGEST = 127

# The codes of b bits stand for the centres of 2^b steps of this width, for a dimension whose root mean square is 1: the
# width of least error for normally distributed numbers (Max, IRE Trans. Inf. Theory, 1960).
STEP = {4: 0.3352, 3: 0.5860, 2: 0.9957}

# The largest numbers that can be encoded; the reciprocals of steps over 1e37 are no normal floats.
LIMITS = {"float16": 65504.0, "int4": 1e37, "int3": 1e37, "int2": 1e37}

# Steps of an earlier table are kept while they add no more than this share to the squared error of rounding.
KEPT = 0.02

# Bytes per row from which int8, narrower and finer, ranks better than int4; see docs/smallest.md.
INT8_FROM = 40


@struct.dataclass
class Rows(Encoded):
    """A table of representations, in one of `PRECISIONS`.

    Attributes:
      values: `[n, d]` float32 or float16, or int8 codes; for int4, int3 and int2 `[n, packed_bytes(d, bits)]` uint8,
        whose codes are packed as `pack` does.
      scales: `[n]` float32, the factor of each row; None for 1.
      steps: `[d]` float32 for int4, int3 and int2, whose code c stands for (c - (2^bits - 1) / 2) steps; else None.
      bits: 4, 3 or 2 where there are steps; else None.
    """

    values: jax.Array
    scales: jax.Array | None = None
    steps: jax.Array | None = None
    bits: int | None = struct.field(pytree_node=False, default=None)

    def floats(self) -> jax.Array:
        """Returns the decoded rows: `[n, d]` float32."""
        if self.steps is None or self.bits is None:
            values = self.values.astype(jnp.float32)
        else:
            codes = unpack(self.values, self.dim, self.bits)
            values = _decoded(codes.astype(jnp.float32), self.steps, self.bits)
        return values if self.scales is None else values * self.scales[:, None]

    def codes(self, j: int) -> jax.Array:
        """Returns the numbers of dimension j of a table whose first axis is the dimensions, or the bytes of packed
        codes, before scales and steps."""
        if self.steps is None or self.bits is None:
            return self.values[j].astype(jnp.float32)
        found = [part for part in parts(self.dim, self.bits) if 0 <= j - part.code < part.length]
        codes = [part.unpacked(self.values[part.byte + j - part.code]) for part in found]
        return functools.reduce(jnp.bitwise_or, codes).astype(jnp.float32) - middle(self.bits)

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
        scales = None if self.scales is None else change(self.scales)
        return Rows(change(self.values), scales, self.steps, self.bits)


def for_bytes(size: int, widest: int) -> tuple[int, Precision]:
    """Returns the width and precision that rank best at `size` bytes per row: int4 for narrow rows, else int8.

    Args:
      size: bytes per row, at least 1.
      widest: the teacher's width; a wider row would gain nothing.
    """
    if size < INT8_FROM:
        return min(2 * size, widest), "int4"
    return min(size - 4, widest), "int8"


def forms_for_bytes(size: int, widest: int) -> tuple[tuple[int, Precision], ...]:
    """Returns the widths and precisions of at most `size` bytes per row that could rank best, that of `for_bytes`
    first: of each precision from int8 to int2 the most numbers that fit, if a finer one does not hold as many.

    Args:
      size: bytes per row, at least 1.
      widest: see `for_bytes`.

    >>> forms_for_bytes(10, 200)
    ((20, 'int4'), (6, 'int8'), (26, 'int3'), (40, 'int2'))
    >>> forms_for_bytes(10, 24)
    ((20, 'int4'), (6, 'int8'), (24, 'int3'))
    """
    default = for_bytes(size, widest)
    forms, most = [default], 0
    fitting: dict[Precision, int] = {"int8": size - 4 if size > 8 else 0}
    fitting |= {"int4": 2 * size, "int3": 8 * size // 3, "int2": 4 * size}
    for precision, fits in fitting.items():
        dim = min(fits, widest)
        if dim > most and precision != default[1]:
            forms.append((dim, precision))
        most = max(most, dim)
    return tuple(forms)


def to_precision(table: jax.Array, precision: str, steps: jax.Array | None = None) -> Rows:
    """Encodes a table `[n, d]` of floats in another precision.

    The error of float16 is at most 2^-11 of a number, or 2^-25 for numbers under 2^-14. int8 is symmetric, a row's
    scale its largest absolute number / 127: the error is at most half a scale. A row of zeros has scale zero and stays
    zero. int4, int3 and int2 have 16, 8 and 4 values per dimension, in equal steps, up to 2.5, 2.1 and 1.5 times its
    root mean square; larger numbers are clipped. A dimension of zeros stays zero, a row of zeros does not.

    Args:
      table: `[n, d]`.
      precision: one of `PRECISIONS`.
      steps: `[d]`, of int4, int3 or int2, from an earlier version of the table; kept where they fit, see `kept_steps`.

    Raises:
      UserError: if a number is not finite, or beyond `LIMITS`; or if the precision is unknown.

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
    if largest > (most := LIMITS.get(precision, float("inf"))):
        raise UserError(
            f"`precision` {precision} holds no number above {most:g}, and the table has {largest:.4g}; use float32 or "
            "int8"
        )
    if steps is not None:
        steps = kept_steps(table, steps, BITS[precision])
    rows: Rows = jax.jit(encoded, static_argnames="precision")(table, precision, steps)
    return rows


def encoded(table: jax.Array, precision: str, steps: jax.Array | None = None) -> Rows:
    """Does what `to_precision` does without its checks, for traced arrays; steps `[d]` follow from the table, or are
    those given."""
    if precision == "float32":
        return Rows(table)
    if precision == "float16":
        return Rows(table.astype(jnp.float16))
    if precision == "int8":
        scales = jnp.abs(table).max(axis=1, initial=0) / LARGEST
        codes = jnp.where(scales[:, None] > 0, table / scales[:, None], 0)
        return Rows(jnp.clip(jnp.round(codes), -LARGEST, LARGEST).astype(jnp.int8), scales)
    bits = BITS[precision]
    steps = steps_of(table, bits) if steps is None else steps
    return Rows(pack(_codes(table, steps, bits).astype(jnp.uint8), bits), None, steps, bits)


def rounded(table: jax.Array, precision: str, steps: jax.Array | None = None, count: int | None = None) -> jax.Array:
    """Encodes and decodes a table, `[n, d]`; the gradient is that of the identity, and zero where int4, int3 or int2
    clips a number.

    Their steps `[d]` follow from the table, or are those given; `count` is the number of rows of a table in shards.

    Source: the straight-through estimator, Bengio et al., 2013.
    """
    if precision == "float32":
        return table
    if precision in BITS:
        bits = BITS[precision]
        steps = steps_of(jax.lax.stop_gradient(table), bits, count) if steps is None else steps
        decoded = _decoded(_codes(jax.lax.stop_gradient(table), steps, bits), steps, bits)
        largest = 2 ** (bits - 1) * steps[None]
        table = jnp.clip(table, -largest, largest)
    else:
        decoded = encoded(jax.lax.stop_gradient(table), precision).floats()
    return decoded + (table - jax.lax.stop_gradient(table))  # exactly the decoded value


def pack(codes: jax.Array, bits: int) -> jax.Array:
    """Packs codes `[n, d]` uint8 of 4, 3 or 2 bits into `[n, w]` uint8, where w is `packed_bytes(d, bits)`.

    The code of dimension j is in byte j mod w, from bit `bits` * (j div w) on: 2, 2 or 4 codes in a byte. In 3 bits,
    bits 6 and 7 of each byte are left, and hold the codes from 2 w on. Let r be their number: the low two bits of code
    2 w + i are in byte i; the high bits follow each other in bytes r to w - 1, first in bit 6 of each, then in bit 7.

    >>> packed = pack(jnp.array([[1, 2, 3, 4, 5, 6, 7, 5]], jnp.uint8), 3)
    >>> [f"{byte:08b}" for byte in packed[0].tolist()]  # 7 and 5, 111 and 101, are in the first two bits of all three
    ['11100001', '01101010', '11110011']
    """
    width = packed_bytes(codes.shape[1], bits)
    layout = parts(codes.shape[1], bits)
    moved = (_moved(part.packed(codes), part.code, part.byte, part.length, width) for part in layout)
    return functools.reduce(jnp.bitwise_or, moved)


def unpack(packed: jax.Array, dim: int, bits: int) -> jax.Array:
    """Returns the codes `[n, dim]` that `pack` packed."""
    moved = (_moved(part.unpacked(packed), part.byte, part.code, part.length, dim) for part in parts(dim, bits))
    return functools.reduce(jnp.bitwise_or, moved)


def _moved(table: jax.Array, first: int, to: int, count: int, width: int) -> jax.Array:
    """Returns `count` columns of a table from `first` on as columns from `to` on of one of zeros, `width` wide."""
    return jnp.pad(table[:, first : first + count], ((0, 0), (to, width - to - count)))


def steps_of(table: jax.Array, bits: int, count: int | None = None) -> jax.Array:
    """Returns the steps `[d]` of codes of so many bits; `count` is the number of rows of a table in shards."""
    most = largest(jnp.abs(table).max(axis=0, initial=0))
    safe = jnp.where(most > 0, most, 1)  # squares of small floats vanish
    squares = (table / safe[None]) ** 2
    mean = jnp.mean(squares, axis=0) if count is None else total(squares.sum(axis=0)) / count
    return STEP[bits] * safe * jnp.sqrt(mean)


def kept_steps(table: jax.Array, steps: jax.Array, bits: int) -> jax.Array:
    """Returns steps `[d]` of an earlier version of a table, or its own where these do not fit any longer.

    With the same steps, a row that has not changed keeps its codes. They fit if the sum of the squared errors of
    rounding, in units of the own steps, is at most `KEPT` larger.
    """
    own = steps_of(table, bits)

    def error(steps: jax.Array) -> jax.Array:
        away = table - _decoded(_codes(table, steps, bits), steps, bits)
        return jnp.sum((away / jnp.where(own > 0, own, 1)) ** 2)

    fits = jnp.all((own > 0) == (steps > 0)) & (error(steps) <= (1 + KEPT) * error(own))
    return jnp.where(fits, steps, own)


def _codes(table: jax.Array, steps: jax.Array, bits: int) -> jax.Array:
    """Returns the codes, 0 to 2^bits - 1, as floats."""
    codes = jnp.floor(table / jnp.where(steps > 0, steps, 1)[None]) + 2 ** (bits - 1)
    return jnp.clip(codes, 0, 2**bits - 1)


def _decoded(codes: jax.Array, steps: jax.Array, bits: int) -> jax.Array:
    return (codes - middle(bits)) * steps[None]
