"""Weights that are made without a training step: a mean of adapters, a text reader, spans, the query side.

Each function reads a checkpoint's folder and writes another. What was measured with the old weights is kept and named
in ``trained.not_remeasured``.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from clara.errors import CheckpointError, InputError
from clara.model import checkpoint
from clara.model.backbone import ADAPTER, plain_ids, read_tensors
from clara.model.checkpoint import Manifest
from clara.model.create import Loaded, from_checkpoint
from clara.model.hub.base import Progress
from clara.model.placement import natural_dtype
from clara.model.reader import read_reader_manifest
from clara.train.documents import Documents
from clara.train.start import whiten

_ADAPTER_FILES = ("adapter_config.json", ADAPTER)


@dataclass(frozen=True, slots=True)
class CheckpointLoader:
    """How a checkpoint is loaded.

    Attributes:
        cache: folder for base weights and for memories of documents.
        base: the base model, where the checkpoint's own entry does not lead to it.
        device: torch device.
        progress: told about downloads.
    """

    cache: Path
    base: str | None = None
    device: str = "cpu"
    progress: Progress | None = None

    def load(self, folder: Path) -> Loaded:
        """A checkpoint's network, its adapters in float32."""
        return from_checkpoint(
            folder,
            self.cache,
            base_name=self.base,
            dtype=natural_dtype(self.device),
            adapter_dtype=torch.float32,
            device=self.device,
            progress=self.progress,
        )


def card_of(folder: Path) -> str:
    """A checkpoint's card; empty if it has none."""
    card = folder / "README.md"
    return card.read_text(encoding="utf-8") if card.is_file() else ""


def average(folder: Path, other: Path, share: float, out: Path) -> None:
    """Average a checkpoint's adapters with those of another, as a rule the one that its run started from.

    A last stage on new data is partly kept so: it loses less of what the start could do, and what it learnt is less
    noisy (Wortsman et al., Model soups, arXiv 2203.05482; LOG.md, 2026-11-28). LoRA factors are averaged as they are:
    runs from one start stay near enough for that.

    Args:
        folder: the checkpoint.
        other: the other one; only its adapters may differ.
        share: of ``other``, between 0 and 1.
        out: where the result is written.

    Raises:
        CheckpointError: the two differ in more than adapters, or one cannot be read.
        InputError: a share that cannot be.
    """
    if not 0 < share < 1:
        raise InputError(f"the share of {other} must lie between 0 and 1, got {share}")
    manifest, given = checkpoint.read_manifest(folder), checkpoint.read_manifest(other)
    if differing := _differing(manifest, given):
        raise CheckpointError(
            f"{folder} and {other} differ in {differing}; name a checkpoint and the one that its run started from"
        )
    if not _equal(folder / checkpoint.MEMORY, other / checkpoint.MEMORY):
        raise CheckpointError(
            f"expected equal memory tables ({checkpoint.MEMORY}) in {folder} and {other}; only adapters are averaged"
        )
    weights = {"kept": "average", "start": str(other), "share": share}
    made = manifest.unmeasured(trained={**manifest.trained, "weights": weights})
    with checkpoint.copying(folder, out, made, card=card_of(folder)) as scratch:
        for role in manifest.roles:
            place = Path("adapters") / role / ADAPTER
            left, right = read_tensors(folder / place), read_tensors(other / place)
            if {name: t.shape for name, t in left.items()} != {name: t.shape for name, t in right.items()}:
                raise CheckpointError(f"the adapters {role} of {folder} and {other} have other tensors")
            between = {name: _between(left[name], right[name], share) for name in left}
            save_file(between, scratch / place, metadata={"format": "pt"})


def _differing(one: Manifest, other: Manifest) -> str:
    """The settings without which a mean of adapters means nothing, where two checkpoints differ; empty if nowhere."""
    left, right = _decisive(one), _decisive(other)
    return ", ".join(f"{name} ({left[name]} and {right[name]})" for name in left if left[name] != right[name])


def _decisive(manifest: Manifest) -> dict[str, object]:
    return {
        "base_identity": manifest.base_identity,
        **manifest.compression.model_dump(),
        "lora.rank": manifest.lora.rank,
        "lora.alpha": manifest.lora.alpha,
        "roles": " + ".join(manifest.roles),
    }


def _between(one: Tensor, other: Tensor, share: float) -> Tensor:
    return ((1 - share) * one.float() + share * other.float()).to(one.dtype)


def _equal(first: Path, second: Path) -> bool:
    left, right = read_tensors(first), read_tensors(second)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def attach_reader(folder: Path, reader: Path, out: Path) -> None:
    """Give a checkpoint a text reader (``clara train reader``), which answers from passages' text.

    Raises:
        CheckpointError: the reader cannot be read, was trained without context, or does not fit the checkpoint.
    """
    manifest, found = checkpoint.read_manifest(folder), read_reader_manifest(reader)
    if found.context != "text":
        raise CheckpointError(f'{reader} was trained without context (closed book); reader_context = "text" is needed')
    if found.base_identity != manifest.base_identity:
        raise CheckpointError(
            f"{reader} was trained on {found.base_model} ({found.base_identity}), {folder} on "
            f"{manifest.base_model} ({manifest.base_identity}); train a reader on the same base model"
        )
    if (found.lora.rank, found.lora.alpha) != (manifest.lora.rank, manifest.lora.alpha):
        raise CheckpointError(
            f"{reader} has LoRA rank {found.lora.rank} and alpha {found.lora.alpha}, {folder} has "
            f"{manifest.lora.rank} and {manifest.lora.alpha}; train a reader with the checkpoint's"
        )
    roles = tuple(role for role in manifest.roles if role != "text_reader")
    refuses = manifest.refuses or found.refuses
    made = manifest.unmeasured(roles=(*roles, "text_reader"), refuses=refuses)
    with checkpoint.copying(folder, out, made, card=card_of(folder)) as scratch:
        place = scratch / "adapters" / "text_reader"
        place.mkdir(exist_ok=True)
        for name in _ADAPTER_FILES:
            if not (reader / name).is_file():
                raise CheckpointError(f"{reader} has no {name}")
            shutil.copyfile(reader / name, place / name)


def cut_by_information(folder: Path, texts: Sequence[str], out: Path, source: CheckpointLoader) -> None:
    """Cut the spans of a checkpoint by information instead of length; its memories change, so it wants training.

    Args:
        folder: the checkpoint.
        texts: passages to count tokens in.
        out: where the result is written.
        source: how the checkpoint is loaded.
    """
    loaded = source.load(folder)
    vocabulary = len(loaded.base.model.get_input_embeddings().weight)
    loaded.network.table.count((plain_ids(loaded.base.tokenizer, text) for text in texts), vocabulary)
    compression = loaded.manifest.compression.model_copy(update={"spans": "information"})
    made = loaded.manifest.unmeasured(compression=compression)
    checkpoint.save(loaded.network, made, out, card=card_of(folder))


def derives_queries(folder: Path) -> bool:
    """Whether a checkpoint's questions go through the compressor itself, so that no trained reasoner would be lost."""
    manifest = checkpoint.read_manifest(folder)
    if manifest.query_read_out:
        return False
    if "query_reasoner" not in manifest.roles:
        return True
    adapters = folder / "adapters"
    return _equal(adapters / "compressor" / ADAPTER, adapters / "query_reasoner" / ADAPTER)


def same_compressor(folder: Path, other: Path) -> bool:
    """Whether two checkpoints have equal compressors."""
    place = Path("adapters") / "compressor" / ADAPTER
    return _equal(folder / place, other / place)


def renew_queries(
    folder: Path, texts: Sequence[str], asked: Sequence[str], out: Path, source: CheckpointLoader, *, late: bool
) -> None:
    """Give a checkpoint a query side that was not trained: the compressor's weights and a whitened projection.

    No label and no step of training is involved: the texts only say what passages and questions look like.

    Args:
        folder: the checkpoint; a query reasoner that it has is replaced.
        texts: passages.
        asked: questions.
        out: where the result is written.
        source: how the checkpoint is loaded.
        late: compare memory tokens one by one (late interaction), not their mean.
    """
    loaded = source.load(folder)
    network = loaded.network.eval()
    network.adapters.reset_query_reasoner(seed=None)
    network.table.share_query_read_out()
    network.table.project_queries(projected=True, late=late)
    network.table.to(network.adapters.bare().device)
    wanted = dict.fromkeys(loaded.manifest.compression.rates, texts)
    whiten(loaded, Documents(loaded, source.cache), wanted, asked)
    checkpoint.save(network, loaded.manifest.unmeasured(), out, card=card_of(folder))
