"""``clara inspect``: what the memory of a question or a passage says, through the model's own vocabulary."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from clara.cli.options import JsonOption, NamedModel, RateOption
from clara.cli.session import check_question, load_model
from clara.cli.terminal import counted, print_json, snippet, write
from clara.errors import ConfigError, DocumentError, InputError

if TYPE_CHECKING:
    from clara.analysis.logit_lens import LensView
    from clara.model import ClaraModel
    from clara.records import Document

_WORDS = 12
"""Condensed words shown on a terminal."""


def inspect(
    question: Annotated[str | None, typer.Argument(help="The question, in quotes.")] = None,
    *,
    text: Annotated[str | None, typer.Option(help="Look at the memory of this text instead.")] = None,
    document: Annotated[Path | None, typer.Option(help="Look at the memory of a passage of this file instead.")] = None,
    passage: Annotated[int, typer.Option(min=1, help="Which passage of --document.")] = 1,
    rate: RateOption = None,
    space: Annotated[
        Literal["hidden", "memory"],
        typer.Option(help="hidden: last hidden states, LM head; memory: nearest token embeddings."),
    ] = "hidden",
    top: Annotated[int, typer.Option(min=1, help="Tokens a memory vector.")] = 5,
    as_json: JsonOption = False,
    choice: NamedModel,
) -> None:
    """Show the top tokens of each memory vector: the logit lens.

    First the words that vectors point at and the text does not hold, those of most vectors first; then each vector's
    top tokens, neighbours with the same first token together.

    --space hidden reads the last hidden states through the LM head, as the paper does. --space memory reads what the
    generator is given: the memory after its affine read-out, compared with token embeddings.

    --json prints one object:

    \b
    {"text", "role", "weights", "model", "fingerprint", "rate", "memory_tokens",
     "space", "score",                                 score: logit or cosine
     "words": [{"word", "slots", "score"}],
     "slots": [[{"token", "score", "begins_word"}]]}   one list a memory vector

    weights names the adapter that read: a checkpoint without a query reasoner of its own reads questions with the
    compressor's, which is where a reasoner starts from.
    """  # noqa: D301 - click keeps the lines of a paragraph that follows this character
    from clara.analysis import logit_lens  # noqa: PLC0415

    if sum(given is not None for given in (question, text, document)) != 1:
        raise ConfigError("give one of a question, --text TEXT and --document FILE")
    read = _document(document) if document is not None else None
    loaded = load_model(choice)
    role: Literal["compressor", "query_reasoner"] = "compressor" if question is None else "query_reasoner"
    if read is not None:
        chosen = _passage(read, loaded, passage)
    elif question is not None:
        chosen = check_question(question)
    else:
        chosen = text or ""
    at = loaded.default_rate if rate is None else rate
    seen = logit_lens.view(loaded.inspector(), chosen, role=role, rate=at, space=space, top=top)
    shown = _object(seen, chosen, role, at, loaded)
    if as_json:
        print_json(shown)
    else:
        _show(shown, seen)


def _document(path: Path) -> Document:
    """The first document of a file."""
    from clara.ingest import Reader, find_files  # noqa: PLC0415

    reader = Reader(find_files([path]))
    for found in reader.documents():
        return found
    skipped = reader.report().skipped
    raise DocumentError(skipped[0].message if skipped else f"{path} holds no document")


def _passage(document: Document, model: ClaraModel, number: int) -> str:
    """What the compressor reads of a document's passage."""
    from clara.ingest.split import split  # noqa: PLC0415
    from clara.prompts import passage_text  # noqa: PLC0415

    passages = split(document, model.token_spans, max_tokens=model.window_tokens)
    if number > len(passages):
        raise InputError(f"--passage {number}: {document.uri} has {counted(len(passages), 'passage')}")
    return passage_text(passages[number - 1].title, passages[number - 1].text)


def _object(
    seen: LensView, text: str, role: Literal["compressor", "query_reasoner"], rate: int, model: ClaraModel
) -> dict[str, Any]:
    from dataclasses import asdict  # noqa: PLC0415

    return {
        "text": text,
        "role": role,
        "weights": model.inspector().weights_of(role),
        "model": model.name,
        "fingerprint": model.fingerprint,
        "rate": rate,
        "memory_tokens": len(seen.lens.slots),
        "space": seen.lens.space,
        "score": seen.lens.score,
        "words": [asdict(word) for word in seen.words],
        "slots": [[asdict(token) for token in slot] for slot in seen.lens.slots],
    }


def _show(shown: dict[str, Any], seen: LensView) -> None:
    own = shown["role"] == shown["weights"]
    reader = shown["role"].replace("_", " ") + (
        "" if own else " (untrained: the compressor's weights read the question)"
    )
    write(snippet(shown["text"]))
    write(f"{shown['model']}, {shown['rate']}x: {counted(shown['memory_tokens'], 'memory vector')}; {reader}")
    write()
    words = [f"{word.word} ({word.slots})" for word in seen.words[:_WORDS]]
    write("not in the text (vectors): " + (", ".join(words) or "nothing"))
    write()
    numbered = list(enumerate(seen.lens.slots, start=1))
    for _, run in groupby(numbered, key=lambda item: item[1][0].token):
        places = list(run)
        first, last = places[0][0], places[-1][0]
        label = str(first) if first == last else f"{first}-{last}"
        tokens = "  ".join(f"{item.token.strip() or '[white space]'} {item.score:.3g}" for item in places[0][1])
        write(f"{label:>7}  {tokens}")
