"""Charts of studies, as Vega-Lite: each with units on its axes, and its figures under the pointer."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Records = Sequence[Mapping[str, Any]]

WIDTH, HEIGHT = "container", 320

# More lines than these have no bands, which would hide one another.
MOST_BANDS = 4


def _chart(data: Records, layers: list[dict[str, Any]], *, height: int = HEIGHT) -> dict[str, Any]:
    return {
        "data": {"values": [_plain(record) for record in data]},
        "width": WIDTH,
        "height": height,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "layer": layers,
    }


def _plain(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: x.item() if isinstance(x, np.generic) else x for name, x in record.items()}


def _axis(field: str, title: str, kind: str = "quantitative", **more: Any) -> dict[str, Any]:
    return {"field": field, "title": title, "type": kind, **more}


def _shown(fields: Mapping[str, str]) -> list[dict[str, Any]]:
    """Under the pointer; figures with four digits."""
    return [
        {"field": field, "title": title, **({"format": ".4f"} if field in ("mean", "low", "high", "value") else {})}
        for field, title in fields.items()
    ]


def bars(data: Records, *, value: str, levels: Records = (), height: int = 24) -> dict[str, Any]:
    """A bar a `name`, of `mean` with an error from `low` to `high`; a line across for each of `levels`, of `name` and
    `mean`."""
    where = _axis("name", "", "nominal", sort=None, axis={"labelLimit": 220})
    tip = _shown({"name": "", "mean": value, "low": "less a deviation", "high": "and one more"})
    layers: list[dict[str, Any]] = [
        {
            "mark": {"type": "bar", "height": {"band": 0.7}, "color": "#0072b2"},
            "encoding": {"x": _axis("mean", value), "tooltip": tip},
        },
        {
            "mark": {"type": "rule", "strokeWidth": 2},
            "encoding": {"x": _axis("low", value), "x2": {"field": "high"}, "tooltip": tip},
        },
    ]
    for layer in layers:
        layer["encoding"]["y"] = where
    chart = _chart(data, layers, height=height * max(len(data), 1))
    if levels:
        given = {"values": [_plain(level) for level in levels]}
        rule = {"type": "rule", "strokeDash": [5, 4], "strokeWidth": 2}
        names = [level["name"] for level in levels]
        colours = {"domain": names, "range": ["#8a8a8a", "#d55e00"][-len(names) :]}
        of = {"x": _axis("mean", value), "color": _axis("name", "", "nominal", scale=colours)}
        chart["layer"].append(
            {"data": given, "mark": rule, "encoding": {**of, "tooltip": _shown({"name": "", "mean": value})}}
        )
    return chart


def grouped(data: Records, *, value: str, order: Sequence[str] = ()) -> dict[str, Any]:
    """For each `part`, in the `order` that is said, a bar a `name`, of `mean` with an error from `low` to `high`."""
    place = {"x": _axis("part", "", "nominal", sort=list(order) or None, axis={"labelAngle": 0})}
    place["xOffset"] = {"field": "name", "sort": None}
    tip = _shown({"part": "", "name": "", "mean": value, "low": "less a deviation", "high": "and one more"})
    colour = _axis("name", "", "nominal", sort=None)
    bar = {"mark": "bar", "encoding": {**place, "y": _axis("mean", value), "color": colour, "tooltip": tip}}
    error = {"mark": "rule", "encoding": {**place, "y": _axis("low", value), "y2": {"field": "high"}}}
    return _chart(data, [bar, error])


def lines(
    data: Records,
    *,
    x: str,
    y: str,
    log: bool = False,
    points: bool = True,
    joined: bool = True,
    reference: float | None = None,
) -> dict[str, Any]:
    """A line a `name` through (`x`, `mean`), with a band from `low` to `high`.

    Args:
      x, y: titles of the axes, with units.
      log: whether the first is logarithmic.
      points: whether each figure has a mark.
      joined: whether there are lines at all; without, there is no band.
      reference: a height that is marked.
    """
    scale_x = {"type": "log"} if log else {"zero": min(record["x"] for record in data) == 0}
    marks = {} if log else {"tickMinStep": 1 if x == "epoch" else 0}
    across = _axis("x", x, scale={**scale_x, "nice": False, "padding": 12}, axis=marks)
    colour = _axis(
        "name", "", "nominal", sort=None, legend={"symbolOpacity": 1, "symbolType": "stroke" if joined else "circle"}
    )
    tip = [
        {"field": "name", "title": ""},
        {"field": "x", "title": x},
        *_shown({"mean": y, "low": "less a deviation", "high": "and one more"}),
    ]
    if any("what" in record for record in data):
        tip.insert(1, {"field": "what", "title": "what"})
    scale = {"zero": False}
    layers: list[dict[str, Any]] = []
    if joined and len({record["name"] for record in data}) <= MOST_BANDS:
        of_band = {
            "x": across,
            "y": _axis("low", y, scale=scale),
            "y2": {"field": "high"},
            "color": colour,
        }
        layers.append({"mark": {"type": "area", "opacity": 0.18}, "encoding": of_band})
    of_line = {"x": across, "y": _axis("mean", y, scale=scale), "color": colour}
    if joined:
        layers.append({"mark": {"type": "line", "strokeWidth": 2}, "encoding": of_line})
    size = 55 if points else 120
    seen = {"type": "point", "filled": True, "size": size, "opacity": 1 if points else 0}
    layers.append({"mark": seen, "encoding": {**of_line, "tooltip": tip}})
    if reference is not None:
        rule = {"mark": {"type": "rule", "strokeDash": [5, 4]}, "encoding": {"y": {"datum": reference}}}
        layers.append(rule)
    return _chart(data, layers)


def scatter(data: Records, *, x: str, y: str, facet: str | None = None) -> dict[str, Any]:
    """Points (`x`, `y`), coloured by `group`; side by side for each value of `facet`, each on axes of its own."""
    encoding: dict[str, Any] = {
        "x": _axis("x", x, axis={"ticks": False, "labels": False, "grid": False}, scale={"zero": False}),
        "y": _axis("y", y, axis={"ticks": False, "labels": False, "grid": False}, scale={"zero": False}),
        "color": _axis("group", "", "nominal", legend=None),
        "tooltip": [{"field": name} for name in ("name", "group") if any(name in record for record in data)],
    }
    mark = {"type": "point", "filled": True, "size": 14, "opacity": 0.7}
    values = {"values": [_plain(record) for record in data]}
    if facet is None:
        return {"data": values, "width": WIDTH, "height": HEIGHT, "mark": mark, "encoding": encoding}
    return _side_by_side(
        values, facet, {"mark": mark, "encoding": encoding, "width": 230, "height": 230}, "independent"
    )


def heat(matrices: Mapping[str, np.ndarray], *, value: str, of: str) -> dict[str, Any]:
    """Square matrices side by side, one scale of colours; `of` is what rows and columns are."""
    data = [
        {"matrix": name, "row": i, "column": j, "value": round(float(x), 4)}
        for name, matrix in matrices.items()
        for (i, j), x in np.ndenumerate(matrix)
    ]
    axis = {"axis": {"labels": False, "ticks": False, "domain": False}}
    encoding = {
        "x": _axis("column", of, "ordinal", **axis),
        "y": _axis("row", of, "ordinal", **axis),
        "color": _axis("value", value, legend={"orient": "bottom", "gradientLength": 200}),
        "tooltip": [{"field": "row"}, {"field": "column"}, *_shown({"value": value})],
    }
    spec = {"mark": "rect", "encoding": encoding, "width": 230, "height": 230}
    return _side_by_side({"values": data}, "matrix", spec, "shared")


def _side_by_side(values: dict[str, Any], facet: str, spec: dict[str, Any], scales: str) -> dict[str, Any]:
    order = list(dict.fromkeys(record[facet] for record in values["values"]))
    return {
        "data": values,
        "facet": {"field": facet, "type": "nominal", "title": None, "sort": order},
        "columns": 3,
        "spec": spec,
        "resolve": {"scale": {"x": scales, "y": scales}},
    }
