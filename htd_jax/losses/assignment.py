"""Learned groups: a Gumbel-softmax mixture of experts that maps the student's representations to the teacher's.

The symbols of the paper (Kang et al., KDD'21): expert k is a small network `f_k` from the student's
space to the teacher's, `z_a` the mixture `[K]` of entity `a`. Entities that one expert serves form a group.
"""

from typing import TypedDict

import chex
import jax
import jax.numpy as jnp

from htd_jax.losses.checks import check_dtype, check_floats, check_where, keep_rows
from htd_jax.losses.lanes import LANES, accumulate
from htd_jax.products import dot, einsum

# The routed mixture's unit of work: BLOCK rows of one expert, CHUNK blocks in a lane at once.
BLOCK, CHUNK = 32, 2

# A routed product costs about this much more than its share of a dense one, so a mixture with more than one weight
# in ROUTING_COST in use is computed densely, ROWS rows at once.
ROUTING_COST, ROWS = 2.8, 256


class Layer(TypedDict):
    """The weights of K affine maps, stacked: `kernel` `[K, in, out]`, `bias` `[K, out]`."""

    kernel: chex.Array
    bias: chex.Array


class Experts(TypedDict):
    """K networks d_s -> h -> d_t with one ReLU: `hidden` `[K, d_s, h]`, `output` `[K, h, d_t]`."""

    hidden: Layer
    output: Layer


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
    _check_logits(logits)
    _check_temperature(temperature)
    return _softmax(perturb(key, logits), temperature)


def perturb(key: chex.PRNGKey, logits: chex.Array) -> jax.Array:
    """`logits` plus Gumbel(0, 1) noise: the argmax of the result is a sample of `softmax(logits)`."""
    _check_logits(logits)
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

    All K experts' outputs are one matrix product over the hidden units weighted by the mixture; the K outputs
    themselves are never held.

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
    _check_mixture_of_experts(student, teacher, "mixture", mixture, experts, where)
    student, mixture = keep_rows(student, where), keep_rows(mixture, where)
    teacher = jax.lax.stop_gradient(keep_rows(teacher, where))
    hidden, output = experts["hidden"], experts["output"]
    num_experts, student_dim, width = hidden["kernel"].shape
    # Matrices throughout, all experts' units side by side: of three axes XLA on a CPU makes copies to transpose them.
    kernel = jnp.swapaxes(hidden["kernel"], 0, 1).reshape(student_dim, num_experts * width)
    units = jax.nn.relu(dot(student, kernel) + hidden["bias"].ravel())
    weighted = mixture[:, :, None] * units.reshape(-1, num_experts, width)
    mixed = dot(weighted.reshape(-1, num_experts * width), output["kernel"].reshape(num_experts * width, -1))
    return jnp.sum((teacher - mixed - dot(mixture, output["bias"])) ** 2)


def routed_assignment_loss(
    student: chex.Array,
    teacher: chex.Array,
    logits: chex.Array,
    temperature: chex.Numeric,
    experts: Experts,
    *,
    where: chex.Array | None = None,
) -> jax.Array:
    r"""`group_assignment_loss` of the mixture `softmax(logits / temperature)`, at the cost of the experts in use.

    .. math:: \sum_a |t_a - \sum_{k:\, z_{ak} \ge \epsilon} z_{ak} f_k(s_a)|^2, \quad z_a = softmax(l_a / T)

    with epsilon `2^-24 / K` in float32, so that what is left out of a row sums to less than the rounding of a sum that
    is 1. Where experts' outputs are of like size, loss and gradients are then the dense mixture's to rounding at every
    temperature (one output C times the others' is missed by up to C roundings): a weight left out is lost when it is
    added to the others; and the gradient of its logit, which the softmax multiplies by the weight over T, is as small
    beside the rounding of the others', which are divided by T too. (`group_assignment_loss` has no such right: its
    mixture is any, and the gradient of a zero weight is not zero.) At a low temperature this is one expert a row
    instead of K.

    The pairs (row, expert) in use are sorted by expert into blocks of rows, and blocks are worked off in chunks
    of batched products for as long as there are any; where most pairs are in use, the dense products are faster and
    are taken, some rows at a time. Memory is O(n (d_t + K)) either way.

    Args:
      student: `[n, d_s]` floats.
      teacher: `[n, d_t]` floats, of the same entities; a constant.
      logits: `[n, K]` floats, the Gumbel noise included, see `perturb`.
      temperature: a positive scalar, traced or not; a constant.
      experts: stacked weights, see `Experts`.
      where: `[n]` bool; a masked row changes nothing, whatever it holds.

    Returns:
      A scalar, at least 0.

    Raises:
      AssertionError: an argument of a wrong rank, shape or dtype.
    """
    _check_mixture_of_experts(student, teacher, "logits", logits, experts, where)
    _check_temperature(temperature)
    if not len(student):
        return jnp.zeros((), student.dtype)
    student, teacher, logits, experts = jax.tree.map(jnp.asarray, (student, teacher, logits, experts))
    temperature = jax.lax.stop_gradient(jnp.asarray(temperature, student.dtype))
    mixture = keep_rows(_softmax(keep_rows(logits, where), temperature), where)
    lost = jnp.finfo(mixture.dtype).eps / (2 * mixture.shape[1])  # which a row's largest weight never is
    in_use = ~(mixture < lost)  # so is what is no number: the loss must show it
    return _regression(student, jax.lax.stop_gradient(teacher), mixture, experts, in_use)


def _softmax(logits: jax.Array, temperature: chex.Numeric) -> jax.Array:
    """`softmax(logits / temperature)`, the largest logit taken off first: at 1e-10 a quotient's rounding is hundreds,
    and a compiler that fuses division and subtraction would meet it in the exponent."""
    largest = jax.lax.stop_gradient(logits.max(-1, keepdims=True))
    return jax.nn.softmax((logits - largest) / temperature, axis=-1)


@jax.custom_vjp
def _regression(student, teacher, mixture, experts, in_use):
    """`group_assignment_loss`, with no need of more than the weights `in_use`, `[n, K]` bool; a row of none is masked,
    and may hold anything."""
    return _regression_and_gradients(student, teacher, mixture, experts, in_use)[0]


def _regression_and_gradients(student, teacher, mixture, experts, in_use):
    """The gradients are taken within the loops, whose lengths are known only when they run. Where most weights are in
    use the routed loops have no turn, and elsewhere the dense one has none."""
    crowded = ROUTING_COST * jnp.sum(in_use) > mixture.size
    total = jnp.zeros((), student.dtype), *jax.tree.map(jnp.zeros_like, (student, mixture, experts))
    total = _dense_regression(total, student, teacher, mixture, experts, in_use & crowded)
    total = _routed_regression(total, student, teacher, mixture, experts, in_use & ~crowded)
    loss, d_student, d_mixture, d_experts = total
    return loss, (d_student, None, d_mixture, d_experts, None)


_regression.defvjp(
    _regression_and_gradients,
    lambda gradients, cotangent: jax.tree.map(lambda g: cotangent * g, gradients),
)


def _dense_regression(total, student, teacher, mixture, experts, in_use):
    """Adds loss and gradients over all experts of every row with a weight in use, ROWS rows at a time."""
    kept = in_use.any(1)
    rows = jnp.flatnonzero(kept, size=-(-len(kept) // ROWS) * ROWS, fill_value=len(kept))

    def add(index, total):
        loss, d_student, d_mixture, d_experts = total
        row = jax.lax.dynamic_slice_in_dim(rows, index * ROWS, ROWS)
        some = [_rows(x, row) for x in (student, teacher, mixture)]
        part, gradients = jax.value_and_grad(group_assignment_loss, (0, 2, 3))(*some, experts)
        return (
            loss + part,
            d_student.at[row].set(gradients[0], mode="drop"),
            d_mixture.at[row].set(gradients[1], mode="drop"),
            jax.tree.map(jnp.add, d_experts, gradients[2]),
        )

    return jax.lax.fori_loop(0, -(-jnp.sum(kept) // ROWS), add, total)


def _routed_regression(total, student, teacher, mixture, experts, in_use):
    """Adds loss and gradients over the pairs (row, expert) in use.

    The rows of a single expert, nearly all at a low temperature, are done in one visit. Blocks that hold a row of
    several are visited twice: what is left of a row is known when all its experts have spoken.
    """
    several = in_use.sum(1) > 1
    loss, d_student, d_mixture, d_experts = total
    rows, expert_of, num_blocks = _route(in_use)
    mixed_in = _rows(several, rows).any(1)  # the blocks to be visited twice
    twice = jnp.flatnonzero(mixed_in, size=len(rows), fill_value=len(rows))
    chunk = lambda x, index: jax.lax.dynamic_slice_in_dim(x, index * CHUNK, CHUNK)

    def visit(row, expert):
        """Of blocks' rows `[CHUNK, BLOCK]` (`n` where empty) and experts `[CHUNK]`: the experts' layers, and the rows'
        inputs, weights, hidden units and outputs."""
        layers = jax.tree.map(lambda x: x[expert], experts)
        apply = lambda layer, x: einsum("bnd,bde->bne", x, layer["kernel"]) + layer["bias"][:, None]
        inputs = _rows(student, row)
        weight = _rows(mixture, (row, expert[:, None]))[..., None]
        hidden = jax.nn.relu(apply(layers["hidden"], inputs))
        return layers, inputs, weight, hidden, apply(layers["output"], hidden)

    def speak(index):
        block = chunk(twice, index)
        row = rows.at[block].get(mode="fill", fill_value=len(student))
        row, expert = jnp.where(_rows(several, row), row, len(student)), expert_of[block]
        visited = visit(row, expert)
        *_, weight, _, output = visited
        return row, weight * output, visited

    residual = accumulate(  # of a single expert's row: without its output
        speak,
        lambda residual, spoken: residual.at[spoken[0]].add(spoken[1], mode="drop"),
        -teacher,
        -(-jnp.sum(mixed_in) // CHUNK),
    )
    loss += jnp.sum(jnp.where(several, jnp.sum(residual**2, 1), 0))

    def differentiate(index):
        row, expert = chunk(rows, index), chunk(expert_of, index)
        visited = visit(row, expert)
        layers, inputs, weight, hidden, output = visited
        single = ~_rows(several, row)
        left = _rows(residual, row) + jnp.where(single[..., None], weight * output, 0)
        part = jnp.sum(jnp.where(single, jnp.sum(left**2, -1), 0))
        d_weight = 2 * jnp.sum(left * output, -1)
        d_output = 2 * weight * left
        d_hidden = jnp.where(hidden > 0, einsum("bne,bde->bnd", d_output, layers["output"]["kernel"]), 0)
        d_inputs = einsum("bne,bde->bnd", d_hidden, layers["hidden"]["kernel"])
        of_layer = lambda x, y: Layer(kernel=einsum("bnd,bne->bde", x, y), bias=y.sum(1))
        d_layers = Experts(hidden=of_layer(inputs, d_hidden), output=of_layer(hidden, d_output))
        return row, expert, part, d_inputs, d_weight, d_layers, (visited, left, d_output, d_hidden)

    def add(total, differentiated):
        loss, d_student, d_mixture, d_experts = total
        row, expert, part, d_inputs, d_weight, d_layers, _ = differentiated
        return (
            loss + part,
            d_student.at[row].add(d_inputs, mode="drop"),
            d_mixture.at[row, expert[:, None]].set(d_weight, mode="drop"),
            jax.tree.map(lambda d, some: d.at[expert].add(some), d_experts, d_layers),
        )

    return accumulate(differentiate, add, (loss, d_student, d_mixture, d_experts), -(-num_blocks // CHUNK))


def _rows(x: jax.Array, index: jax.Array | tuple[jax.Array, ...]) -> jax.Array:
    """`x[index]`, zeros where the index is out of range."""
    return x.at[index].get(mode="fill", fill_value=0)


def _route(active: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Blocks of rows for each expert, from `[n, K]` bool of which no more than one in ROUTING_COST is true.

    Returns:
      The rows of each block `[blocks, BLOCK]`, `n` where a block has no more; each block's expert `[blocks]`; and
      how many blocks hold a row.
    """
    rows, num_experts = active.shape
    most = num_experts + int(active.size / ROUTING_COST) // BLOCK  # each expert's last block may be part empty
    most = LANES * CHUNK * -(-most // (LANES * CHUNK))
    position = jax.lax.associative_scan(jnp.add, active.astype(jnp.int32))  # among its expert's rows, from 1
    blocks = -(-position[-1] // BLOCK)
    last_block = jnp.cumsum(blocks)
    slot = jnp.where(active, (last_block - blocks) * BLOCK + position - 1, most * BLOCK)
    row = jnp.broadcast_to(jnp.arange(rows)[:, None], active.shape)
    row_of = jnp.full(most * BLOCK, rows).at[slot].set(row, mode="drop").reshape(most, BLOCK)
    expert_of = jnp.searchsorted(last_block, jnp.arange(most), side="right")
    return row_of, jnp.minimum(expert_of, num_experts - 1), last_block[-1]


def _check_logits(logits):
    check_floats("logits", logits, *(None,) * max(jnp.ndim(logits), 1))


def _check_temperature(temperature):
    chex.assert_rank(
        temperature, 0, custom_message=f"temperature: expected a scalar, got shape {jnp.shape(temperature)}"
    )


def _check_mixture_of_experts(student, teacher, weights_name, weights, experts, where):
    check_floats("student", student, None, None)
    rows, student_dim = student.shape
    check_floats("teacher", teacher, rows, None)
    check_floats(weights_name, weights, rows, None)
    check_dtype("teacher", teacher, student.dtype)
    check_dtype(weights_name, weights, student.dtype)
    num_experts, teacher_dim = weights.shape[1], teacher.shape[1]
    check_floats('experts["hidden"]["kernel"]', experts["hidden"]["kernel"], num_experts, student_dim, None)
    width = experts["hidden"]["kernel"].shape[2]
    check_floats('experts["hidden"]["bias"]', experts["hidden"]["bias"], num_experts, width)
    check_floats('experts["output"]["kernel"]', experts["output"]["kernel"], num_experts, width, teacher_dim)
    check_floats('experts["output"]["bias"]', experts["output"]["bias"], num_experts, teacher_dim)
    check_where(where, rows)
