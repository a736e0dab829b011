"""The states of several phases on the device, and the one compiled program that takes them an epoch further."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from htd_jax.data import Interactions
from htd_jax.ops.platforms import at_once, compiler_options
from htd_jax.training.step import Prepared, Trainer, TrainState

# (states, keys, goes, train, known) -> (states, terms), every array of all but `train` with a phase's number in front
ManyEpochs = Callable[[TrainState, chex.PRNGKey, jax.Array, Interactions, Any], tuple[TrainState, dict[str, jax.Array]]]


class Held(NamedTuple):
    """The states of n phases.

    Attributes:
      advance: takes those further by an epoch that are told to go, n bools; the epoch's terms of each, None of others.
      state: of the phase of a number; what is read of it must be read before the next `advance`.
    """

    advance: Callable[[Sequence[bool]], list[dict[str, jax.Array] | None]]
    state: Callable[[int], TrainState]


def together(trainer: Trainer, *, shared: bool) -> ManyEpochs:
    """The epoch of several phases side by side, jitted; like a trainer's, it takes over the states it is given.

    Each comes to what it would be alone, but for rounding. Phases may be at different epochs, since what is random in
    one follows from its own key and number. Those that are not to go keep their state, whatever their terms.

    Args:
      trainer: of all of them.
      shared: whether `known`, what is prepared of a teacher, is one for all; else its arrays have a phase's number in
        front too.
    """

    def epoch(
        states: TrainState, keys: chex.PRNGKey, goes: jax.Array, train: Interactions, known: Any
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        def of_one(
            state: TrainState, key: chex.PRNGKey, goes: jax.Array, known: Any
        ) -> tuple[TrainState, dict[str, jax.Array]]:
            further, terms = trainer.epoch(state, key, train, known)
            kept: TrainState = jax.tree.map(lambda new, old: jnp.where(goes, new, old), further, state)
            return kept, terms

        return jax.vmap(of_one, in_axes=(0, 0, 0, None if shared else 0))(states, keys, goes, known)

    compiled: ManyEpochs = jax.jit(epoch, donate_argnums=0, compiler_options=compiler_options())
    return compiled


def hold(
    trainer: Trainer,
    train: Interactions,
    states: list[TrainState],
    keys: Sequence[chex.PRNGKey],
    knowns: Sequence[Prepared],
) -> Held:
    """Compiles the epoch of these phases, one or several, before any clock starts.

    On a CPU they take turns at one program, the trainer's own: each has all the cores then, and its tables in their
    cache, into which those of all would not go. On anything else they go side by side, since there a step of many takes
    hardly longer than a step of one.

    Args:
      states: of each; emptied, so that none is held twice.
      keys: of each one's epochs.
      knowns: of each one's teacher, of equal shapes; one that is the same for all is held once.
    """
    return (_in_turn if at_once(1, len(states)) == 1 else _side_by_side)(trainer, train, states, keys, knowns)


def _in_turn(
    trainer: Trainer,
    train: Interactions,
    given: list[TrainState],
    keys: Sequence[chex.PRNGKey],
    knowns: Sequence[Prepared],
) -> Held:
    states = list(given)
    given.clear()
    epoch = _compiled(trainer.epoch, states[0], keys[0], train, knowns[0])

    def advance(goes: Sequence[bool]) -> list[dict[str, jax.Array] | None]:
        terms: list[dict[str, jax.Array] | None] = [None] * len(states)
        for number in itertools.compress(range(len(states)), goes):
            states[number], terms[number] = epoch(states[number], keys[number], train, knowns[number])
        return terms

    return Held(advance, lambda number: states[number])


def _side_by_side(
    trainer: Trainer,
    train: Interactions,
    given: list[TrainState],
    keys: Sequence[chex.PRNGKey],
    knowns: Sequence[Prepared],
) -> Held:
    shared = all(known is knowns[0] for known in knowns)
    known = knowns[0] if shared else stack(knowns)
    states, all_keys, everyone = stack(given), jnp.stack(keys), jnp.ones(len(given), bool)
    given.clear()
    epoch = _compiled(together(trainer, shared=shared), states, all_keys, everyone, train, known)

    def advance(goes: Sequence[bool]) -> list[dict[str, jax.Array] | None]:
        nonlocal states
        states, terms = epoch(states, all_keys, jnp.asarray(goes), train, known)
        of_all = {name: np.asarray(value) for name, value in terms.items()}
        return [{name: x[number] for name, x in of_all.items()} if go else None for number, go in enumerate(goes)]

    return Held(advance, lambda number: _nth(states, number))


def stack(trees: Sequence[Any]) -> Any:
    """Trees of the same structure and shapes as one, every array with a tree's number in front."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


@jax.jit
def _nth(trees: Any, number: int) -> Any:
    return jax.tree.map(lambda x: x[number], trees)


def _compiled(epoch: Any, *inputs: Any) -> Any:
    """Compiled before the clock starts; with `jax_disable_jit` there is nothing to compile."""
    if jax.config.jax_disable_jit:  # type: ignore[attr-defined]
        return epoch
    return epoch.lower(*inputs).compile()
