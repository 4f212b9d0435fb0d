"""The search column: for one-vector questions the cosine itself, for others a sketch that loses next to nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import numpy.typing as npt
import pytest
from exact import ExactIndex
from hypothesis import given, settings
from hypothesis import strategies as st
from index_rows import MODEL, question, row

from clara.errors import StoreError
from clara.index import LanceStore, StoreModel
from clara.index.quantised import QuantisedColumn, _group_sizes
from clara.index.ranking import exact_dot, search_column
from clara.index.store import _EXACT_BYTES
from clara.index.table import Scanned
from clara.records import FloatArray, QueryMemory

MEAN = replace(MODEL, query_space="mean")
# More numbers than a sketch has.
WIDE = StoreModel(fingerprint="b" * 64, name="wide", rate=4, memory_tokens=16, width=128)
SKETCHED = replace(WIDE, memory_tokens=8, width=512)

# Stores hold sketches like this one: another would make them useless.
GOLDEN = [-0.0445, 0.0192, 0.0177, 0.0906]


def drawn(*shape: int, seed: int) -> FloatArray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@given(
    seed=st.integers(0, 10_000),
    tokens=st.integers(1, 9),
    width=st.integers(1, 24),
    offset=st.floats(-3, 3),
    late=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_a_projected_mean_has_the_flattened_cosine_with_one_vector(
    *, seed: int, tokens: int, width: int, offset: float, late: bool
) -> None:
    memories = drawn(12, tokens, width, seed=seed) + np.float32(offset)
    values = drawn(tokens, width, seed=seed + 1)
    if not late:
        values = np.tile(values[:1], (tokens, 1))
    centre = drawn(width, seed=seed + 2) if late else None
    query = QueryMemory(values, "m", 4, 1, centre)
    flat = memories.reshape(12, -1).astype(np.float64)
    wanted = flat @ query.search_vector().astype(np.float64) / np.linalg.norm(flat, axis=1)
    column = search_column(replace(MEAN, width=width))
    vectors = np.sqrt(tokens) * memories.mean(axis=1) / np.linalg.norm(flat, axis=1)[:, None]
    np.testing.assert_allclose(vectors @ column.query(query), wanted, atol=1e-6)
    # As stored: fp16 of numbers within 1, whose products with a unit vector are off by 2^-11 at most.
    stored = exact_dot(column.passages(memories), column.query(query))
    np.testing.assert_allclose(stored, wanted, atol=2.0**-11)
    apart = np.abs(wanted[:, None] - wanted) > 2.0**-10
    assert ((stored[:, None] > stored) == (wanted[:, None] > wanted))[apart].all(), "the same order"


def test_zeros_and_one_passage() -> None:
    column = search_column(replace(MEAN, width=8))
    assert not column.passages(np.zeros((2, 4, 8), dtype=np.float32)).any()
    assert not column.query(question(np.zeros((4, 8), dtype=np.float32))).any()
    sketch = search_column(SKETCHED)
    assert not sketch.passages(np.zeros((1, 4, 1024), dtype=np.float32)).any()


def test_a_sketch_keeps_cosines_and_is_the_same_everywhere() -> None:
    memories = drawn(200, 8, 512, seed=3)
    memories[100:] = memories[:100] + 0.5 * drawn(100, 8, 512, seed=4)
    sketch = search_column(SKETCHED)
    vectors = sketch.passages(memories).astype(np.float64)
    assert vectors.shape == (200, 1024)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)
    flat = memories.reshape(200, -1).astype(np.float64)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    errors = vectors @ vectors.T - flat @ flat.T
    assert np.sqrt(np.square(errors).mean()) < 0.035, "1 / sqrt(1024) and a little"
    np.testing.assert_array_equal(search_column(SKETCHED).passages(memories[:2]), sketch.passages(memories[:2]))
    ramp = np.sin(np.arange(4096.0)).astype(np.float32).reshape(1, 8, 512)
    np.testing.assert_allclose(sketch.passages(ramp)[0, :4], GOLDEN, atol=1e-3)


@pytest.mark.parametrize("exact_bytes", [_EXACT_BYTES, 0], ids=["whole", "quantised"])
@pytest.mark.parametrize("model", [MEAN, WIDE], ids=["mean", "sketch"])
def test_recall_of_the_whole_against_the_oracle(model: StoreModel, exact_bytes: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    shape = (model.memory_tokens, model.width)
    topics = rng.standard_normal((40, *shape))
    memories = (topics[rng.integers(0, 40, 2000)] + 0.7 * rng.standard_normal((2000, *shape))).astype(np.float32)
    rows = [row(f"d{i}", "v1", 0, model=model, memory=memory, text="x") for i, memory in enumerate(memories)]
    oracle = ExactIndex(model)
    oracle.add(rows)
    hits = wanted = 0
    with LanceStore.create(tmp_path / "store", model, exact_bytes=exact_bytes) as store:
        store.add(rows)
        store.optimize()
        for number in range(20):
            values = (topics[number] + rng.standard_normal(shape)).astype(np.float32)
            centre = rng.standard_normal(model.width).astype(np.float32) if model.query_space == "mean" else None
            query = question(values, centre=centre, model=model)
            best = {hit.passage.id for hit in oracle.search_latent(query, 10)}
            hits += len(best & {hit.passage.id for hit in store.search_latent(query, 10)})
            wanted += len(best)
    assert hits >= 0.99 * wanted


def test_few_bytes_find_what_all_numbers_find(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    spread = 1 / np.arange(1, 65)  # a few directions tell most passages apart, as those of memories do
    turned = np.linalg.qr(rng.standard_normal((64, 64)))[0].astype(np.float32)
    vectors = (rng.standard_normal((20_000, 64)) * spread).astype(np.float32) @ turned + 1
    places = np.arange(20_000, dtype=np.uint64) * 3
    parts = [_scanned(places[start : start + 5000], vectors[start : start + 5000]) for start in range(0, 20_000, 5000)]
    QuantisedColumn.learn(vectors[:4000]).write(tmp_path / "column", parts)
    column = QuantisedColumn.load(tmp_path / "column")
    assert column is not None
    assert (len(column), column.last, column.width) == (20_000, 3 * 19_999, 64)
    np.testing.assert_array_equal(column.places(), places)
    shares = []
    for question_vector in rng.standard_normal((20, 64)).astype(np.float32):
        scores = vectors @ question_vector
        wanted = np.argsort(-scores)[:100]
        found = column.nearest(question_vector, 100)
        assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
        of_found = scores[[one.place // 3 for one in found]]
        errors = np.array([one.score for one in found]) - of_found
        assert np.sqrt(np.square(errors).mean()) < 0.05 * scores.std()
        shares.append(len({one.place // 3 for one in found} & set(wanted.tolist())) / 100)
    assert np.mean(shares) >= 0.99


def test_a_column_is_the_file_that_faiss_writes_of_it_held_whole(tmp_path: Path) -> None:
    vectors = np.random.default_rng(7).standard_normal((3000, 48)).astype(np.float16)
    places = np.arange(3000, dtype=np.uint64) * 2 + 5
    path = tmp_path / "column"
    QuantisedColumn.learn(vectors.astype(np.float32)).write(path, [_scanned(places[:1000], vectors[:1000])])
    column = QuantisedColumn.load(path)
    assert column is not None
    column.write(path, [_scanned(places[first : first + 999], vectors[first : first + 999]) for first in (1000, 1999)])
    assert [entry.name for entry in tmp_path.iterdir()] == ["column"]

    index = QuantisedColumn.learn(vectors.astype(np.float32))._index
    index.add_with_ids(vectors[:2998].astype(np.float32), places[:2998].astype(np.int64))
    assert path.read_bytes()[:-4] == faiss.serialize_index(index).tobytes()


def _scanned(places: npt.NDArray[np.uint64], vectors: npt.NDArray[np.floating]) -> Scanned:
    return Scanned(places, [""] * len(places), vectors.astype(np.float16))


def test_directions_that_differ_more_get_more_bits() -> None:
    sizes = _group_sizes(1.0 / np.arange(1, 241) ** 2, 40)
    assert len(sizes) <= 40
    assert sizes[0] == 1
    assert sizes[:30] == sorted(sizes[:30])
    assert _group_sizes(np.ones(240), 60) == [4] * 60, "all alike: four bits for four of them"


def test_a_store_for_one_vector_questions_refuses_others(tmp_path: Path) -> None:
    with LanceStore.create(tmp_path / "store", MEAN) as store:
        store.add([row("d", "v1", 0)])
        one = drawn(1, MODEL.width, seed=1)
        assert store.search_latent(question(np.tile(one, (MODEL.memory_tokens, 1))), 1)
        with pytest.raises(StoreError, match="one vector a question, got 4 different ones"):
            store.search_latent(question(drawn(MODEL.memory_tokens, MODEL.width, seed=2)), 1)
