"""Shared by the tests of ranking methods: teachers, students, steps, rankings in NumPy, tests of samples."""

import jax
import jax.numpy as jnp
import numpy as np

from htd_jax.distillers import Batch, Entities, EpochStart, Side, Step, Teacher
from htd_jax.training import Checkpoints, adam, make_trainer, run_phase


class Student:
    """A table of scores, as a model gives them."""

    def __init__(self, scores):
        self.scores = jnp.asarray(scores)
        self.num_users, self.num_items = self.scores.shape

    def score(self, users, items):
        return self.scores[users, items]

    def score_all(self, users):
        return self.scores[users]

    def score_users(self, items):
        return self.scores.T[items]


def table_of(scores):
    """Returns a teacher with a table of scores."""
    return Teacher(scores=jax.tree_util.Partial(lambda table, users: table[users], jnp.asarray(scores)))


def seen_by(train):
    return [set(np.asarray(train.items)[np.asarray(train.users) == user]) for user in range(train.num_users)]


def ranked(scores, train, size):
    """Returns every user's best unseen items, ties in order."""
    lists = []
    for row, seen in zip(scores, seen_by(train)):
        lists.append([item for item in np.argsort(-row, kind="stable") if item not in seen][:size])
    return lists


def sample(method, context, key, student=None, params=()):
    """Returns what a method's `refresh` samples before the first epoch."""
    return method.refresh(EpochStart(params, context, None, student, key, 0))


def sample_many(method, teacher, train, times, seed=0):
    """Returns the samples of `times` epochs, of a method that does not read the student."""
    context = jax.jit(method.prepare)(teacher, train)
    keys = jax.random.split(jax.random.key(seed), times)
    return jax.jit(jax.vmap(lambda key: sample(method, context, key)))(keys)


def side_of(ids, where):
    nothing = jnp.zeros((len(ids), 0))
    return Side(nothing, nothing, jnp.asarray(where, bool), jnp.asarray(ids, jnp.int32))


def batch_of(table, ids, where):
    """Returns a batch of users `ids` of a student with a table of scores."""
    side, student = side_of(ids, where), Student(table)
    return Batch(Entities(side, side, side, side), None, student.score, student.score_all)


def loss_of(method, context, sampled, batch, key=None, epoch=0, params=()):
    """Returns a method's loss of one step, and its terms."""
    key = jax.random.key(0) if key is None else key
    return method.loss(Step(params, context, sampled, batch, key, epoch))


def loss_and_gradient(method, context, sampled, student, ids, where, epoch=0):
    """Returns the loss of a batch of users `ids` of a student with a table of scores, its terms, and its gradient by
    that table."""

    def loss(table, sampled, context, epoch):
        return loss_of(method, context, sampled, batch_of(table, ids, where), epoch=epoch)

    table = jnp.asarray(student, jnp.float32)
    (value, terms), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(table, sampled, context, epoch)
    return np.asarray(value), {name: np.asarray(term) for name, term in terms.items()}, np.asarray(gradient)


def agree_with(counts, shares, alarm=1e-4):
    """Asserts that counts of independent samples agree with their shares, by Pearson's chi-square, which fails by
    chance with probability `alarm`; shares of under five samples are merged, and a share of 0 is never sampled."""
    counts, shares = np.asarray(counts, float), np.asarray(shares, float)
    assert (counts[shares == 0] == 0).all()
    order = np.argsort(shares)
    counts, expected = counts[order], shares[order] / shares.sum() * counts.sum()
    small = expected < 5
    counts = np.append(counts[~small], counts[small].sum())
    expected = np.append(expected[~small], expected[small].sum())
    counts, expected = counts[expected > 0], expected[expected > 0]
    free = len(counts) - 1
    statistic = np.sum((counts - expected) ** 2 / expected)
    # The quantile of chi-square by Wilson and Hilferty's cube root, accurate to 1%.
    quantile = {1e-4: 3.719, 1e-5: 4.265}[alarm]
    assert statistic < free * (1 - 2 / (9 * free) + quantile * np.sqrt(2 / (9 * free))) ** 3, (statistic, free)


def resumes_to_the_bit(settings, make_model, teacher, split, folder, batch_size=128):
    """Asserts that a resumed run ends with the bits of an unbroken one; returns the terms of its epochs."""
    trainer = make_trainer(make_model, settings.make(4), adam(0.01, 1e-3), batch_size=batch_size)
    runs = {}
    for name, stops in (("unbroken", (4,)), ("broken", (2, 4))):
        for epochs in stops:
            phase = dict(epochs=epochs, eval_every=1, checkpoints=Checkpoints(folder / name), settings={})
            runs[name] = run_phase(trainer, lambda *_: {}, split, teacher, jax.random.key(4), **phase)
    jax.tree.map(np.testing.assert_array_equal, runs["broken"].variables, runs["unbroken"].variables)
    terms = [[record["terms"] for record in runs[name].records] for name in ("broken", "unbroken")]
    assert terms[0] == terms[1]
    return terms[0]
