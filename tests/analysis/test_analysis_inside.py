"""Gradients, maps and attention: their formulas on numbers by hand, then whole on the tiny checkpoint."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from clara.analysis.embedding_map import _means, _mixing, embedding_map, project_groups
from clara.analysis.harness import first_windows
from clara.analysis.inside import (
    AttentionSettings,
    GradientSettings,
    _attention_row,
    _helpful,
    _push_row,
    answer_attention,
    selection_gradients,
)
from clara.data import MultiHop, read_records
from clara.errors import InputError
from clara.evaluate.plots import DRAW_ANALYSIS
from clara.model import ClaraModel
from clara.model.inspection import AnswerAttention, SelectionGradient, States
from clara.prompts import passage_text

FIXTURES = Path(__file__).parents[1] / "data" / "fixtures"
RECORDS = read_records(FIXTURES / "multi_hop.jsonl").multi_hop
WITH_GOLD = [record for record in RECORDS if record.gold]
PNG = b"\x89PNG\r\n\x1a\n"


def floats(*values: float) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return np.array(values, dtype=np.float32)


@pytest.mark.parametrize("shift", [0.0, -800.0])  # answers of many tokens: their probabilities underflow
def test_helpful_is_above_the_mean_probability(shift: float) -> None:
    chances = [0.5, 0.2, 0.1, 0.3]
    mean = sum(chances) / len(chances)
    likelihood = floats(*(math.log(chance) + shift for chance in chances))
    assert _helpful(likelihood).tolist() == [chance > mean for chance in chances]


def test_pushes_by_hand() -> None:
    found = SelectionGradient(
        scores=floats(0, 0, 0),
        probability=floats(0.2, 0.5, 0.3),
        gradient=floats(1, -3, -1),  # a descent step raises the second most, and the third
        likelihood=floats(-5, -1, -9),  # only the second is above the mean
        selected=(1,),
    )
    row = _push_row("q", found, [True, False, True])
    assert row.helpful == pytest.approx(1 / 3)
    assert row.probability_helpful == pytest.approx(0.5)
    assert row.probability_gold == pytest.approx(0.5)
    assert row.push_helpful == pytest.approx(3 / 4)
    assert row.probability == pytest.approx((0.5, 0.2, 0.3))  # by likelihood: second, first, third
    assert row.push == pytest.approx((3 / 5, -1 / 5, 1 / 5))
    still = SelectionGradient(found.scores, found.probability, floats(0, 0, 0), found.likelihood, (1,))
    assert _push_row("q", still, [True, False, True]).push_helpful is None


def test_a_projection_shows_where_groups_differ_and_places_what_is_new() -> None:
    rng = np.random.default_rng(0)
    corners = {"a": (4, 0), "b": (-4, 0), "c": (0, 3), "d": (0, -3)}
    groups = [name for name in corners for _ in range(20)]
    vectors = rng.normal(size=(80, 8)).astype(np.float32)
    vectors[:, 5] *= 6  # what differs most within a group says nothing of it
    for place, name in enumerate(groups):
        vectors[place, :2] += 5 * np.array(corners[name], dtype=np.float32)
    made = project_groups(vectors, groups)
    places = made.places(vectors)
    assert places.shape == (80, 2)
    assert (places.min(axis=0).tolist(), places.max(axis=0).tolist()) == ([0, 0], [1, 1])
    middles = {name: places[[group == name for group in groups]].mean(axis=0) for name in corners}
    for new, name in ((corners["a"], "a"), (corners["d"], "d")):
        vector = np.zeros((1, 8), dtype=np.float32)
        vector[0, :2] = 5 * np.array(new)
        (place,) = made.places(vector)
        assert min(middles, key=lambda each: float(np.linalg.norm(middles[each] - place))) == name
    np.testing.assert_array_equal(project_groups(vectors[:9], groups[:9]).places(vectors[:9]).shape, (9, 2))
    with pytest.raises(InputError, match="at least 3 passages, got 2"):
        project_groups(vectors[:2], groups[:2])


def test_gradients_of_the_tiny_model(tiny_model: ClaraModel, tmp_path: Path) -> None:
    settings = GradientSettings(rate=16, k=2, temperature=0.5, limit=8)
    told: list[tuple[int, int]] = []
    report = selection_gradients(tiny_model, RECORDS, settings, lambda *done: told.append(done))
    assert (report.n, report.errors) == (len(WITH_GOLD), {})
    assert report.unusable == {"questions without a gold document": 1}
    assert told[-1] == (report.n, report.n)
    for row, record in zip(report.rows, WITH_GOLD, strict=True):
        assert sum(row.probability) == pytest.approx(1, abs=1e-5)
        assert sum(row.push) == pytest.approx(0, abs=1e-4), "a softmax's gradients sum to nothing"
        assert len(row.probability) >= len(record.docs)
        assert 0 < row.helpful < 1
    assert len(report.by_rank("push")) == min(len(row.push) for row in report.rows)
    DRAW_ANALYSIS["gradient"]([("before", report), ("after", report)], tmp_path / "g.png")
    assert (tmp_path / "g.png").read_bytes().startswith(PNG)


def slow_mixing(first: list[list[float]], second: list[list[float]], neighbours: int) -> float:
    points = [(point, 0) for point in first] + [(point, 1) for point in second]
    shares = []
    for i, (point, kind) in enumerate(points):
        others = sorted((math.dist(point, other), j) for j, (other, _) in enumerate(points) if j != i)
        near = others[:neighbours]
        shares.append(sum(points[j][1] != kind for _, j in near) / len(near))
    return sum(shares) / len(shares)


@pytest.mark.parametrize("neighbours", [1, 3, 50])
def test_mixing_equals_a_loop(neighbours: int) -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(7, 3)), rng.normal(loc=0.8, size=(6, 3))
    found = _mixing(first.astype(np.float32), second.astype(np.float32), neighbours=neighbours)
    near = min(neighbours, 12)
    assert found == pytest.approx(slow_mixing(first.tolist(), second.tolist(), near))
    assert _mixing(first.astype(np.float32), (first + 100).astype(np.float32), neighbours=3) == 0


def test_means_are_what_the_mse_term_compares() -> None:
    state = States(floats(1, 2), np.array([[1, 0], [3, 4]], np.float32), np.zeros((2, 2), np.float32))
    document, memory = _means([state])
    assert document.tolist() == [[1, 2]]
    assert memory.tolist() == [[2, 2]], "of the last hidden states, not of the memory after its gain"


def test_a_map_of_the_tiny_model(tiny_model: ClaraModel, tmp_path: Path) -> None:
    texts = [text for _, text in first_windows(RECORDS, tiny_model, 6)]
    gold = [passage_text(r.docs[i].title, r.docs[i].text) for r in WITH_GOLD for i in r.gold]
    assert len(texts) == len(set(texts)) == 6
    for text in texts:
        assert any(whole.startswith(text) for whole in gold)
    made = embedding_map(tiny_model, texts, rate=16)
    assert made == embedding_map(tiny_model, texts, rate=16), "one seed, one map"
    assert (made.texts, len(made.document), len(made.memory)) == (6, 6, 6)
    states = tiny_model.inspector().states(texts, role="compressor", rate=16)
    gaps = [float(((s.text_mean - s.hidden.mean(axis=0)) ** 2).mean()) for s in states]
    assert made.mse == pytest.approx(sum(gaps) / 6, rel=1e-4)
    DRAW_ANALYSIS["tsne"]([("with", made), ("without", made)], tmp_path / "m.png")
    assert (tmp_path / "m.png").read_bytes().startswith(PNG)
    with pytest.raises(InputError, match="at least 4 texts, got 3"):
        embedding_map(tiny_model, texts[:3], rate=16)


def test_attention_shares_by_hand() -> None:
    """Two layers, one answer token, three memories: two windows of passage 0 (gold), one of passage 1."""
    memories = np.zeros((2, 1, 3, 2), np.float32)
    memories[0, 0] = [[0.1, 0.1], [0.2, 0.0], [0.05, 0.05]]
    memories[1, 0] = [[0.0, 0.0], [0.1, 0.1], [0.3, 0.3]]
    part = np.array([[0.2], [0.1]], np.float32)
    seen = AnswerAttention(memories, question=part, before=part * 0, rest=part, first=(part / 2).astype(np.float32))
    record = MultiHop("q", "hand", "Q?", ("Ann",), WITH_GOLD[0].docs, (0,))
    row = _attention_row(record, "Ann Calder", seen, owner=[0, 0, 1], gold=[True, False])
    assert row.gold == pytest.approx((0.4, 0.2))
    assert row.other == pytest.approx((0.1, 0.6))
    assert row.rest == pytest.approx((0.1, 0.05))
    assert row.gold_share == pytest.approx(0.6 / 1.3)
    assert row.chance == pytest.approx(2 / 3)
    assert row.passages[0] == pytest.approx((0.3, 0.35))
    assert row.f1 == pytest.approx(2 / 3)
    alone = _attention_row(record, "Ann", seen, owner=[0, 0, 0], gold=[True])
    assert alone.other == ()
    assert alone.gold_share == pytest.approx(1)


def test_attention_of_the_tiny_model(tiny_model: ClaraModel, tmp_path: Path) -> None:
    settings = AttentionSettings(rate=16, distractors=2, max_new_tokens=3, limit=4)
    report = answer_attention(tiny_model, RECORDS, settings)
    assert report.n + sum(report.errors.values()) == 4
    assert report.n > 0
    for row in report.rows:
        assert sum(row.is_gold) >= 1
        assert len(row.gold) == len(row.question) == 2
        assert 0 < row.gold_share < 1
    DRAW_ANALYSIS["attention"]([("tiny", report)], tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)
