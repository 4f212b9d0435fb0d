"""Corpora of every form, first stages, and the marking of gold passages in what they find."""

from __future__ import annotations

import gzip
import json
import shutil
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bag_model import words
from clara.data import DocText, GoldRef, Question, read_questions
from clara.errors import InputError, RecordError
from clara.evaluate.corpus import Corpus, CorpusPassage, beir_questions, pooled, read_corpus
from clara.evaluate.questions import FirstStage, TaskLoader, _corpus_search, _FirstStageName, _settled
from clara.evaluate.rankers import TextEncoder
from clara.records import FloatArray

FIXTURES = Path(__file__).parents[1] / "data" / "fixtures"
FORMATS = FIXTURES / "formats"
OWN = read_questions(FIXTURES / "multi_hop.jsonl")


class Hashed:
    """Words hashed into unit vectors."""

    def encode(self, texts: Sequence[str], **_: object) -> FloatArray:
        rows = np.zeros((len(texts), 512), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in words(text):
                row[zlib.crc32(word.encode()) % 512] += 1
        unit: FloatArray = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
        return unit


HASHED = TextEncoder("hashed", Hashed(), "")


def test_pooled_corpus_holds_each_text_once() -> None:
    corpus = pooled(OWN.questions)
    texts = [passage.doc for passage in corpus.passages]
    assert len(texts) == len(set(texts)) == len({doc for q in OWN.questions for doc in q.docs})
    assert corpus == pooled(OWN.questions) != pooled(OWN.questions[:1])
    with pytest.raises(RecordError, match="no passage"):
        pooled([])


def test_beir_folder() -> None:
    corpus = read_corpus(FORMATS / "beir")
    assert [passage.id for passage in corpus.passages] == ["d1", "d2", "d3"]
    assert corpus.rejected == {"empty text": 1}
    assert corpus.qrels == {"q1": frozenset({"d1", "d2"}), "q2": frozenset({"d3"})}
    first, second = beir_questions(FORMATS / "beir").questions
    assert (first.answers, second.answers) == (("Ullmere",), None)
    assert second.elsewhere == (GoldRef(id="d3"),)


def test_dpr_passages_kilt_source_and_our_own(tmp_path: Path) -> None:
    dpr = read_corpus(FORMATS / "psgs_w100.tsv")
    assert [passage.id for passage in dpr.passages] == ["1", "2"]
    assert '"Brannoch"' in dpr.passages[0].doc.text
    assert dpr.rejected == {"empty text": 1, "not three columns": 1}
    kilt = read_corpus(FORMATS / "kilt_knowledgesource.jsonl")
    assert [(passage.id, passage.doc.title) for passage in kilt.passages] == [
        ("11:1", "Skerry Light"),
        ("11:3", "Skerry Light"),
        ("12:1", "Holm herring"),
    ]
    own = tmp_path / "own.jsonl"
    own.write_text('{"id": "p1", "source": "s", "title": "T", "text": "words"}\n{"title": "T", "text": "no id"}\n')
    found = read_corpus(own)
    assert (found.passages, dict(found.rejected)) == ((CorpusPassage("p1", DocText("T", "words")),), {"no id": 1})
    with pytest.raises(RecordError, match="no corpus"):
        read_corpus(tmp_path)


def cut(content: bytes) -> bytes:
    packed = gzip.compress(content)
    return packed[: len(packed) // 2]


def changed(content: bytes) -> bytes:
    packed = bytearray(gzip.compress(content))
    packed[-8] ^= 1  # of the checksum
    return bytes(packed)


def not_utf8(content: bytes) -> bytes:
    return content + '{"id": "x", "text": "café"}\n'.encode("latin-1")


@pytest.mark.parametrize("damage", [cut, changed, not_utf8])
@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl", "qrels/test.tsv", "psgs_w100.tsv"])
def test_damaged_files_are_named(tmp_path: Path, name: str, damage: Callable[[bytes], bytes]) -> None:
    folder = tmp_path / "beir"
    shutil.copytree(FORMATS / "beir", folder)
    passages = tmp_path / "psgs_w100.tsv"
    shutil.copy(FORMATS / passages.name, passages)
    damaged = passages if name == passages.name else folder / name
    damaged.write_bytes(damage(damaged.read_bytes()))
    sources = TaskLoader(None, corpus=str(passages) if damaged == passages else None)
    with pytest.raises(RecordError, match=rf"{name} is damaged or cut off .*: fetch it anew"):
        sources.load(str(folder), "normal", given="candidates", k=2, max_new_tokens=8)


def test_what_cannot_be_used_of_file_and_corpus_is_counted(tmp_path: Path) -> None:
    beir = tmp_path / "beir"
    shutil.copytree(FORMATS / "beir", beir)
    with (beir / "queries.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"_id": "q3", "text":\n{"_id": "q4", "text": " "}\n')
    with (beir / "qrels" / "test.tsv").open("a", encoding="utf-8") as file:
        file.write("q4\td1\t1\n")
    loaded = TaskLoader(None).load(str(beir), "normal", given="candidates", k=2, max_new_tokens=8)
    assert loaded.left_out == {
        "bad JSON": 1,
        "empty question": 1,
        "entries of the corpus beir: empty text": 1,
    }
    corpus = tmp_path / "passages.jsonl"
    passages = [json.dumps({"id": str(n), "title": "", "text": f"Skerry Light {n}"}) for n in range(3)]
    corpus.write_text("\n".join([*passages, *['{"text": bad'] * 4]), encoding="utf-8")
    sources = TaskLoader(None, corpus=str(corpus))
    data = str(FORMATS / "hotpotqa_distractor.json")
    found = sources.load(data, "normal", given="candidates", k=2, max_new_tokens=8)
    assert found.left_out["entries of the corpus passages.jsonl: bad JSON"] == 4
    assert found.left_out["empty candidate document"] == 1


def test_a_question_whose_gold_document_is_empty_is_not_measured_with_fewer(tmp_path: Path) -> None:
    file = tmp_path / "hotpot.json"
    facts = [["A", 0], ["B", 0]]
    question = {"_id": "1", "question": "q?", "answer": "a", "supporting_facts": facts}
    contexts = ([["A", ["  "]], ["B", ["text b."]]], [["A", ["text a."]], ["B", ["text b."]], ["C", [""]]])
    file.write_text(json.dumps([{**question, "context": context} for context in contexts]), encoding="utf-8")
    loaded = TaskLoader(None).load(str(file), "oracle", given="candidates", k=2, max_new_tokens=8)
    assert [question.gold for question in loaded.questions] == [(0, 1)]
    assert loaded.left_out == {"empty gold document": 1, "empty candidate document": 1}


@pytest.mark.parametrize("kind", ["bm25", "dense", "hybrid"])
def test_first_stages_find_what_shares_words(kind: _FirstStageName) -> None:
    stage = _corpus_search(pooled(OWN.questions), kind, encoder=HASHED)
    found = stage.search(["How many arches has Tarn Bridge?", "herring barrels of beech"], 3)
    assert found[0][0].doc.title == "Tarn Bridge"
    assert found[1][0].doc.title == "Holm herring"
    assert all(len(row) <= 3 for row in found)
    assert stage.search(["xyzzy"], 3)[0] == [] if kind == "bm25" else True
    again = _corpus_search(pooled(OWN.questions), kind, encoder=HASHED)
    assert again.search(["How many arches has Tarn Bridge?"], 3)[0] == found[0]


def test_vectors_need_an_encoder() -> None:
    with pytest.raises(InputError, match="--first-stage dense"):
        _corpus_search(pooled(OWN.questions), "dense")


def test_normal_marks_what_was_found_and_counts_what_was_not() -> None:
    stage = _corpus_search(pooled(OWN.questions), "bm25")
    made = _settled(OWN.questions, stage, oracle=False, candidates=1).questions
    for before, after in zip(OWN.questions, made, strict=True):
        texts = {before.docs[index] for index in before.gold}
        assert {after.docs[index] for index in after.gold} == texts & set(after.docs)
        assert len(after.elsewhere) == len(texts - set(after.docs))
        assert len(after.docs) == 1
    assert any(question.elsewhere for question in made), "one place does not hold two gold documents"


def test_oracle_guarantees_gold_at_places_that_do_not_give_it_away() -> None:
    stage = _corpus_search(pooled(OWN.questions), "bm25")
    whole = _settled(OWN.questions, stage, oracle=True, candidates=4)
    made = whole.questions
    assert dict(whole.without) == {
        "questions of which no gold document is known, as --setting oracle needs (give --setting normal)": 1
    }
    assert all(not question.elsewhere for question in made)
    for before, after in zip((question for question in OWN.questions if question.gold), made, strict=True):
        assert {after.docs[index] for index in after.gold} == {before.docs[index] for index in before.gold}
        assert len(set(after.docs)) == len(after.docs) <= 4
    assert len({question.gold for question in made if len(question.gold) == 1}) > 1
    assert made == _settled(OWN.questions, stage, oracle=True, candidates=4).questions


def found(*passages: CorpusPassage) -> FirstStage:
    """A first stage that finds the same for every question."""
    return FirstStage("found", lambda questions, k: [list(passages[:k]) for _ in questions])


def test_gold_by_id_by_text_and_by_title() -> None:
    window = CorpusPassage("9", DocText("skerry_light", "It was built  by Moira Calder."))
    question = Question(
        "q", "s", "q?", ("a",), (DocText("Skerry Light", "A lighthouse. It was built by Moira Calder."),), (0,)
    )

    def gold(question: Question, passage: CorpusPassage, relevant: str = "") -> tuple[int, ...]:
        qrels = {"q": frozenset({relevant})} if relevant else {}
        corpus = Corpus("judged", (passage,), {}, qrels)
        return _settled([question], found(passage), oracle=False, corpus=corpus).questions[0].gold

    assert gold(question, window) == (0,)
    assert gold(question, replace(window, doc=DocText("Other", window.doc.text))) == ()
    assert gold(question, window, "9") == (0,)
    assert gold(question, window, "8") == ()
    titled = replace(question, docs=(), gold=(), elsewhere=(GoldRef("Skerry Light"),))
    assert gold(titled, window) == (0,)


def test_nothing_found_is_counted() -> None:
    corpus = Corpus("one", (CorpusPassage("1", DocText("", "nothing in common")),), {}, {})
    question = Question("q", "s", "Skerry?", ("a",), (), ())
    made = _settled([question], _corpus_search(corpus, "bm25"), oracle=False)
    assert made.questions == ()
    assert made.without == {"questions for which the first stage found nothing": 1}


def load(name: str, setting: str = "normal", **options: object) -> tuple[Question, ...]:
    sources = TaskLoader(None, **options)  # type: ignore[arg-type]
    task = sources.load(str(FORMATS / name), setting, given="candidates", k=2, max_new_tokens=8)  # type: ignore[arg-type]
    return task.questions


def test_where_candidates_come_from() -> None:
    own = TaskLoader(None).load(str(OWN.path), "normal", given="candidates", k=2, max_new_tokens=8)
    assert own.candidates == "as in the file"
    assert own.questions == OWN.questions
    sources = TaskLoader(None, corpus="pool", candidates=3)
    pool = sources.load(str(OWN.path), "normal", given="candidates", k=2, max_new_tokens=8)
    assert pool.candidates.startswith("first 3 of bm25 over pool of multi_hop")
    assert {len(question.docs) for question in pool.questions} <= {1, 2, 3}
    hotpot = load("hotpotqa_distractor.json")
    assert len(hotpot[0].docs) > 1
    assert len(load("squad_v2.json", "oracle")[0].docs) == 1
    kilt = load("kilt_nq.jsonl", corpus=str(FORMATS / "kilt_knowledgesource.jsonl"))
    assert [kilt[0].docs[index].title for index in kilt[0].gold] == ["Skerry Light"] * len(kilt[0].gold)
    assert kilt[0].gold
    beir = load("beir")
    assert [question.id for question in beir] == ["q1", "q2"]
    assert all(question.gold for question in beir)
    with pytest.raises(RecordError, match="give --corpus"):
        load("nq_open.jsonl", "oracle")
    with pytest.raises(InputError, match=r"nq_open.jsonl brings no documents .* give --corpus PATH"):
        load("nq_open.jsonl")


def test_options_about_searching_are_refused_where_nothing_is_searched() -> None:
    typed = ("--first-stage", "--candidates")
    for name, setting in ((str(OWN.path), "normal"), (str(OWN.path), "oracle"), ("squad_v2.json", "oracle")):
        with pytest.raises(InputError, match=rf"--first-stage, --candidates has no meaning .* --setting {setting}"):
            load(name, setting, typed=typed)
    assert load(str(OWN.path), corpus="pool", candidates=3, typed=typed)
    assert load("squad_v2.json", candidates=3, typed=typed)


def test_oracle_is_kept_or_the_question_is_left_out_by_name() -> None:
    """Gold documents that only the corpus holds are fetched from it, by id or by title."""
    beir = load("beir", "oracle", candidates=2)
    assert [(question.id, len(question.gold), question.elsewhere) for question in beir] == [
        ("q1", 2, ()),
        ("q2", 1, ()),
    ]
    kilt = load("kilt_nq.jsonl", "oracle", corpus=str(FORMATS / "kilt_knowledgesource.jsonl"), candidates=1)
    assert [(kilt[0].docs[index].title, kilt[0].elsewhere) for index in kilt[0].gold] == [("Skerry Light", ())]
    with pytest.raises(
        RecordError, match=r"nothing to ask in .*hotpotqa_fullwiki.json: 1 questions with a gold document"
    ):
        load("hotpotqa_fullwiki.json", "oracle")
    with pytest.raises(RecordError, match=r"1 questions of which no gold document is known.*--setting normal"):
        load("nq_open.jsonl", "oracle", corpus=str(FORMATS / "psgs_w100.tsv"))
    unanswerable = load("musique_full.jsonl", "oracle")
    assert any(question.unanswerable for question in unanswerable)


def test_a_title_stands_for_the_passage_with_an_answer() -> None:
    named = [
        CorpusPassage("1", DocText("Skerry Light", "A lighthouse.")),
        CorpusPassage("2", DocText("skerry_light", "Moira  Calder built it.")),
        CorpusPassage("3", DocText("Other", "Moira Calder.")),
    ]
    corpus = Corpus("named", tuple(named), {}, {})
    nothing = CorpusPassage("0", DocText("Nothing", "of it"))

    def supplied(ref: GoldRef, *answers: str) -> tuple[DocText, ...]:
        question = Question("q", "s", "q?", answers, (), (), elsewhere=(ref,))
        made = _settled([question], found(nothing), oracle=True, candidates=1, corpus=corpus)
        return made.questions[0].docs if made.questions else ()

    assert supplied(GoldRef("Skerry Light"), "moira calder") == (named[1].doc,)
    assert supplied(GoldRef("Skerry Light"), "nobody") == (named[0].doc,)
    assert supplied(GoldRef("Skerry Light", "Moira Calder built it."), "x") == (named[1].doc,)
    assert (supplied(GoldRef(id="3"), "x"), supplied(GoldRef(id="4"), "x")) == ((named[2].doc,), ())
