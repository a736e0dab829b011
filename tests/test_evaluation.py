"""Full ranking against its definition."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from htd_jax import data
from htd_jax.evaluation import CUTOFFS, make_evaluator, ranking_metrics
from htd_jax.models import BPR


class Scores(nn.Module):
    """A model that is its own table of scores."""

    shape: tuple[int, int]

    def setup(self):
        self.table = self.param("table", nn.initializers.zeros, self.shape)

    def score_all(self, users):
        return self.table[users]


def evaluate(split, scores):
    model = Scores(scores.shape)
    found = make_evaluator(model, split)({"params": {"table": jnp.asarray(scores, jnp.float32)}})
    return {part: {name: float(x) for name, x in metrics.items()} for part, metrics in found.items()}


def expected(split, scores):
    train, valid, test = ([set() for _ in range(len(scores))] for _ in range(3))
    for part, sets in zip(split, (train, valid, test), strict=True):
        for user, item in zip(part.users.tolist(), part.items.tolist(), strict=True):
            sets[user].add(item)
    result = {}
    for name, part, other in (("valid", valid, test), ("test", test, valid)):
        hidden = [a | b for a, b in zip(train, other, strict=True)]
        result[name] = {}
        for k in CUTOFFS:
            recall, ndcg = [], []
            for user, items in enumerate(part):
                if not items:
                    continue
                hits = [r for r in oracle.ranks(scores, hidden, [(user, item) for item in items]) if r <= k]
                ideal = sum(1 / np.log2(1 + r) for r in range(1, min(len(items), k) + 1))
                recall.append(len(hits) / len(items))
                ndcg.append(sum(1 / np.log2(1 + r) for r in hits) / ideal)
            result[name] |= {f"recall@{k}": np.mean(recall), f"ndcg@{k}": np.mean(ndcg)}
    return result


@pytest.mark.parametrize("kind", ["distinct", "ties", "constant"])
def test_metrics_are_their_definition(small_split, rng, kind):
    shape = (small_split.train.num_users, small_split.train.num_items)
    scores = {
        "distinct": rng.normal(size=shape),
        "ties": rng.integers(3, size=shape).astype(float),
        "constant": np.ones(shape),
    }[kind]
    found, wanted = evaluate(small_split, scores), expected(small_split, scores)
    for part in wanted:
        assert found[part] == pytest.approx(wanted[part], abs=1e-6)


def test_users_with_several_or_no_held_out_items(rng):
    draw = lambda low, high: [
        (u, i) for u in range(100) if u % 7 for i in rng.choice(range(low, high), 3, replace=False)
    ]
    parts = [tuple(np.array(rows).T) for rows in (draw(0, 20), draw(20, 30), draw(30, 40))]
    split = data.make_split(*parts, 100, 40)
    scores = rng.integers(30, size=(100, 40)).astype(float)
    found, wanted = evaluate(split, scores), expected(split, scores)
    for part in wanted:
        assert found[part] == pytest.approx(wanted[part], abs=1e-6)


def test_a_model_that_scores_nan_is_ranked_last(small_split):
    scores = np.full((small_split.train.num_users, small_split.train.num_items), np.nan)
    assert (
        evaluate(small_split, scores)["test"]["recall@10"]
        <= evaluate(small_split, np.ones_like(scores))["test"]["recall@10"]
    )
    user, item = int(small_split.test.users[5]), int(small_split.test.items[5])
    scores = np.zeros_like(scores)
    scores[user, item] = np.nan
    assert evaluate(small_split, scores)["test"] == pytest.approx(evaluate(small_split, np.zeros_like(scores))["test"])


def test_bpr_scores_all_as_it_scores_pairs(rng):
    model = BPR(7, 11, 3)
    variables = model.init(jax.random.key(0), jnp.zeros(1, int), jnp.zeros(1, int))
    users, items = jnp.array([0, 3, 6]), jnp.array([10, 2, 2])
    all_scores = model.apply(variables, users, method="score_all")
    assert all_scores.shape == (3, 11)
    np.testing.assert_allclose(
        model.apply(variables, users, items, method="score"), all_scores[jnp.arange(3), items], rtol=1e-5
    )


def test_ranking_metrics_counts_only_users_with_a_held_out_item():
    ranks, where = jnp.array([[1, 1], [11, 1]]), jnp.array([[True, False], [False, False]])
    assert float(ranking_metrics(ranks, where)["recall@10"]) == 1.0
