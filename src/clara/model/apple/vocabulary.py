"""Special tokens of a checkpoint in Apple's format: their embedding rows, and token ids as its models read them.

Only rows that differ from the base model's two matrices are kept. A rendered prompt is tokenised in one piece, as these
models were trained: at the edges of a question a tokenizer may join characters of both sides. Only where the user's
text would then make a control token is it tokenised apart. Knows no file of Apple's format (``apple.format``).
Shape letters: V tokens of the base's tokenizer, M memory tokens, R changed rows, H hidden size.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

from clara import prompts
from clara.errors import CheckpointError, InputError
from clara.model.backbone import Tokenizer
from clara.model.prompting import BODY, Prompt, Prompter

VOCABULARY = "vocabulary.safetensors"
_AFTER_MEMORY = ("<AE>", "<ENC>", "<SEP>")
"""Special tokens that follow the memory tokens, in the order of their ids."""

_BLOCK = 4096
"""Rows compared at once, to need no float32 copy of a whole matrix."""


@dataclass(frozen=True, slots=True, eq=False)
class Vocabulary:
    """Special tokens and changed rows.

    Attributes:
        memory_ids: int64 [M], token id of each memory token; all the same where one token is repeated.
        ids: int64 [R], ascending: rows of the token embeddings that are not the base's, memory tokens left out
            (their rows are ``MemoryTable.tokens``).
        rows: [R, H], in the dtype they were saved in.
        head_ids: int64 [R'], the same for the LM head; empty where it is tied to the embeddings.
        head_rows: [R', H].
    """

    memory_ids: Tensor
    ids: Tensor
    rows: Tensor
    head_ids: Tensor
    head_rows: Tensor

    @classmethod
    def fresh(cls, model: PreTrainedModel, base_size: int, memory_tokens: int, *, seed: int) -> Vocabulary:
        """The vocabulary of a checkpoint begun here, on a base of V tokens, with M memory tokens.

        The special tokens' rows are float32, drawn around the mean of the embeddings with their spread.
        """
        ids = memory_ids(base_size, memory_tokens, distinct=True)
        special = torch.arange(len(_AFTER_MEMORY)) + base_size + memory_tokens
        table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        draw = torch.Generator().manual_seed(seed)

        def rows(matrix: Tensor, count: int) -> Tensor:
            known = matrix[:base_size].detach().cpu().float()
            noise = torch.randn(count, known.shape[1], generator=draw)
            return known.mean(dim=0) + noise * known.std(dim=0)

        if head is table:
            none = torch.zeros(0, dtype=torch.int64)
            return cls(ids, special, rows(table, len(special)), none, rows(table, 0))
        after = torch.cat([ids, special])
        return cls(ids, special, rows(table, len(special)), after, rows(head, len(after)))

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], *, memory_tokens: int, width: int, source: str) -> Vocabulary:
        """The inverse of :meth:`tensors`.

        Raises:
            CheckpointError: a tensor is missing or unknown, or shapes and ids do not fit each other.
        """
        expected = {field.name for field in fields(cls)}
        if set(tensors) != expected:
            raise CheckpointError(f"{source} must hold {sorted(expected)}, it holds {sorted(tensors)}")
        made = cls(**tensors)
        for ids, rows, kind in ((made.ids, made.rows, "rows"), (made.head_ids, made.head_rows, "head_rows")):
            if tuple(rows.shape) != (len(ids), width):
                raise CheckpointError(f"{source}: {kind} has shape {tuple(rows.shape)}, expected {(len(ids), width)}")
        if tuple(made.memory_ids.shape) != (memory_tokens,):
            shape = tuple(made.memory_ids.shape)
            raise CheckpointError(f"{source}: memory_ids has shape {shape}, expected {(memory_tokens,)}")
        for ids in (made.ids, made.head_ids):
            if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < made.size:
                raise CheckpointError(f"{source}: ids {int(ids.min())}..{int(ids.max())} are not below {made.size}")
        return made

    @property
    def base_size(self) -> int:
        """V, tokens before the first special one."""
        return int(self.memory_ids.min())

    @property
    def size(self) -> int:
        """Number of tokens, special ones included."""
        return int(self.memory_ids.max()) + 1 + len(_AFTER_MEMORY)

    def tensors(self) -> dict[str, Tensor]:
        """The content of ``vocabulary.safetensors``."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def update(self, digest: hashlib._Hash) -> None:
        """Add the special tokens and embedding rows, which decide a memory, to a fingerprint; not the head."""
        for tensor in (self.memory_ids, self.ids, self.rows.float()):
            digest.update(tensor.contiguous().numpy().tobytes())

    @torch.no_grad()
    def apply(self, model: PreTrainedModel, tokens: Tensor) -> None:
        """Give a causal LM without adapters this vocabulary, in place; ``tokens`` [M, H] embed the memory tokens."""
        with torch.random.fork_rng(devices=[]):  # new rows are drawn at random before they are overwritten here
            model.resize_token_embeddings(self.size, mean_resizing=False)
        table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        table[self.ids.to(table.device)] = self.rows.to(table)
        table[self.memory_ids.to(table.device)] = tokens.to(table)
        if len(self.head_ids):
            head[self.head_ids.to(head.device)] = self.head_rows.to(head)
        model.requires_grad_(requires_grad=False)

    def matrix(self, base: Tensor | None, tokens: Tensor) -> Tensor:
        """The whole embedding matrix as saved, [size, H]: memory tokens [M, H], rows kept here, else the base's."""
        whole = self._whole(base, self.ids, self.rows)
        whole[self.memory_ids] = tokens.to(whole)
        return whole

    def head(self, base: Tensor | None) -> Tensor | None:
        """The whole LM head as saved, [size, H]; None where it is tied."""
        return self._whole(base, self.head_ids, self.head_rows) if len(self.head_ids) else None

    def _whole(self, base: Tensor | None, ids: Tensor, rows: Tensor) -> Tensor:
        whole = torch.zeros(self.size, rows.shape[1], dtype=rows.dtype)
        if base is not None:
            kept = min(self.base_size, len(base))
            whole[:kept] = base[:kept].to(rows.dtype)
        whole[ids] = rows
        return whole


def memory_ids(base_size: int, count: int, *, distinct: bool) -> Tensor:
    """Token ids of ``count`` memory tokens after ``base_size`` base tokens: int64 [M]."""
    return torch.arange(count) + base_size if distinct else torch.full((count,), base_size)


def difference(whole: Tensor, base: Tensor | None, base_size: int, skip: Tensor) -> Tensor:
    """Ids of the rows of ``whole`` [size, H] that differ from the base's matrix [B, H]: int64 [R].

    All rows without a base, and those beyond it or its V tokens; never those of ``skip``, which are kept elsewhere.
    """
    keep = torch.ones(whole.shape[0], dtype=torch.bool)
    if base is not None:
        count = min(base_size, len(base))
        for start in range(0, count, _BLOCK):
            end = min(start + _BLOCK, count)
            keep[start:end] = (whole[start:end].float() != base[start:end].float()).any(dim=1)
    keep[skip] = False
    return keep.nonzero(as_tuple=True)[0]


def base_matrix(folder: Path, name: str) -> Tensor | None:
    """A matrix of a base model as it is on disk, or None where the folder has no safetensors file with it.

    Not taken from a loaded model: the difference from the base must not depend on the dtype it is loaded in.
    """
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            if name in file.keys():  # noqa: SIM118 - not a dictionary
                matrix: Tensor = file.get_tensor(name)
                return matrix
    return None


class OfficialPrompter(Prompter):
    """Builds encoder inputs and prompts for one checkpoint in Apple's format."""

    markers = 3  # ENC, bos, eos

    def __init__(self, tokenizer: Tokenizer, memory_ids: Tensor, *, window_tokens: int) -> None:
        """Add the special tokens, M of which are memory tokens', to a copy of the base's tokenizer.

        Raises:
            CheckpointError: the tokenizer gives the special tokens other ids than the checkpoint.
        """
        super().__init__(tokenizer)
        ids: list[int] = memory_ids.tolist()
        names = {i: f"<MEM{i - ids[0]}>" for i in ids}
        names.update({max(ids) + 1 + i: name for i, name in enumerate(_AFTER_MEMORY)})
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
        _, encoder, _ = _AFTER_MEMORY
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
            raise InputError("a model in Apple's format reads memories or texts, not both; use context memory")
        if texts:
            body = "".join(text + prompts.SEPARATOR for text in texts) + prompts.OFFICIAL_QUESTION + question
            return Prompt(tuple(self._joined(before + prompts.BACKGROUND, body, after)), ())
        start = before + prompts.BACKGROUND + self._documents(len(passages)) + prompts.OFFICIAL_QUESTION
        return self._with_slots(self._joined(start, question, after))

    def closed_book(self, question: str) -> Prompt:
        """The prompt for a question with an empty background."""
        return self.from_passages(question, ())

    def restate(self, instruction: str, sizes: Sequence[int]) -> Prompt:
        """The prompt for a paraphrase of documents of these sizes, put where the instruction says ``{docs}``."""
        before, after = self._around(prompts.OFFICIAL_PARAPHRASE_SYSTEM)
        return self._with_slots(
            self._special(before + instruction.replace("{docs}", self._documents(len(sizes))) + after)
        )

    def _around(self, system: str) -> tuple[str, str]:
        before, after = self._render(system).split(BODY)
        return before, after

    def _documents(self, count: int) -> str:
        return (self._memory + _AFTER_MEMORY[-1]) * count

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
