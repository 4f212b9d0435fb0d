"""Chat clients that are no Python packages: the settings of docs/clients.md, and the requests that they send."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from serving import Running, Serve

from clara.serve.access import KeyEntry

pytest_plugins = ["server_fixtures"]

PAGE = (Path(__file__).parents[2] / "docs" / "clients.md").read_text(encoding="utf-8")
KEY = "a-long-secret"
HEIGHT = "How high is the Eiffel Tower?"


@pytest.fixture
def server(serve: Serve) -> Running:
    return serve("manuals", keys=[KeyEntry(key=KEY, name="client", stores=["*"])])


def settings(client: str) -> dict[str, Any]:
    """What the page says for a client."""
    section = PAGE.partition(f"## {client}\n")[2].partition("\n## ")[0]
    found = re.search(r"```yaml\n(.*?)```", section, re.DOTALL)
    assert found is not None
    loaded: dict[str, Any] = yaml.safe_load(found[1])
    return loaded


def chunks(server: Running, address: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The chunks of a streamed answer."""
    path = address.removeprefix("http://127.0.0.1:8000") + "/chat/completions"
    with server.with_key(KEY) as client:
        answer = client.post(path, json={**body, "stream": True, "max_tokens": 4, "clara": {"always_answer": True}})
    assert answer.status_code == 200, answer.text
    *lines, end = [line[6:] for line in answer.text.split("\n") if line.startswith("data: ")]
    assert end == "[DONE]"
    yield from map(json.loads, lines)


def test_librechat(server: Running) -> None:
    (endpoint,) = settings("LibreChat")["endpoints"]["custom"]
    with server.with_key(KEY) as client:
        models = client.get(endpoint["baseURL"].removeprefix("http://127.0.0.1:8000") + "/models").json()["data"]
    assert [model["id"] for model in models] == endpoint["models"]["default"]
    body = {
        "model": "manuals",
        "user": "65f0",
        "temperature": 1,
        "top_p": 1,
        "presence_penalty": 0,
        "frequency_penalty": 0,
        "stop": ["||>"],
        "stream_options": {"include_usage": True},
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": HEIGHT}],
    }
    told = list(chunks(server, endpoint["baseURL"], body))
    assert told[-1]["usage"]["total_tokens"] > 0
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in told[:-1])


def test_continue(server: Running) -> None:
    (model,) = settings("Continue")["models"]
    assert (model["provider"], model["model"]) == ("openai", "manuals")
    parts = [{"type": "text", "text": "```py\nprint(1)\n```"}, {"type": "text", "text": HEIGHT}]
    body = {"model": model["model"], "messages": [{"role": "user", "content": parts}], "tool_choice": None}
    last = list(chunks(server, model["apiBase"], body))[-1]
    assert last["choices"][0]["finish_reason"] in {"stop", "length"}


def test_litellms_proxy_names_an_openai_model() -> None:
    (model,) = settings("LiteLLM")["model_list"]
    assert model["litellm_params"]["model"] == f"openai/{model['model_name']}"


def test_open_webuis_own_tasks_and_sources(server: Running) -> None:
    address = "http://127.0.0.1:8000/v1"
    assert address in PAGE
    body = {"model": "manuals", "messages": [{"role": "user", "content": HEIGHT}]}
    last = list(chunks(server, address, body))[-1]
    (note, *_) = last["choices"][0]["delta"]["annotations"]
    assert note["type"] == "url_citation"
    assert server.client.get(note["url_citation"]["url"]).status_code == 200, "a browser has no key"
    task = {"role": "user", "content": "### Task:\nGenerate 1-3 broad tags categorizing the main themes."}
    last = list(chunks(server, address, {"model": "manuals", "messages": [task]}))[-1]
    assert last["choices"][0]["delta"]["annotations"] == []


def test_litellm(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it fetches a table of prices when imported
    litellm = pytest.importorskip("litellm", reason="litellm is heavy and comes with no extra; pip install litellm")
    (entry,) = settings("LiteLLM")["model_list"]
    entry["litellm_params"] |= {"api_base": f"{server.base}/v1", "api_key": KEY}
    router = litellm.Router(model_list=[entry], num_retries=0)
    ask = {"model": entry["model_name"], "messages": [{"role": "user", "content": HEIGHT}], "max_tokens": 4}
    fields = {"extra_body": {"clara": {"always_answer": True, "mode": "text"}}}
    made = router.completion(**ask, **fields)
    assert made.choices[0].message.content
    assert made.choices[0].message.annotations[0]["url_citation"]["title"] == "eiffel-tower.md"
    assert made.usage.total_tokens > 0
    told = list(router.completion(**ask, **fields, stream=True, stream_options={"include_usage": True}))
    said = "".join(choice.delta.content or "" for chunk in told for choice in chunk.choices)
    assert said.strip() == made.choices[0].message.content
    assert told[-1].usage.total_tokens == made.usage.total_tokens
    with pytest.raises(litellm.ContextWindowExceededError):
        router.completion(**{**ask, "messages": [{"role": "user", "content": "word " * 500}]})
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(**{**ask, **entry["litellm_params"], "model": "openai/other"}, num_retries=0)
    with pytest.raises(litellm.AuthenticationError):
        litellm.completion(**{**ask, **entry["litellm_params"], "api_key": "wrong"}, num_retries=0)
    vectors = litellm.embedding(**entry["litellm_params"], input=[HEIGHT])
    assert len(vectors.data[0]["embedding"]) > 1
    answered = litellm.responses(**entry["litellm_params"], input=HEIGHT, max_output_tokens=4, **fields)
    assert [item.type for item in answered.output] == ["file_search_call", "message"]
    streamed = list(litellm.responses(**entry["litellm_params"], input=HEIGHT, max_output_tokens=4, stream=True))
    assert streamed[0].type == "response.created"
    assert streamed[-1].type in {"response.completed", "response.incomplete"}
