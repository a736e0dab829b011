"""What happens between a command and its first step: `python benchmarks/startup.py --dataset citeulike --method htd`.

Runs `htd-jax train` with these flags for one epoch per phase, twice with one cache of compiled programs, which is empty
at first. `--fit 5000` measures `htd_jax.fit` on so many synthetic users instead. Everything runs in separate processes,
whose seconds are counted from their start: on a busy machine, compare processor seconds.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

STAGES = {
    "/jax/core/compile/jaxpr_trace_duration": "tracing",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lowering",
    "/jax/core/compile/backend_compile_duration": "compiling",
}


def measure(flags: list[str], users: int, begin: float) -> dict[str, Any]:
    """Runs the work in this process; returns seconds since `begin` by moment, and by program and stage."""
    import jax

    programs: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    moments: dict[str, tuple[float, float]] = {}

    def note(moment: str) -> None:
        moments.setdefault(moment, (time.time() - begin, time.process_time()))

    def listen(event: str, seconds: float, **facts: Any) -> None:
        if event in STAGES:
            name = str(facts.get("fun_name", "all")).removeprefix("jit(").removesuffix(")")
            programs[name][STAGES[event]] += seconds

    jax.monitoring.register_event_duration_secs_listener(listen)
    import htd_jax
    import htd_jax.command.train as command
    from htd_jax.pipeline import experiment
    from htd_jax.training import loop

    note("imports")
    compile_epoch, run_phase = loop.compile_epoch, experiment.run_phase

    def first_phase(*inputs: Any, **options: Any) -> Any:
        note("data")
        return run_phase(*inputs, **options)

    def first_step(*inputs: Any) -> Any:
        compiled = compile_epoch(*inputs)
        note("first step")
        return compiled

    experiment.run_phase, loop.compile_epoch = first_phase, first_step  # type: ignore[attr-defined]
    if users:
        data = htd_jax.data.make_synthetic(num_users=users, num_items=users // 5)
        htd_jax.fit(data, dim=20, epochs=2, progress=False)
    else:
        command.train(flags)
    note("end")
    return {"moments": moments, "programs": programs}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--fit", type=int, default=0, metavar="USERS")
    options.add_argument("--begin", type=float, help=argparse.SUPPRESS)
    given, flags = options.parse_known_args()
    if given.begin:
        found = measure(flags, given.fit, given.begin)
        Path(os.environ["STARTUP_RESULT"]).write_text(json.dumps(found))
        return
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("cold", "warm"):
            result = Path(folder, f"{name}.json")
            environment = {
                **os.environ,
                "STARTUP_RESULT": str(result),
                "JAX_COMPILATION_CACHE_DIR": f"{folder}/compiled",
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            }
            work = ["--fit", str(given.fit)] if given.fit else [*flags, "--epochs", "1", "--runs", f"{folder}/{name}"]
            arguments = [sys.executable, __file__, "--begin", str(time.time()), *work]
            subprocess.run(arguments, check=True, env=environment, stdout=subprocess.DEVNULL)
            results[name] = json.loads(result.read_text())
    print("Seconds since the start, and processor seconds in brackets\n")
    moments = list(results["cold"]["moments"])
    print("| cache |", " | ".join(moments), "|\n|---|" + "---|" * len(moments))
    for name, found in results.items():
        print(f"| {name} |", " | ".join(f"{s:.1f} ({c:.1f})" for s, c in found["moments"].values()), "|")
    print("\n| program | tracing | lowering | compiling, cold | compiling, warm |\n|---|---|---|---|---|")
    cold, warm = (found["programs"] for found in results.values())
    total = lambda found, stage: sum(stages.get(stage, 0) for stages in found.values())
    rows = sorted(cold, key=lambda program: -cold[program].get("compiling", 0))
    for program in rows[:8]:
        figures = [cold[program].get(stage, 0) for stage in STAGES.values()]
        figures.append(warm.get(program, {}).get("compiling", 0))
        print(f"| {program} |", " | ".join(f"{x:.2f}" for x in figures), "|")
    figures = [*(total(cold, stage) for stage in STAGES.values()), total(warm, "compiling")]
    print(f"| all {len(cold)} |", " | ".join(f"{x:.2f}" for x in figures), "|")


if __name__ == "__main__":
    main()
