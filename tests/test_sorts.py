"""No compiled program sorts a whole catalogue per user: searches for the best cost one pass, a sort a hundred of them.

On a CPU XLA turns a search into a sort if its result is sliced, which no other test sees.
"""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import htd_jax
from htd_jax.data import Interactions, Split
from htd_jax.distillers import METHODS, EpochStart, Lists, Teacher
from htd_jax.evaluation import Full, Sampled
from htd_jax.evaluation.ranking import _evaluate
from htd_jax.models import BPR, BPRSettings, ModelOf, Representations
from htd_jax.ops.largest import CHUNK, WIDE, top_k
from htd_jax.ops.precision import Rows
from htd_jax.serving import topk

# More than any method's pool, so that a sort of these lengths is one of all users or items.
USERS, ITEMS, DIM = 2003, 3001, 4

# BD needs the ranks of a thousand items per user, for which it sorts the user's scores: log N more than a pass.
SORTED = {"bd"}

# Their preparations run on the host.
HOST = {"svd", "pseudo", "freqd"}

# It has no teacher but what a student was before.
UPDATES = {"replay"}

MAKE_MODEL = ModelOf(BPRSettings(), DIM)


def sorts(function, *arguments, **static):
    """Returns the shapes of the compiled program's sorts of all users or items, more than one row of them at a time."""
    text = jax.jit(function).lower(*arguments).compile().as_text()
    found = []
    for shape, axis in re.findall(r"= \(?\w+\[([\d,]+)\].* sort\(.*dimensions=\{(\d+)\}", text):
        sizes = [int(size) for size in shape.split(",")]
        length = sizes.pop(int(axis))
        if length >= USERS and sizes and max(sizes) > 1:
            found.append(shape)
    return found


@pytest.fixture(scope="module")
def train():
    pairs = jnp.arange(5 * USERS)
    return Interactions.from_pairs(pairs % USERS, pairs * 7 % ITEMS, USERS, ITEMS)


@pytest.fixture(scope="module")
def teacher():
    rng = np.random.default_rng(0)
    tables = (rng.normal(size=(size, 2 * DIM)).astype(np.float32) for size in (USERS, ITEMS))
    return Teacher.of(Representations(*tables))


def test_a_sliced_search_is_a_sort_without_the_barrier():
    """If it is not, this file tests nothing."""
    below = lambda best: best[0] - best[0][:, :1]
    assert sorts(lambda x: below(jax.lax.top_k(x, 10)), jnp.zeros((8, ITEMS)))
    assert not sorts(lambda x: below(top_k(x, 10)), jnp.zeros((8, ITEMS)))


def test_every_search_has_the_barrier():
    root = Path(htd_jax.__file__).parent
    found = [
        path for path in root.rglob("*.py") if re.search(r"lax\.(approx_max|approx_min|top)_k\(", path.read_text())
    ]
    assert found == [root / "ops" / "largest.py"]


@pytest.mark.parametrize("name", sorted(set(METHODS) - HOST - UPDATES))
def test_no_method_sorts_all_items_of_every_user(name, train, teacher):
    method = METHODS[name]().make(5)
    student = BPR(USERS, ITEMS, DIM)
    variables = {"params": {"users": jnp.zeros((USERS, DIM)), "items": jnp.zeros((ITEMS, DIM))}}
    key = jax.random.key(0)

    def prepare_and_refresh(teacher, train, variables, key):
        context = method.prepare(teacher, train)
        params = method.init(key, htd_jax.distillers.Shapes(USERS, ITEMS, DIM), context)
        start = EpochStart(params, context, None, student.bind(variables), key, jnp.int32(0))
        return jax.tree.map(jnp.asarray, (context, method.refresh(start)))

    assert bool(sorts(prepare_and_refresh, teacher, train, variables, key)) == (name in SORTED)


@pytest.mark.parametrize("name", ["listwise", "rce-kd", "unkd", "rrd"])
def test_no_method_sorts_the_lists_of_a_whole_catalogue(name, train):
    lists = Lists(jnp.zeros((USERS, ITEMS), jnp.int32))
    method = METHODS[name]().make(5)
    assert not sorts(lambda items, train: method.prepare(Teacher(lists=Lists(items)), train), lists.items, train)


@pytest.mark.parametrize("protocol", [Full(), Sampled(candidates=20)])
def test_no_evaluation_sorts_all_items_of_every_user(protocol, train):
    split = Split(train, train, train)
    variables = MAKE_MODEL(train).init(jax.random.key(0), jnp.zeros(1, int), jnp.zeros(1, int), method="score")
    prepared = protocol.prepare(split)
    counted = {"valid": None, "test": None}
    evaluate = lambda variables, *given: _evaluate(MAKE_MODEL, protocol, None, variables, train, None, counted, *given)
    assert not sorts(evaluate, variables, split, prepared)


@pytest.mark.parametrize("items", [ITEMS, 200_000])
def test_no_recommendation_sorts_all_items_of_every_user(items):
    users, table = Rows(jnp.zeros((100, DIM))), Rows(jnp.zeros((items, DIM)))
    blocks = topk._divide(20, 100, items, topk.MEMORY, DIM)
    padded = table.padded(blocks.whole - items)
    rank = lambda *given: topk._rank_products(*given, None, np.int32(items), 20, blocks)
    assert not sorts(rank, users, padded, jnp.zeros(blocks.users, jnp.int32))
    score = jax.tree_util.Partial(lambda users: jnp.zeros((len(users), items)))
    blocks = topk._divide(20, 100, items, topk.MEMORY, 0, scored=items)
    scores = lambda block: topk._rank_scores(score, None, block, None, items, 20, blocks)
    assert not sorts(scores, jnp.zeros(blocks.users, jnp.int32))


@pytest.mark.parametrize("columns", [50, WIDE, WIDE + CHUNK - 1])
def test_the_largest_are_the_first_of_a_stable_sort(columns, rng):
    scores = rng.integers(-5, 5, (3, columns)).astype(np.float32)
    scores[1] = -np.inf
    scores[2, : columns // 2] = -np.inf
    for dtype in (np.float32, np.int32):
        given = np.where(np.isinf(scores), -9, scores).astype(dtype) if dtype is np.int32 else scores
        for k in (1, 7, 60):
            order = np.argsort(-given, axis=1, kind="stable")[:, :k]
            values, found = top_k(jnp.asarray(given), k)
            np.testing.assert_array_equal(found, order)
            np.testing.assert_array_equal(values, np.take_along_axis(given, order, axis=1))
