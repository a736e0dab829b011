"""Products with the matrix X of interactions, `[num_users, num_items]`, ones at the pairs; it is never formed."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from htd_jax.data import Interactions, seen_mask
from htd_jax.ops import platforms
from htd_jax.ops.products import dot

# Entries of the Gram matrix that are computed at once: 128 MiB.
ENTRIES = 2**25


def gram(pairs: Interactions, *, of_users: bool) -> np.ndarray:
    """Returns XX' `[num_users, num_users]` or X'X `[num_items, num_items]`, float32, computed on the host.

    In blocks of rows, because a sparse product of all rows takes more memory than the result. The cost is one addition
    per pair of entries of the same column of X, or of the same row.
    """
    import scipy.sparse as sp  # takes a moment, which other runs do not wait for

    ids = np.asarray(pairs.users), np.asarray(pairs.items)
    x = sp.csr_matrix((np.ones(len(pairs), np.float32), ids), shape=(pairs.num_users, pairs.num_items))
    left = x if of_users else x.T.tocsr()
    right = left.T.tocsr()
    size = left.shape[0]
    found = np.empty((size, size), np.float32)
    step = max(1, ENTRIES // size)
    for begin in range(0, size, step):
        found[begin : begin + step] = (left[begin : begin + step] @ right).toarray()
    return found


def sum_onto_items(rows: jax.Array, pairs: Interactions) -> jax.Array:
    """Returns the product with X of `rows` `[b, num_users]`: `[b, num_items]`.

    On a CPU, one pair after the other adds b numbers that stand together: four times as fast as a scatter, which is
    the form elsewhere. Both cost b additions per pair.
    """
    columns = rows.T

    def one_by_one(columns: jax.Array, users: jax.Array, items: jax.Array) -> jax.Array:
        def add(pair: jax.Array, total: jax.Array) -> jax.Array:
            own = jax.lax.dynamic_index_in_dim(columns, users[pair], keepdims=True)
            sofar = jax.lax.dynamic_index_in_dim(total, items[pair], keepdims=True)
            return jax.lax.dynamic_update_index_in_dim(total, sofar + own, items[pair], 0)

        return jax.lax.fori_loop(0, len(pairs), add, _zeros(columns))

    def at_once(columns: jax.Array, users: jax.Array, items: jax.Array) -> jax.Array:
        return _zeros(columns).at[items].add(columns[users])

    def _zeros(columns: jax.Array) -> jax.Array:
        return jnp.zeros((pairs.num_items, columns.shape[1]), columns.dtype)

    return platforms.by_platform(one_by_one, at_once, columns, pairs.users, pairs.items).T


def sum_of_items(users: jax.Array, table: jax.Array, pairs: Interactions) -> jax.Array:
    """Returns the product of the rows `users` `[b]` of X with `table` `[num_items, w]`: `[b, w]`.

    On a CPU, the rows of a user's items are added, w additions per pair. Elsewhere, a product with the dense rows of X.
    """

    def one_by_one(users: jax.Array, table: jax.Array, pairs: Interactions) -> jax.Array:
        add = lambda pair, total: total + jax.lax.dynamic_index_in_dim(table, pairs.items[pair], keepdims=False)
        zeros = jnp.zeros(table.shape[1], table.dtype)
        own = lambda user: jax.lax.fori_loop(pairs.offsets[user], pairs.offsets[user + 1], add, zeros)
        return jax.lax.map(own, users)

    def at_once(users: jax.Array, table: jax.Array, pairs: Interactions) -> jax.Array:
        return dot(seen_mask(pairs, users).astype(table.dtype), table)

    return platforms.by_platform(one_by_one, at_once, users, table, pairs)


def sum_entries(table: jax.Array, pairs: Interactions, users: Any, columns: Any) -> jax.Array:
    r"""Returns \sum_{i \in S_u} T_{ic} for users u and columns c, integers that broadcast; S_u are a user's items.

    It takes as many steps as the largest S_u of `users` has items, each of one look-up per result.

    Args:
      table: T, `[num_items, w]`.
      pairs: X; `transposed` for sums over the users of an item.
    """
    begins, degrees = pairs.offsets[users], jnp.diff(pairs.offsets)[users]
    shape = jnp.broadcast_shapes(jnp.shape(users), jnp.shape(columns))

    def add(step: jax.Array, total: jax.Array) -> jax.Array:
        item = pairs.items.at[begins + step].get(mode="clip")
        return total + jnp.where(step < degrees, table[item, columns], 0)

    return jax.lax.fori_loop(0, jnp.max(degrees, initial=0), add, jnp.zeros(shape, table.dtype))
