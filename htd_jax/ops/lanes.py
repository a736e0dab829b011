"""A loop over pieces of work that uses more than one core of a CPU."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from htd_jax.ops.manual import axes_of, vary

LANES = 2


def accumulate(
    work: Callable[[jax.Array], Any], add: Callable[[Any, Any], Any], total: Any, pieces: chex.Numeric
) -> Any:
    """Computes `for i in range(pieces): total = add(total, work(i))`, LANES pieces in parallel.

    XLA on a CPU runs a small product, and any batched one, on one core. A second core takes another product only if
    neither it nor its memory waits for the first; a product that waits continues in the thread that it waited for. So
    the result of `work`, its intermediate results included, is carried by the loop, as memory private to a lane.

    Args:
      work: index -> a pytree of arrays; the last turn may call it with indices from `pieces` on, whose results must
        leave the total unchanged.
      add: (total, the result of `work`) -> total.
      total: the initial total, a pytree of arrays; within `jax.shard_map` varying wherever `work` does.
      pieces: a scalar, traced or not.

    Returns:
      The total.
    """
    axes = axes_of(total)

    def turn(number: jax.Array, state: Any) -> Any:
        total, _ = state
        number = jnp.asarray(number, jnp.int32)  # with 64 bits enabled too: the type that `memory` was made for
        done = [work(number * LANES + lane) for lane in range(LANES)]
        for one in done:
            total = add(total, one)
        return vary((total, done), axes)

    memory = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), [jax.eval_shape(work, jnp.int32(0))] * LANES)
    total, memory = jax.lax.fori_loop(0, -(-pieces // LANES), turn, (total, vary(memory, axes)))
    # XLA removes what is carried and never read, so a number of each is read, and added if pieces were negative.
    read = sum(x.ravel()[0].astype(jnp.float32) for x in jax.tree.leaves(memory))
    leaves, structure = jax.tree.flatten(total)
    first = leaves[0].at[(0,) * leaves[0].ndim].add(jnp.where(pieces < 0, read, 0).astype(leaves[0].dtype))
    return jax.tree.unflatten(structure, [first, *leaves[1:]])
