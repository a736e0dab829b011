"""What every public loss asks of its arguments, said once.

Each check is a chex assertion on what is static under `jax.jit` (type, rank, size), so that it costs nothing in
a compiled program, and its message begins with the name of the argument. A check of an array returns it as the losses
compute with it: JAX's, whatever it was; floats in float32 at least, since sums in a shorter format lose their terms.
"""

import chex
import jax
import jax.numpy as jnp

from htd_jax.ops.rows import keep_rows

__all__ = ["check_choice", "check_dtype", "check_floats", "check_ints", "check_items", "check_where", "keep_rows"]


def check_floats(name: str, value: chex.Array, *shape: int | None) -> jax.Array:
    """Asserts that `value` is a floating-point array of `shape`, `None` standing for any size; returns it in float32,
    or float64 where it is in that and JAX has it enabled."""
    _check_array(name, value, float, "floats", shape)
    return jnp.asarray(value, jnp.promote_types(_dtype(value), jnp.float32))


def check_ints(name: str, value: chex.Array, *shape: int | None) -> jax.Array:
    """Asserts that `value` is an integer array of `shape`; returns it in its own type."""
    _check_array(name, value, int, "integers", shape)
    return jnp.asarray(value, _dtype(value))


def check_dtype(name: str, value: chex.Array, dtype: jax.typing.DTypeLike) -> None:
    """Asserts that `value` has the `dtype` of the arguments before it, as JAX sees either: NumPy's float64 is JAX's
    float32 unless it is told otherwise."""
    dtype = jax.dtypes.canonicalize_dtype(dtype)
    if _dtype(value) != dtype:
        raise AssertionError(f"{name}: expected {dtype}, as the student has, got {value.dtype}")


def check_where(where: chex.Array | None, rows: int) -> jax.Array | None:
    """Asserts that the mask `where` is None or `[rows]` bool."""
    if where is None:
        return None
    _check_array("where", where, bool, "bool", (rows,))
    return jnp.asarray(where)


def check_items(name: str, items: chex.Array | None, where: jax.Array | None, scores: jax.Array) -> jax.Array:
    """Which of `scores` `[n, m]` count, by a mask of their own, None or `[n, m]` bool, and by that of rows."""
    if items is None:
        items = jnp.ones(scores.shape, bool)
    message = f"{name}: expected bool{list(scores.shape)}, got {items.dtype}{list(items.shape)}"
    chex.assert_type(items, bool, custom_message=message)
    chex.assert_shape(items, scores.shape, custom_message=message)
    return jnp.asarray(items) if where is None else items & where[:, None]


def check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    """Raises ValueError unless `value` is one of `known`."""
    if value not in known:
        raise ValueError(f"{name}: unknown value {value!r}; known values: {', '.join(known)}")


def _check_array(name: str, value: object, kind: type, kind_name: str, shape: tuple[int | None, ...]) -> None:
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        raise AssertionError(f"{name}: expected an array, got {type(value).__name__}")
    sizes = "[" + ", ".join("any" if size is None else str(size) for size in shape) + "]"
    message = f"{name}: expected {kind_name} of shape {sizes}, got {value.dtype}{list(value.shape)}"
    chex.assert_type(value, kind, custom_message=message)
    chex.assert_shape(value, shape, custom_message=message)


def _dtype(value: chex.Array) -> jnp.dtype:
    return jax.dtypes.canonicalize_dtype(value.dtype)
