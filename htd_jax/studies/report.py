"""Reports of studies: a question, an answer, tables and charts, as Markdown, CSV, images, and a self-contained page."""

import dataclasses
import html
import importlib.resources
import importlib.util
import json
import statistics
import string
from collections.abc import Mapping, Sequence
from typing import Any

from htd_jax.studies.tables import Table

# The version of Vega-Lite in which charts are written, see vl_convert.
VEGA_LITE = "6.4"

# The answer of a study none of whose runs has ended.
UNFINISHED = "No run has finished."


def mean_and_band(values: Sequence[float]) -> dict[str, float]:
    """Returns the `mean` of values, and the ends `low` and `high` of one standard deviation around it, for a chart."""
    mean = statistics.mean(values)
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": mean, "low": mean - deviation, "high": mean + deviation}


@dataclasses.dataclass(frozen=True)
class Chart:
    """A chart: the `name` of its file, its title, its `spec` in Vega-Lite, data included, and a `note` under it."""

    name: str
    title: str
    spec: Mapping[str, Any]
    note: str = ""


Part = Table | Chart | str


@dataclasses.dataclass(frozen=True)
class Report:
    """A report.

    Attributes:
      name: the study's name, with which all its files begin.
      title, question, answer: its head.
      parts: tables, charts and paragraphs, in order.
      foot: facts about its making, by name.
      picture: the names of the charts in `<name>.png`.
    """

    name: str
    title: str
    question: str
    answer: str
    parts: Sequence[Part]
    foot: Mapping[str, str] = dataclasses.field(default_factory=dict)
    picture: tuple[str, ...] = ()

    @property
    def tables(self) -> list[Table]:
        return [part for part in self.parts if isinstance(part, Table)]

    @property
    def charts(self) -> list[Chart]:
        return [part for part in self.parts if isinstance(part, Chart)]

    def markdown(self) -> str:
        """Returns the report as Markdown, without charts."""
        shown = [
            part if isinstance(part, str) else f"**{part.title}**\n\n{part.markdown()}"
            for part in self.parts
            if not isinstance(part, Chart)
        ]
        return "\n\n".join([f"{self.question}\n\n{self.answer}", *(text.rstrip("\n") for text in shown)]) + "\n"


def can_draw() -> bool:
    """Returns whether `vl_convert`, which draws charts, is installed; it is optional."""
    return importlib.util.find_spec("vl_convert") is not None


def svg(chart: Chart) -> str:
    """Returns a chart as an SVG image on white."""
    import vl_convert

    image: str = vl_convert.vegalite_to_svg(_sized(chart.spec, 640), vl_version=VEGA_LITE, config=_on_paper())
    return image


def pdf(chart: Chart) -> bytes:
    """Returns a chart as a page of PDF on white."""
    import vl_convert

    image: bytes = vl_convert.vegalite_to_pdf(_sized(chart.spec, 640), vl_version=VEGA_LITE, config=_on_paper())
    return image


def png(charts: Sequence[Chart]) -> bytes:
    """Returns charts side by side as a PNG image on white."""
    import vl_convert

    panels = [{k: x for k, x in _sized(chart.spec, 380).items() if k != "autosize"} for chart in charts]
    titled = [{**panel, "title": chart.title} for panel, chart in zip(panels, charts)]
    spec = {"hconcat": titled, "resolve": {"scale": {"x": "independent"}}}
    image: bytes = vl_convert.vegalite_to_png(spec, vl_version=VEGA_LITE, config=_on_paper(), scale=2)
    return image


def page(report: Report) -> str:
    """Returns the report as one HTML file that loads nothing from elsewhere."""
    import vl_convert

    template = string.Template(importlib.resources.files(__package__).joinpath("report.html").read_text("utf-8"))
    specs = {chart.name: chart.spec for chart in report.charts}
    # "</" and "<!--" would end the script, or its end.
    as_script = lambda value: json.dumps(value, allow_nan=False).replace("<", "\\u003c")
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
    cells = lambda row, tag: "".join(
        f"<{tag}{' class=figure' if right else ''}>{html.escape(str(cell))}</{tag}>"
        for cell, right in zip(row, part.numeric)
    )
    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in part.rows)
    head = f"<thead><tr>{cells(part.head, 'th')}</tr></thead>"
    table = f"<div class=scroll tabindex=0><table>{head}<tbody>{body}</tbody></table></div>"
    return f"<h2>{html.escape(part.title)}</h2>{table}{note}"


def _sized(spec: Mapping[str, Any], width: int) -> dict[str, Any]:
    """Returns a chart with a width of its own in place of the page's."""
    return {**spec, "width": width} if spec.get("width") == "container" else dict(spec)


def _on_paper() -> dict[str, Any]:
    return {**theme(dark=False), "background": "#ffffff"}


# Colours on white, with a contrast of at least 3 to 1: first those of Okabe and Ito's eight that have it, which the
# colour-blind can tell apart (https://jfly.uni-koeln.de/color/), then others that are far from these in OKLab.
PALETTE = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000", "#a58f12", "#9322fb", "#8d0576"),
    *("#006f00", "#ac0023", "#6e95b0", "#5f5129", "#ef33e7", "#877deb", "#265b68", "#a57b68"),
    *("#f00580", "#5839a1", "#b04cbe", "#7d6080", "#2b10e9", "#bb4271", "#2467f2", "#f91100"),
)

# The same hues on a dark page, light enough for as much contrast.
ON_DARK = (
    *("#2d8acc", "#d86109", "#009e73", "#cc79a7", "#e8e6e3", "#a58f12", "#a45ffe", "#d055b4"),
    *("#3b9736", "#e94f54", "#6e95b0", "#94855c", "#ef33e7", "#877deb", "#588d9b", "#a57b68"),
    *("#fb2189", "#b8a0ff", "#c05cce", "#987a9b", "#9aaeff", "#d75b89", "#4481fc", "#ff3726"),
)


def theme(*, dark: bool) -> dict[str, Any]:
    """Returns the colours and fonts of charts."""
    ink, faint, grid = ("#e8e6e3", "#a8a5a0", "#3a3c40") if dark else ("#1c1d1f", "#5c5f63", "#e2e2df")
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
        "range": {
            "category": list(ON_DARK if dark else PALETTE),
            "heatmap": {"scheme": "cividis"},
            "ramp": {"scheme": "cividis"},
        },
    }
