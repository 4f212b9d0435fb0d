"""``clara ask``: one question, one cited answer."""

from __future__ import annotations

from typing import Annotated

import typer

from clara.cli.answers import answer, open_to_answer
from clara.cli.light import import_libraries
from clara.cli.options import DEFAULT_STORE, AnswerChoice, AnsweringModel, JsonOption, StoreOption
from clara.cli.session import check_question


def ask(
    question: Annotated[str, typer.Argument(help="The question, in quotes.")],
    *,
    store: StoreOption = DEFAULT_STORE,
    choice: AnsweringModel,
    asked: AnswerChoice,
    as_json: JsonOption = False,
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
    options = asked.options()
    with open_to_answer(store, choice, asked, options, once=True) as rag:
        answer(rag, question, options, as_json=as_json)
