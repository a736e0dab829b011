"""A trained model, out of its checkpoints."""

from pathlib import Path
from typing import Any, NamedTuple

from htd_jax.errors import UserError, shown
from htd_jax.models import MODELS, ModelOf
from htd_jax.settings import override
from htd_jax.training.checkpoint import Checkpoints


class Trained(NamedTuple):
    """A phase that was trained to its end.

    Attributes:
      make_model: its Flax module for the training interactions.
      variables: the module's, at the last epoch or, with early stopping, at the best.
      settings: what made it, as JSON.
      records: one for every evaluation.
      seconds: of training, of every epoch.
      distiller: what its method had to learn beside the student, at the last epoch; {} if nothing.
    """

    make_model: ModelOf
    variables: Any
    settings: dict[str, Any]
    records: list[dict[str, Any]]
    seconds: list[float]
    distiller: Any


def read_trained(folder: Path) -> Trained:
    """The phase in a folder of checkpoints.

    Raises:
      UserError: there is none, it is unfinished or damaged, or of no model that is known.
    """
    checkpoints = Checkpoints(folder)
    history, tree = checkpoints.history(), checkpoints.tree()
    settings = history["settings"]
    try:
        variables = tree.get("best") or tree["train"]["params"]["model"]
        distiller = tree["train"]["params"].get("distiller") or {}
        its = dict(settings["model"])
        name, dim, precision = its.pop("name"), its.pop("dim"), its.pop("precision", "float32")
        model = override(MODELS[name](), **its)
        settings["data"], settings["training"]["patience"], settings["evaluation"]["cutoffs"]
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{shown(folder)} is a checkpoint, but of no model that is known") from None
    if not history["finished"]:
        raise UserError(f"{shown(folder)} stopped after {checkpoints.latest} epochs, unfinished; finish it first")
    maker = ModelOf(model, dim, precision)
    return Trained(maker, variables, settings, history["records"], history["seconds"], distiller)
