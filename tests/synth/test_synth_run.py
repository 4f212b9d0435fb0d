"""Whole runs against the scripted server: what is written, what is counted, what is survived."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cases import knowledge, passage, replies, write_passages

from clara.data import read_records
from clara.errors import SynthesisError
from clara.synth.drafts import SourcePassage
from clara.synth.output import SynthReport
from clara.synth.run import SynthJob, SynthProgress, synthesize
from clara.synth.settings import SynthSettings
from clara.synth.sources import Sources, read_sources
from llm_server import LLMServer, always, first, serving

PAST = "Wed, 21 Oct 2015 07:28:00 GMT"


def settings(llm: LLMServer, /, **changes: object) -> SynthSettings:
    values: dict[str, Any] = {
        "server": {"url": llm.url, "model": "scripted", "first_wait_seconds": 0.01, "max_wait_seconds": 0.3},
    }
    for key, value in changes.items():
        values[key] = {**values[key], **value} if isinstance(value, dict) and key in values else value
    return SynthSettings.model_validate(values)


def run(tmp_path: Path, llm: LLMServer, count: int, /, *, resume: bool = False, **changes: object) -> SynthReport:
    sources = read_sources([write_passages(tmp_path / "in.jsonl", count)], passage_words=190, min_passage_words=8)
    return synthesize(sources, settings(llm, **changes), SynthJob(tmp_path / "out.jsonl", resume=resume))


def records(tmp_path: Path, name: str = "out.jsonl") -> list[dict[str, Any]]:
    path = tmp_path / name
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []


def test_good_replies_become_records(tmp_path: Path) -> None:
    with serving(LLMServer(knowledge(6))) as server:
        report = run(tmp_path, server, 6)
    written = {record["id"]: record for record in records(tmp_path)}
    assert sorted(written) == [f"case:{n}" for n in range(6)]
    first = written["case:0"]
    assert first["text"] == passage(0).text
    assert [pair["question"] for pair in first["qa"]] == [p["question"] for p in replies(0)["simple_qa"]["pairs"]]
    assert first["qa"][0]["answers"] == ["Turku"]
    assert first["complex_qa"][0]["answers"] == ["Ada Brenner built bridges"]
    assert first["paraphrase"] == replies(0)["paraphrase"]["paraphrase"]
    assert first["rounds"] == 1
    provenance = first["provenance"]
    assert provenance["model"] == "scripted"
    assert provenance["sampling"]["temperature"] == 0.7
    assert set(provenance["templates"]) >= {"simple_qa", "complex_qa", "paraphrase", "judge"}
    assert provenance["date"].endswith("+00:00")
    assert (report.accepted, report.unfinished, report.accepted_by_round) == (6, 0, {1: 6})
    assert report.run.requests == len(server.calls) == 6 * 4
    assert report.run.spent.total == 6 * 4 * 150


def test_records_are_what_training_reads(tmp_path: Path) -> None:
    with serving(LLMServer(knowledge(3))) as server:
        run(tmp_path, server, 3)
    reading = read_records(tmp_path / "out.jsonl")
    assert not reading.rejected
    assert not reading.left_out
    record = next(record for record in reading.passage_qa if record.id == "case:1")
    assert len(record.pairs) == 5
    assert len(record.complex_pairs) == 1
    assert record.paraphrase == replies(1)["paraphrase"]["paraphrase"]


def test_requests_state_sampling_and_schema(tmp_path: Path) -> None:
    with serving(LLMServer(knowledge(1))) as server:
        run(
            tmp_path,
            server,
            1,
            sampling={"seed": 7, "extra_body": {"chat_template_kwargs": {"enable_thinking": False}}},
        )
    bodies = {call.kind: call.body for call in server.calls}
    assert bodies["simple_qa"]["seed"] == 7
    assert bodies["simple_qa"]["chat_template_kwargs"] == {"enable_thinking": False}
    schema = bodies["simple_qa"]["response_format"]["json_schema"]["schema"]
    assert schema["required"] == ["pairs"]
    assert bodies["judge"]["temperature"] == 0.0
    assert bodies["simple_qa"]["temperature"] == 0.7


@pytest.mark.parametrize(
    ("fault", "counted"),
    [
        ("429", "status_429"),
        ("500", "status_500"),
        ("503", "status_503"),
        ("disconnect", "connection"),
        ("cut_body", "connection"),
        ("html", "broken_reply"),
        ("empty_choices", "broken_reply"),
    ],
)
def test_passing_faults_of_the_server_are_survived(tmp_path: Path, fault: str, counted: str) -> None:
    """Every third request fails; the result is that of an undisturbed run."""
    llm = LLMServer(knowledge(4), script=lambda asked: fault if asked.number % 3 == 0 else "")
    with serving(llm) as server:
        report = run(tmp_path, server, 4)
    assert report.accepted == 4
    assert report.run.retried == {counted: sum(call.fault == fault for call in server.calls)}
    assert report.run.retried[counted] >= 5
    assert report.run.spent.total == 4 * 4 * 150


@pytest.mark.parametrize("fault", ["slow", "trickle"])
def test_slow_replies_time_out_and_are_asked_again(tmp_path: Path, fault: str) -> None:
    llm = LLMServer(knowledge(1), script=lambda asked: fault if asked.number == 2 else "")
    with serving(llm) as server:
        report = run(tmp_path, server, 1, server={"timeout_seconds": 0.4})
    assert report.accepted == 1
    assert report.run.retried == {"timeout": 1}


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("wrong_shape", "reply_wrong_shape"),
        ("prose", "reply_not_json"),
        ("no_content", "reply_empty"),
        ("truncated", "reply_truncated"),
    ],
)
def test_bad_replies_are_counted_and_asked_again(tmp_path: Path, fault: str, reason: str) -> None:
    """The first four requests (all drafts and a judge, or drafts again) get a bad reply."""
    llm = LLMServer(knowledge(1), script=first(3, fault))
    with serving(llm) as server:
        report = run(tmp_path, server, 1)
    assert report.accepted == 1
    assert report.rejections[reason] >= 2
    assert records(tmp_path)[0]["rounds"] == 2
    assert records(tmp_path)[0]["provenance"]["rejections"][reason] >= 2


def test_fenced_replies_are_understood(tmp_path: Path) -> None:
    with serving(LLMServer(knowledge(2), script=always("fenced"))) as server:
        report = run(tmp_path, server, 2)
    assert (report.accepted, dict(report.rejections)) == (2, {})


@pytest.mark.parametrize(
    ("fault", "sent"),
    [("no_format", None), ("no_schema", "json_object"), ("schema_not_implemented", "json_object")],
)
def test_servers_without_structured_output_are_asked_in_words(tmp_path: Path, fault: str, sent: str | None) -> None:
    llm = LLMServer(knowledge(4), script=always(fault))
    with serving(llm) as server:
        report = run(tmp_path, server, 4, server={"concurrency": 1})
        assert report.accepted == 4
        first_run = len(server.calls)
        later = server.calls[-1].body.get("response_format", {}).get("type")
        (tmp_path / "out.jsonl").unlink()
        again = run(tmp_path, server, 4)
    assert later == sent
    # One passage asks three things at once, each tries the stricter ways first; after that it is known.
    assert first_run <= 4 * 4 + 3 * (2 if sent is None else 1)
    assert again.accepted == 4
    assert len(server.calls) == first_run, "everything was in the cache, the way of asking too"


def test_what_is_wrong_or_missing_is_asked_for_again_with_the_reason(tmp_path: Path) -> None:
    known = knowledge(1)
    (text,) = known
    wrong = {"consistent": False, "covered": False, "missing": ["the move to Lyon"], "wrong": ["S1: it was Turku"]}
    pairs = replies(0)["simple_qa"]["pairs"]
    known[text]["simple_qa"] = [{"pairs": pairs[:4]}, {"pairs": [pairs[4]]}]
    known[text]["judge"] = [wrong, {"consistent": True, "covered": True, "missing": [], "wrong": []}]
    with serving(LLMServer(known)) as server:
        report = run(tmp_path, server, 1)
    (record,) = records(tmp_path)
    assert record["rounds"] == 2
    assert [pair["question"] for pair in record["qa"]] == [pair["question"] for pair in pairs[1:]]
    assert report.rejections == {"judge_wrong": 1, "judge_not_covered": 1}
    second = [call for call in server.calls if call.kind == "simple_qa"][1].body["messages"][-1]["content"]
    assert "the move to Lyon" in second
    assert "it was Turku" in second
    assert pairs[1]["question"] in second, "questions that are there are not to be repeated"
    assert server.kinds().count("paraphrase") == 1, "what is good is not asked for again"


def test_a_passage_that_never_passes_is_dropped_after_its_rounds(tmp_path: Path) -> None:
    known = knowledge(2)
    known[passage(0).text]["judge"] = {"consistent": True, "covered": False, "missing": ["everything"], "wrong": []}
    known[passage(1).text]["paraphrase"] = {"paraphrase": passage(1).text}
    with serving(LLMServer(known)) as server:
        report = run(tmp_path, server, 2, max_rounds=4)
    assert report.accepted == 0
    assert report.dropped == {"judge_not_covered": 1, "no_paraphrase": 1}
    assert report.rejections["paraphrase_is_copy"] == 4
    dropped = {record["id"]: record for record in records(tmp_path, "out.jsonl.dropped.jsonl")}
    assert dropped["case:0"]["rounds"] == dropped["case:1"]["rounds"] == 4
    assert server.kinds().count("judge") == 4
    assert server.kinds().count("paraphrase") == 1 + 4, "what is good is not asked for again"


def test_a_judge_may_be_content_at_last_with_what_is_there(tmp_path: Path) -> None:
    """What it misses is asked for; if nothing new comes, it is asked again what it thinks of what there is."""
    known = knowledge(1)
    picky = {"consistent": True, "covered": False, "missing": ["the weather"], "wrong": []}
    known[passage(0).text]["judge"] = [picky, picky, {"consistent": True, "covered": True, "missing": [], "wrong": []}]
    with serving(LLMServer(known)) as server:
        report = run(tmp_path, server, 1)
    assert (report.accepted_by_round, report.rejections) == ({3: 1}, {"judge_not_covered": 2, "duplicate_question": 10})
    assert server.kinds().count("simple_qa") == 3


def test_odd_but_right_envelopes_are_read(tmp_path: Path) -> None:
    """Content in parts, no token counts, a pause given as a date."""
    llm = LLMServer(knowledge(2), script=lambda asked: "429" if asked.number == 2 else "parts", retry_after=PAST)
    with serving(llm) as server:
        report = run(tmp_path, server, 2)
    assert report.accepted == 2
    assert report.run.retried == {"status_429": 1}
    assert report.run.spent.prompt == 0
    assert report.run.spent.completion > 100, "estimated where the server does not count"


def test_pairs_of_another_passage_are_rejected_even_if_the_judge_likes_them(tmp_path: Path) -> None:
    known = knowledge(2)
    known[passage(0).text] = replies(1)
    with serving(LLMServer(known)) as server:
        report = run(tmp_path, server, 2, max_rounds=2)
    assert [record["id"] for record in records(tmp_path)] == ["case:1"]
    assert sum(report.dropped.values()) == 1


def test_one_pair_that_fits_by_chance_does_not_save_a_reply_about_something_else(tmp_path: Path) -> None:
    known = knowledge(1)
    (text,) = known
    strange = [
        {"question": f"Which river flows through {city}?", "answer": f"the {river}"}
        for city, river in (("Vienna", "Danube"), ("Cologne", "Rhine"), ("Rome", "Tiber"))
    ]
    fitting = replies(0)["simple_qa"]["pairs"][:1]
    known[text]["simple_qa"] = [{"pairs": strange + fitting}, {"pairs": strange[:2] + fitting}]
    with serving(LLMServer(known)) as server:
        report = run(tmp_path, server, 1, max_rounds=2)
    assert report.rejections["reply_off_passage"] == 1
    assert report.accepted_by_round == {2: 1}, "two strange pairs alone prove nothing"


def test_without_a_language_model_as_judge_nothing_is_judged_over_http(tmp_path: Path) -> None:
    with serving(LLMServer(knowledge(2))) as server:
        report = run(tmp_path, server, 2, judge="lexical")
    assert report.accepted == 2
    assert "judge" not in server.kinds()


def test_concurrency_is_limited(tmp_path: Path) -> None:
    with serving(LLMServer(knowledge(8), delay=0.02)) as server:
        run(tmp_path, server, 8, server={"concurrency": 3})
    assert server.most_at_once == 3


def test_a_429_makes_every_request_wait(tmp_path: Path) -> None:
    """After the first 429 no request is sent before the pause is over."""
    llm = LLMServer(
        knowledge(6), script=lambda asked: "429" if asked.number == 1 else "", retry_after="0.3", delay=0.01
    )
    with serving(llm) as server:
        report = run(tmp_path, server, 6, server={"concurrency": 2, "max_wait_seconds": 5})
    assert report.accepted == 6
    assert report.run.seconds >= 0.3


def test_a_token_budget_stops_the_run_and_resume_goes_on(tmp_path: Path) -> None:
    with serving(LLMServer(knowledge(6), tokens=(600, 200))) as server:
        budget = 12_000
        changes: dict[str, Any] = {"server": {"concurrency": 2}, "sampling": {"max_output_tokens": 256}}
        early = run(tmp_path, server, 6, budget={"max_tokens": budget}, **changes)
        assert early.run.stopped == "budget"
        assert 8_000 <= early.run.spent.total <= budget
        assert 0 < early.accepted < 6
        still = run(tmp_path, server, 6, resume=True, budget={"max_tokens": budget}, **changes)
        assert still.run.stopped == "budget"
        assert still.run.spent.total <= budget, "the budget counts earlier runs"
        last = run(tmp_path, server, 6, resume=True, **changes)
    assert (last.accepted, last.unfinished) == (6, 0)
    assert last.run.spent.total == 6 * 4 * 800, "nothing was paid twice"
    assert len({record["id"] for record in records(tmp_path)}) == len(records(tmp_path)) == 6


def test_a_server_that_takes_less_than_the_one_before_is_asked_for_less(tmp_path: Path) -> None:
    """What the first took is remembered; the second refuses it, and what the first answered is not asked again."""
    with serving(LLMServer(knowledge(4), tokens=(600, 200))) as server:
        run(tmp_path, server, 4, budget={"max_tokens": 9_000}, server={"concurrency": 2})
        stored = len(server.calls)
    with serving(LLMServer(knowledge(4), script=always("no_format"), tokens=(600, 200))) as server:
        report = run(tmp_path, server, 4, resume=True)
        answered = [call for call in server.calls if "response_format" not in call.body]
    assert (report.accepted, report.dropped) == (4, {})
    assert stored + len(answered) == 4 * 4


def test_a_passage_that_is_there_twice_is_asked_about_once(tmp_path: Path) -> None:
    item = passage(0)
    twins = tuple(SourcePassage(name, "x", item.title, item.text) for name in ("a", "b"))
    with serving(LLMServer(knowledge(1), delay=0.02)) as server:
        report = synthesize(Sources(twins, {}, ()), settings(server), SynthJob(tmp_path / "out.jsonl"))
    assert sorted(record["id"] for record in records(tmp_path)) == ["a", "b"]
    assert report.accepted == 2
    assert len(server.calls) == 4


def test_a_token_budget_holds_for_a_server_that_counts_much(tmp_path: Path) -> None:
    """Nobody knows before the first reply; eight requests at once would spend three times the budget."""
    with serving(LLMServer(knowledge(8), tokens=(2000, 1500), delay=0.02)) as server:
        report = run(tmp_path, server, 8, budget={"max_tokens": 9_000})
    assert report.run.stopped == "budget"
    assert 3_500 <= report.run.spent.total <= 9_000


def test_a_money_budget_stops_the_run(tmp_path: Path) -> None:
    with serving(LLMServer(knowledge(6), tokens=(1000, 1000))) as server:
        report = run(
            tmp_path,
            server,
            6,
            budget={"max_cost": 0.03, "price_in": 1.0, "price_out": 3.0},
            server={"concurrency": 1},
            sampling={"max_output_tokens": 1000},
        )
    assert report.run.stopped == "budget"
    assert 0.02 <= report.run.cost <= 0.03


def test_a_server_that_stays_down_leaves_passages_open(tmp_path: Path) -> None:
    llm = LLMServer(knowledge(3), script=lambda asked: "500" if asked.number > 4 else "")
    with serving(llm) as server:
        report = run(tmp_path, server, 3, server={"concurrency": 1, "retries": 1})
        assert (report.accepted, report.unfinished) == (1, 2)
        llm.script = always("")
        report = run(tmp_path, server, 3, resume=True)
    assert (report.accepted, report.unfinished) == (3, 0)


def test_nothing_listening_ends_the_run_with_the_remedy(tmp_path: Path) -> None:
    server = LLMServer({}, url="http://127.0.0.1:9/v1")
    report = run(tmp_path, server, 2)
    assert report.run.stopped == "server"
    assert "nothing answers at http://127.0.0.1:9/v1" in report.run.message
    assert report.unfinished == 2


@pytest.mark.parametrize(("fault", "said"), [("401", "CLARA_LLM_API_KEY"), ("404", "model's name"), ("quota", "quota")])
def test_a_server_that_refuses_everything_ends_the_run(tmp_path: Path, fault: str, said: str) -> None:
    llm = LLMServer(knowledge(2), script=always(fault))
    with serving(llm) as server, pytest.raises(SynthesisError, match=said):
        run(tmp_path, server, 2)


def test_one_refused_passage_is_dropped_alone(tmp_path: Path) -> None:
    """The third passage's requests are refused (too long, say); the others go on."""
    refused = passage(2).text
    llm = LLMServer(knowledge(3), script=lambda asked: "400" if refused in asked.prompt else "")
    with serving(llm) as server:
        report = run(tmp_path, server, 3)
    assert (report.accepted, report.dropped) == (2, {"request_refused": 1})
    assert [record["id"] for record in records(tmp_path, "out.jsonl.dropped.jsonl")] == ["case:2"]


def test_passages_refused_before_the_first_reply_are_dropped_after_it(tmp_path: Path) -> None:
    refused = (passage(0).text, passage(1).text)
    llm = LLMServer(knowledge(3), script=lambda asked: "400" if any(text in asked.prompt for text in refused) else "")
    with serving(llm) as server:
        report = run(tmp_path, server, 3, server={"concurrency": 1})
    assert (report.accepted, report.dropped, report.unfinished) == (1, {"request_refused": 2}, 0)
    assert [record["id"] for record in records(tmp_path, "out.jsonl.dropped.jsonl")] == ["case:0", "case:1"]


@pytest.mark.parametrize("count", [1, 4, 8])
def test_a_server_that_refuses_every_passage_ends_the_run_and_costs_none(tmp_path: Path, count: int) -> None:
    """It may want another name of a parameter, say: the passages are there for the run that uses it."""
    llm = LLMServer(knowledge(count), script=always("400"))
    with serving(llm) as server:
        with pytest.raises(SynthesisError, match=r"every passage so far .* was refused.*scripted 400.*--resume"):
            run(tmp_path, server, count)
        assert len(server.calls) <= count * 3 * 3
        assert records(tmp_path) == records(tmp_path, "out.jsonl.dropped.jsonl") == []
        llm.script = always("")
        report = run(tmp_path, server, count, resume=True)
    assert (report.accepted, report.dropped, report.unfinished) == (count, {}, 0)


def test_passages_out_of_the_cache_do_not_make_a_refusal_theirs(tmp_path: Path) -> None:
    with serving(LLMServer(knowledge(1))) as server:
        run(tmp_path, server, 1)
    (tmp_path / "out.jsonl").unlink()
    llm = LLMServer(knowledge(3), script=always("400"))
    with serving(llm) as server, pytest.raises(SynthesisError, match="was refused"):
        run(tmp_path, server, 3)
    assert [record["id"] for record in records(tmp_path)] == ["case:0"]
    assert records(tmp_path, "out.jsonl.dropped.jsonl") == []


def test_progress_tells_speed_and_the_time_left(tmp_path: Path) -> None:
    seen: list[SynthProgress] = []
    with serving(LLMServer(knowledge(4), delay=0.01)) as server:
        sources = read_sources([write_passages(tmp_path / "in.jsonl", 4)], passage_words=190, min_passage_words=8)
        synthesize(sources, settings(server), SynthJob(tmp_path / "out.jsonl", on_progress=seen.append))
    assert seen[0].seconds_left is None
    assert seen[-1].finished == seen[-1].total == 4
    assert seen[-1].seconds_left == 0
    assert seen[-1].tokens_per_second == pytest.approx(4 * 4 * 150 / seen[-1].seconds)
