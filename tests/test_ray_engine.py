"""Indexing on a Ray cluster of two nodes on this machine gives the store that one process makes, a node lost or not."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from docx import Document as Word

from clara import ray_engine
from clara.ingest import DEFAULT_LIMITS, DEFAULT_MAX_BYTES, FileListing
from clara.model import ClaraModel
from clara.pipeline import Clara
from clara.ray_engine import RayEngine

pytestmark = pytest.mark.enable_socket  # the nodes talk over loopback


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Any]]:
    """A cluster of a head with two processors and a second node with two, and that node."""
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "180")  # of a busy machine
    from ray.cluster_utils import Cluster  # noqa: PLC0415

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": 2**28})
    second = made.add_node(num_cpus=2, object_store_memory=2**28)
    made.wait_for_nodes()
    yield made, second
    ray.shutdown()
    made.shutdown()  # type: ignore[no-untyped-call]


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    """Files of several kinds, one of many records, one broken, one that is long."""
    folder = tmp_path / "documents"
    folder.mkdir()
    for number in range(30):
        words = " ".join(f"word{number}-{i}" for i in range(90))
        (folder / f"note{number:02}.txt").write_text(f"Note {number}. {words}")
    (folder / "long.txt").write_text(" ".join(f"chapter{i}" for i in range(2000)))
    (folder / "records.jsonl").write_text(
        "".join(f'{{"title": "R{i}", "text": "record number {i}"}}\n' for i in range(40))
    )
    (folder / "broken.pdf").write_bytes(b"%PDF-1.4 nothing")
    word = Word()
    word.add_paragraph("A paragraph in a Word file.")
    word.save(str(folder / "letter.docx"))
    return folder


def _engine(checkpoint: Path, nodes: Any) -> RayEngine:  # noqa: ANN401 - Ray's, without types
    return RayEngine(str(checkpoint), {"dtype": "fp32"}, workers=2, address=nodes.address)


def _content(path: Path, model: ClaraModel) -> dict[str, tuple[str, np.ndarray]]:
    with Clara.open(path, model=model, create=False) as rag:
        return {row.passage.id: (row.passage.text, row.memory.values) for row in rag.store.rows()}


def _assert_same(one: Path, other: Path, model: ClaraModel) -> None:
    mine, theirs = _content(one, model), _content(other, model)
    assert mine.keys() == theirs.keys()
    for name, (text, values) in mine.items():
        assert theirs[name][0] == text
        np.testing.assert_allclose(theirs[name][1], values, atol=2e-3)  # batches differ, and fp16 keeps three digits


def test_a_node_that_dies_in_the_middle_leaves_the_store_of_one_process(
    cluster: tuple[Any, Any], documents: Path, tiny_checkpoint: Path, tiny_model: ClaraModel, tmp_path: Path
) -> None:
    with Clara.open(tmp_path / "alone", model=tiny_model) as rag:
        alone = rag.add(documents)
    nodes, second = cluster
    killed = threading.Event()

    def kill(_: object) -> None:
        if not killed.is_set():
            killed.set()
            nodes.remove_node(second, allow_graceful=False)

    with Clara.open(tmp_path / "spread", model=tiny_model) as rag:
        spread = rag.add(documents, engine=_engine(tiny_checkpoint, nodes), progress=kill)
        again = rag.add(documents, engine=_engine(tiny_checkpoint, nodes))
    assert killed.is_set()
    _assert_same(tmp_path / "alone", tmp_path / "spread", tiny_model)
    assert (spread.added, spread.passages, spread.ingest) == (alone.added, alone.passages, alone.ingest)
    assert (again.unchanged, again.passages) == (alone.added, 0)


def test_memories_that_went_while_others_were_waited_for_are_made_again(
    tiny_model: ClaraModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_engine, "_KEPT_MEMORIES", 2)
    texts = [f"passage {number}" for number in range(5)]
    made = tiny_model.compress(texts, rate=4)

    class Parts:
        """What the workers send: one text at a time."""

        def iter_batches(self, **_: object) -> Iterator[Any]:
            for text, memory in zip(texts, made, strict=True):
                yield ray_engine._packed(ray_engine._Part(0, None, (text,), (memory,)))

    path = Path("/documents/one.txt")
    listing = FileListing(files=(path,), unsupported=(), skipped=(), hidden=0)
    source = ray_engine._RaySource(listing, Parts(), tiny_model, 4, DEFAULT_MAX_BYTES, DEFAULT_LIMITS)
    for given, memory in zip(source.compress(texts), made, strict=True):
        np.testing.assert_allclose(given.values, memory.values, atol=1e-5)
