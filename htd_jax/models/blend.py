"""A mix of iALS and EASE, fitted in closed form: often a better teacher than either."""

import dataclasses
from typing import Annotated, Any, ClassVar

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt, Interval
from flax import struct

from htd_jax.data import Interactions
from htd_jax.models.base import Labels, ModelSettings, Recommender, Solver
from htd_jax.models.bpr import BPR
from htd_jax.models.ease import EASE, check_size, fit_ease
from htd_jax.models.ials import Context as FactorsContext
from htd_jax.models.ials import IALSSettings, Sweep
from htd_jax.ops.mapped import map_rows
from htd_jax.ops.products import dot

# Scores whose moments are computed at once: 16 MiB.
SCORES = 2**22

# The mean and the standard deviation of each user's scores over all items, `[num_users]` each.
Moments = tuple[jax.Array, jax.Array]


class Blend(Recommender):
    r"""The weighted mean of two models' scores, each in standard deviations from the user's mean score.

    .. math:: (1 - w) \frac{f_{ui} - \mu_u(f)}{\sigma_u(f)} + w \frac{e_{ui} - \mu_u(e)}{\sigma_u(e)}

    f are the scores of matrix factorisation, e those of EASE; means and standard deviations are over all items, seen
    ones too. A model that scores all items of a user alike adds 0. It has no representations.

    Its parameters are those of both models, and `scales`, `[num_users, 3]`: the factors of f and of e, and the sum of
    all else.

    Attributes:
      train: the interactions, which EASE reads.
      dim: the width of the factors.
    """

    has_representations: ClassVar[bool] = False

    train: Interactions
    dim: int

    def setup(self) -> None:
        self.factors = BPR(self.num_users, self.num_items, self.dim)
        self.ease = EASE(self.num_users, self.num_items, self.train)
        self.scales = self.param("scales", nn.initializers.zeros, (self.num_users, 3))

    def score(self, users: chex.Array, items: chex.Array) -> jax.Array:
        """Returns the scores of pairs (user, item), from two integer arrays that broadcast, see `Recommender`."""
        return self._mixed(users, self.factors.score(users, items), self.ease.score(users, items))

    def score_all(self, users: chex.Array) -> jax.Array:
        """Returns the scores `[n, num_items]` of every item for the users `[n]`."""
        return self._mixed(users[:, None], self.factors.score_all(users), self.ease.score_all(users))

    def _mixed(self, users: chex.Array, factors: jax.Array, ease: jax.Array) -> jax.Array:
        by_factors, by_ease, rest = (self.scales[users, column] for column in range(3))
        return by_factors * factors + by_ease * ease + rest

    def represent(self, users: chex.Array, items: chex.Array) -> tuple[jax.Array, jax.Array]:
        raise NotImplementedError("a mix has no representations")

    def loss(self, users: chex.Array, positives: chex.Array, negatives: chex.Array, where: chex.Array) -> jax.Array:
        raise NotImplementedError("a mix is fitted in closed form")


@struct.dataclass
class Context:
    """The training data of iALS's sweeps, the solution of EASE with the moments of its scores, and its share."""

    factors: FactorsContext
    ease: dict[str, jax.Array]
    moments: Moments
    share: jax.Array


@dataclasses.dataclass(frozen=True)
class MixedSweep:
    """Sweeps over the factors, and weighs both models anew; the objective is iALS's. It compares by value, see `Sweep`.

    Attributes:
      steps: see `IALSSettings`.
    """

    steps: int

    def __call__(self, variables: Any, context: Context) -> tuple[Any, jax.Array]:
        factors, objective = Sweep(self.steps)({"params": variables["params"]["factors"]}, context.factors)
        of_factors = _product_moments(factors["params"]["users"], factors["params"]["items"])
        scales = _scales(of_factors, context.moments, context.share)
        return {"params": {"factors": factors["params"], "ease": context.ease, "scales": scales}}, objective


def _scales(factors: Moments, ease: Moments, share: jax.Array) -> jax.Array:
    """Returns `Blend.scales`."""
    columns, rest = [], jnp.zeros_like(factors[0])
    for weight, (mean, deviation) in ((1 - share, factors), (share, ease)):
        columns.append(jnp.where(deviation > 0, weight / jnp.where(deviation > 0, deviation, 1), 0))
        rest -= columns[-1] * mean
    return jnp.stack([*columns, rest], axis=1)


@dataclasses.dataclass(frozen=True)
class BlendSettings(ModelSettings):
    """Settings of a mix of iALS and EASE, by z-scores per user (this project).

    EASE is solved once, before the first sweep of iALS.
    """

    alpha: Annotated[float, Gt(1)] = IALSSettings.alpha
    """Confidence of a seen pair in iALS, alpha; the confidence of an unseen pair is 1."""
    regularization: Annotated[float, Gt(0)] = IALSSettings.regularization
    """Lambda of iALS, the weight of its L2 penalty: its average over all users, and over all items."""
    frequency: Annotated[float, Interval(ge=0, le=1)] = IALSSettings.frequency
    """Exponent nu of iALS's penalty, see --ials.frequency."""
    steps: Annotated[int, Ge(0)] = IALSSettings.steps
    """Conjugate gradient steps of iALS per user or item in each sweep; 0 solves exactly."""
    ease_regularization: Annotated[float, Gt(0)] = 200.0
    """Lambda of EASE, the weight of its L2 penalty."""
    share: Annotated[float, Interval(ge=0, le=1)] = 0.3
    """The weight of EASE in the mix; that of iALS is 1 minus this."""

    module: ClassVar[type[Recommender]] = Blend
    label: ClassVar[str] = "iALS + EASE"
    epochs: ClassVar[int] = IALSSettings.epochs
    closed_form: ClassVar[bool] = True
    teacher_only: ClassVar[bool] = True

    @property
    def ials(self) -> IALSSettings:
        """The settings of iALS alone."""
        return IALSSettings(self.alpha, self.regularization, self.frequency, self.steps)

    def build(self, train: Interactions, dim: int) -> Blend:
        return Blend(train.num_users, train.num_items, train, dim)

    def check_size(self, train: Interactions) -> None:
        check_size(train)

    def solver(self) -> Solver:
        return Solver(self._prepare, MixedSweep(self.steps))

    def same_module(self) -> ModelSettings:
        return BlendSettings()

    def _prepare(self, train: Interactions, labels: Labels | None) -> Context:
        ease = fit_ease(train, self.ease_regularization)
        share = jnp.asarray(self.share, jnp.float32)
        return Context(self.ials.solver().prepare(train, labels), ease, _row_moments(ease, train), share)


def _product_moments(users: jax.Array, items: jax.Array) -> Moments:
    """Returns the moments of products of rows, from the mean m and the covariance C of the items' rows: u m and
    sqrt(u C u)."""
    mean = items.mean(axis=0)
    centred = items - mean
    covariance = dot(centred.T, centred) / len(items)
    return dot(users, mean), jnp.sqrt(jnp.maximum(jnp.sum(dot(users, covariance) * users, axis=1), 0))


@jax.jit
def _row_moments(ease: dict[str, jax.Array], train: Interactions) -> Moments:
    """Returns the moments of EASE's scores, computed from all scores in blocks of users."""
    model = EASE(train.num_users, train.num_items, train)

    def of_block(users: jax.Array) -> Moments:
        scores: Any = model.apply({"params": ease}, users, method="score_all")
        return scores.mean(axis=1), scores.std(axis=1)

    moments: Moments = map_rows(of_block, train.num_users, SCORES // train.num_items)
    return moments
