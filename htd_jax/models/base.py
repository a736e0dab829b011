"""The interface of a base model: its Flax module, its settings, and its solver."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from htd_jax.data import Interactions
from htd_jax.errors import UserError
from htd_jax.losses import bpr_loss
from htd_jax.ops.codes import BITS
from htd_jax.ops.precision import Rows, encoded, rounded, steps_of
from htd_jax.ops.products import dot
from htd_jax.ops.shards import at_owner, is_shard, look_up


class Recommender(nn.Module):
    """A base model. A subclass implements `represent`, `score` and `loss`, and `score_all` where a faster form exists.

    Tables, and what is computed from whole tables, are made in `setup`: methods called on one bound module,
    `nn.apply(lambda model: (model.loss(...), model.represent(...)), model)(variables)`, share them. A single method is
    called as in every Flax module: `model.apply(variables, users, method="score_all")`.

    Attributes:
      num_users, num_items: sizes of the tables.
      inner_product: True if a pair's score is the inner product of its two representations.
      params_are_tables: True if the parameters are the tables of representations, `{"users": ..., "items": ...}`.
      row_local: True if `users` and `items` are parameters with a row each, and a pair's score reads no rows but its
        own: such a model can be trained at the cost of the rows that a step reads. A subclass declares it anew.
      has_representations: False if it has scores alone, and `represent` is not implemented.
      divided: True if `users` and `items` are parameters with a row each that devices may divide: the module reads them
        by `htd_jax.ops.shards.look_up`, and `score_all` returns the columns of a device's items. A subclass declares it
        anew; other models are whole on every device.
      rows_of: the parameters with a row per user or item, by name: `users` or `items`. A model grows by their rows.
    """

    inner_product: ClassVar[bool] = False
    params_are_tables: ClassVar[bool] = False
    row_local: ClassVar[bool] = False
    has_representations: ClassVar[bool] = True
    divided: ClassVar[bool] = False
    rows_of: ClassVar[Mapping[str, str]] = {"users": "users", "items": "items"}

    def __init_subclass__(cls, **options: Any) -> None:
        # Not inherited: a subclass may combine rows.
        for name in ("row_local", "divided"):
            if name not in cls.__dict__:
                setattr(cls, name, False)
        super().__init_subclass__(**options)

    num_users: int
    num_items: int

    @property
    def from_history(self) -> bool:
        """Whether the scores of a user follow from the user's pairs in the interactions that the module is made for,
        also if it was not trained on these."""
        return False

    def represent(self, users: chex.Array, items: chex.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the representations `[n, width]` of the users `[n]` and `[m, width]` of the items `[m]`."""
        raise NotImplementedError

    def score(self, users: chex.Array, items: chex.Array) -> jax.Array:
        """Returns the scores of pairs (user, item), from two integer arrays that broadcast: `[n]` with `[n]`, or
        `[n, 1]` with `[1, m]` or `[n, m]`."""
        raise NotImplementedError

    def loss(self, users: chex.Array, positives: chex.Array, negatives: chex.Array, where: chex.Array) -> jax.Array:
        """Returns the model's own training loss, summed over triples `[n]` (user, seen item, unseen item).

        `where` `[n]` bool: a masked triple contributes nothing to the loss or its gradient.

        If the model's settings have `batches` of users, or of items, each triple stands for its user, or its seen item,
        with all of its interactions. Randomness is `self.make_rng("noise")`, here only.
        """
        raise NotImplementedError

    def score_all(self, users: chex.Array) -> jax.Array:
        """Returns the scores `[n, num_items]` of every item for the users `[n]`, one user at a time."""
        chex.assert_rank(users, 1)
        items = jnp.arange(self.num_items)
        return jax.lax.map(lambda user: self.score(user[None], items), users)

    def score_users(self, items: chex.Array) -> jax.Array:
        """Returns the scores `[n, num_users]` of the items `[n]` for every user, all at once."""
        chex.assert_rank(items, 1)
        return self.score(jnp.arange(self.num_users)[:, None], items[None, :]).T

    def score_each(self, users: chex.Array, items: chex.Array) -> jax.Array:
        """Returns the scores `[n, m]` of the users `[n]` for the items `[m]`."""
        chex.assert_rank([users, items], 1)
        return self.score(users[:, None], items[None, :])

    def in_step(self) -> "Recommender":
        """Returns the module as training steps use it; itself, unless training scores seen items in another way."""
        return self

    def of_rows(self, variables: Any) -> Callable[[int, int], "Recommender"]:
        """Returns what makes the module of some rows of a `row_local` model: (number of users, of items) -> module.

        Args:
          variables: of the whole tables; what the module reads of them stays as it is here.
        """
        return lambda num_users, num_items: self.clone(num_users=num_users, num_items=num_items)

    def __call__(self, users: chex.Array, items: chex.Array) -> jax.Array:
        return self.score(users, items)


def with_tables(model: Recommender) -> Recommender:
    """Computes the tables of a bound module, so that a loop that uses them does not compute them in every iteration."""
    nothing = jnp.zeros(1, jnp.int32)
    model.score(nothing, nothing)
    return model


# What a batch holds once, see `ModelSettings`.
Batches = Literal["pairs", "users", "items"]

# Returns the module for the training interactions, which decide its sizes and LightGCN's graph.
MakeModel = Callable[[Interactions], Recommender]


class Labels(NamedTuple):
    """Unseen pairs to train on as if they had been seen.

    Attributes:
      users, items: `[n]` integers; no pair occurs twice.
      weights: `[n]` floats over 0, the weight of a pair relative to a seen one.
    """

    users: np.ndarray
    items: np.ndarray
    weights: np.ndarray


class Solver(NamedTuple):
    """The training of a closed-form model: sweeps, each of which lowers one objective.

    Attributes:
      prepare: (training interactions, `Labels` or None) -> context; called once, on the host.
      prepare_parts: (training interactions, `Labels` or None, a number of devices) -> the parts of each device, joined
        along their first axes, of arrays of two axes or more; then `sweep` takes shards. None if devices cannot divide
        the work.
      sweep: (variables, context) -> (variables, the objective under them); jitted, once for all that are equal.
    """

    prepare: Callable[[Interactions, Labels | None], Any]
    sweep: Callable[[Any, Any], tuple[Any, jax.Array]]
    prepare_parts: Callable[[Interactions, Labels | None, int], Any] | None = None


class ModelSettings:
    """Settings of a base model, from which its module is made. A subclass is a frozen dataclass.

    Attributes:
      module: the class of its modules.
      label: the name shown to people; the class's name by default.
      teacher_dim: the default width of its teachers; a student's is a tenth of it.
      epochs: the default number of epochs under the model's own loss.
      closed_form: True for a model that is fitted in closed form, see `solver`.
      teacher_only: True for a model that no width makes smaller, so that it is no student.
      batches: what an epoch of the model's own loss goes through: training pairs, users or items.
    """

    module: ClassVar[type[Recommender]]
    label: ClassVar[str] = ""
    teacher_dim: ClassVar[int] = 200
    epochs: ClassVar[int] = 101
    closed_form: ClassVar[bool] = False
    teacher_only: ClassVar[bool] = False
    batches: ClassVar[Batches] = "pairs"

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "label" not in cls.__dict__:
            cls.label = cls.__name__.removesuffix("Settings")

    def build(self, train: Interactions, dim: int) -> Recommender:
        """Returns the module of width `dim` for these interactions; by default `module(num_users, num_items, dim)`."""
        make: Callable[..., Recommender] = self.module
        return make(train.num_users, train.num_items, dim)

    def check_size(self, train: Interactions) -> None:
        """Raises UserError if the model does not fit into memory for these interactions."""

    def same_module(self) -> "ModelSettings":
        """Returns the settings that stand for all whose module, once trained, is the same: they share the program of an
        evaluation. By default these settings."""
        return self

    def solver(self) -> Solver:
        """Returns the solver of a model that is fitted in closed form."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class ModelOf:
    """A `MakeModel` from a model's settings.

    Unlike a lambda, it compares by value, so that equal instances share compiled programs.

    Attributes:
      settings: of the model.
      dim: the width of its representations.
      precision: of its tables, see `htd_jax.ops.precision`; anything but float32 needs an `inner_product` model.
      prefixes: the numbers of leading dimensions that are trained as models too, ascending, the last of them `dim`;
        empty if the whole width alone is. It needs an `inner_product` model whose parameters are two tables.
    """

    settings: ModelSettings
    dim: int
    precision: str = "float32"
    prefixes: tuple[int, ...] = ()

    def prefix(self, dim: int) -> "ModelOf":
        """Returns the model of the first `dim` dimensions, of the variables that `first_dimensions` returns."""
        return dataclasses.replace(self, dim=dim, prefixes=())

    def __call__(self, train: Interactions) -> Recommender:
        model = self.settings.build(train, self.dim)
        if self.precision == "float32":
            return model
        if not model.inner_product:
            raise UserError(f"`precision` must be float32: scores of {self.settings.label} are not inner products")
        return model.clone(precision=self.precision)


def batches_of(make_model: MakeModel) -> Batches:
    """Returns what a batch of a model's own loss holds once, see `ModelSettings`; pairs for a custom model."""
    return make_model.settings.batches if isinstance(make_model, ModelOf) else "pairs"


def first_dimensions(variables: Any, dim: int) -> Any:
    """Returns the variables of the first `dim` dimensions of a model whose parameters are two tables."""
    return {**variables, "params": {name: table[:, :dim] for name, table in variables["params"].items()}}


def holding(model: Recommender, variables: Any) -> Recommender:
    """Returns the module of the rows that a device holds, if `variables` are shards; else the module itself."""
    if not is_shard(variables):
        return model
    tables = variables["params"]
    sizes: dict[str, Any] = {f"num_{name}": len(tables[name]) for name in ("users", "items")}
    if isinstance(model, InnerProduct):
        sizes["counts"] = model.num_users, model.num_items
    return model.clone(**sizes)


class InnerProduct(Recommender, kw_only=True):  # so that a subclass may add fields without defaults
    """A base model whose scores are inner products of representations, trained with BPR (Rendle et al., UAI'09).

    `setup` of a subclass makes the tables `[num_users, dim]` and `[num_items, dim]` and passes them to `keep`.

    Attributes:
      precision: of the tables, see `htd_jax.ops.precision`; scores are those of the rounded tables. Keyword only.
      steps: of int4, int3 or int2, for the users' and the items' dimensions, where the tables are rows of others; else
        they follow from the tables. Keyword only.
      counts: the numbers of users and items, where the tables are shards, which may be padded. Keyword only.
    """

    inner_product: ClassVar[bool] = True

    precision: str = "float32"
    steps: tuple[jax.Array | None, jax.Array | None] = (None, None)
    counts: tuple[int | None, int | None] = (None, None)

    def keep(self, users: jax.Array, items: jax.Array) -> None:
        """Makes these the model's tables, `self.users` and `self.items`, in its precision."""
        self.trained = users, items
        tables = zip((users, items), self.steps, self.counts)
        self.users, self.items = (rounded(x, self.precision, steps, count) for x, steps, count in tables)

    def of_rows(self, variables: Any) -> Callable[[int, int], Recommender]:
        steps: tuple[jax.Array | None, ...] = self.steps
        if bits := BITS.get(self.precision):
            tables: Any = self.apply(variables, method=lambda model: model.trained)
            steps = tuple(steps_of(x, bits, count) for x, count in zip(tables, self.counts))
        return lambda num_users, num_items: self.clone(num_users=num_users, num_items=num_items, steps=steps)

    def rows(self) -> tuple[Rows, Rows]:
        """Returns the tables of users and items, encoded in the model's precision."""
        users, items = self.trained
        return encoded(users, self.precision), encoded(items, self.precision)

    def represent(self, users: chex.Array, items: chex.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the representations `[n, dim]` of the users `[n]` and `[m, dim]` of the items `[m]`."""
        chex.assert_rank([users, items], 1)
        return look_up(self.users, users), look_up(self.items, items)

    def score(self, users: chex.Array, items: chex.Array) -> jax.Array:
        """Returns the scores of pairs (user, item), from two integer arrays that broadcast, see `Recommender`."""
        chex.assert_equal_rank([users, items])
        if users.size > items.size:  # the fewer rows are moved
            item_rows = look_up(self.items, items)
            return at_owner(lambda user_rows: jnp.sum(user_rows * item_rows, axis=-1), self.users, users)
        user_rows = look_up(self.users, users)
        return at_owner(lambda item_rows: jnp.sum(user_rows * item_rows, axis=-1), self.items, items)

    def score_all(self, users: chex.Array) -> jax.Array:
        """Returns the scores `[n, num_items]` of every item for the users `[n]`, in float32 on every backend."""
        chex.assert_rank(users, 1)
        return dot(look_up(self.users, users), self.items.T)

    def score_each(self, users: chex.Array, items: chex.Array) -> jax.Array:
        """Returns the scores `[n, m]` of the users `[n]` for the items `[m]`, in float32 on every backend."""
        user_rows, item_rows = self.represent(users, items)
        return dot(user_rows, item_rows.T)

    def score_users(self, items: chex.Array) -> jax.Array:
        """Returns the scores `[n, num_users]` of the items `[n]` for every user, in float32 on every backend."""
        chex.assert_rank(items, 1)
        return dot(look_up(self.items, items), self.users.T)

    def loss(self, users: chex.Array, positives: chex.Array, negatives: chex.Array, where: chex.Array) -> jax.Array:
        """Returns `bpr_loss`, summed over triples `[n]` (user, seen item, unseen item)."""
        return bpr_loss(self.score(users, positives), self.score(users, negatives), where=where)
