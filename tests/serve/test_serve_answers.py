"""Answers over HTTP, with OpenAI's own client and with raw requests."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from openai import APIError, BadRequestError, NotFoundError, OpenAI
from serving import Running, Serve

from clara.serve.access import Limits
from clara.serve.answers import Ask

pytest_plugins = ["server_fixtures"]

HEIGHT = "How high is the Eiffel Tower?"
FIELDS = {"clara": {"always_answer": True, "wording": "quoted", "mode": "text"}}


@pytest.fixture
def openai(shared: Running) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{shared.base}/v1", api_key="empty", max_retries=0) as client:
        yield client


def events(text: str) -> list[str]:
    """The data of server-sent events."""
    return [line.removeprefix("data: ") for line in text.split("\n") if line.startswith("data: ")]


def test_models_are_the_stores(openai: OpenAI) -> None:
    assert [model.id for model in openai.models.list()] == ["docs"]
    assert openai.models.retrieve("docs").owned_by == "clara"


def test_a_chat_answer_counts_and_cites(openai: OpenAI, shared: Running) -> None:
    made = openai.chat.completions.create(
        model="docs", messages=[{"role": "user", "content": HEIGHT}], max_tokens=8, extra_body=FIELDS
    )
    message = made.choices[0].message
    assert message.role == "assistant"
    assert made.usage is not None
    assert made.usage.total_tokens == made.usage.prompt_tokens + made.usage.completion_tokens
    details = (made.model_extra or {})["clara"]
    assert details["memory_tokens"] > 0
    assert details["text_equivalent_tokens"] > made.usage.prompt_tokens
    assert details["answered"] is True
    assert message.annotations
    cited = message.annotations[0].url_citation
    assert (cited.start_index, cited.end_index) == (0, len(message.content or ""))
    address = urlsplit(cited.url)
    page = shared.client.get(address.path, params={"char": address.fragment.removeprefix("char=")})
    assert page.status_code == 200
    assert "<mark>" in page.text


def test_a_stream_has_what_strict_clients_want(shared: Running) -> None:
    body = {
        "model": "docs",
        "messages": [{"role": "user", "content": HEIGHT}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_completion_tokens": 8,
        **FIELDS,
    }
    answer = shared.client.post("/v1/chat/completions", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    *chunks, end = events(answer.text)
    assert end == "[DONE]"
    parsed: list[dict[str, Any]] = [json.loads(chunk) for chunk in chunks]
    for chunk in parsed:
        assert {"id", "object", "created", "model", "choices"} <= chunk.keys()
        assert all({"index", "delta"} <= choice.keys() for choice in chunk["choices"])
    assert len({chunk["id"] for chunk in parsed}) == 1
    *deltas, last, counted = parsed
    assert deltas[0]["choices"][0]["delta"]["role"] == "assistant"
    assert last["choices"][0]["finish_reason"] in {"stop", "length"}
    assert last["choices"][0]["delta"]["annotations"]
    assert last["clara"]["memory_tokens"] > 0
    assert counted["choices"] == []
    whole = shared.client.post("/v1/chat/completions", json={**body, "stream": False}).json()
    said = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in deltas)
    assert said.strip() == whole["choices"][0]["message"]["content"]
    assert counted["usage"]["prompt_tokens"] == whole["usage"]["prompt_tokens"]


def test_openai_reads_the_stream(openai: OpenAI) -> None:
    stream = openai.chat.completions.create(
        model="docs", messages=[{"role": "user", "content": HEIGHT}], stream=True, max_tokens=4
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason is not None


def test_completions_whole_and_streamed(openai: OpenAI) -> None:
    whole = openai.completions.create(model="docs", prompt=HEIGHT, max_tokens=4, extra_body=FIELDS)
    pieces = openai.completions.create(model="docs", prompt=HEIGHT, max_tokens=4, stream=True, extra_body=FIELDS)
    assert "".join(piece.choices[0].text for piece in pieces).strip() == whole.choices[0].text
    assert whole.usage is not None


def test_a_chat_that_llamaindex_or_langchain_wrote_as_a_prompt_is_read_as_one(shared: Running) -> None:
    def asked(prompt: str) -> tuple[str, str | None]:
        body = {"prompt": prompt, "max_tokens": 1, **FIELDS}
        told = shared.client.post("/v1/completions", json=body).json()["clara"]
        return told["question"], told["made_from"]

    built = ("Who built the Eiffel Tower?", HEIGHT)
    assert asked(f"system: Be brief.\nuser: {HEIGHT}\nassistant: 330 m\nuser: Who built it?\nassistant: ") == built
    assert asked(f"System: Be brief.\nHuman: {HEIGHT}\nAI: 330 m\nHuman: Who built it?") == built
    for plain in (
        f"Answer this.\nuser: {HEIGHT}",
        f"user: hello\nassistant: hello\n{HEIGHT}",
        f"USER: hello\nASSISTANT: hello\nUSER: {HEIGHT}",
        f"System: the tower.\n{HEIGHT}",
    ):
        assert asked(plain)[0] == plain


def test_a_response_cites_files(openai: OpenAI) -> None:
    made = openai.responses.create(model="docs", input=HEIGHT, max_output_tokens=8, extra_body=FIELDS)
    search, message = made.output
    assert search.type == "file_search_call"
    assert search.queries == [HEIGHT]
    assert message.type == "message"
    part = message.content[0]
    assert part.type == "output_text"
    cited = part.annotations[0]
    assert cited.type == "file_citation"
    assert cited.filename == "eiffel-tower.md"


def test_embeddings_are_search_vectors(openai: OpenAI, shared: Running) -> None:
    texts = [HEIGHT, "When was coffee first traded?"]
    made = openai.embeddings.create(model="docs", input=texts)  # the client asks for base64
    store = shared.app.state.server.library.all()["docs"]
    wanted = store.rag.model.encode_queries(texts, rate=store.rag.rate)
    for item, memory in zip(made.data, wanted, strict=True):
        assert item.embedding == pytest.approx(memory.search_vector().tolist(), abs=1e-6)
    raw = shared.client.post("/embeddings", json={"model": "docs", "input": HEIGHT, "encoding_format": "base64"})
    vector = base64.b64decode(raw.json()["data"][0]["embedding"])
    assert struct.unpack("<f", vector[:4])[0] == pytest.approx(made.data[0].embedding[0], abs=1e-6)


def test_search_by_get_post_and_vector_store(shared: Running, openai: OpenAI) -> None:
    by_get = shared.client.get("/v1/search", params={"query": HEIGHT, "k": 2, "mode": "text"}).json()
    by_post = shared.client.post("/search", json={"query": HEIGHT, "k": 2, "clara": {"mode": "text"}}).json()
    assert by_get == by_post
    best = by_get["results"][0]
    assert (best["source"], len(by_get["results"])) == ("eiffel-tower.md", 2)
    assert {"content", "title", "source", "url", "document_id", "page", "metadata", "score"} <= best.keys()
    page = openai.vector_stores.search("docs", query=HEIGHT, max_num_results=2, extra_body={"clara": {"mode": "text"}})
    assert [found.content[0].text for found in page.data] == [found["content"] for found in by_get["results"]]


def test_a_follow_up_is_made_self_contained_and_stays_in_its_manual(shared: Running) -> None:
    messages = [
        {"role": "system", "content": "You are helpful."},
        {"role": "user", "content": HEIGHT},
        {"role": "assistant", "content": "330 metres"},
        {"role": "user", "content": [{"type": "text", "text": "Who built it?"}]},
    ]
    body = {"model": "docs", "messages": messages, "max_tokens": 4, **FIELDS}
    made = shared.client.post("/v1/chat/completions", json=body).json()
    assert made["clara"]["question"] == "Who built the Eiffel Tower?"
    assert made["clara"]["made_from"] == HEIGHT
    titles = {note["url_citation"]["title"] for note in made["choices"][0]["message"]["annotations"]}
    assert titles == {"eiffel-tower.md"}


def test_what_is_not_clear_is_asked_back(shared: Running) -> None:
    body = {"model": "docs", "messages": [{"role": "user", "content": "Why?"}]}
    made = shared.client.post("/v1/chat/completions", json=body).json()
    assert made["clara"]["asked_back"] is True
    assert made["choices"][0]["message"]["content"].endswith("Ask the whole question.")
    assert made["usage"]["total_tokens"] == 0


def test_a_clients_own_task_reads_no_documents(serve: Serve) -> None:
    server = serve(empty=["new"])
    task = "### Task:\nGenerate a title for the chat."
    body = {"messages": [{"role": "user", "content": HEIGHT}, {"role": "user", "content": task}], "max_tokens": 4}
    made = server.client.post("/chat/completions", json=body)
    assert made.status_code == 200, made.text
    assert made.json()["choices"][0]["message"]["annotations"] == []
    assert made.json()["clara"]["memory_tokens"] == 0


def test_fields_of_clara_are_heeded_and_unknown_ones_refused(shared: Running) -> None:
    body: dict[str, Any] = {"model": "docs", "messages": [{"role": "user", "content": HEIGHT}], "max_tokens": 2}
    as_text = shared.client.post(
        "/v1/chat/completions", json={**body, "clara": {"context": "text", "k": 1, "mode": "text"}}
    ).json()
    assert as_text["clara"]["memory_tokens"] == 0
    assert as_text["usage"]["prompt_tokens"] > 64 / 2
    accepted = shared.client.post(
        "/v1/chat/completions", json={**body, "logit_bias": {}, "penalties": "x", "user": "u"}
    )
    assert accepted.status_code == 200
    for wrong in ({"mood": "latent"}, {"mode": "letent"}, {"k": 0}, {"rate": 5}, {"k": 10**6}):
        refused = shared.client.post("/v1/chat/completions", json={**body, "clara": wrong})
        assert refused.status_code == 400, wrong
        assert refused.json()["error"]["code"] == "invalid_value"


def test_errors_have_openais_shape(openai: OpenAI, shared: Running) -> None:
    with pytest.raises(NotFoundError) as missing:
        openai.chat.completions.create(model="other", messages=[{"role": "user", "content": "x"}])
    assert missing.value.code == "model_not_found"
    assert missing.value.request_id
    with pytest.raises(BadRequestError) as empty:
        openai.chat.completions.create(model="docs", messages=[{"role": "user", "content": " "}])
    assert empty.value.code == "empty_question"
    for path, content in (("/v1/chat/completions", b"{"), ("/v1/chat/completions", b"{}")):
        raw = shared.client.post(path, content=content, headers={"content-type": "application/json"})
        assert raw.status_code == 400
        assert set(raw.json()["error"]) == {"message", "type", "param", "code"}
        assert raw.headers["x-should-retry"] == "false"
    unknown = shared.client.get("/v1/nothing")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "not_found")
    headers = {"content-type": "application/json"}
    for refused, remedy in (
        (unknown, "GET /openapi.json"),
        (shared.client.put("/v1/documents"), "the header Allow"),
        (shared.client.post("/v1/search", content=b'{"query": "\xff"}', headers=headers), "UTF-8"),
    ):
        assert remedy in refused.json()["error"]["message"]
    long = "word " * 500  # more than one window of the tiny model
    refused = shared.client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": long}]})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert refused.json()["error"]["message"].startswith("prompt is too long")  # by which LiteLLM knows it


def test_what_does_not_fit_is_named_as_the_client_wrote_it(shared: Running) -> None:
    talk = [{"role": "user", "content": HEIGHT}]
    picture = [{"role": "user", "content": [{"type": "input_image"}]}]
    for route, body, param in (
        ("chat/completions", {"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        ("chat/completions", {"messages": talk, "clara": {"k": 0}}, "clara.k"),
        ("responses", {"input": [{"role": 5}]}, "input.0.role"),
        ("responses", {"input": picture}, "input"),
        ("completions", {"prompt": 5}, "prompt"),
        ("search", {"query": HEIGHT, "k": 0}, "k"),
        ("vector_stores/docs/search", {"query": HEIGHT, "max_num_results": 0}, "max_num_results"),
        ("chat/completions", [], None),
    ):
        refused = shared.client.post(f"/v1/{route}", json=body)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, param), body
    form = shared.client.post("/v1/chat/completions", content=b'{"messages": [')
    assert "application/json" in form.json()["error"]["message"]
    json_type = {"content-type": "application/json"}
    broken = shared.client.post("/v1/chat/completions", content=b'{"messages": [', headers=json_type)
    told = broken.json()["error"]
    assert told["param"] is None
    assert "no JSON" in told["message"]
    assert told["message"].endswith("at character 14")
    unread = shared.client.post("/v1/chat/completions", content=b"\xff", headers=json_type)
    assert (unread.status_code, unread.json()["error"]["code"]) == (400, "invalid_value")


def test_a_store_named_by_nothing_is_the_only_one(shared: Running) -> None:
    body = {"model": "", "messages": [{"role": "user", "content": HEIGHT}], "max_tokens": 1}
    assert shared.client.post("/v1/chat/completions", json=body).json()["model"] == "docs"
    assert shared.client.get("/v1/search", params={"query": HEIGHT, "store": ""}).status_code == 200


def test_heads_and_methods_that_a_route_does_not_take(shared: Running) -> None:
    for path in ("/", "/healthz", "/v1/models"):
        asked = shared.client.head(path)
        assert (asked.status_code, asked.content) == (200, b""), path
    for method, path, taken in (
        ("PUT", "/v1/documents", "GET, HEAD, POST"),
        ("HEAD", "/chat/completions", "POST"),
        ("PATCH", "/v1/documents/doc-0", "DELETE, GET, HEAD"),
    ):
        refused = shared.client.request(method, path)
        assert (refused.status_code, refused.headers["allow"]) == (405, taken)


def test_the_description_tells_errors_and_streams(shared: Running) -> None:
    described = shared.client.get("/openapi.json").json()["paths"]
    for path, operations in described.items():
        for method, operation in operations.items():
            told = operation["responses"]
            assert "422" not in told, (method, path)
            error = told["4XX"]["content"]["application/json"]["schema"]["properties"]["error"]
            assert set(error["required"]) == {"message", "type", "param", "code"}
    for method, path, kinds in (
        ("post", "/v1/chat/completions", {"application/json", "text/event-stream"}),
        ("post", "/v1/responses", {"application/json", "text/event-stream"}),
        ("post", "/v1/compare", {"text/event-stream"}),
        ("get", "/v1/documents/jobs/{job_id}/events", {"text/event-stream"}),
        ("get", "/v1/metrics", {"text/plain"}),
    ):
        assert described[path][method]["responses"]["200"]["content"].keys() == kinds, path


def test_an_empty_store_says_so(serve: Serve) -> None:
    server = serve(empty=["new"])
    for path, body in (
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": HEIGHT}]}),
        ("/v1/search", {"query": HEIGHT}),
    ):
        refused = server.client.post(path, json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "store_empty")
        assert refused.headers["x-should-retry"] == "false"


def test_a_store_that_is_emptied_while_a_question_waits_says_so(serve: Serve) -> None:
    server = serve(empty=["new"])
    body = {"messages": [{"role": "user", "content": HEIGHT}], "clara": {"context": "none"}}
    refused = server.client.post("/v1/compare", json=body)  # its own contexts are looked up later than at the door
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "store_empty")


def test_limits_of_body_and_question(serve: Serve) -> None:
    server = serve("docs", limits=Limits(body_bytes=2000, question_characters=100))

    def ask(text: str) -> Any:  # noqa: ANN401
        return server.client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": text}]})

    assert (ask("x" * 101).status_code, ask("x" * 101).json()["error"]["code"]) == (413, "context_length_exceeded")
    assert (ask("x" * 3000).status_code, ask("x" * 3000).json()["error"]["code"]) == (413, "body_too_large")

    def pieces() -> Any:  # noqa: ANN401 - without a Content-Length
        for _ in range(300):
            yield b'{"messages": '

    chunked = server.client.post("/v1/chat/completions", content=pieces(), headers={"content-type": "application/json"})
    assert (chunked.status_code, chunked.json()["error"]["code"]) == (413, "body_too_large")


def test_openais_helpers_follow_a_stream(openai: OpenAI) -> None:
    with openai.chat.completions.stream(
        model="docs",
        messages=[{"role": "developer", "content": "Be brief."}, {"role": "user", "content": HEIGHT}],
        max_completion_tokens=8,
        stream_options={"include_usage": True},
        extra_body=FIELDS,
    ) as stream:
        said = "".join(event.delta for event in stream if event.type == "content.delta")
        whole = stream.get_final_completion()
    assert whole.choices[0].message.content == said
    assert whole.choices[0].message.annotations
    assert whole.usage is not None
    assert whole.usage.completion_tokens > 0


@pytest.mark.parametrize("wording", ["quoted", "free"])
def test_a_streamed_response_is_followed_by_openais_own_helper(openai: OpenAI, wording: str) -> None:
    fields: Any = {"clara": {**FIELDS["clara"], "wording": wording}}
    whole = openai.responses.create(model="docs", input=HEIGHT, max_output_tokens=4, extra_body=fields)
    with openai.responses.stream(model="docs", input=HEIGHT, max_output_tokens=4, extra_body=fields) as stream:
        events = list(stream)
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-1] == f"response.{whole.status}"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "response.output_text.annotation.added" in kinds
    made = events[-1].response  # type: ignore[union-attr]  # of the kind that the assertion above names
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text
    assert made.output_text == whole.output_text
    assert made.usage == whole.usage
    message, search = made.output
    assert (message.type, search.type) == ("message", "file_search_call")
    assert [item.type for item in whole.output] == ["file_search_call", "message"]
    assert getattr(search, "results", None)


def test_a_response_is_continued_with_what_it_held(openai: OpenAI) -> None:
    talk: list[Any] = [{"role": "user", "content": HEIGHT}]
    made = openai.responses.create(model="docs", input=talk, max_output_tokens=4, extra_body=FIELDS)
    talk += made.output  # as OpenAI's guide does, the search included
    talk.append({"role": "user", "content": "Who built it?"})
    more = openai.responses.create(model="docs", input=talk, max_output_tokens=4, extra_body=FIELDS)
    assert (more.model_extra or {})["clara"]["question"] == "Who built the Eiffel Tower?"
    with pytest.raises(BadRequestError, match="no response is kept"):
        openai.responses.create(model="docs", input="Who built it?", previous_response_id=made.id)
    with pytest.raises(BadRequestError, match="no response is kept") as refused:
        openai.responses.create(model="docs", input="Who built it?", conversation="conv_1")
    assert refused.value.param == "conversation"


def test_a_response_that_fails_as_it_streams_ends_in_an_error_event(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve("docs")

    def failing(_: Ask, __: Limits) -> Iterator[str]:
        yield "330"
        raise RuntimeError("a bug")

    monkeypatch.setattr(Ask, "pieces", failing)
    body = {"input": HEIGHT, "stream": True}
    *_, last = server.client.post("/v1/responses", json=body).text.split("event: ")
    kind, data = last.strip().splitlines()
    told = json.loads(data.removeprefix("data: "))
    assert kind == told["type"] == "error"
    assert (told["code"], told["param"], told["sequence_number"]) == ("server_error", None, 5)
    with (
        OpenAI(base_url=f"{server.base}/v1", api_key="empty", max_retries=0) as client,
        pytest.raises(APIError, match="its log says why"),
    ):
        list(client.responses.create(model="docs", input=HEIGHT, stream=True))


def test_what_an_answer_cannot_be_is_refused(openai: OpenAI) -> None:
    message: Any = {"role": "user", "content": HEIGHT}
    tool: Any = {"type": "function", "function": {"name": "Height", "parameters": {"type": "object"}}}
    picture: Any = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}

    def ask(**fields: Any) -> Any:  # noqa: ANN401
        given = {"messages": [message], "max_tokens": 2, "extra_body": FIELDS, **fields}
        return openai.chat.completions.create(model="docs", **given)

    for param, wrong in (
        ("response_format.type", {"response_format": {"type": "json_object"}}),
        ("response_format.type", {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}),
        ("tool_choice", {"tools": [tool], "tool_choice": {"type": "function", "function": {"name": "Height"}}}),
        ("tool_choice", {"tools": [tool], "tool_choice": "required"}),
        ("n", {"n": 2}),
        ("messages", {"messages": [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, picture]}]}),
    ):
        with pytest.raises(BadRequestError) as refused:
            ask(**wrong)
        assert refused.value.param == param
    with pytest.raises(BadRequestError, match=r"text\.format"):
        openai.responses.create(model="docs", input=HEIGHT, text={"format": {"type": "json_object"}})
    call: Any = {"type": "function", "name": "Height", "parameters": {}, "strict": False}
    for choice in ("required", {"type": "function", "name": "Height"}):
        with pytest.raises(BadRequestError) as refused:
            openai.responses.create(model="docs", input=HEIGHT, tools=[call], tool_choice=choice)  # type: ignore[call-overload]
        assert str(refused.value.param).startswith("tool_choice")
    with pytest.raises(BadRequestError, match="dimensions"):
        openai.embeddings.create(model="docs", input=HEIGHT, dimensions=8)
    called = {"id": "c1", "type": "function", "function": {"name": "Height", "arguments": "{}"}}
    talk = [
        {"role": "assistant", "content": None, "tool_calls": [called]},
        {"role": "tool", "tool_call_id": "c1", "content": [picture]},
        message,
    ]
    made = ask(tools=[tool], tool_choice="auto", response_format={"type": "text"}, logprobs=True, messages=talk)
    assert made.choices[0].message.tool_calls is None
