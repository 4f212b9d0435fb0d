"""A scripted OpenAI-compatible server on 127.0.0.1: answers well, or badly on command, and keeps a log.

It knows the replies to some passages and finds the passage by its text in the prompt; what is asked for it tells by
the shape that the prompt demands. Standard library only, no model.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_UNWANTED_FORMATS = {
    "no_format": {"json_schema", "json_object"},
    "no_schema": {"json_schema"},
    "schema_not_implemented": {"json_schema"},
}
GOOD_VERDICT = {"consistent": True, "covered": True, "missing": [], "wrong": []}


@dataclass(frozen=True)
class Asked:
    """One request as the script sees it; ``number`` counts from 1."""

    number: int
    kind: str
    prompt: str


Script = Callable[[Asked], str]
"""The name of a fault, or the empty string for a good reply."""


@dataclass(frozen=True)
class Call:
    """One request as the log keeps it."""

    kind: str
    body: dict[str, Any]
    fault: str


def always(fault: str) -> Script:
    """A script of one fault at every request."""
    return lambda _: fault


def first(count: int, fault: str) -> Script:
    """A script of one fault at the first requests."""
    return lambda asked: fault if asked.number <= count else ""


@dataclass
class LLMServer:
    """The server's knowledge, its script and its log.

    Attributes:
        replies: by passage text, the reply to each of ``simple_qa``, ``complex_qa``, ``paraphrase`` and ``judge``; a
            list of replies holds one for each round, the last one also for all later.
        script: which request fails, and how.
        delay: seconds that each good reply takes.
        retry_after: seconds that a 429 asks to wait.
        tokens: prompt and completion tokens that each reply counts.
        answer: the reply to a prompt about no known passage.
    """

    replies: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    script: Script = field(default_factory=lambda: always(""))
    delay: float = 0.0
    retry_after: str = "0.05"
    tokens: tuple[int, int] = (100, 50)
    answer: str = "I know nothing about this passage."
    calls: list[Call] = field(default_factory=list)
    most_at_once: int = 0
    url: str = ""
    _at_once: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def kinds(self) -> list[str]:
        """What was asked for, in order."""
        return [call.kind for call in self.calls]

    def content(self, kind: str, prompt: str, seed: int) -> str:
        """The good reply to a prompt; the seed tells the round."""
        for text, replies in self.replies.items():
            if text in prompt:
                reply = replies.get(kind, GOOD_VERDICT if kind == "judge" else {})
                if isinstance(reply, list):
                    reply = reply[min(seed, len(reply) - 1)]
                return reply if isinstance(reply, str) else json.dumps(reply)
        return self.answer


def kind_of(prompt: str) -> str:
    """What a prompt asks for."""
    if '"consistent"' in prompt:
        return "judge"
    if '"paraphrase"' in prompt:
        return "paraphrase"
    return "complex_qa" if "two or more facts" in prompt else "simple_qa"


@contextmanager
def serving(server: LLMServer) -> Iterator[LLMServer]:
    """Run a server while the block lasts."""

    class Handler(_Handler):
        llm = server

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{httpd.server_port}/v1"
    try:
        yield server
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    llm: LLMServer

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""

    def handle(self) -> None:
        """Serve a connection until its client goes, however it goes."""
        with suppress(ConnectionResetError):
            super().handle()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][-1]["content"]
        kind = kind_of(prompt)
        llm = self.llm
        with llm._lock:
            fault = llm.script(Asked(len(llm.calls) + 1, kind, prompt))
            llm.calls.append(Call(kind, body, fault))
            llm._at_once += 1
            llm.most_at_once = max(llm.most_at_once, llm._at_once)
        try:
            time.sleep(llm.delay)
            self._answer(fault, kind, prompt, body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client was killed or gave up
        finally:
            with llm._lock:
                llm._at_once -= 1

    def _answer(self, fault: str, kind: str, prompt: str, body: dict[str, Any]) -> None:
        if fault.isdigit() or fault == "quota":
            self._refuse(fault)
        elif fault in _UNWANTED_FORMATS and body.get("response_format", {}).get("type") in _UNWANTED_FORMATS[fault]:
            self._refuse("501" if fault == "schema_not_implemented" else "400")
        elif fault == "trickle":
            self._trickle(self._completion(self.llm.content(kind, prompt, body.get("seed", 0))))
        elif fault == "disconnect":
            self._hang_up()
        elif fault == "html":
            self._send(200, b"<html>starting up</html>", content_type="text/html")
        elif fault == "empty_choices":
            self._send(200, json.dumps({"choices": []}).encode())
        else:
            self._answer_badly(fault, self.llm.content(kind, prompt, body.get("seed", 0)), body)

    def _answer_badly(self, fault: str, content: str, body: dict[str, Any]) -> None:
        """Answer with a chat completion, whole or not, whose content is good or not."""
        if body.get("stream"):
            self._stream(content, fault)
        elif fault == "cut_body":
            self._send(200, self._completion(content), announce=10_000)
            self._hang_up()
        elif fault == "parts":
            parts = [{"type": "text", "text": content[:9]}, {"type": "text", "text": content[9:]}]
            self._send(200, json.dumps({"choices": [{"message": {"content": parts}}]}).encode())
        elif fault == "truncated":
            self._complete(content[: int(len(content) * 0.6)], finish="length")
        else:
            if fault == "slow":
                time.sleep(1.0)
            contents: dict[str, str | None] = {
                "no_content": None,
                "wrong_shape": '{"result": "ok"}',
                "prose": "Sure! Here is what you asked for.",
                "fenced": f"<think>Let me see {{}}</think>Sure:\n```json\n{content}\n```\nDone!",
            }
            self._complete(contents.get(fault, content))

    def _refuse(self, fault: str) -> None:
        status = 429 if fault == "quota" else int(fault)
        code = "insufficient_quota" if fault == "quota" else None
        headers = {"Retry-After": self.llm.retry_after} if status in (429, 503) else {}
        error = {"error": {"message": f"scripted {fault}", "code": code}}
        self._send(status, json.dumps(error).encode(), headers=headers)

    def _complete(self, content: str | None, finish: str = "stop") -> None:
        self._send(200, self._completion(content, finish))

    def _completion(self, content: str | None, finish: str = "stop") -> bytes:
        prompt_tokens, completion_tokens = self.llm.tokens
        return json.dumps(
            {
                "id": "x",
                "object": "chat.completion",
                "choices": [
                    {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": finish}
                ],
                "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens},
            }
        ).encode()

    def _send(
        self,
        status: int,
        data: bytes,
        *,
        content_type: str = "application/json",
        headers: Mapping[str, str] | None = None,
        announce: int | None = None,
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(announce or len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, content: str, fault: str) -> None:
        """Send a reply as server-sent events, a word each, whole or broken off in the middle."""
        pieces = content.split(" ")
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
        deltas += [{"content": piece if place == 0 else f" {piece}"} for place, piece in enumerate(pieces)]
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for place, delta in enumerate(deltas):
            if fault == "cut_body" and place == len(deltas) // 2:
                self._hang_up()
                return
            self._event({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
        if fault == "error_event":
            self._event({"error": {"message": "scripted error"}})
        self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        self._event({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}})
        self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")

    def _event(self, value: dict[str, Any]) -> None:
        self._chunk(b"data: " + json.dumps({"id": "x", "object": "chat.completion.chunk"} | value).encode() + b"\n\n")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def _trickle(self, data: bytes) -> None:
        """Send a reply in pieces, none of them late, that together take two seconds."""
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        for start in range(0, len(data), max(1, len(data) // 20)):
            self.wfile.write(data[start : start + max(1, len(data) // 20)])
            time.sleep(0.1)

    def _hang_up(self) -> None:
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True
