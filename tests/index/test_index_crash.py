"""A process may die anywhere: the same calls made again end in the same store."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from exact import ExactIndex
from index_rows import MODEL
from index_sequence import AFTER, BEFORE, FIRST, Corpus, bring_up_to_date, check_invariants, contents, index_twice, many

from clara.index import LanceStore, folder, store, table
from clara.index.folder import Ledger
from clara.index.table import PassageTable

KILLS = int(os.environ.get("CLARA_TEST_KILLS", "6"))
KILL_DOCUMENTS = 20


class Death(BaseException):
    """Stands for a kill between two steps; nothing in the package catches it."""


class Steps:
    """Counts the steps that change a store, and dies before the one of a given number."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, death: int) -> None:
        self.left = death
        self.died = False
        for owner, name in (
            (PassageTable, "_batch"),  # before each commit of rows
            (PassageTable, "delete"),
            (PassageTable, "build_text_index"),
            (PassageTable, "compact"),
            (Ledger, "create"),
            (Ledger, "finish"),
            (Ledger, "forget"),
            (Ledger, "deleted"),
            (Ledger, "remember"),
        ):
            monkeypatch.setattr(owner, name, self.counted(getattr(owner, name)))
        monkeypatch.setattr(PassageTable, "create", staticmethod(self.counted(PassageTable.create)))
        monkeypatch.setattr(store, "write_description", self.counted(folder.write_description))
        # Small commits and eager compaction, so that a small corpus goes through every kind of step.
        monkeypatch.setattr(table, "_COMMIT_BYTES", 1)
        monkeypatch.setattr(store, "_FRAGMENTS", 3)

    def counted(self, step: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - stands in for any method
            if self.left == 0:
                self.died = True
                raise Death
            self.left -= 1
            return step(*args, **kwargs)

        return run


def run_until_death(folder: Path, corpus: Corpus) -> None:
    """Index a folder; at its death the process loses its locks and nothing else."""
    opened: list[LanceStore] = []
    try:
        opened.append(LanceStore.create(folder, MODEL))
        bring_up_to_date(opened[0], corpus)
    except Death:
        pass
    finally:
        for one in opened:
            one.close()


def expected(corpus: Corpus) -> dict[str, object]:
    """Contents of the oracle, without its text scores: stop words and float32 make those differ in the last digits."""
    index = ExactIndex(MODEL)
    bring_up_to_date(index, corpus)
    return {name: value for name, value in contents(index).items() if name != "searches"}


def without_searches(found: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in found.items() if name != "searches"}


@pytest.mark.parametrize(
    ("start", "corpus", "at_least"), [(None, FIRST, 8), (BEFORE, AFTER, 15)], ids=["first", "again"]
)
def test_death_before_any_step(
    start: Corpus | None, corpus: Corpus, at_least: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "base"
    if start is not None:
        with LanceStore.create(base, MODEL) as filled:
            bring_up_to_date(filled, start)
    undisturbed = tmp_path / "undisturbed"
    if start is not None:
        shutil.copytree(base, undisturbed)
    with LanceStore.create(undisturbed, MODEL) as whole:
        bring_up_to_date(whole, corpus)
        wanted = contents(whole)
    assert without_searches(wanted) == expected(corpus)

    death = 0
    while True:
        folder = tmp_path / f"death-{death}"
        if start is not None:
            shutil.copytree(base, folder)
        with monkeypatch.context() as patched:
            steps = Steps(patched, death)
            run_until_death(folder, corpus)
        check_invariants(folder, corpus, *([start] if start else []))
        with LanceStore.create(folder, MODEL) as again:
            bring_up_to_date(again, corpus)
            assert contents(again) == wanted, f"death before step {death}"
        shutil.rmtree(folder)
        if not steps.died:
            break
        death += 1
    assert death >= at_least, "the sequence has become too short to prove anything"


def start_victim(folder: Path) -> subprocess.Popen[str]:
    program = Path(__file__).with_name("index_sequence.py")
    process = subprocess.Popen(
        [sys.executable, str(program), str(folder), str(KILL_DOCUMENTS)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_sigkill_at_random_moments(tmp_path: Path) -> None:
    undisturbed = tmp_path / "undisturbed"
    started = time.monotonic()
    index_twice(undisturbed, KILL_DOCUMENTS)
    seconds = time.monotonic() - started

    killed = tmp_path / "killed"
    moments = random.Random(2)
    cut_short = 0
    for _ in range(KILLS):
        with start_victim(killed) as process:
            try:
                # A run goes on where the last one died, so early moments reach late steps too.
                process.wait(timeout=moments.uniform(0.0, 0.6 * seconds))
            except subprocess.TimeoutExpired:
                process.kill()
        cut_short += process.returncode == -signal.SIGKILL
        check_invariants(killed, many("v1", KILL_DOCUMENTS), many("v2", KILL_DOCUMENTS))
    assert cut_short > 0
    index_twice(killed, KILL_DOCUMENTS)

    with LanceStore.open(undisturbed, MODEL) as left, LanceStore.open(killed, MODEL) as right:
        wanted = contents(left)
        assert contents(right) == wanted
    assert without_searches(wanted) == expected(many("v2", KILL_DOCUMENTS))
