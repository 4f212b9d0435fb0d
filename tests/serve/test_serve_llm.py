"""Answers by a language model behind a server, through our server and through MCP's tools."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from serving import Running, Serve

from clara.answering import NOT_FOUND
from clara.config import LLMSettings
from clara.llm import LLM
from clara.serve.mcp import StoreTools
from llm_server import LLMServer, always, serving

pytest_plugins = ["server_fixtures"]

HEIGHT = "How high is the Eiffel Tower?"
ANSWER = "It is a wrought-iron lattice tower [1]."


@pytest.fixture
def upstream() -> Iterator[LLMServer]:
    with serving(LLMServer(answer=ANSWER, tokens=(321, 12))) as server:
        yield server


@pytest.fixture
def server(serve: Serve, upstream: LLMServer) -> Iterator[Running]:
    with LLM(LLMSettings(url=upstream.url, model="m", retries=0)) as llm:
        yield serve("docs", llm=llm)


def ask(server: Running, *said: str, **more: Any) -> Any:  # noqa: ANN401
    roles = ("user", "assistant")
    messages = [{"role": roles[place % 2], "content": text} for place, text in enumerate(said)]
    return server.client.post("/v1/chat/completions", json={"messages": messages, **more})


def test_the_answer_is_the_models_with_the_stores_citations(server: Running, upstream: LLMServer) -> None:
    made = ask(server, HEIGHT, clara={"mode": "text", "k": 2}).json()
    message = made["choices"][0]["message"]
    assert message["content"] == ANSWER
    assert made["usage"]["prompt_tokens"] == 1  # as the scripted server counts a stream
    assert made["clara"]["answered"] is True
    cited = [note["url_citation"] for note in message["annotations"]]
    assert cited[0]["title"] == "eiffel-tower.md"
    (call,) = upstream.calls
    assert call.body["max_tokens"] == 512
    page = server.client.get(cited[0]["url"].replace("#char=", "?char="))
    quote = server.app.state.server.library.all()["docs"].rag.ask(HEIGHT, 2, mode="text").quote
    assert quote is not None
    assert page.text.partition("<mark>")[2].partition("</mark>")[0] == quote.sentence


def test_it_is_streamed_as_the_model_writes(server: Running) -> None:
    answer = ask(server, HEIGHT, stream=True, stream_options={"include_usage": True}, clara={"mode": "text"})
    *chunks, end = [line[6:] for line in answer.text.split("\n") if line.startswith("data: ")]
    assert end == "[DONE]"
    parsed = [json.loads(chunk) for chunk in chunks]
    pieces = [c["choices"][0]["delta"].get("content") for c in parsed[1:-2]]
    assert len(pieces) > 3
    assert "".join(pieces) == ANSWER
    assert parsed[-2]["choices"][0]["delta"]["annotations"]
    assert parsed[-2]["clara"]["answered"] is True
    assert parsed[-1]["usage"]["prompt_tokens"] == 1


@pytest.mark.parametrize("stream", [False, True])
def test_it_may_say_that_there_is_no_answer(server: Running, upstream: LLMServer, *, stream: bool) -> None:
    upstream.answer = NOT_FOUND
    answer = ask(server, HEIGHT, stream=stream)
    assert NOT_FOUND.split()[0] in answer.text
    told = json.loads(answer.text.split("data: ")[-2]) if stream else answer.json()
    assert told["clara"]["answered"] is False
    choice = told["choices"][0]
    assert choice["delta" if stream else "message"]["annotations"] == []


def test_a_follow_up_is_rewritten_by_the_model(server: Running, upstream: LLMServer) -> None:
    rewritten = "FOLLOW-UP: Who built the Eiffel Tower?"
    upstream.replies = {"And who built it?": {"simple_qa": rewritten}, HEIGHT: {}}
    made = ask(server, HEIGHT, "330 metres", "And who built it?").json()
    assert made["clara"]["question"] == "Who built the Eiffel Tower?"
    assert made["clara"]["made_from"] == HEIGHT
    assert len(upstream.calls) == 2


@pytest.mark.parametrize("stream", [False, True])
def test_a_clients_task_goes_to_the_model_alone(server: Running, upstream: LLMServer, *, stream: bool) -> None:
    task = "### Task:\nGenerate a title for the chat."
    upstream.answer = "<think>hm</think>Tower height"
    answer = ask(server, task, stream=stream)
    assert "Tower height" in answer.text
    assert "think" not in answer.text
    (call,) = upstream.calls
    assert call.body["messages"] == [{"role": "user", "content": task}]


def test_what_it_cannot_do_is_refused_before_it_is_asked(server: Running, upstream: LLMServer) -> None:
    for fields in ({"context": "memory"}, {"context": "none"}, {"wording": "quoted"}):
        refused = ask(server, HEIGHT, clara=fields)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_value")
    assert upstream.calls == []


def test_a_failing_model_is_told_without_its_address(server: Running, upstream: LLMServer) -> None:
    upstream.script = always("500")
    refused = ask(server, HEIGHT)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "upstream_unavailable")
    assert upstream.url not in refused.text
    upstream.script = always("401")
    assert ask(server, HEIGHT).json()["error"]["code"] == "upstream_error"


def test_agents_get_its_answers(server: Running, upstream: LLMServer, tmp_path: Any) -> None:  # noqa: ANN401
    rag = server.app.state.server.library.all()["docs"].rag
    made = StoreTools(lambda: rag, tmp_path).ask(HEIGHT, mode="text")
    assert (made.answer, made.answered) == (ANSWER, True)
    assert made.quote is not None
    assert made.quote.document.endswith("eiffel-tower.md")
    assert upstream.calls[0].body["max_tokens"] == 512
