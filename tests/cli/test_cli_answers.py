"""ask and chat: answers with citations, as text, as JSON, and on a terminal."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from calling import Clara, on_a_terminal

from clara.index import LanceStore
from clara.index.folder import Description

pytest_plugins = ["cli_fixtures"]

QUESTION = "Who was the first official world chess champion?"
KEYS = ["answer", "answered", "quote", "citations", "tokens", "seconds", "context"]
CITATION = ["passage_id", "document", "start", "end", "score", "text", "read_as", "tokens", "page", "heading"]


@pytest.mark.parametrize(("context", "memories"), [("memory", 2), ("text", 0), ("none", 0)])
def test_ask_prints_one_object(clara: Clara, store: Path, context: str, memories: int) -> None:
    options = ("--store", store, "--k", 2, "--context", context, "--max-new-tokens", 5, "--json")
    answer = clara("ask", QUESTION, *options).json()
    assert list(answer) == KEYS
    assert list(answer["tokens"]) == ["prompt", "memory", "text_equivalent", "generated"]
    assert list(answer["seconds"]) == ["search", "query", "generate", "total"]
    assert answer["context"] == context
    assert len(answer["citations"]) == (0 if context == "none" else 2)
    for citation in answer["citations"]:
        assert list(citation) == CITATION
        assert citation["read_as"] == context
        assert citation["end"] - citation["start"] == len(citation["text"])
    assert answer["tokens"]["memory"] == memories * 16  # 64 tokens at 4x
    assert answer["tokens"]["generated"] <= 5
    assert answer["seconds"]["total"] >= answer["seconds"]["generate"] > 0


def test_ask_prints_the_answer_and_numbered_citations(clara: Clara, store: Path, filled: Path) -> None:
    options = ("--store", store, "--k", 2, "--max-new-tokens", 5)
    answer = clara("ask", QUESTION, *options, "--json").json()
    called = clara("ask", QUESTION, *options)
    assert (called.code, called.err) == (0, "")
    assert called.out.startswith(answer["answer"] + "\n\n[1] ")
    for number, cited in enumerate(answer["citations"], start=1):
        assert (
            f"[{number}] {cited['document']}:{cited['start']}-{cited['end']} (read as memory, 16 tokens)\n"
            in called.out
        )
        assert str((filled / "docs").resolve()) in cited["document"]


def test_ask_streams_the_same_answer_on_a_terminal(clara: Clara, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("ask", QUESTION, "--store", store, "--k", 1, "--max-new-tokens", 8)
    plain, live = clara(*arguments), on_a_terminal(monkeypatch, "stdout", *arguments)
    assert live.code == 0
    assert live.out.strip() == plain.out.strip()


def test_what_cannot_be_used_is_said_before_a_model_is_loaded(clara: Clara, store: Path) -> None:
    called = clara("ask", "caf\udce9?", "--store", store)
    assert called.code == 2
    assert "UTF-8" in called.err
    for device, named in (("warp", "no torch device"), ("cuda:99", "--device")):
        called = clara("ask", QUESTION, "--store", store, "--device", device)
        assert called.code == 2
        assert named in called.err
    called = clara("ask", QUESTION, "--store", store, "--model", "nowhere")
    assert called.code == 2
    assert "nowhere" in called.err


def test_chat_answers_each_line_of_a_pipe(clara: Clara, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = f"{QUESTION}\n\n  \n" + "long question " * 2000 + f"\n{QUESTION}\n/quit\nnever asked\n"
    options = ("--store", store, "--k", 1, "--max-new-tokens", 4)
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    called = clara("chat", *options, "--json")
    assert called.code == 0
    first, error, last = (json.loads(line) for line in called.out.splitlines())
    assert list(first) == list(last) == KEYS
    assert (first["answer"], first["citations"]) == (last["answer"], last["citations"])
    assert list(error) == ["error"]
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    people = clara("chat", *options)
    assert people.code == 0
    assert people.out.count("[1] ") == 2
    assert people.err.startswith("clara: ")
    assert people.err.count("\n") == 1


def test_chat_refuses_bytes_that_are_not_utf8(clara: Clara, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    piped = io.TextIOWrapper(io.BytesIO(b"Wo ist K\xf6ln?\nHow high is the tower?\n"), encoding="utf-8")
    monkeypatch.setattr("sys.stdin", piped)
    called = clara("chat", "--store", store, "--max-new-tokens", 2, "--json")
    first, second = (json.loads(line) for line in called.out.splitlines())
    assert first == {"error": "the question is not valid UTF-8; check the terminal's encoding"}
    assert second["citations"]


def test_an_empty_store_names_the_command_that_fills_it(
    clara: Clara, filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = shutil.copytree(filled / "store", tmp_path / "empty")
    assert clara("remove", filled / "docs", "--store", empty).code == 0
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{QUESTION}\n"))
    for arguments in (("ask", QUESTION), ("search", QUESTION, "--mode", "text"), ("chat",)):
        assert "the store is empty; add documents first: clara index PATH" in clara(*arguments, "--store", empty).err


def test_chat_ends_with_its_input(clara: Clara, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    called = clara("chat", "--store", store)
    assert (called.code, called.out, called.err) == (0, "", "")


def test_chat_at_a_terminal_asks_for_questions(clara: Clara, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Typed(io.StringIO):
        def isatty(self) -> bool:
            return True

    for options in ((), ("--json",)):
        monkeypatch.setattr(sys, "stdin", Typed(f"{QUESTION}\n"))
        called = clara("chat", "--store", store, "--k", 1, "--max-new-tokens", 2, *options)
        assert called.code == 0
        assert called.err == "Ask a question; /help lists the commands, /quit ends.\n> > ", (
            "asked again, then the input ended"
        )
        assert "> " not in called.out, "what is redirected holds answers alone"
    assert list(called.json()) == KEYS


@pytest.mark.slow
@pytest.mark.parametrize("context", ["memory", "auto"])
def test_ask_loads_only_what_one_question_needs(store: Path, context: str) -> None:
    """In a process of its own: what the libraries import besides took half of the time to the answer."""
    heavy = (
        "pandas", "scipy", "sklearn", "sympy", "PIL", "peft", "openai", "torch._dynamo.eval_frame", "torch._inductor",
        "torch.distributed.tensor", "torch.fx.experimental.symbolic_shapes", "lance_namespace_urllib3_client",
    )  # fmt: skip
    arguments = ["ask", QUESTION, "--store", str(store), "--max-new-tokens", "2", "--context", context]
    code = (
        f"import sys; from clara.cli import main; code = main({arguments!r}); "
        f"print('loaded', sorted({set(heavy)!r} & sys.modules.keys())); "
        "print('files', len([name for name in sys.modules if name.split('.')[0] == 'clara'])); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *_, loaded, files = done.stdout.splitlines()
    assert loaded == "loaded []"
    assert int(files.split()[1]) <= 39, "packages included"


def test_ask_opens_its_store_once(clara: Clara, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []
    before = LanceStore.__init__

    def count(self: LanceStore, folder: Path, described: Description, *, exact_bytes: int) -> None:
        opened.append(folder)
        before(self, folder, described, exact_bytes=exact_bytes)

    monkeypatch.setattr(LanceStore, "__init__", count)
    assert clara("ask", QUESTION, "--store", store, "--max-new-tokens", 2).code == 0
    assert len(opened) == 1
