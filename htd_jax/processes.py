"""Several processes that run one program, on one machine or many: how they start, wait for one another, and agree.

They are joined by `jax.distributed`. The functions here use its coordinator, which process 0 runs, not the devices:
they may be called from any thread, and a process may wait as long as the others live. The first collective of the
devices may not (on processors, Gloo waits 30 seconds for it), so a `barrier` is before it.
"""

import collections
import contextlib
import itertools
import json
import os
import re
import sys
from collections.abc import Callable
from typing import Any, Literal, TypeVar

from htd_jax.errors import UserError, reason

T = TypeVar("T")

# A process that has not answered for so many seconds counts as dead, and JAX ends the others.
HEARTBEAT_SECONDS = 100

# The time that processes have to find one another, and, at the end, to wait for the last.
START_SECONDS, END_SECONDS = 300, 300

# The longest wait for processes that live, such as one that reads a large file.
WAIT_SECONDS = 24 * 3600

# How often each name was used: the same program in every process gives the same number.
_uses: dict[str, Any] = collections.defaultdict(itertools.count)


def join(
    coordinator: str | None = None, processes: int | Literal["auto"] | None = None, process: int | None = None
) -> None:
    """Joins the processes of a run, before JAX uses a device; without arguments, if Slurm, Open MPI or a TPU slice has
    started several. Processes that are joined already stay so.

    A process that dies ends the others at most `HEARTBEAT_SECONDS` later: JAX prints that another task died, and
    aborts.

    Args:
      coordinator: `HOST:PORT` of process 0, at which all find one another.
      processes: their number; 1 for this one alone, `auto` to let JAX find number, address and its own.
      process: the number of this one, from 0.

    Raises:
      UserError: if the arguments do not go together, or the processes do not find one another.
    """
    if processes == 1 and not process:
        return
    count = None if processes == "auto" else processes
    if len({argument is None for argument in (coordinator, count, process)}) == 2:
        raise UserError("`coordinator`, `processes` and `process` go together: set all three")
    if count is not None and not 0 <= (process or 0) < count:
        raise UserError(f"`process` must be from 0 to {count - 1}, not {process}")
    if coordinator and not re.fullmatch(r".+:[0-9]{1,5}", coordinator):
        raise UserError(f"`coordinator` must be HOST:PORT, the address of process 0, not {coordinator!r}")
    if processes is None and started() is None:
        return
    import jax
    from jax.experimental.multihost_utils import sync_global_devices

    if jax.distributed.is_initialized():
        return
    with contextlib.suppress(AttributeError):  # of a version that has none: it would keep SIGTERM from the command
        jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator,
            count,
            process,
            cluster_detection_method="deactivate" if count else None,
            initialization_timeout=START_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=END_SECONDS,
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(
            f"the processes of this run do not find one another ({reason(error)}); check `coordinator`, `processes` "
            "and `process`"
        ) from None
    if jax.process_count() > 1:
        barrier("start")
        sync_global_devices("start")  # connects the devices, while all processes wait for it


def started() -> int | None:
    """Returns the number of this process, if a launcher has started several; None if not, or no variable tells.

    JAX finds the rest. A Kubernetes pod and a TPU VM do not tell by a variable whether there are others: they are
    asked only with `processes="auto"`.
    """
    for count, number in (
        ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
        ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ):
        if os.environ.get(count, "1") != "1" and os.environ.get(number, "").isdecimal():
            return int(os.environ[number])
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
    if len(hosts) > 1 and os.environ.get("TPU_WORKER_ID", "").isdecimal():
        return int(os.environ["TPU_WORKER_ID"])
    return None


def several() -> bool:
    """Returns whether several processes run this program. They are joined by JAX: where it is not imported, there is
    one."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized() and jax.process_count() > 1


def count() -> int:
    """Returns the number of processes."""
    return sys.modules["jax"].process_count() if several() else 1


def number() -> int:
    """Returns the number of this process, from 0."""
    return sys.modules["jax"].process_index() if several() else 0


def is_first() -> bool:
    """Returns whether this process prints, and writes what is written once; that of one process does."""
    return number() == 0


def barrier(name: str) -> None:
    """Waits until every process is here."""
    if several():
        _client().wait_at_barrier(_key(name), 1000 * WAIT_SECONDS)


def leave() -> None:
    """Parts from the others, once every process is here."""
    import jax

    barrier("end")  # for as long as it takes; the next line waits for `END_SECONDS`
    jax.distributed.shutdown()


def from_first(name: str, make: Callable[[], T]) -> T:
    """Returns in every process what `make` returns in the first one, where alone it is called.

    Args:
      name: what is made; two threads use two names.
      make: returns JSON.

    Raises:
      UserError: if `make` raises it, or in other processes, any error.
    """
    if not several():
        return make()
    key = _key(name)
    if not is_first():
        found = json.loads(_client().blocking_key_value_get(key, 1000 * WAIT_SECONDS))
        if "error" in found:
            raise UserError(*found["error"])
        return found["value"]
    try:
        value = make()
    except Exception as error:
        told = error.args if isinstance(error, UserError) else (f"process 0 failed: {type(error).__name__}: {error}",)
        _client().key_value_set(key, json.dumps({"error": told}))
        raise
    _client().key_value_set(key, json.dumps({"value": value}))
    return value


def _key(name: str) -> str:
    return f"htd_jax/{name}/{next(_uses[name])}"


def _client() -> Any:
    """Returns the connection to the coordinator, which JAX has no public name for, and Orbax uses too."""
    from jax._src import distributed

    return distributed.global_state.client
