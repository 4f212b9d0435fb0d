"""One question answered and shown: what ``ask`` and ``chat`` share."""

from __future__ import annotations

import sys
from contextlib import closing
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from clara.cli.session import check_question
from clara.cli.terminal import plain, print_json, shown, snippet, write, write_emphasised
from clara.records import Answer, Citation, Quote

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clara.answering import AnswerOptions
    from clara.pipeline import Clara


def answer(rag: Clara, question: str, options: AnswerOptions, *, as_json: bool) -> None:
    """Answer a question on stdout: one JSON object, or text and citations; the text as it comes on a terminal.

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
        show_sources(stream.citations, stream.quote(said))
        return
    made = rag.ask(question, options=options)
    if as_json:
        print_json(answer_object(made))
        return
    write(made.text)
    show_sources(made.citations, made.quote)


def answer_object(made: Answer) -> dict[str, Any]:
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


def show_sources(citations: Sequence[Citation], quote: Quote | None) -> None:
    """Print the sentence that an answer stands in, then the passages found for it, numbered, with what was read."""
    if not citations:
        return
    write()
    if quote is not None:
        start = quote.start - quote.sentence_start
        write_emphasised(quote.sentence, start, start + quote.end - quote.start)
    for number, cited in enumerate(citations, start=1):
        quoted = quote is not None and cited.passage_id == quote.passage_id
        place = _place(cited, quote if quoted else None)
        how = f"read as {cited.read_as}, {cited.tokens} tokens" if cited.read_as is not None else "not read"
        write(f"[{number}] {place} ({'quoted; ' if quoted else ''}{how})")
        if not quoted:
            write(f"    {snippet(cited.text)}")


def _place(cited: Citation, quote: Quote | None) -> str:
    """Where a passage, or the quotation in it, stands: document, characters, page or heading."""
    if quote is None:
        return f"{shown(cited.document)}:{cited.start}-{cited.end}"
    page = f", page {quote.page}" if quote.page is not None else ""
    heading = f", {plain(quote.heading)}" if quote.heading else ""
    return f"{shown(quote.document)}:{quote.start}-{quote.end}{page}{heading}"
