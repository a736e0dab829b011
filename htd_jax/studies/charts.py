"""Charts of studies in Vega-Lite, with units on their axes and figures in tooltips."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Records = Sequence[Mapping[str, Any]]

WIDTH, HEIGHT = "container", 320

# The largest number of lines that are drawn with bands.
MOST_BANDS = 4

# More lines than these have a legend beside the chart, in the order of their last values, and dashes besides colours.
FEW_LINES = 8
DASHES = ([1, 0], [7, 3], [2, 2])


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


def _tooltip(fields: Mapping[str, str]) -> list[dict[str, Any]]:
    """Returns a tooltip of fields by title; figures have four digits."""
    return [
        {"field": field, "title": title, **({"format": ".4f"} if field in ("mean", "low", "high", "value") else {})}
        for field, title in fields.items()
    ]


def bars(data: Records, *, value: str, levels: Records = (), height: int = 24) -> dict[str, Any]:
    """Returns a bar chart.

    Args:
      data: a record per bar: `name`, `mean`, and an error bar from `low` to `high`.
      value: the title of the axis.
      levels: records `name`, `mean` of dashed lines across.
      height: the height of a bar in pixels.
    """
    where = _axis("name", "", "nominal", sort=None, axis={"labelLimit": 220})
    tip = _tooltip({"name": "", "mean": value, "low": "mean - sd", "high": "mean + sd"})
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
        level = {"x": _axis("mean", value), "color": _axis("name", "", "nominal", scale=colours)}
        chart["layer"].append(
            {"data": given, "mark": rule, "encoding": {**level, "tooltip": _tooltip({"name": "", "mean": value})}}
        )
    return chart


def grouped(data: Records, *, value: str, order: Sequence[str] = ()) -> dict[str, Any]:
    """Returns a bar chart, see `bars`, whose records are grouped by `part`, in the given order."""
    place = {"x": _axis("part", "", "nominal", sort=list(order) or None, axis={"labelAngle": 0})}
    place["xOffset"] = {"field": "name", "sort": None}
    tip = _tooltip({"part": "", "name": "", "mean": value, "low": "mean - sd", "high": "mean + sd"})
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
    """Returns a line chart.

    Args:
      data: a record per point: the `name` of its line, `x`, `mean`, and a band from `low` to `high`.
      x, y: the titles of the axes, with units.
      log: whether the x axis is logarithmic.
      points: whether points are marked.
      joined: whether lines and bands are drawn.
      reference: the height of a dashed line across.
    """
    scale_x = {"type": "log"} if log else {"zero": min(record["x"] for record in data) == 0}
    marks = {} if log else {"tickMinStep": 1 if x in ("epoch", "block") else 0}
    across = _axis("x", x, scale={**scale_x, "nice": False, "padding": 12}, axis=marks)
    legend: dict[str, Any] = {"symbolOpacity": 1, "symbolType": "stroke" if joined else "circle"}
    names: list[str] | None = None
    last = {record["name"]: record["mean"] for record in sorted(data, key=lambda record: record["x"])}
    if len(last) > FEW_LINES:
        names = sorted(last, key=lambda name: -last[name])
        legend |= {"orient": "right", "columns": 1, "symbolLimit": len(last), "symbolSize": 300, "labelLimit": 220}
    colour = _axis("name", "", "nominal", legend=legend, **({"scale": {"domain": names}} if names else {"sort": None}))
    tip = [
        {"field": "name", "title": ""},
        {"field": "x", "title": x},
        *_tooltip({"mean": y, "low": "mean - sd", "high": "mean + sd"}),
    ]
    if any("what" in record for record in data):
        tip.insert(1, {"field": "what", "title": "what"})
    scale = {"zero": False}
    layers: list[dict[str, Any]] = []
    if joined and len({record["name"] for record in data}) <= MOST_BANDS:
        band = {
            "x": across,
            "y": _axis("low", y, scale=scale),
            "y2": {"field": "high"},
            "color": colour,
        }
        layers.append({"mark": {"type": "area", "opacity": 0.18}, "encoding": band})
    line = {"x": across, "y": _axis("mean", y, scale=scale), "color": colour}
    if names:
        dashes = {"domain": names, "range": [DASHES[i // FEW_LINES % len(DASHES)] for i in range(len(names))]}
        line["strokeDash"] = _axis("name", "", "nominal", scale=dashes, legend=legend)
    if joined:
        layers.append({"mark": {"type": "line", "strokeWidth": 2}, "encoding": line})
    size = 55 if points else 120
    seen = {"type": "point", "filled": True, "size": size, "opacity": 1 if points else 0}
    layers.append({"mark": seen, "encoding": {**line, "tooltip": tip}})
    if reference is not None:
        rule = {"mark": {"type": "rule", "strokeDash": [5, 4]}, "encoding": {"y": {"datum": reference}}}
        layers.append(rule)
    return _chart(data, layers, height=max(HEIGHT, 19 * len(names or [])))


def scatter(data: Records, *, x: str, y: str, facet: str | None = None) -> dict[str, Any]:
    """Returns points (`x`, `y`) coloured by `group`, in a panel with its own axes per value of `facet`."""
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
    """Returns square matrices side by side on one scale of colours; `of` says what rows and columns are. Entries that
    are not finite are left out."""
    data = [
        {"matrix": name, "row": i, "column": j, "value": round(float(x), 4)}
        for name, matrix in matrices.items()
        for (i, j), x in np.ndenumerate(matrix)
        if np.isfinite(x)
    ]
    axis = {"axis": {"labels": False, "ticks": False, "domain": False}}
    encoding = {
        "x": _axis("column", of, "ordinal", **axis),
        "y": _axis("row", of, "ordinal", **axis),
        "color": _axis("value", value, legend={"orient": "bottom", "gradientLength": 200}),
        "tooltip": [{"field": "row"}, {"field": "column"}, *_tooltip({"value": value})],
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
