"""Rows in blocks, and a function of rows mapped over them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def in_blocks(x: jax.Array, size: int, fill: int = 0) -> jax.Array:
    """Returns the rows `[n, ...]` in blocks `[ceil(n / size), size, ...]`, the last one padded with `fill`."""
    pad = [(0, -len(x) % size)] + [(0, 0)] * (x.ndim - 1)
    return jnp.pad(x, pad, constant_values=fill).reshape(-(-len(x) // size), size, *x.shape[1:])


def map_rows(f: Callable[[jax.Array], Any], count: int, size: int) -> Any:
    """Returns `f` of the rows 0 to count - 1, `[count, ...]`, computed block by block.

    Args:
      f: rows `[n]` -> a pytree of arrays `[n, ...]`; the last block is padded with the last row.
      count: at least 1.
      size: rows per block, clipped to [1, count].

    >>> map_rows(lambda rows: rows**2, 5, 2).tolist()
    [0, 1, 4, 9, 16]
    """
    size = max(1, min(count, size))
    blocks = -(-count // size)
    rows = jnp.minimum(jnp.arange(blocks * size), count - 1).reshape(blocks, size)
    join = lambda x: x.reshape(-1, *x.shape[2:])[:count]
    return jax.tree.map(join, jax.lax.map(f, rows))
