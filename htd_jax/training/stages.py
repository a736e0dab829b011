"""The stages of a phase: what its model ranked best at a few moments of the training."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from htd_jax.data import Interactions
from htd_jax.distillers.sampling import unseen_ranks
from htd_jax.ensembles import LISTED, Stages
from htd_jax.models import MakeModel, with_tables
from htd_jax.teacher import Teacher

# The evaluations over which the deviation of a rank is computed.
SPAN = 5

# Ranks from here on are not told apart. An item that is among the best now, and was here once, has a deviation of 400
# or more, whose share of its weight in an ensemble is under 0.02 of 2.
DEEPEST = 1001


@struct.dataclass
class Kept:
    """What a phase keeps of its evaluations, of a size that does not grow with their number.

    The lists of every s-th evaluation are kept, in twice as many slots as stages. Where these are full, every other is
    dropped, and s doubles: the moment at which training ends need not be known.

    Attributes:
      recent: the variables at the last `SPAN` evaluations, the newest first, along a new first axis.
      best: the same, as they were at the best evaluation; empty without early stopping.
      stages: the slots, of one teacher.
    """

    recent: Any
    best: Any
    stages: Stages


def begin_stages(variables: Any, train: Interactions, number: int, *, early_stopping: bool) -> Kept:
    """Returns what is kept before the first evaluation of a phase of `number` stages."""
    recent = jax.tree.map(lambda x: jnp.zeros((SPAN, *x.shape), x.dtype), variables)
    shape = 1, 2 * number, train.num_users, min(LISTED, train.num_items)
    empty = Stages(jnp.full(shape, -1, jnp.int32), jnp.zeros(shape))
    return Kept(recent, jax.tree.map(jnp.copy, recent) if early_stopping else {}, empty)


def observe(
    kept: Kept, make_model: MakeModel, variables: Any, train: Interactions, evaluation: int, *, is_best: bool
) -> Kept:
    """Returns what is kept after an evaluation.

    Args:
      kept: what was kept before it.
      make_model: the model.
      variables: its variables at this evaluation.
      train: the training interactions.
      evaluation: the number of this evaluation, from 0.
      is_best: whether it is the best so far; read with early stopping alone.
    """
    recent = jax.tree.map(lambda x, old: jnp.concatenate([x[None], old[:-1]]), variables, kept.recent)
    stages, slots = kept.stages, kept.stages.number
    stride = _stride(evaluation, slots)
    if stride > _stride(evaluation - 1, slots):  # the second half is written anew later
        stages = jax.tree.map(lambda x: jnp.concatenate([x[:, ::2], x[:, 1::2]], axis=1), stages)
    if evaluation % stride == 0:
        now = rank_stage(make_model, recent, evaluation + 1, train)
        stages = jax.tree.map(lambda x, new: x.at[0, evaluation // stride].set(new), stages, now)
    return Kept(recent, recent if kept.best and is_best else kept.best, stages)


def choose_stages(
    kept: Kept,
    make_model: MakeModel,
    train: Interactions,
    records: Sequence[Mapping[str, Any]],
    chosen: Mapping[str, Any],
) -> Stages:
    """Returns the stages nearest to equal parts of the epochs up to the one that is kept, which is the last stage.

    Args:
      kept: what was kept at the end.
      make_model, train: see `observe`.
      records: of all evaluations.
      chosen: that of the model that is kept.
    """
    last = next(i for i, record in enumerate(records) if record["epoch"] == chosen["epoch"])
    slots = kept.stages.number
    number, stride = slots // 2, _stride(len(records) - 1, slots)
    final = rank_stage(make_model, kept.best or kept.recent, last + 1, train)
    joined = jax.tree.map(lambda x, new: jnp.concatenate([x, new[None, None]], axis=1), kept.stages, final)
    epochs = {slot: records[slot * stride]["epoch"] for slot in range(last // stride + 1)} | {slots: chosen["epoch"]}
    wanted = [chosen["epoch"] * (stage + 1) / number for stage in range(number)]
    nearest = jnp.array([min(epochs, key=lambda slot: abs(epochs[slot] - epoch)) for epoch in wanted[:-1]] + [slots])
    return jax.tree.map(lambda x: x[:, nearest], joined)


@functools.partial(jax.jit, static_argnums=0)
def rank_stage(make_model: MakeModel, recent: Any, number: jax.Array | int, train: Interactions) -> Stages:
    """Returns each user's best unseen items, and the standard deviations of their ranks, at most `DEEPEST`:
    `[num_users, k]`.

    Args:
      make_model: the model.
      recent: see `Kept`.
      number: the number of evaluations so far; of fewer than `SPAN`, the deviation is over these.
      train: the training interactions.
    """

    def with_scores(age: int, function: Any) -> Any:
        bound = lambda model: function(with_tables(model).score_all)
        return nn.apply(bound, make_model(train))(jax.tree.map(lambda x: x[age], recent))

    items = with_scores(0, lambda score_all: Teacher(scores=score_all).top(train, LISTED))
    now = jnp.broadcast_to(jnp.arange(1, items.shape[1] + 1, dtype=jnp.int32), items.shape)
    ranked = functools.partial(unseen_ranks, train=train, items=jnp.maximum(items, 0), deepest=DEEPEST)
    earlier = [
        jax.lax.cond(age < number, functools.partial(with_scores, age, ranked), lambda: now) for age in range(1, SPAN)
    ]
    ranks = jnp.stack([now, *earlier]).astype(jnp.float32)
    where = jnp.broadcast_to((jnp.arange(SPAN) < number)[:, None, None], ranks.shape)
    return Stages(items, jnp.where(items >= 0, jnp.std(ranks, axis=0, where=where), 0))


def _stride(evaluation: int, slots: int) -> int:
    """Returns the smallest power of two of which so many multiples, from 0 to `evaluation`, fit the slots."""
    stride = 1
    while evaluation // stride >= slots:
        stride *= 2
    return stride
