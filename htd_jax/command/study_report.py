"""What a study leaves: Markdown, a table of numbers a table, a picture a chart, and one page that has them all."""

import datetime
import os
import platform
import re
from pathlib import Path

import jax

import htd_jax
from htd_jax.data import Dataset, fingerprint
from htd_jax.errors import UserError, shown
from htd_jax.studies import Plan, Report
from htd_jax.studies.report import can_draw, page, svg
from htd_jax.writing import whole


def foot(plan: Plan, command: str, dataset: Dataset) -> dict[str, str]:
    """What a report was made of: the command, versions, data and machine."""
    return about(command, dataset) | {
        "seeds": ", ".join(map(str, plan.seeds)),
        "dimensions": f"{plan.config.filled().what.teacher_dim} to {', '.join(map(str, plan.student_dims))}",
    }


def about(command: str, dataset: Dataset) -> dict[str, str]:
    """The same, of any study."""
    device, split = jax.devices()[0], dataset.split
    sizes = ", ".join(f"{len(part):,} in {name}" for name, part in zip(split._fields, split))
    people = f"{split.train.num_users:,} users, {split.train.num_items:,} items"
    machine = f"{device.device_kind or device.platform}, {os.cpu_count()} cores, {platform.system()}"
    return {
        "command": command,
        "data": f"{dataset.name}: {people}, {sizes}; fingerprint {fingerprint(dataset)}",
        "versions": f"htd_jax {htd_jax.__version__}, jax {jax.__version__}, Python {platform.python_version()}",
        "machine": f"{machine} {platform.machine()}",
        "made": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
    }


def check_report(folder: Path, name: str, data: str) -> None:
    """Raises UserError if a report of that name stands there that is of data of another fingerprint."""
    path = folder / f"{name}.md"
    try:
        found = re.search(r"^- data: .*fingerprint (\w+)$", path.read_text(), re.M)
    except OSError:
        return
    if found and found[1] != data:
        raise UserError(f"{shown(path)}: the report of other data; name another folder with --runs, or delete this one")


def write_report(folder: Path, report: Report) -> Path:
    """The report in `folder`, and the path of the one to open first: the page, or without the library that draws the
    Markdown."""
    text = f"# {report.title}\n\n{report.markdown()}\n" + "\n".join(f"- {k}: {v}" for k, v in report.foot.items())
    _write(folder / f"{report.name}.md", text + "\n")
    for table in report.tables:
        name = report.name if table.name == report.name else f"{report.name}-{table.name}"
        _write(folder / f"{name}.csv", table.csv())
    if not can_draw():
        print("note: no page and no charts: pip install 'htd-jax[report]'")
        return folder / f"{report.name}.md"
    for chart in report.charts:
        _write(folder / f"{report.name}-{chart.name}.svg", svg(chart))
    _write(folder / f"{report.name}.html", page(report))
    return folder / f"{report.name}.html"


def _write(path: Path, text: str) -> None:
    with whole(path) as partial:
        partial.write_text(text)
