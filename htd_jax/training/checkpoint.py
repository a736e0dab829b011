"""Orbax checkpoints of a phase: its state, and in the same step what is known of how it got there."""

import shutil
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from htd_jax.errors import UserError
from htd_jax.writing import whole


class Checkpoints:
    """The checkpoints of one phase in a folder: `<folder>/<epochs done>/`.

    A step holds `state`, arrays, and `history`, JSON: `{"settings", "records", "seconds", "finished"}`. Orbax writes a
    step under another name and renames it when it is whole, so a kill never leaves half of one; the step before it is
    deleted only after that. Saving waits for the disk: the state is donated to the next epoch.
    """

    def __init__(self, folder: Path):
        self.folder = folder.absolute()
        self._manager = self._open() if folder.is_dir() else None

    @property
    def latest(self) -> int | None:
        """The number of epochs done at the newest step, None where there is none."""
        return self._manager.latest_step() if self._manager else None

    def save(self, epoch: int, state: Any, history: dict[str, Any]) -> None:
        """Adds the step `epoch`; the folder is made by the first."""
        if self._manager is None:
            self.folder.mkdir(parents=True)
            self._manager = self._open()
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), history=ocp.args.JsonSave(history))
        self._manager.save(epoch, args=args)

    def history(self) -> dict[str, Any]:
        """The history in the newest step."""
        history = self._restore(history=ocp.args.JsonRestore())["history"]
        if not isinstance(history, dict) or not {"settings", "records", "seconds", "finished"} <= set(history):
            raise UserError(f"{self.folder}: not a checkpoint of this program")
        return history

    def state(self, like: Any) -> Any:
        """The state in the newest step, with the structure, shapes and types of `like`."""
        here = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=_here())
        return self._restore(state=ocp.args.StandardRestore(jax.tree.map(here, like)))["state"]

    def tree(self) -> Any:
        """The state in the newest step as plain dicts and arrays, whatever its structure."""
        return self._restore(state=ocp.args.StandardRestore(fallback_sharding=_here()))["state"]

    def _open(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False, create=False)
        return ocp.CheckpointManager(self.folder, options=options)

    def _restore(self, **items: Any) -> Any:
        step = self.latest
        if step is None:
            raise UserError(f"{self.folder}: not a checkpoint (no folder named by a number of epochs in it)")
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:
            reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
            raise UserError(
                f"{self.folder / str(step)}: not a checkpoint of this program, or damaged ({reason})"
            ) from None


def _here() -> jax.sharding.Sharding:
    """This machine's first device, whichever kind the checkpoint was written on."""
    return jax.sharding.SingleDeviceSharding(jax.devices()[0])


def copy_checkpoints(source: Path, target: Path) -> None:
    """Copies a phase's folder whole, or, if killed, not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole(target) as partial:
        shutil.copytree(source, partial)
