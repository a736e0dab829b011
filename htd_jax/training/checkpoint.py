"""Orbax checkpoints of a phase: its state, and in the same step what is known of how it got there."""

import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from etils import epath  # the paths that Orbax's handlers take

from htd_jax.errors import UserError, shown
from htd_jax.writing import alone, is_partial, remove, whole

T = TypeVar("T")

_FIELDS = {"settings", "records", "seconds", "finished"}


class Checkpoints:
    """The checkpoints of one phase in a folder: `<folder>/<epochs done>/`.

    A step holds `state/`, arrays as Orbax keeps them, and `history.json`, strict JSON: `{"settings", "records",
    "seconds", "finished"}`. It is written under another name and renamed when it is whole, so a kill never leaves half
    of one; it is read back before the step before it is deleted. Saving waits for the disk: the state is donated to
    the next epoch.

    The steps are listed anew whenever they are asked for, by names and not by a pattern that a path with brackets would
    change; so reading goes well while another process saves. Of two processes that save, one is told of the other.

    Raises:
      UserError: a folder that cannot be read, or whose path is no UTF-8, in which the arrays' store names its files.
    """

    def __init__(self, folder: Path):
        self.folder = folder.absolute()
        try:
            str(self.folder).encode()
        except UnicodeEncodeError:
            raise UserError(
                f"{shown(self.folder)}: checkpoints cannot be kept under a path that is no UTF-8; name another"
            ) from None
        self._known = self.latest  # the step that this process goes on from

    @property
    def latest(self) -> int | None:
        """The number of epochs done at the newest step, None where there is none."""
        return max(self._steps(), default=None)

    def save(self, epoch: int, state: Any, history: dict[str, Any]) -> None:
        """Adds the step `epoch`, later than every other, and deletes the others; the folder is made by the first.

        Args:
          epoch: epochs done.
          state: a pytree of arrays.
          history: what JSON can hold. JSON has no infinity and no NaN: a history with one is refused, not changed.

        Raises:
          UserError: it cannot be written, the history holds a number that is not finite, or another process is at work
            in the folder. The step before it is still there.
        """
        try:
            text = json.dumps(history, allow_nan=False)
        except ValueError as error:
            raise UserError(f"{shown(self.folder)}: epoch {epoch} cannot be saved ({error})") from None
        step = self.folder / str(epoch)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with alone(self.folder):
                if (latest := self.latest) is not None and latest != self._known:
                    raise BlockingIOError
                if latest is not None and epoch <= latest:
                    raise ValueError(f"epoch {epoch} is saved after epoch {latest}")
                for path in filter(is_partial, self.folder.iterdir()):  # what kills have left
                    remove(path)
                with whole(step) as partial:
                    partial.mkdir()
                    _save_state(partial / "state", state)
                    (partial / "history.json").write_text(text, encoding="utf-8")
                if self.latest != epoch or _read_history(step) != json.loads(text):
                    raise UserError(
                        f"{shown(step)}: saved, but it does not read back; any step before it is still there"
                    )
                self._known = epoch
                for other in set(self._steps()) - {epoch}:
                    remove(self.folder / str(other))
        except BlockingIOError:
            raise UserError(
                f"{shown(self.folder)}: another process is at work in this folder; let it end, or name another"
            ) from None
        except UserError:
            raise
        except Exception as error:
            if not (code := _error_number(error)):
                raise
            space = "there is space" if code in (errno.ENOSPC, errno.EDQUOT) else "it can be written"
            raise UserError(
                f"{shown(self.folder)}: epoch {epoch} cannot be saved ({os.strerror(code)}); the same command goes on "
                f"once {space}"
            ) from None

    def history(self) -> dict[str, Any]:
        """The history in the newest step; `save` goes on from that one."""
        self._known, history = self._read(lambda step: (int(step.name), _read_history(step)))
        return history

    def state(self, like: Any) -> Any:
        """The state in the newest step, with the structure, shapes and types of `like`."""
        here = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=_here())
        return self._restore(ocp.args.StandardRestore(jax.tree.map(here, like)))

    def tree(self) -> Any:
        """The state in the newest step as plain dicts and arrays, whatever its structure."""
        return self._restore(ocp.args.StandardRestore(fallback_sharding=_here()))

    def _steps(self) -> list[int]:
        try:
            with os.scandir(self.folder) as entries:
                names = [entry.name for entry in entries if entry.name.isdecimal() and entry.is_dir()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise UserError(f"{shown(self.folder)}: cannot be read ({error.strerror})") from None
        return [int(name) for name in names if name == str(int(name))]

    def _restore(self, args: ocp.args.StandardRestore) -> Any:
        return self._read(lambda step: ocp.StandardCheckpointHandler().restore(epath.Path(step / "state"), args=args))

    def _read(self, read: Callable[[Path], T]) -> T:
        """What `read` makes of the folder of the newest step.

        Raises:
          UserError: there is none, or it cannot be read, or it is damaged.
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
                    f"{shown(step)}: not a checkpoint of this program, or damaged ({_reason(error)}); "
                    f"delete {shown(step)} to train this phase anew"
                ) from None
        raise UserError(f"{shown(self.folder)}: not a checkpoint (no folder named by a number of epochs in it)")


def copy_checkpoints(source: Path, target: Path) -> None:
    """Copies the newest step of a phase's folder to a new one, whole or, if killed, not at all.

    Raises:
      UserError: there is none, or it cannot be read, or the new one not be written.
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


def _save_state(folder: Path, state: Any) -> None:
    """A file for every array, as it is in memory. Orbax's default takes twice as long: it compresses, which trained
    tables hardly can be, and merges what each process wrote into one database, of which there is one process here."""
    path = epath.Path(folder)
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_compression=False)
    handler.save(path, args=ocp.args.PyTreeSave(state))
    handler.finalize(path)


def _read_history(step: Path) -> dict[str, Any]:
    history = json.loads((step / "history.json").read_text(encoding="utf-8"))
    if not isinstance(history, dict) or not set(history) >= _FIELDS:
        raise ValueError("its history is none")
    return history


def _here() -> jax.sharding.Sharding:
    """This machine's first device, whichever kind the checkpoint was written on."""
    return jax.sharding.SingleDeviceSharding(jax.devices()[0])


def _error_number(error: BaseException | None) -> int | None:
    """The operating system's number of an error, which the arrays' store gives only in the text of another one."""
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
