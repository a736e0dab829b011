"""Checks of the arguments of losses.

Each is a chex assertion on what is static under `jax.jit` (type, rank, size), so it costs nothing in a compiled
program; its message begins with the argument's name. A check of an array returns it as a JAX array; floats in at least
float32, since sums in a shorter format lose their terms.
"""

from typing import TypeAlias

import chex
import jax
import jax.numpy as jnp

from htd_jax.ops.rows import keep_rows

__all__ = [
    "check_choice",
    "check_dtype",
    "check_entries",
    "check_floats",
    "check_ints",
    "check_scalar",
    "check_seen",
    "check_two_entries",
    "check_where",
    "keep_rows",
]

Where: TypeAlias = chex.Array | None


def check_floats(name: str, value: chex.Array, *shape: int | None) -> jax.Array:
    """Asserts that `value` is a floating-point array of `shape`, where None stands for any size; returns it in float32,
    or in float64 if it has that type and JAX has it enabled."""
    _check_array(name, value, float, "floats", shape)
    return jnp.asarray(value, jnp.promote_types(_dtype(value), jnp.float32))


def check_ints(name: str, value: chex.Array, *shape: int | None) -> jax.Array:
    """Asserts that `value` is an integer array of `shape`; returns it in its own type."""
    _check_array(name, value, int, "integers", shape)
    return jnp.asarray(value, _dtype(value))


def check_dtype(name: str, value: chex.Array, dtype: jax.typing.DTypeLike) -> None:
    """Asserts that `value` has the `dtype` of the arguments before it, both as JAX sees them: NumPy's float64 is JAX's
    float32 unless 64 bits are enabled."""
    dtype = jax.dtypes.canonicalize_dtype(dtype)
    if _dtype(value) != dtype:
        raise AssertionError(f"{name}: expected {dtype}, as the student has, got {value.dtype}")


def check_scalar(name: str, value: chex.Numeric, dtype: jax.typing.DTypeLike) -> jax.Array:
    """Asserts that `value` is a scalar; returns it in `dtype`, so that NumPy's float64 does not widen a loss."""
    chex.assert_rank(value, 0, custom_message=f"{name}: expected a scalar, got shape {jnp.shape(value)}")
    return jnp.asarray(value, dtype)


def check_where(where: Where, rows: int) -> jax.Array | None:
    """Asserts that the mask `where` is None or `[rows]` bool."""
    if where is None:
        return None
    _check_array("where", where, bool, "bool", (rows,))
    return jnp.asarray(where)


def check_mask(where: Where, scores: jax.Array) -> jax.Array | None:
    """Asserts that the mask `where` of `scores` `[n, m]` is None, `[n]` bool for whole rows, or `[n, m]` bool."""
    return check_where(where, len(scores)) if getattr(where, "ndim", 1) == 1 else check_entries(where, scores)


def check_entries(where: Where, scores: jax.Array, name: str = "where") -> jax.Array:
    """Asserts that the mask `where` of `scores` `[n, m]` is None, `[n]` bool for whole rows, or `[n, m]` bool; returns
    it as `[n, m]`."""
    if where is None:
        return jnp.ones(scores.shape, bool)
    rows = getattr(where, "ndim", None) == 1
    _check_array(name, where, bool, "bool", scores.shape[:1] if rows else scores.shape)
    return jnp.broadcast_to(where[:, None] if rows else where, scores.shape)


def check_two_entries(
    where: tuple[Where, Where] | None, first: jax.Array, second: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Applies `check_entries` to a pair of masks, of `first` `[n, m]` and of `second` `[n, k]`; None masks nothing."""
    if where is None:
        where = None, None
    if not isinstance(where, tuple | list) or len(where) != 2:
        raise AssertionError(f"where: expected a pair of masks, got {type(where).__name__}")
    one, other = where
    return check_entries(one, first, "where[0]"), check_entries(other, second, "where[1]")


def check_seen(seen: chex.Array, scores: jax.Array) -> jax.Array:
    """Asserts that `seen` is bool of the shape of `scores`; returns it as a JAX array."""
    _check_array("seen", seen, bool, "bool", scores.shape)
    return jnp.asarray(seen)


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name}: unknown value {value!r}; known values: {', '.join(choices)}")


def _check_array(name: str, value: object, kind: type, kind_name: str, shape: tuple[int | None, ...]) -> None:
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        raise AssertionError(f"{name}: expected an array, got {type(value).__name__}")
    sizes = "[" + ", ".join("any" if size is None else str(size) for size in shape) + "]"
    message = f"{name}: expected {kind_name} of shape {sizes}, got {value.dtype}{list(value.shape)}"
    chex.assert_type(value, kind, custom_message=message)
    chex.assert_shape(value, shape, custom_message=message)


def _dtype(value: chex.Array) -> jnp.dtype:
    return jax.dtypes.canonicalize_dtype(value.dtype)
