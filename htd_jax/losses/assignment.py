"""Learned groups: a Gumbel-softmax mixture of experts that maps the student's representations to the teacher's.

The symbols of the paper (Kang et al., KDD'21): expert k is a small network `f_k` from the student's
space to the teacher's, `z_a` the mixture `[K]` of entity `a`. The entities of one expert form a group.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from htd_jax.losses.checks import check_dtype, check_floats, check_scalar, check_where
from htd_jax.ops.experts import Experts, Layer, Regression, mixed_outputs, mixture_regression
from htd_jax.ops.rows import keep_rows

__all__ = ["Experts", "Layer", "group_assignment_loss", "gumbel_softmax", "perturb", "routed_assignment_loss"]


def gumbel_softmax(key: chex.PRNGKey, logits: chex.Array, temperature: chex.Numeric) -> jax.Array:
    """Samples a category differentiably: `softmax((logits + noise) / temperature)`, with noise from Gumbel(0, 1).

    Near temperature 0 the sample is one-hot. At any temperature its largest entry is distributed as `softmax(logits)`.

    Source: Jang et al., ICLR'17, as the paper uses it for group assignment.

    Args:
      key: a JAX random key.
      logits: `[..., K]` floats.
      temperature: a positive scalar, traced or not.

    Returns:
      `[..., K]`, in [0, 1], rows summing to 1.

    Raises:
      AssertionError: if `logits` are not floats or a scalar, or `temperature` is not a scalar.

    >>> import jax, jax.numpy as jnp
    >>> print(gumbel_softmax(jax.random.key(0), jnp.log(jnp.array([0.01, 0.98, 0.01])), 0.1).round(2))
    [0. 1. 0.]
    """
    check_scalar("temperature", temperature, jnp.float32)
    return tempered_softmax(perturb(key, logits), temperature)


def perturb(key: chex.PRNGKey, logits: chex.Array) -> jax.Array:
    """Adds Gumbel(0, 1) noise to `logits`: the argmax of the result is a sample of `softmax(logits)`.

    Args, raises: as `gumbel_softmax`. Returns: `[..., K]`.
    """
    logits = check_floats("logits", logits, *(None,) * max(jnp.ndim(logits), 1))
    return logits + jax.random.gumbel(key, logits.shape, jnp.float32)  # a key's noise is the same in float64


def group_assignment_loss(
    student: chex.Array,
    teacher: chex.Array,
    mixture: chex.Array,
    experts: Experts,
    *,
    where: chex.Array | None = None,
) -> jax.Array:
    r"""Computes the squared distance of mixed experts' outputs from the teacher's representations.

    .. math:: \sum_a |t_a - \sum_k z_{ak} f_k(s_a)|^2

    Source: the paper's group assignment loss, with the experts of DE-RRD (Kang et al., CIKM'20).

    Args:
      student: `[n, d_s]` floats.
      teacher: `[n, d_t]` floats, of the same entities, constants.
      mixture: `[n, K]` floats, z, the weights of the experts.
      experts: stacked weights, see `Experts`.
      where: `[n]` bool; a masked row changes nothing, whatever it holds.

    Returns:
      A scalar, at least 0.

    Raises:
      AssertionError: if an argument has a wrong rank, shape or dtype.

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
    experts: Experts,
    *,
    where: chex.Array | None = None,
    weights: chex.Array | None = None,
    temperature: chex.Numeric,
    sides: tuple[int, ...] | None = None,
) -> jax.Array:
    r"""Computes `group_assignment_loss` of the mixture `softmax(logits / temperature)`, from the experts in use alone.

    .. math:: \sum_a w_a |t_a - \sum_{k:\, z_{ak} \ge \epsilon} z_{ak} f_k(s_a)|^2, \quad z_a = softmax(l_a / T)

    with epsilon `2^-24 / K` in float32, so that the mixture weights left out of a row sum to less than the rounding of
    a sum that is 1. If the experts' outputs are of similar size, loss and gradients equal the dense mixture's up to
    rounding at every temperature (one output C times the others' is missed by up to C roundings): a weight left out is
    lost when it is added to the others, and the gradient of its logit, the weight over T times as large, is lost in the
    rounding of the other logits' gradients, which are divided by T too. (`group_assignment_loss` cannot leave out
    weights: its mixture is arbitrary, and the gradient of a zero weight is not zero.) At a low temperature this is one
    expert per row instead of K. For operations and memory see `htd_jax.ops.experts`.

    `sides=(users, items)` computes the sum of two losses with separate experts at once, the users' rows first.

    Args:
      student: `[n, d_s]` floats.
      teacher: `[n, d_t]` floats, of the same entities, constants.
      logits: `[n, K]` floats, including the Gumbel noise, see `perturb`.
      experts: stacked weights, see `Experts`; with `sides` those of all sides, stacked again, `[sides, K, ...]`.
      where: `[n]` bool; a masked row changes nothing, whatever it holds.
      weights: `[n]` floats, w, the weights of the rows, constants; 1 by default.
      temperature: T, a positive scalar, traced or not, a constant.
      sides: the number of rows of each side; they sum to n. Static.

    Returns:
      A scalar, at least 0 if all weights are.

    Raises:
      AssertionError: if an argument has a wrong rank, shape or dtype.
    """
    s, t, logits, experts, where = _check_mixture_of_experts(student, teacher, "logits", logits, experts, where, sides)
    temperature = jax.lax.stop_gradient(check_scalar("temperature", temperature, s.dtype))
    w = jnp.ones(len(s), s.dtype) if weights is None else check_floats("weights", weights, len(s)).astype(s.dtype)
    z = keep_rows(tempered_softmax(keep_rows(logits, where), temperature), where)
    lost = jnp.finfo(z.dtype).eps / (2 * z.shape[1])  # a row's largest weight is always more
    in_use = ~(z < lost)  # true of NaN, so that the loss shows it
    if sides is not None:
        experts = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), experts)
    regression = Regression(s, t, z, experts, in_use, jax.lax.stop_gradient(w))
    return mixture_regression(regression, sides or (len(s),))


def tempered_softmax(logits: jax.Array, temperature: chex.Numeric) -> jax.Array:
    """Returns `softmax(logits / temperature)`, subtracting the largest logit first: at 1e-10 a quotient's rounding is
    hundreds, and a compiler that fuses division and subtraction would put it into the exponent."""
    largest = jax.lax.stop_gradient(logits.max(-1, keepdims=True))
    return jax.nn.softmax((logits - largest) / jnp.asarray(temperature, logits.dtype), axis=-1)


def _check_mixture_of_experts(
    student: chex.Array,
    teacher: chex.Array,
    mixture_name: str,
    mixture: chex.Array,
    experts: Experts,
    where: chex.Array | None,
    sides: tuple[int, ...] | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array, Experts, jax.Array | None]:
    """Checks the arguments, and returns all but `sides`, the teacher without gradient."""
    s = check_floats("student", student, None, None)
    rows, student_dim = s.shape
    t = check_floats("teacher", teacher, rows, None)
    z = check_floats(mixture_name, mixture, rows, None)
    check_dtype("teacher", teacher, student.dtype)
    check_dtype(mixture_name, mixture, student.dtype)
    if sides is not None and sum(sides) != rows:
        raise AssertionError(f"sides: expected sizes that sum to {rows}, got {tuple(sides)}")
    stack = (*(() if sides is None else (len(sides),)), z.shape[1])
    width = np.shape(experts["hidden"]["kernel"])[-1]
    given: Any = experts

    def check_part(layer: str, part: str, *shape: int | None) -> jax.Array:
        return check_floats(f'experts["{layer}"]["{part}"]', given[layer][part], *stack, *shape)

    hidden = Layer(kernel=check_part("hidden", "kernel", student_dim, None), bias=check_part("hidden", "bias", width))
    dim = t.shape[1]
    output = Layer(kernel=check_part("output", "kernel", width, dim), bias=check_part("output", "bias", dim))
    where = check_where(where, rows)
    return s, jax.lax.stop_gradient(t), z, Experts(hidden=hidden, output=output), where
