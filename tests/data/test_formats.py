"""Readers of public formats, on small files in their layouts with invented content."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from clara.data import DocText, GoldRef, Question, read_questions, read_records
from clara.data.records import UnusableRecordError
from clara.errors import RecordError

FORMATS = Path(__file__).parent / "fixtures" / "formats"
OWN = Path(__file__).parent / "fixtures" / "multi_hop.jsonl"
ASKED = "Where was the engineer of Skerry Light born?"
LIGHT = DocText("Skerry Light", "Skerry Light is a lighthouse on Brannoch. It was built by Moira Calder.")
HERRING = DocText("Holm herring", "Holm herring is salted in barrels of beech wood.")


@pytest.mark.parametrize(
    ("name", "label", "count", "rejected", "left_out"),
    [
        ("hotpotqa_distractor.json", "hotpotqa", 2, {"missing key 'answer'": 1, "wrong length of 'context'[]": 1}, 1),
        ("hotpotqa_fullwiki.json", "hotpotqa", 1, {}, 0),
        ("hotpotqa_hub.jsonl", "hotpotqa", 1, {"lists of different length in 'supporting_facts'": 1}, 0),
        ("2wikimultihopqa.json", "2wiki", 2, {}, 0),
        ("musique_full.jsonl", "musique", 2, {"wrong type of 'is_supporting'": 1}, 1),
        ("squad_v1.json", "squad", 1, {}, 0),
        (
            "squad_v2.json",
            "squad",
            2,
            {
                "no answers": 1,
                "wrong type of 'qas[]'": 1,
                "wrong type of 'qas'": 1,
                "empty text": 1,
                "wrong type of 'data[]'": 1,
            },
            0,
        ),
        ("squad_hub.jsonl", "squad_hub", 2, {"wrong type of 'text'": 1}, 0),
        ("nq_open.jsonl", "nq_open", 1, {"no answers": 1, "empty question": 1}, 0),
        (
            "dpr_nq.qa.csv",
            "nq_open",
            2,
            {"not a question, a tab and a list of answers": 2, "no answers": 1},
            0,
        ),
        ("dpr_retriever.json", "dpr", 1, {"wrong type of 'positive_ctxs[]'": 1}, 0),
        ("dpr_results.json", "dpr", 1, {}, 0),
        ("kilt_nq.jsonl", "kilt", 1, {"no answers": 1}, 1),
        ("official.jsonl", "official", 2, {"gold index out of range": 1, "wrong type of 'gold_answer'": 1}, 0),
        ("flashrag.jsonl", "flashrag", 4, {"answer is none of the choices": 1, "no answers": 1}, 0),
        ("nq_simplified.jsonl", "natural_questions", 4, {"wrong type of 'annotations'": 1}, 0),
        ("nq_full.jsonl", "natural_questions", 1, {}, 0),
        ("nq_hub.jsonl", "natural_questions", 1, {}, 0),
        ("mrqa.jsonl", "mrqa", 2, {"wrong type of 'qas[]'": 1}, 0),
        ("triviaqa_hub.jsonl", "triviaqa_hub", 2, {}, 0),
        ("triviaqa.json", "triviaqa", 1, {"wrong type of 'Data[]'": 1}, 0),
        ("popqa.jsonl", "popqa", 2, {"wrong type of 'possible_answers'": 1}, 0),
        ("popqa.tsv", "popqa", 1, {}, 0),
        ("2wiki_hub.jsonl", "2wiki", 1, {}, 0),
    ],
)
def test_a_file_is_known_by_its_keys_and_its_faults_are_counted(
    name: str, label: str, count: int, rejected: dict[str, int], left_out: int
) -> None:
    found = read_questions(FORMATS / name)
    assert (found.format, len(found.questions)) == (label, count)
    assert dict(found.rejected) == rejected
    assert sum(found.left_out.values()) == left_out
    assert all(f"{number} {reason}" in found.summary() for reason, number in rejected.items())


def test_hotpotqa_in_all_three_layouts() -> None:
    distractor, yes = read_questions(FORMATS / "hotpotqa_distractor.json").questions
    assert (distractor.id, distractor.question, distractor.answers) == ("h1", ASKED, ("Ullmere",))
    assert [doc.title for doc in distractor.docs] == ["Holm herring", "Skerry Light", "Moira Calder"]
    assert distractor.docs[1] == LIGHT
    assert (distractor.gold, distractor.elsewhere) == ((1, 2), ())
    assert yes.answers == ("yes",)
    fullwiki = read_questions(FORMATS / "hotpotqa_fullwiki.json").questions[0]
    assert (fullwiki.gold, fullwiki.elsewhere) == ((1,), (GoldRef("Moira Calder"),))
    hub = read_questions(FORMATS / "hotpotqa_hub.jsonl").questions[0]
    assert (hub.docs, hub.gold) == (distractor.docs, distractor.gold)


def test_two_wiki_with_aliases_and_with_lists_as_text() -> None:
    first, second = read_questions(FORMATS / "2wikimultihopqa.json").questions
    assert first.answers == ("Ullmere", "Ullmere town")
    assert (first.source, first.gold) == ("2wiki", (0, 1))
    assert (second.docs, second.gold) == ((LIGHT,), (0,))


def test_unanswerable_questions() -> None:
    answerable, not_ = read_questions(FORMATS / "musique_full.jsonl").questions
    assert (answerable.answers, answerable.unanswerable) == (("Ullmere", "town of Ullmere"), False)
    assert (not_.answers, not_.unanswerable, not_.gold) == ((), True, (1,))
    one, two = read_questions(FORMATS / "squad_v2.json").questions
    assert (one.answers, two.answers, two.unanswerable) == (("Moira Calder",), (), True)
    assert two.docs == (LIGHT,), "the paragraph it was asked about, its title without underscores"
    old = read_questions(FORMATS / "squad_v1.json").questions[0]
    assert old.answers == ("Moira Calder", "Calder")
    flat, none = read_questions(FORMATS / "squad_hub.jsonl").questions
    assert (flat.answers, flat.docs, flat.gold) == (old.answers, (LIGHT,), (0,))
    assert none.unanswerable


def test_questions_whose_documents_are_elsewhere() -> None:
    nq = read_questions(FORMATS / "nq_open.jsonl").questions[0]
    assert (nq.docs, nq.gold, nq.answers) == ((), (), ("Moira Calder", "Calder"))
    named, quoted = read_questions(FORMATS / "dpr_nq.qa.csv").questions
    assert (named.docs, named.answers) == ((), ("Moira Calder", "Calder"))
    assert (quoted.question, quoted.answers) == ('what is "the rock" called', ("Skerry's Light",))
    kilt = read_questions(FORMATS / "kilt_nq.jsonl").questions[0]
    assert kilt.elsewhere == (GoldRef("Skerry Light"),)
    assert kilt.answers == ("Moira Calder", "Calder")


def test_dpr_and_official_candidates() -> None:
    training = read_questions(FORMATS / "dpr_retriever.json").questions[0]
    assert (training.docs, training.gold) == ((LIGHT, HERRING), (0,))
    results = read_questions(FORMATS / "dpr_results.json").questions[0]
    assert (results.id, results.docs, results.gold) == ("7", (HERRING, LIGHT), (1,))
    marked, plain = read_questions(FORMATS / "official.jsonl").questions
    assert (marked.gold, marked.docs[1].title) == ((1,), "")
    assert marked.docs[1].text.startswith("Skerry Light\n")
    assert (plain.gold, plain.answers) == ((), ("nobody", "no one"))


def test_our_own_records_and_gzip(tmp_path: Path) -> None:
    found = read_questions(OWN)
    assert (found.name, found.format, len(found.questions)) == ("multi_hop", "clara", 8)
    packed = tmp_path / "own.jsonl.gz"
    packed.write_bytes(gzip.compress(OWN.read_bytes()))
    again = read_questions(packed, name="named")
    assert again.questions == found.questions
    assert again.name == "named"
    assert again.sha256 != found.sha256, "of the bytes on disk"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not known"),
        (b'{"prompt": "x"}\n', "expected one of clara.*'prompt'"),
        (b'[{"question": "cut', "not valid JSON"),
        (gzip.compress(b'{"question": "q", "answer": ["a"]}\n', mtime=0)[:-9], "damaged"),
        (b'{"question": "q", "answer": []}\n', "no usable question in format nq_open.*no answers"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "file.jsonl"
    path.write_bytes(content)
    with pytest.raises(RecordError, match=message):
        read_questions(path)


def test_bad_lines_do_not_hide_the_format(tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    good = json.dumps({"question": "q", "answer": ["a"]}).encode()
    path.write_bytes(b'{"cut\n\n[1]\n\xff\xfe\n' + good + b"\n")
    found = read_questions(path)
    assert len(found.questions) == 1
    assert dict(found.rejected) == {"bad JSON": 1, "not UTF-8": 1, "not a JSON object": 1}


def test_questions_check_themselves() -> None:
    with pytest.raises(UnusableRecordError, match="out of range"):
        Question("1", "s", "q?", ("a",), (LIGHT,), (1,))
    with pytest.raises(UnusableRecordError, match="repeated"):
        Question("1", "s", "q?", ("a",), (LIGHT,), (0, 0))
    with pytest.raises(UnusableRecordError, match="blank answer"):
        Question("1", "s", "q?", (" ",), (LIGHT,), ())
    with pytest.raises(UnusableRecordError, match="reference"):
        GoldRef()


def test_flashrag_brings_the_documents_of_its_data_set() -> None:
    hotpot, wiki, plain, choice = read_questions(FORMATS / "flashrag.jsonl").questions
    assert (hotpot.id, hotpot.source, hotpot.gold) == ("dev_0", "hotpotqa", (1, 2))
    assert hotpot.docs == read_questions(FORMATS / "hotpotqa_hub.jsonl").questions[0].docs
    assert (wiki.source, wiki.answers, wiki.docs) == ("2wiki", ("Ullmere", "Ullmere town"), (LIGHT,))
    assert (plain.source, plain.docs, plain.answers) == ("flashrag", (), ("Moira Calder", "Calder"))
    assert choice.answers == ("beech",)


def test_natural_questions_with_short_long_and_no_answers() -> None:
    short, yes, long, none = read_questions(FORMATS / "nq_simplified.jsonl").questions
    assert [doc.text for doc in short.docs] == ["Skerry Light was built by Moira Calder .", "Holm herring is salted ."]
    assert (short.docs[0].title, short.gold, short.answers) == ("Skerry Light", (0,), ("Moira Calder",))
    assert yes.answers == ("yes",)
    assert (long.answers, long.gold) == (None, (0,)), "a block is the long answer; its words are no phrase to expect"
    assert (none.unanswerable, none.gold) == (True, ())
    full = read_questions(FORMATS / "nq_full.jsonl").questions[0]
    hub = read_questions(FORMATS / "nq_hub.jsonl").questions[0]
    assert full.docs == hub.docs == short.docs
    assert (full.answers, hub.answers) == (("Moira Calder",), ("Moira Calder", "yes"))


def test_triviaqa_popqa_and_mrqa() -> None:
    answers = ("Moira Calder", "Calder (engineer)")
    hub, bare = read_questions(FORMATS / "triviaqa_hub.jsonl").questions
    assert (hub.docs, hub.gold, hub.answers) == ((LIGHT, HERRING), (0,), answers)
    assert (bare.docs, bare.elsewhere) == ((), (GoldRef("Skerry Light"),))
    original = read_questions(FORMATS / "triviaqa.json").questions[0]
    assert (original.id, original.answers, original.elsewhere) == ("tc_1", answers, (GoldRef("Skerry Light"),))
    line, listed = read_questions(FORMATS / "popqa.jsonl").questions
    table = read_questions(FORMATS / "popqa.tsv").questions[0]
    assert line == table
    assert (line.answers, listed.answers) == (("Moira Calder", "Calder"), ("Moira Calder",))
    first, second = read_questions(FORMATS / "mrqa.jsonl").questions
    assert first.docs == second.docs == (DocText("", "Skerry Light was built by Moira Calder ."),)


def test_aliases_of_two_wiki_beside_the_file_are_answers(tmp_path: Path) -> None:
    folder = FORMATS / "2wiki_ids"
    named, yes = read_questions(folder / "dev.json").questions
    assert (named.answers, yes.answers) == (("Ullmere", "Ullmere town", "Ullmerer"), ("yes",))
    alone = tmp_path / "dev.json"
    alone.write_bytes((folder / "dev.json").read_bytes())
    without = read_questions(alone)
    assert without.questions[0].answers == ("Ullmere",)
    assert "1 aliases of an answer (id_aliases.json is not beside the file)" in without.summary()
    (tmp_path / "id_aliases.json").write_text('{"Q_id": "Q5"}')
    with pytest.raises(RecordError, match="expected one"):
        read_questions(alone)


@pytest.mark.parametrize(
    "path", sorted(path for path in FORMATS.iterdir() if path.is_file()), ids=lambda path: path.name
)
def test_training_reads_what_evaluation_reads(path: Path) -> None:
    if path.name in {"kilt_knowledgesource.jsonl", "psgs_w100.tsv"}:
        pytest.skip("a corpus")
    questions = read_questions(path).questions
    usable = [question for question in questions if question.answers and question.docs]
    if not usable:
        with pytest.raises(RecordError, match=r"no question to train on; rejected: .*question without documents"):
            read_records(path)
        return
    reading = read_records(path)
    asked = [one.question for one in reading.multi_hop] + [
        pair.question for record in reading.passage_qa for pair in record.pairs
    ]
    assert sorted(asked) == sorted(question.question for question in usable)
    left = sum(reading.rejected.values())
    assert left == sum(read_questions(path).rejected.values()) + len(questions) - len(usable)


def test_questions_about_one_document_train_as_one_passage() -> None:
    reading = read_records(FORMATS / "mrqa.jsonl")
    (passage,) = reading.passage_qa
    assert [pair.question for pair in passage.pairs] == ["who built skerry light", "who was it built by"]
    assert reading.summary().startswith("mrqa.jsonl: 1 records (mrqa)")
    assert read_records(FORMATS / "hotpotqa_hub.jsonl").multi_hop[0].gold == (1, 2)


def test_half_a_character_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "nq.jsonl"
    path.write_text('{"question": "who \\ud800", "answer": ["x"]}\n{"question": "who", "answer": ["x"]}\n')
    assert dict(read_questions(path).rejected) == {"half a Unicode character": 1}


def test_answers_that_are_not_published_are_rejected_by_name(tmp_path: Path) -> None:
    """TriviaQA's test sets: scored as an answer, each question would count as wrong."""
    line = '{"question": "Who?", "question_id": "q", "answer": {"value": "%s"}, "entity_pages": {}}'
    path = tmp_path / "test.jsonl"
    path.write_text("\n".join([line % "Ada", line.replace('"q"', '"r"') % "<unk>"]), encoding="utf-8")
    report = read_questions(path)
    assert len(report.questions) == 1
    assert report.rejected == {"answer is not published": 1}
