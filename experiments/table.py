"""The mean and spread over seeds of finished runs, as Markdown: `python experiments/table.py --runs runs`."""

import dataclasses
import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a plain checkout will do, installed or not

import tyro
from config import COMMON, OF_METHOD, Config
from report import NAMES


@dataclasses.dataclass
class Options:
    """Tabulates test metrics at the last epoch."""

    runs: Path = Path("runs")
    """Folder of run folders."""
    metrics: tuple[str, ...] = ("recall@10", "recall@20", "recall@50", "ndcg@50")
    """Columns."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    rows: dict[tuple, dict[int, dict]] = defaultdict(dict)
    for path in sorted(options.runs.glob("*/results.json")):
        results, config = json.loads(path.read_text()), json.loads((path.parent / "config.json").read_text())
        for phase, entry in results["phases"].items():
            width = config["teacher_dim" if phase == "teacher" else "student_dim"]
            method = phase if phase in OF_METHOD else "none"
            chosen = {name: config[name] for name in (*COMMON, *OF_METHOD[method]) if name != "seed"}
            row = (config["dataset"], -width, list(NAMES).index(phase), json.dumps(chosen))
            figures = entry["final"]["test"] | {"closed": results["gap_closed"].get("recall@50")}
            known = rows[row].setdefault(config["seed"], figures)
            if phase == config["method"] and known is not figures:
                print(f"error: {path.parent}: a second run of the same settings", file=sys.stderr)
                sys.exit(2)
    if not rows:
        print(f"error: no finished run in {options.runs}", file=sys.stderr)
        sys.exit(2)
    defaults = dataclasses.asdict(Config())
    print("| dataset | dimensions | | seeds |", " | ".join(options.metrics), "| gap closed (recall@50) |")
    print("|---|---|---|---|" + "---|" * (len(options.metrics) + 1))
    for (dataset, width, phase, chosen), by_seed in sorted(rows.items()):
        changed = [f"{name} {value}" for name, value in json.loads(chosen).items() if value != defaults[name]]
        name = ", ".join([list(NAMES.values())[phase], *changed])
        cells = [spread([figures[metric] for figures in by_seed.values()], ".4f") for metric in options.metrics]
        closed = [figures["closed"] for figures in by_seed.values() if figures["closed"] is not None]
        cells.append(spread(closed, ".0%") if list(NAMES)[phase] in OF_METHOD and closed else "")
        print(
            "|", dataset, "|", -width, "|", name, "|", ", ".join(map(str, sorted(by_seed))), "|", " | ".join(cells), "|"
        )


def spread(values: list[float], form: str) -> str:
    """Mean ± sample standard deviation."""
    deviation = f" ± {statistics.stdev(values):{form}}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{form}}{deviation}"


if __name__ == "__main__":
    main()
