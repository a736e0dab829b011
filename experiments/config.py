"""Every choice of a run, with its default and what it means."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import tyro

from htd_jax.data import SOURCES
from htd_jax.distillers import Distiller, ftd, htd, none, scale
from htd_jax.errors import UserError
from htd_jax.losses.topology import GROUP_LEVELS, PAIRS

# How a method is made from a run's settings. The weight of the distillation is not the method's own affair.
METHODS = {
    "none": lambda config: none(),
    "ftd": lambda config: ftd(),
    "htd": lambda config: htd(
        num_groups=config.groups,
        alpha=config.alpha,
        group_level=config.group_level,
        pairs=config.pairs,
        epochs=config.epochs,
    ),
}

# Of the checkpoints; one of another format is not taken up.
FORMAT = 1

# The settings that make a phase what it is, beside the data; a teacher is looked for by these.
COMMON = ("epochs", "batch_size", "learning_rate", "l2", "seed", "eval_every")
OF_METHOD = {
    "none": (),
    "ftd": ("weight",),
    "htd": ("weight", "groups", "alpha", "group_level", "pairs"),
}


def _known(names: Any) -> str:
    return " | ".join(names)


@dataclasses.dataclass(frozen=True)
class Config:
    """Train a wide teacher, a narrow student, and the same student with the teacher's help; compare the three."""

    dataset: Annotated[str, tyro.conf.arg(help=f"{_known(SOURCES)}: citeulike is the paper's.")] = "synthetic"
    method: Annotated[str, tyro.conf.arg(help=f"{_known(METHODS)}: how the student is helped.")] = "htd"
    seed: int = 0
    """Of everything random. The same seed gives the same bits."""

    teacher_dim: int = 200
    """Width of the teacher's representations."""
    student_dim: int = 20
    """Width of the student's."""

    epochs: int = 101
    """Passes over the training pairs, each phase. HTD's temperature falls over all of them."""
    batch_size: int = 1024
    """Training triples a step."""
    learning_rate: float = 1e-3
    """Of Adam."""
    l2: float = 1e-3
    """Times each parameter, added to its gradient."""
    eval_every: int = 10
    """Epochs between two evaluations; a checkpoint is written at each."""

    weight: float = 1e-3
    """Lambda: the distillation loss counts this much against the base loss."""
    groups: int = 30
    """HTD's K: groups of users, and as many of items."""
    alpha: float = 0.5
    """HTD: the topology's share of the distillation, from 0 to 1; the rest is the group assignment's."""
    group_level: Annotated[str, tyro.conf.arg(help=f"{_known(GROUP_LEVELS)}: what HTD relates across groups.")] = (
        "prototype-entity"
    )
    pairs: Annotated[
        str,
        tyro.conf.arg(
            help=f"{_known(PAIRS)}: the pairs of one group that HTD relates, those with a positive cosine in the "
            "teacher (as the published figures were measured) or all (as the paper's equation says)."
        ),
    ] = "positive"

    data_dir: Path | None = None
    """Folder with the data set's files. Else $HTD_DATA_DIR/<dataset>, the user's cache, and a download, in turn."""
    runs: Path = Path("runs")
    """Folder of run folders; a teacher (or a plain student) already trained there under the same settings is used."""
    run: Path | None = None
    """This run's folder. Default: <runs>/<dataset>-<method>-<student dim>-seed<seed>. A killed run goes on there."""
    teacher: Path | None = None
    """A trained teacher to use: a run folder or a checkpoint in it. --teacher-dim is then the checkpoint's."""

    def check(self) -> "Config":
        """Itself, if every value is possible.

        Raises:
          UserError: the first one that is not.
        """
        for name, known in (("dataset", SOURCES), ("method", METHODS), ("group_level", GROUP_LEVELS), ("pairs", PAIRS)):
            value = getattr(self, name)
            if value not in known:
                raise UserError(f"--{_flag(name)}: unknown {_words(name)} {value!r}; known: {', '.join(known)}")
        for name in ("teacher_dim", "student_dim", "epochs", "batch_size", "eval_every", "groups"):
            if getattr(self, name) < 1:
                raise UserError(f"--{_flag(name)}: must be at least 1, not {getattr(self, name)}")
        for name in ("learning_rate", "l2", "weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UserError(f"--{_flag(name)}: must be at least 0 and finite, not {getattr(self, name)}")
        if not 0 <= self.alpha <= 1:
            raise UserError(f"--alpha: must lie in [0, 1], not {self.alpha}")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"--seed: must lie in [0, 2^32), not {self.seed}")
        return self

    @property
    def folder(self) -> Path:
        return self.run or self.runs / f"{self.dataset}-{self.method}-{self.student_dim}-seed{self.seed}"

    def distiller(self) -> Distiller:
        """The method, weighted."""
        return scale(METHODS[self.method](self), self.weight)

    def phase(self, method: str, dim: int, data: str, teacher: dict[str, Any] | None = None) -> dict[str, Any]:
        """The settings of a phase, as JSON: two phases with equal ones have equal results."""
        names = COMMON + OF_METHOD[method]
        return {
            "format": FORMAT,
            "model": "bpr",
            "dim": dim,
            "data": data,
            "method": method,
            **{name: getattr(self, name) for name in names},
            "teacher": teacher,
        }


def _flag(name: str) -> str:
    return name.replace("_", "-")


def _words(name: str) -> str:
    return name.replace("_", " ")
