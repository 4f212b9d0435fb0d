"""clara serve, as it is started: what it refuses before a model is loaded, and its life as a process."""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from calling import Clara

from clara.samples import sample_folder

pytest_plugins = ["cli_fixtures"]

STARTS = 300
"""Seconds until a server has loaded torch and its model, on a busy machine."""
SLOWLY = """
import sys, time
from clara.cli import main
from clara.serve.answers import Ask

pieces = Ask.pieces
def slow(*arguments):
    for event in pieces(*arguments):
        yield event
        time.sleep(0.05)
Ask.pieces = slow
sys.exit(main())
"""


@dataclass
class Started:
    """A server that runs as a process.

    Attributes:
        process: the process.
        client: of its address.
    """

    process: subprocess.Popen[str]
    client: httpx.Client

    def stop(self) -> list[dict[str, Any]]:
        """End it as a service manager does; gives its log."""
        self.process.send_signal(signal.SIGTERM)
        return self.ended()

    def ended(self) -> list[dict[str, Any]]:
        _, log = self.process.communicate(timeout=STARTS)
        assert self.process.returncode == 0, log
        return [json.loads(line) for line in log.splitlines()]


@contextmanager
def started(*arguments: object, code: str = SLOWLY, **environment: str) -> Iterator[Started]:
    command = [sys.executable, "-c", code, "serve", "--port", "0", *map(str, arguments)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    ) as process:
        try:
            assert process.stderr is not None
            said = process.stderr.readline()
            address = re.search(r"http://[0-9.:]+", said)
            assert address is not None, said + process.communicate()[1]
            with httpx.Client(base_url=address[0], timeout=STARTS) as client:
                yield Started(process, client)
        finally:
            process.kill()


def test_it_serves_answers_what_was_asked_and_ends(tiny_checkpoint: Path, tmp_path: Path) -> None:
    stores = ("--store", f"red={tmp_path / 'a'}", "--store", tmp_path / "blue", "--model", tiny_checkpoint)
    key = {"Authorization": "Bearer a-long-secret"}
    with started(*stores, CLARA_API_KEY="a-long-secret") as server:
        server.client.headers = key
        assert [model["id"] for model in server.client.get("/v1/models").json()["data"]] == ["red", "blue"]
        chess = (sample_folder() / "chess.txt").read_bytes()
        job = server.client.post("/v1/documents?store=red", files={"files": ("chess.txt", chess)}).json()
        events = server.client.get(f"/v1/documents/jobs/{job['id']}/events").text
        assert '"status": "done"' in events
        assert (tmp_path / "a-uploads" / "chess.txt").read_bytes() == chess
        body = {
            "model": "red",
            "messages": [{"role": "user", "content": "Who was the first champion?"}],
            "stream": True,
            "max_tokens": 24,
            "clara": {"wording": "free"},
        }
        with server.client.stream("POST", "/v1/chat/completions", json=body) as answer:
            lines = answer.iter_lines()
            assert "role" in next(lines)
            server.process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]", rest
        assert "finish_reason" in rest[-2]
        log = server.ended()
    assert {line["message"] for line in log} >= {"request", "answer", "upload", "indexing ended"}
    assert {line["key"] for line in log if line["message"] == "request"} == {"--api-key"}
    assert "a-long-secret" not in json.dumps(log)
    assert "champion" not in json.dumps(log)


def test_a_job_goes_on_in_the_next_server(tiny_checkpoint: Path, tmp_path: Path) -> None:
    arguments = ("--store", tmp_path / "store", "--model", tiny_checkpoint, "--log-content")
    text = "\n\n".join(f"Section {n} tells of the river {n} and of its bridges." for n in range(3000))
    with started(*arguments) as server:
        job = server.client.post("/v1/documents", files={"files": ("long.txt", text.encode())}).json()
        server.stop()
    promise = tmp_path / "store-uploads" / ".incoming" / job["id"] / ".job.json"
    assert json.loads(promise.read_text())["attempts"] == 0
    with started(*arguments) as server:
        told = server.client.get(f"/v1/documents/jobs/{job['id']}/events").text.split("data: ")[-1]
        server.stop()
    assert json.loads(told)["id"] == job["id"]
    assert not promise.exists()
    assert (json.loads(told)["status"], json.loads(told)["added"]) == ("done", 1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--host", "0.0.0.0"], "--api-key"),  # noqa: S104 - refused
        (["--api-key", "short"], "at least 8 characters"),
        (["--api-key-file", "none.json"], "cannot be read"),
        (["--store", "a b=x"], "'a b' is no name for clients"),
        (["--store", "x/same", "--store", "y/same"], "there is another store same"),
        (["--llm", "http://127.0.0.1:9/v1"], "--llm-model is missing"),
        (["--cors-origin", "*"], "--cors-origin takes an origin"),
    ],
)
def test_what_cannot_be_served_is_said(clara: Clara, arguments: list[str], said: str) -> None:
    done = clara("serve", *arguments)
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert "bug" not in done.err


def test_a_missing_library_names_the_extra(clara: Clara, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clara.cli.serve.find_spec", lambda name: None if name == "uvicorn" else object())
    done = clara("serve")
    assert done.code == 2
    assert "clara-rag[serve]" in done.err


_COUNT_ARENAS = """
import ctypes, sys, threading
from clara.cli.serve import _share_arenas
_share_arenas()
libc, ready = ctypes.CDLL(None), threading.Barrier(6)
libc.fopen.restype, libc.malloc.restype = ctypes.c_void_p, ctypes.c_void_p
def allocate():
    ready.wait()
    libc.malloc(10_000)
    ready.wait()
threads = [threading.Thread(target=allocate) for _ in range(6)]
[each.start() for each in threads]
[each.join() for each in threads]
file = ctypes.c_void_p(libc.fopen(sys.argv[1].encode(), b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has other arenas")
@pytest.mark.parametrize(("said", "most"), [(None, 2), ("6", 6)])
def test_threads_share_two_arenas_unless_told_otherwise(tmp_path: Path, said: str | None, most: int) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"}
    environment |= {} if said is None else {"MALLOC_ARENA_MAX": said}
    command = [sys.executable, "-c", _COUNT_ARENAS, str(tmp_path / "arenas")]
    subprocess.run(command, env=environment, check=True)
    assert (tmp_path / "arenas").read_text("utf-8").count("<heap nr=") == most
