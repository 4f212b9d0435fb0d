"""``clara ask``: one question, one cited answer."""

from __future__ import annotations

from typing import Annotated

import typer

from clara.cli.answers import answer, longest_answer, open_to_answer
from clara.cli.light import import_libraries
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
    LLMModelOption,
    LLMOption,
    MemoryCheckOption,
    ModelChoice,
    ModelOption,
    ModeOption,
    StoreOption,
    ThreadsOption,
    WordingOption,
)
from clara.cli.session import check_question


def ask(
    question: Annotated[str, typer.Argument(help="The question, in quotes.")],
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
    max_new_tokens: AnswerTokensOption = None,
    llm: LLMOption = None,
    llm_model: LLMModelOption = None,
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
    {"answer", "answered",
     "quote": {"passage_id", "document", "start", "end", "sentence", "sentence_start", "page", "heading"} or null,
     "citations": [{"passage_id", "document", "start", "end", "score", "text", "read_as", "tokens"}],
     "tokens": {"prompt", "memory", "text_equivalent", "generated"},
     "seconds": {"search", "query", "generate", "total"},
     "context"}

    start and end count characters of the document's text. quote is where the answer stands word for word. read_as is
    how a passage was read: text, memory or null for one that was only found. text_equivalent is the prompt's length
    with the passages as text. answered is false where the evidence says that the documents hold no answer.

    With --llm, quote is the sentence that the answer cites where it does not stand word for word, and tokens are the
    server's count. The server's key is read from CLARA_LLM_API_KEY, else OPENAI_API_KEY.
    """  # noqa: D301 - click keeps the lines of a paragraph that follows this character
    check_question(question)
    import_libraries()
    from clara.answering import AnswerOptions  # noqa: PLC0415 - loads the model's libraries

    worded = None if wording == "auto" else wording
    longest = longest_answer(max_new_tokens, llm)
    options = AnswerOptions(k, mode, context, worded, longest, always_answer, latent_weight)
    choice = ModelChoice(model, base, device, dtype, cache, threads, attention, memory_check)
    with open_to_answer(store, choice, options, llm, llm_model, once=True) as rag:
        answer(rag, question, options, as_json=as_json)


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(ask)
