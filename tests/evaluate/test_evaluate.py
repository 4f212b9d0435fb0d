"""Whole evaluations of one model that can be checked by hand, on the sample records."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from bag_model import BagModel
from clara.data import MultiHop, Question, read_records
from clara.errors import ConfigError, MemoryMismatchError, ModelError, RecordError
from clara.evaluate.questions import Task, TaskLoader, _askable
from clara.evaluate.report import _model_rows, model_summary
from clara.evaluate.results import Result
from clara.evaluate.run import RunSettings, run_system
from clara.evaluate.system import AnswerModel, SystemSettings
from clara.evaluate.systems import model_system
from clara.metrics import bootstrap_interval, score_answer
from clara.prompts import passage_text
from clara.records import Generation, GenerationRequest, Memory, QueryMemory

FIXTURES = Path(__file__).parents[1] / "data" / "fixtures"
READING = read_records(FIXTURES / "multi_hop.jsonl")
RECORDS = READING.multi_hop
WITH_GOLD = [record for record in RECORDS if record.gold]
KEYS = ["n", "em", "f1", "cover_em", "recall_at_5", "errors", "ci95", "context", "rate", "model", "data_sha256"]


def task_of(records: Sequence[MultiHop], settings: SystemSettings, limit: int | None = None) -> Task:
    questions, left_out = _askable([Question.of(record) for record in records[:limit]], settings.given)
    return Task(
        "sample",
        READING.sha256,
        "oracle",
        "as in the file",
        settings.given,
        questions,
        settings.k,
        settings.max_new_tokens,
        left_out,
    )


def settings_of(model: AnswerModel, **changes: Any) -> SystemSettings:  # noqa: ANN401 - any setting
    values: dict[str, Any] = {"k": 5, "rate": None, "given": "gold", "max_new_tokens": 32, "batch_size": 8, **changes}
    return SystemSettings(model=model, weights_cache=Path("cache"), **values)


def run(
    model: AnswerModel,
    records: Sequence[MultiHop] = RECORDS,
    *,
    context: str = "memory",
    reader: str = "generator",
    limit: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    **changes: Any,  # noqa: ANN401 - any setting
) -> Result:
    """What ``clara eval`` does with one model."""
    settings = settings_of(model, **changes)
    system = model_system(settings, context=context, reader=reader)
    with TemporaryDirectory() as folder:
        how = RunSettings(Path(folder), batch_size=settings.batch_size)
        return run_system(system, task_of(records, settings, limit), how, rate=settings.rate, on_progress=on_progress)


def summary(result: Result, *, context: str = "memory", rate: int | None = 8) -> dict[str, Any]:
    return model_summary(result, model=BagModel.name, context=context, rate=rate)


def test_means_intervals_and_keys_follow_from_the_rows() -> None:
    result = run(BagModel())
    assert [row.id for row in result.rows] == [record.id for record in WITH_GOLD]
    values: dict[str, list[float]] = {"em": [], "f1": [], "cover_em": []}
    for record, row in zip(WITH_GOLD, result.rows, strict=True):
        assert row.prediction is not None
        values["em"].append(max(score_answer(row.prediction, [answer]).em for answer in record.answers))
        values["f1"].append(max(score_answer(row.prediction, [answer]).f1 for answer in record.answers))
        values["cover_em"].append(max(score_answer(row.prediction, [answer]).cover_em for answer in record.answers))
    shown = summary(result)
    assert list(shown) == KEYS
    for name, scores in values.items():
        interval = bootstrap_interval(scores, resamples=2000, seed=0)
        assert shown[name] == pytest.approx(fmean(scores))
        assert shown["ci95"][name] == [interval.low, interval.high]
    assert result.em is not None
    assert result.cover_em is not None
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
    result = run(BagModel(), limit=1)
    (shown,) = _model_rows(task_of(RECORDS[:1], settings_of(BagModel())), result)
    wanted = {
        "id": "sample:0",
        "prediction": "moira calder 1829 1901 ullmere",
        "em": 0.0,
        "f1": pytest.approx(2 * 1 / (5 + 1)),
        "cover_em": 1.0,
        "recall_at_5": None,
        "docs": [0, 2],
        "error": None,
    }
    assert {name: shown[name] for name in wanted} == wanted


def test_contexts_are_compared_on_the_same_questions() -> None:
    results = {context: run(BagModel(), context=context) for context in ("memory", "text", "none")}
    for result in results.values():
        assert task_of(RECORDS, settings_of(BagModel())).left_out == {"questions without a gold document": 1}
        assert [row.id for row in result.rows] == [record.id for record in WITH_GOLD]
    assert (results["memory"].cover_em or 0) > results["none"].cover_em == 0  # type: ignore[operator]
    assert [row.prediction for row in results["memory"].rows] == [row.prediction for row in results["text"].rows]
    compressed = {context: [row.compressed_to for row in result.rows] for context, result in results.items()}
    assert all(share is not None for share in compressed["memory"])
    assert {*compressed["text"], *compressed["none"]} == {None}
    assert {row.prediction for row in results["none"].rows} == {"unknown"}


def test_gold_documents_stand_in_the_prompt_in_record_order() -> None:
    model = BagModel()
    turned = [replace(record, gold=tuple(reversed(record.gold))) for record in WITH_GOLD]
    result = run(model, turned, context="text", reader="base", max_new_tokens=7)
    by_question = {request.question: request for request in model.requests}
    for record, row in zip(WITH_GOLD, result.rows, strict=True):
        request = by_question[record.question]
        assert row.used == tuple(range(len(record.gold)))
        assert request.texts == tuple(passage_text(record.docs[i].title, record.docs[i].text) for i in record.gold)
        assert request.reader == "base"
    assert model.max_new_tokens == {7}
    assert not model.compressed, "memories are made only where something reads them"


@pytest.mark.parametrize("context", ["memory", "text"])
def test_quoted_answers_may_quote_what_is_read_and_nothing_else(context: str) -> None:
    model = BagModel()
    run(model, WITH_GOLD, context=context, quoted=True)
    by_question = {request.question: request for request in model.requests}
    for record in WITH_GOLD:
        gold = tuple(passage_text(record.docs[i].title, record.docs[i].text) for i in sorted(record.gold))
        assert by_question[record.question].quote_from == gold
    with pytest.raises(ConfigError, match="nothing to quote"):
        run(BagModel(), context="none", quoted=True)
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
        assert list(row.used) == order[:2]
        expected = sum(index in order[:5] for index in record.gold) / len(record.gold) if record.gold else None
        assert (row.ranking["R@5"] if row.ranking is not None else None) == expected
        recalls += [expected] if expected is not None else []
    assert summary(result)["recall_at_5"] == pytest.approx(fmean(recalls))
    assert result.without_gold == 1
    assert result.n == 8, "a question without gold documents still has gold answers"
    assert result.rate == rate


def test_recall_looks_at_five_and_tells_good_rankings_from_bad() -> None:
    class Backwards(BagModel):
        def encode_queries(self, questions: Sequence[str], *, rate: int | None = None) -> list[QueryMemory]:
            return [replace(memory, values=-memory.values) for memory in super().encode_queries(questions, rate=rate)]

    forward = run(BagModel(), given="candidates", k=1, context="none")
    backward = run(Backwards(), given="candidates", k=1, context="none")
    assert summary(forward)["recall_at_5"] == 1.0
    assert summary(backward)["recall_at_5"] < 0.8
    assert all(row.prediction == "unknown" for row in forward.rows)


def test_more_documents_than_candidates_gives_them_all() -> None:
    result = run(BagModel(), given="candidates", k=50, context="text")
    assert [sorted(row.used) for row in result.rows] == [list(range(len(record.docs))) for record in RECORDS]


def test_long_documents_become_several_memories() -> None:
    model = BagModel(window_tokens=16)
    result = run(model, context="memory", given="candidates", k=3)
    assert result.errors == 0
    assert max(len(request.memories) for request in model.requests) > 3
    assert max(len(model.token_spans(text)) for text in model.compressed) <= 16
    whole = BagModel()
    assert run(whole, context="memory", given="candidates", k=3).errors == 0
    assert {len(request.memories) for request in whole.requests} == {3}


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
        summary(run(model))


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
    run(model, batch_size=2, on_progress=lambda asked, known: told.append((asked, known)))
    done = [asked for asked, _ in told]
    assert done == sorted(set(done))
    assert told[-1] == (7, 0)


def test_limit_counts_records_from_the_first() -> None:
    assert [row.id for row in run(BagModel(), limit=3).rows] == ["sample:0", "sample:1", "sample:2"]
    whole = task_of(RECORDS, settings_of(BagModel()), limit=8)
    assert whole.left_out == {"questions without a gold document": 1}


def test_records_that_ask_nothing_are_counted(tmp_path: Path) -> None:
    passages = (FIXTURES / "passage_qa.jsonl").read_text("utf-8")
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text((FIXTURES / "multi_hop.jsonl").read_text("utf-8") + passages, encoding="utf-8")
    task = TaskLoader(None).load(str(mixed), "oracle", given="gold", k=5, max_new_tokens=8)
    assert len(task.questions) == 7
    assert sum(task.left_out.values()) == len(passages.splitlines()) + 1
    with pytest.raises(RecordError, match=r"passage_qa\.jsonl"):
        TaskLoader(None).load(str(FIXTURES / "passage_qa.jsonl"), "oracle", given="gold", k=5, max_new_tokens=8)
    for records, message in ((RECORDS[7:], "1 questions without"), ([], "no question")):
        with pytest.raises(RecordError, match=message):
            task_of(records, settings_of(BagModel()))


def test_documents_are_not_compressed_ahead_of_their_questions() -> None:
    docs = RECORDS[1].docs
    records = [
        replace(RECORDS[1], id=str(n), docs=tuple(replace(doc, title=f"{n}") for doc in docs)) for n in range(12)
    ]
    model = BagModel()
    made: list[int] = []
    run(model, records, given="candidates", batch_size=2, on_progress=lambda *_: made.append(len(model.compressed)))
    assert made == [2 * len(docs) * batch for batch in range(1, 7)]
