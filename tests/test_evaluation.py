"""Rankings and their metrics against their definitions, and against trec_eval."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import pytrec_eval

import htd_jax
from htd_jax.errors import UserError
from htd_jax.evaluation import (
    CUTOFFS,
    METRICS,
    Evaluation,
    EvaluationSpec,
    Full,
    Sampled,
    make_evaluator,
    make_ranker,
    make_user_evaluator,
    metrics_of_users,
    protocols,
    ranking,
    ranking_metrics,
    register,
    sample_candidates,
    sample_parts,
    sample_users,
    shown_metrics,
)
from htd_jax.evaluation.protocols import Sizes
from htd_jax.models import BPR
from htd_jax.settings import as_json


class Scores(nn.Module):
    """A model that is its own table of scores."""

    shape: tuple[int, int]

    def setup(self):
        self.table = self.param("table", nn.initializers.zeros, self.shape)

    def score(self, users, items):
        return self.table[users, items]

    def score_all(self, users):
        return self.table[users]


def evaluate(split, scores, **choices):
    evaluator = make_evaluator(split, **choices)
    found = evaluator(lambda train: Scores(scores.shape), {"params": {"table": jnp.asarray(scores, jnp.float32)}})
    return {part: {name: float(x) for name, x in metrics.items()} for part, metrics in found.items()}


def item_sets(part):
    sets = [set() for _ in range(part.num_users)]
    for user, item in zip(part.users.tolist(), part.items.tolist(), strict=True):
        sets[user].add(item)
    return sets


def metrics_at(ranks, k):
    """Every metric of one user at k."""
    ranks = sorted(ranks)
    hits = [r for r in ranks if r <= k]
    ideal = sum(1 / np.log2(1 + r) for r in range(1, min(len(ranks), k) + 1))
    return {
        f"recall@{k}": len(hits) / len(ranks),
        f"ndcg@{k}": sum(1 / np.log2(1 + r) for r in hits) / ideal,
        f"mrr@{k}": 1 / hits[0] if hits else 0,
        f"precision@{k}": len(hits) / k,
        f"map@{k}": sum(j / r for j, r in enumerate(hits, 1)) / len(ranks),
    }


def expected(split, scores, candidates=None):
    """Computed by loops: among all items that are not hidden, or among each user's row of `candidates`."""
    train, *parts = map(item_sets, split)
    result = {}
    for name, part, other in zip(("valid", "test"), parts, parts[::-1], strict=True):
        hidden = [a | b for a, b in zip(train, other, strict=True)]
        if candidates is not None:
            hidden = [set(range(scores.shape[1])) - set(row) - a for row, a in zip(candidates.tolist(), part)]
        rows = [oracle.ranks(scores, hidden, [(user, item) for item in items]) for user, items in enumerate(part)]
        user_metrics = [{name: x for k in CUTOFFS for name, x in metrics_at(row, k).items()} for row in rows if row]
        result[name] = {name: np.mean([metrics[name] for metrics in user_metrics]) for name in user_metrics[0]}
    return result


def several_held_out(rng, least=0):
    """100 users over 40 items: from `least` to 6 held-out items per part, and none for every seventh user."""
    rows = [[], [], []]
    for user in range(100):
        if user % 7:
            items = iter(rng.permutation(40).tolist())
            for part, count in zip(rows, (8, *rng.integers(least, 7, size=2))):
                part.extend((user, next(items)) for _ in range(count))
    return htd_jax.data.make_split(*(tuple(np.array(part).T) for part in rows), 100, 40)


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
    split = several_held_out(rng)
    scores = rng.integers(30, size=(100, 40)).astype(float)
    found, wanted = evaluate(split, scores), expected(split, scores)
    for part in wanted:
        assert found[part] == pytest.approx(wanted[part], abs=1e-6)


def test_metrics_are_those_of_trec_eval(rng):
    """With several held-out items per user, and ties, which trec_eval breaks by name: other items come first."""
    cutoffs = (1, 3, 10, 25)
    split = several_held_out(rng, least=1)
    scores = rng.integers(8, size=(100, 40)).astype(float)
    train, valid, test = map(item_sets, split)
    for user, items in enumerate(test):  # no two held-out items of a user tie: either may stand first then
        scores[user, list(items)] = rng.permutation(8)[: len(items)]
    name = lambda user, item: f"{'a' if item in test[user] else 'b'}{item}"
    truth = {str(user): {name(user, item): 1 for item in items} for user, items in enumerate(test) if items}
    run = {
        str(user): {name(user, i): scores[user, i] for i in range(40) if i not in train[user] | valid[user]}
        for user in range(100)
        if test[user]
    }
    per_user = lambda measure, run: pytrec_eval.RelevanceEvaluator(truth, {measure}).evaluate(run).values()
    mean = lambda measure, run: np.mean([x[measure.replace(".", "_")] for x in per_user(measure, run)])
    found = evaluate(split, scores, cutoffs=cutoffs)["test"]
    assert set(found) == {f"{name}@{k}" for k in cutoffs for name in METRICS}
    for k in cutoffs:
        for ours, theirs in (("recall", "recall"), ("ndcg", "ndcg_cut"), ("precision", "P"), ("map", "map_cut")):
            assert found[f"{ours}@{k}"] == pytest.approx(mean(f"{theirs}.{k}", run), abs=1e-6), (ours, k)
        order = lambda ranking: sorted(ranking, key=lambda item: (ranking[item], item), reverse=True)
        top = {user: {item: ranking[item] for item in order(ranking)[:k]} for user, ranking in run.items()}
        assert found[f"mrr@{k}"] == pytest.approx(mean("recip_rank", top), abs=1e-6)


def test_tied_held_out_items_count_against_each_other():
    split = htd_jax.data.make_split(*(tuple(np.array(rows).T) for rows in ([(0, 0)], [(0, 1)], [(0, 2), (0, 3)])), 1, 9)
    found = evaluate(split, np.array([[0, 0, 1, 1, 0, 0, 0, 0, 0]]), cutoffs=(1, 2))["test"]
    assert found["recall@1"] == 0 and found["recall@2"] == 1 and found["mrr@2"] == 0.5


@pytest.mark.parametrize("kind", ["distinct", "ties"])
def test_sampled_ranking_is_its_definition(small_split, rng, kind, monkeypatch):
    monkeypatch.setattr(protocols, "sizes", lambda: Sizes(1, 200, 1))  # several blocks, the last not full
    for split, size in ((small_split, 8), (several_held_out(rng), 15)):
        shape = split.train.num_users, split.train.num_items
        scores = {"distinct": rng.normal(size=shape), "ties": rng.integers(9, size=shape).astype(float)}[kind]
        found = evaluate(split, scores, protocol=Sampled(size, seed=3))
        wanted = expected(split, scores, sample_candidates(split, size, 3))
        for part in wanted:
            assert found[part] == pytest.approx(wanted[part], abs=1e-6)


@pytest.mark.slow
def test_full_ranking_in_several_blocks(rng, monkeypatch):
    split = several_held_out(rng)
    scores = rng.normal(size=(100, 40))
    whole = evaluate(split, scores, protocol=Full())
    for sizes in (Sizes(40 * 7, 1, 4), Sizes(1, 1, 1), protocols.ACCELERATOR):
        monkeypatch.setattr(protocols, "sizes", lambda: sizes)
        parts = evaluate(split, scores)
        for part in whole:
            assert parts[part] == pytest.approx(whole[part], abs=1e-6)


def test_ranking_against_every_unseen_item_is_the_full_one(rng):
    rows = [(user, item) for user in range(20) for item in rng.permutation(30)[:10]]
    users, items = np.array(rows).T
    split = htd_jax.data.split_pairs(users, items)
    scores = rng.normal(size=(20, split.train.num_items))
    sampled = evaluate(split, scores, protocol=Sampled(split.train.num_items - 10))
    assert sampled == {part: pytest.approx(x, abs=1e-6) for part, x in evaluate(split, scores).items()}


def test_candidates_are_distinct_unseen_items_fixed_by_the_seed(small_split):
    known = [a | b | c for a, b, c in zip(*map(item_sets, small_split))]
    sample = sample_candidates(small_split, 10, 0)
    assert sample.shape == (60, 10)
    for row, seen in zip(sample.tolist(), known):
        assert len(set(row)) == 10 and not set(row) & seen and set(row) <= set(range(90))
    np.testing.assert_array_equal(sample, sample_candidates(small_split, 10, 0))
    assert (sample != sample_candidates(small_split, 10, 1)).any()
    assert set(sample_candidates(small_split, 10, 5)[0]) == set(range(90)) - known[0]  # all existing ones


def test_candidates_are_uniform_over_the_unseen_items(small_split):
    draws = np.stack([sample_candidates(small_split, 5, seed) for seed in range(1000)])
    seen = [a | b | c for a, b, c in zip(*map(item_sets, small_split))]
    for user in (0, 1, 59):  # the first has ten left
        unseen = np.array(sorted(set(range(90)) - seen[user]))
        count = np.bincount(draws[:, user].ravel(), minlength=90)[unseen]
        assert count.sum() == 5000
        variance = 1000 * 5 / len(unseen) * (1 - 5 / len(unseen))
        chi2 = ((count - 5000 / len(unseen)) ** 2 / variance).sum()  # correlated, so a bound and no law
        assert chi2 < len(unseen) + 6 * np.sqrt(2 * len(unseen))


@pytest.mark.parametrize("protocol", [Sampled(11), Sampled(0), Sampled(5, seed=-1)])
def test_invalid_samples_are_refused(small_split, protocol):
    reasons = {
        11: "`candidates` must be at most 10, the number of unseen items of user 0, not 11",
        0: "`candidates` must be at least 1, not 0",
        5: "the seed of the candidates must be at least 0, not -1",
    }
    with pytest.raises(UserError, match=reasons[protocol.candidates]):
        make_evaluator(small_split, protocol=protocol)


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


@pytest.mark.slow
def test_a_model_over_the_training_pairs_makes_its_tables_once(small_split):
    made = []

    class Popularity(nn.Module):
        train: htd_jax.data.Interactions

        def setup(self):
            made.append(True)
            self.count = jnp.zeros(self.train.num_items).at[self.train.items].add(1)

        def score(self, users, items):
            return jnp.broadcast_arrays(self.count[items], users)[0]

        def score_all(self, users):
            return jnp.tile(self.count, (len(users), 1))

    counts = np.bincount(small_split.train.items, minlength=90).astype(float)
    for protocol in (Full(), Sampled(8)):
        found = make_evaluator(small_split, protocol=protocol)(Popularity, {})
        wanted = evaluate(small_split, np.tile(counts, (60, 1)), protocol=protocol)
        assert jax.tree.map(float, found) == {part: pytest.approx(x) for part, x in wanted.items()}
    assert len(made) == 2


def test_bpr_scores_all_as_it_scores_pairs(rng):
    model = BPR(7, 11, 3)
    variables = model.init(jax.random.key(0), jnp.zeros(1, int), jnp.zeros(1, int))
    users, items = jnp.array([0, 3, 6]), jnp.array([10, 2, 2])
    all_scores = model.apply(variables, users, method="score_all")
    assert all_scores.shape == (3, 11)
    np.testing.assert_allclose(
        model.apply(variables, users, items, method="score"), all_scores[jnp.arange(3), items], rtol=1e-5
    )


def ranks_of(split, scores, protocol):
    """The ranks themselves, by user and item, of valid and of test."""
    model = Scores(scores.shape).bind({"params": {"table": jnp.asarray(scores)}})
    found = jax.jit(lambda prepared: protocol.ranks(model, split, prepared))(protocol.prepare(split))
    return [dict(zip(zip(p.users.tolist(), p.items.tolist()), r.tolist())) for p, r in zip(split[1:], found)]


def wanted_ranks(split, scores, candidates=None):
    """By loops over users, with the comparison that a tie and a score that is no number count as not lower."""
    train, *parts = map(item_sets, split)
    found = []
    for part, other in zip(parts, parts[::-1]):
        found.append({})
        for user, items in enumerate(part):
            among = set(range(scores.shape[1])) - train[user] - other[user]
            if candidates is not None:
                among = set(candidates[user].tolist()) | items
            for item in items:
                found[-1][user, item] = sum(not scores[user, i] < scores[user, item] for i in among)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["distinct", "ties", "strange", "integers"])
@pytest.mark.parametrize("several", [False, True])
def test_ranks_are_exact_whatever_the_scores(small_split, rng, kind, several, monkeypatch):
    split = several_held_out(rng) if several else small_split
    shape = (split.train.num_users, split.train.num_items)
    scores = {
        "distinct": rng.normal(size=shape).astype(np.float32),
        "ties": rng.integers(4, size=shape).astype(np.float32),
        "strange": rng.choice(np.float32([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0]), size=shape),
        "integers": rng.choice(np.array([-(2**31), -1, 0, 2**31 - 1], np.int32), size=shape),
    }[kind]
    for sizes in (protocols.PROCESSOR, Sizes(shape[1] * 7, 100, 3)):
        monkeypatch.setattr(protocols, "sizes", lambda: sizes)
        assert ranks_of(split, scores, Full()) == wanted_ranks(split, scores)
        sample = sample_candidates(split, 8, 0)
        assert ranks_of(split, scores, Sampled(8)) == wanted_ranks(split, scores, sample)


def one_heavy_user(rng, users, items, heavy):
    """Leave a fifth out: one user with `heavy` items, the others with ten."""
    degrees = np.full(users, 10)
    degrees[users // 2] = heavy
    rows = [rng.permutation(items)[:degree] for degree in degrees]
    return htd_jax.data.split_pairs(np.repeat(np.arange(users), degrees), np.concatenate(rows), split="ratio")


def test_one_heavy_user_is_ranked_as_every_other(rng):
    split = one_heavy_user(rng, 30, 90, 60)
    scores = rng.normal(size=(30, 90)).astype(np.float32)
    assert ranks_of(split, scores, Full()) == wanted_ranks(split, scores)
    assert ranks_of(split, scores, Sampled(8)) == wanted_ranks(split, scores, sample_candidates(split, 8, 0))


@pytest.mark.parametrize("protocol", [Full(), Sampled(99)])
def test_memory_does_not_grow_with_the_square_of_the_longest_list(rng, protocol):
    """Of 500 users one has 5,000 of 10,000 pairs: XLA plans for no more than a few blocks of scores."""
    split = one_heavy_user(rng, 500, 8000, 5000)
    make_model = lambda train: BPR(train.num_users, train.num_items, 8)
    model = make_model(split.train)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(1, int), jnp.zeros(1, int))
    prepared = protocol.prepare(split)
    assert sum(x.nbytes for x in jax.tree.leaves(prepared)) < 1e6
    ranks = lambda variables: nn.apply(lambda model: protocol.ranks(model, split, prepared), model)(variables)
    planned = jax.jit(ranks).lower(variables).compile().memory_analysis()
    assert planned.temp_size_in_bytes < 100e6


@pytest.mark.slow
def test_evaluation_needs_no_rank_promotion(small_split):
    scores = np.zeros((small_split.train.num_users, small_split.train.num_items))
    with jax.numpy_rank_promotion("raise"):
        for protocol in (Full(), Sampled(8)):
            evaluate(small_split, scores, protocol=protocol)
        ranking_metrics(jnp.ones((3, 2), int), jnp.ones((3, 2), bool))


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int16, np.uint16, np.uint32, np.int64])
def test_ranks_in_any_integer(kind):
    """Rank 100 is a hit at 300, whatever holds it, and a masked slot never is one."""
    where = np.array([[True, True], [True, False]])
    for k in (50, 100, 127, 255, 300, 2**40):
        found, wanted = (ranking_metrics(np.array([[1, 100], [7, 9]], t), where, (k,)) for t in (kind, np.int32))
        assert jax.tree.map(float, found) == jax.tree.map(float, wanted)
        assert float(found[f"recall@{k}"]) == (0.75 if k < 100 else 1)


def test_ranks_must_be_integers():
    with pytest.raises(ValueError, match="`ranks` must be integers, not float32"):
        ranking_metrics(jnp.ones((2, 2)), jnp.ones((2, 2), bool))


@pytest.mark.parametrize("cutoffs", [(0,), (10, -1), (), (1.5,), ("10",), (True,), 10, None, (10.0,)])
def test_invalid_cutoffs_are_refused(small_split, cutoffs):
    for use in (
        lambda: ranking_metrics(jnp.ones((2, 2), int), jnp.ones((2, 2), bool), cutoffs),
        lambda: make_evaluator(small_split, cutoffs=cutoffs),
    ):
        with pytest.raises(ValueError, match="`cutoffs` must be whole numbers of at least 1"):
            use()


def test_cutoffs_may_be_any_kind_of_whole_number():
    found = ranking_metrics(jnp.ones((2, 2), int), jnp.ones((2, 2), bool), np.array([1, 5]))
    assert set(found) == {f"{name}@{k}" for name in METRICS for k in (1, 5)}


def test_metrics_without_users_are_zero():
    for shape in ((0, 0), (3, 0), (0, 3)):
        found = ranking_metrics(np.zeros(shape, int), np.zeros(shape, bool))
        assert all(float(x) == 0 for x in found.values())


def test_ranking_metrics_counts_only_users_with_a_held_out_item():
    ranks, where = jnp.array([[1, 1], [11, 1]]), jnp.array([[True, False], [False, False]])
    assert float(ranking_metrics(ranks, where)["recall@10"]) == 1.0
    assert float(ranking_metrics(np.asarray(ranks, np.int64), np.asarray(where))["recall@10"]) == 1.0


# --- metrics of each user


def metrics_by_loops(split, scores):
    """The metrics of each user who has a held-out item, by part: `{user: metrics}`."""
    train, *parts = map(item_sets, split)
    found = {}
    for name, part, other in zip(("valid", "test"), parts, parts[::-1]):
        hidden = [a | b for a, b in zip(train, other)]
        rows = [oracle.ranks(scores, hidden, [(user, item) for item in items]) for user, items in enumerate(part)]
        found[name] = {
            user: {metric: x for k in CUTOFFS for metric, x in metrics_at(row, k).items()}
            for user, row in enumerate(rows)
            if row
        }
    return found


def table_of(scores):
    return lambda train: Scores(scores.shape), {"params": {"table": jnp.asarray(scores, jnp.float32)}}


@pytest.mark.slow
@pytest.mark.parametrize("protocol", [Full(), Sampled(8)])
def test_the_metrics_are_the_means_of_users(small_split, rng, protocol):
    for split in (small_split, several_held_out(rng)):
        scores = rng.integers(30, size=(split.train.num_users, split.train.num_items)).astype(float)
        found = make_user_evaluator(split, protocol=protocol)(*table_of(scores))
        means = evaluate(split, scores, protocol=protocol)
        for part, (users, values) in found.items():
            np.testing.assert_array_equal(users, np.unique(getattr(split, part).users))
            assert {name: x.mean() for name, x in values.items()} == pytest.approx(means[part], abs=1e-6)


def test_metrics_of_each_user_are_their_definition(rng):
    split = several_held_out(rng)
    scores = rng.integers(30, size=(100, 40)).astype(float)
    found, wanted = make_user_evaluator(split)(*table_of(scores)), metrics_by_loops(split, scores)
    for part, (users, values) in found.items():
        assert list(wanted[part]) == users.tolist()
        for row, metrics in enumerate(wanted[part].values()):
            assert {name: x[row] for name, x in values.items()} == pytest.approx(metrics, abs=1e-6)


def test_a_masked_pair_is_ignored_and_a_user_without_pairs_has_zeros():
    users, ranks = np.array([2, 0, 2, 0], np.int32), np.array([1, 5, 60, 2], np.int32)
    found = metrics_of_users(users, ranks, np.array([True, False, True, True]), 4, (10,))
    assert found["recall@10"].tolist() == [1, 0, 0.5, 0]
    assert found["mrr@10"].tolist() == [0.5, 0, 1, 0]
    assert metrics_of_users(users[:0], ranks[:0], np.zeros(0, bool), 2, (1,))["map@1"].tolist() == [0, 0]


def test_a_ranker_gives_the_ranks_of_pairs_in_their_order(rng):
    split = several_held_out(rng)
    scores = rng.normal(size=(100, 40)).astype(np.float32)
    found = make_ranker(split)(*table_of(scores))
    for part, wanted in zip(("valid", "test"), wanted_ranks(split, scores)):
        pairs = zip(getattr(split, part).users.tolist(), getattr(split, part).items.tolist())
        assert found[part].tolist() == [wanted[pair] for pair in pairs]


# --- compiled once


@dataclasses.dataclass(frozen=True)
class CountedModel:
    """A `MakeModel` that is a value, and counts how often it is traced."""

    shape: tuple[int, int]
    traces: list[int] = dataclasses.field(default_factory=list, compare=False)

    def __call__(self, train):
        self.traces.append(1)
        return Scores(self.shape)


@pytest.mark.parametrize("make", [make_evaluator, make_user_evaluator, make_ranker])
def test_an_evaluation_that_is_built_again_is_not_compiled_again(small_split, rng, make):
    shape = small_split.train.num_users, small_split.train.num_items
    traces = []
    for _ in range(3):
        for make_protocol in (Full, lambda: Sampled(8)):
            variables = {"params": {"table": jnp.asarray(rng.normal(size=shape), jnp.float32)}}
            make(small_split, protocol=make_protocol())(CountedModel(shape, traces), variables)
    assert len(traces) == 2  # one per protocol
    if make is not make_ranker:
        make(small_split, cutoffs=(3,))(CountedModel(shape, traces), variables)
        assert len(traces) == 3


@pytest.mark.slow
def test_runs_that_differ_by_their_seeds_share_one_compiled_evaluation(data):
    fit = lambda seed: htd_jax.fit(data, dim=3, epochs=1, seed=seed, progress=False)
    fit(0)
    before = ranking._compiled()._cache_size()
    fit(1)
    assert ranking._compiled()._cache_size() == before


# --- registered metrics


def test_tables_show_recall_and_ndcg():
    assert shown_metrics((5, 10)) == ["recall@5", "recall@10", "ndcg@5", "ndcg@10"]


@pytest.fixture
def no_more_metrics():
    before = dict(METRICS)
    yield
    METRICS.clear()
    METRICS.update(before)


@pytest.mark.slow
@pytest.mark.usefixtures("no_more_metrics")
def test_a_registered_metric_is_evaluated_like_the_others(rng):
    split = several_held_out(rng)
    scores = rng.integers(30, size=(100, 40)).astype(float)
    make_model, variables = table_of(scores)
    evaluate, by_user = make_evaluator(split), make_user_evaluator(split)
    assert "hit@10" not in evaluate(make_model, variables)["test"]
    register("hit", lambda pairs: jnp.where(pairs.places == 1, 1.0, 0.0))
    register("worst", lambda pairs: jnp.where(pairs.places == pairs.counts, 1 / pairs.ranks, 0), shown=False)
    assert shown_metrics((10,)) == ["recall@10", "ndcg@10", "hit@10"]
    ranks = make_ranker(split)(make_model, variables)["test"]
    found = evaluate(make_model, variables)["test"]  # compiled again, though the evaluator was made before
    users, values = by_user(make_model, variables)["test"]
    for k in CUTOFFS:
        best = np.array([ranks[split.test.users == user].min() for user in users])
        last = np.array([ranks[split.test.users == user].max() for user in users])
        np.testing.assert_array_equal(values[f"hit@{k}"], best <= k)
        np.testing.assert_allclose(values[f"worst@{k}"], np.where(last <= k, 1 / last, 0), rtol=1e-6)
        np.testing.assert_allclose(found[f"hit@{k}"], np.mean(best <= k), rtol=1e-6)
    assert Evaluation(metric="hit@20").resolve().metric == "hit@20"


@pytest.mark.usefixtures("no_more_metrics")
def test_a_name_belongs_to_one_metric():
    share = lambda pairs: 1 / pairs.counts
    register("mine", share)
    register("mine", share)  # once more changes nothing
    with pytest.raises(ValueError, match="another metric is registered as 'mine'"):
        register("mine", lambda pairs: pairs.ranks)
    with pytest.raises(ValueError, match="'my@10' is no metric's name"):
        register("my@10", share)


# --- settings


def test_an_evaluation_resolves_to_a_spec_with_every_choice_made():
    assert Evaluation().resolve() == EvaluationSpec("full", 499, (10, 20, 50), "recall@50")
    sampled = Evaluation("sampled", candidates=99, cutoffs=(20, 5, 5)).resolve()
    assert sampled == EvaluationSpec("sampled", 99, (5, 20), "recall@5")
    assert sampled.make() == Sampled(99) and Evaluation().resolve().make() == Full()
    chosen = Evaluation(candidates=99, metric="map@10", cutoffs=()).resolve()
    assert as_json(chosen) == {
        **{"protocol": "full", "candidates": 499, "cutoffs": [10, 20, 50], "metric": "map@10", "eval_users": None}
    }
    with pytest.raises(UserError, match=r"unknown metric 'recall@7' \(known: recall@10, .*\); set `metric`"):
        Evaluation(metric="recall@7").resolve()


# --- a sample of users


@pytest.mark.parametrize("protocol", [Full(), Sampled(10)])
def test_a_sample_of_users_is_ranked_as_in_full(rng, protocol, monkeypatch):
    """Its figures are the means over its users of the metrics that the whole evaluation finds for them."""
    split = several_held_out(rng)
    scores = rng.normal(size=(100, 40))
    model, variables = (lambda train: Scores(scores.shape)), {"params": {"table": jnp.asarray(scores, jnp.float32)}}
    if isinstance(protocol, Sampled):  # the candidates of a user are the same in both
        every = sample_candidates(split, 10, 0)
        sample = lambda part, *_: every if part is split else every[sample_users(split, 20)]
        monkeypatch.setattr(protocols, "sample_candidates", sample)
    by_user = make_user_evaluator(split, protocol=protocol)(model, variables)
    found = make_evaluator(split, protocol=protocol, users=20)(model, variables)
    sampled = dict(zip(("valid", "test"), sample_parts(split, 20)))
    for part, metrics in found.items():
        inside = np.isin(by_user[part].users, sampled[part])
        assert inside.sum() == 20 < len(inside)
        for name, value in metrics.items():
            assert float(value) == pytest.approx(by_user[part].values[name][inside].mean(), abs=1e-6)


def test_only_the_sampled_users_are_scored(rng):
    split = several_held_out(rng)
    users = sample_users(split, 10)
    scored = []

    class Told(Scores):
        def score_all(self, users):
            jax.debug.callback(lambda users: scored.extend(users.tolist()), users)
            return self.table[users]

    evaluate = make_evaluator(split, users=10)
    jax.block_until_ready(evaluate(lambda train: Told((100, 40)), {"params": {"table": jnp.zeros((100, 40))}}))
    jax.effects_barrier()
    assert set(scored) == set(users.tolist()) and len(scored) < 2 * len(users)


def test_the_sample_of_users_has_users_of_each_part_and_does_not_depend_on_the_model():
    pairs = lambda users: (np.asarray(users), np.zeros(len(users), int))
    train, valid = np.arange(1000), np.array([3, 500, 999])  # few are in valid, and all in test
    split = htd_jax.data.make_split((train, np.full(1000, 2)), pairs(valid), (train, np.ones(1000, int)), 1000, 4)
    users = sample_users(split, 50)
    assert set(valid) <= set(users.tolist()) and 50 <= len(users) <= 53
    assert (users == sample_users(split, 50)).all() and {*users} != {*sample_users(split, 50, seed=1)}
    assert (sample_users(split, 10**6) == train).all()


def test_users_are_sampled_where_all_have_too_many_scores(small_split, monkeypatch):
    size = small_split.train.num_users * small_split.train.num_items
    resolved = lambda **settings: Evaluation(**settings).resolve(small_split).eval_users
    assert resolved() is None and resolved(eval_users=5) == 5
    assert resolved(eval_users=10**6) is None  # that is all of them
    monkeypatch.setattr("htd_jax.evaluation.settings.SAMPLED_USERS", 7)
    monkeypatch.setattr("htd_jax.evaluation.settings.MANY_SCORES", size - 1)
    assert resolved() == 7 and resolved(eval_users=0) is None and resolved(eval_users=3) == 3
    assert resolved(protocol="sampled", candidates=1) is None  # a score per user is few
    monkeypatch.setattr("htd_jax.evaluation.settings.MANY_SCORES", size)
    assert resolved() is None
    assert EvaluationSpec("full", 499, (10,), "recall@10").eval_users is None
