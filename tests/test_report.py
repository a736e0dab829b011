"""Reports: what stands in tables is what was found, and the page opens in a browser without a network."""

import csv
import dataclasses
import io
import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from htd_jax.studies import Chart, Report, Table, Values, charts
from htd_jax.studies.report import page, svg, theme

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

TABLE = Table(
    "figures",
    "Figures <of> all",
    ("", "recall@50", "s/epoch"),
    (
        ("a | b", Values((0.25, 0.27)), "1.5"),
        ("</script>", Values((0.125,), mark=" (a)"), ""),
        ("none", Values(()), ""),
    ),
    "(a) noted",
)


def of_charts():
    seeds = [
        {"name": name, "x": x, "mean": x / 10, "low": x / 10 - 0.1, "high": x / 10 + 0.1}
        for name in "ab"
        for x in (1, 2, 5)
    ]
    points = [{"x": x, "y": -x, "group": f"g{x % 2}", "where": "</script>"} for x in range(6)]
    return [
        Chart("bars", "Bars", charts.bars(seeds[:3], value="recall", levels=[{"name": "teacher", "mean": 0.4}])),
        Chart("lines", "Lines", charts.lines(seeds, x="bytes", y="recall", log=True, reference=0.3), "a note"),
        Chart("marks", "Marks", charts.lines(seeds, x="ms", y="recall", joined=False)),
        Chart("map", "A map", charts.scatter(points, x="first", y="second", facet="where")),
        Chart(
            "heat", "Heat", charts.heat({"teacher": np.eye(4), "student": np.ones((4, 4))}, value="cosine", of="group")
        ),
    ]


@pytest.fixture(scope="module")
def report():
    parts = ["A paragraph & more.", *of_charts(), TABLE]
    return Report(
        "trial", "A trial", "Does it <work>?", "It does.", parts, {"command": "study.py trial", "data": "x" * 300}
    )


def cells_of(text):
    """The cells of a `tabular`, if every brace, environment and mathematics in it ends, and every row is as long."""
    plain = text.replace(r"\{", "").replace(r"\}", "")
    lines = [line for line in plain.splitlines() if not line.startswith("%")]
    assert lines[0].startswith(r"\begin{tabular}") and lines[-1] == r"\end{tabular}"
    assert [line for line in lines if "rule" in line] == [r"\toprule", r"\midrule", r"\bottomrule"]
    rows = [line.removesuffix(r" \\") for line in lines[1:-1] if line.endswith(r"\\")]
    unescaped = lambda row, sign: len(re.findall(rf"(?<!\\){re.escape(sign)}", row))
    for row in rows:
        assert unescaped(row, "{") == unescaped(row, "}") and unescaped(row, "$") % 2 == 0
        assert not any(unescaped(row, sign) for sign in "#%_")
        assert unescaped(row, "&") == unescaped(rows[0], "&")
    return [row.split(" & ") for row in rows]


def test_a_table_is_latex_whatever_stands_in_it():
    strange = ("a_b & 50% \\input{x} #1 $y$ ~^", Values((-0.25,)), "{")
    table = dataclasses.replace(TABLE, rows=(*TABLE.rows, strange), best=frozenset({(0, 1)}), note="a\nb")
    found = cells_of(table.latex())
    assert [row[1] for row in found] == ["recall@50", r"\textbf{0.2600 $\pm$ 0.0141}", "0.1250 (a)", "", "$-$0.2500"]
    assert r"\begin{tabular}{lrl}" in table.latex() and r"\input" not in table.latex()


@pytest.mark.parametrize("dark", [False, True])
def test_colours_differ_and_none_is_pale(dark):
    colours = theme(dark=dark)["range"]["category"]
    linear = lambda x: x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4
    parts = lambda colour: [linear(int(colour[i : i + 2], 16) / 255) for i in (1, 3, 5)]
    luminance = lambda colour: float(np.dot([0.2126, 0.7152, 0.0722], parts(colour))) + 0.05
    page = luminance("#1c1d1f" if dark else "#ffffff")
    assert len(set(colours)) == 24
    assert min(max(page, luminance(x)) / min(page, luminance(x)) for x in colours) >= 3


def test_many_lines_are_told_apart():
    data = [{"name": f"m{i}", "x": x, "mean": x * i, "low": 0, "high": 1} for i in range(20) for x in range(3 + i % 5)]
    line = next(x for x in charts.lines(data, x="epoch", y="recall", points=False)["layer"] if "strokeDash" in str(x))
    names, dashes = line["encoding"]["strokeDash"]["scale"].values()
    last = {record["name"]: record["mean"] for record in data}
    assert names == line["encoding"]["color"]["scale"]["domain"] == sorted(last, key=lambda name: -last[name])
    assert dashes[0] == [1, 0] != dashes[8] != dashes[16]


def test_a_table_says_the_same_in_all_forms():
    rows = list(csv.reader(io.StringIO(TABLE.csv())))
    assert rows[0] == ["", "recall@50", "recall@50 sd", "s/epoch"]
    assert [float(x) for x in rows[1][1:3]] == pytest.approx([0.26, np.std([0.25, 0.27], ddof=1)], rel=1e-5)
    assert rows[2][1:] == ["0.125", "", ""] and rows[3][1:] == ["", "", ""]
    lines = TABLE.markdown().splitlines()
    assert lines[2] == "| a \\| b | 0.2600 ± 0.0141 | 1.5 |" and "0.1250 (a)" in lines[3] and lines[-1] == "(a) noted"


def test_markdown_has_question_answer_and_tables(report):
    text = report.markdown()
    assert text.startswith("Does it <work>?\n\nIt does.\n\nA paragraph & more.\n\n**Figures <of> all**\n\n| ")
    assert "Bars" not in text


def test_every_chart_is_drawn_on_paper():
    for chart in of_charts():
        drawn = svg(chart)
        assert drawn.startswith("<svg") and "NaN" not in drawn
    assert len({json.dumps(theme(dark=dark)) for dark in (True, False)}) == 2


def test_a_page_fetches_nothing_and_escapes_what_it_is_told(report):
    text = page(report)
    own = text[: text.index("<script")]  # the libraries' scripts name the addresses of schemas
    assert not re.search(r"(src|href)=(?![\"']?data:)|@import|url\(", own)
    assert "Does it &lt;work&gt;?" in own and "&lt;/script&gt;" in own and "Figures &lt;of&gt; all" in own
    assert text.count("</script>") == 2  # none of ours ends one
    for chart in report.charts:
        assert f'id="chart-{chart.name}"' in own


@pytest.mark.skipif(BROWSER is None, reason="no browser here")
@pytest.mark.parametrize("width", [390, 1200])
def test_a_page_opens_in_a_browser(report, width, tmp_path):
    """No error in its console, every chart drawn, nothing wider than the window."""
    watch = """<script>const errors = []; addEventListener("error", e => errors.push(e.message));
    addEventListener("unhandledrejection", e => errors.push(String(e.reason)));
    for (const kind of ["error", "warn"]) console[kind] = (...x) => errors.push(x.join(" "));
    setTimeout(() => {
      const all = document.documentElement, charts = document.querySelectorAll(".chart svg").length;
      document.title = JSON.stringify({errors, drawn: all.dataset.drawn, charts, over: all.scrollWidth - innerWidth});
    }, 5000);</script>"""
    path = tmp_path / "trial.html"
    path.write_text(page(report).replace("<head>", "<head>" + watch, 1))
    command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'browser'}"]
    command += [f"--window-size={width},900", "--virtual-time-budget=20000", "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    told = json.loads(re.search(r"<title>(.*?)</title>", done.stdout, re.S).group(1).replace("&amp;", "&"))
    assert told.pop("over") <= 0
    assert told == {"errors": [], "drawn": "yes", "charts": len(report.charts)}
