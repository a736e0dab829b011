"""Studies: many runs from one command, each found again where it is finished, and what they say together."""

import dataclasses
import sys
import time
from collections.abc import Sequence
from typing import Annotated, Any

from annotated_types import Ge
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from htd_jax.command.described import described
from htd_jax.command.flags import parse_config, parse_known
from htd_jax.command.report import save_picture
from htd_jax.command.tensorboard import say_unheeded, watch_of
from htd_jax.command.tune import tune
from htd_jax.errors import UserError
from htd_jax.pipeline import NO_METHOD, claimed, describe, load_data
from htd_jax.pipeline.experiment import numerics
from htd_jax.pipeline.run import write_json
from htd_jax.settings import check, override
from htd_jax.studies import (
    Comparison,
    Job,
    Outcome,
    compare,
    draw,
    log_of,
    parse_methods,
    size,
    tables,
)
from htd_jax.studies import frontier as frontier_study
from htd_jax.writing import whole

USAGE = """usage: htd-jax study NAME ...

studies:
  comparison  every method beside the plain student and the teacher: a table and a picture
  frontier    recall against bytes a row, and against the time to rank: students of every kind, and the
              teacher's rows in fewer bytes
  tune        a method's settings, searched by what its student reaches in validation

htd-jax study NAME --help tells more. Any of them takes --file study.toml, which holds its flags
by their names; those that are typed come after, and win:

  dataset = "citeulike"
  seeds = [0, 1]
  [htd]
  groups = 60"""

# What a study sets itself, and the flag that it has for it.
OWN = {"--method": "--methods", "--seed": "--seeds", "--student-dim": "--student-dims", "--run": "--runs"}


ABOUT = """Every method beside the plain student and its teacher, at several sizes and
seeds: a table (comparison.md) and a picture (comparison.png) under --runs.

Any flag of htd-jax train is passed on to all runs: --dataset, --epochs,
--htd.groups. Each run is a process of its own, in a folder of its own; the same
command goes on where it was stopped, and repeats no finished run."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Of a comparison."""

    methods: tuple[str, ...] = ("all",)
    """Which: names, pairs (htd+rrd), or all that there are."""
    student_dims: tuple[Annotated[int, Ge(1)], ...] = ()
    """Widths of the students. Default: the usual one, a tenth of the teacher's."""
    seeds: tuple[Annotated[int, Ge(0)], ...] = (0, 1, 2)
    """Of everything random; a teacher is trained for each."""
    jobs: Annotated[int, Ge(1)] = 1
    """Runs at once. Each has its share of the processor's cores for itself, so that times can be compared."""


def study(arguments: Sequence[str], prog: str = "htd-jax study") -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE.replace("htd-jax study", prog))
        return
    if arguments[0] not in STUDIES:
        raise UserError(f"unknown study {arguments[0]!r}; there are {', '.join(STUDIES)}")
    with described(arguments[1:]) as flags:
        STUDIES[arguments[0]](flags, f"{prog} {arguments[0]}")


def comparison(arguments: Sequence[str], prog: str) -> None:
    options, flags = parse_known(Options, arguments, prog=prog, description=ABOUT)
    check(options)
    for flag in flags:
        if (own := OWN.get(flag.partition("=")[0])) is not None:
            raise UserError(f"{flag}: a study has {own}")
    methods = parse_methods(options.methods)
    config = parse_config([*flags, "--method", _all_parts(methods)], prog=prog, description="")
    watch_of(config.places)
    config = dataclasses.replace(config, what=override(config.what, method=NO_METHOD))
    usual = config.filled().what.student_dim
    assert usual is not None
    unique = lambda values: tuple(dict.fromkeys(values))
    what = Comparison(config, tuple(flags), methods, unique(options.student_dims) or (usual,), unique(options.seeds))
    stages = what.stages()
    runs = config.places.runs
    with claimed(runs, "study", "--runs"), _Shown(sum(map(len, stages))) as shown:
        outcomes = compare(what, at_once=options.jobs, started=shown.started, ended=shown.ended)
        text = tables(what, outcomes)
        with whole(runs / "comparison.md") as partial:
            partial.write_text(f"`{prog} {' '.join(arguments)}`\n\n{text}")
        drawn = save_picture(runs / "comparison.png", lambda figure: draw(what, outcomes, figure), size(what))
    print(text)
    print(f"table: {runs / 'comparison.md'}" + f"; picture: {runs / 'comparison.png'}" * drawn)
    if any(outcome.error for outcome in outcomes):
        sys.exit(1)


ABOUT_FRONTIER = """Recall against bytes a row, and against the time to rank all users: students
by --method best, HTD, FTD, SVD and ALS, and the ials teacher's rows rounded or in
product codes. A table (frontier.md), a picture (frontier.png) and all figures
(frontier.json) under --runs; what is trained already is found there.

--dataset, --data-dir, --cutoffs, --metric and the flags of a file of one's own are those
of htd-jax train."""


@dataclasses.dataclass(frozen=True)
class FrontierOptions:
    """Of a frontier."""

    bytes: tuple[Annotated[int, Ge(2)], ...] = frontier_study.SIZES
    """Of a row, scale and all."""
    kinds: tuple[str, ...] = frontier_study.KINDS
    """What is compared. pq and opq need faiss."""
    seeds: tuple[Annotated[int, Ge(0)], ...] = (0, 1, 2)
    """Of everything random; a teacher is trained for each."""


def frontier(arguments: Sequence[str], prog: str) -> None:
    from htd_jax.command import use_devices

    options, flags = parse_known(FrontierOptions, arguments, prog=prog, description=ABOUT_FRONTIER)
    check(options)
    frontier_study.check_kinds(options.kinds)
    config = parse_config([*flags, "--method", NO_METHOD], prog=prog, description="").filled()
    say_unheeded(config.places)
    use_devices()
    runs = config.places.runs
    metrics = [f"{name}@{max(config.evaluation.cutoffs)}" for name in ("recall", "ndcg")]
    with claimed(runs, "study", "--runs"), numerics():
        found = []
        told = lambda line: print(f"  {line}", flush=True)
        asked: Any = {"seeds": options.seeds, "sizes": options.bytes, "kinds": options.kinds, "told": told}
        for point in frontier_study.points(load_data(config), config.evaluation, runs, **asked):
            found.append(point)
            news = f"{point.size:g} bytes, seed {point.seed}: {metrics[0]} {point.test[metrics[0]]:.4f}"
            print(f"{point.kind}, {point.what}, {news}", flush=True)
        text = frontier_study.table(found, metrics)
        with whole(runs / "frontier.md") as partial:
            partial.write_text(f"`{prog} {' '.join(arguments)}`\n\n{text}")
        write_json(runs / "frontier.json", [dataclasses.asdict(point) for point in found])
        draw_it = lambda figure: frontier_study.draw(found, metrics[0], figure)
        drawn = save_picture(runs / "frontier.png", draw_it, (11, 4.5))
    print(f"\n{text}")
    print(f"table: {runs / 'frontier.md'}" + f"; picture: {runs / 'frontier.png'}" * drawn)


STUDIES = {"comparison": comparison, "frontier": frontier, "tune": tune}


def _all_parts(methods: Sequence[str]) -> str:
    """All methods as if they were joined, so that flags of each are known."""
    return "+".join(dict.fromkeys(part for method in methods for part in method.split("+")))


class _Shown:
    """The line that says how far the study is: a bar in a terminal, and a line for each run that has ended."""

    def __init__(self, number: int):
        self._number, self._done, self._left = number, 0, 0.0
        self._running: list[str] = []
        console = Console()
        columns = TextColumn("{task.completed}/{task.total} runs"), BarColumn(20), TextColumn("{task.fields[news]}")
        self._bar = Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task("", total=number, news="")

    def __enter__(self) -> "_Shown":
        self._begun = time.monotonic()
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def started(self, job: Job) -> None:
        self._running.append(_name(job))
        self._update()

    def ended(self, outcome: Outcome) -> None:
        self._done += 1
        name = _name(outcome.job)
        if name in self._running:
            self._running.remove(name)
        if outcome.error:
            said = f"failed: {outcome.error} (all that it said: {log_of(outcome.job)})"
        else:
            said = f"{outcome.seconds:.0f} s" if outcome.seconds else "found finished"
        self._bar.console.print(
            f"{self._done}/{self._number} {name}: {said}", markup=False, highlight=False, soft_wrap=True
        )
        self._update()

    def _update(self) -> None:
        self._bar.update(self._task, completed=self._done, news="; ".join(self._running))


def _name(job: Job) -> str:
    what = job.config.what
    method = "student" if what.method == NO_METHOD else describe(what.method)
    return f"{method}, {what.student_dim} dimensions, seed {what.seed}"
