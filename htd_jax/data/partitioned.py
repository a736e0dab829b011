"""A log that one host cannot hold, read by several processes, each of which keeps the interactions of its own users.

    part = read_partitioned("logs/part-*.parquet", Reading(split="last"))

Users and items have the numbers that `read_log` gives them, and the splits are the same. Each process reads its share
of the Parquet files' row groups. Ids are numbered by ranges: samples of all ids say where to cut their order into as
many ranges as there are processes, each process sorts the distinct ids of one range, and their numbers begin where
those of the ranges before it end. Rows then go to the processes that own their users: process p owns the p-th block of
users, of which all have one size, as tables are split over devices. The rest each process does for its own users; only
counts of items and the thresholds of a split by time are about all.

A process takes, in addition to the imports:

    100 bytes per row, of the rows that it reads or of those of its users, whichever are more, and 100 MiB for
    exchanges: 20 million rows with times took 1.3 to 2.1 GiB in one process, .8 to 1.2 in each of two, .5 to .8 in each
    of four, most where the most active users are (docs/data.md)
    4 bytes per row of the whole log, for a moment, for the one order that decides random choices; none if the split is
    by time
    its own distinct ids twice, and the ids of all items
    8 bytes per item and process, with a minimum per user or item, or a split by time

What is left takes 8 bytes per own row, and ids.

Supported: Parquet files of one schema, `min_rating`, `skip_bad_rows`, `min_per_user`, `min_per_item`, and the splits
leave-one-out, last, ratio and time. The others are refused. What processes tell one another goes through `Exchange`.
"""

import bisect
import dataclasses
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from htd_jax import processes as program
from htd_jax.data.columns import FORMATS, Columns, part_files, read_folder, read_parquet, stem
from htd_jax.data.files import open_parquet
from htd_jax.data.ids import Ids, whole_numbers
from htd_jax.data.interactions import MOST
from htd_jax.data.logs import (
    MARKERS,
    Log,
    Reading,
    advice_on_empty,
    chooser,
    compact,
    distinct_pairs,
    make_log,
    plural,
    take_rows,
)
from htd_jax.data.splits import TEST, TRAIN, VALID, deal_users
from htd_jax.errors import UserError, shown
from htd_jax.errors import reading as reading_file

# Sends buffers `[bytes]` uint8, the q-th to process q, and returns those that every process has sent to this one. All
# processes call it equally often.
Exchange = Callable[[Sequence[np.ndarray]], list[np.ndarray]]

# Bytes that a process sends at once, in all.
SENT = 2**25

# Ids that a process shows the others, so that they agree on ranges of equal sizes, for each process.
SAMPLES = 256

SUPPORTED = ("leave-one-out", "last", "ratio", "time")


@dataclasses.dataclass(frozen=True)
class PartitionedLog:
    """A log in the numbers that `read_log` gives, of which this process holds its own users' interactions.

    Attributes:
      train, valid, test: own interactions, sorted by user and then by item: users `[n]` int32 and items `[n]` int32.
      num_users, num_items: counts of the whole log.
      first_user, last_user: own users are those from `first_user` up to `last_user`.
      users: ids of own users, in their order.
      items: ids of all items.
      sizes: interactions of the whole log in train, valid and test.
      max_degree: the largest number of training items of a user, of all users.
      span: first and last time of the whole log, see `Dataset`; None if unknown.
      name: name for output.
      notes: remarks of all processes on how it was read, a line each; none on unusual ids.
    """

    train: tuple[np.ndarray, np.ndarray]
    valid: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    num_users: int
    num_items: int
    first_user: int
    last_user: int
    users: Ids
    items: Ids
    sizes: tuple[int, int, int]
    max_degree: int
    span: tuple[float, float] | None
    name: str
    notes: tuple[str, ...]


def read_partitioned(
    path: Path | str,
    reading: Reading | None = None,
    *,
    process: int | None = None,
    processes: int | None = None,
    exchange: Exchange | None = None,
    shards: int | None = None,
) -> PartitionedLog:
    """Reads this process' part of a log; all processes call it with the same arguments but for `process`.

    Args:
      path: a Parquet file, a folder of them, or a pattern, see `read_log`; every process must see all files.
      reading: columns, filters and split.
      process, processes: which process this is, and of how many; those of `jax.distributed` if None.
      exchange: how processes tell one another something; `exchange_arrays` if None.
      shards: the number of parts that tables are split into, a multiple of `processes`, which it is if None. A process
        owns the users of its successive parts, each of ceil(num_users / shards) users.

    Raises:
      UserError: in every process, if a file is invalid, or a setting needs the whole log in one process.
    """
    import jax

    process = jax.process_index() if process is None else process
    processes = jax.process_count() if processes is None else processes
    if exchange is None:
        exchange = exchange_arrays if processes > 1 else list
    group = _Group(process, processes, exchange)
    shards = processes if shards is None else shards
    if shards < 1 or shards % processes:
        raise UserError(f"`shards` must be a multiple of the {processes} processes, not {shards}")
    path, reading = Path(path), (reading or Reading()).filled()
    if reading.split not in SUPPORTED or reading.clean_ids:
        what = "`clean_ids`" if reading.clean_ids else f"`split` {reading.split}"
        raise UserError(f"{what} needs the whole log in one process; known here: `split` {', '.join(SUPPORTED)}")

    part = group.agree(lambda: _read_part(path, reading, group))
    timed = all(group.tell(part.times is not None))  # optional times that one process cannot read count nowhere
    part = part if timed else part._replace(times=None)
    _check_markers(part, path, group)
    found = tuple(itertools.chain.from_iterable(group.tell(part.notes)))
    log, parts = part._replace(notes=()), np.zeros(len(part.users), np.int8)
    del part
    left_out: dict[str, int] = {}

    def keep(rows: np.ndarray, why: str) -> int:
        """Keeps some rows, a mask or an order, and returns how many all processes leave out."""
        nonlocal log, parts
        here = len(log.users) - (int(rows.sum()) if rows.dtype == bool else len(rows))
        if here or rows.dtype != bool:
            log, parts = take_rows(log, rows), parts[rows]
        everywhere = sum(group.tell(here))
        left_out[why] = left_out.get(why, 0) + everywhere
        return everywhere

    merged = f"merged as repeats of a user and item; the first {'in time' if timed else 'in the file'} counts"
    least = f"{plural(reading.min_per_user, 'item')} per user and {plural(reading.min_per_item, 'user')} per item"
    untrained = "left out of validation and test: the user or item is not in training"
    while True:
        log, parts, numbers = _numbered(log, parts, group, shards)
        keep(distinct_pairs(log, parts), merged)
        fewer = keep(_core(log, reading, group), f"left out to reach {least}")
        if not sum(group.tell(len(log.users))):
            why = f"nothing is left with {least}; lower `min_per_user` or `min_per_item`"
            raise UserError(f"{shown(path)}: {why if fewer else 'no interaction is left'}")
        if not fewer:
            break
    few = 0
    if reading.split == "time":
        parts = _deal_by_time(log, reading.held_out, group)
        if keep(_trained(log, parts, group), untrained):
            log, parts, numbers = _numbered(log, parts, group, shards)
            keep(distinct_pairs(log, parts), merged)
    else:
        parts = _deal(log, reading, group)
        few = sum(group.tell(int((np.bincount(log.users, minlength=len(log.user_ids)) < 3).sum())))
    notes = [*dict.fromkeys(found), *(f"{plural(rows, 'row')} {why}" for why, rows in left_out.items() if rows)]
    if few and reading.split in ("leave-one-out", "last"):
        notes.append(f"{plural(few, 'user')} with fewer than 3 items: all items are kept for training")
    own = [(log.users[parts == p] + np.int32(numbers.first), log.items[parts == p]) for p in (TRAIN, VALID, TEST)]
    train, valid, test = own
    sizes = [sum(of_part) for of_part in zip(*group.tell([len(users) for users, _ in own]))]
    if empty := [name for name, size in zip(("training", "validation", "test"), sizes) if not size]:
        raise UserError(f"{shown(path)}: nothing is left for {' and '.join(empty)}: {advice_on_empty(reading)}")
    degree = max(group.tell(int(np.bincount(train[0] - numbers.first).max(initial=0))))
    if degree >= len(log.item_ids):
        raise UserError(f"a user has all {degree} items in train, which leaves none to sample as a negative")
    return PartitionedLog(
        train=train,
        valid=valid,
        test=test,
        num_users=numbers.users,
        num_items=len(log.item_ids),
        first_user=numbers.first,
        last_user=numbers.first + len(log.user_ids),
        users=Ids(log.user_ids, "user"),
        items=Ids(log.item_ids, "item"),
        sizes=tuple(sizes),
        max_degree=degree,
        span=_span(log, group),
        name=stem(path),
        notes=tuple(notes),
    )


def exchange_arrays(parts: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Exchanges buffers between the processes of `jax.distributed`, by an all-to-all of one device of each.

    Buffers go in pieces of `SENT` bytes in all, so that one long buffer does not pad the others.
    """
    import jax
    from jax.experimental import multihost_utils
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    program.barrier("exchange")  # which waits longer than a collective does: reading takes a while
    process, processes = jax.process_index(), jax.process_count()
    lengths = np.array([len(part) for part in parts], np.int64).view(np.uint8)  # jax has no int64 by default
    sizes = multihost_utils.process_allgather(lengths).view(np.int64).reshape(processes, processes)
    firsts = [min(jax.local_devices(process_index=q), key=lambda device: device.id) for q in range(processes)]
    by_process = NamedSharding(Mesh(firsts, "processes"), PartitionSpec("processes"))
    swapped = jax.jit(
        jax.shard_map(
            lambda x: jax.lax.all_to_all(x, "processes", 1, 1, tiled=True),
            mesh=by_process.mesh,
            in_specs=by_process.spec,
            out_specs=by_process.spec,
        )
    )
    received = [np.empty(size, np.uint8) for size in sizes[:, process]]
    received[process] = parts[process]  # stays here
    most = int((sizes - np.diag(np.diag(sizes))).max())
    width = min(max(SENT // processes, 1), 1 << max(most - 1, 1).bit_length())  # few widths are compiled
    for start in range(0, most, width):
        block = np.zeros((1, processes, width), np.uint8)
        for row, part in zip(block[0], parts):
            row[: max(0, len(part) - start)] = part[start : start + width]
        local = jax.device_put(block, firsts[process])
        sent = jax.make_array_from_single_device_arrays((processes, processes, width), by_process, [local])
        rows = np.asarray(swapped(sent).addressable_data(0))[0]
        for q, row in enumerate(rows):
            if q != process:
                piece = received[q][start : start + width]
                piece[:] = row[: len(piece)]
    return received


@dataclasses.dataclass(frozen=True)
class _Group:
    """The processes that read a log."""

    process: int
    processes: int
    exchange: Exchange

    def swap(self, parts: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Sends arrays `[n]` of one type, the q-th to process q; returns those that this process is sent."""
        kind = parts[0].dtype
        return [
            x.view(kind) for x in self.exchange([np.ascontiguousarray(part).view(np.uint8).ravel() for part in parts])
        ]

    def swap_ids(self, parts: Sequence[pa.Array]) -> list[pa.Array]:
        """Does what `swap` does with ids."""
        packed = []
        for part in parts:
            sink = pa.BufferOutputStream()
            batch = pa.record_batch([part], ["id"])
            with pa.ipc.new_stream(sink, batch.schema) as stream:
                stream.write_batch(batch)
            packed.append(np.frombuffer(sink.getvalue(), np.uint8))
        return [pa.ipc.open_stream(pa.py_buffer(x)).read_all()["id"].combine_chunks() for x in self.exchange(packed)]

    def tell(self, value: Any) -> list[Any]:
        """Returns every process' value, which JSON can hold."""
        coded = np.frombuffer(json.dumps(value).encode(), np.uint8)
        return [json.loads(x.tobytes()) for x in self.exchange([coded] * self.processes)]

    def agree(self, step: Callable[[], Any]) -> Any:
        """Returns what a step returns, if it succeeds in all processes.

        Raises:
          UserError: in every process, if the step fails in one.
        """
        result, lines = None, []
        try:
            result = step()
        except UserError as error:
            lines = list(map(str, error.args))
        if wrong := next(filter(None, self.tell(lines)), None):
            raise UserError(*wrong)
        return result


class _Numbers(NamedTuple):
    """The number of all users, and the first own one."""

    users: int
    first: int


def _read_part(path: Path, reading: Reading, group: _Group) -> Log:
    """Reads this process' share of the rows, in the order of the files."""
    files = part_files(path) if path.is_dir() or not path.is_file() else [path]
    if other := next((file for file in files if FORMATS.get(file.suffix.lower()) != "parquet"), None):
        raise UserError(f"{shown(other)}: only Parquet is read in parts; convert it, or read it in one process")
    schemas, sizes = {}, []
    for file in files:
        with reading_file(file, "a Parquet file"), open_parquet(file) as opened:
            schemas[file] = opened.schema_arrow
            sizes += [(file, k, opened.metadata.row_group(k).num_rows) for k in range(opened.num_row_groups)]
    before = np.cumsum([rows for *_, rows in sizes]) - [rows for *_, rows in sizes]
    total = sum(rows for *_, rows in sizes)
    groups: dict[Path, list[int]] = {file: [] for file in files}
    for (file, k, _), start in zip(sizes, before):
        if start * group.processes // max(total, 1) == group.process:
            groups[file].append(k)
    first: dict[str, tuple[Path, pa.DataType]] = {}

    def read(file: Path, choose: Any) -> Columns:
        columns = read_parquet(file, choose, groups[file])
        for role, name in columns.names.items():
            kind = schemas[file].field(name).type
            other, expected = first.setdefault(role, (file, kind))
            if kind != expected:
                kinds = f"{kind}, and {expected} in {shown(other.name)}"
                raise UserError(f"{shown(file)}: column {name!r} is {kinds}; write one type in all files")
            text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind)
            if pa.types.is_decimal(kind) or (role == "time" and text):
                advice = "write numbers or dates" if role == "time" else "write text or integers"
                raise UserError(f"{shown(file)}: column {name!r} is {kind}, which is not read in parts; {advice}")
        return columns

    return make_log(read_folder(path, chooser(reading, shown(path)), read), reading, shown(path), part=True)


def _check_markers(log: Log, path: Path, group: _Group) -> None:
    """Raises UserError if ids such as `NULL` are among whole numbers, where they stand for missing ones."""
    for role, ids in (("user", log.user_ids), ("item", log.item_ids)):
        texts = ids.cast(pa.string())
        marked = pc.is_in(texts, pa.array(MARKERS))
        rest = texts.filter(pc.invert(marked))
        whole = pa.types.is_integer(whole_numbers(rest).type) if len(rest) else None
        example = texts.filter(marked)[:1].to_pylist()
        told = group.tell([example, whole])
        examples, wholes = [x for x, _ in told if x], [x for _, x in told if x is not None]
        if examples and wholes and all(wholes):
            raise UserError(
                f"{shown(path)}: {role} {examples[0][0]!r} is no id among whole numbers; leave such rows out"
            )


def _numbered(log: Log, parts: np.ndarray, group: _Group, shards: int) -> tuple[Log, np.ndarray, _Numbers]:
    """Numbers users and items, and sends every row to the process that owns its user.

    Returns:
      Own rows, in the order of the processes that held them: users as positions among own users, items as positions
      among all items; each row's part; and the numbers of users.
    """
    log = compact(log)
    ranges = {}
    for role in ("user", "item"):
        ids = _by_one_rule(getattr(log, f"{role}_ids"), group)
        union = pc.unique(ids)
        numbers, in_range, first, total = _number(union, group)
        if total > MOST:
            raise UserError(f"{total} {role}s are too many; at most {MOST} are supported")
        places = numbers.astype(np.int32)[pc.index_in(ids, union).to_numpy(zero_copy_only=False)]
        log = log._replace(**{f"{role}s": places[getattr(log, f"{role}s")]})
        ranges[role] = in_range, first, total
    in_range, first, num_users = ranges["user"]
    block = -(-num_users // shards) * (shards // group.processes)
    ends = [min(q * block, num_users) for q in range(group.processes + 1)]
    spread = [in_range[max(0, a - first) : max(0, b - first)] for a, b in itertools.pairwise(ends)]
    own_ids = pa.concat_arrays(group.swap_ids(spread))
    item_ids = pa.concat_arrays(group.swap_ids([ranges["item"][0]] * group.processes))

    owner = (log.users // max(block, 1)).astype(np.int16)
    rows = np.argsort(owner, kind="stable")
    cuts = [*itertools.pairwise([0, *np.cumsum(np.bincount(owner, minlength=group.processes))])]
    send = lambda column: np.concatenate(group.swap([column[rows[a:b]] for a, b in cuts]))
    first_user = ends[group.process]
    own = Log(
        send(log.users) - np.int32(first_user),
        send(log.items),
        None if log.times is None else send(log.times),
        own_ids,
        item_ids,
    )
    return own, send(parts), _Numbers(num_users, first_user)


def _by_one_rule(ids: pa.Array, group: _Group) -> pa.Array:
    """Returns ids as numbers if those of all processes are whole numbers, see `whole_numbers`, otherwise as text."""
    if any(group.tell(pa.types.is_string(ids.type))):
        ids = ids.cast(pa.string())
        numbers = whole_numbers(ids)
        if all(group.tell(not len(ids) or pa.types.is_integer(numbers.type))):
            return numbers.cast(pa.int64())
    return ids


def _number(ids: pa.Array, group: _Group) -> tuple[np.ndarray, pa.Array, int, int]:
    """Numbers distinct ids `[n]` in the order of those of all processes.

    Returns:
      Numbers `[n]` int64; the ids of this process' range, in order; the first one's number; and the number of all.
    """
    places = pc.sort_indices(ids).to_numpy()
    ordered = ids.take(pa.array(places))
    shown_ids = ordered.take(
        pa.array(np.linspace(0, len(ids) - 1, min(len(ids), SAMPLES * group.processes)).astype(int))
    )
    samples = pa.concat_arrays(group.swap_ids([shown_ids] * group.processes))
    samples = samples.take(pc.sort_indices(samples))
    cuts = [0]
    for q in range(1, group.processes):
        least = samples[len(samples) * q // group.processes].as_py() if len(samples) else None
        cuts.append(bisect.bisect_left(range(len(ids)), least, key=lambda row: ordered[row].as_py()))
    received = group.swap_ids([ordered[a:b] for a, b in itertools.pairwise([*cuts, len(ids)])])
    in_range = pc.unique(pa.chunked_array(received))
    in_range = in_range.take(pc.sort_indices(in_range))
    sizes = group.tell(len(in_range))
    first = sum(sizes[: group.process])
    found = [pc.index_in(part, in_range).to_numpy(zero_copy_only=False).astype(np.int64) + first for part in received]
    numbers = np.empty(len(ids), np.int64)
    numbers[places] = np.concatenate(group.swap(found))
    return numbers, in_range, first, sum(sizes)


def _summed(counts: np.ndarray, group: _Group) -> np.ndarray:
    """Returns the sums of all processes' counts."""
    return np.sum(group.swap([counts.astype(np.int64)] * group.processes), axis=0)


def _core(log: Log, reading: Reading, group: _Group) -> np.ndarray:
    """Returns which own rows are in the k-core."""
    kept = np.ones(len(log.users), bool)
    while reading.min_per_user > 1 or reading.min_per_item > 1:
        of_users = np.bincount(log.users[kept], minlength=len(log.user_ids))
        of_items = _summed(np.bincount(log.items[kept], minlength=len(log.item_ids)), group)
        still = kept & (of_users >= reading.min_per_user)[log.users] & (of_items >= reading.min_per_item)[log.items]
        fewer = int(kept.sum()) - int(still.sum())
        kept = still
        if not sum(group.tell(fewer)):
            break
    return kept


def _trained(log: Log, parts: np.ndarray, group: _Group) -> np.ndarray:
    """Returns which own rows have both a user and an item of training."""
    train = parts == TRAIN
    user = np.bincount(log.users[train], minlength=len(log.user_ids)) > 0
    item = _summed(np.bincount(log.items[train], minlength=len(log.item_ids)), group) > 0
    return user[log.users] & item[log.items]


def _deal(log: Log, reading: Reading, group: _Group) -> np.ndarray:
    """Returns the part of every own row, as `splits.deal` does for those of all processes."""
    sizes = group.tell(len(log.users))
    first, total = sum(sizes[: group.process]), sum(sizes)
    keys = np.arange(total, dtype=np.int32 if total <= MOST else np.int64)
    np.random.default_rng(reading.split_seed).shuffle(keys)
    own = keys[first : first + len(log.users)].copy()
    del keys
    return deal_users(log.users, reading.split, own, share=reading.held_out, times=log.times)


def _deal_by_time(log: Log, share: float, group: _Group) -> np.ndarray:
    """Returns the part of every own row, as `splits.deal` does for those of all processes."""
    assert log.times is not None
    total = sum(group.tell(len(log.times)))
    bits = (log.times + 0.0).view(np.int64)
    keys = bits ^ ((bits >> 63) & (2**63 - 1))  # integers in the order of the floats
    ordered = np.sort(keys)
    later = np.zeros(len(keys), np.int8)
    for quantile in (1 - 2 * share, 1 - share):
        rank = int(np.floor((total - 1) * quantile))  # as NumPy's method "lower"
        low, high = -(2**63), 2**63 - 1
        while low < high:
            middle = (low + high) // 2
            if sum(group.tell(int(np.searchsorted(ordered, middle, side="right")))) > rank:
                high = middle
            else:
                low = middle + 1
        later += keys > low
    return later


def _span(log: Log, group: _Group) -> tuple[float, float] | None:
    """Returns the first and the last time of all processes."""
    if log.times is None:
        return None
    told = [x for x in group.tell([float(log.times.min()), float(log.times.max())] if len(log.times) else None) if x]
    return min(x for x, _ in told), max(x for _, x in told)
