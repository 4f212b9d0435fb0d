"""Who is answered when many ask: side by side, in a fair order, within limits, and nobody who has left."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import pytest
from serving import Running, Serve, until

from clara.serve.access import Limits
from clara.serve.batching import Client, ClientGoneError, ModelQueue
from clara.serve.faults import ApiError

pytest_plugins = ["server_fixtures"]

T = TypeVar("T")
FIELDS = {"clara": {"always_answer": True, "wording": "free", "context": "text", "k": 1, "mode": "text"}}


async def _stays() -> bool:
    return False


def client(name: str, gone: Callable[[], Awaitable[bool]] = _stays) -> Client:
    return Client(name, gone)


@pytest.fixture
def queue() -> Iterator[ModelQueue]:
    """One thread, five places."""
    made = ModelQueue(waiting=5, together=1, seconds=20)
    yield made
    made.close()


def note(into: list[T], what: T) -> T:
    into.append(what)
    return what


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 20))


def test_the_client_with_fewest_questions_is_next(queue: ModelQueue) -> None:
    order: list[str] = []
    free = threading.Event()

    async def asking() -> None:
        first = asyncio.create_task(queue.call(partial(free.wait, 10), client("greedy")))
        await asyncio.sleep(0.05)
        names = ["greedy", "greedy", "modest", "third"]
        waiting = [asyncio.create_task(queue.call(partial(note, order, name), client(name))) for name in names]
        await asyncio.sleep(0.05)
        assert queue.waiting == 5
        free.set()
        await asyncio.gather(first, *waiting)

    run(asking())
    assert order == ["greedy", "modest", "third", "greedy"], "one of each in turn"


def test_a_client_that_is_answered_waits_for_others() -> None:
    """With two threads: whoever has a question among the answered comes after who has none."""
    queue = ModelQueue(waiting=9, together=2, seconds=20)
    order: list[str] = []
    free = [threading.Event() for _ in range(2)]

    async def asking() -> None:
        held = [asyncio.create_task(queue.call(partial(one.wait, 10), client("a"))) for one in free]
        await asyncio.sleep(0.05)
        names = ["a", "a", "b"]
        waiting = [asyncio.create_task(queue.call(partial(note, order, name), client(name))) for name in names]
        await asyncio.sleep(0.05)
        free[0].set()  # one of a's goes on
        await asyncio.gather(*waiting)
        free[1].set()
        await asyncio.gather(*held)

    run(asking())
    queue.close()
    assert order == ["b", "a", "a"]


def test_a_full_queue_refuses_and_who_leaves_makes_room(queue: ModelQueue) -> None:
    free = threading.Event()
    done: list[int] = []

    async def asking() -> None:
        gone = asyncio.Event()

        async def has_gone() -> bool:
            return gone.is_set()

        held = asyncio.create_task(queue.call(partial(free.wait, 10), client("a")))
        leaving = [asyncio.create_task(queue.call(partial(note, done, 1), client("b", has_gone))) for _ in range(4)]
        await asyncio.sleep(0.05)
        with pytest.raises(ApiError, match="5 questions are waiting, no more may; try again in") as refused:
            await queue.call(partial(note, done, 2), client("c"))
        assert (refused.value.status_code, refused.value.code) == (429, "queue_full")
        assert refused.value.retry_after is not None
        assert refused.value.retry_after >= 1
        gone.set()
        results = await asyncio.gather(*leaving, return_exceptions=True)
        assert all(isinstance(result, ClientGoneError) for result in results)
        assert queue.waiting == 1
        free.set()
        await held

    run(asking())
    assert not done


def test_who_leaves_ends_the_work_at_its_next_token(queue: ModelQueue) -> None:
    ended = threading.Event()
    given: list[int] = []

    def work() -> Generator[str | None, None, None]:
        try:
            for number in range(10_000):
                given.append(number)
                time.sleep(0.01)
                yield None  # a token that shows nothing
        finally:
            ended.set()

    async def has_gone() -> bool:
        return len(given) > 5

    async def asking() -> None:
        with pytest.raises(ClientGoneError):
            await queue.first(work, client("a", has_gone))
        left_at = len(given)
        assert await asyncio.to_thread(ended.wait, 5)
        assert len(given) <= left_at + 2

    run(asking())


def test_a_question_that_takes_too_long_says_so() -> None:
    queue = ModelQueue(waiting=2, together=1, seconds=0.1)
    free = threading.Event()

    async def asking() -> None:
        with pytest.raises(ApiError, match=r"not answered within 0\.1 s") as told:
            await queue.call(partial(free.wait, 10), client("a"))
        assert (told.value.status_code, told.value.code) == (504, "timeout")
        free.set()

    run(asking())
    queue.close()


def ask(server: Running, question: str, tokens: int) -> str:
    body = {"messages": [{"role": "user", "content": question}], "max_tokens": tokens, **FIELDS}
    made = server.client.post("/v1/chat/completions", json=body)
    assert made.status_code == 200, made.text
    text: str = made.json()["choices"][0]["message"]["content"]
    return text


def test_answers_side_by_side_are_those_of_one_at_a_time(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    from clara.model import generator  # noqa: PLC0415 - what the server must not know

    server = serve("docs")
    questions = [
        "How high is the tower?",
        "Who won at chess?",
        "When was coffee first traded?",
        "Who built it in Paris?",
    ]
    alone = [ask(server, question, 40) for question in questions]
    together: list[int] = []
    advance = generator._WrittenRows.advance

    def counted(rows: generator._WrittenRows, model: object) -> list[generator._Step]:
        together.append(len(rows._rows))
        return advance(rows, model)

    monkeypatch.setattr(generator._WrittenRows, "advance", counted)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda question: ask(server, question, 40), questions)) == alone
    assert max(together) > 1, "they shared steps"


def test_a_client_that_hangs_up_is_not_answered(serve: Serve) -> None:
    server = serve("docs", limits=Limits(answer_tokens=1500))
    state = server.app.state.server
    decoders = state.library.all()["docs"].rag.model._decoders.values()
    body = {"messages": [{"role": "user", "content": "How high is the tower?"}], "max_tokens": 1500, **FIELDS}
    sent = json.dumps(body).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", int(server.base.rpartition(":")[2]))) as raw:
        raw.sendall(head + b"Content-Length: %d\r\n\r\n" % len(sent) + sent)
        until(lambda: any(decoder.rows for decoder in decoders))
    until(lambda: state.queue.waiting == 0 and not any(decoder.rows for decoder in decoders))
    assert b'kind="generated"' not in state.metrics.text(), "nothing of it was counted as an answer"
