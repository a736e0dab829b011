"""Kills every command at random moments, resumes it, and demands that nothing is lost: `kills.py --kills 1000`.

Each scenario is a command in a folder of its own, on a small synthetic data set. It runs once unbroken. Then it is
started again in a fresh folder, killed with its process group (SIGKILL, SIGTERM or SIGINT; a study also alone) after a
random time or as a temporary folder appears, and started again until it ends; and so from the beginning, until all
kills are spent. Commands are forked from a process that has imported the package, so that no kill is spent on imports,
which write nothing. After every kill, every file that it writes must be what it was or what it becomes, and every JSON
file and checkpoint whole; at its end, all must have the bits of the unbroken run, and no temporary folder may be left.

With `--processes 2`, two processes train together, on a mesh of their processors. One of them is killed; the other must
end too, within `BOUND` seconds.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import importlib
import json
import os
import pkgutil
import random
import select
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

import htd_jax
from htd_jax import command, processes
from htd_jax.distillers import METHODS
from htd_jax.training import Checkpoints, loop

ROOT = Path(__file__).resolve().parent.parent
SMALL = "--synthetic.users 60 --synthetic.items 150 --epochs 4 --eval-every 1 --teacher-dim 12 --student-dim 4".split()  # noqa: SIM905
BASE = ["train", *SMALL, "--method", "ftd", "--run", "base"]
OTHER = [*BASE[:-1], "other"]

# Kills of a command before the next one has its turn.
EACH = 6

# Of several processes: when a silent one counts as dead, when one that never came does, and when all must have ended.
HEARTBEAT, START, BOUND = 8, 30, 60

SIGNALS = {"SIGKILL": 0.6, "SIGTERM": 0.2, "SIGINT": 0.2}


@dataclasses.dataclass(frozen=True)
class Scenario:
    """A command that is killed.

    Attributes:
      name: its name in the summary.
      arguments: of `htd-jax`.
      before: the commands whose results it finds.
      targets: files or folders that are the old or the new at every moment.
    """

    name: str
    arguments: list[str]
    before: tuple[list[str], ...] = ()
    targets: tuple[str, ...] = ()


def scenarios() -> list[Scenario]:
    """Returns every command: training with every method, several joined, and other models; studies; and serving."""
    train = lambda name, *words: Scenario(f"train {name}", ["train", *SMALL, *words, "--run", "run"])
    groups = lambda name: ["--htd.groups", "3"] if "htd" in name.split("+") else []
    methods = [*METHODS, "htd+rrd", "ftd+fitnet", "rrd+listwise"]
    closed = lambda name: ["--model", "ials"] if METHODS[name.split("+")[0]].closed_form else []
    found = [train(name, "--method", name, *groups(name), *closed(name)) for name in methods]
    found += [
        train("best int4", "--method", "best", "--precision", "int4"),
        train("lightgcn", "--model", "lightgcn", "--method", "ftd"),
        train("neumf", "--model", "neumf", "--method", "rd"),
        train("ials", "--model", "ials", "--method", "none"),
        train("patience", "--method", "none", "--patience", "2"),
    ]
    export = ["export", "--run", "base", "--to", "model"]
    delta = ["export", "--run", "other", "--to", "delta", "--delta-from", "model"]
    first = ["recommend", "--run", "base", "--to", "lists.csv"]
    served = [
        Scenario("export over an export", [*export, "--seen"], (BASE, [*export, "--precision", "int8"]), ("model",)),
        Scenario("delta over a delta", delta, (BASE, export, [*OTHER, "--seed", "1"], delta), ("delta",)),
        Scenario("lists over lists", [*first, "--k", "30"], (BASE, first), ("lists.csv",)),
        Scenario("lists in Parquet", [*first[:-1], "lists.parquet"], (BASE,), ("lists.parquet",)),
        Scenario("table", ["table", "--runs", "."], (BASE,)),
        Scenario("compare", ["compare", "base", "other"], (BASE, OTHER)),
    ]
    small = ["--size", "small", *SMALL[:-2], "--runs", "runs"]
    studies = [
        Scenario("study comparison", ["study", "comparison", *small, "--methods", "svd", "ftd", "--student-dims", "4"]),
        Scenario(
            "study tune",
            ["study", "tune", *SMALL, "--method", "ftd", "--trials", "4", "--runs", "runs", "--search", "ftd.weight"],
        ),
    ]
    return [*found, *served * 3, *studies * 3]


class Forks:
    """A process that has imported everything and computed nothing; it forks the commands, one after another."""

    def __init__(self, environment: dict[str, str], joined: bool):
        self._socket, other = socket.socketpair()
        if os.fork():
            other.close()
            return
        self._socket.close()
        os.setsid()
        os.environ.update(environment)
        if joined:
            processes.HEARTBEAT_SECONDS, processes.START_SECONDS = HEARTBEAT, START
            loop.CHECKPOINT_SECONDS = 0  # a save is under way at most moments
        jax.config.update("jax_platforms", environment["JAX_PLATFORMS"])
        jax.config.update("jax_num_cpu_devices", 1)
        jax.config.update("jax_compilation_cache_dir", environment["JAX_COMPILATION_CACHE_DIR"])
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        for module in pkgutil.walk_packages(htd_jax.__path__, "htd_jax."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
        with other, other.makefile("rw") as stream:
            for line in stream:
                pid = os.fork()
                if not pid:
                    _run(**json.loads(line))
                print(pid, file=stream, flush=True)
                print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), file=stream, flush=True)
        os._exit(0)

    def start(self, arguments: list[str], cwd: Path, out: Path) -> "Fork":
        self._socket.sendall((json.dumps({"arguments": arguments, "cwd": str(cwd), "out": str(out)}) + "\n").encode())
        return Fork(self._socket)

    def close(self) -> None:
        self._socket.close()


def _run(arguments: list[str], cwd: str, out: str) -> None:
    """Runs a command as its own process would."""
    status: Any = 1
    try:
        os.setsid()
        os.chdir(cwd)
        target = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for number, stream in enumerate((os.open(os.devnull, os.O_RDONLY), target, target)):
            os.dup2(stream, number)
        command.main(arguments)
        status = 0
    except SystemExit as end:
        status = end.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status if isinstance(status, int) else 1)


class Team:
    """The forks of one command, a process each."""

    def __init__(self, forks: list["Fork"]):
        self.forks = forks

    def poll(self) -> int | None:
        """Returns the first status that is not 0 once all have ended; None while one runs."""
        found = [fork.poll() for fork in self.forks]
        return None if None in found else next(filter(None, found), 0)

    def wait(self, seconds: float = 600) -> int | None:
        """Returns the same; None if they take longer."""
        end = time.monotonic() + seconds
        while (status := self.poll()) is None and time.monotonic() < end:
            time.sleep(0.02)
        return status

    def signal(self, number: signal.Signals, chosen: list["Fork"], *, group: bool = True) -> None:
        for fork in chosen:
            with contextlib.suppress(ProcessLookupError):
                (os.killpg if group else os.kill)(fork.pid, number)


class Fork:
    """A running command."""

    def __init__(self, server: socket.socket):
        self._server, self._status = server, None
        self.pid = int(self._line())

    def _line(self) -> str:
        text = b""
        while not text.endswith(b"\n"):
            text += self._server.recv(1)
        return text.decode()

    def poll(self) -> int | None:
        """Returns the status; None while it runs."""
        if self._status is None and select.select([self._server], [], [], 0)[0]:
            self._status = int(self._line())
        return self._status


def is_alive(fork: Fork) -> bool:
    try:
        os.killpg(fork.pid, 0)
    except ProcessLookupError:
        return False
    return True


class Kills:
    """The state of the whole: what was killed, and what was found."""

    def __init__(self, folder: Path, seed: int, say: Callable[[dict[str, Any]], None], together: int = 1):
        self.folder, self.random, self.say = folder, random.Random(seed), say
        self.counts = {"kills": 0, "ends": 0, "starts": 0, "at a write": 0}
        self.by_signal: dict[str, int] = {}
        self.by_command: dict[str, int] = {}
        self.problems: list[str] = []
        self.notes: dict[str, int] = {}
        self.running = 0.0
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "XLA_FLAGS": "--xla_backend_optimization_level=0",
        }
        self.longest = 0.0
        self.forks = [Forks(self.environment, together > 1) for _ in range(together)]

    def start(self, arguments: list[str], cwd: Path) -> Team:
        self.counts["starts"] += 1
        joined: list[list[str]] = [[]]
        if len(self.forks) > 1:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                address = f"127.0.0.1:{free.getsockname()[1]}"
            count = len(self.forks)
            joined = [["--coordinator", address, "--processes", f"{count}", "--process", f"{i}"] for i in range(count)]
        outs = [cwd.with_name(f"{cwd.name}.out{number or ''}") for number in range(len(joined))]
        return Team([forks.start(arguments + own, cwd, out) for forks, own, out in zip(self.forks, joined, outs)])

    def unbroken(self, arguments: list[str], cwd: Path) -> float:
        begin = time.monotonic()
        team = self.start(arguments, cwd)
        if team.wait() != 0:
            raise RuntimeError(f"{' '.join(arguments)}: {output(cwd)[-400:]}")
        return time.monotonic() - begin

    def prepare(self, scenario: Scenario) -> tuple[dict, dict, float]:
        """Returns what the folder holds before and after the unbroken command, and the seconds it takes."""
        reference = self.folder / "reference" / scenario.name.replace(" ", "-")
        if reference.exists():
            shutil.rmtree(reference)
        start = reference.with_name(reference.name + "-start")
        if not start.exists():
            start.mkdir(parents=True)
            for arguments in scenario.before:
                self.unbroken(arguments, start)
        shutil.copytree(start, reference)
        self.unbroken(scenario.arguments, reference)  # compiles
        shutil.rmtree(reference)
        shutil.copytree(start, reference)
        seconds = self.unbroken(scenario.arguments, reference)
        self.say({**self.summary(), "prepared": scenario.name, "its seconds": round(seconds, 1)})
        return snapshot(start), {**snapshot(reference), "output": shown_output(scenario, reference)}, seconds

    def go(self, scenario: Scenario, kills: int, known: dict) -> None:
        """Runs a scenario from its beginning to its end, as often as it takes for this number of kills."""
        if scenario.name not in known:
            known[scenario.name] = self.prepare(scenario)
        before, after, seconds = known[scenario.name]
        start = self.folder / "reference" / f"{scenario.name.replace(' ', '-')}-start"
        cwd = self.folder / "killed" / scenario.name.replace(" ", "-")
        spent = 0
        while spent < kills:
            if cwd.exists():
                shutil.rmtree(cwd)
            shutil.copytree(start, cwd)
            here = 0
            while True:
                if not self.kill_once(scenario, cwd, seconds, last=spent >= kills or here >= 12):
                    break
                spent, here = spent + 1, here + 1
                self.check(scenario, cwd, before, after)
            self.counts["ends"] += 1
            found = {**snapshot(cwd), "output": shown_output(scenario, cwd)}
            for name in sorted(found.keys() | after.keys()):
                if found.get(name) != after.get(name):
                    self.problems.append(f"{scenario.name}: {name} differs from the unbroken run's")
            if left := [str(path.relative_to(cwd)) for path in cwd.rglob(".partial-*")]:
                self.problems.append(f"{scenario.name}: left behind {left}")

    def kill_once(self, scenario: Scenario, cwd: Path, seconds: float, *, last: bool) -> bool:
        """Starts the command, and returns whether it was killed; False if it ended."""
        name = self.random.choices([*SIGNALS], [*SIGNALS.values()])[0]
        at_write = self.random.random() < 0.4
        skip, deadline = int(self.random.expovariate(0.5)), self.random.uniform(0.3, 1.0) * seconds
        begin = time.monotonic()
        team = self.start(scenario.arguments, cwd)
        seen: set[str] = set()
        killed = False
        while team.poll() is None:
            passed = time.monotonic() - begin
            if passed > 600:
                self.problems.append(f"{scenario.name}: takes longer than 600 s")
                team.signal(signal.SIGKILL, team.forks)
                break
            if last:
                time.sleep(0.05)
                continue
            if at_write:
                seen |= {str(path) for path in partials(cwd)}
            if len(seen) > skip or (passed > deadline and not at_write):
                killed = True
                self.counts["at a write"] += at_write
                alone = scenario.name.startswith("study") and name == "SIGKILL" and self.random.random() < 0.5
                team.signal(signal.Signals[name], [self.random.choice(team.forks)], group=not alone)
                break
            time.sleep(0.001 if at_write else 0.02)
        signalled = time.monotonic()
        if (status := team.wait(BOUND)) is None:
            self.problems.append(f"{scenario.name}: a process runs {BOUND} s after {name} of another")
            team.signal(signal.SIGKILL, team.forks)
            status = team.wait()
        self.longest = max(self.longest, time.monotonic() - signalled)
        self.running += time.monotonic() - begin
        end = time.monotonic() + 30
        while time.monotonic() < end:  # its children end with it
            if not any(map(is_alive, team.forks)):
                break
            time.sleep(0.02)
        else:
            self.problems.append(f"{scenario.name}: a child outlives its parent")
            team.signal(signal.SIGKILL, team.forks)
        text = output(cwd)
        if killed and status == 0:
            killed = False  # it had just ended
        if not killed:
            if status != 0:
                self.problems.append(f"{scenario.name}: ended with {status}: {text[-300:]!r}")
            return False
        if "Traceback" in text:
            self.notes["tracebacks after a signal"] = self.notes.get("tracebacks after a signal", 0) + 1
        self.counts["kills"] += 1
        self.by_signal[name] = self.by_signal.get(name, 0) + 1
        self.by_command[scenario.name] = self.by_command.get(scenario.name, 0) + 1
        if self.counts["kills"] % 10 == 0:
            self.say(self.summary())
        return True

    def check(self, scenario: Scenario, cwd: Path, before: dict, after: dict) -> None:
        """Checks what a kill left."""
        try:
            now = snapshot(cwd)
        except Exception as error:
            self.problems.append(f"{scenario.name}: something is not whole after a kill: {error!r}"[:300])
            return
        for target in scenario.targets:
            if part(now, target) not in (part(before, target), part(after, target)):
                self.problems.append(f"{scenario.name}: {target} is neither the old nor the new after a kill")
        for name, content in before.items():
            if not any(name == t or name.startswith(f"{t}/") for t in scenario.targets) and now.get(name) != content:
                self.problems.append(f"{scenario.name}: {name}, which it only reads, has changed")

    def summary(self) -> dict:
        hours = {"hours of killed work": round(self.running / 3600, 2), "longest end": round(self.longest, 1)}
        found = {"problems": len(self.problems), "first problems": self.problems[:10], **self.notes}
        return {**self.counts, **hours, "by signal": self.by_signal, "by command": self.by_command, **found}


def part(snapshot: dict, target: str) -> dict:
    return {name: content for name, content in snapshot.items() if name.split("/")[0] == target}


def partials(folder: Path) -> list[Path]:
    return [*folder.glob(".partial-*"), *folder.glob("*/.partial-*"), *folder.glob("*/checkpoints/*/.partial-*")]


def output(cwd: Path) -> str:
    return cwd.with_name(cwd.name + ".out").read_text(errors="replace")


def shown_output(scenario: Scenario, cwd: Path) -> str:
    """What table and compare print, but for times; others write files."""
    if scenario.name not in ("table", "compare"):
        return ""
    return "\n".join(line for line in output(cwd).splitlines() if "seconds" not in line)


def untimed(value):
    """JSON without what depends on the clock."""
    if isinstance(value, dict):
        return {name: untimed(x) for name, x in value.items() if not name.startswith(("seconds", "peak", "spent"))}
    return [untimed(x) for x in value] if isinstance(value, list) else value


def snapshot(folder: Path) -> dict[str, object]:
    """Returns what is in a folder, whole: files without the times in them, and the numbers of every checkpoint."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if ".partial-" in name or "/state/" in name:
            continue
        if path.is_dir():
            if path.parent.name == "checkpoints" and any(child.name.isdecimal() for child in path.iterdir()):
                found[f"{name} arrays"] = arrays_of(Checkpoints(path).tree())
            continue
        if path.name == "history.json" and path.parent.parent.parent.name == "checkpoints":
            steps = [int(step.name) for step in path.parent.parent.iterdir() if step.name.isdecimal()]
            if int(path.parent.name) < max(steps):
                continue  # an older step, which a kill has left for the next save to remove
        if path.suffix == ".json":
            found[name] = untimed(json.loads(path.read_text()))
        elif path.suffix == ".jsonl":
            found[name] = untimed([json.loads(line) for line in path.read_text().splitlines()])
        elif path.suffix in (".html", ".svg", ".md", ".csv", ".png") and "runs" in path.parts and path.stem != "tune":
            found[name] = "times stand in it"
        elif path.suffix not in (".log", ".db", ".db-journal"):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def arrays_of(tree) -> str:
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype}{array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


def kill_all(kills: int, seed: int, folder: Path, chosen: list[Scenario], say, together: int = 1) -> Kills:
    """Spends the kills on the scenarios in turn, a few each; each command is run by so many processes together."""
    state, known, number = Kills(folder, seed, say, together), {}, 0
    order = chosen[:]
    state.random.shuffle(order)
    while state.counts["kills"] < kills:
        scenario = order[number % len(order)]
        number += 1
        state.go(scenario, min(EACH, kills - state.counts["kills"]), known)
    for forks in state.forks:
        forks.close()
    return state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="a part of the names of the scenarios")
    parser.add_argument("--processes", type=int, default=1, help="processes that run each training together")
    parser.add_argument("--to", type=Path, help="a JSON file for the summary, written as it goes")
    options = parser.parse_args()
    begin = time.monotonic()

    def say(summary: dict) -> None:
        summary = {**summary, "seconds": round(time.monotonic() - begin)}
        print(json.dumps(summary), flush=True)
        if options.to:
            options.to.write_text(json.dumps(summary, indent=2) + "\n")

    with tempfile.TemporaryDirectory() as folder:
        together = options.processes
        chosen = [own for own in scenarios() if options.only in own.name and (together == 1 or own.name[:5] == "train")]
        state = kill_all(options.kills, options.seed, Path(folder), chosen, say, together)
    say({**state.summary(), "finished": True})
    sys.exit(bool(state.problems))


if __name__ == "__main__":
    main()
