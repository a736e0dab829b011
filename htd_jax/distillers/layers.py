"""Affine layers, as the methods learn them beside the student."""

import math
from collections.abc import Callable
from typing import Any

import chex
import jax

from htd_jax.products import dot


def init_sides(key: chex.PRNGKey, init: Callable[[chex.PRNGKey], Any]) -> dict[str, Any]:
    """What users and items have each of their own: `init` under either's key."""
    users, items = jax.random.split(key)
    return {"users": init(users), "items": init(items)}


def init_dense(key: chex.PRNGKey, stack: tuple[int, ...], fan_in: int, fan_out: int) -> dict[str, jax.Array]:
    """Weight and bias alike from U(-1/sqrt(fan_in), 1/sqrt(fan_in)): `kernel` `[*stack, fan_in, fan_out]` and `bias`
    `[*stack, fan_out]`."""
    bound = 1 / math.sqrt(fan_in)
    kernel, bias = jax.random.split(key)
    return {
        "kernel": jax.random.uniform(kernel, (*stack, fan_in, fan_out), minval=-bound, maxval=bound),
        "bias": jax.random.uniform(bias, (*stack, fan_out), minval=-bound, maxval=bound),
    }


def dense(layer: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """`x` `[n, fan_in]` through one layer, in full float32 on every backend: `[n, fan_out]`."""
    return dot(x, layer["kernel"]) + layer["bias"][None, :]
