"""``clara chat``: questions from stdin, each answered on its own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import TextIO

import typer

from clara.cli.answers import answer
from clara.cli.options import (
    DEFAULT_STORE,
    AlwaysAnswerOption,
    AnswerTokensOption,
    AttentionOption,
    BaseOption,
    CacheOption,
    ContextOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    KOption,
    LatentWeightOption,
    MemoryCheckOption,
    ModelChoice,
    ModelOption,
    ModeOption,
    StoreOption,
    ThreadsOption,
    WordingOption,
)
from clara.cli.session import open_rag
from clara.cli.terminal import note, print_json, write
from clara.errors import ClaraError

_QUIT = frozenset({"/quit", "/exit", "/q"})


def chat(
    *,
    store: StoreOption = DEFAULT_STORE,
    model: ModelOption = None,
    base: BaseOption = None,
    k: KOption = None,
    mode: ModeOption = "hybrid",
    context: ContextOption = "auto",
    wording: WordingOption = "auto",
    latent_weight: LatentWeightOption = None,
    always_answer: AlwaysAnswerOption = False,
    max_new_tokens: AnswerTokensOption = 64,
    as_json: JsonOption = False,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "auto",
    cache: CacheOption = None,
    threads: ThreadsOption = None,
    attention: AttentionOption = "auto",
    memory_check: MemoryCheckOption = True,
) -> None:
    """Answer questions from stdin, one a line, until /quit or the end of the input.

    Each question is answered on its own: earlier questions and answers are not read again. A question that cannot be
    answered is said on stderr and the next one follows.

    --json prints one object a question, as ask does, or {"error"}.
    """
    from clara.answering import AnswerOptions  # noqa: PLC0415 - loads the model's libraries

    worded = None if wording == "auto" else wording
    options = AnswerOptions(k, mode, context, worded, max_new_tokens, always_answer, latent_weight)
    with open_rag(store, ModelChoice(model, base, device, dtype, cache, threads, attention, memory_check)) as rag:
        # On a terminal stdout shows the prompt too, unless it is to hold JSON alone.
        prompt = sys.stdout if sys.stdout.isatty() and not as_json else sys.stderr
        for question in _questions(prompt):
            try:
                answer(rag, question, options, as_json=as_json)
            except ClaraError as error:
                if as_json:
                    print_json({"error": str(error)})
                else:
                    note(f"clara: {error}")
            else:
                if not as_json:
                    write()
            sys.stdout.flush()  # whoever feeds questions through a pipe waits for the answer


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(chat)


def _questions(prompt: TextIO) -> Iterator[str]:
    """Lines that are not blank, until a line that asks to leave."""
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

    note("Ask a question; /quit ends.")
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
