"""Whole evaluations of a model that can be checked by hand, on the sample records."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
from bag_model import BagModel, sentence_split

from clara.data import DataRecord, MultiHop, read_records
from clara.errors import ConfigError, MemoryMismatchError, ModelError, RecordError
from clara.evaluate import AnswerModel, EvalConfig, EvalResult, evaluate
from clara.metrics import bootstrap_interval, cover_em, exact_match, f1
from clara.prompts import passage_text
from clara.records import Generation, GenerationRequest, Memory, QueryMemory

FIXTURES = Path(__file__).parents[1] / "data" / "fixtures"
READING = read_records(FIXTURES / "multi_hop.jsonl")
RECORDS = READING.multi_hop
WITH_GOLD = [record for record in RECORDS if record.gold]
KEYS = ["n", "em", "f1", "cover_em", "recall_at_5", "errors", "ci95", "context", "rate", "model", "data_sha256"]


def run(model: AnswerModel, records: Sequence[DataRecord] = RECORDS, **settings: object) -> EvalResult:
    return evaluate(model, records, EvalConfig.model_validate(settings), data_sha256=READING.sha256)


def test_means_intervals_and_keys_follow_from_the_rows() -> None:
    result = run(BagModel())
    assert [row.id for row in result.rows] == [record.id for record in WITH_GOLD]
    values: dict[str, list[float]] = {"em": [], "f1": [], "cover_em": []}
    for record, row in zip(WITH_GOLD, result.rows, strict=True):
        assert row.prediction is not None
        values["em"].append(max(exact_match(row.prediction, answer) for answer in record.answers))
        values["f1"].append(max(f1(row.prediction, answer) for answer in record.answers))
        values["cover_em"].append(max(cover_em(row.prediction, answer) for answer in record.answers))
    shown = result.to_json()
    assert list(shown) == KEYS
    for name, scores in values.items():
        interval = bootstrap_interval(scores, resamples=2000, seed=0)
        assert shown[name] == pytest.approx(fmean(scores))
        assert result.to_json()["ci95"][name] == [interval.low, interval.high]  # type: ignore[index]
    assert 0 < result.em < result.cover_em, "the samples tell the metrics apart"
    assert {key: shown[key] for key in ("n", "recall_at_5", "errors", "context", "rate", "model")} == {
        "n": 7,
        "recall_at_5": None,
        "errors": 0,
        "context": "memory",
        "rate": 8,
        "model": "bag-of-words",
    }
    assert shown["data_sha256"] == READING.sha256
    assert json.loads(json.dumps(shown)) == shown


def test_a_known_answer() -> None:
    row = run(BagModel(), limit=1).rows[0]
    assert row.to_json() == {
        "id": "sample:0",
        "prediction": "moira calder 1829 1901 ullmere",
        "em": 0.0,
        "f1": pytest.approx(2 * 1 / (5 + 1)),
        "cover_em": 1.0,
        "recall_at_5": None,
        "docs": [0, 2],
        "error": None,
    }


def test_contexts_are_compared_on_the_same_questions() -> None:
    results = {context: run(BagModel(), context=context) for context in ("memory", "text", "none")}
    for result in results.values():
        assert result.unusable == {"questions without a gold document": 1}
        assert [row.id for row in result.rows] == [record.id for record in WITH_GOLD]
    assert results["memory"].cover_em > results["none"].cover_em == 0
    assert [row.prediction for row in results["memory"].rows] == [row.prediction for row in results["text"].rows]
    assert [results[context].rate for context in ("memory", "text", "none")] == [8, None, None]
    assert {row.prediction for row in results["none"].rows} == {"unknown"}


def test_gold_documents_stand_in_the_prompt_in_record_order() -> None:
    model = BagModel()
    turned = [replace(record, gold=tuple(reversed(record.gold))) for record in WITH_GOLD]
    result = run(model, turned, context="text", reader="base", max_new_tokens=7)
    by_question = {request.question: request for request in model.requests}
    for record, row in zip(WITH_GOLD, result.rows, strict=True):
        request = by_question[record.question]
        assert row.docs == record.gold
        assert request.texts == tuple(passage_text(record.docs[i].title, record.docs[i].text) for i in record.gold)
        assert request.reader == "base"
    assert model.max_new_tokens == {7}
    assert not model.compressed, "memories are made only where something reads them"


@pytest.mark.parametrize("context", ["memory", "text"])
def test_quoted_answers_may_quote_what_is_read_and_nothing_else(context: str) -> None:
    model = BagModel()
    run(model, WITH_GOLD, context=context, wording="quoted")
    by_question = {request.question: request for request in model.requests}
    for record in WITH_GOLD:
        gold = tuple(passage_text(record.docs[i].title, record.docs[i].text) for i in sorted(record.gold))
        assert by_question[record.question].quote_from == gold
    with pytest.raises(ValueError, match="nothing to quote"):
        EvalConfig.model_validate({"context": "none", "wording": "quoted"})
    free = BagModel()
    run(free, WITH_GOLD, context=context)
    assert not any(request.quote_from for request in free.requests)


def slow_ranking(model: BagModel, record: MultiHop, rate: int) -> list[int]:
    """Cosine in plain Python over memories made one by one; the sample documents are one window each."""
    query = model.encode_queries([record.question], rate=rate)[0].values.reshape(-1).tolist()
    scores = []
    for doc in record.docs:
        memory = model.compress([passage_text(doc.title, doc.text)], rate=rate)[0].values.reshape(-1).tolist()
        dot = math.fsum(a * b for a, b in zip(query, memory, strict=True))
        scores.append(dot / math.sqrt(math.fsum(a * a for a in query) * math.fsum(b * b for b in memory)))
    return sorted(range(len(scores)), key=lambda i: (-round(scores[i], 6), i))


@pytest.mark.parametrize("rate", [8, 16])
def test_candidates_are_ranked_by_their_memories(rate: int) -> None:
    result = run(BagModel(), given="candidates", k=2, rate=rate)
    assert [row.id for row in result.rows] == [record.id for record in RECORDS]
    recalls = []
    for record, row in zip(RECORDS, result.rows, strict=True):
        order = slow_ranking(BagModel(), record, rate)
        assert list(row.docs) == order[:2]
        expected = sum(index in order[:5] for index in record.gold) / len(record.gold) if record.gold else None
        assert row.recall_at_5 == expected
        recalls += [expected] if expected is not None else []
    assert result.recall_at_5 == pytest.approx(fmean(recalls))
    assert result.without_gold == 1
    assert result.n == 8, "a question without gold documents still has gold answers"
    assert result.rate == rate


def test_recall_looks_at_five_and_tells_good_rankings_from_bad() -> None:
    class Backwards(BagModel):
        def encode_queries(self, questions: Sequence[str], *, rate: int | None = None) -> list[QueryMemory]:
            return [replace(memory, values=-memory.values) for memory in super().encode_queries(questions, rate=rate)]

    forward = run(BagModel(), given="candidates", k=1, context="none")
    backward = run(Backwards(), given="candidates", k=1, context="none")
    assert forward.recall_at_5 == 1.0
    assert backward.recall_at_5 is not None
    assert backward.recall_at_5 < 0.8
    assert forward.to_json()["recall_at_5"] == 1.0
    assert all(row.prediction == "unknown" for row in forward.rows)


def test_more_documents_than_candidates_gives_them_all() -> None:
    result = run(BagModel(), given="candidates", k=50, context="text")
    assert [sorted(row.docs) for row in result.rows] == [list(range(len(record.docs))) for record in RECORDS]


def test_long_documents_become_several_memories() -> None:
    model = BagModel(window_tokens=16)
    result = run(model, context="memory", given="candidates", k=3)
    assert result.errors == 0
    assert max(len(request.memories) for request in model.requests) > 3
    assert max(len(model.token_spans(text)) for text in model.compressed) <= 16
    whole = BagModel()
    assert run(whole, context="memory", given="candidates", k=3).errors == 0
    assert {len(request.memories) for request in whole.requests} == {3}


def test_another_splitter_can_be_given() -> None:
    model = BagModel()
    config = EvalConfig(limit=1)
    evaluate(model, RECORDS, config, data_sha256="", splitter=sentence_split)
    expected = [
        passage_text(doc.title, sentence)
        for doc in (RECORDS[0].docs[0], RECORDS[0].docs[2])
        for sentence in doc.text.replace(". ", ". |").split("|")
    ]
    assert sorted(model.compressed) == sorted(expected)
    assert len(model.requests[0].memories) == len(expected) == 4


def test_each_text_is_compressed_once() -> None:
    model = BagModel()
    run(model, RECORDS * 3, given="candidates", batch_size=1)
    assert set(Counter(model.compressed).values()) == {1}
    assert len(model.compressed) == len({doc for record in RECORDS for doc in record.docs})


@pytest.mark.parametrize("given", ["gold", "candidates"])
def test_batches_change_nothing(given: str) -> None:
    expected = run(BagModel(), given=given, batch_size=1)
    for batch_size in (2, 3, 64):
        assert run(BagModel(), given=given, batch_size=batch_size) == expected


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_an_error_stays_with_its_question(batch_size: int) -> None:
    model, undisturbed = BagModel(), run(BagModel())
    model.broken = frozenset({"Tarn Bridge have"})
    result = run(model, batch_size=batch_size)
    assert (result.n, result.errors) == (6, 1)
    assert result.error_reasons == {"RuntimeError: out of memory at Tarn Bridge have": 1}
    for row, other in zip(result.rows, undisturbed.rows, strict=True):
        if row.id == "sample:5":
            assert (row.prediction, row.scores) == (None, None)
            assert row.to_json()["em"] is None
        else:
            assert row == other
    scores = [row.scores for row in undisturbed.rows if row.scores is not None and row.id != "sample:5"]
    assert result.f1 == pytest.approx(fmean(score.f1 for score in scores))


def test_a_document_that_fails_fails_the_questions_that_need_it() -> None:
    model = BagModel()
    model.broken = frozenset({"rye bread"})
    gold = run(model)
    assert [row.id for row in gold.rows if row.error] == ["sample:3"]
    result = run(model, given="candidates")
    failed = [record.id for record in RECORDS if any("rye bread" in doc.text for doc in record.docs)]
    assert [row.id for row in result.rows if row.error] == failed
    assert (result.n, result.errors) == (8 - len(failed), len(failed))
    assert result.without_gold == 1, "what was never ranked is an error, not a question without gold"


def test_a_text_that_no_document_can_hold_is_an_error_of_its_question() -> None:
    record = replace(RECORDS[1], docs=(replace(RECORDS[1].docs[2], text="31\0metres"),), gold=(0,))
    result = run(BagModel(), [RECORDS[0], record])
    assert (result.n, result.errors) == (1, 1)
    assert result.rows[1].error is not None
    assert result.rows[1].error.startswith("DocumentError")


def test_if_every_question_fails_nothing_is_scored() -> None:
    model = BagModel()
    model.broken = frozenset({"?"})
    with pytest.raises(ModelError, match=r"none of 7 questions could be answered: 7 times RuntimeError: out of memory"):
        run(model)


def test_faults_of_the_run_are_not_faults_of_a_question() -> None:
    with pytest.raises(ConfigError, match="serves"):
        run(BagModel(), rate=5)

    class Liar(BagModel):
        def compress(self, texts: Sequence[str], *, rate: int | None = None) -> list[Memory]:
            return BagModel(fingerprint="other").compress(texts, rate=rate)

    with pytest.raises(MemoryMismatchError, match="expected memories of model bag-1, got some of other"):
        run(Liar())

    class Short(BagModel):
        def generate_many(self, requests: Sequence[GenerationRequest], *, max_new_tokens: int = 32) -> list[Generation]:
            return super().generate_many(requests, max_new_tokens=max_new_tokens)[:-1]

    with pytest.raises(ModelError, match="6 results for a batch of 7"):
        run(Short())


def test_progress_ends_at_the_number_of_questions() -> None:
    model = BagModel()
    model.broken = frozenset({"rye bread"})
    told: list[tuple[int, int]] = []
    config = EvalConfig(batch_size=2)
    evaluate(model, RECORDS, config, data_sha256="", progress=lambda done, total: told.append((done, total)))
    done = [now for now, _ in told]
    assert done == sorted(set(done))
    assert told[-1] == (7, 7)


def test_limit_counts_records_from_the_first() -> None:
    assert [row.id for row in run(BagModel(), limit=3).rows] == ["sample:0", "sample:1", "sample:2"]
    assert run(BagModel(), limit=8).unusable == {"questions without a gold document": 1}


def test_records_that_ask_nothing_are_counted() -> None:
    passages = read_records(FIXTURES / "passage_qa.jsonl").records
    result = run(BagModel(), [*passages, *RECORDS])
    assert result.n == 7
    assert sum(result.unusable.values()) == len(passages) + 1
    for records, message in ((passages, "6 passage records"), (RECORDS[7:], "1 questions without"), ([], "no records")):
        with pytest.raises(RecordError, match=message):
            run(BagModel(), records)


def test_documents_are_not_compressed_far_ahead_of_their_questions() -> None:
    docs = RECORDS[1].docs
    records = [
        replace(RECORDS[1], id=str(n), docs=tuple(replace(doc, title=f"{n}") for doc in docs)) for n in range(12)
    ]
    model = BagModel()
    made: list[int] = []

    def look(_done: int, _total: int) -> None:
        made.append(len(model.compressed))

    evaluate(model, records, EvalConfig(given="candidates", batch_size=1), data_sha256="", progress=look)
    assert made == [4 * len(docs)] * 4 + [8 * len(docs)] * 4 + [12 * len(docs)] * 4, "a chunk is four batches"
