"""One question answered and shown: what ``ask`` and ``chat`` share."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from clara.cli.session import check_question
from clara.cli.terminal import print_json, shown, snippet, write
from clara.records import Answer, Citation, ContextKind, SearchMode, Wording

if TYPE_CHECKING:
    from clara.pipeline import Clara


@dataclass(frozen=True, slots=True)
class Wanted:
    """How questions are answered; the fields are the options of the same names.

    ``k`` None is as the model was trained.
    """

    k: int | None
    mode: SearchMode
    context: ContextKind
    wording: Wording | Literal["auto"]
    max_new_tokens: int
    as_json: bool


def answer(rag: Clara, question: str, wanted: Wanted) -> None:
    """Answer a question on stdout: one JSON object, or text and citations; the text as it comes on a terminal.

    Raises:
        ClaraError: it cannot be answered; nothing has been printed then.
    """
    how: dict[str, Any] = {
        "mode": wanted.mode,
        "context": wanted.context,
        "wording": None if wanted.wording == "auto" else wanted.wording,
        "max_new_tokens": wanted.max_new_tokens,
    }
    check_question(question)
    k = wanted.k or rag.model.default_k
    if sys.stdout.isatty() and not wanted.as_json:
        stream = rag.stream(question, k, **how)
        with closing(stream.pieces) as pieces:
            for piece in pieces:
                sys.stdout.write(piece)
                sys.stdout.flush()
        write()
        show_citations(stream.citations)
        return
    made = rag.ask(question, k, **how)
    if wanted.as_json:
        print_json(answer_object(made))
        return
    write(made.text)
    show_citations(made.citations)


def answer_object(made: Answer) -> dict[str, Any]:
    """The object that ``clara ask --json`` prints: these keys and no others."""
    return {
        "answer": made.text,
        "citations": [asdict(citation) for citation in made.citations],
        "tokens": asdict(made.tokens),
        "seconds": asdict(made.seconds),
        "context": made.context,
    }


def show_citations(citations: Sequence[Citation]) -> None:
    """Print the passages an answer was generated from, numbered."""
    if citations:
        write()
    for number, cited in enumerate(citations, start=1):
        write(f"[{number}] {shown(cited.document)}:{cited.start}-{cited.end} ({cited.score:.3f})")
        write(f"    {snippet(cited.text)}")
