"""The evaluation of models on a data set, whose users may be new."""

from typing import Any

from htd_jax.data import Dataset
from htd_jax.errors import UserError
from htd_jax.evaluation import EvaluationSpec, Evaluator, make_evaluator
from htd_jax.evaluation.metrics import Metrics
from htd_jax.models import BPRSettings, MakeModel, ModelOf, represent_all
from htd_jax.ops.precision import Rows
from htd_jax.serving.fold import fold_new_users
from htd_jax.training import Partitioning


def evaluator_of(
    data: Dataset,
    evaluation: EvaluationSpec,
    users: int | None = None,
    partitioning: Partitioning | None = None,
) -> Evaluator:
    """Returns the evaluation of models on a data set.

    Args:
      data: the data set.
      evaluation: how models are evaluated.
      users: the number of users to sample; all if None.
      partitioning: where the models' variables are, on several devices; None on one.

    Raises:
      UserError: if the protocol is impossible on this split, or users are new on several devices.
    """
    if data.new_users is not None and partitioning is not None:
        raise UserError("`split` new-users is evaluated on one device only; leave out `mesh`")
    protocol = evaluation.make()
    made = make_evaluator(data.split, cutoffs=evaluation.cutoffs, protocol=protocol, users=users, mesh=partitioning)
    return made if data.new_users is None else for_new_users(made, data)


def for_new_users(evaluate: Evaluator, data: Dataset) -> Evaluator:
    """Returns an evaluation of data with new users: a model's rows of these are made from their known items.

    Raises:
      UserError: when it is called, if the model has no such rows.
    """

    def evaluate_folded(make_model: MakeModel, variables: Any) -> dict[str, Metrics]:
        model = make_model(data.train)
        if model.from_history:
            return evaluate(make_model, variables)
        if not model.inner_product:
            raise UserError(
                f"`split` new-users needs a model that has rows of new users, and {type(model).__name__} has none; set "
                "`users` to folded, or `model` to one whose scores are inner products"
            )
        users, items = (Rows(table) for table in represent_all(make_model, variables, data.learned))
        tables = {"users": fold_new_users(users, items, data).floats(), "items": items.floats()}
        return evaluate(ModelOf(BPRSettings(), items.dim), {"params": tables})

    return evaluate_folded
