"""The vocabulary of a checkpoint in Apple's format: special tokens after the base's, and rows that training changed.

Only what differs from the base model is kept; the rest of the two matrices is the base's own. Knows no file of
Apple's format (``apple.format``) and no text (``apple.prompting``).
Shape letters: V tokens of the base's tokenizer, M memory tokens, R changed rows, H hidden size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

from clara.errors import CheckpointError

VOCABULARY = "vocabulary.safetensors"
AFTER_MEMORY = ("<AE>", "<ENC>", "<SEP>")
"""Special tokens that follow the memory tokens, in the order of their ids."""

_BLOCK = 4096
"""Rows compared at once: a float32 copy of a whole matrix would cost more memory than the comparison is worth."""


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

    @property
    def base_size(self) -> int:
        """V, tokens before the first special one."""
        return int(self.memory_ids.min())

    @property
    def size(self) -> int:
        """Tokens in all."""
        return int(self.memory_ids.max()) + 1 + len(AFTER_MEMORY)

    def tensors(self) -> dict[str, Tensor]:
        """What ``vocabulary.safetensors`` holds."""
        return {
            "memory_ids": self.memory_ids,
            "ids": self.ids,
            "rows": self.rows,
            "head_ids": self.head_ids,
            "head_rows": self.head_rows,
        }

    def update(self, digest: hashlib._Hash) -> None:
        """Add to a fingerprint what decides a memory: the special tokens and the embedding rows, not the head."""
        for tensor in (self.memory_ids, self.ids, self.rows.float()):
            digest.update(tensor.contiguous().numpy().tobytes())

    @torch.no_grad()
    def apply(self, model: PreTrainedModel, tokens: Tensor) -> None:
        """Give a base model this vocabulary, in place.

        Args:
            model: the causal LM, without adapters yet; its matrices are resized.
            tokens: [M, H], the memory tokens' embeddings.
        """
        with torch.random.fork_rng(devices=[]):  # new rows are drawn at random before they are overwritten here
            model.resize_token_embeddings(self.size, mean_resizing=False)
        table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        table[self.ids.to(table.device)] = self.rows.to(table)
        table[self.memory_ids.to(table.device)] = tokens.to(table)
        if len(self.head_ids):
            head[self.head_ids.to(head.device)] = self.head_rows.to(head)
        model.requires_grad_(requires_grad=False)

    def matrix(self, base: Tensor | None, tokens: Tensor) -> Tensor:
        """The whole embedding matrix as saved: [size, H].

        Args:
            base: the base's own matrix; None if every row is kept here.
            tokens: [M, H], the memory tokens' embeddings.
        """
        whole = self._whole(base, self.ids, self.rows)
        whole[self.memory_ids] = tokens.to(whole)
        return whole

    def head(self, base: Tensor | None) -> Tensor | None:
        """The whole LM head as saved: [size, H]; None where it is tied."""
        return self._whole(base, self.head_ids, self.head_rows) if len(self.head_ids) else None

    def _whole(self, base: Tensor | None, ids: Tensor, rows: Tensor) -> Tensor:
        whole = torch.zeros(self.size, rows.shape[1], dtype=rows.dtype)
        if base is not None:
            kept = min(self.base_size, len(base))
            whole[:kept] = base[:kept].to(rows.dtype)
        whole[ids] = rows
        return whole


def fresh_vocabulary(model: PreTrainedModel, base_size: int, memory_tokens: int, *, seed: int) -> Vocabulary:
    """The vocabulary of a checkpoint that is begun here in the paper's form.

    Args:
        model: the causal LM, as it came.
        base_size: V, tokens of its tokenizer.
        memory_tokens: M.
        seed: of the special tokens' rows, float32, drawn around the mean of the embeddings with their spread.
    """
    ids = memory_ids(base_size, memory_tokens, distinct=True)
    special = torch.arange(len(AFTER_MEMORY)) + base_size + memory_tokens
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    draw = torch.Generator().manual_seed(seed)

    def rows(matrix: Tensor, count: int) -> Tensor:
        known = matrix[:base_size].detach().cpu().float()
        noise = torch.randn(count, known.shape[1], generator=draw)
        return known.mean(dim=0) + noise * known.std(dim=0)

    if head is table:
        none = torch.zeros(0, dtype=torch.int64)
        return Vocabulary(ids, special, rows(table, len(special)), none, rows(table, 0))
    after = torch.cat([ids, special])
    return Vocabulary(ids, special, rows(table, len(special)), after, rows(head, len(after)))


def memory_ids(base_size: int, count: int, *, distinct: bool) -> Tensor:
    """Token ids of ``count`` memory tokens after ``base_size`` base tokens: int64 [M]."""
    return torch.arange(count) + base_size if distinct else torch.full((count,), base_size)


def difference(whole: Tensor, base: Tensor | None, base_size: int, skip: Tensor) -> Tensor:
    """Ids of the rows of ``whole`` that must be kept: int64 [R].

    Args:
        whole: [size, H], as saved.
        base: the base's matrix, [B, H]; None keeps every row.
        base_size: V; later rows are always kept, and those that the base lacks where B is less.
        skip: int64, ids that are kept elsewhere.
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
    """One matrix of a base model as it is on disk, or None where the folder has no safetensors file with it.

    Read from the file, not taken from a loaded model: what differs from the base must not depend on the dtype that a
    model happens to be loaded in.
    """
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            if name in file.keys():  # noqa: SIM118 - not a dictionary
                matrix: Tensor = file.get_tensor(name)
                return matrix
    return None


def from_tensors(tensors: Mapping[str, Tensor], *, memory_tokens: int, width: int, source: str) -> Vocabulary:
    """The vocabulary that ``Vocabulary.tensors`` gave.

    Raises:
        CheckpointError: a tensor is missing or unknown, or shapes and ids do not fit each other.
    """
    expected = {"memory_ids", "ids", "rows", "head_ids", "head_rows"}
    if set(tensors) != expected:
        raise CheckpointError(f"{source} must hold {sorted(expected)}, it holds {sorted(tensors)}")
    made = Vocabulary(**tensors)
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
