"""What a run leaves to be read: files, a table, a picture."""

import json
import os
from pathlib import Path
from typing import Any

import jax
from config import Config, label
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from htd_jax.training import PhaseResult, best_record
from htd_jax.training import Progress as News
from htd_jax.writing import whole


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    with whole(path) as partial:
        partial.write_text(text)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_metrics(folder: Path, records: dict[str, list[dict[str, Any]]]) -> None:
    """`metrics.jsonl`: a line an evaluation, phase by phase."""
    lines = [json.dumps({"phase": phase, **record}) for phase, of_phase in records.items() for record in of_phase]
    write_text(folder / "metrics.jsonl", "".join(line + "\n" for line in lines))


def summarise(phase: PhaseResult, metric: str) -> dict[str, Any]:
    """A phase's entry in `results.json`: `final` is of the model that counts, `best` the best epoch in validation."""
    best = best_record(phase.records, metric)
    of_epoch = lambda record: {name: record[name] for name in ("epoch", "valid", "test")}
    return {
        "parameters": sum(x.size for x in jax.tree.leaves(phase.variables)),
        "epochs": len(phase.seconds),
        "seconds_per_epoch": sum(phase.seconds) / max(len(phase.seconds), 1),
        "final": of_epoch(phase.chosen),
        "best": of_epoch(best),
    }


def gap_closed(phases: dict[str, Any], method: str) -> dict[str, float | None]:
    """By test metric: (distilled - student) / (teacher - student); None where there is no gap."""
    closed = {}
    for name in phases["teacher"]["final"]["test"] if method in phases else ():
        teacher, student, helped = (phases[p]["final"]["test"][name] for p in ("teacher", "student", method))
        closed[name] = (helped - student) / (teacher - student) if teacher > student else None
    return closed


class PhaseProgress:
    """The line that moves while a phase runs; where there is no terminal, a line an evaluation."""

    def __init__(self, name: str, epochs: int, metric: str):
        self._name, self._epochs, self._metric = name, epochs, metric
        self._bar = Progress(
            TextColumn("{task.description:15}"),
            BarColumn(20),
            TextColumn("{task.fields[news]}"),
            TimeRemainingColumn(),
            console=Console(),
        )
        self._live = self._bar.console.is_terminal

    def __enter__(self) -> "PhaseProgress":
        if self._live:
            self._bar.start()
            self._task = self._bar.add_task(self._name, total=self._epochs, news="compiling")
        return self

    def show(self, news: News) -> None:
        """After an epoch."""
        text = f"epoch {news.epoch:3}/{self._epochs - 1}  loss {news.terms['loss']:9.2f}  {news.seconds:6.3f} s/epoch"
        if news.records:
            text += f"  valid {self._metric} {news.records[-1]['valid'][self._metric]:.4f}"
        if self._live:
            self._bar.update(self._task, completed=news.epoch + 1, news=text)
        elif news.records and news.records[-1]["epoch"] == news.epoch:
            print(f"{self._name:15} {text}", flush=True)

    def __exit__(self, *error: object) -> None:
        if self._live:
            self._bar.stop()


def print_table(config: Config, results: dict[str, Any]) -> None:
    """Teacher, student, distilled student, and the share of the gap closed, in test."""
    when = f"best epoch in validation {config.metric}" if config.patience else "last epoch"
    table = Table()
    table.add_column("")
    table.add_column("parameters", justify="right")
    metrics = [f"{name}@{k}" for name in ("recall", "ndcg") for k in config.cutoffs]
    for name in metrics:
        table.add_column(name, justify="right")
    for phase, entry in results["phases"].items():
        figures = [f"{entry['final']['test'][name]:.4f}" for name in metrics]
        table.add_row(label(phase), f"{entry['parameters']:,}", *figures)
    if closed := results["gap_closed"]:
        table.add_section()
        table.add_row("gap closed", "", *("-" if closed[name] is None else f"{closed[name]:.0%}" for name in metrics))
    print(f"{config.dataset}, {config.model}, seed {config.seed}: test, {when}")  # as a title it would be wrapped
    Console(width=None if os.isatty(1) else 120).print(table)


def draw_curves(config: Config, records: dict[str, list[dict[str, Any]]]) -> None:
    """`curves.png`: test recall at the last cutoff against epoch, a line a phase, level where nothing is trained."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    metric = f"recall@{max(config.cutoffs)}"
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    colours = {"teacher": "#555555", "student": "#c44e52"}
    last = max(record["epoch"] for of_phase in records.values() for record in of_phase)
    labels = []
    for phase, of_phase in records.items():
        epochs = [record["epoch"] for record in of_phase]
        recall = [record["test"][metric] for record in of_phase]
        colour = colours.get(phase, "#1f77b4")
        if phase == "svd":
            epochs, recall = [0, last], recall * 2
        axes.plot(epochs, recall, marker="o", markersize=3.5, linewidth=1.8, color=colour)
        labels.append((recall[-1], epochs[-1], f"{label(phase)}  {recall[-1]:.4f}", colour))
    top = 1.05 * max(record["test"][metric] for of_phase in records.values() for record in of_phase)
    lowest = -top
    for height, epoch, text, colour in sorted(labels):
        lowest = max(height, lowest + 0.05 * top)  # above the label under it
        axes.annotate(text, (epoch, lowest), (8, 0), textcoords="offset points", va="center", color=colour)
    axes.set(xlabel="epoch", ylabel=f"test {metric}", title=f"{config.dataset}, {config.model}", ylim=(0, top or 1))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
    axes.margins(x=0.02)
    with whole(config.folder / "curves.png") as partial:
        figure.savefig(partial, dpi=150)
    plt.close(figure)
