"""From a checkpoint in Apple's format and its base model to a network and a native manifest.

Reading the files is ``apple.format``'s work; finding the base model is ``create``'s.
Shape letters: V tokens of the base's tokenizer, M memory tokens, H hidden size.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from clara.errors import CheckpointError
from clara.model.adapters import Adapters, adapter_shapes, set_adapter
from clara.model.apple import format as apple_format
from clara.model.apple.format import Official
from clara.model.apple.vocabulary import Vocabulary, base_matrix, difference, memory_ids
from clara.model.backbone import BaseModel
from clara.model.checkpoint import Manifest, Origin
from clara.model.network import Network
from clara.model.table import MemoryTable


def network_of(found: Official, base: BaseModel, files: Path, *, adapter_dtype: torch.dtype) -> Network:
    """The network of a checkpoint in Apple's format.

    Args:
        found: the checkpoint.
        base: its base model, without adapters yet; they and the vocabulary are put into it.
        files: the base model's folder.
        adapter_dtype: of the LoRA weights in memory.

    Raises:
        CheckpointError: it does not fit the base model.
    """
    compression, lora = found.compression(), found.lora()
    vocabulary = _vocabulary_of(found, base, files)
    tokens = found.embeddings[vocabulary.memory_ids]
    table = MemoryTable(compression, tokens.shape[1])
    table.load_state_dict({"tokens": tokens.float()})
    vocabulary.apply(base.model, tokens)
    adapters = Adapters.fresh(base.model, lora, dtype=adapter_dtype)
    if "query_reasoner" in found.adapters:
        adapters.split_query_reasoner()
    for role, tensors in found.adapters.items():
        shapes = adapter_shapes(adapters.peft_model, role)
        source = f"{found.folder / apple_format.ADAPTERS}: {apple_format.ADAPTER_NAMES[role]}"
        named = apple_format.peft_names(tensors, shapes, rank=lora.rank, source=source)
        set_adapter(adapters.peft_model, named, role)
    return Network(adapters, compression, table.to(base.model.device), vocabulary)


def manifest_of(found: Official, base: BaseModel, network: Network) -> Manifest:
    """What a native checkpoint of it says."""
    dtypes: dict[str, torch.dtype] = {}
    for role, tensors in found.adapters.items():
        name, widest = apple_format.ADAPTER_NAMES[role], apple_format.dtype_of(tensors)
        dtypes[name] = widest
        dtypes.update({apple_format.place(name, key): t.dtype for key, t in tensors.items() if t.dtype != widest})
    origin = Origin.model_validate(
        {
            "config": dict(found.values),
            "carriers": found.carriers,
            "dtypes": {name: str(dtype).removeprefix("torch.") for name, dtype in dtypes.items()},
        }
    )
    return Manifest(
        base_model=base.name,
        base_identity=base.identity,
        hidden_size=found.embeddings.shape[1],
        compression=found.compression(),
        lora=found.lora(),
        roles=network.adapters.roles,
        stage=found.stage,
        official=origin,
    )


def _vocabulary_of(found: Official, base: BaseModel, files: Path) -> Vocabulary:
    """Its special tokens and changed rows, checked against the base model.

    Raises:
        CheckpointError: a matrix is missing, or its shape does not fit the base's tokenizer and width.
    """
    size, width = len(base.tokenizer), int(base.model.get_input_embeddings().weight.shape[1])
    count = found.compression().memory_tokens(found.config.compr_rate)
    if count > len(found.embeddings):
        raise CheckpointError(
            f"{found.folder}: a window of {found.config.doc_max_length} tokens has {count} memory tokens, "
            f"{apple_format.EMBEDDINGS} has {len(found.embeddings)} rows in all"
        )
    ids = memory_ids(size, count, distinct=found.config.different_mem_tokens)
    none = torch.zeros(0, dtype=torch.int64)
    plain = Vocabulary(ids, none, found.embeddings[:0], none, found.embeddings[:0])
    head = _head(found, base)
    for name, matrix in ((apple_format.EMBEDDINGS, found.embeddings), (apple_format.HEAD, head)):
        if matrix is None:
            continue
        if tuple(matrix.shape) != (plain.size, width):
            raise CheckpointError(
                f"{found.folder}: {name} has shape {tuple(matrix.shape)}, expected {(plain.size, width)}: {size} "
                f"tokens of the base model {base.name}, {plain.size - size} special ones, width {width}; is it the "
                "base it was trained on?"
            )
        if not bool(torch.isfinite(matrix).all()):
            raise CheckpointError(f"{found.folder}: {name} has values that are not finite")
    kept = difference(found.embeddings, base_matrix(files, apple_format.EMBEDDINGS), size, skip=ids)
    made = replace(plain, ids=kept, rows=found.embeddings[kept])
    if head is None:
        return made
    kept = difference(head, base_matrix(files, apple_format.HEAD), size, skip=none)
    return replace(made, head_ids=kept, head_rows=head[kept])


def _head(found: Official, base: BaseModel) -> Tensor | None:
    """The LM head, None where the base model ties it to the embeddings."""
    if base.model.get_output_embeddings().weight is not base.model.get_input_embeddings().weight:
        if found.head is None:
            raise CheckpointError(
                f"{found.folder / apple_format.LAYERS} misses {apple_format.HEAD}, which the base model {base.name} has"
            )
        return found.head
    if found.head is not None and not torch.equal(found.head, found.embeddings):
        raise CheckpointError(
            f"{found.folder / apple_format.LAYERS} has {apple_format.HEAD}, but the base model {base.name} has no "
            "LM head of its own; is it the base it was trained on?"
        )
    return None
