"""The contract of replies: what is understood, what is a fault, and the prompts that ask for it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clara.errors import ConfigError
from clara.synth.drafts import (
    SCHEMAS,
    Draft,
    DraftFault,
    Feedback,
    Pair,
    Rejection,
    SourcePassage,
    Templates,
    Verdict,
    parse_pairs,
    parse_paraphrase,
    parse_verdict,
)
from clara.synth.rounds import _Drafted, _Work, _wrong_items
from clara.synth.settings import SynthSettings

PAIR = {"question": "Who?", "answer": "Ada"}
GOOD = json.dumps({"pairs": [PAIR, {"question": "Where?", "answer": "Turku"}]})
EXPECTED = (Pair("Who?", "Ada"), Pair("Where?", "Turku"))


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        f"Sure, here you are:\n```json\n{GOOD}\n```\nAnything else?",
        f"<think>pairs? {{maybe}} [1]</think>{GOOD}",
        f'First I thought of {{"pairs": []}}.</think>{GOOD}',
        f'In the form {{"pairs": [{{"question": "...", "answer": "..."}}]}}:\n{GOOD}',
        f"{'{x} ' * 100}{GOOD}",
        GOOD.replace("}]}", "},],}"),
        "{'pairs': [{'question': 'Who?', 'answer': \"Ada\"}, {'question': 'Where?', 'answer': 'Turku'}], 'more': None}",
        json.dumps([PAIR, {"question": "Where?", "answer": "Turku"}]),
        json.dumps({"note": "x", "pairs": [PAIR, {"question": "Where?", "answers": ["Turku", "Åbo"], "n": 1}]}),
        '{"pairs": [{"question": " Who?\\u0000", "answer": "Ada"}, {"question": "Where?", "answer": "Turku\n"}]}',
    ],
)
def test_pairs_are_found_in_any_wrapping(text: str) -> None:
    reply = parse_pairs(text)
    assert reply.pairs == EXPECTED
    assert reply.faults == ()


@pytest.mark.parametrize(
    ("text", "truncated", "kept", "reason"),
    [
        ("", False, 0, "reply_empty"),
        ("<think>hm", False, 0, "reply_empty"),
        ("I cannot do that.", False, 0, "reply_not_json"),
        ('{"result": 1}', False, 0, "reply_wrong_shape"),
        ('{"pairs": "none"}', False, 0, "reply_wrong_shape"),
        (json.dumps({"pairs": [PAIR, {"question": "Where?"}]}), False, 1, "reply_wrong_shape"),
        (json.dumps({"pairs": [PAIR, "x", {"question": "Q?", "answer": " "}]}), False, 1, "reply_wrong_shape"),
        (GOOD[:-25], True, 1, "reply_truncated"),
        (GOOD[:20], True, 0, "reply_truncated"),
        (GOOD.replace('"Turku"}]}', '"Turku"} and so on]}'), False, 2, "reply_not_json"),
        ("[" * 5000, False, 0, "reply_not_json"),
    ],
)
def test_what_breaks_the_contract_is_named(text: str, truncated: bool, kept: int, reason: str) -> None:  # noqa: FBT001
    reply = parse_pairs(text, truncated=truncated)
    assert len(reply.pairs) == kept
    assert {fault.reason for fault in reply.faults} == {reason}


def test_a_number_may_be_an_answer_and_no_pair_may_be_right() -> None:
    assert parse_pairs('{"pairs": [{"question": "How many?", "answer": 7}]}').pairs == (Pair("How many?", "7"),)
    empty = parse_pairs('{"pairs": []}')
    assert (empty.pairs, empty.faults) == ((), ())


def test_paraphrase_replies() -> None:
    assert parse_paraphrase('{"paraphrase": " So it is. "}') == "So it is."
    for text, reason in (
        ('{"paraphrase": 3}', "wrong_shape"),
        ('{"paraphrase": ""}', "wrong_shape"),
        ("x", "not_json"),
    ):
        fault = parse_paraphrase(text)
        assert isinstance(fault, DraftFault)
        assert fault.reason == f"reply_{reason}"


def test_a_remark_in_parts_is_no_remark_less() -> None:
    verdict = parse_verdict('{"consistent": true, "covered": true, "wrong": [{"label": "S1", "why": "it was Turku"}]}')
    assert verdict == Verdict(consistent=True, covered=True, wrong=("S1: it was Turku",))
    assert not verdict.passes
    nothing = parse_verdict('{"consistent": true, "covered": true, "missing": ["None."], "wrong": ["none"]}')
    assert nothing == Verdict(consistent=True, covered=True)


def test_what_is_missing_is_asked_for_even_if_the_judge_calls_it_covered() -> None:
    verdict = Verdict(consistent=True, covered=True, missing=("the year",))
    assert not verdict.passes
    work = _Work(SynthSettings.model_validate({"server": {"url": "http://x", "model": "m"}}))
    work.draft = DRAFT
    work.apply(verdict)
    assert (work.open_kinds(), work.feedback("simple_qa").missing) == (["simple_qa"], ("the year",))
    assert work.counted == {"judge_not_covered": 1}


def test_verdict_replies() -> None:
    verdict = parse_verdict('{"consistent": true, "covered": false, "missing": ["the year", ""], "wrong": []}')
    assert verdict == Verdict(consistent=True, covered=False, missing=("the year",))
    assert parse_verdict('{"consistent": "True", "covered": true}') == Verdict(consistent=True, covered=True)
    for text in ('{"consistent": 1, "covered": true}', '{"consistent": true, "covered": true, "wrong": "S1"}', "{}"):
        fault = parse_verdict(text)
        assert isinstance(fault, DraftFault)
        assert fault.reason == "reply_wrong_shape"


@given(st.text(max_size=80) | st.text(alphabet='{}[]":,pairsquetonw \\', max_size=60))
def test_no_reply_breaks_the_parser(text: str) -> None:
    for truncated in (False, True):
        reply = parse_pairs(text, truncated=truncated)
        assert reply.pairs or reply.faults or "pairs" in text
        assert parse_paraphrase(text, truncated=truncated)
        assert parse_verdict(text, truncated=truncated)


PRINTED = st.text(st.sampled_from('aß字"{}[]\\\\:,n'), min_size=1, max_size=20)


@given(st.lists(st.tuples(PRINTED, PRINTED), max_size=4), st.text(max_size=20), PRINTED)
def test_what_is_written_in_shape_is_read_back(pairs: list[tuple[str, str]], note: str, before: str) -> None:
    text = json.dumps({"note": note, "pairs": [{"question": q, "answer": a} for q, a in pairs]})
    assert parse_pairs(text).pairs == tuple(Pair(q, a) for q, a in pairs)
    assert parse_pairs(before.translate({91: None, 123: None}) + text).pairs == tuple(Pair(q, a) for q, a in pairs)


PASSAGE = SourcePassage("p", "s", "", "Ada built $100 engines in Turku.")
DRAFT = Draft((Pair("Who?", "Ada"), Pair("Where?", "Turku")), (Pair("What did Ada build?", "engines"),), "In Turku …")


def test_prompts_hold_the_passage_and_the_shape() -> None:
    templates = Templates.packaged()
    for kind in ("simple_qa", "complex_qa", "paraphrase"):
        system, user = templates.draft(kind, PASSAGE, Feedback())
        assert system["role"] == "system"
        assert PASSAGE.text in user["content"]
        assert "further attempt" not in user["content"]
        assert ('"paraphrase"' if kind == "paraphrase" else '"pairs"') in user["content"]
    prompt = templates.judge(PASSAGE, DRAFT)[1]["content"]
    assert all(key in prompt for key in SCHEMAS["verdict"]["required"])
    assert "S2. Question: Where? Answer: Turku" in prompt
    assert "C1. Question: What did Ada build?" in prompt
    assert "P. In Turku …" in prompt
    assert SCHEMAS["simple_qa"]["required"] == ["pairs"]


def test_a_further_attempt_tells_what_was_wrong() -> None:
    rejected = (Rejection("simple_qa", "Question: x Answer: y", DraftFault("length", "too short")),)
    told = Feedback(("Who?",), rejected, ("the price",))
    prompt = Templates.packaged().draft("simple_qa", PASSAGE, told)[1]["content"]
    assert all(part in prompt for part in ("further attempt", "- Who?", "too short", "- the price"))


def test_templates_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "paraphrase.txt").write_text('${title} ${passage} {"paraphrase": "..."}')
    own = Templates.read(tmp_path)
    assert own.draft("paraphrase", PASSAGE, Feedback())[1]["content"].startswith("(none) Ada built $100")
    assert own.hashes["paraphrase"] != Templates.packaged().hashes["paraphrase"]
    assert own.hashes["judge"] == Templates.packaged().hashes["judge"]
    (tmp_path / "paraphrase.txt").write_text("${text} costs $5")
    with pytest.raises(ConfigError, match=r"paraphrase\.txt"):
        Templates.read(tmp_path)


@pytest.mark.parametrize(
    ("remarks", "left"),
    [
        (("S1: it was Eva",), (("Where?",), True, "In Turku …")),
        (("- C1) no", "p: too free"), (("Who?", "Where?"), False, "")),
        (("“What did Ada build?” engines: not stated",), (("Who?", "Where?"), False, "In Turku …")),
        (("S9: nothing there",), ((), False, "")),
        ((), ((), False, "")),
    ],
)
def test_a_verdict_takes_out_what_it_names_or_all(remarks: tuple[str, ...], left: tuple[object, ...]) -> None:
    wrong = _wrong_items(Verdict(consistent=False, covered=True, wrong=remarks), DRAFT)
    rest = DRAFT.without(wrong.keys())
    assert (tuple(pair.question for pair in rest.simple), bool(rest.complex), rest.paraphrase) == left


def test_complex_questions_are_not_asked_for_for_ever() -> None:
    """A passage of one fact has none: after two tries, or an empty reply, the record goes without."""
    settings = SynthSettings.model_validate({"server": {"url": "http://x", "model": "m"}})
    work = _Work(settings)
    rejected = Rejection("complex_qa", "Question: x", DraftFault("length", "too short"))
    work.take("simple_qa", _Drafted(EXPECTED, "", (), answered=True))
    work.take("paraphrase", _Drafted((), "So.", (), answered=True))
    work.take("complex_qa", _Drafted((), "", (rejected,), answered=True))
    assert work.open_kinds() == ["complex_qa"]
    work.take("complex_qa", _Drafted((), "", (rejected,), answered=True))
    assert work.open_kinds() == []
    assert work.ready
    other = _Work(settings)
    other.take("complex_qa", _Drafted((), "", (), answered=True))
    assert "complex_qa" not in other.open_kinds()


def test_settings_report_every_fault_at_once() -> None:
    from clara.config import check  # noqa: PLC0415

    values = {
        "server": {"url": "localhost:8000", "model": ""},
        "budget": {"max_cost": 3},
        "rounds": 4,
    }
    with pytest.raises(ConfigError, match=r"4 fault\(s\)") as caught:
        check(SynthSettings, values, source="test.toml")
    for named in ("server.url", "server.model", "price_in", "rounds"):
        assert named in str(caught.value)


@pytest.mark.parametrize(
    ("given_url", "used"),
    [
        ("http://h:1", "http://h:1/v1"),
        ("http://h:1/", "http://h:1/v1"),
        ("https://h/openai/v1/", "https://h/openai/v1"),
        ("http://h:1/v1/chat/completions", "http://h:1/v1"),
    ],
)
def test_addresses_are_completed(given_url: str, used: str) -> None:
    settings = SynthSettings.model_validate({"server": {"url": given_url, "model": "m"}})
    assert settings.server.url == used
