"""What a study says: a question, an answer, tables, charts; as Markdown, CSV, and one page that needs no network."""

import csv
import dataclasses
import html
import importlib.resources
import importlib.util
import io
import json
import re
import statistics
import string
from collections.abc import Mapping, Sequence
from typing import Any

from htd_jax.studies.spread import spread

# Of the charts' language, see vl_convert.
VEGA_LITE = "6.4"


@dataclasses.dataclass(frozen=True)
class Values:
    """A figure of several seeds: shown as mean ± sample standard deviation."""

    values: tuple[float, ...]
    form: str = ".4f"
    mark: str = ""

    def __str__(self) -> str:
        return spread(self.values, self.form) + self.mark


Cell = str | Values


@dataclasses.dataclass(frozen=True)
class Table:
    """Attributes: `name`, of its file; `head`, and `rows` of as many cells; `note`, under it."""

    name: str
    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""

    def markdown(self) -> str:
        line = lambda cells: "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"
        text = "\n".join([line(self.head), "|---" * len(self.head) + "|", *map(line, self.rows)])
        return text + (f"\n\n{self.note}" if self.note else "") + "\n"

    def csv(self) -> str:
        """A column of means and one of deviations where there are several seeds; numbers in full."""
        several = [any(isinstance(row[n], Values) for row in self.rows) for n in range(len(self.head))]
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([x for name, two in zip(self.head, several) for x in ([name, f"{name} sd"] if two else [name])])
        for row in self.rows:
            writer.writerow([x for cell, two in zip(row, several) for x in (_numbers(cell) if two else [cell])])
        return out.getvalue()


def _numbers(cell: Cell) -> list[str]:
    if isinstance(cell, str):
        return [cell, ""]
    if not cell.values:
        return ["", ""]
    deviation = f"{statistics.stdev(cell.values):.6g}" if len(cell.values) > 1 else ""
    return [f"{statistics.mean(cell.values):.6g}", deviation]


@dataclasses.dataclass(frozen=True)
class Chart:
    """Attributes: `name`, of its file; `spec`, Vega-Lite, its data within; `note`, under it."""

    name: str
    title: str
    spec: Mapping[str, Any]
    note: str = ""


Part = Table | Chart | str


@dataclasses.dataclass(frozen=True)
class Report:
    """Attributes: `name` of the study; `parts` in their order, strings are paragraphs; `foot`, of what it was made."""

    name: str
    title: str
    question: str
    answer: str
    parts: Sequence[Part]
    foot: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def tables(self) -> list[Table]:
        return [part for part in self.parts if isinstance(part, Table)]

    @property
    def charts(self) -> list[Chart]:
        return [part for part in self.parts if isinstance(part, Chart)]

    def markdown(self) -> str:
        """Without the charts."""
        shown = [
            part if isinstance(part, str) else f"**{part.title}**\n\n{part.markdown()}"
            for part in self.parts
            if not isinstance(part, Chart)
        ]
        return "\n\n".join([f"{self.question}\n\n{self.answer}", *(text.rstrip("\n") for text in shown)]) + "\n"


def can_draw() -> bool:
    """Whether the library that draws is there; it is no part of a plain installation."""
    return importlib.util.find_spec("vl_convert") is not None


def svg(chart: Chart) -> str:
    """The chart as a picture, for paper."""
    import vl_convert

    on_paper = {**theme(dark=False), "background": "#ffffff"}
    drawn: str = vl_convert.vegalite_to_svg(_sized(chart.spec, 640), vl_version=VEGA_LITE, config=on_paper)
    return drawn


def page(report: Report) -> str:
    """The report as one HTML file: nothing is fetched."""
    import vl_convert

    template = string.Template(importlib.resources.files(__package__).joinpath("report.html").read_text())
    specs = {chart.name: chart.spec for chart in report.charts}
    # In a script, "</" would end it.
    as_script = lambda value: json.dumps(value, allow_nan=False).replace("</", "<\\/")
    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=VEGA_LITE)
    return template.substitute(
        title=html.escape(report.title),
        question=html.escape(report.question),
        answer=html.escape(report.answer),
        body="\n".join(map(_part, report.parts)),
        foot="\n".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in report.foot.items()),
        specs=as_script(specs),
        themes=as_script({"light": theme(dark=False), "dark": theme(dark=True)}),
        bundle=bundle.replace("</script", "<\\/script"),
    )


def _part(part: Part) -> str:
    if isinstance(part, str):
        return f"<p>{html.escape(part)}</p>"
    note = f"<p class=note>{html.escape(part.note)}</p>" if part.note else ""
    if isinstance(part, Chart):
        name = html.escape(part.name)
        head = f"<figcaption>{html.escape(part.title)}</figcaption>"
        return f'<figure>{head}<div class=chart id="chart-{name}"></div>{note}</figure>'
    numeric = [
        all(not isinstance(row[n], str) or _is_figure(row[n]) for row in part.rows) for n in range(len(part.head))
    ]
    cells = lambda row, tag: "".join(
        f"<{tag}{' class=figure' if right else ''}>{html.escape(str(cell))}</{tag}>"
        for cell, right in zip(row, numeric)
    )
    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in part.rows)
    head = f"<thead><tr>{cells(part.head, 'th')}</tr></thead>"
    table = f"<div class=scroll tabindex=0><table>{head}<tbody>{body}</tbody></table></div>"
    return f"<h2>{html.escape(part.title)}</h2>{table}{note}"


def _is_figure(cell: Cell) -> bool:
    return re.fullmatch(r"[-+<]*[\d.,]*(e-?\d+)?%?", str(cell)) is not None


def _sized(spec: Mapping[str, Any], width: int) -> dict[str, Any]:
    """With a width in place of the page's."""
    return {**spec, "width": width} if spec.get("width") == "container" else dict(spec)


# Okabe and Ito's eight colours, which are told apart by everyone; https://jfly.uni-koeln.de/color/.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#f0e442")


def theme(*, dark: bool) -> dict[str, Any]:
    """Colours and type of the charts."""
    ink, faint, grid = ("#e8e6e3", "#a8a5a0", "#3a3c40") if dark else ("#1c1d1f", "#5c5f63", "#e2e2df")
    colours = [ink if colour == "#000000" else colour for colour in PALETTE]
    axis = {"labelColor": faint, "titleColor": ink, "gridColor": grid, "domainColor": faint, "tickColor": faint}
    return {
        "background": "transparent",
        "font": "system-ui, sans-serif",
        "view": {"stroke": None},
        "axis": {**axis, "labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal", "labelOverlap": True},
        "legend": {
            "labelColor": ink,
            "titleColor": ink,
            "labelFontSize": 12,
            "orient": "top",
            "title": None,
            "columns": 4,
        },
        "header": {"labelColor": ink, "titleColor": ink, "labelFontSize": 13},
        "title": {"color": ink},
        "text": {"color": ink},
        "rule": {"color": faint},
        "range": {"category": colours, "heatmap": {"scheme": "cividis"}, "ramp": {"scheme": "cividis"}},
    }


def of_seeds(values: Sequence[float]) -> dict[str, float]:
    """Mean, and where its band ends, for a chart."""
    mean = statistics.mean(values)
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": mean, "low": mean - deviation, "high": mean + deviation}
