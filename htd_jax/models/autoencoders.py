"""Variational autoencoders of users, from the items that they have seen, and of items, from the users who saw them."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, ClassVar

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from annotated_types import Ge, Interval, Lt

from htd_jax.data import Interactions, seen_mask
from htd_jax.losses import gaussian_divergence, softmax_loss
from htd_jax.models.base import Batches, InnerProduct, ModelSettings, Recommender
from htd_jax.ops.pooling import Histories, pool
from htd_jax.ops.products import dot


class Autoencoder(InnerProduct):
    r"""A variational autoencoder with a multinomial likelihood (Liang et al., WWW'18), of users or of items.

    For an entity e with the neighbours S, all of the other side that it has interacted with:

    .. math::
        h = \tanh\Big(|S|^{-1/2} \sum_{s \in S} w_s + b\Big), \quad
        z \sim N(\mu(h), \sigma(h)^2), \quad
        g = \tanh(V z + c), \quad
        x_{es} = [g, 1] \cdot y_s

    The last layer is linear: scores are inner products of the computed rows [g, 1] and the trained rows y, whose last
    number is thus a bias. All layers are as wide as a row, g one less. The loss of an entity is the cross-entropy
    between the softmax of x over all of the other side and each of S, plus `beta` times the divergence of z from
    N(0, 1). Scores take the mean of z. Kernels start at Glorot's uniform distribution, biases at zero.

    A step drops a random part of the other side, the same for all entities of its batch: one number per row in place of
    one per pair. The paper's annealing of `beta` is left out.

    The rows of all entities cost O(pairs * dim), and no array of users x items is made; the loss of a batch makes one
    of batch x the other side.

    Attributes:
      history: the pairs (entity, neighbour): the training interactions, transposed for items.
      dim: the width of the rows.
      dropout: the share of neighbours that a step drops.
      beta: the weight of the divergence; 0 leaves out the noise of z too, and gives a denoising autoencoder.
      decoded: the name of the trained rows.
    """

    decoded: ClassVar[str] = "items"

    history: Interactions
    dim: int
    dropout: float = 0.5
    beta: float = 0.2

    def make_layers(self) -> tuple[jax.Array, jax.Array]:
        """Makes the parameters, and returns the computed rows `[entities, dim]` and the trained `[others, dim]`."""
        glorot, zeros = nn.initializers.glorot_uniform(), nn.initializers.zeros
        others, dim = self.history.num_items, self.dim
        self.encoder = self.param("encoder", glorot, (others, dim))
        self.encoder_bias = self.param("encoder_bias", zeros, (dim,))
        shapes = {"mean": (dim, dim), "log_variance": (dim, dim), "decoder": (dim, dim - 1)}
        self.layers = {
            name: (
                self.param(name, glorot if all(shape) else zeros, shape),
                self.param(f"{name}_bias", zeros, shape[1:]),
            )
            for name, shape in shapes.items()
        }
        rows = self.decode(self._affine("mean", self.encode(jnp.arange(self.history.num_users), self.encoder)))
        return rows, self.param(self.decoded, glorot, (others, dim))

    def encode(self, entities: jax.Array, kernel: jax.Array) -> jax.Array:
        """Returns h `[n, dim]` of the entities `[n]`."""
        counts = jnp.diff(self.history.offsets)[entities]
        factors = jax.lax.rsqrt(jnp.maximum(counts, 1).astype(jnp.float32))
        sums = pool(kernel, Histories(self.history.offsets, self.history.items), entities)
        return jnp.tanh(sums * factors[:, None] + self.encoder_bias[None])

    def decode(self, latent: jax.Array) -> jax.Array:
        """Returns the rows [g, 1] `[n, dim]` of latent vectors `[n, dim]`."""
        return jnp.pad(jnp.tanh(self._affine("decoder", latent)), ((0, 0), (0, 1)), constant_values=1)

    def loss_of(self, entities: jax.Array, others: jax.Array, where: jax.Array) -> jax.Array:
        """Returns the loss, summed over the entities `[n]`, from the trained rows of the other side."""
        kernel = self.encoder
        if self.dropout:
            kept = jax.random.bernoulli(self.make_rng("noise"), 1 - self.dropout, (len(kernel), 1))
            kernel = jnp.where(kept, kernel / (1 - self.dropout), 0)
        hidden = self.encode(entities, kernel)
        latent, divergence = self._affine("mean", hidden), jnp.zeros(())
        if self.beta:
            log_variance = self._affine("log_variance", hidden)
            divergence = self.beta * gaussian_divergence(latent, log_variance, where=where)
            noise = jax.random.normal(self.make_rng("noise"), latent.shape)
            latent += jnp.exp(log_variance / 2) * noise
        scores = dot(self.decode(latent), others.T)
        return softmax_loss(scores, seen_mask(self.history, entities), where=where) + divergence

    def _affine(self, name: str, x: jax.Array) -> jax.Array:
        kernel, bias = self.layers[name]
        return dot(x, kernel) + bias[None]


class MultVAE(Autoencoder):
    """An `Autoencoder` of users: a user's row is computed from the items that the user has seen."""

    rows_of: ClassVar[Mapping[str, str]] = {"encoder": "items", "items": "items"}
    decoded: ClassVar[str] = "items"

    @property
    def from_history(self) -> bool:
        return True

    def setup(self) -> None:
        self.keep(*self.make_layers())

    def loss(self, users: chex.Array, positives: chex.Array, negatives: chex.Array, where: chex.Array) -> jax.Array:
        """Returns the loss of the users `[n]`, each with all of its items; `positives` and `negatives` are not read."""
        return self.loss_of(users, self.items, where)


class ItemVAE(Autoencoder):
    """An `Autoencoder` of items: an item's row is computed from the users who have seen it."""

    rows_of: ClassVar[Mapping[str, str]] = {"encoder": "users", "users": "users"}
    decoded: ClassVar[str] = "users"

    def setup(self) -> None:
        items, users = self.make_layers()
        self.keep(users, items)

    def loss(self, users: chex.Array, positives: chex.Array, negatives: chex.Array, where: chex.Array) -> jax.Array:
        """Returns the loss of the items `positives` `[n]`, each with all of its users; the others are not read."""
        return self.loss_of(positives, self.users, where)


@dataclasses.dataclass(frozen=True)
class MultVAESettings(ModelSettings):
    """Settings of Mult-VAE, an autoencoder of users (Liang et al., WWW'18)."""

    dropout: Annotated[float, Ge(0), Lt(1)] = 0.5
    """Share of items that Mult-VAE's training drops from what users have seen."""
    beta: Annotated[float, Interval(ge=0, le=1)] = 0.2
    """Weight of the divergence in Mult-VAE's loss; 0 trains a denoising autoencoder without sampling."""

    module: ClassVar[type[Recommender]] = MultVAE
    label: ClassVar[str] = "Mult-VAE"
    batches: ClassVar[Batches] = "users"

    def build(self, train: Interactions, dim: int) -> MultVAE:
        return MultVAE(train.num_users, train.num_items, train, dim, self.dropout, self.beta)


@dataclasses.dataclass(frozen=True)
class ItemVAESettings(ModelSettings):
    """Settings of an autoencoder of items: Mult-VAE with users and items exchanged."""

    dropout: Annotated[float, Ge(0), Lt(1)] = 0.5
    """Share of users that the item autoencoder's training drops from those who have seen an item."""
    beta: Annotated[float, Interval(ge=0, le=1)] = 0.2
    """Weight of the divergence in the item autoencoder's loss; 0 trains a denoising autoencoder without sampling."""

    module: ClassVar[type[Recommender]] = ItemVAE
    label: ClassVar[str] = "item VAE"
    batches: ClassVar[Batches] = "items"

    def build(self, train: Interactions, dim: int) -> ItemVAE:
        return ItemVAE(train.num_users, train.num_items, train.transposed(), dim, self.dropout, self.beta)
