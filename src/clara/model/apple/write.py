"""Conversion of Apple's format to a native checkpoint, and back without a changed bit."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from clara.errors import CheckpointError
from clara.model import checkpoint
from clara.model.apple import format as apple_format
from clara.model.apple.vocabulary import Vocabulary, base_matrix
from clara.model.checkpoint import Manifest, Origin
from clara.model.create import from_checkpoint
from clara.model.decoder import PEFT_PREFIX
from clara.model.hub import base as hub_base
from clara.model.hub import checkpoint as hub_checkpoint
from clara.model.network import Network
from clara.model.placement import Placement


def convert(source: Path, out: Path, cache: Path, *, base_name: str | None, progress: hub_base.Progress) -> Manifest:
    """Write a checkpoint in Apple's format as a native one; returns its manifest.

    ``source`` is a folder or a name on the hub; of one with a folder for each rate, the lowest rate is converted.
    ``out`` must not exist, or be a checkpoint, which is then replaced.

    Raises:
        CheckpointError: the source is not in the format, is damaged, or does not fit the base model.
        BaseModelError: the base model cannot be had.
        HubError: the hub does not give it.
    """
    checkpoint.check_replaceable(out)
    if not source.exists() and (name := hub_checkpoint.parse(str(source))) is not None:
        source = hub_checkpoint.fetch(name, progress=progress)
    if not apple_format.is_official(source):
        inside = apple_format.subfolders(source) if source.is_dir() else []
        if not inside:
            raise CheckpointError(f"{source} is not a checkpoint in Apple's format, which has {apple_format.ADAPTERS}")
        source = source / apple_format.lowest_rate(source, inside)
    official = apple_format.read(source)
    # The base's own weights are not written; bf16 is the least that holds them while the rest is checked.
    where = Placement(dtype=torch.bfloat16)
    loaded = from_checkpoint(source, cache, where, base_name=base_name, adapter_dtype=official.dtype, progress=progress)
    checkpoint.save(loaded.network, loaded.manifest, out, card=_card(loaded.manifest), dtype=official.dtype)
    return checkpoint.read_manifest(out)


def export(source: Path, out: Path, cache: Path, *, base_name: str | None, progress: hub_base.Progress) -> None:
    """Write a native checkpoint that came in Apple's format back in that format; ``out`` does not exist or is empty.

    Raises:
        CheckpointError: the source did not come in Apple's format or is damaged, or ``out`` is taken.
        BaseModelError: the base model cannot be had.
    """
    manifest = checkpoint.read_manifest(source)
    if manifest.official is None:
        raise CheckpointError(
            f"{source} did not come in Apple's format: its models read {manifest.compression.input_format} input, and "
            "Apple's code has no way to run that; only what clara convert made, or what was begun with "
            "input_format official, can be exported"
        )
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise CheckpointError(f"{out} exists and is not an empty folder; choose another")
    checkpoint.check_writable(out)
    where = Placement(dtype=torch.bfloat16)
    loaded = from_checkpoint(source, cache, where, base_name=base_name, adapter_dtype=torch.float32, progress=progress)
    vocabulary = loaded.network.vocabulary
    if vocabulary is None:
        raise CheckpointError(f"{source} has lost its vocabulary; convert it again")
    matrices = _matrices(loaded.network, vocabulary, hub_base.find_base(loaded.base.name, cache))
    with checkpoint.replacing(out) as scratch:
        torch.save(_adapters(loaded.network, manifest.official, matrices), scratch / apple_format.ADAPTERS)
        torch.save(_held(apple_format.LAYERS, manifest.official, matrices), scratch / apple_format.LAYERS)
        text = json.dumps(_config(manifest, manifest.official), indent=2, sort_keys=True) + "\n"
        (scratch / apple_format.CONFIG).write_text(text, encoding="utf-8")


def _adapters(network: Network, origin: Origin, matrices: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    made = {}
    for role in network.adapters.roles:
        name = apple_format.ADAPTER_NAMES[role]
        # A query reasoner that was trained here has no dtype of its own yet; it started as the compressor.
        usual = origin.dtypes.get(name, origin.dtypes[apple_format.ADAPTER_NAMES["compressor"]])
        tensors = {key.removeprefix(PEFT_PREFIX): tensor for key, tensor in network.adapters.tensors(role).items()}
        made[name] = {
            key: tensor.detach()
            .to("cpu", getattr(torch, origin.dtypes.get(apple_format.place(name, key), usual)))
            .contiguous()
            for key, tensor in tensors.items()
        }
        made[name].update(_held(name, origin, matrices))
    return made


def _held(holder: str, origin: Origin, matrices: dict[str, Tensor]) -> dict[str, Tensor]:
    """The whole matrices that an adapter or the file of layers held."""
    if not any("/" in name for name in origin.carriers):
        # Converted before matrices were named one by one: adapters that held all that the file of layers did.
        tied = matrices[apple_format.HEAD] is matrices[apple_format.EMBEDDINGS]
        own = {key: tensor for key, tensor in matrices.items() if not (tied and key == apple_format.HEAD)}
        return own if holder == apple_format.LAYERS or holder in origin.carriers else {}
    return {key: tensor for key, tensor in matrices.items() if apple_format.place(holder, key) in origin.carriers}


def _matrices(network: Network, vocabulary: Vocabulary, files: Path) -> dict[str, Tensor]:
    tokens = network.table.tokens
    if tokens is None:  # Origin implies memory tokens: CompressionConfig refuses anything else
        raise CheckpointError("a checkpoint in Apple's format has memory tokens, this one has none")
    if len(set(vocabulary.memory_ids.tolist())) == 1 and not bool((tokens == tokens[0]).all()):
        raise CheckpointError(
            "the checkpoint says that one memory token is repeated (different_mem_tokens false), but training has made "
            "them different; Apple's format has no place for that"
        )
    embeddings = vocabulary.matrix(base_matrix(files, apple_format.EMBEDDINGS), tokens.detach().to("cpu"))
    head = vocabulary.head(base_matrix(files, apple_format.HEAD))
    return {apple_format.EMBEDDINGS: embeddings, apple_format.HEAD: embeddings if head is None else head}


def _config(manifest: Manifest, origin: Origin) -> dict[str, object]:
    stages = {ours: theirs for theirs, ours in apple_format.STAGES.items()}
    stage = stages.get(manifest.stage, origin.config["training_stage"])
    return {**origin.config, "training_stage": stage}


def _card(manifest: Manifest) -> str:
    compression = manifest.compression
    return f"""---
library_name: clara-rag
base_model: {manifest.base_model}
---
# CLaRa checkpoint on {manifest.base_model}

Converted from Apple's format (stage `{manifest.stage}`). Compresses passages of up to {compression.window_tokens}
tokens {compression.default_rate}x into {compression.memory_tokens(compression.default_rate)} memory tokens, and
answers questions from them. Read it with `clara.ClaraModel.load("FOLDER")` or `--model FOLDER`.
The licence is that of the checkpoint it was made from.
"""
