"""Records read, counted and written, on real files."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clara.data import (
    DataRecord,
    DocText,
    MultiHop,
    PassageQA,
    QAPair,
    read_records,
    sha256_of,
    write_jsonl,
    write_records,
)
from clara.errors import RecordError

FIXTURES = Path(__file__).parent / "fixtures"
HOP: Mapping[str, Any] = {
    "id": "1",
    "source": "s",
    "question": "Who?",
    "answers": ["Ada"],
    "docs": [{"title": "T", "text": "Ada did."}, {"title": "", "text": "Nobody did."}],
    "gold": [0],
}
PASSAGE: Mapping[str, Any] = {
    "id": "1",
    "source": "s",
    "title": "T",
    "text": "Ada did.",
    "qa": [{"question": "Who?", "answers": ["Ada"]}],
}

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
FULL = TEXT.filter(lambda text: text.strip() != "")
PAIR = st.builds(QAPair, question=FULL, answers=st.lists(FULL, min_size=1, max_size=3).map(tuple))
PASSAGES = st.builds(
    PassageQA,
    id=TEXT,
    source=TEXT,
    title=TEXT,
    text=FULL,
    pairs=st.lists(PAIR, min_size=1, max_size=3).map(tuple),
    paraphrase=st.none() | FULL,
    complex_pairs=st.lists(PAIR, max_size=2).map(tuple),
)


@st.composite
def hops(draw: st.DrawFn) -> MultiHop:
    docs = draw(st.lists(st.builds(DocText, title=TEXT, text=FULL), min_size=1, max_size=4))
    gold = draw(st.lists(st.integers(0, len(docs) - 1), unique=True))
    answers = draw(st.lists(FULL, min_size=1, max_size=3))
    return MultiHop(draw(TEXT), draw(TEXT), draw(FULL), tuple(answers), tuple(docs), tuple(gold))


def write_lines(path: Path, *lines: object) -> Path:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text(text + "\n", encoding="utf-8")
    return path


@given(records=st.lists(PASSAGES | hops(), min_size=1, max_size=5), suffix=st.sampled_from([".jsonl", ".jsonl.gz"]))
def test_what_is_written_is_read_back(
    records: list[DataRecord], suffix: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("io") / f"r{suffix}"
    assert write_records(path, records) == len(records)
    reading = read_records(path)
    assert list(reading.records) == records
    assert not reading.rejected
    assert not reading.left_out
    assert not reading.ignored_keys
    again = path.with_name(f"again{suffix}")
    write_records(again, reading.records)
    assert again.read_bytes() == path.read_bytes()


def test_fixtures_hold_both_kinds() -> None:
    hop, passage = read_records(FIXTURES / "multi_hop.jsonl"), read_records(FIXTURES / "passage_qa.jsonl")
    assert len(hop.multi_hop) == len(hop.records) == 8
    assert len(passage.passage_qa) == len(passage.records) == 6
    assert not hop.passage_qa
    assert hop.multi_hop[0].gold == (0, 2)
    assert hop.multi_hop[0].docs[2].title == "Moira Calder"
    first = passage.passage_qa[0]
    assert first.pairs[0] == QAPair("Where is Skerry Light?", ("on the island of Brannoch", "Brannoch"))
    assert first.paraphrase is not None
    assert first.complex_pairs[0].answers == ("31 metres",)
    assert "8 records" in hop.summary()


def test_kinds_may_be_mixed_and_the_hash_is_that_of_the_bytes(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "both.jsonl", HOP, "", PASSAGE)
    reading = read_records(path)
    assert [type(record) for record in reading.records] == [MultiHop, PassageQA]
    assert reading.sha256 == sha256_of(path) == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "bad JSON"),
        ("[" * 100_000, "bad JSON"),
        ("9" * 5000, "bad JSON"),
        ("[1]", "not a JSON object"),
        ({"a": 1}, "unknown kind of record"),
        ('{"id": "\\ud800", "text": "x"}', "half a Unicode character"),
        ({**HOP, "answers": []}, "no answers"),
        ({**HOP, "answers": ["", " "]}, "no answers"),
        ({**HOP, "answers": "Ada"}, "wrong type of 'answers'"),
        ({**HOP, "answers": [1]}, "wrong type of 'answers[]'"),
        ({**HOP, "question": " "}, "empty question"),
        ({**HOP, "docs": []}, "no documents"),
        ({**HOP, "docs": [{"title": "T", "text": "\n"}]}, "empty text"),
        ({**HOP, "docs": [{"title": "T"}]}, "missing key 'text'"),
        ({**HOP, "docs": ["T"]}, "wrong type of 'docs[]'"),
        ({**HOP, "gold": [2]}, "gold index out of range"),
        ({**HOP, "gold": [-1]}, "gold index out of range"),
        ({**HOP, "gold": [True]}, "wrong type of 'gold[]'"),
        ({**HOP, "gold": [1, 1]}, "gold index repeated"),
        ({k: v for k, v in HOP.items() if k != "gold"}, "missing key 'gold'"),
        ({k: v for k, v in HOP.items() if k != "docs"}, "missing key 'docs'"),
        ({k: v for k, v in PASSAGE.items() if k != "title"}, "missing key 'title'"),
        ({k: v for k, v in PASSAGE.items() if k != "qa"}, "missing key 'qa'"),
        ({**PASSAGE, "text": ""}, "empty text"),
        ({**PASSAGE, "id": 7}, "wrong type of 'id'"),
        ({**PASSAGE, "qa": []}, "no usable question-answer pair"),
        ({**PASSAGE, "qa": [{"question": "Who?", "answers": []}]}, "no usable question-answer pair"),
    ],
)
def test_an_unusable_line_is_counted_by_reason(line: object, reason: str, tmp_path: Path) -> None:
    reading = read_records(write_lines(tmp_path / "r.jsonl", HOP, line, PASSAGE))
    assert len(reading.records) == 2
    assert reading.rejected == {reason: 1}
    assert reason in reading.summary()


def test_bytes_that_are_not_utf8_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(HOP).encode() + b"\n\xff\xfe{}\n")
    reading = read_records(path)
    assert len(reading.records) == 1, "a byte order mark at the start is no fault"
    assert reading.rejected == {"not UTF-8": 1}


def test_every_line_is_accounted_for(tmp_path: Path) -> None:
    lines = [HOP if n % 3 == 0 else "{" if n % 3 == 1 else {**HOP, "gold": [9]} for n in range(90)]
    reading = read_records(write_lines(tmp_path / "r.jsonl", *lines))
    assert len(reading.records) == 30
    assert reading.rejected == {"bad JSON": 30, "gold index out of range": 30}


def test_faulty_pairs_leave_the_rest_of_the_record(tmp_path: Path) -> None:
    pairs = [
        {"question": "Who?", "answers": ["Ada", ""]},
        {"question": "", "answers": ["Ada"]},
        {"question": "When?"},
        "Where?",
    ]
    value = {**PASSAGE, "qa": pairs, "paraphrase": " ", "mood": 2}
    reading = read_records(write_lines(tmp_path / "r.jsonl", value))
    assert reading.passage_qa[0].pairs == (QAPair("Who?", ("Ada",)),)
    assert reading.passage_qa[0].paraphrase is None
    assert reading.left_out == {
        "blank answer": 1,
        "empty paraphrase": 1,
        "pair with empty question": 1,
        "pair with missing key 'answers'": 1,
        "pair with wrong type of 'qa'": 1,
    }
    assert reading.ignored_keys == {"mood": 1}


def test_plain_passages_are_taken_only_when_asked_for(tmp_path: Path) -> None:
    plain = {k: v for k, v in PASSAGE.items() if k != "qa"}
    path = write_lines(tmp_path / "r.jsonl", plain)
    assert read_records(path, plain_passages=True).passage_qa[0].pairs == ()
    with pytest.raises(RecordError, match="1 missing key 'qa'"):
        read_records(path)
    with_target = write_lines(tmp_path / "p.jsonl", {**plain, "paraphrase": "It was Ada."})
    assert read_records(with_target).passage_qa[0].paraphrase == "It was Ada."


def cases(folder: Path) -> Iterator[tuple[Path, str]]:
    yield folder / "absent.jsonl", "no data file"
    yield write_lines(folder / "named.txt", HOP), r"expected a file named"
    yield write_lines(folder / "plain.jsonl.gz", HOP), "not gzip in spite of its name"
    yield write_lines(folder / "other.jsonl", {"prompt": "x"}, {"prompt": "y"}), "2 unknown kind of record"
    yield write_lines(folder / "blank.jsonl", "", "  "), "is empty"
    (folder / "zero.jsonl.gz").write_bytes(gzip.compress(b""))
    yield folder / "zero.jsonl.gz", "is empty"
    whole = gzip.compress(json.dumps(HOP).encode() * 50)
    (folder / "cut.jsonl.gz").write_bytes(whole[:-20])
    yield folder / "cut.jsonl.gz", "damaged or cut off"
    (folder / "bits.jsonl.gz").write_bytes(whole[:20] + b"\xff" * 20 + whole[40:])
    yield folder / "bits.jsonl.gz", "damaged or cut off"
    (folder / "folder.jsonl").mkdir()
    yield folder / "folder.jsonl", "cannot be read"


def test_a_file_that_is_wrong_as_a_whole_is_refused(tmp_path: Path) -> None:
    for path, message in cases(tmp_path):
        with pytest.raises(RecordError, match=message):
            read_records(path)


def test_gzip_is_known_by_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "packed.jsonl"
    path.write_bytes(gzip.compress(json.dumps(HOP).encode()))
    assert len(read_records(path).records) == 1


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "r.jsonl.gz"
    record = read_records(FIXTURES / "multi_hop.jsonl").multi_hop[0]
    write_records(path, [record])
    before = path.read_bytes()

    def broken() -> Iterator[DataRecord]:
        yield record
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_records(path, broken())
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_paths_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RecordError, match="cannot be written"):
        write_jsonl(tmp_path / "file" / "r.jsonl", [{}])
    with pytest.raises(RecordError, match="expected a file named"):
        write_jsonl(tmp_path / "r.txt", [{}])


def test_records_check_themselves() -> None:
    with pytest.raises(RecordError, match="gold index out of range: 1 of 1 documents"):
        MultiHop("1", "s", "Who?", ("Ada",), (DocText("", "text"),), (1,))
    with pytest.raises(RecordError, match="blank answer"):
        QAPair("Who?", ("Ada", ""))
    with pytest.raises(RecordError, match="empty paraphrase"):
        PassageQA("1", "s", "", "text", (), paraphrase="")
