"""What every public loss asks of its arguments, said once.

Each check is a chex assertion on what is static under `jax.jit` (type, rank, size), so that it costs nothing in
a compiled program, and its message begins with the name of the argument.
"""

import chex
import jax
import jax.numpy as jnp


def _array(name: str, value: object) -> None:
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        raise AssertionError(f"{name}: expected an array, got {type(value).__name__}")


def check_floats(name: str, value: jax.Array, *shape: int | None) -> None:
    """Asserts that `value` is a floating-point array of `shape`, `None` standing for any size."""
    _array(name, value)
    message = f"{name}: expected floats of shape {_spell(shape)}, got {value.dtype}{list(value.shape)}"
    chex.assert_type(value, float, custom_message=message)
    chex.assert_shape(value, shape, custom_message=message)


def check_ints(name: str, value: jax.Array, *shape: int | None) -> None:
    """Asserts that `value` is an integer array of `shape`."""
    _array(name, value)
    message = f"{name}: expected integers of shape {_spell(shape)}, got {value.dtype}{list(value.shape)}"
    chex.assert_type(value, int, custom_message=message)
    chex.assert_shape(value, shape, custom_message=message)


def check_dtype(name: str, value: jax.Array, dtype: jnp.dtype) -> None:
    """Asserts that `value` has the `dtype` of the arguments before it."""
    chex.assert_type(value, dtype, custom_message=f"{name}: expected {dtype}, as the student has, got {value.dtype}")


def check_where(where: jax.Array | None, rows: int) -> None:
    """Asserts that the mask `where` is None or `[rows]` bool."""
    if where is None:
        return
    _array("where", where)
    message = f"where: expected bool[{rows}], got {where.dtype}{list(where.shape)}"
    chex.assert_type(where, bool, custom_message=message)
    chex.assert_shape(where, (rows,), custom_message=message)


def check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    """Raises ValueError unless `value` is one of `known`."""
    if value not in known:
        raise ValueError(f"{name}: unknown value {value!r}; known values: {', '.join(known)}")


def keep_rows(x: jax.Array, where: jax.Array | None) -> jax.Array:
    """Zeroes the masked rows, whatever they hold (NaN too), and stops the gradient into them."""
    if where is None:
        return x
    return jnp.where(where.reshape(where.shape + (1,) * (x.ndim - 1)), x, 0)


def _spell(shape: tuple[int | None, ...]) -> str:
    return "[" + ", ".join("any" if size is None else str(size) for size in shape) + "]"
