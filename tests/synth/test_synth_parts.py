"""The parts around the loop: cache, budget, sources, report, official rows, the measured verifier."""

from __future__ import annotations

import asyncio
import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest
from cases import passage, replies, write_passages
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from verifier_bench import score_verifier

from clara.data import PassageQA, QAPair, read_records
from clara.data.official_rows import _from_official, _to_official, export_official, import_official
from clara.errors import InputError, RecordError, SynthesisError
from clara.llm import Reply, Usage
from clara.synth.client import Budget, BudgetSpentError, ReplyCache, _request_key
from clara.synth.output import RunFigures, SynthReport
from clara.synth.settings import BudgetSettings, CheckSettings, LexicalSettings
from clara.synth.sources import Sources, read_sources


def test_the_cache_keeps_replies_under_the_whole_request(tmp_path: Path) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "süß"}], "temperature": 0.7}
    key = _request_key(body, 1)
    assert key == _request_key(dict(reversed(body.items())), 1)
    others = [_request_key({**body, change: 1}, 1) for change in ("model", "messages", "temperature", "seed")]
    assert len({key, _request_key(body, 2), *others}) == 6
    with ReplyCache(tmp_path / "c.sqlite3") as cache:
        assert cache.get(key) is None
        cache.put(key, Reply("hallo", "stop", Usage(3, 2)))
        cache.put(key, Reply("another", "stop", Usage(30, 20)))
        cache.learn("way", "none")
    with ReplyCache(tmp_path / "c.sqlite3") as cache:
        assert cache.get(key) == Reply("hallo", "stop", Usage(3, 2))
        assert cache.spent() == Usage(3, 2)
        assert (cache.fact("way"), cache.fact("other")) == ("none", None)


def test_another_file_is_no_cache(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("It was a dark and stormy night. " * 50)
    with pytest.raises(SynthesisError, match="no reply cache"):
        ReplyCache(tmp_path / "thesis.txt")
    assert (tmp_path / "thesis.txt").read_text().startswith("It was")


def test_requests_wait_for_room_in_the_budget() -> None:
    """The second request fits only when the first turns out cheaper than thought; the third never."""

    async def play() -> list[str]:
        budget = Budget(BudgetSettings(max_tokens=500), Usage())
        log = []
        first = await budget.admit(300, 800)  # 101 prompt + 200 reply tokens expected
        waiting = asyncio.create_task(budget.admit(300, 800))
        await asyncio.sleep(0)
        log.append("waits" if not waiting.done() else "passes")
        await budget.settle(first, Usage(90, 60), 300)
        second = await waiting
        log.append(f"{second.total}")
        await budget.settle(second, Usage(90, 60), 300)
        try:
            await budget.admit(900, 800)
        except BudgetSpentError as error:
            log.append(str(error))
        log.append(f"{budget.spent.total}")
        return log

    log = asyncio.run(play())
    assert log[:2] == ["waits", "161"]
    assert "300 of 500 tokens" in log[2]
    assert log[3] == "300"


def read(*paths: Path, words: int = 190) -> Sources:
    return read_sources(list(paths), passage_words=words, min_passage_words=8)


def test_passage_files_are_taken_as_they_are(tmp_path: Path) -> None:
    plain = write_passages(tmp_path / "in.jsonl", 3)
    packed = tmp_path / "packed.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    sources = read(plain)
    wanted = [passage(number) for number in range(3)]
    assert sources.passages == tuple(replace(each, document=each.title) for each in wanted)
    again = read(plain, packed)
    assert len(again.passages) == 3
    assert again.skipped == {"passage repeated": 3}


def test_documents_are_cut_into_passages_of_words(tmp_path: Path) -> None:
    sentences = [f"Sentence number {n} tells a little story about the town of Graz." for n in range(60)]
    (tmp_path / "doc.txt").write_text(" ".join(sentences))
    (tmp_path / "lines.jsonl").write_text(json.dumps({"title": "T", "text": passage(1).text}) + "\n")
    (tmp_path / "photo.png").write_bytes(b"\x89PNG")
    (tmp_path / "short.txt").write_text("Too short.")
    sources = read(tmp_path, words=60)
    from_doc = [item for item in sources.passages if item.source == "doc.txt"]
    assert " ".join(item.text for item in from_doc) == " ".join(sentences)
    assert all(20 <= len(item.text.split()) <= 60 for item in from_doc)
    assert all(item.text.endswith(".") for item in from_doc)
    assert [item.title for item in sources.passages if item.source == "lines.jsonl"] == ["T"]
    assert sources.skipped == {"source unsupported": 1, "passage too short": 1}
    assert "photo.png" in sources.messages[0]
    assert read(tmp_path, words=60).passages == sources.passages


def test_faulty_sources_are_named(tmp_path: Path) -> None:
    clash = [{"id": "a", "source": "s", "title": "", "text": passage(n).text} for n in (1, 2)]
    (tmp_path / "clash.jsonl").write_text("\n".join(map(json.dumps, clash)))
    with pytest.raises(SynthesisError, match="id 'a'"):
        read(tmp_path / "clash.jsonl")
    with pytest.raises(InputError, match=r"missing\.txt"):
        read(tmp_path / "missing.txt")
    (tmp_path / "short.txt").write_text("Too short.")
    with pytest.raises(SynthesisError, match="no passage"):
        read(tmp_path / "short.txt")
    bad = [{"id": "b", "source": "s", "title": ""}, {"id": "a", "source": "s", "title": "", "text": passage(1).text}]
    (tmp_path / "bad.jsonl").write_text("\n".join(map(json.dumps, reversed(bad))) + "\n{")
    sources = read(tmp_path / "bad.jsonl")
    assert len(sources.passages) == 1
    assert sum(sources.skipped.values()) == 2


def test_records_without_a_source_are_documents(tmp_path: Path) -> None:
    (tmp_path / "docs.jsonl").write_text(json.dumps({"id": "a", "title": "T", "text": passage(0).text * 9}) + "\n")
    sources = read(tmp_path / "docs.jsonl")
    assert len(sources.passages) > 1
    assert {item.title for item in sources.passages} == {"T"}
    assert not sources.skipped


def test_the_report_is_a_table_and_a_plot(tmp_path: Path) -> None:
    report = SynthReport(
        passages=10,
        accepted=7,
        dropped={"no_paraphrase": 2},
        unfinished=1,
        pairs=35,
        complex_pairs=14,
        rejections={"length": 3, "reply_not_json": 9},
        accepted_by_round={1: 4, 3: 3},
        skipped={"passage too short": 2},
        messages=(),
        run=RunFigures(requests=50, retried={"status_429": 4}, spent=Usage(1000, 500), cost=0.25, seconds=3.0),
    )
    table, plot = report.write(tmp_path / "out" / "synth.md")
    text = table.read_text("utf-8")
    for row in (
        "| accepted | 7 (77.8%) |",
        "| simple pairs a record | 5.00 |",
        "| rejected: reply_not_json | 9 |",
        "| accepted in round 3 | 3 |",
        "| retried: status_429 | 4 |",
    ):
        assert row in text
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert plot.name in text
    assert report.write(tmp_path / "folder")[0] == tmp_path / "folder" / "report.md"


def test_official_rows_both_ways(tmp_path: Path) -> None:
    good = replies(2)
    record = {
        "id": "case:2",
        "source": "cases",
        "title": passage(2).title,
        "text": "Born in Graz. " + passage(2).text,
        "qa": [{"question": p["question"], "answers": [p["answer"], "x"]} for p in good["simple_qa"]["pairs"]],
        "complex_qa": [{"question": p["question"], "answers": [p["answer"]]} for p in good["complex_qa"]["pairs"]],
        "paraphrase": good["paraphrase"]["paraphrase"],
    }
    ours, official, back = tmp_path / "a.jsonl", tmp_path / "b.jsonl", tmp_path / "c.jsonl"
    ours.write_text(json.dumps(record) + "\n")
    assert export_official(ours, official)[0] == 2
    rows = [json.loads(line) for line in official.read_text().splitlines()]
    assert [sorted(row) for row in rows] == [["answers", "data_type", "docs", "question"]] * 2
    assert rows[0]["docs"] == [f"{record['title']}\n{record['text']}"]
    assert len(rows[0]["question"]) == len(rows[0]["answers"]) == 6
    assert import_official(official, back) == 1
    (returned,) = read_records(back).passage_qa
    assert (returned.title, returned.text, returned.paraphrase) == (
        record["title"],
        record["text"],
        record["paraphrase"],
    )
    assert returned.pairs[0] == QAPair("Where was Mira Halonen born?", ("Graz",))
    assert len(returned.pairs) == 6


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_official_rows_come_back_as_they_were(tmp_path: Path, name: str) -> None:
    """A title that the text begins with, separators of lines inside a string, a paraphrase without a question."""
    doc = "Ada Brenner\nAda Brenner built\u2028bridges\x85in Graz."
    rows = [
        {"data_type": "qa", "question": ["Who?"], "answers": ["Ada\u2028Brenner"], "docs": [doc]},
        {"data_type": "paraphrase", "question": "", "answers": ["In Graz …"], "docs": [doc]},
    ]
    data = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert import_official(tmp_path / name, tmp_path / "records.jsonl") == 1
    (record,) = read_records(tmp_path / "records.jsonl").passage_qa
    assert (record.title, record.paraphrase) == ("Ada Brenner", "In Graz …")
    export_official(tmp_path / "records.jsonl", tmp_path / "back.jsonl")
    back = [json.loads(line) for line in (tmp_path / "back.jsonl").read_text("utf-8").split("\n") if line]
    assert back == [rows[0], {**rows[1], "question": [""]}]


@pytest.mark.parametrize(
    "row",
    [
        {"data_type": "chat", "question": ["q"], "answers": ["a"], "docs": ["d"]},
        {"data_type": "qa", "question": ["q", "r"], "answers": ["a"], "docs": ["d"]},
        {"data_type": "qa", "question": "q", "answers": ["a"], "docs": ["d"]},
        {"data_type": "qa", "question": ["q"], "answers": ["a"], "docs": ["d", "e"]},
        {"data_type": "paraphrase", "question": [""], "answers": [""], "docs": ["d"]},
        [],
    ],
)
def test_wrong_official_rows_are_named(tmp_path: Path, row: object) -> None:
    path = tmp_path / "rows.jsonl"
    good = {"data_type": "qa", "question": ["q"], "answers": ["a"], "docs": ["d"]}
    path.write_text(json.dumps(good) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(RecordError, match="row 2"):
        import_official(path, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


TEXTS = st.text(st.sampled_from("aß字.:\"{'"), min_size=1, max_size=20)


@given(
    title=TEXTS.filter(lambda text: text[-1] not in '.:"' and text[0] != '"') | st.just(""),
    text=TEXTS,
    pairs=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3),
    paraphrase=st.none() | TEXTS,
)
@hypothesis_settings(max_examples=60)
def test_any_record_survives_the_official_format(
    title: str, text: str, pairs: list[tuple[str, str]], paraphrase: str | None
) -> None:
    record = PassageQA("i", "s", title, "~" + text, tuple(QAPair(q, (a,)) for q, a in pairs), paraphrase)
    (returned,) = _from_official(json.loads(json.dumps(_to_official(record))))
    assert (returned.title, returned.text) == (record.title, record.text)
    assert (returned.pairs, returned.paraphrase) == (record.pairs, record.paraphrase)


def case_records(count: int) -> list[PassageQA]:
    made = []
    for number in range(count):
        item = passage(number)
        pairs = tuple(QAPair(p["question"], (p["answer"],)) for p in replies(number)["simple_qa"]["pairs"])
        made.append(PassageQA(item.id, item.source, item.title, item.text, pairs))
    return made


def test_the_bench_counts_right_and_wrong_passages() -> None:
    score = score_verifier(case_records(12), CheckSettings(), LexicalSettings())
    assert (score.passages, score.pairs, score.recall) == (12, 60, 1.0)
    assert score.rejection > 0.6
    blind = score_verifier(
        case_records(12),
        CheckSettings(),
        LexicalSettings(answer_support=0, joint_support=0, yes_no_support=0),
    )
    assert blind.rejection < score.rejection
    assert blind.precision < score.precision
    assert (score + blind).pairs == 120
