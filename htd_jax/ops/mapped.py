"""A function of rows, mapped over all rows in blocks."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


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
