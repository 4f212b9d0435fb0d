"""One question answered and shown: what ``ask`` and ``chat`` share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clara.cli.options import AnswerChoice, ModelChoice
from clara.cli.session import check_question, open_filled, without_model
from clara.cli.terminal import plain, print_json, shown, snippet, write, write_emphasised
from clara.records import Answer, Citation, Quote

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from clara.answering import AnswerOptions
    from clara.pipeline import Clara


@dataclass(frozen=True, slots=True)
class ShownAnswer:
    """An answer that was shown.

    Attributes:
        text: the answer.
        citations: the passages found for it.
        quote: where it stands.
    """

    text: str
    citations: tuple[Citation, ...]
    quote: Quote | None

    @property
    def answered(self) -> bool:
        """Whether it is an answer, not the sentence that none was found."""
        from clara.llm_answering import is_not_found  # noqa: PLC0415 - loads the model's libraries

        return not is_not_found(self.text)

    @property
    def document(self) -> str:
        """The document it was taken from, as far as can be told; empty without passages."""
        if self.quote is not None:
            return self.quote.document
        read = [cited for cited in self.citations if cited.read_as is not None] or list(self.citations)
        return read[0].document if read else ""


@contextmanager
def open_to_answer(
    store: Path, choice: ModelChoice, asked: AnswerChoice, options: AnswerOptions, *, once: bool = False
) -> Iterator[Clara]:
    """Open a store with what answers: its own model, or a language model behind a server; for one question or more.

    Raises:
        ClaraError: one of them cannot be had, or cannot do what the options ask for.
    """
    server = None
    if asked.llm is not None or asked.llm_model is not None:
        from clara.cli.llm import language_model  # noqa: PLC0415

        server = language_model(asked.llm, asked.llm_model)
    if server is None:
        with open_filled(store, choice, once=once) as rag:
            yield rag
        return
    from clara.llm_answering import check_options  # noqa: PLC0415 - loads the model's libraries

    check_options(options)
    with server, without_model(store) if options.mode == "text" else open_filled(store, choice, once=once) as rag:
        rag.llm = server
        yield rag


def answer(
    rag: Clara, question: str, options: AnswerOptions, *, as_json: bool, more: Mapping[str, Any] | None = None
) -> ShownAnswer:
    """Answer a question on stdout: one JSON object, or text and citations; the text as it comes on a terminal.

    Args:
        rag: the store.
        question: the question, self-contained.
        options: how to answer.
        as_json: print an object.
        more: further keys of it.

    Raises:
        ClaraError: it cannot be answered; nothing has been printed then.
    """
    check_question(question)
    if sys.stdout.isatty() and not as_json:
        stream = rag.stream(question, options=options)
        said = ""
        with closing(stream.pieces) as pieces:
            for piece in pieces:
                said += piece
                sys.stdout.write(piece)
                sys.stdout.flush()
        write()
        result = ShownAnswer(said.strip(), stream.citations, stream.quote())
        _show_sources(result.citations, result.quote)
        return result
    made = rag.ask(question, options=options)
    if as_json:
        print_json({**_answer_object(made), **(more or {})})
    else:
        write(made.text)
        _show_sources(made.citations, made.quote)
    return ShownAnswer(made.text, made.citations, made.quote)


def _answer_object(made: Answer) -> dict[str, Any]:
    """The object that ``clara ask --json`` prints: these keys and no others."""
    return {
        "answer": made.text,
        "answered": made.answered,
        "quote": None if made.quote is None else asdict(made.quote),
        "citations": [asdict(citation) for citation in made.citations],
        "tokens": asdict(made.tokens),
        "seconds": asdict(made.seconds),
        "context": made.context,
    }


def _show_sources(citations: Sequence[Citation], quote: Quote | None) -> None:
    """Print the sentence that an answer stands in, then the passages found for it, numbered, with what was read."""
    if not citations:
        return
    write()
    if quote is not None:
        start = quote.start - quote.sentence_start
        write_emphasised(quote.sentence, start, start + quote.end - quote.start)
    for number, cited in enumerate(citations, start=1):
        quoted = quote is not None and cited.passage_id == quote.passage_id
        where = place(cited.document, cited.start, cited.end)
        if quoted and quote is not None:
            where = place(quote.document, quote.start, quote.end, quote.page, quote.heading)
        write(f"[{number}] {where} ({'quoted; ' if quoted else ''}{_how_read(cited)})")
        if not quoted:
            write(f"    {snippet(cited.text)}")


def place(document: str, start: int, end: int, page: int | None = None, heading: str = "") -> str:
    """Where something stands: document, characters, page or heading."""
    on_page = f", page {page}" if page is not None else ""
    below = f", {plain(heading)}" if heading else ""
    return f"{shown(document)}:{start}-{end}{on_page}{below}"


def _how_read(cited: Citation) -> str:
    if cited.read_as is None:
        return "not read"
    return f"read as {cited.read_as}" + (f", {cited.tokens} tokens" if cited.tokens else "")
