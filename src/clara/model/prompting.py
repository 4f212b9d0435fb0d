"""Prompts as token ids: the chat template around the words of ``prompts``, with slots where memories go.

A user's text can never become a control token: it is tokenised with special tokens split, and only the template's own
text is tokenised with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import TemplateError

from clara import prompts
from clara.model.backbone import Tokenizer, encoded, plain_ids, token_spans
from clara.model.quoting import BESIDE, Quotations

BODY = "\ue000"
"""Stands for the user's message while the chat template is rendered; a private-use character no template contains."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids with slots.

    Attributes:
        ids: token ids; at a slot the pad id stands in for a memory vector.
        slots: positions of memory vectors, ascending, in the order of the memories.
    """

    ids: tuple[int, ...]
    slots: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Frame:
    """The ids of a chat template around one user message."""

    before: tuple[int, ...]
    after: tuple[int, ...]


class Prompter:
    """Builds the generator's prompts for one tokenizer.

    Attributes:
        markers: tokens that ``encoder_ids`` puts around a text.
        eos: the end token's id.
    """

    markers = 0

    def __init__(self, tokenizer: Tokenizer, *, refuses: bool = False) -> None:
        """Build prompts.

        Args:
            tokenizer: of the model that reads them.
            refuses: whether that model says where no passage holds the answer; a quotation may then be that, too.
        """
        self._tokenizer = tokenizer
        self._beside = (*BESIDE, prompts.NO_ANSWER) if refuses else BESIDE
        self._pad = int(tokenizer.pad_token_id)
        self.eos = int(tokenizer.eos_token_id)
        self._frames: dict[str, _Frame] = {}

    def plain(self, text: str) -> list[int]:
        """Ids of a text in which nothing is special."""
        return plain_ids(self._tokenizer, text)

    def quotations(self, texts: Sequence[str], *, refusing: bool = True) -> Quotations:
        """What may be quoted from some texts; ``refusing``: also that none is found, where the model learnt that."""
        return Quotations(self._tokenizer, texts, beside=self._beside if refusing else BESIDE)

    def encoder_ids(self, text: str) -> list[int]:
        """Ids that the compressor and the query reasoner read of a text, memory tokens left out."""
        return self.plain(text)

    def window_ids(self, text: str, window: int) -> list[int]:
        """``encoder_ids`` of as much of a text as a window of so many tokens takes."""
        return self.encoder_ids(text)[: window + self.markers]

    def background(self, passages: Sequence[int | str]) -> Prompt:
        """The prompt up to the question, with a slot for each memory vector.

        Args:
            passages: of each, best first, its text, or how many memory tokens it is read as.
        """
        ids, slots = list(self._frame(prompts.ANSWER_SYSTEM).before), list[int]()
        words = prompts.BACKGROUND  # what lies between memories is tokenised in one piece
        for passage in passages:
            if isinstance(passage, str):
                words += passage + prompts.SEPARATOR
                continue
            ids.extend(self.plain(words))
            slots.extend(range(len(ids), len(ids) + passage))
            ids.extend([self._pad] * passage)
            words = prompts.SEPARATOR
        return Prompt((*ids, *self.plain(words)), tuple(slots))

    def no_background(self) -> Prompt:
        """The prompt up to the question, where nothing is given."""
        return Prompt(self._frame(prompts.CLOSED_BOOK_SYSTEM).before, ())

    def instruction(self, text: str) -> list[int]:
        """Ids that follow a background: the instruction or question, and the opening of the reply."""
        return [*self.plain(text), *self._frame(prompts.ANSWER_SYSTEM).after]

    def closed_instruction(self, text: str) -> list[int]:
        """Ids that follow ``no_background``."""
        return [*self.plain(text.lstrip()), *self._frame(prompts.CLOSED_BOOK_SYSTEM).after]

    def cut(self, text: str, tokens: int) -> str:
        """The beginning of a text that has at most ``tokens`` tokens."""
        spans = token_spans(self._tokenizer, text)
        return text if len(spans) <= tokens else text[: spans[tokens - 1][1]]

    def question(self, question: str) -> list[int]:
        """``instruction`` for a question."""
        return self.instruction(prompts.QUESTION + question.strip())

    def from_passages(self, question: str, passages: Sequence[int | str]) -> Prompt:
        """The prompt for a question over passages as in ``background``; with nothing when there are none."""
        if not passages:
            return self.closed_book(question)
        background = self.background(passages)
        return Prompt((*background.ids, *self.question(question)), background.slots)

    def asked(self, question: str, memory_tokens: int) -> tuple[Prompt, int]:
        """A question as the reply to ``prompts.ASK_INSTRUCTION`` over one memory, and how many tokens it has."""
        background, words = self.background([memory_tokens]), self.plain(question.strip())
        ids = (*background.ids, *self.instruction(prompts.ASK_INSTRUCTION), *words)
        return Prompt(ids, background.slots), len(words)

    def closed_book(self, question: str) -> Prompt:
        """The prompt for a question with no background at all."""
        return Prompt((*self.no_background().ids, *self.closed_instruction(prompts.QUESTION + question.strip())), ())

    def _frame(self, system: str) -> _Frame:
        if system not in self._frames:
            before, after = self._render(system).split(BODY)
            ids = (tuple(encoded(self._tokenizer, text, special=True).input_ids) for text in (before, after))
            self._frames[system] = _Frame(*ids)
        return self._frames[system]

    def _render(self, system: str) -> str:
        if self._tokenizer.chat_template is None:
            return f"{self._tokenizer.bos_token or ''}{system}\n{BODY}\nAnswer:"
        messages = [{"role": "system", "content": system}, {"role": "user", "content": BODY}]
        try:
            return self._apply(messages)
        except TemplateError:  # the template knows no system role (Mistral-7B-Instruct-v0.2)
            return self._apply([{"role": "user", "content": f"{system}\n{BODY}"}])

    def _apply(self, messages: list[dict[str, str]]) -> str:
        text: str = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return text
