"""What the tests of methods that distil rankings have in common: teachers, rankings in NumPy, tests of draws."""

import jax
import jax.numpy as jnp
import numpy as np

from htd_jax.distillers import Batch, Entities, Run, Side, Teacher
from htd_jax.training import Checkpoints, adam, make_trainer, run_phase


def table_of(scores):
    """A teacher of scores, in blocks of users."""
    return Teacher(scores=jax.tree_util.Partial(lambda table, users: table[users], jnp.asarray(scores)))


def seen_by(train):
    return [set(np.asarray(train.items)[np.asarray(train.users) == user]) for user in range(train.num_users)]


def ranked(scores, train, size):
    """Every user's best unseen items, the first of equals first."""
    lists = []
    for row, seen in zip(scores, seen_by(train)):
        lists.append([item for item in np.argsort(-row, kind="stable") if item not in seen][:size])
    return lists


def draw_many(method, teacher, train, times, seed=0):
    """What `times` epochs draw, of a method that does not look at the student."""
    known = jax.jit(method.prepare)(teacher, train)
    keys = jax.random.split(jax.random.key(seed), times)
    return jax.jit(jax.vmap(lambda key: method.refresh({}, None, key, 0, known, None)))(keys)


def loss_of(method, known, drawn, student, ids, where, epoch=0):
    """A method's loss on a batch of users `ids` of a student that is a table of scores, and its gradient by that."""
    nothing = jnp.zeros((len(ids), 0))
    side = Side(nothing, nothing, jnp.asarray(where, bool), jnp.asarray(ids, jnp.int32))

    def of(table, drawn, known, epoch):
        batch = Batch(Entities(side, side, side, side), None, lambda users, items: table[users, items], known)
        return method.loss({}, drawn, batch, jax.random.key(0), epoch)

    table = jnp.asarray(student, jnp.float32)
    (value, terms), gradient = jax.jit(jax.value_and_grad(of, has_aux=True))(table, drawn, known, epoch)
    return np.asarray(value), {name: np.asarray(term) for name, term in terms.items()}, np.asarray(gradient)


def agree_with(counts, shares, alarm=1e-4):
    """Counts of independent draws against their shares: Pearson's chi-square, which a right draw fails with a
    probability of `alarm`; shares that make for under five draws are taken together, what has no share never comes."""
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
    # The tail of chi-square by Wilson and Hilferty's cube root, which is good to a part in a hundred of its quantile.
    quantile = {1e-4: 3.719, 1e-5: 4.265}[alarm]
    assert statistic < free * (1 - 2 / (9 * free) + quantile * np.sqrt(2 / (9 * free))) ** 3, (statistic, free)


def resumes_to_the_bit(settings, make_model, teacher, split, folder, batch_size=128):
    """A run killed between two epochs ends with the bits of an unbroken one, whose terms are returned, by epoch."""
    trainer = make_trainer(make_model, settings.make(Run(4, 0, None)), adam(0.01, 1e-3), batch_size=batch_size)
    runs = {}
    for name, stops in (("unbroken", (4,)), ("broken", (2, 4))):
        for epochs in stops:
            phase = dict(epochs=epochs, eval_every=1, checkpoints=Checkpoints(folder / name), settings={})
            runs[name] = run_phase(trainer, lambda _: {}, split, teacher, jax.random.key(4), **phase)
    jax.tree.map(np.testing.assert_array_equal, runs["broken"].variables, runs["unbroken"].variables)
    terms = [[record["terms"] for record in runs[name].records] for name in ("broken", "unbroken")]
    assert terms[0] == terms[1]
    return terms[0]
