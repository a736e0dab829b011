"""Students of several sizes from one training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import line_of, results, start, start_command

import htd_jax
from htd_jax.training.prefixes import sum_over_prefixes

SOON = {"epochs": 2, "progress": False}


def test_the_loss_is_the_sum_and_a_gradient_the_mean():
    rng = np.random.default_rng(0)
    tables = {name: rng.normal(size=(5, 6)).astype(np.float32) for name in ("users", "items")}
    params = {"model": {"params": tables}, "distiller": {}}

    def loss(params, model):
        users, items = params["model"]["params"]["users"], params["model"]["params"]["items"]
        assert users.shape[1] == model
        value = jnp.sum((users @ items.T - 1) ** 2)
        return value, {"loss": value}

    prefixes = (1, 2, 6)
    summed = lambda params: sum_over_prefixes(loss, params, prefixes, prefixes)
    (total, terms), gradient = jax.value_and_grad(summed, has_aux=True)(params)
    cut = lambda dim: {**params, "model": {"params": {name: x[:, :dim] for name, x in tables.items()}}}
    alone = {dim: jax.value_and_grad(lambda params, dim=dim: loss(params, dim)[0])(cut(dim)) for dim in prefixes}
    np.testing.assert_allclose(total, sum(value for value, _ in alone.values()), rtol=1e-6)
    np.testing.assert_allclose(terms["loss"], total / 3, rtol=1e-6)
    for name, table in gradient["model"]["params"].items():
        own = [alone[dim][1]["model"]["params"][name] for dim in prefixes]
        wanted = np.array(own[2])
        wanted[:, 0] = (own[0][:, 0] + own[1][:, 0] + own[2][:, 0]) / 3
        wanted[:, 1] = (own[1][:, 1] + own[2][:, 1]) / 2
        np.testing.assert_allclose(table, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("optimizer", ["adam", pytest.param("lazy-adam", marks=pytest.mark.slow)])
def test_a_prefix_is_a_student(data, teacher, tmp_path, optimizer):
    options = {"method": "best", "prefixes": (4, 8, 12), "precision": "int4", "optimizer": optimizer, **SOON}
    student = htd_jax.distill(teacher, data, folder=tmp_path / "student", **options)
    again = htd_jax.distill(teacher, data, folder=tmp_path / "student", **options)
    assert student.representations().users.shape[1] == 12 and again.metrics == student.metrics
    small = again.prefix(4)
    assert 0 < small.metrics["recall@50"] <= 1 and small.settings["model"]["dim"] == 4
    # Rounded to the steps of the whole, dimension by dimension: a cut of what was trained.
    np.testing.assert_array_equal(small.representations().users, student.representations().users[:, :4])
    np.testing.assert_array_equal(small.retriever().items.floats(), small.representations().items)
    with pytest.raises(htd_jax.UserError, match="no prefix of 6 dimensions was trained: it was trained with 4, 8, 12"):
        student.prefix(6)
    with pytest.raises(htd_jax.UserError, match="trained with none"):
        small.prefix(4)


@pytest.mark.slow
def test_one_prefix_of_all_is_the_plain_training(data, teacher):
    whole = htd_jax.distill(teacher, data, method="best", dim=6, **SOON)
    same = htd_jax.distill(teacher, data, method="best", dim=6, prefixes=(6,), **SOON)
    np.testing.assert_allclose(same.representations().items, whole.representations().items, rtol=1e-4, atol=1e-6)


def test_what_it_refuses(data, teacher):
    for prefixes in ((4, 2), (2, 2, 4), (2, 3), (0, 4)):
        with pytest.raises(htd_jax.UserError, match="ascending, the last of them `dim` 4"):
            htd_jax.distill(teacher, data, method="best", dim=4, prefixes=prefixes, **SOON)
    with pytest.raises(htd_jax.UserError, match="two tables that is trained by gradients"):
        htd_jax.distill(teacher, data, method="pseudo", model="ials", prefixes=(2, 4), **SOON)
    with pytest.raises(htd_jax.UserError, match="learns nothing besides the student"):
        htd_jax.distill(teacher, data, method="htd", prefixes=(2, 4), **SOON)


@pytest.mark.slow
def test_a_run_of_several_sizes_exports_each(tmp_path):
    run = tmp_path / "run"
    options = ["--method", "best", "--precision", "int4", "--budget", "0", "--student-dim", "8", "--run", run]
    done = start(*options, "--prefixes", "4", "8")
    assert done.status == 0, done.err
    assert "bytes per row" in " ".join(done.out.split()) or "numbers," in done.out
    sizes = results(run)["sizes"]
    assert [entry["row_bytes"] for entry in sizes.values()] == [2, 4]
    assert start_command("export", "--run", run, "--to", tmp_path / "small", "--bytes", "2").status == 0
    assert htd_jax.load(tmp_path / "small").dim == 4
    other = line_of(start_command("export", "--run", run, "--to", tmp_path / "other", "--bytes", "3"))
    assert "no such prefix: it was trained for 2, 4" in other
