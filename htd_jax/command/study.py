"""Studies: many runs from one command, each found again where it is finished, and what they say together."""

import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Interval
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from htd_jax.command.described import described
from htd_jax.command.flags import parse_config, parse_known
from htd_jax.command.report import save_picture
from htd_jax.command.study_report import about, check_report, foot, write_report
from htd_jax.command.tensorboard import say_unheeded, watch_of
from htd_jax.command.tune import tune
from htd_jax.data import fingerprint
from htd_jax.errors import UserError
from htd_jax.pipeline import NO_METHOD, Config, Experiment, claimed, describe, load_data, open_teacher
from htd_jax.pipeline.experiment import numerics
from htd_jax.pipeline.run import write_json
from htd_jax.settings import check, override
from htd_jax.studies import (
    Job,
    Outcome,
    Plan,
    Report,
    Row,
    Variant,
    ablation,
    capacity,
    carry_out,
    log_of,
    looks,
    parse_methods,
    rows,
)
from htd_jax.studies import comparison as comparison_study
from htd_jax.studies import frontier as frontier_study
from htd_jax.training import Training

USAGE = """usage: htd-jax study NAME ...

studies:
  comparison  every method beside the plain student and the teacher
  capacity    students of 5% to 100% of the teacher's width
  ablation    HTD, or the recipe, less each of its parts
  sensitivity HTD with each of its numbers other than usual
  topology    what students keep of their teacher's relations
  beyond      recall by popularity and activity, coverage, likeness of lists
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


# What a small study is told, unless it is told otherwise.
SMALL = ("--epochs", "10", "--teacher-dim", "40", "--htd.groups", "5")
SMALL_METHODS = ("svd", "fitnet", "ftd", "htd")


def study(arguments: Sequence[str], prog: str = "htd-jax study") -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE.replace("htd-jax study", prog))
        return
    if arguments[0] not in STUDIES:
        raise UserError(f"unknown study {arguments[0]!r}; there are {', '.join(STUDIES)}")
    with described(arguments[1:]) as flags:
        STUDIES[arguments[0]](flags, f"{prog} {arguments[0]}")


@dataclasses.dataclass(frozen=True)
class Common:
    """Of every study of many runs."""

    size: Literal["small", "full"] = "full"
    """small: few epochs, narrow models, one seed; to see what a study gives before it takes hours."""
    seeds: tuple[Annotated[int, Ge(0)], ...] = ()
    """Of everything random; a teacher is trained for each. Default: 0 1 2; of a small study 0."""
    jobs: Annotated[int, Ge(1)] = 1
    """Runs at once. Each has its share of the processor's cores for itself, so that times can be compared."""


@dataclasses.dataclass(frozen=True)
class ComparisonOptions(Common):
    """Of a comparison."""

    methods: tuple[str, ...] | None = None
    """Which: names, pairs (htd+rrd), or all that there are. Default: all; of a small study svd fitnet ftd htd."""
    student_dims: tuple[Annotated[int, Ge(1)], ...] = ()
    """Widths of the students. Default: the usual one, a tenth of the teacher's."""


@dataclasses.dataclass(frozen=True)
class CapacityOptions(Common):
    """Of a study of capacity."""

    methods: tuple[str, ...] = ("ftd", "htd")
    """Which: names, pairs (htd+rrd), or all that there are."""
    shares: tuple[Annotated[float, Interval(ge=0.001, le=1)], ...] = capacity.SHARES
    """Of the teacher's width, those of the students: from 0.001 to 1, which is as wide as the teacher."""


@dataclasses.dataclass(frozen=True)
class AblationOptions(Common):
    """Of an ablation."""

    of: Literal["htd", "best"] = "htd"
    """The method whose parts are left out."""


@dataclasses.dataclass(frozen=True)
class SensitivityOptions(Common):
    """Of a study of HTD's numbers."""

    groups: tuple[Annotated[int, Ge(1)], ...] = (5, 10, 30, 60, 100)
    """K."""
    weight: tuple[Annotated[float, Ge(0)], ...] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
    """Lambda."""
    alpha: tuple[Annotated[float, Interval(ge=0, le=1)], ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    """The topology's share."""
    coldest: tuple[Annotated[float, Gt(0)], ...] = (1e-10, 1e-5, 1e-2, 1.0)
    """Temperatures that it falls to."""


@dataclasses.dataclass(frozen=True)
class Many:
    """A study of many runs.

    Attributes:
      options: its flags, with `Common`'s.
      variants: `options -> variants`.
      report: `(plan, rows, seen) -> Report`.
      look: `(plan, rows, told) -> seen`, what it looks at in the trained models.
      about: what `--help` says.
      dims: `(options, config) -> ` the students' widths; the usual one if None.
    """

    options: type[Common]
    variants: Callable[[Any], tuple[Variant, ...]]
    report: Callable[[Plan, Sequence[Row], Any], Report]
    about: str
    dims: Callable[[Any, Config], tuple[int, ...]] = lambda options, config: ()
    look: Callable[[Plan, Sequence[Row], Callable[[str], None]], Any] = lambda plan, every, told: None


@dataclasses.dataclass(frozen=True)
class LooksOptions(Common):
    """Of a study of what students are like."""

    methods: tuple[str, ...] = ("fitnet", "ftd", "htd")
    """Which: names, pairs (htd+rrd), or all that there are."""
    student_dims: tuple[Annotated[int, Ge(1)], ...] = ()
    """The students' width. Default: the usual one, a tenth of the teacher's."""


GOES_ON = """
Any flag of htd-jax train is passed on to all runs: --dataset, --epochs,
--htd.groups. Each run is a process of its own, in a folder of its own; the same
command goes on where it was stopped, and repeats no finished run."""

MANY = {
    "comparison": Many(
        ComparisonOptions,
        lambda options: parse_methods(
            options.methods if options.methods is not None else SMALL_METHODS if options.size == "small" else ("all",)
        ),
        comparison_study.report,
        """Every method beside the plain student and its teacher, at several sizes and
seeds: a report, a table and a picture under --runs.
""",
        lambda options, config: options.student_dims,
        comparison_study.look,
    ),
    "capacity": Many(
        CapacityOptions,
        lambda options: parse_methods(options.methods),
        capacity.report,
        """Students of 5% to 100% of the teacher's width: where does the whole topology (ftd)
overtake the hierarchy (htd)?
""",
        lambda options, config: capacity.widths(options.shares, config.what.teacher_dim or 1),
    ),
    "ablation": Many(
        AblationOptions,
        lambda options: ablation.ablated(options.of),
        ablation.report,
        """A method, and the method less each of its parts.
""",
    ),
    "sensitivity": Many(
        SensitivityOptions,
        lambda options: ablation.varied({name: getattr(options, name) for name in ablation.VALUES}),
        ablation.report_of_values,
        """HTD with each of its numbers other than usual.
""",
    ),
    "topology": Many(
        LooksOptions,
        lambda options: parse_methods(options.methods),
        looks.topology_report,
        """Whether students keep their teacher's relations: cosines within groups and across,
nearest neighbours, prototypes of groups; and articles that share a tag.
""",
        lambda options, config: options.student_dims,
        looks.related,
    ),
    "beyond": Many(
        LooksOptions,
        lambda options: parse_methods(options.methods),
        looks.beyond_report,
        """What a mean of recalls hides: by popularity of the item and activity of the user,
coverage, popularity of the lists, and how like the teacher's they are.
""",
        lambda options, config: options.student_dims,
        looks.listed,
    ),
}


def many(name: str, arguments: Sequence[str], prog: str) -> None:
    """Makes the runs of a study, and what they say together."""
    from htd_jax.command import use_devices

    of = MANY[name]
    options, flags = parse_known(of.options, arguments, prog=prog, description=of.about + GOES_ON)
    check(options)
    has = {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(options)} | {"--runs"}
    for flag in flags:
        if (own := OWN.get(flag.partition("=")[0])) in has:
            raise UserError(f"{flag}: a study has {own}")
        if own == "--methods":
            raise UserError(f"{flag}: this study has its own")
    variants = of.variants(options)
    flags = [*_small(flags, variants), *flags] if options.size == "small" else flags
    config = parse_config([*flags, "--method", _all_parts(variants)], prog=prog, description="")
    watch_of(config.places)
    config = dataclasses.replace(config, what=override(config.what, method=NO_METHOD))
    usual = config.filled()
    assert usual.what.student_dim
    dims = tuple(dict.fromkeys(of.dims(options, usual))) or (usual.what.student_dim,)
    seeds = tuple(dict.fromkeys(options.seeds)) or ((0,) if options.size == "small" else (0, 1, 2))
    plan = Plan(config, tuple(flags), variants, dims, seeds)
    stages = plan.stages()
    runs = config.places.runs
    dataset = load_data(usual)
    data = fingerprint(dataset)
    check_report(runs, name, data)
    if config.places.teacher:  # what is wrong with it is said once, before any run
        open_teacher(usual, Experiment(dataset, Training(), usual.evaluation, seeds[0]))
    print(f"{sum(map(len, stages))} runs, under {runs}", flush=True)
    with claimed(runs, "study", "--runs"), _Shown(sum(map(len, stages))) as shown:
        outcomes = carry_out(plan, data, at_once=options.jobs, started=shown.started, ended=shown.ended)
        every = rows(plan, outcomes)
        use_devices()  # not before: the runs, each a process of its own, may need all of it
        report = of.report(plan, every, of.look(plan, every, shown.told))
        report = dataclasses.replace(report, foot=foot(plan, f"{prog} {' '.join(arguments)}", dataset))
        written = write_report(runs, report)
        if name == "comparison":
            draw = lambda figure: comparison_study.draw(plan, every, figure)
            save_picture(runs / "comparison.png", draw, comparison_study.size(plan))
    print(report.markdown())
    print(f"report: {written}")
    if any(outcome.error for outcome in outcomes):
        sys.exit(1)


def _small(flags: Sequence[str], variants: Sequence[Variant]) -> list[str]:
    """Those of `SMALL` that are not said otherwise, and that a method of the study has."""
    said = {flag.partition("=")[0] for flag in flags}
    parts = {part for variant in variants for part in variant.method.split("+")}
    fits = lambda flag: flag not in said and (not flag.startswith("--htd.") or "htd" in parts)
    return [word for flag, value in zip(SMALL[::2], SMALL[1::2]) if fits(flag) for word in (flag, value)]


ABOUT_FRONTIER = """Recall against bytes a row, and against the time to rank all users: students
by --method best, HTD, FTD, SVD and ALS, and the ials teacher's rows rounded or in
product codes. A table (frontier.md), a picture (frontier.png) and all figures
(frontier.json) under --runs; what is trained already is found there.

--dataset, --data-dir, --cutoffs, --metric and the flags of a file of one's own are those
of htd-jax train."""


@dataclasses.dataclass(frozen=True)
class FrontierOptions:
    """Of a frontier."""

    size: Literal["small", "full"] = "full"
    """small: two sizes, no HTD, FTD and product codes, one seed."""
    bytes: tuple[Annotated[int, Ge(2)], ...] = ()
    """Of a row, scale and all. Default: 5 10 20 50 100; of a small study 5 10."""
    kinds: tuple[str, ...] = ()
    """What is compared. pq and opq need faiss. Default: all; of a small study best svd als rounded."""
    seeds: tuple[Annotated[int, Ge(0)], ...] = ()
    """Of everything random; a teacher is trained for each. Default: 0 1 2; of a small study 0."""

    def filled(self) -> "FrontierOptions":
        """Itself with every default in place."""
        usual: dict[str, Any] = {"bytes": frontier_study.SIZES, "kinds": frontier_study.KINDS, "seeds": (0, 1, 2)}
        if self.size == "small":
            usual = {"bytes": (5, 10), "kinds": ("best", "svd", "als", "rounded"), "seeds": (0,)}
        return dataclasses.replace(self, **{name: getattr(self, name) or value for name, value in usual.items()})


def frontier(arguments: Sequence[str], prog: str) -> None:
    from htd_jax.command import use_devices

    options, flags = parse_known(FrontierOptions, arguments, prog=prog, description=ABOUT_FRONTIER)
    check(options)
    options = options.filled()
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
        dataset = load_data(config)
        check_report(runs, "frontier", fingerprint(dataset))
        for point in frontier_study.points(dataset, config.evaluation, runs, **asked):
            found.append(point)
            news = f"{point.size:g} bytes, seed {point.seed}: {metrics[0]} {point.test[metrics[0]]:.4f}"
            print(f"{point.kind}, {point.what}, {news}", flush=True)
        write_json(runs / "frontier.json", [dataclasses.asdict(point) for point in found])
        report = frontier_study.report(found, metrics, dataset.name)
        foot = about(f"{prog} {' '.join(arguments)}", dataset) | {"seeds": ", ".join(map(str, options.seeds))}
        written = write_report(runs, dataclasses.replace(report, foot=foot))
        draw_it = lambda figure: frontier_study.draw(found, metrics[0], figure)
        save_picture(runs / "frontier.png", draw_it, (11, 4.5))
    print(f"\n{report.markdown()}\nreport: {written}")


STUDIES: dict[str, Callable[[Sequence[str], str], None]] = {
    **{name: functools.partial(many, name) for name in MANY},
    "frontier": frontier,
    "tune": tune,
}


def _all_parts(variants: Sequence[Variant]) -> str:
    """All methods as if they were joined, so that flags of each are known."""
    return "+".join(dict.fromkeys(part for variant in variants for part in variant.method.split("+")))


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

    def told(self, line: str) -> None:
        """What is looked at once all runs have ended."""
        self._bar.console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)

    def _update(self) -> None:
        self._bar.update(self._task, completed=self._done, news="; ".join(self._running))


def _name(job: Job) -> str:
    what = job.config.what
    method = "student" if what.method == NO_METHOD else describe(what.method)
    usual = dataclasses.replace(job.config, places=override(job.config.places, run=None)).folder.name
    other = job.folder.name.removeprefix(usual).removeprefix("-")
    varied = f" ({other.replace('-', ', ')})" if job.config.places.run and other else ""
    return f"{method}{varied}, {what.student_dim} dimensions, seed {what.seed}"
