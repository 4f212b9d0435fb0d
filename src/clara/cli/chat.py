"""``clara chat``: a conversation on stdin; follow-ups are completed from it, or asked back."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, TextIO

from clara.cli.answers import ShownAnswer, answer, open_to_answer, place
from clara.cli.options import DEFAULT_STORE, AnswerChoice, AnsweringModel, JsonOption, StoreOption
from clara.cli.session import check_question
from clara.cli.terminal import note, print_json, shown, write
from clara.errors import ClaraError, InputError

if TYPE_CHECKING:
    from clara.answering import AnswerOptions
    from clara.conversation import Turn
    from clara.pipeline import Clara

_QUIT = frozenset({"/quit", "/exit", "/q"})
_HELP = """\
/help     this list
/sources  the passages found for the last answer, whole, with their places
/quit     the end (also /exit and /q)
Any other line is a question. A follow-up ("and the Birch pump?", "when was it installed?") is completed from the last
question, says how it is understood, and is answered from the same manual; where it is not sure, you are asked back."""
_COMMAND = re.compile(r"/[\w-]*")


def chat(
    *, store: StoreOption = DEFAULT_STORE, choice: AnsweringModel, asked: AnswerChoice, as_json: JsonOption = False
) -> None:
    """Answer questions from stdin, one a line, until /quit or the end of the input.

    A follow-up is completed from the last question (by rules for English, by the model with --llm), says how it is
    understood, and is answered from the manual of the last answer alone. Where it is not sure what it refers to, you
    are asked back. /help lists the commands. A question that cannot be answered is said on stderr and the next one
    follows.

    --json prints one object a line: for a question what ask prints, for a follow-up also "understood": {"question",
    "made_from", "within"}, where within is the file or folder of its manual; or {"ask_back"}, {"sources"}, {"help"},
    {"error"}.
    """
    options = asked.options()
    with open_to_answer(store, choice, asked, options) as rag:
        # On a terminal stdout shows the prompt too, unless it is to hold JSON alone.
        prompt = sys.stdout if sys.stdout.isatty() and not as_json else sys.stderr
        conversation = _Conversation(rag, options, as_json=as_json)
        for line in _lines(prompt):
            try:
                conversation.take(line)
            except ClaraError as error:
                if as_json:
                    print_json({"error": str(error)})
                else:
                    note(f"clara: {error}")
            sys.stdout.flush()  # whoever feeds questions through a pipe waits for the answer


class _Conversation:
    """What was said so far, and what the next line does."""

    def __init__(self, rag: Clara, options: AnswerOptions, *, as_json: bool) -> None:
        self._rag = rag
        self._options = options
        self._as_json = as_json
        self._turns: list[Turn] = []
        self._said: ShownAnswer | None = None

    def take(self, line: str) -> None:
        """Do what a line asks for.

        Raises:
            ClaraError: it cannot be done.
        """
        name, *rest = line.split(maxsplit=1)
        if not _COMMAND.fullmatch(name):  # /etc/hosts is the beginning of a question
            self._answer(line)
            return
        commands = {"/help": self._help, "/sources": self._sources}
        if name not in commands.keys() | _QUIT:
            raise InputError(f"there is no command {name}; there are /help, /sources and /quit")
        if rest:
            raise InputError(f"{name} takes nothing after it, got {rest[0]!r}")
        commands[name]()

    def _answer(self, message: str) -> None:
        from clara.conversation import AskBack, rewrite, understand  # noqa: PLC0415 - only a question needs them
        from clara.manuals import manual_of  # noqa: PLC0415 - as above

        check_question(message)
        llm = self._rag.llm
        understood = rewrite(llm, self._turns, message) if llm is not None else understand(self._turns, message)
        if isinstance(understood, AskBack):
            self._turns.append(understood.turn())
            self._show({"ask_back": understood.question}, understood.question)
            return
        document = understood.document
        within = manual_of(document, self._rag.store.documents()) if document else None
        more: dict[str, Any] = {}
        if understood.made_from:
            more["understood"] = {"question": understood.question, "made_from": understood.made_from, "within": within}
            if not self._as_json:
                place_of = f" (in {shown(within)})" if within is not None else ""
                write(f"understood as: {understood.question}{place_of}")
        options = replace(self._options, within=within)
        self._said = answer(self._rag, understood.question, options, as_json=self._as_json, more=more)
        self._turns.append(understood.turn(self._said.text, self._said.document, answered=self._said.answered))
        if not self._as_json:
            write()

    def _help(self) -> None:
        self._show({"help": _HELP}, _HELP)

    def _sources(self) -> None:
        """Show the passages of the last answer, whole.

        Raises:
            InputError: there is no answer yet.
            StoreError: one of them is in the store no more.
        """
        if self._said is None:
            raise InputError("there is no answer yet whose sources could be shown; ask a question first")
        from clara.ingest import location_of  # noqa: PLC0415 - loads the formats' libraries

        cited = self._said.citations
        rows = self._rag.store.get([citation.passage_id for citation in cited])
        places = [location_of(row.metadata, row.passage.start) for row in rows]
        found = list(zip(cited, places, strict=True))
        objects = [
            {"document": c.document, "start": c.start, "end": c.end, **asdict(where), "text": c.text}
            for c, where in found
        ]
        texts = [
            f"[{number}] {place(c.document, c.start, c.end, where.page, where.heading)}\n{c.text.strip()}\n"
            for number, (c, where) in enumerate(found, start=1)
        ]
        self._show({"sources": objects}, "\n".join(texts) or "no passage was found for the last answer\n")

    def _show(self, as_object: dict[str, Any], as_text: str) -> None:
        if self._as_json:
            print_json(as_object)
        else:
            write(as_text)


def _lines(prompt: TextIO) -> Iterator[str]:
    """Lines that are not blank, until one that asks to leave."""
    for line in _typed(prompt) if sys.stdin.isatty() else _piped():
        text = line.strip()
        if text in _QUIT:
            return
        if text:
            yield text


def _piped() -> Iterator[str]:
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="surrogateescape")  # bytes that are not UTF-8 are refused, not replaced
    # readline, not iteration: an answer is due after each line, not after a buffer of them.
    return iter(sys.stdin.readline, "")


def _typed(prompt: TextIO) -> Iterator[str]:
    with suppress(ImportError):  # Windows has none
        import readline  # noqa: F401, PLC0415 - gives input() its line editing and history

    note("Ask a question; /help lists the commands, /quit ends.")
    while True:
        try:
            if prompt is sys.stdout:
                yield input("> ")
            else:
                prompt.write("> ")
                prompt.flush()
                yield input()
        except EOFError:
            return
