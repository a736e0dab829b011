"""The study that searches a method's settings."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Annotated

from annotated_types import Ge

from htd_jax.command.flags import parse_request
from htd_jax.command.parsing import parse_known
from htd_jax.command.tensorboard import note_ignored
from htd_jax.errors import UserError
from htd_jax.pipeline import Fitted, claimed, numerics, open_teacher, prepare_run
from htd_jax.settings import check
from htd_jax.studies import tune as study
from htd_jax.studies.tables import write_table
from htd_jax.studies.tune import Trial, Tuning
from htd_jax.writing import whole

ABOUT = """Searches the settings of --method for the best student in validation. Writes to a
folder under --runs: a table of the best trials and the command that trains with
the best settings (tune.md), and an Optuna database of all trials (tune.db). Teacher
and plain student are trained once. The same command resumes a stopped search.

All flags of htd-jax train apply: --dataset, --method, --student-dim, --epochs,
--patience, --metric, --seed. Needs Optuna: pip install optuna."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Flags of a search."""

    trials: Annotated[int, Ge(1)] = 20
    """Total number of trials, including those of an interrupted search; the first has the settings of the flags."""
    search: tuple[str, ...] = ()
    """Settings to search: htd.groups, htd.groups=10:100, weight=1e-4:1e-1:log, htd.pairs=positive,all. Default: every
    number within a factor of 10 of its default, the weight within 100, and every choice."""
    storage: str | None = None
    """Trials that several processes share, each with its own --runs: a database's URL, such as sqlite:///all.db or
    postgresql://..., or a file of Optuna's journal, for disks in a network. Default: tune.db of the search's folder."""


def tune(arguments: Sequence[str], prog: str) -> None:
    from htd_jax.command import use_devices

    options, flags = parse_known(Options, arguments, prog=prog, description=ABOUT)
    check(options)
    if any(flag.partition("=")[0] == "--run" for flag in flags):
        raise UserError("`run` is not for studies; use `runs`")
    request = parse_request(flags, prog=prog, description="")
    if any(method.searched for method in request.methods.values()):
        if request.settings.budget not in (None, "0"):
            raise UserError("`budget` is for train, which chooses by itself; leave it out")
        flags = [*(flag for flag in flags if flag.partition("=")[0] != "--budget"), "--budget=0"]  # tunes the defaults
        request = parse_request(flags, prog=prog, description="")
    space = study.parse_search(options.search, request.methods) if request.methods else {}
    if not space:
        raise UserError(f"`method` {request.settings.method} has no settings to search")
    study.check_library()
    note_ignored(request.paths)
    use_devices()
    runs = request.paths.runs
    with numerics():
        spec, experiment = prepare_run(request)
        given = open_teacher(request.paths, spec, experiment)
        with claimed(runs, "study", "runs"):
            tuning = Tuning(spec, experiment, given, space, options.storage)
            plain: dict[str, float] = {}

            def log(name: str, fitted: Fitted) -> None:
                plain[name] = fitted.chosen["valid"][tuning.metric]
                print(f"{name}: valid {tuning.metric} {plain[name]:.4f}", flush=True)

            trials: list[Trial] = []
            for trial in study.search(tuning, options.trials, log=log):
                trials.append(trial)
                print(f"{len(trials)}/{options.trials} {describe(trial, tuning.metric)}", flush=True)
            table = study.table(tuning, trials, plain)
            text = table.markdown()
            if shares := study.importance(tuning, trials):
                text += "\nImportance: " + ", ".join(f"{name} {share:.0%}" for name, share in shares.items()) + ".\n"
            if best := study.best_first(trials):
                text += f"\nTrain with the best:\n\n    {study.command(flags, best[0].settings)}\n"
            with whole(tuning.folder / "tune.md") as partial:
                partial.write_text(f"`{prog} {without_passwords(' '.join(arguments))}`\n\n{text}", "utf-8")
            for ending in (".csv", ".tex"):
                write_table(tuning.folder / f"tune{ending}", table)
    print(f"\n{text}\ntable: {tuning.folder / 'tune.md'}")
    if not best:
        raise UserError("no trial was completed; set other ranges with `search`, and another folder with `runs`")


def without_passwords(text: str) -> str:
    """Returns a command without the passwords of URLs in it.

    >>> without_passwords("--storage postgresql://me:secret@host/db")
    '--storage postgresql://me:***@host/db'
    """
    return re.sub(r"(://[^:/@\s]*):[^@\s]+@", r"\1:***@", text)


def describe(trial: Trial, metric: str) -> str:
    """Returns a trial in a line."""
    settings = ", ".join(f"{name} {study.short(value)}" for name, value in trial.settings.items())
    if trial.error:
        return f"{settings}: failed: {trial.error}"
    pruned = "" if trial.pruned is None else f", pruned after epoch {trial.pruned}"
    return f"{settings}: valid {metric} {trial.value:.4f}{pruned}"
