"""Trains a teacher (a wide recommender), a plain student (a narrow one), and a student distilled from the teacher, and
shows what share of the gap between student and teacher is closed by distillation."""

from collections.abc import Sequence

from htd_jax.command.flags import import_typed, parse_request
from htd_jax.command.processes import number_of, silence
from htd_jax.command.report import draw_curves, outline, print_table
from htd_jax.command.tensorboard import choose_callback
from htd_jax.pipeline import numerics, open_teacher, prepare_run, run
from htd_jax.processes import is_first, join


def train(arguments: Sequence[str], prog: str = "htd-jax train") -> None:
    from htd_jax.command import use_devices

    if number_of(arguments):
        silence()
    import_typed(arguments)
    request = parse_request(arguments, prog=prog, description=__doc__ or "")
    callback = choose_callback(request.paths)
    join(request.devices.coordinator, request.devices.processes, request.devices.process)
    if not is_first():
        silence()
    use_devices()
    with numerics():
        spec, experiment = prepare_run(request)
        teacher = open_teacher(request.paths, spec, experiment)
        paths = request.paths
        if is_first():
            print(outline(spec, plain_student=paths.plain_student, until=paths.until), flush=True)
        result = run(
            spec,
            experiment,
            teacher,
            callback=callback,
            baselines=paths.baselines,
            until=paths.until,
            plain_student=paths.plain_student,
        )
    if not is_first():
        return
    print_table(result)
    draw_curves(result, f".{paths.curves}")
    print(f"run folder: {result.spec.folder}")
