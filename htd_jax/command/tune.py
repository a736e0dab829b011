"""A study that searches a method's settings."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated

from annotated_types import Ge

from htd_jax.command.flags import parse_config, parse_known
from htd_jax.command.tensorboard import say_unheeded
from htd_jax.errors import UserError
from htd_jax.pipeline import Fitted, claimed, prepare
from htd_jax.pipeline.experiment import numerics
from htd_jax.settings import check
from htd_jax.studies import tune as tuning_study
from htd_jax.studies.tune import Trial, Tuning
from htd_jax.writing import whole

ABOUT = """The settings of --method, searched by what its student reaches in validation:
a table (tune.md), every trial (tune.db, as Optuna keeps them), and the command
that trains with the best, in a folder of the search under --runs. Teacher and
plain student are trained once. The same command goes on where it was stopped.

All flags of htd-jax train count: --dataset, --method, --student-dim, --epochs,
--patience, --metric, --seed. It needs Optuna: pip install optuna."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Of a search."""

    trials: Annotated[int, Ge(1)] = 20
    """How many, those of before among them. The first has the settings that the run has."""
    search: tuple[str, ...] = ()
    """What is searched: htd.groups, weight=1e-4:1e-1:log, htd.groups=10:100, htd.pairs=positive,all. Default: every
    number within a factor of 10 of its default, the weight of 100, and every choice."""


def tune(arguments: Sequence[str], prog: str) -> None:
    from htd_jax.command import use_devices

    options, flags = parse_known(Options, arguments, prog=prog, description=ABOUT)
    check(options)
    if any(flag.partition("=")[0] == "--run" for flag in flags):
        raise UserError("--run: a study has --runs")
    config = parse_config(flags, prog=prog, description="").filled()
    if not config.methods:
        raise UserError("--method: none has nothing to search")
    space = tuning_study.parse_search(options.search, config.methods)
    if not space:
        raise UserError(f"--method: {config.what.method} has nothing to search")
    tuning_study.check_library()
    say_unheeded(config.places)
    use_devices()
    with claimed(config.places.runs, "study", "--runs"), numerics():
        tuning = Tuning(*prepare(config), space)
        plain: dict[str, float] = {}

        def told(name: str, fitted: Fitted) -> None:
            plain[name] = fitted.chosen["valid"][tuning.metric]
            print(f"{name}: valid {tuning.metric} {plain[name]:.4f}", flush=True)

        trials: list[Trial] = []
        for trial in tuning_study.search(tuning, options.trials, told=told):
            trials.append(trial)
            print(f"{len(trials)}/{options.trials} {said(trial, tuning.metric)}", flush=True)
        text = tuning_study.table(tuning, trials, plain)
        if matters := tuning_study.importance(tuning, trials):
            text += "\nWhat decides: " + ", ".join(f"{name} {share:.0%}" for name, share in matters.items()) + ".\n"
        if best := tuning_study.best_first(trials):
            text += f"\nTrain with the best:\n\n    {tuning_study.command(flags, best[0].settings)}\n"
        with whole(tuning.folder / "tune.md") as partial:
            partial.write_text(f"`{prog} {' '.join(arguments)}`\n\n{text}")
    print(f"\n{text}\ntable: {tuning.folder / 'tune.md'}")
    if not best:
        raise UserError("no trial came to its end; search other ranges with --search, in another folder")


def said(trial: Trial, metric: str) -> str:
    """A trial in a line."""
    settings = ", ".join(f"{name} {tuning_study.shown_value(value)}" for name, value in trial.settings.items())
    if trial.error:
        return f"{settings}: failed: {trial.error}"
    given_up = "" if trial.pruned is None else f", given up after epoch {trial.pruned}"
    return f"{settings}: valid {metric} {trial.value:.4f}{given_up}"
