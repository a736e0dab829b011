"""Studies: many runs from one command, each reused where it is finished, and a report of what they show together."""

import dataclasses
import functools
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Interval
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from htd_jax.command.continual import continual
from htd_jax.command.described import described
from htd_jax.command.flags import import_typed, parse_request
from htd_jax.command.parsing import parse_known
from htd_jax.command.study_report import about, check_report, write_report
from htd_jax.command.tensorboard import choose_callback, note_ignored
from htd_jax.command.tune import tune
from htd_jax.command.weights import weights
from htd_jax.data import fingerprint
from htd_jax.errors import UserError, nearest
from htd_jax.evaluation import shown_metrics
from htd_jax.pipeline import (
    NO_METHOD,
    Experiment,
    RunSpec,
    claimed,
    label,
    numerics,
    open_teacher,
    resolve_run,
    run_name,
    write_json,
)
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
    comparison,
    log_path,
    looks,
    parse_methods,
    rows,
)
from htd_jax.studies import frontier as frontiers

USAGE = """usage: htd-jax study NAME ...

studies:
  comparison  compare every method with the plain student and the teacher
  capacity    compare students of 5% to 100% of the teacher's width
  ablation    compare HTD, or the recipe, with versions that lack one part
  sensitivity compare HTD with other values of its settings
  topology    measure which of the teacher's relations students keep
  beyond      measure recall by popularity and activity, coverage, and similarity to the teacher's lists
  frontier    measure recall against bytes per row, and against the time to rank
  continual   measure what a student kept up to date learns, retains and costs, block by block
  weights     measure what part of a step's gradient each method has, to choose its weight
  tune        search a method's settings for the best student in validation

htd-jax study NAME --help describes a study and its flags. Every study takes --file study.toml, a
file of flags by name; typed flags override it:

  dataset = "citeulike"
  seeds = [0, 1]
  [htd]
  groups = 60"""

# The flags of a run that a study sets, and the study's own flags for them.
OWN = {"method": "methods", "seed": "seeds", "student-dim": "student-dims", "run": "runs"}

# The flags of a small study, unless they are given.
SMALL = {"epochs": "10", "teacher-dim": "40", "htd.groups": "5"}
SMALL_METHODS = ("svd", "fitnet", "ftd", "htd")

Seeds = tuple[Annotated[int, Ge(0)], ...]
Dims = tuple[Annotated[int, Ge(1)], ...]
Log = Callable[[str], None]


def study(arguments: Sequence[str], prog: str = "htd-jax study") -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE.replace("htd-jax study", prog))
        return
    if arguments[0] not in STUDIES:
        meant = nearest(arguments[0], STUDIES)
        raise UserError(f"unknown study {arguments[0]!r} (known: {', '.join(STUDIES)}){meant}")
    import_typed(arguments[1:])
    with described(arguments[1:]) as flags:
        STUDIES[arguments[0]](flags, f"{prog} {arguments[0]}")


@dataclasses.dataclass(frozen=True)
class Common:
    """Flags of every study of many runs."""

    size: Literal["small", "full"] = "full"
    """Size of the study; small trains few epochs of narrow models from one seed, as a preview of the report."""
    seeds: Seeds = ()
    """Seeds; each has its own teacher. Default: 0 1 2; 0 for a small study."""
    jobs: Annotated[int, Ge(1)] = 1
    """Number of runs at once; each has its own share of the processor cores, so that times can be compared."""
    print: Annotated[int, Ge(1)] | None = None
    """Stage whose runs to print as commands, one per line, in place of running them: 1 has the teachers, the last the
    methods. Default: run all."""


@dataclasses.dataclass(frozen=True)
class ComparisonOptions(Common):
    """Flags of a comparison."""

    methods: tuple[str, ...] | None = None
    """Methods to compare: names, joined methods (htd+rrd), or all. Default: all; svd fitnet ftd htd for a small
    study."""
    student_dims: Dims = ()
    """Widths of the students. Default: a tenth of the width of the model's default teacher."""


@dataclasses.dataclass(frozen=True)
class CapacityOptions(Common):
    """Flags of a study of capacity."""

    methods: tuple[str, ...] = ("ftd", "htd")
    """Methods to compare: names, joined methods (htd+rrd), or all."""
    shares: tuple[Annotated[float, Interval(ge=0.001, le=1)], ...] = capacity.SHARES
    """Widths of the students as shares of the teacher's, from 0.001 to 1."""


@dataclasses.dataclass(frozen=True)
class AblationOptions(Common):
    """Flags of an ablation."""

    of: Literal["htd", "best"] = "htd"
    """Method whose parts are removed one at a time."""


@dataclasses.dataclass(frozen=True)
class SensitivityOptions(Common):
    """Flags of a sensitivity."""

    groups: tuple[Annotated[int, Ge(1)], ...] = (5, 10, 30, 60, 100)
    """Values of K, the number of groups per side."""
    weight: tuple[Annotated[float, Ge(0)], ...] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
    """Values of lambda, the weight of the method's loss."""
    alpha: tuple[Annotated[float, Interval(ge=0, le=1)], ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    """Values of alpha, the share of the topology in the method's loss."""
    coldest: tuple[Annotated[float, Gt(0)], ...] = (1e-10, 1e-5, 1e-2, 1.0)
    """Values of the last temperature of the group assignment."""


@dataclasses.dataclass(frozen=True)
class LooksOptions(Common):
    """Flags of a study of what students are like."""

    methods: tuple[str, ...] = ("fitnet", "ftd", "htd")
    """Methods to compare: names, joined methods (htd+rrd), or all."""
    student_dims: Dims = ()
    """Width of the students. Default: a tenth of the model's default teacher."""


@dataclasses.dataclass(frozen=True)
class Many:
    """A study of many runs.

    Attributes:
      options: its flags.
      about: its help text.
      report: `(plan, rows, seen) -> Report`.
      variants: `options -> variants`.
      dims: `(options, run) -> widths` of the students; none for the default.
      look: `(plan, rows, log) -> seen`, what it reads from the trained models.
    """

    options: type[Common]
    about: str
    report: Callable[[Plan, Sequence[Row], Any], Report]
    variants: Callable[[Any], tuple[Variant, ...]] = lambda options: parse_methods(options.methods)
    dims: Callable[[Any, RunSpec], tuple[int, ...]] = lambda options, spec: getattr(options, "student_dims", ())
    look: Callable[[Plan, Sequence[Row], Log], Any] = lambda plan, every, log: None


def _compared(options: ComparisonOptions) -> tuple[Variant, ...]:
    default = SMALL_METHODS if options.size == "small" else ("all",)
    return parse_methods(default if options.methods is None else options.methods)


RESUMES = """

All flags of htd-jax train apply: --dataset and --epochs to every run, --htd.groups
to those that use htd.
Each run is a process with its own folder; the same command resumes a stopped
study, and repeats no finished run."""

MANY = {
    "comparison": Many(
        ComparisonOptions,
        """Compares every method with the plain student and its teacher, at several widths
and seeds; writes a report, tables and a picture under --runs.""",
        comparison.report,
        variants=_compared,
        look=comparison.look,
    ),
    "capacity": Many(
        CapacityOptions,
        """Compares students of 5% to 100% of the teacher's width: where does the whole
topology (ftd) overtake the hierarchy (htd)?""",
        capacity.report,
        dims=lambda options, spec: capacity.widths(options.shares, spec.settings.teacher_dim or 1),
    ),
    "ablation": Many(
        AblationOptions,
        "Compares a method with versions of it that lack one part.",
        ablation.report,
        variants=lambda options: ablation.ablated(options.of),
    ),
    "sensitivity": Many(
        SensitivityOptions,
        "Compares HTD under other values of its settings, one setting at a time.",
        ablation.report_of_values,
        variants=lambda options: ablation.varied({name: getattr(options, name) for name in ablation.VALUES}),
    ),
    "topology": Many(
        LooksOptions,
        """Measures what students keep of their teacher's relations: cosines within and
across groups, nearest neighbours, prototypes of groups, and articles that share a tag.""",
        looks.topology_report,
        look=looks.related,
    ),
    "beyond": Many(
        LooksOptions,
        """Measures what a mean of recalls hides: recall by popularity of the item and activity
of the user, coverage and popularity of the lists, and their likeness to the teacher's.""",
        looks.beyond_report,
        look=looks.listed,
    ),
}


def many(name: str, arguments: Sequence[str], prog: str) -> None:
    """Executes the runs of a study, and writes its report."""
    from htd_jax.command import use_devices

    kind = MANY[name]
    options, flags = parse_known(kind.options, arguments, prog=prog, description=kind.about + RESUMES)
    check(options)
    _refuse_own(flags, options)
    variants = kind.variants(options)
    flags = [*_small(flags, variants), *flags] if options.size == "small" else flags
    methods = "+".join(dict.fromkeys(part for variant in variants for part in variant.method.split("+")))
    request = parse_request([*flags, "--method", methods], prog=prog, description="", refuses=True)
    choose_callback(request.paths)
    if not request.paths.plain_student:
        raise UserError("a study compares with the plain student; leave out `plain_student=False`")
    request = dataclasses.replace(request, settings=override(request.settings, method=NO_METHOD))
    runs, dataset = request.paths.runs, request.load_dataset()
    spec = resolve_run(request, dataset)
    assert spec.settings.student_dim
    dims = tuple(dict.fromkeys(kind.dims(options, spec))) or (spec.settings.student_dim,)
    seeds = tuple(dict.fromkeys(options.seeds)) or ((0,) if options.size == "small" else (0, 1, 2))
    plan = Plan(request, tuple(flags), dataset, variants, dims, seeds)
    stages = plan.stages()
    if options.print:
        if options.print > len(stages):
            raise UserError(f"`print` {options.print}: this study has {len(stages)} stages")
        for job in stages[options.print - 1]:
            print(shlex.join(["htd-jax", "train", *job.arguments]))
        return
    number = sum(map(len, stages))
    data = fingerprint(dataset)
    check_report(runs, name, data)
    if request.paths.teacher:  # refuses an invalid teacher once, before any run
        open_teacher(request.paths, plan.spec, Experiment(dataset, spec.evaluation))
    print(f"{number} runs, under {runs}", flush=True)
    with claimed(runs, "study", "runs"), Status(number) as status:
        outcomes = carry_out(plan, data, at_once=options.jobs, started=status.started, ended=status.ended)
        every = rows(plan, outcomes)
        use_devices()  # only now, because the runs' processes may need the whole device
        report = kind.report(plan, every, kind.look(plan, every, status.log))
        widths = f"{spec.settings.teacher_dim} to {', '.join(map(str, dims))}"
        foot = about(f"{prog} {' '.join(arguments)}", dataset, seeds=", ".join(map(str, seeds)), dimensions=widths)
        written = write_report(runs, dataclasses.replace(report, foot=foot))
    print(report.markdown())
    print(f"report: {written}")
    if any(outcome.error for outcome in outcomes):
        sys.exit(1)


def _refuse_own(flags: Sequence[str], options: Common) -> None:
    """Raises UserError for a flag of a run that the study sets itself."""
    known = {field.name.replace("_", "-") for field in dataclasses.fields(options)} | {"runs"}
    for flag in flags:
        name = flag.partition("=")[0].removeprefix("--")
        if flag.startswith("--") and (own := OWN.get(name)) in known:
            raise UserError(f"`{name}` is not for studies; use `{own}`")
        if flag.startswith("--") and name == "method":
            raise UserError("`method` is not for this study, which has its own methods")


def _small(flags: Sequence[str], variants: Sequence[Variant]) -> list[str]:
    """Returns the flags of a small study that are not given, and that its methods have."""
    given = {flag.partition("=")[0] for flag in flags}
    has_htd = any("htd" in variant.method.split("+") for variant in variants)
    fits = lambda name: f"--{name}" not in given and (has_htd or not name.startswith("htd."))
    return [word for name, value in SMALL.items() if fits(name) for word in (f"--{name}", value)]


ABOUT_FRONTIER = """Measures recall against bytes per row, and against the time to rank all users, for
students by --method best, HTD, FTD, SVD and ALS, and for the iALS teacher's rows,
rounded or as product codes. Writes to the folder --runs: a report with frontier.md
and frontier.png, and all numbers in frontier.json. Models trained there are reused.

--dataset, --data-dir, --cutoffs, --metric and the flags for reading a file are those of
htd-jax train."""


@dataclasses.dataclass(frozen=True)
class FrontierOptions:
    """Flags of a frontier."""

    size: Literal["small", "full"] = "full"
    """Size of the study; small has two numbers of bytes and one seed, and leaves out HTD, FTD and product codes."""
    bytes: tuple[Annotated[int, Ge(2)], ...] = ()
    """Bytes per row, scale included. Default: 5 10 20 50 100; 5 10 for a small study."""
    kinds: tuple[str, ...] = ()
    """Kinds of models; pq and opq need faiss. Default: all; best svd als rounded for a small study."""
    seeds: Seeds = ()
    """Seeds; each has its own teacher. Default: 0 1 2; 0 for a small study."""


def frontier(arguments: Sequence[str], prog: str) -> None:
    from htd_jax.command import use_devices

    options, flags = parse_known(FrontierOptions, arguments, prog=prog, description=ABOUT_FRONTIER)
    check(options)
    small = options.size == "small"
    sizes = options.bytes or ((5, 10) if small else frontiers.SIZES)
    kinds = options.kinds or (("best", "svd", "als", "rounded") if small else frontiers.KINDS)
    seeds = options.seeds or ((0,) if small else (0, 1, 2))
    frontiers.check_kinds(kinds)
    request = parse_request([*flags, "--method", "best"], prog=prog, description="")
    if request.paths.teacher or request.settings.teacher_model not in (None, "ials"):
        raise UserError(
            "a frontier chooses its teacher, which is compressed too; leave out `teacher` and `teacher_model`"
        )
    runs, dataset = request.paths.runs, request.load_dataset()
    evaluation = resolve_run(request, dataset).evaluation
    note_ignored(request.paths)
    use_devices()
    metrics = shown_metrics([max(evaluation.cutoffs)])
    check_report(runs, "frontier", fingerprint(dataset))
    with claimed(runs, "study", "runs"), numerics():
        log = lambda line: print(f"  {line}", flush=True)
        points: list[frontiers.Point] = []
        for point in frontiers.Frontier(request, dataset, sizes, kinds, log).points(seeds):
            points.append(point)
            result = f"{point.size:g} bytes, seed {point.seed}: {metrics[0]} {point.test[metrics[0]]:.4f}"
            print(f"{point.kind}, {point.what}, {result}", flush=True)
        write_json(runs / "frontier.json", [dataclasses.asdict(point) for point in points])
        report = frontiers.report(points, metrics, dataset.name)
        foot = about(f"{prog} {' '.join(arguments)}", dataset, seeds=", ".join(map(str, seeds)))
        written = write_report(runs, dataclasses.replace(report, foot=foot))
    print(f"\n{report.markdown()}\nreport: {written}")


STUDIES: dict[str, Callable[[Sequence[str], str], None]] = {
    **{name: functools.partial(many, name) for name in MANY},
    "frontier": frontier,
    "tune": tune,
    "continual": continual,
    "weights": weights,
}


class Status:
    """The progress of a study: a bar in a terminal, and a line for each run that has ended."""

    def __init__(self, number: int):
        self._number, self._done = number, 0
        self._running: list[str] = []
        console = Console()
        columns = TextColumn("{task.completed}/{task.total} runs"), BarColumn(20), TextColumn("{task.fields[news]}")
        self._bar = Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task("", total=number, news="")

    def __enter__(self) -> "Status":
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def started(self, job: Job) -> None:
        self._running.append(_title(job))
        self._update()

    def ended(self, outcome: Outcome) -> None:
        self._done += 1
        title = _title(outcome.job)
        if title in self._running:
            self._running.remove(title)
        if outcome.error:
            news = f"failed: {outcome.error} (its output: {log_path(outcome.job)})"
        else:
            news = f"{outcome.seconds:.0f} s" if outcome.seconds else "reused"
        self._print(f"{self._done}/{self._number} {title}: {news}")
        self._update()

    def log(self, line: str) -> None:
        """Prints what is read after all runs have ended."""
        self._print(f"  {line}")

    def _print(self, line: str) -> None:
        self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _update(self) -> None:
        self._bar.update(self._task, completed=self._done, news="; ".join(self._running))


def _title(job: Job) -> str:
    settings = job.spec.settings
    method = "student" if settings.method == NO_METHOD else label(settings.method)
    changes = job.folder.name.removeprefix(run_name(settings, job.spec.evaluation)).removeprefix("-")
    changes = f" ({changes.replace('-', ', ')})" if changes else ""
    return f"{method}{changes}, {settings.student_dim} dimensions, seed {settings.seed}"
