"""The mean and spread over seeds of finished runs, as Markdown."""

import contextlib
import dataclasses
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from htd_jax.command.finished import read_results
from htd_jax.command.flags import COMMON, REGISTRIES, parse
from htd_jax.distillers import METHODS, usual_training
from htd_jax.errors import UserError
from htd_jax.models import MODELS, usual_epochs
from htd_jax.pipeline import describe
from htd_jax.settings import as_json
from htd_jax.studies import spread
from htd_jax.training import Training


@dataclasses.dataclass
class Options:
    """Tabulates test metrics of the model that counts: the last epoch's, or with early stopping the best one's."""

    runs: Path = Path("runs")
    """Folder of run folders."""
    metrics: tuple[str, ...] = ("recall@10", "recall@20", "recall@50", "ndcg@50")
    """Columns; a run that has none of them is left out. The gap closed is of the last of those that are recalls."""


def table(arguments: Sequence[str], prog: str = "htd-jax table") -> None:
    options = parse(Options, arguments, prog=prog, description=__doc__)
    shown = options.metrics
    closed_of = next((name for name in reversed(shown) if name.startswith("recall")), shown[-1])
    rows: dict[tuple[Any, ...], dict[int, dict[str, Any]]] = defaultdict(dict)
    for folder, results in _finished(options.runs):
        for phase, entry in results["phases"].items():
            if not set(shown) & set(entry["final"]["test"]):
                continue  # a run with other cutoffs, for a table of its own
            made_by = entry["settings"]
            what = (results["dataset"], made_by["model"]["name"], made_by["evaluation"]["protocol"])
            key = (
                *what,
                -made_by["model"]["dim"],
                _order(phase),
                phase,
                json.dumps(_seedless(made_by), sort_keys=True),
            )
            figures = entry["final"]["test"] | {"closed": results["gap_closed"].get(closed_of)}
            known = rows[key].setdefault(results["seed"], figures)
            if phase == results["method"] and known is not figures:
                raise UserError(f"{folder}: a second run of the same settings")
    if not rows:
        raise UserError(f"no finished run in {options.runs} has {' or '.join(shown)}")
    print("| dataset | model | dimensions | | seeds |", " | ".join(shown), f"| gap closed ({closed_of}) |")
    print("|---|---|---|---|---|" + "---|" * (len(shown) + 1))
    alike = defaultdict(list)
    for key in sorted(rows):
        alike[key[:-1]].append(json.loads(key[-1]))
    for key, by_seed in sorted(rows.items()):
        dataset, model, protocol, width, _, phase, made = key
        told = _told_apart(json.loads(made), alike[key[:-1]])
        name = ", ".join([describe(phase), *([] if protocol == "full" else [protocol]), *told])
        cells = [spread([figures.get(metric) for figures in by_seed.values()], ".4f") for metric in shown]
        closed = [figures["closed"] for figures in by_seed.values()]
        cells.append(spread(closed, ".0%") if phase not in ("teacher", "student") else "")
        seeds = ", ".join(map(str, sorted(by_seed)))
        print("|", " | ".join([dataset, model, str(-width), name, seeds, *cells]), "|")


def _finished(runs: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The runs that have ended, by folder; what is none is passed over."""
    found = []
    for path in sorted(runs.glob("*/results.json")):
        with contextlib.suppress(OSError, ValueError):
            found.append((path.parent, read_results(path.parent)))
    return found


def _seedless(settings: Any, of_teacher: bool = False) -> Any:
    """What made a phase, but for what its seed alone decides: the seed, and its teacher's numbers.

    A teacher that nothing is known of but its numbers, or that was given, is told by them.
    """
    if not isinstance(settings, dict):
        return settings
    dropped = {"seed", "hash", "start_hash"} if len(settings) > 1 else set()
    if settings.get("start") == "given":
        dropped -= {"hash"}
    if of_teacher and settings.get("patience") is not None:
        dropped |= {"epochs"}  # the most that there could be, or where patience ended
    of = lambda name: of_teacher or name == "teacher"
    return {name: _seedless(value, of(name)) for name, value in settings.items() if name not in dropped}


def _told_apart(made: dict[str, Any], alike: list[dict[str, Any]]) -> list[str]:
    """What is not as usual, and what tells it from the other rows of its name."""
    usual = {name: x for of in COMMON.values() for name, x in as_json(of()).items()}
    for registry in REGISTRIES.values():
        usual |= {f"{name}.{n}": x for name, of in registry.items() for n, x in as_json(of()).items()}
    name = made["model"]["name"]
    of_methods = usual_training(dict(METHODS).get(method) for method in made.get("methods", {}))
    usual |= as_json(Training().filled(usual_epochs(dict(MODELS).get(name)), of_methods))
    flat, others = _flat(made), [_flat(other) for other in alike]
    differs = [name for name in flat if any(other.get(name) != flat[name] for other in others)]
    unusual = [name for name in flat if name in usual and usual[name] != flat[name]]
    hidden = {"cutoffs", "metric", "format"}  # which the columns show
    return [f"{setting} {flat[setting]}" for setting in dict.fromkeys([*unusual, *differs]) if setting not in hidden]


def _flat(made: dict[str, Any]) -> dict[str, Any]:
    """Settings by the names of their flags."""
    model = {
        f"{made['model']['name']}.{n}": x for n, x in made["model"].items() if n not in ("name", "dim", "precision")
    }
    methods = {f"{name}.{n}": x for name, own in made.get("methods", {}).items() for n, x in own.items()}
    teacher = made.get("teacher") or {}
    of_teacher = {f"teacher {n}": x for n, x in _flat(teacher).items()} if "model" in teacher else {}
    if "model" in teacher:
        of_teacher["taught by"] = f"{teacher['model']['name']} {teacher['model']['dim']}"
    evaluation = dict(made["evaluation"])
    evaluation.pop("protocol")
    given = made["start"] == "given"
    rest = {"given": made.get("hash")} if given else {"student_init": made["start"]}
    rest |= {"data": made["data"], "precision": made["model"].get("precision")}
    return {**made["training"], **evaluation, **model, **methods, **rest, **of_teacher}


def _order(phase: str) -> int:
    """Teacher, student, and then the methods."""
    known = ["teacher", "student", *METHODS]
    first = phase.split("+")[0]
    return (known.index(first) if first in known else len(known)) + 100 * phase.count("+")
