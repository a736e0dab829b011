"""Every choice of a run, with its default and what it means."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import tyro

from htd_jax import distillers
from htd_jax.data import SOURCES, SPLITS
from htd_jax.distillers import LEVELS, Distiller
from htd_jax.errors import UserError
from htd_jax.evaluation import CUTOFFS, METRICS, Full, Sampled
from htd_jax.losses.topology import GROUP_LEVELS, PAIRS
from htd_jax.models import BPR, LightGCN, MakeModel, NeuMF, make_graph
from htd_jax.training import EarlyStopping, Representations


class Model(NamedTuple):
    """How a base model is made from the settings and a width, its usual teacher's width, and the settings it heeds."""

    make: Callable[["Config", int], MakeModel]
    teacher_dim: int
    settings: tuple[str, ...] = ()


class Method(NamedTuple):
    """How a method is made from the settings and the teacher, its usual weight, its name, and the settings it heeds."""

    make: Callable[["Config", Representations], Distiller]
    weight: float
    label: str
    settings: tuple[str, ...] = ()


def _htd(config: "Config", teacher: Representations) -> Distiller:
    given = {
        "learned": lambda: None,
        "random": lambda: distillers.random_groups(config.seed, *map(len, teacher), config.groups),
        "kmeans": lambda: distillers.kmeans_groups(config.seed, *teacher, config.groups),
    }
    return distillers.htd(
        num_groups=config.groups,
        alpha=config.alpha,
        group_level=config.group_level,
        pairs=config.pairs,
        levels=config.levels,
        noise=config.noise,
        groups=given[config.grouping](),
        epochs=config.epochs,
    )


MODELS = {
    "bpr": Model(lambda config, dim: lambda train: BPR(train.num_users, train.num_items, dim), 200),
    "neumf": Model(
        lambda config, dim: lambda train: NeuMF(train.num_users, train.num_items, dim, config.layers), 250, ("layers",)
    ),
    "lightgcn": Model(
        lambda config, dim: (
            lambda train: LightGCN(train.num_users, train.num_items, make_graph(train), dim, config.layers)
        ),
        200,
        ("layers",),
    ),
}

METHODS = {
    "ftd": Method(lambda config, teacher: distillers.ftd(), 1e-3, "FTD"),
    "htd": Method(_htd, 1e-3, "HTD", ("groups", "alpha", "group_level", "pairs", "levels", "grouping", "noise")),
    "fitnet": Method(lambda config, teacher: distillers.fitnet(), 1e-2, "FitNet"),
    "de": Method(
        lambda config, teacher: distillers.de(num_experts=config.groups, epochs=config.epochs), 1e-2, "DE", ("groups",)
    ),
    "phr": Method(lambda config, teacher: distillers.phr(), 1e-2, "PHR"),
}

# Not distilled: the plain student alone, and the best factors of the teacher's scores.
UNTRAINED = ("none", "svd")

GROUPINGS = ("learned", "random", "kmeans")
INITS = ("random", "svd")
PROTOCOLS = ("full", "sampled")

# Of the checkpoints; one of another format is not taken up.
FORMAT = 3

# The settings that make a phase what it is, beside the data, the model's and the method's own.
COMMON = ("epochs", "batch_size", "learning_rate", "l2", "seed", "eval_every", "cutoffs", "patience", "metric")


def _known(names: Any) -> str:
    return " | ".join(names)


def _choice(names: Any, meaning: str) -> Any:
    return Annotated[str, tyro.conf.arg(help=f"{_known(names)}: {meaning}")]


@dataclasses.dataclass(frozen=True)
class Config:
    """Train a wide teacher, a narrow student, and the same student with the teacher's help; compare the three."""

    dataset: _choice(SOURCES, "citeulike is the paper's.") = "synthetic"
    model: _choice(MODELS, "the base model of teacher and student.") = "bpr"
    method: _choice(
        (*UNTRAINED, *METHODS), "how the student is helped. Several at once: htd+fitnet. svd trains nothing."
    ) = "htd"
    seed: int = 0
    """Of everything random. The same seed gives the same bits."""

    teacher_dim: int | None = None
    """Width of the teacher's tables. Default: 200, neumf 250."""
    student_dim: int | None = None
    """Width of the student's. Default: a tenth of the usual teacher's: 20, neumf 25."""
    layers: int = 1
    """LightGCN: how often neighbours are averaged. NeuMF: hidden layers of its tower. The published
    figures were measured with one of either."""
    student_init: _choice(INITS, "where students start; svd: at the best factors of the teacher's scores (bpr).") = (
        "random"
    )

    epochs: int = 101
    """Passes over the training pairs, each phase. The temperature of HTD and DE falls over all of them."""
    batch_size: int = 1024
    """Training triples a step."""
    learning_rate: float = 1e-3
    """Of Adam."""
    l2: float = 1e-3
    """Times each parameter, added to its gradient."""
    eval_every: int = 10
    """Epochs between two evaluations."""
    patience: int | None = None
    """Stop once this many epochs have passed since the best one in validation, and keep that one. Default: all epochs
    are run, and the last one is kept."""
    metric: str | None = None
    """The metric by which an epoch is the best. Default: recall at the last of --cutoffs; if sampled, at the first."""

    protocol: _choice(PROTOCOLS, "rank a held-out item among all unseen items, or among a sample of them.") = "full"
    candidates: int = 499
    """The size of the sample. It is the same in every run."""
    cutoffs: tuple[int, ...] = CUTOFFS
    """The k of recall@k and every other metric."""

    weight: str | None = None
    """Lambda: the distillation loss counts this much against the base loss. A number, or one a method:
    htd=0.001,de=0.01. Default: ftd and htd 0.001, fitnet, de and phr 0.01."""
    groups: int = 30
    """HTD's K: groups of users, and as many of items; DE's experts."""
    alpha: float = 0.5
    """HTD: the topology's share of the distillation, from 0 to 1; the rest is the group assignment's."""
    group_level: _choice(GROUP_LEVELS, "what HTD relates across groups.") = "prototype-entity"
    pairs: _choice(
        PAIRS,
        "the pairs of one group that HTD relates, those with a positive cosine in the teacher (as the published "
        "figures were measured) or all (as the paper's equation says).",
    ) = "positive"
    levels: _choice(LEVELS, "HTD: which levels of the topology count.") = "both"
    grouping: _choice(GROUPINGS, "where HTD's groups come from; kmeans: of the teacher's representations.") = "learned"
    noise: bool = True
    """HTD: Gumbel noise in the assignment of groups."""

    data_dir: Path | None = None
    """Folder with the data set's files. Else $HTD_DATA_DIR/<dataset>, the user's cache, and a download, in turn."""
    min_interactions: int | None = None
    """Drop users with fewer. Default: citeulike-t 5, foursquare 20. The other data sets are fixed."""
    split: _choice(SPLITS, "hold out one item a user for each of validation and test, or a fifth of its items.") = (
        "leave-one-out"
    )
    split_seed: int = 0
    """Of the split. The runs of one comparison share it, whatever their --seed."""
    split_file: Path | None = None
    """A split to use as it is: the split.npz of a run folder."""
    runs: Path = Path("runs")
    """Folder of run folders; a teacher (or a plain student) already trained there under the same settings is used."""
    run: Path | None = None
    """This run's folder. Default: <runs>/<dataset>-<method>-<student dim>-seed<seed>, the dataset followed by model and
    protocol if they are not bpr and full. A killed run goes on there."""
    teacher: Path | None = None
    """A trained teacher to use: a run folder or a checkpoint in it. --teacher-dim is then the checkpoint's."""

    def check(self) -> "Config":
        """Itself with every default filled in, if every value is possible.

        Raises:
          UserError: the first one that is not.
        """
        choices = {
            "dataset": SOURCES,
            "model": MODELS,
            "student_init": INITS,
            "protocol": PROTOCOLS,
            "group_level": GROUP_LEVELS,
            "pairs": PAIRS,
            "levels": LEVELS,
            "grouping": GROUPINGS,
            "split": SPLITS,
        }
        for name, known in choices.items():
            _check_choice(name, getattr(self, name), known)
        for name in self.methods:
            _check_choice("method", name, (*UNTRAINED, *METHODS))
        if len(self.methods) > 1 and (set(self.methods) & set(UNTRAINED) or len(set(self.methods)) < len(self.methods)):
            raise UserError(f"--method: {self.method!r} must join different methods, none of them none or svd")
        if self.model == "neumf" and self.method == "svd":
            raise UserError("--method: svd needs scores that are products of two vectors, which neumf's are not")
        if self.model != "bpr" and self.student_init == "svd":
            raise UserError(f"--student-init: svd starts a bpr student, not one of {self.model}")
        config = self._filled()
        for name in ("teacher_dim", "student_dim", "epochs", "batch_size", "eval_every", "groups", "layers"):
            _check_least(name, getattr(config, name), 1)
        for name in ("patience", "min_interactions", "candidates"):
            if getattr(config, name) is not None:
                _check_least(name, getattr(config, name), 1)
        for cutoff in config.cutoffs:
            _check_least("cutoffs", cutoff, 1)
        for name in ("learning_rate", "l2"):
            if not 0 <= getattr(config, name) < float("inf"):
                raise UserError(f"--{_flag(name)}: must be at least 0 and finite, not {getattr(config, name)}")
        if not 0 <= config.alpha <= 1:
            raise UserError(f"--alpha: must lie in [0, 1], not {config.alpha}")
        for name in ("seed", "split_seed"):
            if not 0 <= getattr(config, name) < 2**32:
                raise UserError(f"--{_flag(name)}: must lie in [0, 2^32), not {getattr(config, name)}")
        known = [f"{name}@{k}" for name in METRICS for k in config.cutoffs]
        _check_choice("metric", config.metric, known)
        config.weights()
        return config

    def _filled(self) -> "Config":
        usual = MODELS[self.model].teacher_dim
        cutoffs = tuple(sorted(set(self.cutoffs))) or CUTOFFS
        return dataclasses.replace(
            self,
            teacher_dim=usual if self.teacher_dim is None else self.teacher_dim,
            student_dim=usual // 10 if self.student_dim is None else self.student_dim,
            cutoffs=cutoffs,
            metric=self.metric or f"recall@{cutoffs[-1 if self.protocol == 'full' else 0]}",
        )

    @property
    def methods(self) -> list[str]:
        return self.method.split("+")

    @property
    def folder(self) -> Path:
        name = [self.dataset, self.model, self.protocol, self.method, str(self.student_dim), f"seed{self.seed}"]
        return self.run or self.runs / "-".join(part for part in name if part not in ("bpr", "full"))

    @property
    def early_stopping(self) -> EarlyStopping | None:
        return None if self.patience is None else EarlyStopping(self.metric, self.patience)

    def make_protocol(self) -> Full | Sampled:
        return Full() if self.protocol == "full" else Sampled(self.candidates)

    def make_model(self, dim: int) -> MakeModel:
        return MODELS[self.model].make(self, dim)

    def weights(self) -> dict[str, float]:
        """Lambda of each method.

        Raises:
          UserError: --weight is not a number, nor numbers of these methods.
        """
        weights = {name: METHODS[name].weight for name in self.methods if name in METHODS}
        if self.weight is not None and "=" not in self.weight:
            given = dict.fromkeys(weights, self.weight)
        else:
            given = dict(part.partition("=")[::2] for part in (self.weight or "").split(",") if part)
        for name, text in given.items():
            if name not in weights:
                raise UserError(f"--weight: {name!r} is no method of this run; it has {', '.join(weights) or 'none'}")
            try:
                weights[name] = float(text)
            except ValueError:
                raise UserError(f"--weight: {text!r} is no number") from None
            if not 0 <= weights[name] < float("inf"):
                raise UserError(f"--weight: must be at least 0 and finite, not {text}")
        return weights

    def distiller(self, teacher: Representations) -> Distiller:
        """The methods, weighted."""
        parts = [distillers.scale(METHODS[name].make(self, teacher), weight) for name, weight in self.weights().items()]
        return parts[0] if len(parts) == 1 else distillers.chain(*parts)

    def phase(self, methods: list[str], dim: int, data: str, teacher: str | None = None) -> dict[str, Any]:
        """The settings of a phase, as JSON: two phases with equal ones have equal results.

        Args:
          teacher: what identifies the teacher that helps, or from whose factors the phase starts.
        """
        of_methods = [name for method in methods if method in METHODS for name in METHODS[method].settings]
        names = (*COMMON, *MODELS[self.model].settings, *dict.fromkeys(of_methods))
        values = {name: getattr(self, name) for name in names}
        return {
            "format": FORMAT,
            "model": self.model,
            "dim": dim,
            "data": data,
            "protocol": self.protocol,
            "candidates": self.candidates if self.protocol == "sampled" else None,
            "method": "+".join(methods),
            "weights": {name: weight for name, weight in self.weights().items() if name in methods},
            **{name: list(value) if isinstance(value, tuple) else value for name, value in values.items()},
            "teacher": teacher,
        }


def label(phase: str) -> str:
    """A phase's name for people: `htd+fitnet` is `student + HTD + FitNet`."""
    names = {"teacher": "teacher", "student": "student", "svd": "SVD of the teacher"}
    return names.get(phase) or " + ".join(["student", *(METHODS[name].label for name in phase.split("+"))])


def _check_choice(name: str, value: str, known: Any) -> None:
    if value not in known:
        raise UserError(f"--{_flag(name)}: unknown {name.replace('_', ' ')} {value!r}; known: {', '.join(known)}")


def _check_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise UserError(f"--{_flag(name)}: must be at least {least}, not {value}")


def _flag(name: str) -> str:
    return name.replace("_", "-")
