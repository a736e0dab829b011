"""Where arrays live on several devices.

A mesh has two axes. Tables of users and items, the optimiser's moments, and all other arrays with a row per user or
item are split by rows over `rows`, in contiguous parts of one size: they are padded with rows that are zero, never
sampled and never recommended. Everything else is on every device. Devices along `data` hold the same rows, and divide
the work of a batch.
"""

import dataclasses
import math
import re

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from htd_jax import processes
from htd_jax.errors import UserError
from htd_jax.ops.shards import DATA, ROWS

BY_ROWS, EVERYWHERE = PartitionSpec(ROWS), PartitionSpec()


@dataclasses.dataclass(frozen=True)
class Partitioning:
    """A mesh, and where arrays live on it.

    Attributes:
      mesh: of the axes `data` and `rows`.
    """

    mesh: Mesh

    @property
    def shards(self) -> int:
        """The number of parts of a table."""
        return int(self.mesh.shape[ROWS])

    @property
    def by_rows(self) -> NamedSharding:
        """The sharding of arrays with a row per user or item."""
        return NamedSharding(self.mesh, BY_ROWS)

    @property
    def everywhere(self) -> NamedSharding:
        """The sharding of all other arrays."""
        return NamedSharding(self.mesh, EVERYWHERE)

    def padded(self, size: int) -> int:
        """Returns the number of rows of an array that holds `size`."""
        return -(-size // self.shards) * self.shards

    def __str__(self) -> str:
        return f"{self.mesh.shape[DATA]}x{self.shards}"


def find_partitioning(mesh: str | None) -> Partitioning | None:
    """Returns the partitioning of a mesh, by default of all devices if several processes run, else None: one device.

    Raises:
      UserError: see `make_partitioning`.
    """
    mesh = mesh or ("auto" if processes.several() else None)
    return make_partitioning(mesh) if mesh else None


def make_partitioning(mesh: str) -> Partitioning:
    """Returns the partitioning of a mesh over the devices of all processes.

    Args:
      mesh: `8`, tables split over eight devices; `2x4`, two copies of tables that are split over four devices each; or
        `auto`, tables split over all devices.

    Raises:
      UserError: if it is none of these, or needs another number of devices than there are.
    """
    devices = jax.device_count()
    if mesh == "auto":
        sizes = (1, devices)
    elif found := re.fullmatch(r"(?:([1-9][0-9]{0,5})x)?([1-9][0-9]{0,5})", mesh):
        sizes = (int(found[1] or 1), int(found[2]))
    else:
        raise UserError(f"`mesh` must be a number of devices, such as 8, or two, such as 2x4, or auto, not {mesh!r}")
    if math.prod(sizes) != devices:
        raise UserError(
            f"`mesh` {mesh} needs {math.prod(sizes)} devices, but there are {devices}; set `mesh` to auto"
            + ("" if devices > 1 else ", or JAX_NUM_CPU_DEVICES to a number of processor devices")
        )
    return Partitioning(jax.make_mesh(sizes, (DATA, ROWS), axis_types=(AxisType.Auto,) * 2))
