"""What a teacher's numbers may be, and what their scale changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import htd_jax
from htd_jax import Lists, Representations, UserError, distill, fit
from htd_jax.distillers import METHODS
from htd_jax.pipeline.teacher_checks import notes_on_fit
from htd_jax.teacher import ITEM_LENGTH, USER_LENGTH, Teacher

# Methods whose definition reads the teacher's scores as logits, see their docstrings.
READ_LOGITS = {"bd", "cd", "rce-kd"}


@pytest.fixture(scope="module")
def tables(data):
    rng = np.random.default_rng(0)
    return tuple(np.float32(rng.normal(size=(n, 6))) for n in (data.train.num_users, data.train.num_items))


def refused(teacher, data, **options):
    with pytest.raises(UserError) as caught:
        distill(teacher, data, dim=2, epochs=1, progress=False, **options)
    (line,) = str(caught.value).splitlines()
    return line


@pytest.mark.parametrize("method", ["best", "htd", "rrd", "ftd"])
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf, 1e39])
@pytest.mark.parametrize("side", [0, 1])
def test_a_number_that_is_not_finite_is_refused_with_table_and_row(data, tables, method, number, side):
    wrong = [table.astype(np.float64) for table in tables]
    wrong[side][3, 2] = number
    line = refused(Representations(*wrong), data, method=method)
    assert f"the teacher's {'users' if side == 0 else 'items'} hold" in line and "finite" in line and "row 3" in line


def test_the_scores_of_lists_are_checked_where_there_is_an_item(data):
    rng = np.random.default_rng(0)
    items = np.argsort(rng.random((data.train.num_users, data.train.num_items)), axis=1)[:, :5].astype(np.int32)
    scores = np.float32(np.tile(np.arange(5, 0, -1), (len(items), 1)))
    items[4, 4], scores[4, 4] = -1, np.nan
    Teacher.of(Lists(items, scores)).check(data.train)
    scores[7, 1] = np.inf
    line = refused(Lists(items, scores), data, method="best")
    assert "the scores of the teacher's lists hold" in line and "row 7" in line
    assert "shape" in refused(Lists(items, scores[:, :3]), data, method="best")


@pytest.mark.parametrize("scale", [1e20, 1e-20])
def test_tables_whose_products_float32_cannot_hold_are_refused(data, tables, scale):
    line = refused(Representations(*(table * np.float32(scale) for table in tables)), data, method="best")
    assert "finite" in line and "multiply a table by a constant" in line


def test_array_likes_are_taken_and_what_is_no_array_of_numbers_is_refused(data, tables):
    users, items = data.train.num_users, data.train.num_items
    Teacher.of(Lists([[0, 1]] * users)).check(data.train)
    for made in (np.ones_like(tables[0], int), tables[0].tolist(), tables[0].astype(object)):
        teacher = Teacher.of(Representations(made, tables[1]))
        teacher.check(data.train)
        assert teacher.representations.users.dtype == np.float32
    assert "1e+200 in row 0" in refused(Representations(np.full((users, 6), 1e200), tables[1]), data, method="best")
    assert "no array of numbers" in refused(Lists([[0, 1], [0]] * (users // 2)), data, method="best")
    assert "item 1 twice in row 0" in refused(Lists([[1, 0, 1]] * users), data, method="best")
    assert items > 1


def test_a_scores_function_with_nan_is_refused(data, tables):
    table = tables[1].copy()
    table[5, 0] = np.nan
    scores = jax.tree_util.Partial(lambda users, items, rows: users[rows] @ items.T, tables[0], table)
    assert "finite" in refused(Teacher(scores=scores), data, method="best")


def test_hints_have_one_length_whatever_the_scale(tables):
    usual = Teacher.of(Representations(*map(jnp.asarray, tables))).hints()
    for table, length in zip(usual, (USER_LENGTH, ITEM_LENGTH)):
        np.testing.assert_allclose(np.sqrt(np.mean(np.sum(np.square(table), axis=1))), length, rtol=1e-6)
    for power in (-100, -20, 20, 100):
        scaled = Representations(tables[0] * np.float32(2.0**power), tables[1] / np.float32(2.0**power))
        for found, expected in zip(Teacher.of(scaled).hints(), usual):
            np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(Teacher(Representations(np.zeros((3, 2)), np.ones((1, 2)))).hints().users, 0)


def trained(name, teacher, data):
    model = "ials" if METHODS[name].closed_form else "bpr"
    start = fit(data, dim=2, epochs=1, progress=False) if METHODS[name].warm_start else "random"
    fitted = distill(teacher, data, method=name, model=model, dim=2, epochs=1, start=start, progress=False)
    return fitted.variables, fitted.records[-1]["terms"]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(METHODS) - READ_LOGITS - {"none", "svd", "replay"}))
def test_a_method_learns_the_same_from_a_teacher_of_any_scale(name, data, tables):
    """To the bit where the scale is a power of two, whichever table it multiplies."""
    usual = trained(name, Representations(*tables), data)
    for users, items in ((2.0**-30, 2.0**-15), (2.0**30, 2.0**20)):
        scaled = Representations(tables[0] * np.float32(users), tables[1] * np.float32(items))
        jax.tree.map(np.testing.assert_array_equal, trained(name, scaled, data), usual)


@pytest.mark.slow
@pytest.mark.parametrize("power", [-25, 30])
def test_best_tells_items_apart_at_any_scale_of_lists(power, data, tables):
    scores = tables[0] @ tables[1].T
    items = np.argsort(-scores, axis=1)[:, :20].astype(np.int32)
    scores = np.take_along_axis(scores, items, axis=1)
    usual = trained("best", Lists(items, scores), data)
    jax.tree.map(
        np.testing.assert_array_equal,
        trained("best", Lists(items, scores * np.float32(2.0) ** (4 * power)), data),
        usual,
    )


def test_every_method_is_tried_or_known_to_read_logits():
    assert set(METHODS) >= READ_LOGITS
    for method in (htd_jax.distillers.bd, htd_jax.distillers.cd, htd_jax.distillers.rce_kd):
        assert "logits, " in method.__doc__ and "scale matters" in method.__doc__


# --- what a teacher's rankings tell


def notes(teacher, split):
    found = notes_on_fit(Teacher.of(teacher), split)
    assert all(len(note.splitlines()) == 1 for note in found)
    return found


@pytest.fixture(scope="module")
def known():
    """A split, and tables that know its training pairs, or all pairs: the factors of their matrix of ones."""
    split = htd_jax.data.make_synthetic(num_users=300, num_items=400)

    def tables(*parts):
        matrix = np.zeros((300, 400), np.float32)
        for part in parts:
            matrix[np.asarray(part.users), np.asarray(part.items)] = 1
        left, values, right = np.linalg.svd(matrix, full_matrices=False)
        return np.ascontiguousarray(left[:, :100] * values[:100]), np.ascontiguousarray(right[:100].T)

    return split, tables(split.train), tables(*split)


def test_a_teacher_that_fits_and_knows_training_pairs_alone_gives_no_note(known):
    split, (users, items), _ = known
    assert notes(Representations(users, items), split) == ()
    popularity = np.bincount(np.asarray(split.train.items), minlength=400).astype(np.float32)[:, None]
    assert notes(Representations(np.ones((300, 1), np.float32), popularity), split) == ()


@pytest.mark.parametrize("side", [0, 1])
def test_rows_in_another_order_are_noted(known, side):
    split, tables, _ = known
    shuffled = list(tables)
    shuffled[side] = np.random.default_rng(0).permutation(tables[side])
    (note,) = notes(Representations(*shuffled), split)
    assert "its rows seem to be in another order" in note and "`teacher_user_ids`" in note


@pytest.mark.parametrize("step", [1, -1])
@pytest.mark.parametrize("side", [0, 1])
def test_rows_moved_by_one_are_noted_with_the_direction(known, side, step):
    split, tables, _ = known
    moved = list(tables)
    moved[side] = np.roll(tables[side], step, axis=0)
    (note,) = notes(Representations(*moved), split)
    kind, place = ("user", "item")[side], "previous" if step == 1 else "next"
    assert f"row r of its {kind}s seems to be that of the {place} {kind}" in note


def lists_of(tables, split, hide):
    scores = tables[0] @ tables[1].T
    for part in hide:
        scores[np.asarray(part.users), np.asarray(part.items)] = -9
    return np.argsort(-scores, axis=1)[:, :60].astype(np.int32)


def test_the_order_of_lists_is_compared_by_what_is_held_out_for_validation(known):
    """They may leave out training items."""
    split, _, tables = known
    items = lists_of(tables, split, [split.train])
    (note,) = notes(Lists(np.random.default_rng(0).permutation(items)), split)
    assert "in another order" in note


@pytest.mark.parametrize("length", [5, 20, 60])
def test_short_lists_give_no_note_on_order(known, length):
    split, honest, _ = known
    items = lists_of(honest, split, [split.train])[:, :length]
    assert not any("another order" in note for note in notes(Lists(items), split))


def test_lists_that_leave_out_what_is_held_out_are_noted(known):
    split, honest, _ = known
    (note,) = notes(Lists(lists_of(honest, split, split)), split)
    assert "its lists leave out the validation items" in note and "`seen` train" in note


def test_popularity_in_any_form_gives_no_note(known):
    split, _, _ = known
    counts = np.bincount(np.asarray(split.train.items), minlength=400).astype(np.float32)[:, None]
    users = 1 + np.random.default_rng(0).random((300, 1), np.float32)
    assert notes(Representations(users, counts), split) == ()
    assert notes(Lists(lists_of((np.ones_like(users), counts), split, [split.train])[:, :20]), split) == ()


def test_few_pairs_and_a_teacher_that_has_learned_little_give_no_note():
    split = htd_jax.data.make_synthetic(num_users=60, num_items=100)
    rng = np.random.default_rng(0)
    assert notes(Representations(*(np.float32(rng.normal(size=(n, 2))) for n in (60, 100))), split) == ()


@pytest.mark.parametrize("form", ["tables", "lists", "unseen lists", "scores"])
def test_a_teacher_that_has_seen_what_is_held_out_is_noted(known, form):
    split, honest, leaked = known
    make = {
        "tables": lambda tables: Representations(*tables),
        "lists": lambda tables: Lists(lists_of(tables, split, [])),
        "unseen lists": lambda tables: Lists(lists_of(tables, split, [split.train])),
        "scores": lambda tables: Teacher(
            scores=jax.tree_util.Partial(lambda users, items, rows: users[rows] @ items.T, *map(jnp.asarray, tables))
        ),
    }[form]
    found = notes(make(leaked), split)
    assert ["trained on the validation items" in found[0], "trained on the test items" in found[1]] == [True, True]
    assert not any("trained on" in note for note in notes(make(honest), split))


@pytest.mark.slow
def test_python_users_are_warned(known):
    split, _, leaked = known
    with pytest.warns(UserWarning, match="^the teacher: it finds .* trained on the test items"):
        distill(Representations(*leaked), split, method="svd", dim=2, progress=False)
