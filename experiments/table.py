"""The mean and spread over seeds of finished runs, as Markdown: `python experiments/table.py --runs runs`."""

import dataclasses
import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a plain checkout will do, installed or not

import tyro
from config import COMMON, METHODS, MODELS, Config, label


@dataclasses.dataclass
class Options:
    """Tabulates test metrics of the model that counts: the last epoch's, or with early stopping the best one's."""

    runs: Path = Path("runs")
    """Folder of run folders."""
    metrics: tuple[str, ...] = ("recall@10", "recall@20", "recall@50", "ndcg@50")
    """Columns; a run that has none of them is left out. The gap closed is of the last of those that are recalls."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    shown = options.metrics
    closed_of = next((name for name in reversed(shown) if name.startswith("recall")), shown[-1])
    rows: dict[tuple, dict[int, dict]] = defaultdict(dict)
    for path in sorted(options.runs.glob("*/results.json")):
        results, config = json.loads(path.read_text()), json.loads((path.parent / "config.json").read_text())
        for phase, entry in results["phases"].items():
            if not set(shown) & set(entry["final"]["test"]):
                continue  # a run with other cutoffs, for a table of its own
            width = config["teacher_dim" if phase == "teacher" else "student_dim"]
            what = (config["dataset"], config["model"], config["protocol"])
            row = (*what, -width, order(phase), phase, json.dumps(choices(config, phase)))
            figures = entry["final"]["test"] | {"closed": results["gap_closed"].get(closed_of)}
            known = rows[row].setdefault(config["seed"], figures)
            if phase == config["method"] and known is not figures:
                print(f"error: {path.parent}: a second run of the same settings", file=sys.stderr)
                sys.exit(2)
    if not rows:
        print(f"error: no finished run in {options.runs} has {' or '.join(shown)}", file=sys.stderr)
        sys.exit(2)
    defaults = dataclasses.asdict(Config())
    print("| dataset | model | dimensions | | seeds |", " | ".join(shown), f"| gap closed ({closed_of}) |")
    print("|---|---|---|---|---|" + "---|" * (len(shown) + 1))
    for (dataset, model, protocol, width, _, phase, chosen), by_seed in sorted(rows.items()):
        changed = [f"{name} {value}" for name, value in json.loads(chosen).items() if value != defaults[name]]
        name = ", ".join([label(phase), *([] if protocol == "full" else [protocol]), *changed])
        cells = [spread([figures.get(metric) for figures in by_seed.values()], ".4f") for metric in shown]
        closed = [figures["closed"] for figures in by_seed.values()]
        cells.append(spread(closed, ".0%") if phase not in ("teacher", "student") else "")
        seeds = ", ".join(map(str, sorted(by_seed)))
        print("|", " | ".join([dataset, model, str(-width), name, seeds, *cells]), "|")


def order(phase: str) -> int:
    """Teacher, student, and then the methods."""
    return (["teacher", "student", "svd", *METHODS].index(phase.split("+")[0])) + 100 * phase.count("+")


def choices(config: dict, phase: str) -> dict:
    """The settings that made this phase."""
    methods = [METHODS[name] for name in phase.split("+") if name in METHODS]
    names = [*COMMON, *MODELS[config["model"]].settings, *(name for method in methods for name in method.settings)]
    names += ["weight"] if methods else []
    names += ["student_init"] if phase != "teacher" else []
    filled = {"cutoffs", "metric"}  # which the columns show
    return {name: config[name] for name in dict.fromkeys(names) if name != "seed" and name not in filled}


def spread(values: list[float | None], form: str) -> str:
    """Mean ± sample standard deviation of those that are there; empty where none is."""
    there = [value for value in values if value is not None]
    deviation = f" ± {statistics.stdev(there):{form}}" if len(there) > 1 else ""
    return f"{statistics.mean(there):{form}}{deviation}" if there else ""


if __name__ == "__main__":
    main()
