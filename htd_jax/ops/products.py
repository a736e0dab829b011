"""Matrix products in full float32 on every backend: GPUs and TPUs left to themselves take a shorter format, which would
move losses and rankings."""

import functools

import jax
import jax.numpy as jnp

dot = functools.partial(jnp.dot, precision=jax.lax.Precision.HIGHEST)
einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
