"""Answers requests over HTTP from an export."""

import copy
import dataclasses
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Le

from htd_jax.command.parsing import parse
from htd_jax.errors import UserError, shown
from htd_jax.settings import check


@dataclasses.dataclass(frozen=True)
class Options:
    """Answers requests over HTTP from a folder that htd-jax export wrote: recommendations by user or by items seen,
    similar items, health, and metrics. http://HOST:PORT/docs describes them. Needs pip install htd-jax[serve]."""

    model: Path
    """Folder that htd-jax export wrote."""
    apply: tuple[Path, ...] = ()
    """Folders of deltas that lead from --model to a later version, in their order."""
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 for all of this machine's. Whoever reaches it may ask anything."""
    port: Annotated[int, Ge(0), Le(65535)] = 8000
    """Port to listen at; 0 for a free one."""
    watch: Annotated[float, Ge(0)] = 2.0
    """Seconds between two looks at the folders: when they have changed, they are read again, and requests go on. 0 for
    none; the signal HUP reads them in any case."""
    reload: bool = False
    """Whether POST /reload reads the folders again, for whoever reaches the service."""
    max_k: Annotated[int, Ge(1)] = 1000
    """Longest list that a request may ask for."""
    max_lists: Annotated[int, Ge(1)] = 1000
    """Most users, visitors or items that one request may ask lists for."""
    max_ids: Annotated[int, Ge(1)] = 10_000
    """Most items of one visitor, and most ids to allow or deny."""
    max_body: Annotated[int, Ge(1)] = 1_000_000
    """Bytes of the largest request."""
    max_connections: Annotated[int, Ge(1)] = 1000
    """Connections that are held at once; more are answered by status 503."""
    grace: Annotated[int, Ge(0)] = 20
    """Seconds that requests may take to end after a signal to stop."""
    access_log: bool = False
    """Whether to print a line per request."""


def serve(arguments: Sequence[str], prog: str = "htd-jax serve") -> None:
    options = parse(Options, arguments, prog=prog, description=__doc__)
    check(options)
    given = sum(argument.partition("=")[0] == "--apply" for argument in arguments)
    if given > 1 or given > len(options.apply):
        raise UserError("give the folders of all deltas after one `apply`, in their order; at least one")
    try:
        import pyarrow as pa
        import threadpoolctl
        import uvicorn

        from htd_jax.service import Limits, create
    except ImportError as error:
        raise UserError(f"{error.name} is not installed: pip install htd-jax[serve]") from None

    threadpoolctl.threadpool_limits(1, "blas")  # requests share the cores; the threads of one would wait for another's
    pa.set_memory_pool(pa.system_memory_pool())  # which gives back what reading an export took
    with _bound(options.host, options.port) as listener:
        current = _open(options)
        limits = Limits(**{field.name: getattr(options, field.name) for field in dataclasses.fields(Limits)})
        config = uvicorn.Config(
            create(current, limits, watch=options.watch, reload=options.reload),
            log_config=_log_config(),
            access_log=options.access_log,
            server_header=False,
            limit_concurrency=options.max_connections,
            timeout_graceful_shutdown=options.grace,
        )
        model, (host, port) = current.loaded.model, listener.getsockname()[:2]
        place = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        print(
            f"version {model.version}, {len(model.user_ids):,} users, {len(model.item_ids):,} items: {place}",
            flush=True,
        )
        server = uvicorn.Server(config)
        try:
            server.run(sockets=[listener])
        except (SystemExit, KeyboardInterrupt):  # the signal to stop, once more when all requests have ended
            if not server.should_exit:
                raise


def _bound(host: str, port: int) -> socket.socket:
    """Returns a socket of this address, so that a wrong one is told before the model is read. Connections are taken
    once the model answers.

    Raises:
      UserError: if the address is not to be had.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
            0
        ]
        bound = socket.socket(family, kind)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"`host` {shown(host)}, `port` {port}: cannot listen there ({reason}); set another") from None
    return bound


def _open(options: Options) -> Any:
    """Returns what holds the model, and reads it again after the signal HUP, which ends nothing from now on."""
    from htd_jax.serve import load
    from htd_jax.service import Current

    early: list[int] = []
    hangup = getattr(signal, "SIGHUP", None)  # not on Windows
    if hangup:
        signal.signal(hangup, lambda *_: early.append(1))
    folders = options.model, *options.apply
    current = Current(lambda: load(*folders), folders)
    if hangup:
        signal.signal(hangup, lambda *_: current.ask_reload())
    if early:
        current.ask_reload()
    return current


def _log_config() -> dict[str, Any]:
    """Returns uvicorn's logging with the time of each line, and with ours."""
    from uvicorn.config import LOGGING_CONFIG

    config = copy.deepcopy(LOGGING_CONFIG)
    for formatter in config["formatters"].values():
        formatter["fmt"] = "%(asctime)s " + formatter["fmt"]
    config["loggers"]["htd_jax"] = {"handlers": ["default"], "level": "INFO", "propagate": False}
    return config
