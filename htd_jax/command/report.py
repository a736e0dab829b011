"""The table and the picture of a run."""

import os
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from htd_jax.errors import as_flags, shown
from htd_jax.escaping import markup
from htd_jax.evaluation import shown_metrics
from htd_jax.ops.codes import row_bytes
from htd_jax.pipeline import STUDENT, TEACHER, RunFolder, RunResult, RunSpec, gap_closed, label
from htd_jax.writing import whole


def outline(spec: RunSpec, *, plain_student: bool = True, until: str | None = None) -> str:
    """Returns what a run trains, a line per phase, after what takes long before their first epochs."""
    phases = [phase for phase in (spec.teacher, spec.student, spec.distilled) if phase]
    phases = [phase for phase in phases if plain_student or phase is not spec.student]
    lines = ["to train, each after a compilation of seconds to minutes:"]
    if spec.choice and spec.choice.budget != 0:
        lines = [as_flags("first, teachers and students are tried in validation; `budget` limits this"), *lines]
    for phase in phases[:1] if until else phases:
        model, epochs = phase.describe_model(), phase.training.epochs
        most = "at most " if phase.early_stopping else ""
        many = f", {most}{epochs} epoch{'s' if epochs > 1 else ''}" if epochs else ""
        lines.append(f"  {label(phase.name)}: {model['name']}, {model['dim']} dimensions{many}")
    return "\n".join(lines)


def teacher_of(results: Mapping[str, Any]) -> str:
    """Returns the teacher of a finished run, from its `results.json`: `ials 200, lambda 0.03`, `given 64`."""
    if chosen := results.get("choice", {}).get(TEACHER):
        return str(chosen["name"])
    model = results["phases"][TEACHER]["settings"]["model"]
    return f"{model['name'] or 'given'} {model['dim'] or ''}".strip()


def print_table(result: RunResult) -> None:
    """Prints the test metrics of each phase, and the share of the gap closed: a row per phase, or a column if the
    terminal is too narrow.

    Every phase is shown at its best epoch in validation: a plain student overfits before the last, so that there a
    distilled one would look better than it is. `results.json` has the last epoch too, as `final`. The title says if
    figures are of a sample of users.
    """
    spec, results = result.spec, result.results
    for line in headlines(result):
        print(line)
    recorded = set.intersection(*(set(entry["best"]["test"]) for entry in results["phases"].values()))
    metrics = shown_metrics(spec.evaluation.cutoffs, recorded)
    figures = lambda record: [f"{record['test'][name]:.4f}" for name in metrics]
    rows = [["", "parameters", "epoch", *metrics]]
    for phase, entry in results["phases"].items():
        best = entry["best"]
        rows.append([label(phase), f"{entry['parameters']:,}", str(best["epoch"]), *figures(best)])
        if "second_model" in best:
            rows.append(["its second model", "", "", *figures(best["second_model"])])
    for dim, entry in results.get("sizes", {}).items():
        rows.append([f"its first {dim} numbers, {entry['row_bytes']} bytes per row", "", "", *figures(entry)])
    size = lambda entry: f"{entry['dim']} x {entry['precision']}"
    sampled = any("sampled" in entry["best"] for entry in results["phases"].values())
    for name, entry in results.get("baselines", {}).items():
        rows.append(
            [f"{name}, {entry['seconds']:.0f} s", size(entry), "", *figures(entry["sample"] if sampled else entry)]
        )
    if closed := gap_closed(results["phases"], results["method"], "best"):
        rows.append(
            ["gap closed", "", "", *("-" if closed[name] is None else f"{closed[name]:.0%}" for name in metrics)]
        )
    console = Console(width=None if os.isatty(1) else 120)
    wide = sum(max(len(row[i]) for row in rows) + 3 for i in range(len(rows[0]))) + 1 <= console.width
    if not wide:
        rows = [list(column) for column in zip(*rows, strict=True)]
    table = Table()
    for number, name in enumerate(rows[0]):
        table.add_column(name, justify="right" if number else "left", no_wrap=wide)
    for number, row in enumerate(rows[1:]):
        table.add_row(*map(markup, row), end_section=wide and bool(closed) and number == len(rows) - 3)
    users = spec.evaluation.eval_users
    of = f" of {users:,} sampled users" if users and sampled else " of all users" if users else ""
    when = f"best epoch in validation {spec.evaluation.metric}" + (f" of {users:,}" if users and not sampled else "")
    title = f"{shown(results['dataset'])}, {results['model']}, seed {results['seed']}: test{of}, {when}"
    print(title)  # that of a table would be wrapped
    console.print(table)
    if sampled:
        print(f"{shown(RunFolder(spec.folder).results)}: all users, at the epoch that is kept")
    if any(entry["seconds"]["whole"] for entry in results["phases"].values()):
        print(whole_time(results["phases"]))


def headlines(result: RunResult) -> list[str]:
    """Returns what a run with a choice gives, a line each: what the student's bytes keep of its teacher, in test; the
    chosen student and its alternatives, if it was chosen; and the trials. None for other runs."""
    choice, phases = result.results.get("choice"), result.results["phases"]
    if not choice:
        return []
    method, cutoffs = result.results["method"], result.spec.evaluation.cutoffs
    model = result.phases[method].settings["model"]
    size = row_bytes(model["dim"], model.get("precision", "float32"))
    teacher, test = (phases[phase]["final"]["test"] for phase in (TEACHER, method))
    names = dict.fromkeys([result.spec.evaluation.metric, f"recall@{cutoffs[-1]}", f"ndcg@{cutoffs[0]}"])
    kept = " and ".join(
        f"{test[name] / teacher[name]:.0%} of the teacher's {name} ({test[name]:.4f} of {teacher[name]:.4f})"
        for name in names
        if teacher.get(name)
    )
    taught = choice[TEACHER]["name"] if TEACHER in choice else "as given"
    lines = [f"{size} bytes per row keep {kept}; teacher: {taught}"]
    if own := choice.get(STUDENT):
        value = own["valid"].get(choice["metric"], 0.0)
        others = sorted(((x, name) for name, x in own["tried"] if name != own["name"]), reverse=True)[:3]
        beside = f" (others: {'; '.join(f'{name} {x:.4f}' for x, name in others)})" if others else ""
        lines.append(f"student: {own['name']}, validation {choice['metric']} {value:.4f}{beside}")
    trials = sum(len(choice[part]["tried"]) for part in (TEACHER, STUDENT) if part in choice)
    table = shown(RunFolder(result.spec.folder).trials.with_suffix(".md"))
    return [*lines, f"choice: {trials} trials in {choice['seconds']:.0f} s, see {table}"]


def whole_time(phases: Mapping[str, Any]) -> str:
    """Returns the whole time of a run, and a line for each phase and its stages: `time: 95 s`, `  teacher 12 s
    (compilation 4, epochs 6, evaluation 2)`, ..."""
    spent = {label(phase): dict(entry["seconds"]) for phase, entry in phases.items()}
    totals = {phase: stages.pop("whole") for phase, stages in spent.items()}
    parts = [f"time: {sum(totals.values()):.0f} s"]
    for phase, stages in spent.items():
        if not totals[phase]:
            continue  # it was given
        longest = ", ".join(f"{stage} {seconds:.0f}" for stage, seconds in stages.items() if seconds >= 0.5)
        parts.append(f"{phase} {totals[phase]:.0f} s" + (f" ({longest})" if longest else ""))
    return "\n  ".join(parts)


def draw_curves(result: RunResult, ending: str = ".png") -> None:
    """Draws test recall at the largest cutoff by epoch, a line per phase, which is level if nothing is trained."""
    path = RunFolder(result.spec.folder).curves.with_suffix(ending)
    save_picture(path, lambda figure: _draw_curves(result, figure), (7, 4.2))


def save_picture(path: Path, draw: Callable[[Any], None], size: tuple[float, float]) -> bool:
    """Saves a matplotlib figure that `draw` fills, as PDF or SVG if the file's ending says so, else as PNG; returns
    whether it worked.

    A failure prints a note and raises nothing, because results do not depend on the picture.
    """
    # Not by pyplot, which needs a window, or the backend that a notebook sets for its processes.
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it makes a folder for its cache
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        with whole(path) as partial:
            ending = path.suffix.lower()
            figure.savefig(partial, dpi=150, format=ending[1:] if ending in (".pdf", ".svg") else "png")
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        print(f"note: {shown(path)} is not drawn ({reason[0]})", file=sys.stderr)
        return False
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    return True


def _draw_curves(result: RunResult, figure: Any) -> None:
    records = result.records
    metric = result.spec.evaluation.drawn
    axes = figure.subplots()
    colours = {TEACHER: "#555555", STUDENT: "#c44e52"}
    last = max(record["epoch"] for phase in records.values() for record in phase)
    labels = []
    for phase, own in records.items():
        epochs = [record["epoch"] for record in own]
        recall = [record["test"][metric] for record in own]
        colour = colours.get(phase, "#1f77b4")
        if not own[0]["terms"]:  # nothing was trained
            epochs, recall = [0, last], recall * 2
        axes.plot(epochs, recall, marker="o", markersize=3.5, linewidth=1.8, color=colour)
        labels.append((recall[-1], epochs[-1], f"{label(phase)}  {recall[-1]:.4f}", colour))
    top = 1.05 * max(record["test"][metric] for own in records.values() for record in own)
    lowest = -top
    for height, epoch, text, colour in sorted(labels):  # in the margin, where no line that ends later crosses them
        lowest = max(height, lowest + 0.05 * top)  # above the previous label
        if epoch < last:
            axes.plot([epoch, last], [height, lowest], color=colour, linewidth=0.8, linestyle=(0, (1, 3)))
        where: Any = {"textcoords": "offset points", "va": "center", "annotation_clip": False}
        axes.annotate(text, (last, lowest), (8, 0), color=colour, **where)
    title = f"{result.results['dataset']}, {result.results['model']}"
    users = result.spec.evaluation.eval_users
    measured = f"test {metric}" + (f" of {users:,} sampled users" if users else "")
    axes.set(xlabel="epoch", ylabel=measured, title=title, ylim=(0, max(top, lowest) or 1))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
    axes.margins(x=0.02)
