"""Steps that cost what their batch costs: they read some rows of the tables, and write those.

A step first applies to these rows the updates of the steps since they were last read; the end of an epoch does so for
all rows. A step makes no array of a table's size, unless its loss reads the whole table.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from flax import struct

from htd_jax.distillers import RowIds
from htd_jax.models import Recommender
from htd_jax.ops.platforms import by_backend
from htd_jax.ops.shards import look_up, num_rows, place
from htd_jax.training.optimizers import RowOptimizer

T = TypeVar("T")


class TableState(NamedTuple):
    """The state of a table.

    Attributes:
      state: the optimiser's, arrays `[n, ...]`, as it was after the last step that read a row.
      read: `[n]` int32, the number of steps up to that one, itself included; 0 if none has.
    """

    state: Any
    read: jax.Array


class RowState(NamedTuple):
    """The state of an optimiser of rows: of the tables of users and items by name, and of the other parameters."""

    tables: dict[str, TableState]
    rest: Any


@struct.dataclass
class Table:
    """Rows in training.

    Attributes:
      rows: `[n, d]`.
      state, read: see `TableState`.
    """

    rows: jax.Array
    state: Any
    read: jax.Array


class Carry(NamedTuple):
    """What a step passes to the next: both tables, and the other parameters with the state of their optimiser."""

    tables: dict[str, Table]
    rest: Any
    rest_state: Any


class Places(NamedTuple):
    """The rows that a step reads of one table.

    Attributes:
      ids: `[n]` int32, ascending, repeated where a row is read more than once; None for the whole table.
      size: the number of rows of the table, in all shards.
      held: the number of rows of the table that a device holds.
    """

    ids: jax.Array | None
    size: int
    held: int

    @property
    def number(self) -> int:
        """The number of rows that the step holds."""
        return self.held if self.ids is None else len(self.ids)

    def find(self, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns where the rows of `ids` are, and whether the step holds them."""
        if self.ids is None:
            return ids, jnp.ones(ids.shape, bool)
        place = jnp.searchsorted(self.ids, ids, method=by_backend("scan", "scan_unrolled")).astype(jnp.int32)
        place = jnp.minimum(place, self.number - 1)
        return place, self.ids[place] == ids

    def take(self, table: Table) -> Table:
        """Returns these rows of a table."""
        return table if self.ids is None else look_up(table, self.ids)

    def put(self, table: Table, chosen: Table) -> Table:
        """Returns the table with these rows replaced."""
        if self.ids is None:
            return chosen
        again = jnp.concatenate([jnp.zeros(1, bool), self.ids[1:] == self.ids[:-1]])
        # A repeated row goes past the end, each to another index, and is dropped; so does another device's.
        at = place(table.rows, self.ids)
        at = jnp.where(again | (at >= self.held), self.held + jnp.arange(self.number, dtype=jnp.int32), at)
        return jax.tree.map(lambda x, y: x.at[at].set(y, mode="drop", unique_indices=True), table, chosen)


class BothPlaces(NamedTuple):
    """The rows that a step reads of both tables."""

    users: Places
    items: Places


class Located:
    """A student that holds the rows of a step alone, under the ids of the whole tables.

    A row that the step was not declared to read is nan, so that the loss is too.
    """

    def __init__(self, student: Recommender, places: BothPlaces):
        self.student, self.places = student, places

    def represent(self, users: jax.Array, items: jax.Array) -> tuple[jax.Array, jax.Array]:
        (users, known_users), (items, known_items) = self._find(users, items)
        user_rows, item_rows = self.student.represent(users, items)
        return _only(user_rows, known_users[:, None]), _only(item_rows, known_items[:, None])

    def score(self, users: jax.Array, items: jax.Array) -> jax.Array:
        (users, known_users), (items, known_items) = self._find(users, items)
        return _only(self.student.score(users, items), known_users & known_items)

    def score_each(self, users: jax.Array, items: jax.Array) -> jax.Array:
        (users, known_users), (items, known_items) = self._find(users, items)
        return _only(self.student.score_each(users, items), known_users[:, None] & known_items[None, :])

    def score_all(self, users: jax.Array) -> jax.Array:
        if self.places.items.ids is not None:
            raise TypeError("a loss that scores all items must declare that it reads them, see `Distiller.reads`")
        users, known = self.places.users.find(users)
        return _only(self.student.score_all(users), known[:, None])

    def loss(self, users: jax.Array, positives: jax.Array, negatives: jax.Array, where: jax.Array) -> jax.Array:
        find = self.places.items.find
        return self.student.loss(self.places.users.find(users)[0], find(positives)[0], find(negatives)[0], where)

    def _find(self, users: jax.Array, items: jax.Array) -> Any:
        return self.places.users.find(users), self.places.items.find(items)


def _only(values: jax.Array, known: jax.Array) -> jax.Array:
    return jnp.where(known, values, jnp.nan)


def begin_state(optimizer: RowOptimizer, params: Any) -> RowState:
    """Returns the initial state of an optimiser of rows, for parameters as in `TrainState`."""
    tables, rest = _split(params)
    begin = lambda table: TableState(optimizer.init(table), jnp.zeros(len(table), jnp.int32))
    return RowState({name: begin(table) for name, table in tables.items()}, optimizer.rest.init(rest))


def begin(params: Any, state: RowState) -> Carry:
    """Returns what the first step of an epoch starts from: nothing is owed."""
    tables, rest = _split(params)
    return Carry({name: Table(rows, *state.tables[name]) for name, rows in tables.items()}, rest, state.rest)


def step(
    optimizer: RowOptimizer,
    carry: Carry,
    reads: RowIds,
    loss: Callable[[Any, BothPlaces], tuple[jax.Array, T]],
    index: jax.Array,
    first: jax.Array,
) -> tuple[Carry, T]:
    """Takes one step.

    Args:
      optimizer: of the tables' rows, and of the other parameters.
      carry: what the last step passed on.
      reads: the rows that the loss reads.
      loss: `(parameters with the tables' read rows, places) -> (loss, terms)`.
      index: the number of the step in its epoch, from 0.
      first: the number of steps before this epoch.

    Returns:
      What the next step starts from, and the terms.
    """
    places = {name: _places(ids, carry.tables[name].rows) for name, ids in reads._asdict().items()}
    chosen = {name: places[name].take(table) for name, table in carry.tables.items()}
    tables = {name: _paid(optimizer, table, index, first) for name, table in chosen.items()}

    def local(tables: dict[str, jax.Array], rest: Any) -> tuple[jax.Array, T]:
        return loss(_join(tables, rest), BothPlaces(**places))

    (gradients, rest_gradients), terms = jax.grad(local, argnums=(0, 1), has_aux=True)(tables, carry.rest)
    new = {}
    for name, table in chosen.items():
        unread = (first + index - table.read).astype(table.rows.dtype)[:, None]
        rows, state = optimizer.update(gradients[name], tables[name], table.state, unread, first + index)
        # This step's number, in a form that must be written after `read` was read: else XLA copies the whole of it.
        updated = Table(rows, state, jnp.maximum(table.read, first + index + 1))
        new[name] = places[name].put(carry.tables[name], updated)
    updates, rest_state = optimizer.rest.update(rest_gradients, carry.rest_state, carry.rest)
    return Carry(new, optax.apply_updates(carry.rest, updates), rest_state), terms


def _places(ids: jax.Array | None, rows: jax.Array) -> Places:
    """Returns the places of rows; of more reads than there are rows, the whole table, which is cheaper."""
    size = num_rows(rows)
    return Places(None if ids is None or len(ids) >= size else jnp.sort(ids), size, len(rows))


def end(optimizer: RowOptimizer, carry: Carry, steps: int, first: jax.Array) -> tuple[Any, RowState]:
    """Pays what all rows are owed, and returns the parameters and the state after an epoch of so many steps."""
    tables = {name: _paid(optimizer, table, jnp.int32(steps), first) for name, table in carry.tables.items()}
    states = {name: TableState(table.state, table.read) for name, table in carry.tables.items()}
    return _join(tables, carry.rest), RowState(states, carry.rest_state)


def _paid(optimizer: RowOptimizer, table: Table, index: jax.Array, first: jax.Array) -> jax.Array:
    """Returns rows with the updates of the steps before the one numbered `index`; those of earlier epochs are done."""
    column = lambda steps: steps.astype(table.rows.dtype)[:, None]
    done, owed = jnp.maximum(first - table.read, 0), index - jnp.maximum(table.read - first, 0)
    return optimizer.pay(table.rows, table.state, column(done), column(owed), first + index - 1)


def _split(params: Any) -> tuple[dict[str, jax.Array], Any]:
    """Returns the tables of users and items by name, and all other parameters."""
    variables = params["model"]
    others = dict(variables["params"])
    tables = {name: others.pop(name) for name in ("users", "items")}
    return tables, {**params, "model": {**variables, "params": others}}


def _join(tables: dict[str, jax.Array], rest: Any) -> Any:
    """Undoes `_split`."""
    variables = rest["model"]
    return {**rest, "model": {**variables, "params": {**variables["params"], **tables}}}
