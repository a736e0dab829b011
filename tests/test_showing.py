"""What a prompt and a notebook show of values."""

import numpy as np
import pyarrow as pa
import pytest

import htd_jax
from htd_jax.data import Ids, Interactions
from htd_jax.ops.precision import to_precision
from htd_jax.serving import Retriever
from htd_jax.showing import Look, Shown


class Value(Shown):
    def look(self) -> Look:
        return Look(
            "A <b>title</b>\n", ["a line"], ("name", "count", "share"), [("x", 1234, 0.5), ("<i>" * 30, 5, 1.0)]
        )


def test_text_and_html_are_aligned_and_escaped():
    assert repr(Value()).splitlines() == [
        r"A <b>title</b>\n",
        "  a line",
        "  name                                      count   share",
        "  x                                         1,234  0.5000",
        "  <i><i><i><i><i><i><i><i><i><i><i><i><...      5  1.0000",
    ]
    page = Value()._repr_html_()
    assert "A &lt;b&gt;title" in page and "<i>" not in page and "<td>1,234</td><td>0.5000</td>" in page


def test_no_value_prints_its_arrays():
    data = htd_jax.read((["ann", "ann", "ann", "bob", "bob", "<b>"], ["tea", "jam", "bun", "tea", "rye", "jam"]))
    rng = np.random.default_rng(0)
    users, items = (to_precision(rng.normal(size=(n, 4)), "int4") for n in (len(data.users), len(data.items)))
    model = Retriever(users, items, data.users, data.items, data.train, {"dataset": "<script>", "method": "htd"})
    for value, told in [
        (data, "Dataset data: 3 users, 4 items"),
        (data.train, "Interactions: "),
        (model, "Retriever: 4 numbers per row in int4, 2 bytes"),
        (model.recommend(["ann", "<b>"], 3), "Recommendations: up to 3 items for 2 users"),
    ]:
        assert repr(value).startswith(told) and "rray(" not in repr(value)
        assert len(repr(value).splitlines()) < 14
        assert "<script>" not in value._repr_html_() and "<b><" not in value._repr_html_()
    none = Interactions.from_pairs([], [], 1, 1)
    rows, ids = to_precision(np.ones((1, 1)), "float32"), (Ids(pa.array(["a"]), "user"), Ids(pa.array(["b"]), "item"))
    assert repr(Retriever(rows, rows, *ids, none).recommend([], 5)).startswith("Recommendations: ")


def test_a_fitted_model_shows_its_metrics():
    data = htd_jax.data.make_synthetic(num_users=30, num_items=60)
    fitted = htd_jax.fit(data, dim=2, epochs=1, cutoffs=(5, 10), progress=False)
    lines = repr(fitted).splitlines()
    assert lines[0] == "Fitted bpr, 2 numbers per row in float32"
    assert lines[-1].split() == ["@10", *(f"{fitted.metrics[name]:.4f}" for name in ("recall@10", "ndcg@10"))]
    with pytest.raises(TypeError, match=r"pass it as method=htd_jax.distillers.HTD\(weight=...\)"):
        htd_jax.distill(fitted, data, weight=0.1)
    with pytest.raises(TypeError, match="unknown setting 'epoch'; did you mean epochs. known: "):
        htd_jax.fit(data, epoch=3)


def test_the_public_names_are_for_users():
    assert {"fit", "distill", "read", "load", "losses"} <= set(dir(htd_jax))
    assert not [name for name in dir(htd_jax) if name.startswith("_") or name in ("sys", "lazy_loader")]
