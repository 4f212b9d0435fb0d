"""Questions with candidates to tensors: question texts, candidate memories, and the sequence the answer is written in.

The memories of a batch's different passages stand in one tensor, each once. Where they come from (computed before, or
encoded under gradient) is decided by who makes the collator.
Shape letters: B questions, S tokens, U different passages in the batch, D candidates a question, K selected, N memory
tokens, H hidden size, L decoder positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clara import prompts
from clara.model.prompting import Prompter
from clara.train.batch import REPLY_TOKENS, Batch, Collator, Memories, padded, padded_texts
from clara.train.examples import Question, Target


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateBatch(Batch):
    """One forward pass of a stage that selects.

    The texts of ``Batch`` are the U passages where the compressor is trained, and none where it is frozen. Its decoder
    sequences have slots for K memories; stage ``retriever`` writes nothing, and there they are empty.

    Attributes:
        query_ids: int64 [B, S], the questions.
        query_mask: bool [B, S].
        memories: float16 [U, N, H] of the batch's passages; U = 0 where the compressor is trained.
        candidates: int64 [B, D], rows of the passages; -1 where a question has fewer.
        positives: bool [B, U], which passages support the answer.
    """

    query_ids: Tensor
    query_mask: Tensor
    memories: Tensor
    candidates: Tensor
    positives: Tensor

    @property
    def writes(self) -> bool:
        """Whether there are answers to write; in stage ``retriever`` there are none."""
        return len(self.labels) > 0

    def tokens(self) -> int:
        """Real tokens and memory slots that a forward pass reads; a query's memory tokens count as slots."""
        slots = self.query_ids.shape[0] * self.memories.shape[1]
        return int(self.query_mask.sum()) + slots + Batch.tokens(self)


class CandidateCollator:
    """Builds the batches of a stage that selects."""

    def __init__(
        self,
        prompter: Prompter,
        *,
        window_tokens: int,
        top_k: int,
        memories: Memories | None,
        answers: bool,
        reply_tokens: int = REPLY_TOKENS,
    ) -> None:
        """Fix what all batches share.

        Args:
            prompter: of the checkpoint.
            window_tokens: longest text.
            top_k: K.
            memories: gives computed memories; None to hand on texts, which are then encoded under gradient.
            answers: whether the batch holds the sequences that answers are written in.
            reply_tokens: longest reply.
        """
        self._prompter = prompter
        self._window = window_tokens
        self._top_k, self._answers = top_k, answers
        self._memories = memories
        self._replies = Collator(prompter, window_tokens=window_tokens, reply_tokens=reply_tokens)

    def __call__(
        self, examples: Sequence[Question], *, rate: int, asked: Sequence[int] | None = None
    ) -> CandidateBatch:
        """Make a batch.

        Args:
            examples: at least one.
            rate: of the questions and of the memories.
            asked: places of the examples that are asked; the others' candidates are there all the same, to be told
                from the right ones. All when None.
        """
        passages = list(dict.fromkeys(text for example in examples for text in example.candidates))
        row_of = {text: row for row, text in enumerate(passages)}
        questions = list(examples) if asked is None else [examples[i] for i in asked]
        width = max(len(q.candidates) for q in questions)
        rows = [[row_of[text] for text in q.candidates] for q in questions]
        positives = torch.zeros(len(questions), len(passages), dtype=torch.bool)
        for i, question in enumerate(questions):
            positives[i, [rows[i][place] for place in question.positives]] = True
        queries = [self._prompter.encoder_ids(question.question)[: self._window] for question in questions]
        query_ids, query_mask = padded_texts(queries)
        replies = self._sequences(questions, passages if self._memories is None else [], rate)
        none = torch.empty(0, self._window // rate, 0, dtype=torch.float16)
        return CandidateBatch(
            **{name: getattr(replies, name) for name in Batch.__slots__ if name != "memories"},
            query_ids=query_ids,
            query_mask=query_mask,
            memories=none if self._memories is None else self._memories(passages, rate),
            candidates=padded(rows, width, -1),
            positives=positives,
        )

    def _sequences(self, questions: Sequence[Question], texts: Sequence[str], rate: int) -> Batch:
        if not self._answers:
            return self._replies.silent(len(questions), texts, rate=rate)
        targets = [Target(prompts.QUESTION + question.question, question.reply) for question in questions]
        return self._replies.selecting(targets, texts, rate=rate, selected=self._top_k)
