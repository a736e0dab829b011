"""What is made for every row, of some rows at a time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def map_rows(of_rows: Callable[[jax.Array], Any], count: int, at_once: int) -> Any:
    """`of_rows(rows [n])`, a pytree of arrays `[n, ...]`, for the rows 0 .. count - 1: `[count, ...]`.

    Args:
      of_rows: called for blocks of one size; the last block is filled up with the last row.
      count: at least 1.
      at_once: rows in a block, which is 1 at least and `count` at most.

    >>> map_rows(lambda rows: rows**2, 5, 2).tolist()
    [0, 1, 4, 9, 16]
    """
    at_once = max(1, min(count, at_once))
    blocks = -(-count // at_once)
    rows = jnp.minimum(jnp.arange(blocks * at_once), count - 1).reshape(blocks, at_once)
    whole = lambda x: x.reshape(-1, *x.shape[2:])[:count]
    return jax.tree.map(whole, jax.lax.map(of_rows, rows))
