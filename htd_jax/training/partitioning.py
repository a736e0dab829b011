"""Where arrays live on several devices.

A mesh has two axes. Tables of users and items, the optimiser's moments, and all other arrays with a row per user or
item are split by rows over `rows`, in contiguous parts of one size: they are padded with rows that are zero, never
sampled and never recommended. Everything else is on every device. Devices along `data` hold the same rows, and divide
the users of an evaluation, and the pairs and experts of a batch.
"""

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from htd_jax import processes
from htd_jax.data import Interactions
from htd_jax.errors import UserError
from htd_jax.ops.neighbours import Neighbours
from htd_jax.ops.shards import DATA, ROWS

T = TypeVar("T")

BY_ROWS, EVERYWHERE = PartitionSpec(ROWS), PartitionSpec()


class Extent(NamedTuple):
    """How an array is split.

    Attributes:
      size: the number of its rows; 0 if it is not split.
      held: the number of rows as it is held, with padding; 0 if it is not split.
      columns: whether columns are split instead, over all devices.
    """

    size: int
    held: int
    columns: bool = False

    @property
    def spec(self) -> PartitionSpec:
        return PartitionSpec(None, (DATA, ROWS)) if self.columns else BY_ROWS if self.held else EVERYWHERE


# The compiler of JAX 0.10 aborts where it divides a search of the largest scores.
LEAST_JAX = (0, 12)

# The names of collections of tables `users` and `items`: Flax's, and that of `RowState`.
TABLES = {"params", "tables"}

# A tree of extents has one for each array of another tree.
Extents = Any


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

    def extents(self, tree: Any, train: Interactions, *, by_name: bool = False, held: bool = False) -> Extents:
        """Returns which arrays are split by rows.

        These are the arrays of two or more axes with a row per user or item, and never those of `Interactions`, of
        `Neighbours`, and of functions that do not say that they take shards (`divided`).

        Args:
          tree: arrays, or their shapes, before padding.
          train: the training interactions.
          by_name: whether only the arrays of a model's tables are split, and those that an optimiser keeps for them,
            which may be vectors of all of a table's numbers.
          held: whether the arrays are padded already; by name only.
        """
        sizes = {"users": train.num_users, "items": train.num_items}

        def extent(path: Any, x: Any) -> Any:
            if _is_whole(x):
                return everywhere(x)
            first, axes = (x.shape[0], len(x.shape)) if x.shape else (0, 0)
            names = _names(path)
            if table := _table(names):
                size, padded = sizes[table], self._padded(sizes[table])
                times = first // (padded if held else size)
                return Extent(times * size, times * padded)
            if not by_name and axes > 1 and first in sizes.values() and "params" not in names:
                return Extent(first, self._padded(first))
            return Extent(0, 0)

        return jax.tree_util.tree_map_with_path(extent, tree, is_leaf=_is_whole)

    def columns(self, tree: Any) -> Extents:
        """Returns the extents of arrays `[n, width]` whose columns all devices divide; whole if they cannot."""
        return jax.tree.map(lambda x: Extent(0, 0, x.shape[1] % self.mesh.size == 0), tree)

    def _padded(self, size: int) -> int:
        return -(-size // self.shards) * self.shards

    def put_like(self, tree: T, like: T) -> T:
        """Places whole arrays as others are placed, which may be padded."""
        one = lambda x, held: self.put(x, Extent(len(x), len(held)) if self._is_split(held) else Extent(0, 0))
        placed: T = jax.tree.map(one, tree, like)
        return placed

    def put(self, tree: T, extents: Extents) -> T:
        """Places arrays on the devices, padded. Each process reads the parts of its own devices.

        Args:
          tree: arrays in this process's memory, the same in every process.
          extents: see `extents`.
        """

        def one(extent: Extent, x: Any) -> jax.Array:
            if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
                return jax.random.wrap_key_data(one(extent, jax.random.key_data(x)), impl=jax.random.key_impl(x))
            host = np.asarray(x)
            if not extent.held:
                return jax.make_array_from_callback(host.shape, self.everywhere, lambda index: host[index])

            def part(index: Any) -> np.ndarray:
                rows = host[index]
                first, last, _ = index[0].indices(extent.held)
                missing = last - first - len(rows)
                return np.pad(rows, [(0, missing), *[(0, 0)] * (host.ndim - 1)]) if missing else rows

            return jax.make_array_from_callback((extent.held, *host.shape[1:]), self.by_rows, part)

        return _map(one, extents, tree)

    def over_shards(
        self, function: Callable[..., T], in_extents: tuple[Extents, ...], out_extents: Extents
    ) -> Callable[..., T]:
        """Returns a function that every device calls with its parts of the arguments, see `htd_jax.ops.shards`."""
        spec = lambda extent: extent.spec if is_extent(extent) else extent
        specs = functools.partial(jax.tree.map, spec, is_leaf=is_extent)
        mapped: Callable[..., T] = jax.shard_map(
            function, mesh=self.mesh, in_specs=specs(in_extents), out_specs=specs(out_extents)
        )
        return mapped

    def by_compiler(self, function: Callable[..., T]) -> Callable[..., T]:
        """Returns a function of whole arrays, for a compiled program that the compiler divides among the devices."""

        @functools.wraps(function)
        def call(*arguments: Any) -> T:
            with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
                return function(*arguments)

        return call

    def map_shards(self, function: Callable[..., T], extents: Extents) -> Callable[..., T]:
        """Returns a function that every device calls with its rows of the first argument, a model's variables, and with
        the others whole; its results are the same on all devices."""

        def call(variables: Any, *others: Any) -> T:
            mapped = self.over_shards(function, (extents, *map(everywhere, others)), EVERYWHERE)
            return mapped(variables, *others)

        return call

    def copy(self, tree: T) -> T:
        """Places arrays, the same in every process, whole on every device."""
        return self.put(tree, everywhere(tree))

    def constrain(self, tree: T, extents: Extents) -> T:
        """Pads arrays, and says where they live, in a compiled program."""
        place = lambda extent, x: jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, extent.spec))
        return _map(place, extents, pad(tree, extents))

    def whole(self, tree: T, extents: Extents) -> T:
        """Returns arrays whole, without padding, in the memory of every process."""

        def one(extent: Extent, x: Any) -> np.ndarray:
            if not x.is_fully_addressable and not x.is_fully_replicated:
                from jax.experimental import multihost_utils

                x = multihost_utils.process_allgather(x, tiled=True)
            host = np.asarray(x)
            return host[: extent.size] if extent.held and extent.held == len(host) else host

        return _map(one, extents, tree)

    def whole_tables(self, variables: T, train: Interactions) -> T:
        """Returns a model's variables whole, without padding, in the memory of every process."""
        extents = self.extents(variables, train, by_name=True, held=True)
        split = lambda extent, x: extent if self._is_split(x) else Extent(0, 0)
        return self.whole(variables, _map(split, extents, variables))

    def _is_split(self, x: jax.Array) -> bool:
        return bool(x.ndim and x.sharding.is_equivalent_to(self.by_rows, x.ndim))

    def __str__(self) -> str:
        return f"{self.mesh.shape[DATA]}x{self.shards}"


def everywhere(tree: Any) -> Extents:
    """Returns the extents of arrays none of which is split."""
    return jax.tree.map(lambda _: Extent(0, 0), tree)


def pad(tree: T, extents: Extents) -> T:
    """Returns arrays as they are held: with rows of zeros at the end."""

    def one(extent: Extent, x: jax.Array) -> jax.Array:
        missing = extent.held - extent.size
        return jnp.pad(x, [(0, missing), *[(0, 0)] * (x.ndim - 1)]) if missing else x

    return _map(one, extents, tree)


def trim(tree: T, extents: Extents) -> T:
    """Returns arrays without padding; in a compiled program only, whose arrays may be of any size."""
    return _map(lambda extent, x: x[: extent.size] if extent.held != extent.size else x, extents, tree)


def trim_tables(variables: T, train: Interactions) -> T:
    """Returns a model's variables, as a checkpoint of any mesh holds them, without padding."""
    sizes = {"users": train.num_users, "items": train.num_items}

    def cut(path: Any, x: Any) -> Any:
        table = _table(_names(path))
        return x[: sizes[table]] if table and x.ndim and x.shape[0] > sizes[table] else x

    trimmed: T = jax.tree_util.tree_map_with_path(cut, variables)
    return trimmed


def _names(path: Any) -> list[str]:
    return [str(getattr(key, "key", getattr(key, "name", ""))) for key in path]


def _table(names: list[str]) -> str | None:
    """Returns `users` or `items` if an array of this path is one of a model's tables, or of what is kept for one."""
    pairs = itertools.pairwise(names)
    return next((own for of, own in pairs if of in TABLES and own in ("users", "items")), None)


def _is_whole(x: Any) -> bool:
    """Returns whether none of a value's arrays is split."""
    function = isinstance(x, jax.tree_util.Partial) and not getattr(x.func, "divided", False)
    return function or isinstance(x, Interactions | Neighbours)


def is_extent(x: Any) -> bool:
    return isinstance(x, Extent)


def _map(function: Callable[[Extent, Any], Any], extents: Extents, tree: T) -> T:
    mapped: T = jax.tree.map(function, extents, tree, is_leaf=is_extent)
    return mapped


def find_partitioning(mesh: str | None) -> Partitioning | None:
    """Returns the partitioning of a mesh, by default of all devices if several processes run, else None: one device.

    Raises:
      UserError: see `make_partitioning`.
    """
    mesh = mesh or ("auto" if processes.several() else None)
    partitioning = make_partitioning(mesh) if mesh else None
    if partitioning and processes.several():
        _connect(partitioning)
    return partitioning


def _connect(partitioning: Partitioning) -> None:
    """Connects the devices of each axis, while all processes wait for it: later, one may compile for longer than
    another waits for its first collective, see `htd_jax.processes`."""
    mesh, of_all = partitioning.mesh, PartitionSpec((DATA, ROWS))
    ones = np.ones(mesh.size, np.float32)  # an argument: the sum of a constant would be computed without a collective
    each = jax.make_array_from_callback(ones.shape, NamedSharding(mesh, of_all), lambda index: ones[index])
    processes.barrier("mesh")
    for axes, rest in ((DATA, BY_ROWS), (ROWS, PartitionSpec(DATA)), ((DATA, ROWS), EVERYWHERE)):
        total = functools.partial(jax.lax.psum, axis_name=axes)
        jax.block_until_ready(jax.jit(jax.shard_map(total, mesh=mesh, in_specs=of_all, out_specs=rest))(each))


def make_partitioning(mesh: str) -> Partitioning:
    """Returns the partitioning of a mesh over the devices of all processes.

    Args:
      mesh: `8`, tables split over eight devices; `2x4`, two copies of tables that are split over four devices each; or
        `auto`, tables split over all devices.

    Raises:
      UserError: if it is none of these, or needs another number of devices than there are, or another version of JAX.
    """
    if jax.__version_info__ < LEAST_JAX:
        raise UserError(f"`mesh` needs JAX 0.12, with Python 3.12 or later, not JAX {jax.__version__}; leave it out")
    devices = jax.device_count()
    if mesh == "auto":
        sizes = (1, devices)
    elif found := re.fullmatch(r"(?:([1-9][0-9]{0,5})x)?([1-9][0-9]{0,5})", mesh):
        sizes = (int(found[1] or 1), int(found[2]))
    else:
        raise UserError(f"`mesh` must be a number of devices, such as 8, or two, such as 2x4, or auto, not {mesh!r}")
    if math.prod(sizes) != devices:
        shapes = [f"{count}x{devices // count}" for count in range(1, devices + 1) if devices % count == 0]
        more = "set JAX_NUM_CPU_DEVICES for more on a processor" if devices == 1 else f"set it to {', '.join(shapes)}"
        raise UserError(f"`mesh` {mesh} needs {math.prod(sizes)} devices, and a mesh has all {devices}; {more}")
    return Partitioning(jax.make_mesh(sizes, (DATA, ROWS), axis_types=(AxisType.Auto,) * 2))
