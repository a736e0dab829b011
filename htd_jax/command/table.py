"""Tabulates finished runs: mean and spread over seeds, in Markdown, CSV or LaTeX."""

import contextlib
import dataclasses
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from htd_jax.command.flags import REGISTRIES, default_settings
from htd_jax.command.parsing import import_trusted, parse
from htd_jax.command.report import teacher_of
from htd_jax.distillers import METHODS
from htd_jax.errors import UserError
from htd_jax.pipeline import STUDENT, TEACHER, RunFolder, label
from htd_jax.settings import as_json
from htd_jax.studies.tables import Cell, Table, Values, check_table_path, write_table

# Settings that the table shows in columns, or that do not change test metrics.
HIDDEN = {"cutoffs", "metric", "format"}


@dataclasses.dataclass
class Options:
    """Tabulates test metrics of the last epoch or, with early stopping, of the best."""

    runs: Path = Path("runs")
    """Folder of run folders."""
    metrics: tuple[str, ...] = ("recall@10", "recall@20", "recall@50", "ndcg@50")
    """Metrics to show in columns; runs that have none of them are left out. The gap closed is that of the last
    recall."""
    to: Path | None = None
    """File to write the table to, too: .md, .csv (means and deviations in columns of their own) or .tex (booktabs)."""
    trust_code: tuple[str, ...] = ()
    """Modules, or package.module:Class, that are imported because runs name models or methods of theirs, and
    package.module:function, a metric to add. Their code runs; without this flag, a file's name runs none."""


def table(arguments: Sequence[str], prog: str = "htd-jax table") -> None:
    options = parse(Options, arguments, prog=prog, description=__doc__)
    check_table_path(options.to)
    import_trusted(arguments)
    shown = options.metrics
    gap_metric = next((name for name in reversed(shown) if name.startswith("recall")), shown[-1])
    rows: dict[tuple[Any, ...], dict[int, dict[str, Any]]] = defaultdict(dict)
    for folder, results in _finished(options.runs):
        for phase, entry in results["phases"].items():
            if not set(shown) & set(entry["final"]["test"]):
                continue  # a run with other cutoffs
            settings = entry["settings"]
            if "choice" in results and phase in (TEACHER, results["method"]):
                settings = _as_requested(settings, RunFolder(folder).read_config(), is_teacher=phase == TEACHER)
            model, protocol = settings["model"], settings["evaluation"]["protocol"]
            identity = json.dumps(_without_seed(settings), sort_keys=True)
            key = (results["dataset"], model["name"], protocol, -model["dim"], _order(phase), phase, identity)
            figures = entry["final"]["test"] | {"closed": results["gap_closed"].get(gap_metric)}
            figures |= {"teacher": results["phases"][TEACHER]["final"]["test"].get(gap_metric)}
            figures |= {"taught": teacher_of(results), "chose": "choice" in results}
            if rows[key].setdefault(results["seed"], figures) is not figures and phase == results["method"]:
                raise UserError(
                    f"{folder}: is a second run with the same settings and seed; move one of the two to another folder"
                )
    if not rows:
        raise UserError(f"no finished run in {options.runs} has {' or '.join(shown)}")
    namesakes = defaultdict(list)
    for *name, identity in sorted(rows):
        namesakes[tuple(name)].append(json.loads(identity))
    lines: list[tuple[Cell, ...]] = []
    # A run that chose its teacher is not compared with those of another unseen: then every student names its own.
    names_teachers = any(own["chose"] for by_seed in rows.values() for own in by_seed.values())
    for key, by_seed in sorted(rows.items()):
        dataset, model, protocol, width, _, phase, identity = key
        details = _details(json.loads(identity), namesakes[key[:-1]])
        distilled = phase not in (TEACHER, STUDENT)
        if names_teachers and distilled:
            taught = " or ".join(dict.fromkeys(own["taught"] for own in by_seed.values()))
            details = [*(detail for detail in details if not detail.startswith("taught by ")), f"taught by {taught}"]
        title = ", ".join([label(phase), *([] if protocol == "full" else [protocol]), *details])
        figures = [_values([own.get(metric) for own in by_seed.values()]) for metric in shown]
        closed = _values([own["closed"] for own in by_seed.values()] if distilled else [], ".0%")
        teachers = _values([own["teacher"] for own in by_seed.values()] if distilled else [])
        seeds = ", ".join(map(str, sorted(by_seed)))
        lines.append((dataset, model, str(-width), title, seeds, *figures, *[teachers] * names_teachers, closed))
    teacher_column = [f"its teacher's {gap_metric}"] * names_teachers
    head = ("dataset", "model", "dimensions", "", "seeds", *shown, *teacher_column, f"gap closed ({gap_metric})")
    made = Table("table", "Finished runs", head, tuple(lines))
    print(made.markdown(), end="")
    if options.to:
        write_table(options.to, made)


def _values(known: Sequence[float | None], form: str = ".4f") -> Values:
    return Values(tuple(value for value in known if value is not None), form)


def _as_requested(settings: dict[str, Any], config: dict[str, Any], *, is_teacher: bool) -> dict[str, Any]:
    """Returns the settings that were requested of a phase, without what was chosen, which differs by seed."""
    model = {"name": "chosen", "dim": config["teacher_dim" if is_teacher else "student_dim"]}
    precision = {} if is_teacher else {"precision": config["precision"]}
    training = {"budget": config["budget"]}
    return {**settings, "model": model | precision, "training": training, "methods": {}, "teacher": None}


def _finished(runs: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yields finished runs and their results; other folders are skipped."""
    for path in sorted(runs.iterdir()) if runs.is_dir() else ():
        with contextlib.suppress(UserError):
            yield path, RunFolder(path).read_results()


def _without_seed(settings: Any, is_teacher: bool = False) -> Any:
    """Returns the settings of a phase without what the seed decides: the seed, and hashes of tables.

    A teacher that was given, or of which nothing else is known, keeps its hash.
    """
    if not isinstance(settings, dict):
        return settings
    dropped = {"seed", "hash", "start_hash"} if len(settings) > 1 else set()
    if settings.get("start") == "given":
        dropped -= {"hash"}
    if is_teacher and settings.get("patience") is not None:
        dropped |= {"epochs"}  # early stopping decides them
    kept = {name: value for name, value in settings.items() if name not in dropped}
    return {name: _without_seed(value, is_teacher or name == "teacher") for name, value in kept.items()}


def _details(settings: dict[str, Any], namesakes: list[dict[str, Any]]) -> list[str]:
    """Returns the settings that are not defaults, or that tell a row from others of its name."""
    defaults = default_settings(settings["model"]["name"], methods=settings.get("methods", {}))
    for registry in REGISTRIES.values():
        defaults |= {f"{name}.{n}": x for name, kind in registry.items() for n, x in as_json(kind()).items()}
    own, others = _flat(settings), [_flat(other) for other in namesakes]
    differing = [name for name in own if any(other.get(name) != own[name] for other in others)]
    changed = [name for name in own if name in defaults and defaults[name] != own[name]]
    return [f"{name} {own[name]}" for name in dict.fromkeys([*changed, *differing]) if name not in HIDDEN]


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings of a phase by name."""
    model, teacher = settings["model"], settings.get("teacher") or {}
    found = settings["training"] | {n: x for n, x in settings["evaluation"].items() if n != "protocol"}
    found |= {f"{model['name']}.{n}": x for n, x in model.items() if n not in ("name", "dim", "precision")}
    found |= {f"{name}.{n}": x for name, own in settings.get("methods", {}).items() for n, x in own.items()}
    is_given = settings["start"] == "given"
    found |= {"given": settings.get("hash")} if is_given else {"student_init": settings["start"]}
    found |= {"data": settings["data"], "precision": model.get("precision")}
    if "model" in teacher:
        found |= {f"teacher {n}": x for n, x in _flat(teacher).items()}
        found["taught by"] = f"{teacher['model']['name']} {teacher['model']['dim']}"
    return found


def _order(phase: str) -> int:
    """Returns the place of a phase: teacher, student, methods, and joined methods last."""
    known = [TEACHER, STUDENT, *METHODS]
    first = phase.split("+")[0]
    return (known.index(first) if first in known else len(known)) + 100 * phase.count("+")
