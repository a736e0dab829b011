"""The study that measures what part of a step each method's loss has."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from htd_jax.command.flags import parse_request
from htd_jax.command.parsing import parse_known
from htd_jax.command.study_report import about, check_report, write_report
from htd_jax.command.tensorboard import note_ignored
from htd_jax.data import fingerprint
from htd_jax.errors import UserError
from htd_jax.pipeline import (
    NO_METHOD,
    STUDENT,
    TEACHER,
    Fitted,
    PhaseSpec,
    RunFolder,
    claimed,
    label,
    numerics,
    open_teacher,
    prepare_run,
    train_phases,
)
from htd_jax.settings import override
from htd_jax.studies import parse_methods
from htd_jax.studies import weights as study

ABOUT = """Measures what part of the gradient of a step each method has with its weight, and the
weight with which it has an equal part: losses are sums over a batch of different
things, so that .01 is much for one method and nothing for another. Trains teacher
and plain student, or reuses those under --runs; methods are not trained.

All flags of htd-jax train apply: --dataset, --epochs, --rrd.weight."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Flags of a study of weights."""

    methods: tuple[str, ...] = ("all",)
    """Methods to measure: names, or all."""


def weights(arguments: Sequence[str], prog: str) -> None:
    from htd_jax.command import use_devices

    options, flags = parse_known(Options, arguments, prog=prog, description=ABOUT)
    if own := {"--run", "--method"} & {flag.partition("=")[0] for flag in flags}:
        raise UserError(f"`{min(own)[2:]}` is not for studies; use `{'methods' if '--method' in own else 'runs'}`")
    variants = parse_methods(options.methods)
    joined = [variant.method for variant in variants if "+" in variant.method]
    if joined:
        raise UserError(f"`methods` {joined[0]}: parts of joined methods are measured one by one; name each")
    names = "+".join(variant.method for variant in variants)
    request = parse_request([*flags, "--method", names], prog=prog, description="", refuses=True)
    note_ignored(request.paths)
    if request.devices.mesh:
        raise UserError("gradients are measured on one device; leave out `mesh`")
    request = dataclasses.replace(request, settings=override(request.settings, method=NO_METHOD))
    runs = request.paths.runs
    use_devices()
    with numerics():
        spec, experiment = prepare_run(request)
        check_report(runs, "weights", fingerprint(experiment.data))
        given = open_teacher(request.paths, spec, experiment)
        folder = RunFolder(runs / f"{spec.folder.name}-weights")

        def train(phase: PhaseSpec, *teachers: Fitted, **options: Any) -> Fitted:
            checkpoints = folder.checkpoints(phase.name)
            return experiment.train(phase, *teachers, **options, folder=checkpoints, runs=runs, title=label(phase.name))

        with claimed(runs, "study", "runs"):
            phases = train_phases(spec, given, train)
            found = []
            for weighed in study.weigh(request, experiment, phases[TEACHER], phases[STUDENT], variants):
                found.append(weighed)
                news = weighed.error or f"{weighed.later:.1%} of the gradient at the plain student"
                print(f"{len(found)}/{len(variants)} {weighed.name}: {news}", flush=True)
            report = study.report(found, experiment.data)
            foot = about(f"{prog} {' '.join(arguments)}", experiment.data)
            written = write_report(runs, dataclasses.replace(report, foot=foot))
    print(f"\n{report.markdown()}\nreport: {written}")
