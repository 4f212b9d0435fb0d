"""``clara ask``, ``search`` and ``chat``."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO

import typer

from clara.cli.options import (
    DEFAULT_K,
    DEFAULT_STORE,
    AnsweringModel,
    ContextOption,
    FittingModel,
    JsonOption,
    KOption,
    LLMModelOption,
    LLMOption,
    ModelChoice,
    StoreOption,
)
from clara.cli.session import check_question, import_libraries, language_model, load_model, open_store, without_model
from clara.cli.terminal import (
    console,
    message_of,
    note,
    plain,
    print_json,
    print_result,
    shown,
    snippet,
    write,
    write_emphasised,
)
from clara.errors import ClaraError, InputError
from clara.records import Answer, Citation, Quote

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
_ModeOption = Annotated[
    Literal["latent", "text", "hybrid"],
    typer.Option("--mode", help="Search: latent by memories, text by words (BM25), hybrid by both."),
]


@dataclass(frozen=True, slots=True)
class _AnswerChoice:
    """Options about searching and answering."""

    k: KOption = None
    mode: _ModeOption = "hybrid"
    context: ContextOption = "auto"
    wording: Annotated[
        Literal["auto", "free", "quoted"],
        typer.Option(
            help="Answers in any words, or quoted: a stretch of a passage, or yes or no. auto: as the checkpoint says "
            "where it reads with trained weights, else free."
        ),
    ] = "auto"
    latent_weight: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="What a rank by memory counts in hybrid search, beside 1 for a rank by words; as the checkpoint says.",
        ),
    ] = None
    rerank: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Best passages found that are put in order by how likely the question is after the memory of each; 0 "
            "for none; as the checkpoint says.",
        ),
    ] = None
    always_answer: Annotated[
        bool,
        typer.Option("--always-answer", help="Answer even where the evidence says that the documents hold no answer."),
    ] = False
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer, in tokens; 64, with --llm 512.", show_default=False)
    ] = None
    llm: LLMOption = None
    llm_model: LLMModelOption = None

    def options(self) -> AnswerOptions:
        """The choice as the pipeline takes it."""
        from clara.answering import AnswerOptions  # noqa: PLC0415 - loads the model's libraries

        worded = None if self.wording == "auto" else self.wording
        longest = self.max_new_tokens or 64
        if self.max_new_tokens is None and self.llm is not None:
            from clara.llm_answering import DEFAULT_TOKENS  # noqa: PLC0415 - as above

            longest = DEFAULT_TOKENS
        return AnswerOptions(
            self.k, self.mode, self.context, worded, longest, self.always_answer, self.latent_weight, rerank=self.rerank
        )


def ask(
    question: Annotated[str, typer.Argument(help="The question, in quotes.")],
    *,
    store: StoreOption = DEFAULT_STORE,
    choice: AnsweringModel,
    asked: _AnswerChoice,
    as_json: JsonOption = False,
) -> None:
    """Answer a question from the store, with the passages the answer was generated from.

    --json prints one object:

    \b
    {"answer", "answered",
     "quote": {"passage_id", "document", "start", "end", "sentence", "sentence_start", "page", "heading"} or null,
     "citations": [{"passage_id", "document", "start", "end", "score", "text", "read_as", "tokens", "page", "heading"}],
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
    with _open_to_answer(store, choice, asked, options, once=True) as rag:
        _answer(rag, question, options, as_json=as_json)


def search(
    question: Annotated[str, typer.Argument(help="The question, in quotes.")],
    *,
    store: StoreOption = DEFAULT_STORE,
    choice: FittingModel,
    k: KOption = None,
    mode: _ModeOption = "hybrid",
    as_json: JsonOption = False,
) -> None:
    """Find the best passages for a question.

    --mode text loads no model. --json prints a list, best first:

    \b
    [{"passage_id", "document", "start", "end", "score", "text", "page", "heading"}]

    Higher scores are better: cosine or late interaction (latent), BM25 (text), reciprocal rank fusion (hybrid).
    """  # noqa: D301 - click keeps the lines of a paragraph that follows this character
    check_question(question)
    by_words = mode == "text"
    import_libraries()
    from clara.answering import citation  # noqa: PLC0415

    with without_model(store) if by_words else _open_filled(store, choice, once=True) as rag:
        hits = rag.search(question, k or (DEFAULT_K if by_words else rag.model.default_k), mode=mode)
    citations = [citation(hit) for hit in hits]
    if as_json:
        print_json(_listed(citations, "passage_id", "document", "start", "end", "score", "text", "page", "heading"))
    elif citations:
        _show_found(citations)
    else:
        write("no passage was found; ask in other words, or use --mode hybrid")


def _listed(citations: Sequence[Citation], *facts: str) -> list[dict[str, Any]]:
    """Those facts of each passage found."""
    return [{name: getattr(one, name) for name in facts} for one in citations]


def _show_found(citations: Sequence[Citation]) -> None:
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=None, pad_edge=False)
    table.add_column("#", justify="right")
    table.add_column("score", justify="right")
    table.add_column("passage", overflow="fold")
    table.add_column("text", overflow="fold", ratio=1)
    for number, hit in enumerate(citations, start=1):
        table.add_row(str(number), f"{hit.score:.3f}", _place(hit), snippet(hit.text))
    console().print(table)


def chat(
    *, store: StoreOption = DEFAULT_STORE, choice: AnsweringModel, asked: _AnswerChoice, as_json: JsonOption = False
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
    with _open_to_answer(store, choice, asked, options) as rag:
        # On a terminal stdout shows the prompt too, unless it is to hold JSON alone.
        prompt = sys.stdout if sys.stdout.isatty() and not as_json else sys.stderr
        conversation = _Conversation(rag, options, as_json=as_json)
        for line in _lines(prompt):
            try:
                conversation.take(line)
            except ClaraError as error:
                if as_json:
                    print_json({"error": message_of(error)})
                else:
                    note(f"clara: {message_of(error)}")
            sys.stdout.flush()  # whoever feeds questions through a pipe waits for the answer


class _Conversation:
    """The turns so far."""

    def __init__(self, rag: Clara, options: AnswerOptions, *, as_json: bool) -> None:
        self._rag = rag
        self._options = options
        self._as_json = as_json
        self._turns: list[Turn] = []
        self._said: Answer | None = None

    def take(self, line: str) -> None:
        """Run a command, or answer a question (ClaraError where it cannot be done)."""
        name, *rest = line.split(maxsplit=1)
        if not _COMMAND.fullmatch(name):  # /etc/hosts is the beginning of a question
            self._answer(line)
            return
        if name not in {"/help", "/sources"} | _QUIT:
            raise InputError(f"there is no command {name}; there are /help, /sources and /quit")
        if rest:
            raise InputError(f"{name} takes nothing after it, got {rest[0]!r}")
        if name == "/help":
            print_result({"help": _HELP}, _HELP, as_json=self._as_json)
        else:
            self._show_passages()

    def _answer(self, message: str) -> None:
        from clara.conversation import AskBack, rewrite, understand  # noqa: PLC0415 - only a question needs them
        from clara.messages import manual_of  # noqa: PLC0415 - as above

        check_question(message)
        llm = self._rag.llm
        understood = rewrite(llm, self._turns, message) if llm is not None else understand(self._turns, message)
        if isinstance(understood, AskBack):
            self._turns.append(understood.turn())
            print_result({"ask_back": understood.question}, understood.question, as_json=self._as_json)
            return
        document = understood.document
        within = manual_of(document, self._rag.store.documents()) if document else None
        more: dict[str, Any] = {}
        if understood.made_from:
            facts = {"question": understood.question, "made_from": understood.made_from, "within": within}
            more["understood"] = facts
            if not self._as_json:
                write(f"understood as: {understood.question}{f' (in {shown(within)})' if within is not None else ''}")
        options = replace(self._options, within=within)
        self._said = _answer(self._rag, understood.question, options, as_json=self._as_json, more=more)
        source = _document_of(self._said)
        self._turns.append(understood.turn(self._said.text, source, answered=self._said.answered))
        if not self._as_json:
            write()

    def _show_passages(self) -> None:
        if self._said is None:
            raise InputError("there is no answer yet whose sources could be shown; ask a question first")
        cited = self._said.citations
        objects = _listed(cited, "document", "start", "end", "page", "heading", "text")
        texts = [f"[{number}] {_place(one)}\n{one.text.strip()}\n" for number, one in enumerate(cited, start=1)]
        text = "\n".join(texts) or "no passage was found for the last answer\n"
        print_result({"sources": objects}, text, as_json=self._as_json)


def _lines(prompt: TextIO) -> Iterator[str]:
    """Lines that are not blank, until /quit."""
    if hasattr(sys.stdin, "reconfigure") and not sys.stdin.isatty():
        sys.stdin.reconfigure(errors="surrogateescape")  # bytes that are not UTF-8 are refused, not replaced
    # readline, not iteration: an answer is due after each line, not after a buffer of them.
    for line in _typed(prompt) if sys.stdin.isatty() else iter(sys.stdin.readline, ""):
        text = line.strip()
        if text in _QUIT:
            return
        if text:
            yield text


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


def _open_filled(path: Path, choice: ModelChoice, *, once: bool = False) -> Clara:
    """Open an existing store with its own model, or the user's; its errors come before the model is loaded.

    ``once``, for one question, leaves out what only pays with more.
    """
    store = open_store(path)
    try:
        model = load_model(choice, choice.model or store.model.name, merge=not once)
        from clara.pipeline import Clara  # noqa: PLC0415

        return Clara.of(store, model)
    except BaseException:
        store.close()
        raise


@contextmanager
def _open_to_answer(
    store: Path, choice: ModelChoice, asked: _AnswerChoice, options: AnswerOptions, *, once: bool = False
) -> Iterator[Clara]:
    """Open a store with its own model, or with a language model behind a server."""
    server = language_model(asked.llm, asked.llm_model)
    if server is None:
        with _open_filled(store, choice, once=once) as rag:
            yield rag
        return
    from clara.llm_answering import check_options  # noqa: PLC0415 - loads the model's libraries

    check_options(options)
    with server, without_model(store) if options.mode == "text" else _open_filled(store, choice, once=once) as rag:
        rag.llm = server
        yield rag


def _answer(
    rag: Clara, question: str, options: AnswerOptions, *, as_json: bool, more: Mapping[str, Any] | None = None
) -> Answer:
    """Print an answer: one JSON object with the keys of ``more``, or text, streamed to a terminal, and citations."""
    if as_json:
        made = rag.ask(question, options=options)
        print_json({**_answer_object(made), **(more or {})})
        return made
    if sys.stdout.isatty():
        stream = rag.stream(question, options=options)
        with closing(stream.pieces) as pieces:
            for piece in pieces:
                sys.stdout.write(piece)
                sys.stdout.flush()
        write()
        made = stream.whole()
    else:
        made = rag.ask(question, options=options)
        write(made.text)
    _show_sources(made.citations, made.quote)
    return made


def _document_of(made: Answer) -> str:
    """The document that an answer was taken from, as far as can be told; empty without passages."""
    if made.quote is not None:
        return made.quote.document
    read = [cited for cited in made.citations if cited.read_as is not None] or list(made.citations)
    return read[0].document if read else ""


def _answer_object(made: Answer) -> dict[str, Any]:
    """The object that ``clara ask --json`` prints: these keys and no others."""
    whole = asdict(made)
    shown = ("answered", "quote", "citations", "tokens", "seconds", "context")
    return {"answer": made.text, **{name: whole[name] for name in shown}}


def _show_sources(citations: Sequence[Citation], quote: Quote | None) -> None:
    """Print the quoted sentence, then the passages found, numbered, and how each was read."""
    if not citations:
        return
    write()
    if quote is not None:
        start = quote.start - quote.sentence_start
        write_emphasised(quote.sentence, start, start + quote.end - quote.start)
    for number, cited in enumerate(citations, start=1):
        if quote is not None and cited.passage_id == quote.passage_id:
            write(f"[{number}] {_place(quote)} (quoted; {_how_read(cited)})")
        else:
            write(f"[{number}] {_place(cited)} ({_how_read(cited)})")
            write(f"    {snippet(cited.text)}")


def _place(cited: Citation | Quote) -> str:
    """Document, characters, page and heading."""
    on_page = f", page {cited.page}" if cited.page is not None else ""
    below = f", {plain(cited.heading)}" if cited.heading else ""
    return f"{shown(cited.document)}:{cited.start}-{cited.end}{on_page}{below}"


def _how_read(cited: Citation) -> str:
    if cited.read_as is None:
        return "not read"
    return f"read as {cited.read_as}" + (f", {cited.tokens} tokens" if cited.tokens else "")
