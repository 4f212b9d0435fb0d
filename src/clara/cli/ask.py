"""``clara ask``: one question, one cited answer."""

from __future__ import annotations

from typing import Annotated

import typer

from clara.cli.answers import Wanted, answer
from clara.cli.options import (
    DEFAULT_STORE,
    AnswerTokensOption,
    AttentionOption,
    BaseOption,
    CacheOption,
    ContextOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    KOption,
    MemoryCheckOption,
    ModelChoice,
    ModelOption,
    ModeOption,
    StoreOption,
    ThreadsOption,
    WordingOption,
)
from clara.cli.session import check_question, open_rag


def ask(
    question: Annotated[str, typer.Argument(help="The question, in quotes.")],
    *,
    store: StoreOption = DEFAULT_STORE,
    model: ModelOption = None,
    base: BaseOption = None,
    k: KOption = None,
    mode: ModeOption = "hybrid",
    context: ContextOption = "memory",
    wording: WordingOption = "auto",
    max_new_tokens: AnswerTokensOption = 64,
    as_json: JsonOption = False,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "auto",
    cache: CacheOption = None,
    threads: ThreadsOption = None,
    attention: AttentionOption = "auto",
    memory_check: MemoryCheckOption = True,
) -> None:
    """Answer a question from the store, with the passages the answer was generated from.

    --json prints one object:

    \b
    {"answer",
     "citations": [{"passage_id", "document", "start", "end", "score", "text"}],
     "tokens": {"prompt", "memory", "text_equivalent", "generated"},
     "seconds": {"search", "query", "generate", "total"},
     "context"}

    start and end count characters of the document's text; text_equivalent is the prompt's length with the passages as
    text.
    """  # noqa: D301 - click keeps the lines of a paragraph that follows this character
    check_question(question)
    wanted = Wanted(k, mode, context, wording, max_new_tokens, as_json)
    with open_rag(store, ModelChoice(model, base, device, dtype, cache, threads, attention, memory_check)) as rag:
        answer(rag, question, wanted)


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(ask)
