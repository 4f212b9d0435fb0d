"""Token ids as Apple's models read them: what goes around a text, and their prompts.

A rendered prompt is tokenised in one piece, as these models were trained: at the edges of a question a tokenizer may
join characters of both sides. Only where the user's text would then make a control token is it tokenised apart.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import Tensor

from clara import prompts
from clara.errors import CheckpointError, InputError
from clara.model.apple.vocabulary import AFTER_MEMORY
from clara.model.backbone import Tokenizer
from clara.model.prompting import BODY, Prompt, Prompter

DOCUMENTS = "{docs}"
"""Stands for the documents in an instruction that has them in its middle."""


class OfficialPrompter(Prompter):
    """Builds encoder inputs and prompts for one checkpoint in Apple's format."""

    markers = 3  # ENC, bos, eos

    def __init__(self, tokenizer: Tokenizer, memory_ids: Tensor, *, window_tokens: int) -> None:
        """Add the special tokens to a copy of the tokenizer.

        Args:
            tokenizer: the base's; left as it is.
            memory_ids: int64 [M], ``Vocabulary.memory_ids``.
            window_tokens: T.

        Raises:
            CheckpointError: the tokenizer gives the special tokens other ids than the checkpoint.
        """
        super().__init__(tokenizer)
        ids: list[int] = memory_ids.tolist()
        names = {i: f"<MEM{i - ids[0]}>" for i in ids}
        names.update({max(ids) + 1 + i: name for i, name in enumerate(AFTER_MEMORY)})
        self._wide = copy.deepcopy(tokenizer)
        self._wide.add_tokens(list(names.values()), special_tokens=True)
        given = self._wide.convert_tokens_to_ids(list(names.values()))
        if given != list(names):
            raise CheckpointError(
                f"the checkpoint's special tokens have the ids {min(names)}..{max(names)}, the base's "
                f"tokenizer gives them {given}; it belongs to another base model"
            )
        self._memory = "".join(names[i] for i in ids)
        self._memory_ids = frozenset(ids)
        self._window = window_tokens
        named = {i for i, token in self._wide.added_tokens_decoder.items() if token.special}
        self._control = frozenset(named | set(self._wide.all_special_ids))

    def encoder_ids(self, text: str) -> list[int]:
        """``ENC bos text eos``, cut on the right to three tokens more than the window."""
        _, encoder, _ = AFTER_MEMORY
        start = encoder + (self._wide.bos_token or "")
        return self._joined(start, text, self._wide.eos_token)[: self._window + self.markers]

    def background(self, passages: Sequence[int | str]) -> Prompt:
        """The prompt up to the question; passages are memories of the checkpoint's size."""
        before, _ = self._around(prompts.OFFICIAL_ANSWER_SYSTEM)
        return self._with_slots(self._special(before + prompts.BACKGROUND + self._documents(len(passages))))

    def instruction(self, text: str) -> list[int]:
        """Ids that follow a background: the instruction or question, and the opening of the reply."""
        _, after = self._around(prompts.OFFICIAL_ANSWER_SYSTEM)
        return self._joined("", text, after)

    def question(self, question: str) -> list[int]:
        """``instruction`` for a question."""
        return self.instruction(prompts.OFFICIAL_QUESTION + question)

    def from_passages(self, question: str, passages: Sequence[int | str]) -> Prompt:
        """The prompt for a question; without passages the background is empty.

        Passages are memories, or all of them texts, which these models were not trained on.

        Raises:
            InputError: some are memories and some are texts.
        """
        before, after = self._around(prompts.OFFICIAL_ANSWER_SYSTEM)
        texts = [passage for passage in passages if isinstance(passage, str)]
        if texts and len(texts) < len(passages):
            raise InputError("a model in Apple's format reads memories or texts, not both; use --context memory")
        if texts:
            body = "".join(text + prompts.SEPARATOR for text in texts) + prompts.OFFICIAL_QUESTION + question
            return Prompt(tuple(self._joined(before + prompts.BACKGROUND, body, after)), ())
        start = before + prompts.BACKGROUND + self._documents(len(passages)) + prompts.OFFICIAL_QUESTION
        return self._with_slots(self._joined(start, question, after))

    def closed_book(self, question: str) -> Prompt:
        """The prompt for a question with an empty background."""
        return self.from_passages(question, ())

    def restate(self, instruction: str, sizes: Sequence[int]) -> Prompt:
        """The prompt that asks for the documents in other words.

        Args:
            instruction: a sentence with ``{docs}`` where the documents go.
            sizes: memory tokens of each document.
        """
        before, after = self._around(prompts.OFFICIAL_PARAPHRASE_SYSTEM)
        return self._with_slots(
            self._special(before + instruction.replace(DOCUMENTS, self._documents(len(sizes))) + after)
        )

    def _around(self, system: str) -> tuple[str, str]:
        before, after = self._render(system).split(BODY)
        return before, after

    def _documents(self, count: int) -> str:
        return (self._memory + AFTER_MEMORY[-1]) * count

    def _with_slots(self, ids: Sequence[int]) -> Prompt:
        return Prompt(tuple(ids), tuple(i for i, token in enumerate(ids) if token in self._memory_ids))

    def _special(self, text: str) -> list[int]:
        """Ids of our own text, in which special tokens are meant."""
        ids: list[int] = self._wide(text, add_special_tokens=False).input_ids
        return ids

    def _joined(self, before: str, text: str, after: str) -> list[int]:
        """Ids of a user's text between two of ours; nothing in it becomes a control token."""
        ids, apart = self._special(before + text + after), [*self._special(before), *self._special(after)]
        if self._controls(ids) == self._controls(apart):
            return ids
        plain: list[int] = self._wide(text, add_special_tokens=False, split_special_tokens=True).input_ids
        return [*self._special(before), *plain, *self._special(after)]

    def _controls(self, ids: Sequence[int]) -> list[int]:
        return [i for i in ids if i in self._control]
