"""The files of a study's report: Markdown; CSV and LaTeX of each table, SVG and PDF of each chart; a page with all."""

import datetime
import os
import platform
import re
from pathlib import Path

import jax

import htd_jax
from htd_jax.data import Dataset, fingerprint
from htd_jax.errors import UserError, shown
from htd_jax.escaping import markdown
from htd_jax.studies.report import Report, can_draw, page, pdf, png, svg
from htd_jax.studies.tables import write_table
from htd_jax.writing import whole


def about(command: str, dataset: Dataset, **more: str) -> dict[str, str]:
    """Returns facts about the making of a report: the command, data, versions and machine."""
    device, split = jax.devices()[0], dataset.split
    parts = ", ".join(f"{len(part):,} in {name}" for name, part in zip(split._fields, split))
    sizes = f"{split.train.num_users:,} users, {split.train.num_items:,} items, {parts}"
    machine = f"{device.device_kind or device.platform}, {os.cpu_count()} cores, {platform.system()}"
    return {
        "command": command,
        "data": f"{dataset.name}: {sizes}; fingerprint {fingerprint(dataset)}",
        "versions": f"htd_jax {htd_jax.__version__}, jax {jax.__version__}, Python {platform.python_version()}",
        "machine": f"{machine} {platform.machine()}",
        "made": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        **more,
    }


def check_report(folder: Path, name: str, data: str) -> None:
    """Raises UserError if the folder holds a report of that name on data of another fingerprint."""
    path = folder / f"{name}.md"
    try:
        found = re.search(r"^- data: .*fingerprint (\w+)$", path.read_text("utf-8"), re.M)
    except (OSError, ValueError):
        return
    if found and found[1] != data:
        raise UserError(f"{shown(path)}: is a report on other data; set `runs` to another folder, or delete this one")


def write_report(folder: Path, report: Report) -> Path:
    """Writes a report, and returns the file to open first: the page, or the Markdown if charts cannot be drawn."""
    text = f"# {report.title}\n\n{report.markdown()}\n" + "\n".join(
        f"- {k}: {markdown(v)}" for k, v in report.foot.items()
    )
    _write(folder / f"{report.name}.md", text + "\n")
    for table in report.tables:
        name = report.name if table.name == report.name else f"{report.name}-{table.name}"
        for ending in (".csv", ".tex"):
            write_table(folder / f"{name}{ending}", table)
    if not can_draw():
        print("note: no page and no charts; they need vl-convert: pip install vl-convert-python")
        return folder / f"{report.name}.md"
    for chart in report.charts:
        _write(folder / f"{report.name}-{chart.name}.svg", svg(chart))
        _write(folder / f"{report.name}-{chart.name}.pdf", pdf(chart))
    if charts := [chart for chart in report.charts if chart.name in report.picture]:
        _write(folder / f"{report.name}.png", png(charts))
    _write(folder / f"{report.name}.html", page(report))
    return folder / f"{report.name}.html"


def _write(path: Path, content: str | bytes) -> None:
    with whole(path) as partial:
        partial.write_bytes(content if isinstance(content, bytes) else content.encode())
