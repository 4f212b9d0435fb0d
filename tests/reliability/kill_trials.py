"""kill -9 at random moments of index, remove, prune, re-index, convert and train-save; nothing may be lost or doubled.

    python tests/reliability/kill_trials.py --trials 3072 --seconds 1500

Each trial is a process of its own that is killed at a moment drawn from the length of the undisturbed operation, and
another that looks at what is left, makes the same call again and compares the end with the undisturbed one. Processes
are forked from this one, which has imported everything and used nothing: starting Python anew would cost more than the
trial. Prints one line an operation; ends with 1 if a trial failed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import rooms  # noqa: F401 - sets the path of the next ones
import torch
from index_rows import MODEL
from index_sequence import Corpus, bring_up_to_date, check_invariants, contents, many
from official_folders import content
from tiny_base import make as make_base  # type: ignore[import-not-found]  # scripts, which mypy is not given
from train_cases import losses, made, passages

from clara.index import LanceStore, table
from clara.model import checkpoint
from clara.model.apple.write import convert
from clara.train.run import train

DOCUMENTS = 12
STEPS = 3
TURNS = {"convert": 3, "train-save": 1}


@dataclass(frozen=True)
class Operation:
    """What is killed.

    Attributes:
        prepare: makes the state before it in a folder.
        run: the call that is killed, and made again afterwards.
        check: raises if what a kill left is not whole.
        state: the end, to be compared.
    """

    prepare: Callable[[Path], None]
    run: Callable[[Path], None]
    check: Callable[[Path], None]
    state: Callable[[Path], object]


@dataclass
class Tally:
    """What the trials of an operation gave.

    Attributes:
        trials: all of them.
        killed: those that were killed before their end.
        failed: what went wrong, one line each.
    """

    trials: int = 0
    killed: int = 0
    failed: list[str] = field(default_factory=list)


def store_operation(before: Corpus | None, after: Corpus) -> Operation:
    """Bring a store from one corpus to another by the calls of the pipeline."""

    def to(folder: Path, corpus: Corpus) -> None:
        with LanceStore.create(folder / "store", MODEL) as store:
            bring_up_to_date(store, corpus)

    def state(folder: Path) -> object:
        with LanceStore.open(folder / "store", MODEL) as store:
            return contents(store)

    return Operation(
        prepare=lambda folder: to(folder, before) if before is not None else None,
        run=lambda folder: to(folder, after),
        check=lambda folder: check_invariants(folder / "store", after, *([before] if before is not None else [])),
        state=state,
    )


def remove_operation(before: Corpus, gone: frozenset[str]) -> Operation:
    """Take documents out of a store."""
    left = {uri: version for uri, version in before.items() if uri not in gone}
    base = store_operation(before, left)

    def run(folder: Path) -> None:
        with LanceStore.open(folder / "store", MODEL) as store:
            store.remove(gone & (store.documents().keys() | store.unfinished()))

    return Operation(base.prepare, run, base.check, base.state)


def convert_operation(official: Path, base: Path) -> Operation:
    """Convert a checkpoint in Apple's format over another one."""

    def run(folder: Path) -> None:
        convert(official, folder / "native", folder, base_name=str(base), progress=lambda *_: None)

    def prepare(folder: Path) -> None:
        run(folder)
        path = folder / "native" / checkpoint.MANIFEST
        values = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(values | {"stage": "before"}), encoding="utf-8")

    def check(folder: Path) -> None:
        checkpoint.read_manifest(folder / "native")
        names = {path.name for path in (folder / "native").iterdir()}
        assert names == {"README.md", "adapters", "clara.json", "memory.safetensors", "vocabulary.safetensors"}, names

    return Operation(prepare, run, check, lambda folder: files_of(folder / "native"))


def train_operation(base: Path) -> Operation:
    """A run that saves after each step, which the same command goes on with."""

    def run(folder: Path) -> None:
        stage = made("scp", base, steps=STEPS, save_every=1, evaluate_every=STEPS, held_out=0, batch_size=2)
        train(stage, passages(8), folder / "run", cache=folder)

    def state(folder: Path) -> object:
        whole = files_of(folder / "run" / "checkpoint")
        weights = {name: data for name, data in whole.items() if name.endswith(".safetensors")}
        return losses(folder / "run"), weights

    return Operation(lambda _: None, run, lambda _: None, state)


def files_of(folder: Path) -> Mapping[str, bytes]:
    """The bytes of a folder's files by their relative names."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def forked(work: Callable[[], None]) -> int:  # noqa: RET503 - a child never returns
    """Run something in a process of its own; its id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the engine's, of its threads
        child = os.fork()
    if child:
        return child
    try:
        # The engine has not been used before the fork: nothing of it is lost in the child.
        table._PROCESS = os.getpid()
        work()
    except BaseException:  # noqa: BLE001 - a child must not go on as its parent
        traceback.print_exc()
        _end(1)
    _end(0)


def _end(code: int) -> NoReturn:
    sys.stderr.flush()
    os._exit(code)


def seconds_of(work: Callable[[], None]) -> float:
    """How long something takes in a process of its own, which must succeed."""
    started = time.monotonic()
    _, status = os.waitpid(forked(work), 0)
    if status:
        raise SystemExit("the undisturbed operation failed")
    return time.monotonic() - started


def killed_after(work: Callable[[], None], seconds: float) -> bool:
    """Whether a process that does something was killed before its end."""
    child = forked(work)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def trial(operation: Operation, start: Path, wanted: Path, folder: Path, seconds: float) -> tuple[bool, str]:
    """One kill: whether it came before the end, and what went wrong afterwards."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(start, folder)
    killed = killed_after(lambda: operation.run(folder), seconds)

    def finish() -> None:
        operation.check(folder)
        operation.run(folder)
        if repr(operation.state(folder)) != wanted.read_text(encoding="utf-8"):
            raise AssertionError("the end differs from the undisturbed one")

    _, status = os.waitpid(forked(finish), 0)
    return killed, "" if status == 0 else f"killed after {seconds:.3f} s: left in {folder}"


def make_models(folder: Path) -> None:
    """A tiny base model and a checkpoint in Apple's format on it."""
    make_base(folder / "base")
    content(folder / "base", training_stage="stage1", dtype=torch.float32).write(folder / "official")


def operations(models: Path) -> dict[str, Operation]:
    """All operations by name, with the models that ``make_models`` made."""
    v1, v2 = many("v1", DOCUMENTS), many("v2", DOCUMENTS)
    same = {uri: ("v2" if number % 2 else version, count) for number, (uri, (version, count)) in enumerate(v1.items())}
    return {
        "index": store_operation(None, v1),
        "remove": remove_operation(v1, frozenset(list(v1)[::2])),
        "prune": store_operation(v1, v2),
        "re-index": store_operation(v1, same),
        "convert": convert_operation(models / "official", models / "base"),
        "train-save": train_operation(models / "base"),
    }


class Trials:
    """The trials of all operations in a folder.

    Args:
        root: an empty folder.
        seed: of the moments.
        say: told what happens.
    """

    def __init__(self, root: Path, seed: int, say: Callable[[str], None]) -> None:
        self._root, self._moments, self._say = root, random.Random(seed), say
        seconds_of(lambda: make_models(root / "models"))  # in a child: this process stays unused
        self._operations = operations(root / "models")
        self._import_what_they_do()
        self._lengths = {name: self._undisturbed(name) for name in self._operations}
        self.tallies = {name: Tally() for name in self._operations}

    def _import_what_they_do(self) -> None:
        """Import what the operations import as they run, so that no trial waits for it."""
        listed = self._root / "imports.json"

        def record() -> None:
            for name, operation in self._operations.items():
                folder = self._root / "imports" / name
                folder.mkdir(parents=True)
                operation.prepare(folder)
                operation.run(folder)
            listed.write_text(json.dumps(sorted(sys.modules)), encoding="utf-8")

        seconds_of(record)
        for module in json.loads(listed.read_text(encoding="utf-8")):
            with suppress(Exception):  # names that only stand in for modules
                importlib.import_module(module)

    def _undisturbed(self, name: str) -> float:
        """Make the state before and the wanted one after an operation; how long it takes."""
        operation, own = self._operations[name], self._root / name
        start, whole = own / "start", own / "whole"
        start.mkdir(parents=True)
        seconds_of(lambda: operation.prepare(start))
        shutil.copytree(start, whole)
        length = seconds_of(lambda: operation.run(whole))

        def write() -> None:
            (own / "state").write_text(repr(operation.state(whole)), encoding="utf-8")

        seconds_of(write)
        self._say(f"{name}: {length:.2f} s undisturbed")
        return length

    def run(self, trials: int, seconds: float) -> None:
        """Operations in turn, until there are enough trials or the time is over."""
        deadline = time.monotonic() + seconds
        # The quick ones more often: a run is as long as some twenty of them.
        turns = [name for name in self._operations for _ in range(TURNS.get(name, 6))]
        for number in range(trials):
            if time.monotonic() > deadline:
                return
            self._one(turns[number % len(turns)], number)

    def _one(self, name: str, number: int) -> None:
        own, tally = self._root / name, self.tallies[name]
        folder = own / f"trial-{number}"
        moment = self._moments.uniform(0.0, self._lengths[name])
        killed, fault = trial(self._operations[name], own / "start", own / "state", folder, moment)
        tally.trials, tally.killed = tally.trials + 1, tally.killed + killed
        if fault:
            tally.failed.append(fault)
            self._say(f"{name}: {fault}")
        else:
            shutil.rmtree(folder)


def main() -> int:
    """Run the trials and print what they gave."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--trials", type=int, default=3072)
    parser.add_argument("--seconds", type=float, default=1500.0, help="stop after this long, with what was run by then")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        trials = Trials(Path(scratch), given.seed, lambda line: print(line, flush=True))  # noqa: T201
        trials.run(given.trials, given.seconds)
    tallies = trials.tallies
    for name, tally in tallies.items():
        print(f"{name}: {tally.trials} trials, {tally.killed} killed before the end, {len(tally.failed)} failed")  # noqa: T201
    total = sum(tally.trials for tally in tallies.values())
    failed = sum(len(tally.failed) for tally in tallies.values())
    print(f"all: {total} trials, {failed} failed")  # noqa: T201
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
