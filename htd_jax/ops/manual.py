"""Arrays within `jax.shard_map`, where a type says over which axes of the mesh an array differs."""

from typing import TypeVar

import jax

T = TypeVar("T")


def axes_of(tree: object) -> frozenset[str]:
    """The axes of the mesh over which any array of `tree` varies; none outside `jax.shard_map`."""
    return frozenset().union(*map(_axes, jax.tree.leaves(tree)))


def vary(tree: T, axes: frozenset[str]) -> T:
    """`tree` with every array varying over at least `axes`: what a loop carries has one type from start to end."""

    def one(x: jax.Array) -> jax.Array:
        missing = axes - _axes(x)
        return jax.lax.pcast(x, tuple(missing), to="varying") if missing else x

    return jax.tree.map(one, tree) if axes else tree


def alike(*trees: T) -> tuple[T, ...]:
    """`trees` with every array varying wherever one of them does.

    An operation with a gradient of its own takes such arguments, so that each gradient has its argument's type. The
    transpose sums the gradients of an array that was the same on all devices.
    """
    return vary(trees, axes_of(trees))


def _axes(x: jax.Array) -> frozenset[str]:
    return frozenset(jax.typeof(x).manual_axis_type.varying)
