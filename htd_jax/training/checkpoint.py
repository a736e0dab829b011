"""Orbax checkpoints of a phase: its state and its history.

On a mesh, arrays are written and read by shards, each by the process that holds it. A table is padded to a multiple of
the number of its shards: a state that is restored elsewhere, on another mesh or on one device, is padded with zeros or
cut along axis 0.
"""

import copy
import errno
import json
import math
import os
import re
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import jax
import numpy as np

from htd_jax import processes
from htd_jax.data.files import most_inflated, read_json
from htd_jax.errors import UserError, shown
from htd_jax.writing import alone, remove, whole

T = TypeVar("T")

_FIELDS = {"settings", "records", "seconds", "finished"}


class Checkpoints:
    """The checkpoints of one phase in a folder: `<folder>/<epochs done>/`.

    A step holds `state/`, written by Orbax, and `history.json`, strict JSON: `{"settings", "records", "seconds",
    "finished"}`. It is written under another name and renamed when complete, so that a kill never leaves half of one,
    and it is read back before the previous step is deleted. Saving waits for the disk; `BackgroundSaves` does not.

    Steps are listed at every access, so that reading works while another process saves. If two processes save,
    the second is refused.

    Where several processes run one program, all of them save and restore together, in a folder that all can see: each
    writes and reads its own shards, and the first does everything else. They wait for one another through the
    coordinator, not the devices, so that this is safe in a thread too.

    Raises:
      UserError: if the folder cannot be read, or its path is not UTF-8, which Orbax's files need.
    """

    def __init__(self, folder: Path):
        self.folder = folder.absolute()
        try:
            str(self.folder).encode()
        except UnicodeEncodeError:
            raise UserError(
                f"{shown(self.folder)}: the path is not UTF-8, which checkpoints need; choose another"
            ) from None
        self._known = self.latest  # the step that this process continues

    @property
    def latest(self) -> int | None:
        """The number of epochs of the newest step; None without one."""
        return max(self._steps(), default=None)

    def save(self, epoch: int, state: Any, history: dict[str, Any]) -> None:
        """Adds the step `epoch`, later than every other, and deletes the others.

        Args:
          epoch: the number of finished epochs.
          state: a pytree of arrays.
          history: JSON; numbers must be finite.

        Raises:
          UserError: if the step cannot be written, the history holds a number that is not finite, or another process
            uses the folder. The previous step is kept.
        """
        try:
            text = json.dumps(history, allow_nan=False)
        except ValueError as error:
            raise UserError(f"{shown(self.folder)}: epoch {epoch} cannot be saved ({error})") from None
        step = self.folder / str(epoch)
        try:
            if not processes.is_first():
                shared = processes.from_first("checkpoint", str)  # where the first has made it
                _save_state(Path(shared) / "state", state)
                processes.barrier("checkpoint saved")
                self._known = epoch
                return
            self.folder.mkdir(parents=True, exist_ok=True)
            with alone(self.folder):
                if (latest := self.latest) is not None and latest != self._known:
                    raise BlockingIOError
                if latest is not None and epoch <= latest:
                    raise ValueError(f"epoch {epoch} is saved after epoch {latest}")
                with whole(step) as partial:
                    partial.mkdir()
                    processes.from_first("checkpoint", lambda: str(partial))
                    _save_state(partial / "state", state)
                    (partial / "history.json").write_text(text, encoding="utf-8")
                if self.latest != epoch or _read_history(step) != json.loads(text):
                    raise UserError(f"{shown(step)}: the saved step cannot be read back; the previous one is kept")
                self._known = epoch
                for other in set(self._steps()) - {epoch}:
                    remove(self.folder / str(other))
            processes.barrier("checkpoint saved")
        except BlockingIOError:
            raise UserError(
                f"{shown(self.folder)}: another process is using this folder; wait for it to end, or choose "
                "another folder"
            ) from None
        except UserError:
            raise
        except Exception as error:
            if not (code := _error_number(error)):
                raise
            space = "there is space" if code in (errno.ENOSPC, errno.EDQUOT) else "it can be written"
            raise UserError(
                f"{shown(self.folder)}: epoch {epoch} cannot be saved ({os.strerror(code)}); the same command resumes "
                f"once {space}"
            ) from None

    def history(self) -> dict[str, Any]:
        """Returns the history of the newest step, which the next `save` continues."""
        self._known, history = self._read(lambda step: (int(step.name), _read_history(step)))
        return history

    def state(self, like: Any) -> Any:
        """Returns the state of the newest step, with the structure, shapes and types of `like`.

        Args:
          like: a pytree of arrays or `jax.ShapeDtypeStruct`. On a mesh, of a `NamedSharding`, into which they are read:
            each process reads its own shards. All others are read onto the first device of this process.
        """

        def place(x: Any) -> jax.ShapeDtypeStruct:
            sharding = getattr(x, "sharding", None)
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding if _on_mesh(sharding) else _here())

        return self._restore(like=jax.tree.map(place, like))

    def tree(self) -> Any:
        """Returns the state of the newest step as plain dicts and arrays, whatever its structure."""
        return self._restore(check=_check_sizes)

    def _steps(self) -> list[int]:
        try:
            with os.scandir(self.folder) as entries:
                names = [entry.name for entry in entries if entry.name.isdecimal() and entry.is_dir()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise UserError(f"{shown(self.folder)}: cannot be read ({error.strerror})") from None
        return [int(name) for name in names if name == str(int(name))]

    def _restore(self, like: Any = None, check: Callable[[Path], None] = lambda state: None) -> Any:
        ocp, path_of = _orbax()

        def restore(step: Path) -> Any:
            check(step / "state")
            padded = like is not None and _is_padded(step / "state", like)
            args = ocp.args.StandardRestore(like, strict=not padded, fallback_sharding=_here())
            return ocp.StandardCheckpointHandler().restore(path_of(step / "state"), args=args)

        return self._read(restore)

    def _read(self, read: Callable[[Path], T]) -> T:
        """Returns `read` of the folder of the newest step.

        Raises:
          UserError: if there is none, or it cannot be read, or it is damaged.
        """
        while (latest := self.latest) is not None:
            step = self.folder / str(latest)
            try:
                return read(step)
            except Exception as error:
                if self.latest != latest:
                    continue  # another process has replaced it meanwhile
                if _error_number(error) in (errno.EACCES, errno.EPERM):
                    raise UserError(f"{shown(step)}: cannot be read (Permission denied)") from None
                raise UserError(
                    f"{shown(step)}: not a checkpoint of htd-jax, or damaged ({_reason(error)}); "
                    f"delete {shown(step)} to train this phase again"
                ) from None
        raise UserError(f"{shown(self.folder)}: not a checkpoint (no folder named by a number of epochs in it)")


class BackgroundSaves:
    """Saves steps in a thread, while training continues; one at a time.

    As a context manager: its end waits for the last step, and raises what saving it raised, unless the block raised an
    error of its own.
    """

    def __init__(self, checkpoints: Checkpoints):
        self._checkpoints = checkpoints
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._saving: Future[None] | None = None

    @property
    def idle(self) -> bool:
        """Whether no step is being saved."""
        return self._saving is None or self._saving.done()

    def check(self) -> None:
        """Raises UserError if the last step could not be saved."""
        if self.idle:
            self.wait()

    def save(self, epoch: int, state: Any, history: dict[str, Any]) -> None:
        """Starts what `Checkpoints.save` does, after the step before is saved.

        Args:
          epoch, history: see `Checkpoints.save`.
          state: a pytree of arrays that are not donated while they are saved, see `to_host`.

        Raises:
          UserError: if the step before could not be saved.
        """
        self.wait()
        self._saving = self._thread.submit(self._checkpoints.save, epoch, state, copy.deepcopy(history))

    def wait(self) -> None:
        """Waits until the step is saved.

        Raises:
          UserError: if it could not be.
        """
        saving, self._saving = self._saving, None
        if saving:
            saving.result()

    def __enter__(self) -> "BackgroundSaves":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._thread.shutdown()  # after the step
        if error is None:
            self.wait()


def to_host(state: Any) -> Any:
    """Copies a pytree of arrays to the host's memory, so that the originals can be donated.

    On a mesh, each shard is copied to the memory of its own host, and the array stays sharded.
    """
    onto = lambda x: (
        x.sharding.with_memory_kind("pinned_host") if _on_mesh(getattr(x, "sharding", None)) else host_device()
    )
    return jax.block_until_ready(jax.device_put(state, jax.tree.map(onto, state), may_alias=False))


def copy_checkpoints(source: Path, target: Path) -> None:
    """Copies the newest step of a phase's folder to a new folder, whole or not at all.

    Raises:
      UserError: if there is none, it cannot be read, or the copy cannot be written.
    """
    step = Checkpoints(source).latest
    if step is None:
        raise UserError(f"{shown(source)}: not a checkpoint (no folder named by a number of epochs in it)")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with whole(target) as partial:
            shutil.copytree(source / str(step), partial / str(step))
    except OSError as error:
        raise UserError(f"{shown(target)}: cannot be copied from {shown(source)} ({_reason(error)})") from None


def _orbax() -> tuple[Any, Callable[[Path], Any]]:
    """Returns Orbax, and the type of the paths that its handlers take; imported when needed, which takes a second."""
    import orbax.checkpoint as ocp
    from etils import epath

    return ocp, epath.Path


def _save_state(folder: Path, state: Any) -> None:
    """Writes one uncompressed file per array. Orbax's default takes twice as long: it compresses, with little gain for
    trained tables, and merges the writes of several processes, which here write files of their own shards."""
    ocp, path_of = _orbax()
    path = path_of(folder)
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_compression=False)
    handler.save(path, args=ocp.args.PyTreeSave(state))
    processes.barrier("checkpoint written")
    if processes.is_first():
        handler.finalize(path)


def _check_sizes(state: Path) -> None:
    """Raises ValueError if arrays claim more bytes than those of their files justify: what is not stored reads as 0."""
    ocp, path_of = _orbax()
    described = ocp.StandardCheckpointHandler().metadata(path_of(state))
    leaves = [leaf for leaf in jax.tree.leaves(described.tree) if hasattr(leaf, "shape")]
    claimed = sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in leaves)
    held = sum(path.stat().st_size for path in state.rglob("*") if path.is_file())
    if claimed > most_inflated(held):
        raise ValueError(f"its {held} bytes stand for {claimed}")


def _is_padded(state: Path, like: Any) -> bool:
    """Returns whether stored arrays differ from those of `like` in padding.

    Raises:
      ValueError: if an array differs in another axis than the first, or by more rows than a mesh pads.
    """
    ocp, path_of = _orbax()
    stored = ocp.tree.to_flat_dict(ocp.StandardCheckpointHandler().metadata(path_of(state)).tree)
    padded = False
    for name, x in ocp.tree.to_flat_dict(like).items():
        was = getattr(stored.get(name), "shape", x.shape)  # what is missing is found by Orbax
        if was == x.shape:
            continue
        by_rows = was and x.shape and was[1:] == x.shape[1:]
        shards = max(-(-was[0] // stored[name].storage.chunk_shape[0]), _shards(x)) if by_rows else 1
        if shards == 1 or (x.ndim > 1 and abs(was[0] - x.shape[0]) >= shards):  # a flat array is padded by whole rows
            raise ValueError(f"{'.'.join(name)} has shape {tuple(was)}, not {x.shape}")
        padded = True
    return padded


def _read_history(step: Path) -> dict[str, Any]:
    history = read_json(step / "history.json", "a history")
    if not isinstance(history, dict) or not set(history) >= _FIELDS:
        raise ValueError("no history")
    return history


def host_device() -> jax.Device:
    """Returns the processor or, where JAX is set to do without, the first device."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return jax.local_devices()[0]


def _here() -> jax.sharding.Sharding:
    """Returns this process's first device, whatever kind the checkpoint was written on."""
    return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def _shards(x: Any) -> int:
    """Returns the number of parts of the first axis of an array."""
    return x.shape[0] // x.sharding.shard_shape(x.shape)[0] if _on_mesh(x.sharding) else 1


def _on_mesh(sharding: Any) -> bool:
    return isinstance(sharding, jax.sharding.NamedSharding)


def _error_number(error: BaseException | None) -> int | None:
    """Returns the operating system's number of an error, which Orbax's store gives only in the text of another one."""
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            return error.errno
        if found := re.search(r"(?:OS error |os_error_code=')(\d+)", str(error)):
            return int(found[1])
        error = error.__cause__ or error.__context__
    return None


def _reason(error: Exception) -> str:
    lines = (getattr(error, "strerror", None) or str(error)).strip().splitlines()
    return shown(lines[0][:200]) if lines else type(error).__name__
