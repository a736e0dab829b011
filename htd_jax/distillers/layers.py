"""Affine layers that methods train with the student."""

import math
from collections.abc import Callable
from typing import Any

import chex
import jax

from htd_jax.ops.products import rows_dot


def init_sides(key: chex.PRNGKey, init: Callable[[chex.PRNGKey], Any]) -> dict[str, Any]:
    """Returns separate parameters of users and of items: `init` under a key for each."""
    users, items = jax.random.split(key)
    return {"users": init(users), "items": init(items)}


def init_dense(key: chex.PRNGKey, stack: tuple[int, ...], fan_in: int, fan_out: int) -> dict[str, jax.Array]:
    """Returns a `kernel` `[*stack, fan_in, fan_out]` and a `bias` `[*stack, fan_out]`, both uniform in
    +-1 / sqrt(fan_in)."""
    bound = 1 / math.sqrt(fan_in)
    kernel, bias = jax.random.split(key)
    return {
        "kernel": jax.random.uniform(kernel, (*stack, fan_in, fan_out), minval=-bound, maxval=bound),
        "bias": jax.random.uniform(bias, (*stack, fan_out), minval=-bound, maxval=bound),
    }


def dense(layer: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """Applies a layer to `x` `[n, fan_in]`, in full float32 on every backend: `[n, fan_out]`."""
    return rows_dot(x, layer["kernel"]) + layer["bias"][None]
