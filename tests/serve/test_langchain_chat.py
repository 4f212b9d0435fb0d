"""A store as LangChain's chat model: of this process, and behind the real server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from pydantic import SecretStr, ValidationError
from serving import Running, running

from clara.integrations.langchain import ChatClara
from clara.model import ClaraModel
from clara.pipeline import Clara
from clara.samples import sample_folder
from clara.serve.access import KeyEntry
from clara.serve.app import create_app
from clara.serve.library import ServedStore

HEIGHT = "How high is the Eiffel Tower?"
KEY = "a-long-secret"


@pytest.fixture(scope="module")
def rag(tiny_model: ClaraModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clara]:
    with Clara.open(tmp_path_factory.mktemp("chat") / "store", model=tiny_model) as opened:
        opened.add(sample_folder() / "eiffel-tower.md")
        yield opened


@pytest.fixture(scope="module")
def server(rag: Clara, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    store = ServedStore("tower", rag, tmp_path_factory.mktemp("uploads"), 1)
    with running(create_app([store], keys=[KeyEntry(key=KEY, name="test", stores=["*"])])) as started:
        yield started


def both(rag: Clara, server: Running) -> tuple[ChatClara, ChatClara]:
    return (
        ChatClara(rag=rag, k=2, always_answer=True, max_tokens=6),
        ChatClara(
            base_url=f"{server.base}/v1", api_key=SecretStr(KEY), model="tower", k=2, always_answer=True, max_tokens=6
        ),
    )


def test_both_give_the_stores_answer_with_its_places(rag: Clara, server: Running) -> None:
    made = rag.ask(HEIGHT, 2, always_answer=True, max_new_tokens=6)
    for chat in both(rag, server):
        answer = chat.invoke([SystemMessage("Be brief."), HumanMessage(HEIGHT)])
        assert isinstance(answer, AIMessage)
        assert answer.content == made.text
        assert answer.response_metadata["answered"] is True
        assert answer.usage_metadata is not None
        assert answer.usage_metadata["input_tokens"] == made.tokens.prompt
        assert answer.response_metadata["citations"]
    here, there = (chat.invoke(HEIGHT).response_metadata["citations"][0] for chat in both(rag, server))
    assert rag.document_text(here["document"])[here["start"] : here["end"]] == here["text"]
    assert there["url"].endswith(f"#char={here['start']},{here['end']}")
    assert server.client.get(there["url"].partition("#")[0]).status_code == 200


def test_streams_add_up(rag: Clara, server: Running) -> None:
    for chat in both(rag, server):
        pieces = list(chat.stream(HEIGHT))
        whole = pieces[0]
        for piece in pieces[1:]:
            whole = whole + piece
        answer = chat.invoke(HEIGHT)
        assert whole.text.strip() == answer.text
        assert whole.response_metadata["answered"] is True
        assert whole.response_metadata["citations"] == answer.response_metadata["citations"] or "url" in str(whole)
        assert whole.usage_metadata is not None


def test_it_stands_in_a_chain_and_completes_follow_ups(rag: Clara, server: Running) -> None:
    for chat in both(rag, server):
        chain = ChatPromptTemplate.from_messages([("human", "{question}")]) | chat | StrOutputParser()
        assert chain.invoke({"question": HEIGHT}) == chat.invoke(HEIGHT).text
        asked_back = chat.invoke("Why?")
        assert asked_back.text.endswith("Ask the whole question.")
        assert asked_back.response_metadata["answered"] is False
        follow_up = [HumanMessage(HEIGHT), AIMessage("330 metres"), HumanMessage("Who built it?")]
        assert chat.invoke(follow_up).text == chat.invoke("Who built the Eiffel Tower?").text
        assert asyncio.run(chat.ainvoke(HEIGHT)).text == chat.invoke(HEIGHT).text


def test_one_of_both_is_wanted(rag: Clara, tmp_path: Path) -> None:
    del tmp_path
    both_given: dict[str, Any] = {"rag": rag, "base_url": "http://127.0.0.1:1/v1"}
    for wrong in ({}, both_given):
        with pytest.raises(ValidationError, match="one of both"):
            ChatClara(**wrong)
    shown = repr(ChatClara(base_url="http://127.0.0.1:1/v1", api_key=SecretStr(KEY)))
    assert KEY not in shown
