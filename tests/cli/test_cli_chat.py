"""chat as a conversation: commands, follow-ups, questions asked back; and ask and chat with a model behind a server."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from calling import Called, Clara, on_a_terminal

from llm_server import LLMServer, always, serving

pytest_plugins = ["cli_fixtures"]

KEYS = ["answer", "answered", "quote", "citations", "tokens", "seconds", "context"]
HEIGHT = "How high is the Eiffel Tower?"


def chat(clara: Clara, monkeypatch: pytest.MonkeyPatch, lines: list[str], *options: object) -> Called:
    """The output of a chat into which lines are piped."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    return clara("chat", *options)


def objects(called: Called) -> list[dict[str, Any]]:
    assert called.code == 0, called.err
    return [json.loads(line) for line in called.out.splitlines()]


def test_a_follow_up_stays_within_the_document_of_the_last_answer(
    clara: Clara, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--store", store, "--mode", "text", "--context", "memory", "--max-new-tokens", 2, "--json")
    first, second, plain = objects(chat(clara, monkeypatch, [HEIGHT, "Who built it?", HEIGHT], *options))
    tower = first["citations"][0]["document"]
    assert tower.endswith("eiffel-tower.md")
    assert list(first) == list(plain) == KEYS
    assert list(second) == [*KEYS, "understood"]
    assert second["understood"] == {
        "question": "Who built the Eiffel Tower?",
        "made_from": HEIGHT,
        "within": tower,
    }
    assert {cited["document"] for cited in second["citations"]} == {tower}


def test_people_see_how_a_follow_up_is_understood(clara: Clara, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--store", store, "--mode", "text", "--context", "memory", "--max-new-tokens", 2)
    called = chat(clara, monkeypatch, [HEIGHT, "Who built it?"], *options)
    assert (called.code, called.err) == (0, "")
    assert called.out.count("understood as: ") == 1
    assert "\nunderstood as: Who built the Eiffel Tower? (in " in called.out


def test_nothing_in_the_manual_is_said_not_looked_for_elsewhere(
    clara: Clara, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replies = {"Next message: ": {"simple_qa": "FOLLOW-UP: Who was Runge?"}}
    with serving(LLMServer(replies=replies, answer="330 metres")) as server:
        options = ("--store", store, "--mode", "text", "--llm", server.url, "--llm-model", "m", "--json")
        first, second = objects(chat(clara, monkeypatch, [HEIGHT, "And Runge?"], *options))
    assert first["answered"]
    assert (second["answer"], second["citations"]) == ("Not found in your documents.", [])
    assert second["understood"]["within"].endswith("eiffel-tower.md")
    assert "Runge" in (store.parent / "docs" / "coffee.html").read_text(), "another document has it"


def test_what_is_not_sure_is_asked_back_and_answered_by_a_name(
    clara: Clara, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--store", store, "--mode", "text", "--context", "memory", "--max-new-tokens", 2, "--json")
    lines = ["How tall is it?", "the Eiffel Tower"]
    asked, answered = objects(chat(clara, monkeypatch, lines, *options))
    assert asked == {"ask_back": "What does 'it' refer to? Ask with its name."}
    assert answered["citations"][0]["document"].endswith("eiffel-tower.md")
    called = chat(clara, monkeypatch, ["How tall is it?"], *options[:-1])
    assert called.out == "What does 'it' refer to? Ask with its name.\n"


def test_commands_are_known_or_refused(clara: Clara, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--store", store, "--mode", "text", "--context", "memory", "--k", 2, "--max-new-tokens", 2)
    lines = ["/sources", "/nonsense", "/quit now", HEIGHT, "/sources", "/help", "/exit", HEIGHT]
    early, unknown, more, answer, sources, helped = objects(chat(clara, monkeypatch, lines, *options, "--json"))
    assert early == {"error": "there is no answer yet whose sources could be shown; ask a question first"}
    assert unknown == {"error": "there is no command /nonsense; there are /help, /sources and /quit"}
    assert more == {"error": "/quit takes nothing after it, got 'now'"}
    assert list(helped) == ["help"]
    assert "/sources" in helped["help"]
    assert list(sources["sources"][0]) == ["document", "start", "end", "page", "heading", "text"]
    assert [s["text"] for s in sources["sources"]] == [c["text"] for c in answer["citations"]]
    assert any(s["heading"] for s in sources["sources"]), "a Markdown file has headings"
    people = chat(clara, monkeypatch, lines, *options)
    assert people.code == 0
    assert people.err.count("clara: ") == 3
    for source in sources["sources"]:
        assert source["text"].strip() in people.out, "whole, not its beginning"
        assert f"{source['document']}:{source['start']}-{source['end']}" in people.out


def test_a_path_is_a_question_not_a_command(clara: Clara, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--store", store, "--context", "memory", "--k", 1, "--max-new-tokens", 2, "--json")
    (answer,) = objects(chat(clara, monkeypatch, ["/etc/chess.conf is read by whom?"], *options))
    assert list(answer) == KEYS


@pytest.mark.parametrize("terminal", [False, True])
def test_ask_with_a_model_behind_a_server_loads_none_of_ours_for_text_search(
    clara: Clara, store: Path, monkeypatch: pytest.MonkeyPatch, *, terminal: bool
) -> None:
    with serving(LLMServer(answer="the 1889 World's Fair", tokens=(70, 8))) as server:
        options = ("--store", store, "--model", "nowhere", "--mode", "text", "--llm", server.url, "--llm-model", "m")
        if terminal:
            called = on_a_terminal(monkeypatch, "stdout", "ask", HEIGHT, *options)
        else:
            called = clara("ask", HEIGHT, *options)
            answer = clara("ask", HEIGHT, *options, "--json").json()
            assert list(answer) == KEYS
            assert answer["answered"]
            assert (answer["tokens"]["prompt"], answer["tokens"]["generated"]) == (70, 8)
    assert called.code == 0
    assert called.out.startswith("the 1889 World's Fair\n\n")
    assert "(quoted; read as text)" in called.out
    assert server.calls[0].body["max_tokens"] == 512


def test_ask_says_that_nothing_was_found(clara: Clara, store: Path) -> None:
    with serving(LLMServer(answer="Not found in your documents.")) as server:
        options = ("--store", store, "--llm", server.url, "--llm-model", "m", "--max-new-tokens", 9)
        answer = clara("ask", HEIGHT, *options, "--json").json()
    assert (answer["answer"], answer["answered"]) == ("Not found in your documents.", False)
    assert len(answer["citations"]) == 5
    assert server.calls[0].body["max_tokens"] == 9


def test_what_a_server_cannot_do_is_said_before_anything_is_loaded(clara: Clara, store: Path) -> None:
    options = ("--store", store, "--model", "nowhere", "--llm", "http://127.0.0.1:9", "--llm-model", "m")
    for wrong, named in (("--context", "memory"), ("--context", "none"), ("--wording", "quoted")):
        called = clara("ask", HEIGHT, *options, wrong, named)
        assert called.code == 2
        assert "a model behind a server" in called.err
    called = clara("ask", HEIGHT, "--store", store, "--llm", "http://127.0.0.1:9")
    assert called.code == 2
    assert "--llm-model is missing" in called.err
    with serving(LLMServer(script=always("401"))) as server:
        called = clara("ask", HEIGHT, "--store", store, "--mode", "text", "--llm", server.url, "--llm-model", "m")
    assert called.code == 2
    assert "401" in called.err


def test_chat_lets_the_servers_model_complete_follow_ups(
    clara: Clara, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replies = {
        "Next message: and who made it?": {"simple_qa": "FOLLOW-UP: Who built the Eiffel Tower?"},
        "Next message: What is espresso?": {"simple_qa": "ALONE: "},
        "Next message: and that?": {"simple_qa": "ASK: Do you mean the tower or the coffee?"},
        "Next message: since when is it?": {"simple_qa": "Sure, here you are!"},
    }
    lines = [HEIGHT, "and who made it?", "and that?", "What is espresso?", "since when is it?"]
    with serving(LLMServer(replies=replies, answer="So it is [1].")) as server:
        options = ("--store", store, "--mode", "text", "--llm", server.url, "--llm-model", "m", "--json")
        first, second, asked, alone, ruled = objects(chat(clara, monkeypatch, lines, *options))
    tower = first["citations"][0]["document"]
    assert second["understood"] == {"question": "Who built the Eiffel Tower?", "made_from": HEIGHT, "within": tower}
    assert {cited["document"] for cited in second["citations"]} == {tower}
    assert asked == {"ask_back": "Do you mean the tower or the coffee?"}
    assert "understood" not in alone
    assert ruled == {"ask_back": "What does 'it' refer to? Ask with its name."}, "a reply of no kind: by rules"
    rewriting = [
        call.body["messages"] for call in server.calls if "Next message: " in call.body["messages"][-1]["content"]
    ]
    assert len(rewriting) == 4, "the first message has no conversation"
    assert f"User: {HEIGHT}\nAssistant: So it is [1].\n" in rewriting[0][-1]["content"]
