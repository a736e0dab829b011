"""What else the student's bytes could hold: the teacher itself, compressed, and a model that is fitted in seconds."""

import time
from typing import Any

from htd_jax.models import ModelOf
from htd_jax.ops.codes import row_bytes
from htd_jax.ops.precision import for_bytes
from htd_jax.pipeline.experiment import Experiment
from htd_jax.pipeline.fitted import Fitted
from htd_jax.pipeline.progress import silent
from htd_jax.pipeline.request import RunSpec
from htd_jax.pipeline.spec import STUDENT, PhaseRequest, resolve


def measure_baselines(spec: RunSpec, experiment: Experiment, teacher: Fitted) -> dict[str, dict[str, Any]]:
    """Returns the metrics of the teacher's SVD and of iALS, both in as many bytes per row as the student has, in the
    width and precision that rank best in that size, see `htd_jax.ops.precision.for_bytes`.

    Returns:
      By label: `{"dim", "precision", "row_bytes", "seconds", "valid", "test"}`, and `sample`, another `{"valid",
      "test"}`, if the evaluations during training use a sample of users. The SVD is left out if the teacher's scores
      are not products of rows.
    """
    student = spec.student
    assert student.dim is not None
    size = row_bytes(
        student.dim, student.make_model.precision if isinstance(student.make_model, ModelOf) else "float32"
    )
    widest: int = teacher.settings["model"]["dim"] or spec.settings.teacher_dim or 2 * size
    dim, precision = for_bytes(size, widest)
    kinds: dict[str, dict[str, Any]] = {f"iALS in {size} bytes per row": {"model": "ials"}}
    if teacher.teacher().inner_product:
        kinds = {f"teacher in {size} bytes per row": {"model": "bpr", "method": "svd"}, **kinds}
    found: dict[str, dict[str, Any]] = {}
    for label, kind in kinds.items() if dim else ():
        request = PhaseRequest(STUDENT, dim=dim, precision=precision, seed=student.seed, **kind)
        phase = resolve(request, experiment.data.split)
        began = time.perf_counter()
        fitted = experiment.train(phase, teacher, progress=silent, title=label)
        found[label] = {
            "dim": dim,
            "precision": precision,
            "row_bytes": row_bytes(dim, precision),
            "seconds": time.perf_counter() - began,
            "valid": fitted.chosen["valid"],
            "test": fitted.chosen["test"],
        }
        if (last := fitted.records[-1]).get("sampled"):
            found[label]["sample"] = {part: last[part] for part in ("valid", "test")}
    return found
