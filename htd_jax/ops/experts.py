"""The regression of a mixture of experts with few weights in use per row: value and gradient together.

Shapes: n rows in s sides, each side with its own K experts d_s -> h -> d_t; m = d_s h + h d_t are the multiplications
of one expert for one row. A pair is a row and an expert whose weight is in use; there are between n and n K pairs.

| form | operations | bytes in addition to arguments and gradients |
|---|---|---|
| routed | 6 m per pair | CPU: O(n (d_t + K)); else 4 (pairs (3 d_t + 3 h) + 2 blocks m), pairs < 2 n + 128 s K |
| dense | 6 m K per row | CPU: as for 256 rows; else 20 ROWS_TIMES_UNITS, 0.7 GB, or 20 n K h if that is less |

The dense products run nearer to a device's peak than the routed ones, whose blocks are partly empty and whose weights
are gathered. So the dense form is used on a CPU if more than one weight in 2.8 is in use, and elsewhere if more than
two per row are. Elsewhere the routed form costs as much as 2 n + 128 s K rows of one expert, the dense one n K: they
cross at n = 128 s K / (K - 2), 275 rows of two sides at K = 30, and at no n for two experts per side.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypedDict

import chex
import jax
import jax.numpy as jnp
import numpy as np

from htd_jax.ops import platforms
from htd_jax.ops.blocks import into_blocks, side_of_rows, to_slots
from htd_jax.ops.lanes import LANES, accumulate
from htd_jax.ops.manual import alike, axes_of, vary
from htd_jax.ops.products import dot, einsum
from htd_jax.ops.rows import keep_rows, take_rows
from htd_jax.ops.shards import all_parts, devices, own_part, total

# On a CPU: BLOCK rows of one expert, CHUNK blocks per lane at a time. A routed product costs about ROUTING_COST times
# its share of a dense one; the dense products take ROWS rows at a time.
BLOCK, CHUNK = 32, 2
ROUTING_COST, ROWS = 2.8, 256

# Elsewhere: rows per block of one expert; routed up to PAIRS pairs per row on average and MOST_OF_A_ROW in any row;
# dense by LARGE_ROWS rows of a side, as many at a time as have ROWS_TIMES_UNITS hidden units.
LARGE_BLOCK, PAIRS, MOST_OF_A_ROW = 128, 2, 4
LARGE_ROWS, ROWS_TIMES_UNITS = 1024, 2**25


class Layer(TypedDict):
    """The weights of K affine maps, stacked: `kernel` `[K, in, out]`, `bias` `[K, out]`."""

    kernel: chex.Array
    bias: chex.Array


class Experts(TypedDict):
    """K networks d_s -> h -> d_t with one ReLU: `hidden` `[K, d_s, h]`, `output` `[K, h, d_t]`."""

    hidden: Layer
    output: Layer


def mixed_outputs(student: jax.Array, mixture: jax.Array, experts: Experts) -> jax.Array:
    """Returns the sum of all experts' outputs, weighted by the mixture: `[n, d_t]`.

    One product over the hidden units weighted by the mixture; the K outputs themselves are never in memory.

    Args:
      student: `[n, d_s]` floats.
      mixture: `[n, K]` floats.
      experts: K of them.
    """
    hidden, output = experts["hidden"], experts["output"]
    num_experts, student_dim, width = hidden["kernel"].shape
    # Matrices with all experts' units in one axis: with three axes XLA on a CPU would transpose by copying.
    kernel = jnp.swapaxes(hidden["kernel"], 0, 1).reshape(student_dim, num_experts * width)
    units = jax.nn.relu(dot(student, kernel) + hidden["bias"].reshape(1, -1))
    weighted = mixture[:, :, None] * units.reshape(-1, num_experts, width)
    mixed = dot(weighted.reshape(-1, num_experts * width), output["kernel"].reshape(num_experts * width, -1))
    return mixed + dot(mixture, output["bias"])


class Regression(NamedTuple):
    """A batch of rows and their experts.

    Attributes:
      student: `[n, d_s]` floats.
      teacher: `[n, d_t]` floats, a constant.
      mixture: `[n, K]` floats.
      experts: the experts of every side, one side after the other, `[s K, ...]`.
      in_use: `[n, K]` bool, the weights of the mixture that count; a row without any is masked, and may be anything.
      weight: `[n]` floats, a constant.
    """

    student: jax.Array
    teacher: jax.Array
    mixture: jax.Array
    experts: Experts
    in_use: jax.Array
    weight: jax.Array


def mixture_regression(batch: Regression, sides: tuple[int, ...]) -> jax.Array:
    """Returns the sum over rows of `weight` |teacher - mixed outputs|^2, computed from the weights `in_use` alone.

    Differentiable in student, mixture and experts.

    Args:
      batch: the rows and their experts.
      sides: the number of rows of each side, one side after the other; static.

    Returns:
      A scalar.
    """
    if not len(batch.student):
        return jnp.zeros((), batch.student.dtype)
    return _regression(*alike(batch), sides)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _regression(batch: Regression, sides: tuple[int, ...]) -> jax.Array:
    return _regression_and_gradients(batch, sides)[0]


def _regression_and_gradients(batch: Regression, sides: tuple[int, ...]) -> tuple[jax.Array, Any]:
    """Computes value and gradients; on a mesh, devices divide the rows of each side, and sum the experts' gradients."""
    parts = jax.lax.axis_size(axes) if (axes := devices()) else 1
    own_sides = tuple(-(-size // parts) for size in sides)

    def of_sides(change: Callable[[jax.Array, int], jax.Array], x: jax.Array, sizes: tuple[int, ...]) -> jax.Array:
        return jnp.concatenate([change(*side) for side in zip(jnp.split(x, np.cumsum(sizes)[:-1]), sides)])

    if axes:
        own = lambda x: of_sides(lambda rows, _: own_part(rows), x, sides)
        student, teacher, mixture, experts, in_use, weight = batch
        experts = vary(experts, frozenset(axes))
        batch = Regression(own(student), own(teacher), own(mixture), experts, own(in_use), own(weight))
    loss, d_student, d_mixture, d_experts = platforms.by_platform(
        functools.partial(in_small_blocks, sides=own_sides),
        functools.partial(in_large_products, sides=own_sides),
        batch,
    )
    if axes:
        d_student, d_mixture = (of_sides(all_parts, x, own_sides) for x in (d_student, d_mixture))
        loss, d_experts = jax.tree.map(total, (loss, d_experts))
    return loss, (d_student, None, d_mixture, d_experts, None, None)


_regression.defvjp(
    _regression_and_gradients,
    lambda sides, gradients, cotangent: (Regression(*jax.tree.map(lambda g: cotangent * g, gradients)),),
)

Total = tuple[jax.Array, jax.Array, jax.Array, Experts]


def in_small_blocks(batch: Regression, sides: tuple[int, ...]) -> Total:
    """Computes loss and gradients by student, mixture and experts on a CPU.

    It runs loops of dynamic lengths: a side with most weights in use is left to the dense loop, any other to the
    routed ones.
    """
    starts = np.cumsum(sides)[:-1]
    used = jnp.stack([jnp.sum(part) for part in jnp.split(batch.in_use, starts)])
    most = np.array(sides, np.float32) * batch.mixture.shape[1]
    crowded = (ROUTING_COST * used > most)[side_of_rows(sides)][:, None]
    zeros = jax.tree.map(jnp.zeros_like, (batch.student, batch.mixture, batch.experts))
    total = vary((jnp.zeros((), batch.student.dtype), *zeros), axes_of(batch.student))
    total = _add_dense(total, batch._replace(in_use=batch.in_use & crowded), sides)
    return _add_routed(total, batch._replace(in_use=batch.in_use & ~crowded), sides)


def _squares(
    student: jax.Array, teacher: jax.Array, mixture: jax.Array, experts: Experts, weight: jax.Array
) -> jax.Array:
    return jnp.sum(weight[:, None] * (teacher - mixed_outputs(student, mixture, experts)) ** 2)


_squares_and_gradients = jax.value_and_grad(_squares, (0, 2, 3))


def _by_side(experts: Experts, sides: tuple[int, ...]) -> Experts:
    """Returns the experts as `[s, K, ...]`."""
    return jax.tree.map(lambda x: x.reshape(len(sides), -1, *x.shape[1:]), experts)


def _add_dense(total: Total, batch: Regression, sides: tuple[int, ...]) -> Total:
    """Adds loss and gradients over all experts of every row with a weight in use, ROWS rows of a side at a time."""
    student, teacher, mixture, experts, in_use, weight = batch
    kept = in_use.any(1)
    rows = len(kept)
    kept_rows = jnp.sort(jnp.where(kept, jnp.arange(rows), rows))  # still one side after the other
    kept_rows = jnp.pad(kept_rows, (0, ROWS), constant_values=rows)
    size = jnp.stack([jnp.sum(part) for part in jnp.split(kept, np.cumsum(sides)[:-1])])
    first, blocks = jnp.cumsum(size) - size, -(-size // ROWS)
    last_block = jnp.cumsum(blocks)
    loss, d_student, d_mixture, d_experts = total
    experts_of_side = _by_side(experts, sides)
    at = lambda x, side: jax.lax.dynamic_index_in_dim(x, side, keepdims=False)

    def add(index: jax.Array, total: Any) -> Any:
        loss, d_student, d_mixture, d_experts = total
        side = jnp.sum(last_block <= index)
        begin = (index - (last_block - blocks)[side]) * ROWS
        row = jax.lax.dynamic_slice_in_dim(kept_rows, first[side] + begin, ROWS)
        row = jnp.where(begin + jnp.arange(ROWS) < size[side], row, rows)
        inputs = [take_rows(x, row) for x in (student, teacher, mixture)]
        own = jax.tree.map(lambda x: at(x, side), experts_of_side)
        part, gradients = _squares_and_gradients(*inputs, own, take_rows(weight, row))
        plus = lambda d, some: jax.lax.dynamic_update_index_in_dim(d, at(d, side) + some, side, 0)
        return (
            loss + part,
            d_student.at[row].set(gradients[0], mode="drop"),
            d_mixture.at[row].set(gradients[1], mode="drop"),
            jax.tree.map(plus, d_experts, gradients[2]),
        )

    total = loss, d_student, d_mixture, _by_side(d_experts, sides)
    loss, d_student, d_mixture, d_experts = jax.lax.fori_loop(0, last_block[-1], add, total)
    return loss, d_student, d_mixture, jax.tree.map(lambda d, x: d.reshape(x.shape), d_experts, experts)


class Visited(NamedTuple):
    """Blocks `[b, size]` of rows through their experts: the experts' weights, the inputs, and the outputs."""

    layers: Experts
    inputs: jax.Array
    weight: jax.Array
    hidden: jax.Array
    output: jax.Array


def _visit(student: jax.Array, experts: Experts, row: jax.Array, expert: jax.Array, weight: jax.Array) -> Visited:
    """Applies the blocks' experts `[b]` to their rows `[b, size]` (`n` where empty) with weights `[b, size]`."""
    layers = jax.tree.map(lambda x: x[expert], experts)
    apply = lambda layer, x: einsum("bnd,bde->bne", x, layer["kernel"]) + layer["bias"][:, None]
    inputs = take_rows(student, row)
    hidden = jax.nn.relu(apply(layers["hidden"], inputs))
    return Visited(layers, inputs, weight[..., None], hidden, apply(layers["output"], hidden))


def _differentiate(visited: Visited, pull: jax.Array) -> tuple[jax.Array, jax.Array, Experts, Any]:
    """Returns the gradients by the blocks' inputs, weights and layers, from the gradient `pull` by their weighted
    outputs; and intermediate results."""
    layers, inputs, weight, hidden, output = visited
    d_weight = jnp.sum(pull * output, -1)
    d_output = weight * pull
    d_hidden = jnp.where(hidden > 0, einsum("bne,bde->bnd", d_output, layers["output"]["kernel"]), 0)
    d_inputs = einsum("bne,bde->bnd", d_hidden, layers["hidden"]["kernel"])
    d_layer = lambda x, y: Layer(kernel=einsum("bnd,bne->bde", x, y), bias=y.sum(1))
    d_layers = Experts(hidden=d_layer(inputs, d_hidden), output=d_layer(hidden, d_output))
    return d_inputs, d_weight, d_layers, (d_output, d_hidden)


def _add_routed(total: Total, batch: Regression, sides: tuple[int, ...]) -> Total:
    """Adds loss and gradients over the pairs in use.

    Rows with a single expert, nearly all at a low temperature, take one visit. Blocks with a row of several experts are
    visited twice, because a row's residual is known only after all its experts.
    """
    student, teacher, mixture, experts, in_use, weight = batch
    rows, num_experts = mixture.shape
    several = in_use.sum(1) > 1
    most = len(sides) * num_experts + int(mixture.size / ROUTING_COST) // BLOCK  # an expert's last may be part empty
    most = LANES * CHUNK * -(-most // (LANES * CHUNK))
    row_of, expert_of, slots, num_blocks = into_blocks(in_use, sides, BLOCK, most)
    # Inputs per pair are laid out in the order of the blocks, so that a turn of a loop takes a slice.
    weight_of = to_slots(mixture, slots, row_of.shape)
    share_of, several_of = take_rows(weight, row_of), take_rows(several, row_of)
    mixed_in = several_of.any(1)  # the blocks to visit twice
    row_of_several = jnp.where(several_of, row_of, rows)
    twice = jnp.sort(jnp.where(mixed_in, jnp.arange(most), most))
    chunk = lambda x, index: jax.lax.dynamic_slice_in_dim(x, index * CHUNK, CHUNK)

    def predict(index: jax.Array) -> Any:
        block = chunk(twice, index)
        row = row_of_several.at[block].get(mode="fill", fill_value=rows)
        visited = _visit(student, experts, row, expert_of[block], weight_of[block])
        return row, visited.weight * visited.output, visited

    residual = accumulate(  # without the output of a row's single expert
        predict,
        lambda residual, predicted: residual.at[predicted[0]].add(predicted[1], mode="drop"),
        -teacher,
        -(-jnp.sum(mixed_in) // CHUNK),
    )
    loss, d_student, d_mixture, d_experts = total
    loss += jnp.sum(jnp.where(several, weight * jnp.sum(residual**2, 1), 0))

    def differentiate(index: jax.Array) -> Any:
        row, expert = chunk(row_of, index), chunk(expert_of, index)
        visited = _visit(student, experts, row, expert, chunk(weight_of, index))
        single, share = ~chunk(several_of, index), chunk(share_of, index)
        left = take_rows(residual, row) + jnp.where(single[..., None], visited.weight * visited.output, 0)
        part = jnp.sum(jnp.where(single, share * jnp.sum(left**2, -1), 0))
        return index, row, expert, part, left, _differentiate(visited, 2 * share[..., None] * left), visited

    def add(total: Any, differentiated: Any) -> Any:
        loss, d_student, d_weight_of, d_experts = total
        index, row, expert, part, _, (d_inputs, d_weight, d_layers, _), _ = differentiated
        return (
            loss + part,
            d_student.at[row].add(d_inputs, mode="drop"),
            jax.lax.dynamic_update_slice_in_dim(d_weight_of, d_weight, index * CHUNK, 0),
            jax.tree.map(lambda d, some: d.at[expert].add(some), d_experts, d_layers),
        )

    total = loss, d_student, jnp.zeros_like(weight_of), d_experts
    total = accumulate(differentiate, add, total, -(-num_blocks // CHUNK))
    loss, d_student, d_weight_of, d_experts = total
    return loss, d_student, d_mixture + take_rows(d_weight_of.ravel(), slots), d_experts


def in_large_products(batch: Regression, sides: tuple[int, ...]) -> Total:
    """Computes loss and gradients by student, mixture and experts on a GPU or TPU, in a fixed order of additions.

    It selects one of two forms, without loops until the hidden units of all experts exceed ROWS_TIMES_UNITS.
    """
    used = jnp.sum(batch.in_use, axis=1)
    few = (jnp.sum(used) <= PAIRS * len(used)) & (jnp.max(used) <= MOST_OF_A_ROW)
    axes = axes_of(batch.student)
    forms = (lambda batch, form=form: vary(form(batch, sides), axes) for form in (_routed_products, _dense_products))
    return jax.lax.cond(few, *forms, batch)


def _routed_products(batch: Regression, sides: tuple[int, ...]) -> Total:
    """Loss and gradients over the pairs in use, at most PAIRS per row on average and MOST_OF_A_ROW in any row."""
    student, teacher, mixture, experts, in_use, weight = batch
    rows, num_experts = mixture.shape
    most = len(sides) * num_experts + PAIRS * rows // LARGE_BLOCK
    row_of, expert_of, slots, _ = into_blocks(in_use, sides, LARGE_BLOCK, most)
    places = _smallest(slots, min(MOST_OF_A_ROW, num_experts), most * LARGE_BLOCK)
    to_rows = lambda x: functools.reduce(jnp.add, [take_rows(x.reshape(most * LARGE_BLOCK, -1), at) for at in places])

    visited = _visit(student, experts, row_of, expert_of, to_slots(mixture, slots, row_of.shape))
    left = keep_rows(to_rows(visited.weight * visited.output) - teacher, in_use.any(1))
    loss = jnp.sum(weight * jnp.sum(left**2, axis=1))
    pull = take_rows(2 * weight[:, None] * left, row_of)
    d_inputs, d_weight, d_layers, _ = _differentiate(visited, pull)
    d_experts = _sum_by_owner(d_layers, expert_of, len(sides) * num_experts)
    return loss, to_rows(d_inputs), take_rows(d_weight.ravel(), slots), d_experts


def _smallest(x: jax.Array, count: int, none: int) -> list[jax.Array]:
    """Returns the `count` smallest numbers of each row of `x`, distinct numbers under `none`: `count` vectors `[n]`."""
    smallest = []
    for _ in range(count):
        smallest.append(x.min(axis=1))
        x = jnp.where(x == smallest[-1][:, None], none, x)
    return smallest


def _sum_by_owner(tree: Any, owner: jax.Array, owners: int) -> Any:
    """Sums leaves `[b, ...]` over the blocks of each owner: `[owners, ...]`. As products, because a scatter adds in no
    fixed order on a GPU, so that its results would differ from run to run."""
    owns = jnp.arange(owners)[:, None] == owner[None]
    sum_leaf = lambda x: dot(owns.astype(x.dtype), x.reshape(len(owner), -1)).reshape(owners, *x.shape[1:])
    return jax.tree.map(sum_leaf, tree)


def _dense_products(batch: Regression, sides: tuple[int, ...]) -> Total:
    """Loss and gradients over all experts of every row, by blocks of rows of a side, as many blocks at a time as
    ROWS_TIMES_UNITS allows."""
    student, teacher, mixture, experts, in_use, weight = batch
    rows, num_experts = mixture.shape
    width = experts["hidden"]["kernel"].shape[2]
    size = min(LARGE_ROWS, max(sides), max(ROWS_TIMES_UNITS // (num_experts * width), 1))
    row_of, side_of, place = _lay_out(sides, size)
    parallel = min(max(ROWS_TIMES_UNITS // (size * num_experts * width), 1), len(row_of))
    turns = -(-len(row_of) // parallel)
    pad = turns * parallel - len(row_of)
    row_of = np.pad(row_of, [(0, pad), (0, 0)], constant_values=rows).reshape(turns, parallel, size)
    side_of = np.pad(side_of, (0, pad)).reshape(turns, parallel)
    kept = take_rows(in_use.any(1), jnp.asarray(row_of))
    kept_row_of = jnp.where(kept, row_of, rows)  # the values of masked rows are never read
    experts_of_side = _by_side(experts, sides)

    def add(total: Any, block: Any) -> Any:
        loss, d_experts = total
        row, side = block
        inputs = [take_rows(x, row) for x in (student, teacher, mixture)]
        own = jax.tree.map(lambda x: x[side], experts_of_side)
        parts, gradients = jax.vmap(_squares_and_gradients)(*inputs, own, take_rows(weight, row))
        d_own = _sum_by_owner(gradients[2], side, len(sides))
        return (loss + jnp.sum(parts), jax.tree.map(jnp.add, d_experts, d_own)), gradients[:2]

    zero = jnp.zeros((), student.dtype), jax.tree.map(jnp.zeros_like, experts_of_side)
    if turns == 1:
        (loss, d_experts), gradients = add(zero, (kept_row_of[0], side_of[0]))
    else:
        (loss, d_experts), gradients = jax.lax.scan(add, vary(zero, axes_of(student)), (kept_row_of, side_of))
    d_student, d_mixture = (g.reshape(turns * parallel * size, -1)[place] for g in gradients)
    return loss, d_student, d_mixture, jax.tree.map(lambda d, x: d.reshape(x.shape), d_experts, experts)


def _lay_out(sides: tuple[int, ...], size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lays out the rows of every side in blocks of `size`. Returns their indices `[blocks, size]`, n for padding; each
    block's side; and each row's position among the `blocks * size`."""
    rows = sum(sides)
    blocks = [-(-side // size) for side in sides]
    first_row, first_block = np.cumsum((0, *sides)), np.cumsum((0, *blocks))
    side_of = side_of_rows(sides)
    place = first_block[side_of] * size + np.arange(rows) - first_row[side_of]
    row_of = np.full(sum(blocks) * size, rows, np.int32)
    row_of[place] = np.arange(rows)
    return row_of.reshape(-1, size), np.repeat(np.arange(len(sides)), blocks), place
