"""Arrays within `jax.shard_map`, whose types contain the axes of the mesh over which they vary."""

from typing import TypeVar

import jax

T = TypeVar("T")


def axes_of(tree: object) -> frozenset[str]:
    """Returns the axes of the mesh over which any array of `tree` varies; none outside `jax.shard_map`."""
    return frozenset().union(*map(_axes, jax.tree.leaves(tree)))


def vary(tree: T, axes: frozenset[str]) -> T:
    """Returns `tree` with every array varying over at least `axes`; a loop's carry must keep one type."""

    def one(x: jax.Array) -> jax.Array:
        missing = axes - _axes(x)
        return jax.lax.pcast(x, tuple(missing), to="varying") if missing else x

    return jax.tree.map(one, tree) if axes else tree


def alike(*trees: T) -> tuple[T, ...]:
    """Returns `trees` with every array varying wherever one of them does.

    An operation with a custom gradient needs such arguments, so that each gradient has its argument's type. The
    transpose sums the gradients of an array that was the same on all devices.
    """
    return vary(trees, axes_of(trees))


def _axes(x: jax.Array) -> frozenset[str]:
    return frozenset(jax.typeof(x).manual_axis_type.varying)
