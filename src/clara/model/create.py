"""A network: fresh on a base model, or from a checkpoint folder.

The one place where names of models become networks; training and ``ClaraModel`` both start here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from clara.config import CompressionConfig, LoraSettings
from clara.errors import BaseModelError, CheckpointError
from clara.model import checkpoint, hub, official, official_load
from clara.model.adapters import Adapters
from clara.model.backbone import BaseModel, load_base, plain_ids
from clara.model.checkpoint import Manifest
from clara.model.hub import Progress
from clara.model.memory import MemoryTable
from clara.model.network import Network, read_out
from clara.model.official_prompting import OfficialPrompter
from clara.model.prompting import Prompter

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True, slots=True)
class Loaded:
    """A network with what belongs to it.

    Attributes:
        network: backbone with adapters, and memory table.
        base: the base model; ``network`` has put its adapter layers into ``base.model``.
        manifest: what a checkpoint of it says.
    """

    network: Network
    base: BaseModel
    manifest: Manifest

    def prompter(self) -> Prompter:
        """Builds its encoder inputs and its prompts."""
        vocabulary = self.network.vocabulary
        if vocabulary is None:
            return Prompter(self.base.tokenizer)
        window = self.manifest.compression.window_tokens
        return OfficialPrompter(self.base.tokenizer, vocabulary.memory_ids, window_tokens=window)


def fresh(
    base: BaseModel, compression: CompressionConfig, lora: LoraSettings, samples: Sequence[str], *, seed: int = 0
) -> Loaded:
    """An untrained network, its read-out calibrated on sample texts.

    Args:
        base: the base model; adapter layers are put into it.
        compression: read-out and rates.
        lora: adapters' shape.
        samples: a few dozen texts like those to come.
        seed: of memory tokens and LoRA weights; the global generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapters = Adapters.fresh(base.model, lora)
    width = int(base.model.get_input_embeddings().weight.shape[1])
    network = Network(adapters, compression, MemoryTable(compression, width).to(base.model.device))
    network.table.initialise(base.model.get_input_embeddings().weight, seed=seed)
    calibrate(network, base, samples)
    manifest = Manifest(
        base_model=base.name,
        base_identity=base.identity,
        hidden_size=width,
        compression=compression,
        lora=lora,
        roles=adapters.roles,
    )
    return Loaded(network, base, manifest)


@torch.no_grad()
def calibrate(network: Network, base: BaseModel, samples: Sequence[str]) -> None:
    """Start the affine read-out from what the network makes of sample texts (see ``MemoryTable.calibrate``)."""
    if not network.config.gain or not samples:
        return
    embeddings = base.model.get_input_embeddings().weight
    for rate in network.config.rates:
        reads, residuals = [], []
        for text in samples:
            ids = torch.tensor([plain_ids(base.tokenizer, text)[: network.config.window_tokens]])
            ids = ids.to(embeddings.device)
            with network.adapters.use("compressor"), torch.autocast(ids.device.type, torch.bfloat16):
                parts = read_out(
                    network.adapters.bare(), network.table, network.config, ids, torch.ones_like(ids).bool(), rate=rate
                )
            reads.append(parts.read[0])
            residuals.append(parts.residual[0])
        network.table.calibrate(embeddings, torch.cat(reads), torch.cat(residuals), rate=rate)


def from_checkpoint(
    folder: Path,
    cache: Path,
    *,
    base_name: str | None = None,
    dtype: torch.dtype,
    adapter_dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> Loaded:
    """The network of a checkpoint.

    Args:
        folder: the checkpoint, native or in Apple's format.
        cache: see ``hub.find_base``.
        base_name: where the base model is, if not where the checkpoint says.
        dtype: of the base weights in memory.
        adapter_dtype: of the LoRA weights in memory; as ``dtype`` when None.
        device: for all of it.
        progress: told about downloads.

    Raises:
        BaseModelError: the base model cannot be had.
        CheckpointError: the checkpoint is damaged or belongs to another base model.
    """
    if not checkpoint.is_checkpoint(folder) and official.is_official(folder):
        found = official.read(folder)
        base = _official_base(found, cache, base_name=base_name, dtype=dtype, device=device, progress=progress)
        files = hub.find_base(base.name, cache)
        network = official_load.network_of(found, base, files, adapter_dtype=adapter_dtype or dtype)
        return Loaded(network, base, official_load.manifest_of(found, base, network))
    manifest = checkpoint.read_manifest(folder)
    base = load_base(base_name or manifest.base_model, cache, dtype=dtype, device=device, progress=progress)
    network = checkpoint.load(folder, manifest, base, adapter_dtype=adapter_dtype or dtype)
    return Loaded(network, base, manifest)


def _official_base(
    found: official.Official,
    cache: Path,
    *,
    base_name: str | None,
    dtype: torch.dtype,
    device: str | torch.device,
    progress: Progress | None,
) -> BaseModel:
    named = found.config.decoder_model_name
    try:
        return load_base(base_name or named, cache, dtype=dtype, device=device, progress=progress)
    except BaseModelError as error:
        if base_name is not None:
            raise
        raise CheckpointError(
            f"{found.folder} names its base model {named!r}, which cannot be had here; say where it is with --base "
            f"({error})"
        ) from error
