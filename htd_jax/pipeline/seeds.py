"""The same phase from several seeds, as one program."""

import contextlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax

from htd_jax.data import Interactions
from htd_jax.distillers import Lists, Representations, Teacher
from htd_jax.errors import UserError
from htd_jax.models import MakeModel
from htd_jax.pipeline.experiment import (
    AnyMethod,
    AnyTeacher,
    Experiment,
    Fitted,
    Plan,
    check_seed,
    method_name,
    numerics,
    resolve,
    size_of,
)
from htd_jax.pipeline.progress import ProgressLine
from htd_jax.settings import Settings


def fit_seeds(
    data: Any,
    *,
    seeds: Iterable[int],
    model: str | Settings | MakeModel = "bpr",
    dim: int | None = None,
    at_once: int | None = None,
    folder: Path | str | None = None,
    progress: bool = True,
    **settings: Any,
) -> list[Fitted]:
    """Trains the same recommender from several seeds, as one program that is compiled once.

    On a CPU the seeds take turns at every epoch, and each comes to the bits that `fit` gives; on anything else they go
    side by side, and come to the same but for rounding.

    Args:
      seeds: different ones.
      at_once: how many at most; as many as half the memory holds if None.
      folder: of the seeds' folders of checkpoints, `seed0`, `seed1`, ...: a call goes on with whatever it finds there,
        of `fit` too.
      data, model, dim, progress, settings: see `fit`.

    Returns:
      A recommender a seed.

    Raises:
      UserError, TypeError: see `fit`.

    >>> import htd_jax
    >>> data = htd_jax.data.make_synthetic(num_users=100, num_items=200)
    >>> teachers = htd_jax.fit_seeds(data, seeds=range(2), dim=8, epochs=2, progress=False)
    >>> students = htd_jax.distill_seeds(teachers, data, seeds=range(2), method="ftd", dim=2, epochs=2, progress=False)
    >>> [student.settings["seed"] for student in students]
    [0, 1]
    """
    with numerics():
        seeds = _different(seeds, at_once)
        experiment = Experiment.of(data, seeds[0], **settings)
        plan = lambda seed: experiment.plan("teacher", model, dim, folder=_of_seed(folder, seed), seed=seed)
        plans = [plan(seed) for seed in seeds]
        return carry_out_all(experiment, plans, at_once=at_once, progress=progress, title="teacher")


def distill_seeds(
    teachers: AnyTeacher | Sequence[AnyTeacher],
    data: Any,
    *,
    seeds: Iterable[int],
    method: AnyMethod | list[AnyMethod] = "htd",
    model: str | Settings | MakeModel = "bpr",
    dim: int | None = None,
    precision: str = "float32",
    start: str | Sequence[Fitted] = "random",
    at_once: int | None = None,
    folder: Path | str | None = None,
    progress: bool = True,
    **settings: Any,
) -> list[Fitted]:
    """Trains the same student from several seeds with a teacher's help, see `fit_seeds`.

    A method that is made of the seed itself, as HTD with random groups is, or of teachers that differ, is trained seed
    by seed.

    Args:
      teachers: one for all, or a list of one a seed; each as in `distill`.
      start: `random`, `svd`, or a student a seed, where it ended.
      seeds, at_once, folder: see `fit_seeds`.
      data, method, model, dim, precision, progress, settings: see `distill`.

    Returns:
      A student a seed.

    Raises:
      UserError, TypeError: see `distill`.
    """
    with numerics():
        seeds = _different(seeds, at_once)
        experiment = Experiment.of(data, seeds[0], **settings)
        one_each = isinstance(teachers, list | tuple) and not isinstance(teachers, Representations | Lists)
        given: Any = list(teachers) if one_each else [teachers] * len(seeds)  # type: ignore[arg-type]
        starts: Any = [start] * len(seeds) if isinstance(start, str) else list(start)
        for what, some in (("teachers", given), ("start", starts)):
            if len(some) != len(seeds):
                raise UserError(f"{what}: {len(some)} of them for {len(seeds)} seeds")
        of_each = {id(one): one.teacher() if isinstance(one, Fitted) else Teacher.of(one) for one in given}
        methods = resolve(method)
        title = method_name(methods)
        plans = [
            experiment.plan(
                title,
                model,
                dim,
                of_each[id(teacher)],
                teacher.settings if isinstance(teacher, Fitted) else {},
                methods,
                precision=precision,
                start=first,
                folder=_of_seed(folder, seed),
                seed=seed,
            )
            for seed, teacher, first in zip(seeds, given, starts)
        ]
        return carry_out_all(experiment, plans, at_once=at_once, progress=progress, title=title)


def carry_out_all(
    experiment: Experiment,
    plans: Sequence[Plan],
    *,
    at_once: int | None = None,
    progress: bool | ProgressLine = True,
    title: str,
) -> list[Fitted]:
    """Trains phases that differ in seed, teacher and start alone, as many at once as there is room for.

    Those of which no two go together, see `Plan.goes_with`, are trained one after another; a line says so.

    Args:
      at_once: so many together; if None, as many as half the memory holds, see `Plan.bytes`.
    """
    most = at_once or room_for(plans, experiment.split.train)
    groups: list[list[Plan]] = []
    for plan in plans:
        open_to = (group for group in groups if len(group) < most and plan.goes_with(group[0]))
        if group := next(open_to, None):
            group.append(plan)
        else:
            groups.append([plan])
    if progress and len(groups) > 1:
        print(f"{title}: {len(plans)} seeds in {len(groups)} groups of at most {max(map(len, groups))} at once")
    fitted: dict[int, Fitted] = {}
    for group in groups:
        seeds = ", ".join(str(plan.made_by["seed"]) for plan in group)
        trained = experiment.carry_out(group, progress=progress, title=f"{title}, seed {seeds}")
        fitted |= {id(plan): its for plan, its in zip(group, trained)}
    return [fitted[id(plan)] for plan in plans]


def room_for(plans: Sequence[Plan], train: Interactions) -> int:
    """How many of phases of one size half the memory holds, of the first device or, if that is the processor, of the
    machine; all, where it does not say how much there is. A teacher counts where each has its own."""
    memory = (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
    with contextlib.suppress(AttributeError, ValueError, OSError):  # not POSIX
        memory = memory or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if not memory:
        return len(plans)
    teachers = [plan.phase.teacher for plan in plans]
    of_teacher = 0 if all(teacher is teachers[0] for teacher in teachers) else max(map(size_of, teachers))
    return max(1, memory // (2 * (plans[0].bytes(train) + of_teacher)))


def _different(seeds: Iterable[int], at_once: int | None) -> list[int]:
    """The seeds, checked, and `at_once`."""
    if not isinstance(seeds, Iterable):
        raise UserError(f"seeds: must be several numbers, as range(5) is, not {seeds!r}")
    found = [check_seed(seed) for seed in seeds]
    if not found or len(set(found)) < len(found):
        raise UserError(f"seeds: must be different ones, and one at least, not {found}")
    if at_once is not None and (isinstance(at_once, bool) or not isinstance(at_once, int) or at_once < 1):
        raise UserError(f"at_once: must be a whole number of at least 1, not {at_once!r}")
    return found


def _of_seed(folder: Path | str | None, seed: int) -> Path | None:
    return None if folder is None else Path(folder) / f"seed{seed}"
