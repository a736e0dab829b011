"""Learned groups: a Gumbel-softmax mixture of experts that maps the student's representations to the teacher's.

The symbols of the paper (Kang et al., KDD'21): expert k is a small network `f_k` from the student's
space to the teacher's, `z_a` the mixture `[K]` of entity `a`. Entities that one expert serves form a group.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from htd_jax.losses.checks import check_dtype, check_floats, check_where
from htd_jax.ops.experts import Experts, Layer, Regression, mixed_outputs, mixture_regression
from htd_jax.ops.rows import keep_rows

__all__ = ["Experts", "Layer", "group_assignment_loss", "gumbel_softmax", "perturb", "routed_assignment_loss"]


def gumbel_softmax(key: chex.PRNGKey, logits: chex.Array, temperature: chex.Numeric) -> jax.Array:
    """A differentiable sample of a category: `softmax((logits + noise) / temperature)`, noise from Gumbel(0, 1).

    Near temperature 0 the sample is one-hot and follows `softmax(logits)`; at any temperature its largest entry does.

    Source: Jang et al., ICLR'17, as the paper uses it for group assignment.

    Args:
      key: a JAX random key.
      logits: `[..., K]` floats.
      temperature: a positive scalar, traced or not.

    Returns:
      `[..., K]`, in [0, 1], rows summing to 1.

    Raises:
      AssertionError: `logits` not of floats, or without a last axis; `temperature` not a scalar.

    >>> import jax, jax.numpy as jnp
    >>> print(gumbel_softmax(jax.random.key(0), jnp.log(jnp.array([0.01, 0.98, 0.01])), 0.1).round(2))
    [0. 1. 0.]
    """
    _check_temperature(temperature)
    return softmax_of(perturb(key, logits), temperature)


def perturb(key: chex.PRNGKey, logits: chex.Array) -> jax.Array:
    """`logits` plus Gumbel(0, 1) noise: the argmax of the result is a sample of `softmax(logits)`.

    Args, raises: as `gumbel_softmax`. Returns: `[..., K]`.
    """
    logits = check_floats("logits", logits, *(None,) * max(jnp.ndim(logits), 1))
    return logits + jax.random.gumbel(key, logits.shape, logits.dtype)


def group_assignment_loss(
    student: chex.Array,
    teacher: chex.Array,
    mixture: chex.Array,
    experts: Experts,
    *,
    where: chex.Array | None = None,
) -> jax.Array:
    r"""How far the mixed experts' outputs lie from the teacher's representations.

    .. math:: \sum_a |t_a - \sum_k z_{ak} f_k(s_a)|^2

    Source: the paper's group assignment loss, with the experts of DE-RRD (Kang et al., CIKM'20).

    Args:
      student: `[n, d_s]` floats.
      teacher: `[n, d_t]` floats, of the same entities; a constant.
      mixture: `[n, K]` floats, the weights of the experts.
      experts: stacked weights, see `Experts`.
      where: `[n]` bool; a masked row changes nothing, whatever it holds.

    Returns:
      A scalar, at least 0.

    Raises:
      AssertionError: an argument of a wrong rank, shape or dtype.

    >>> import jax.numpy as jnp
    >>> layer = lambda kernel: {"kernel": jnp.array([[[kernel]]]), "bias": jnp.zeros((1, 1))}
    >>> experts = {"hidden": layer(1.0), "output": layer(2.0)}  # f(s) = 2 max(s, 0)
    >>> student, teacher = jnp.array([[1.0], [-1.0]]), jnp.array([[3.0], [1.0]])
    >>> print(group_assignment_loss(student, teacher, jnp.ones((2, 1)), experts))
    2.0
    """
    s, t, z, experts, where = _check_mixture_of_experts(student, teacher, "mixture", mixture, experts, where)
    s, t, z = keep_rows(s, where), keep_rows(t, where), keep_rows(z, where)
    return jnp.sum((t - mixed_outputs(s, z, experts)) ** 2)


def routed_assignment_loss(
    student: chex.Array,
    teacher: chex.Array,
    logits: chex.Array,
    temperature: chex.Numeric,
    experts: Experts,
    *,
    where: chex.Array | None = None,
    weight: chex.Array | None = None,
    sides: tuple[int, ...] | None = None,
) -> jax.Array:
    r"""`group_assignment_loss` of the mixture `softmax(logits / temperature)`, at the cost of the experts in use.

    .. math:: \sum_a w_a |t_a - \sum_{k:\, z_{ak} \ge \epsilon} z_{ak} f_k(s_a)|^2, \quad z_a = softmax(l_a / T)

    with epsilon `2^-24 / K` in float32, so that what is left out of a row sums to less than the rounding of a sum that
    is 1. Where experts' outputs are of like size, loss and gradients are then the dense mixture's to rounding at every
    temperature (one output C times the others' is missed by up to C roundings): a weight left out is lost when it is
    added to the others; and the gradient of its logit, which the softmax multiplies by the weight over T, is as small
    beside the rounding of the others', which are divided by T too. (`group_assignment_loss` has no such right: its
    mixture is any, and the gradient of a zero weight is not zero.) At a low temperature this is one expert a row
    instead of K. Operations and memory are those of `htd_jax.ops.experts`.

    Users and items have experts of their own. `sides=(users, items)` takes both at once, the users' rows first, and is
    the sum of the two losses.

    Args:
      student: `[n, d_s]` floats.
      teacher: `[n, d_t]` floats, of the same entities; a constant.
      logits: `[n, K]` floats, the Gumbel noise included, see `perturb`.
      temperature: a positive scalar, traced or not; a constant.
      experts: stacked weights, see `Experts`; with `sides` those of all sides, stacked once more, `[sides, K, ...]`.
      where: `[n]` bool; a masked row changes nothing, whatever it holds.
      weight: `[n]` floats, how much each row counts, w; a constant. 1 if not given.
      sides: how many rows each side has; they sum to n. Static.

    Returns:
      A scalar, at least 0 if no weight is less.

    Raises:
      AssertionError: an argument of a wrong rank, shape or dtype.
    """
    s, t, logits, experts, where = _check_mixture_of_experts(student, teacher, "logits", logits, experts, where, sides)
    _check_temperature(temperature)
    w = jnp.ones(len(s), s.dtype) if weight is None else check_floats("weight", weight, len(s)).astype(s.dtype)
    temperature = jax.lax.stop_gradient(jnp.asarray(temperature, s.dtype))
    z = keep_rows(softmax_of(keep_rows(logits, where), temperature), where)
    lost = jnp.finfo(z.dtype).eps / (2 * z.shape[1])  # which a row's largest weight never is
    in_use = ~(z < lost)  # so is what is no number: the loss must show it
    if sides is not None:
        experts = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), experts)
    of = Regression(s, t, z, experts, in_use, jax.lax.stop_gradient(w))
    return mixture_regression(of, sides or (len(s),))


def softmax_of(logits: jax.Array, temperature: chex.Numeric) -> jax.Array:
    """`softmax(logits / temperature)`, the largest logit taken off first: at 1e-10 a quotient's rounding is hundreds,
    and a compiler that fuses division and subtraction would meet it in the exponent."""
    largest = jax.lax.stop_gradient(logits.max(-1, keepdims=True))
    return jax.nn.softmax((logits - largest) / temperature, axis=-1)


def _check_temperature(temperature: chex.Numeric) -> None:
    chex.assert_rank(
        temperature, 0, custom_message=f"temperature: expected a scalar, got shape {jnp.shape(temperature)}"
    )


def _check_mixture_of_experts(
    student: chex.Array,
    teacher: chex.Array,
    weights_name: str,
    weights: chex.Array,
    experts: Experts,
    where: chex.Array | None,
    sides: tuple[int, ...] | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array, Experts, jax.Array | None]:
    """Its arguments but for `sides` as the losses compute with them, the teacher a constant."""
    s = check_floats("student", student, None, None)
    rows, student_dim = s.shape
    t = check_floats("teacher", teacher, rows, None)
    z = check_floats(weights_name, weights, rows, None)
    check_dtype("teacher", teacher, student.dtype)
    check_dtype(weights_name, weights, student.dtype)
    if sides is not None and sum(sides) != rows:
        raise AssertionError(f"sides: expected sizes that sum to {rows}, got {tuple(sides)}")
    stack = (*(() if sides is None else (len(sides),)), z.shape[1])
    width = np.shape(experts["hidden"]["kernel"])[-1]
    given: Any = experts
    of = lambda layer, part, *shape: check_floats(f'experts["{layer}"]["{part}"]', given[layer][part], *stack, *shape)
    hidden = Layer(kernel=of("hidden", "kernel", student_dim, None), bias=of("hidden", "bias", width))
    output = Layer(kernel=of("output", "kernel", width, t.shape[1]), bias=of("output", "bias", t.shape[1]))
    where = check_where(where, rows)
    return s, jax.lax.stop_gradient(t), z, Experts(hidden=hidden, output=output), where
