"""The tools of a store, called by the official client in both protocol eras, in this process."""

from __future__ import annotations

import shutil
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client
from mcp.types import CallToolResult, TextContent

from clara.model import ClaraModel
from clara.pipeline import Clara
from clara.samples import sample_folder
from clara.serve.mcp import _MOST_CHARACTERS, make_server

ERAS = ("legacy", "2026-07-28")
READING = {"search", "ask", "fetch", "list_documents"}
QUESTION = "Who was the first official world chess champion?"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of two documents."""
    folder = tmp_path / "docs"
    folder.mkdir()
    for name in ("chess.txt", "coffee.html"):
        shutil.copy(sample_folder() / name, folder)
    return folder


@pytest.fixture
def rag(tiny_model: ClaraModel, root: Path, tmp_path: Path) -> Iterator[Clara]:
    """A store of them."""
    with Clara.open(tmp_path / "store", model=tiny_model) as opened:
        opened.add(root)
        yield opened


def with_client(
    rag: Clara, talk: Callable[[Client], Awaitable[None]], *, root: Path | None = None, mode: str = "legacy"
) -> None:
    """Run a conversation with a server of the store."""

    async def run() -> None:
        async with Client(make_server(lambda: rag, root=root), mode=mode) as client:
            await talk(client)

    anyio.run(run)


def structured(result: CallToolResult) -> Any:  # noqa: ANN401 - JSON
    """What a call answered; an error is one."""
    assert not result.is_error, result.content
    assert result.structured_content is not None
    return result.structured_content


def refusal(result: CallToolResult) -> str:
    """The words of a call that failed."""
    assert result.is_error
    (content,) = result.content
    assert isinstance(content, TextContent)
    return content.text


@pytest.mark.parametrize("mode", ERAS)
def test_agents_read_what_the_pipeline_gives(rag: Clara, mode: str) -> None:
    async def talk(client: Client) -> None:
        listed = (await client.list_tools()).tools
        assert {tool.name for tool in listed} == READING
        for tool in listed:
            assert tool.output_schema is not None
            assert tool.annotations is not None
            assert tool.annotations.read_only_hint
        found = structured(await client.call_tool("search", {"question": QUESTION, "k": 2}))["passages"]
        assert [(hit["passage_id"], hit["score"]) for hit in found] == [
            (hit.passage.id, pytest.approx(hit.score)) for hit in rag.search(QUESTION, 2)
        ]
        answer = structured(await client.call_tool("ask", {"question": QUESTION, "k": 2}))
        made = rag.ask(QUESTION, 2)
        assert (answer["answer"], answer["answered"]) == (made.text, made.answered)
        assert [cited["passage_id"] for cited in answer["citations"]] == [cited.passage_id for cited in made.citations]
        assert answer["tokens"]["memory"] == made.tokens.memory

    with_client(rag, talk, mode=mode)


def test_fetch_gives_the_characters_that_offsets_count(rag: Clara, root: Path) -> None:
    document = str(root / "chess.txt")

    async def talk(client: Client) -> None:
        whole = structured(await client.call_tool("fetch", {"document": document}))
        assert whole["text"] == rag.document_text(document)
        assert (whole["start"], whole["end"], whole["length"]) == (0, len(whole["text"]), len(whole["text"]))
        hit = structured(await client.call_tool("search", {"question": QUESTION, "k": 1}))["passages"][0]
        place = {name: hit[name] for name in ("document", "start", "end")}
        assert structured(await client.call_tool("fetch", place))["text"] == hit["text"]
        past = structured(await client.call_tool("fetch", {"document": document, "start": 10**9}))
        assert (past["text"], past["start"]) == ("", past["length"])
        assert "its list of documents" in refusal(await client.call_tool("fetch", {"document": "/etc/passwd"}))

    with_client(rag, talk)


def test_a_long_document_is_fetched_in_parts(rag: Clara, root: Path) -> None:
    text = "".join(f"Line {number} of a long report, with é.\n" for number in range(700))
    (root / "long.txt").write_text(text, encoding="utf-8")
    rag.add(root)

    async def talk(client: Client) -> None:
        read, length = "", 1
        while len(read) < length:
            part = structured(await client.call_tool("fetch", {"document": str(root / "long.txt"), "start": len(read)}))
            assert 0 < len(part["text"]) <= _MOST_CHARACTERS
            assert part["end"] - part["start"] == len(part["text"])
            read, length = read + part["text"], part["length"]
        assert read.strip() == text.strip()

    with_client(rag, talk)


def test_documents_are_listed_in_pages(rag: Clara, root: Path) -> None:
    async def talk(client: Client) -> None:
        page = structured(await client.call_tool("list_documents", {"limit": 1, "offset": 1}))
        assert page["total"] == 2
        assert [entry["document"] for entry in page["documents"]] == [str(root / "coffee.html")]
        some = structured(await client.call_tool("list_documents", {"containing": "CHESS"}))
        assert [entry["document"] for entry in some["documents"]] == [str(root / "chess.txt")]
        assert some["documents"][0]["passages"] == rag.store.documents()[str(root / "chess.txt")].passages

    with_client(rag, talk)


@pytest.mark.parametrize("mode", ERAS)
def test_writing_only_where_allowed(rag: Clara, root: Path, mode: str) -> None:
    async def refused(client: Client) -> None:
        for name, arguments in (("add", {"paths": ["."]}), ("remove", {"documents": [str(root / "chess.txt")]})):
            assert "Unknown tool" in refusal(await client.call_tool(name, arguments))

    async def allowed(client: Client) -> None:
        listed = (await client.list_tools()).tools
        hints = {tool.name: tool.annotations.destructive_hint for tool in listed if tool.annotations is not None}
        assert hints.keys() == READING | {"add", "remove"}
        assert (hints["add"], hints["remove"]) == (False, True)
        (root / "new.txt").write_text("The lighthouse was built in 1907.")
        (root / "photo.jpg").touch()
        added = structured(await client.call_tool("add", {"paths": ["new.txt", str(root / "photo.jpg")]}))
        assert (added["added"], added["unchanged"]) == (1, 0)
        assert [skipped["reason"] for skipped in added["skipped"]] == ["unsupported"]
        removed = structured(await client.call_tool("remove", {"documents": [str(root / "new.txt")]}))
        assert removed == {"removed": 1, "documents": 2}

    with_client(rag, refused, mode=mode)
    with_client(rag, allowed, root=root, mode=mode)


def test_an_agent_cannot_add_from_elsewhere(rag: Clara, root: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("The safe opens with 4711.")
    (root / "link.txt").symlink_to(tmp_path / "secret.txt")

    async def talk(client: Client) -> None:
        for path in ("../secret.txt", str(tmp_path / "secret.txt"), "link.txt", "/etc"):
            assert "--root" in refusal(await client.call_tool("add", {"paths": [path]}))

    with_client(rag, talk, root=root)
    assert len(rag.store.documents()) == 2


def test_an_agent_cannot_remove_a_folder(rag: Clara, root: Path) -> None:
    async def talk(client: Client) -> None:
        for names in ([str(root)], ["/"], [str(root / "chess.txt"), "nothing"]):
            assert "list_documents" in refusal(await client.call_tool("remove", {"documents": names}))

    with_client(rag, talk, root=root)
    assert len(rag.store.documents()) == 2


@pytest.mark.parametrize(
    ("tool", "arguments", "said"),
    [
        ("search", {"question": "  "}, "the question is empty"),
        ("ask", {"question": ""}, "the question is empty"),
        ("search", {"question": "q", "k": 0}, "greater than or equal to 1"),
        ("search", {"question": "q", "mode": "best"}, "'latent', 'text' or 'hybrid'"),
        ("fetch", {}, "document"),
    ],
)
def test_what_an_agent_can_mend_is_said(rag: Clara, tool: str, arguments: dict[str, Any], said: str) -> None:
    async def talk(client: Client) -> None:
        assert said in refusal(await client.call_tool(tool, arguments))

    with_client(rag, talk)


def test_calls_at_once_answer_as_one_by_one(rag: Clara) -> None:
    questions = [QUESTION, "Where does coffee come from?"] * 3
    alone = [rag.ask(question, 2).text for question in questions]

    async def talk(client: Client) -> None:
        answers: dict[int, str] = {}

        async def one(number: int) -> None:
            made = await client.call_tool("ask", {"question": questions[number], "k": 2})
            answers[number] = structured(made)["answer"]

        async with anyio.create_task_group() as group:
            for number in range(len(questions)):
                group.start_soon(one, number)
        assert [answers[number] for number in range(len(questions))] == alone

    with_client(rag, talk)
