"""A network: fresh on a base model, or from a checkpoint folder.

The one place where names of models become networks; training and ``ClaraModel`` both start here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Generic

import torch
from typing_extensions import TypeVar

from clara.config import CompressionConfig, LoraSettings, Settings
from clara.errors import BaseModelError, CheckpointError
from clara.model import checkpoint
from clara.model.backbone import ADAPTER, BaseModel, load_base, plain_ids
from clara.model.checkpoint import Manifest
from clara.model.decoder import MERGE_LIMIT, Decoder, StoredAdapters
from clara.model.hub import base as hub_base
from clara.model.hub.base import Progress
from clara.model.network import Network, StoredNetwork, read_outs
from clara.model.placement import Estimate, Placement, available, shapes_of
from clara.model.prompting import Prompter
from clara.model.table import MemoryTable

if TYPE_CHECKING:
    from clara.model.apple import format as apple_format

_AnyNetwork_co = TypeVar("_AnyNetwork_co", bound=Decoder | StoredNetwork, default=Network, covariant=True)
_AnyManifest_co = TypeVar("_AnyManifest_co", bound=Settings, default=Manifest, covariant=True)


@dataclass(frozen=True, slots=True)
class Loaded(Generic[_AnyNetwork_co, _AnyManifest_co]):
    """A network with its base model and manifest.

    Attributes:
        network: its adapter layers are put into ``base.model``; a reader has no memory table.
        merge: there is memory for merged copies of the weights (``RoleWeights``).
        fingerprint: the checkpoint's, where the adapters in memory no longer have its values.
    """

    network: _AnyNetwork_co
    base: BaseModel
    manifest: _AnyManifest_co
    merge: bool = True
    fingerprint: str | None = None

    def prompter(self: Loaded[Network | StoredNetwork]) -> Prompter:
        """The prompter of its encoder inputs and prompts."""
        vocabulary = self.network.vocabulary
        if vocabulary is None:
            return Prompter(self.base.tokenizer, refuses=self.manifest.refuses)
        from clara.model.apple.vocabulary import OfficialPrompter  # noqa: PLC0415

        window = self.manifest.compression.window_tokens
        return OfficialPrompter(self.base.tokenizer, vocabulary.memory_ids, window_tokens=window)


def fresh(
    base: BaseModel,
    compression: CompressionConfig,
    lora: LoraSettings,
    samples: Sequence[str],
    *,
    counted: Iterable[str] = (),
    seed: int = 0,
) -> Loaded:
    """An untrained network, its read-out calibrated on sample texts, a few dozen typical ones.

    Adapter layers are put into ``base``. ``counted`` are further texts to count tokens in, where spans are of equal
    information. The seed is of memory tokens and LoRA weights; the global generator is left as it was.
    """
    from clara.model.adapters import Adapters  # noqa: PLC0415 - PEFT takes seconds that reading does without

    size, width = base.model.get_input_embeddings().weight.shape
    table = MemoryTable(compression, width, size)
    if compression.spans == "information":
        table.count((plain_ids(base.tokenizer, text) for text in chain(samples, counted)), size)
    table.initialise(base.model.get_input_embeddings().weight, seed=seed)
    vocabulary = origin = None
    if compression.input_format == "official":
        from clara.model.apple import format as apple_format  # noqa: PLC0415 - others do without Apple's format

        vocabulary, origin = apple_format.fresh(base, compression, lora, table, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapters = Adapters.fresh(base.model, lora)
    network = Network(adapters, table.to(base.model.device), vocabulary)
    _calibrate(network, base, samples)
    manifest = Manifest(
        base_model=base.name,
        base_identity=base.identity,
        hidden_size=width,
        compression=compression,
        lora=lora,
        roles=adapters.roles,
        official=origin,
    )
    return Loaded(network, base, manifest)


def rebuilt(loaded: Loaded, compression: CompressionConfig, samples: Sequence[str], *, seed: int = 0) -> Loaded:
    """The network with a memory table of another read-out, which keeps the tensors that both have; adapters are shared.

    With layers or places added it computes the same as before, until they are trained. ``compression`` may differ in
    ``read_out``, ``layers``, ``layer_rank`` and ``places``; new layers are calibrated on ``samples``, a few dozen
    texts.
    """
    network, manifest = loaded.network, loaded.manifest.model_copy(update={"compression": compression})
    old = network.table
    vocabulary = 0 if old.information is None else len(old.information)
    table = MemoryTable(compression, manifest.hidden_size, vocabulary)
    if old.read_out_of_queries():
        table.split_query_read_out()
    table.project_queries(projected=old.query_projection is not None, late=old.late)
    table.initialise(loaded.base.model.get_input_embeddings().weight, seed=seed)
    kept = table.state_dict().keys() & old.state_dict().keys()
    table.load_state_dict({name: old.state_dict()[name] for name in kept}, strict=False)
    made = Network(network.adapters, table.to(loaded.base.model.device), network.vocabulary)
    _calibrate(made, loaded.base, samples, affine=False)
    return replace(loaded, network=made, manifest=manifest)


@torch.no_grad()
def _calibrate(network: Network, base: BaseModel, samples: Sequence[str], *, affine: bool = True) -> None:
    """Initialise the read-out of a network, in place, on a few dozen sample texts.

    ``affine``: the affine read-out too, not only the mix of layers.
    """
    config = network.table.config
    if not (config.gain or config.layers) or not samples:
        return
    embeddings = base.model.get_input_embeddings().weight
    for rate in config.rates:
        reads, residuals, layers = [], [], []
        for text in samples:
            window = plain_ids(base.tokenizer, text)[: config.window_tokens]
            ids = torch.tensor([window], device=embeddings.device)
            mask, model = torch.ones_like(ids).bool(), network.adapters.bare()
            with network.adapters.use("compressor"), torch.autocast(ids.device.type, torch.bfloat16):
                parts = read_outs(model, network.table, ids, mask, rates=(rate,))[rate]
            reads.append(parts.read[0])
            residuals.append(parts.residual[0])
            layers.extend([] if parts.layers is None else [parts.layers[0]])
        if affine:
            network.table.calibrate(embeddings, torch.cat(reads), torch.cat(residuals), rate=rate)
        if layers and network.table.mix is not None:
            network.table.mix.calibrate(torch.cat(layers), rate=rate)


def from_checkpoint(
    folder: Path,
    cache: Path,
    where: Placement,
    *,
    base_name: str | None = None,
    adapter_dtype: torch.dtype | None = None,
    check_memory: bool = False,
    progress: Progress | None = None,
) -> Loaded:
    """The network of a checkpoint, native or in Apple's format.

    ``base_name`` is where the base model is, if not where the checkpoint says; ``adapter_dtype`` is of the LoRA weights
    in memory, as the arithmetic when None.

    Raises:
        BaseModelError: the base model cannot be had.
        CheckpointError: the checkpoint is damaged or belongs to another base model.
        MemoryShortageError: it does not fit (with ``check_memory``).
    """
    from clara.model.apple import format as apple_format  # noqa: PLC0415 - as in fresh

    adapter_dtype = adapter_dtype or where.dtype
    if not checkpoint.is_checkpoint(folder) and apple_format.is_official(folder):
        official = apple_format.read(folder)
        name, files = _official_base(official, cache, base_name, progress)
        size = AdapterSize(official.adapter_parameters(), len(official.adapters))
        merge = _fits(files, where, size, name) if check_memory else True
        base = load_base(name, cache, dtype=where.dtype, device=where.device, bits=where.bits)
        network = official.network(base, files, adapter_dtype=_read_as(adapter_dtype))
        manifest = official.manifest(base, network)
    else:
        manifest, base, merge = _native_base(folder, cache, where, base_name, check_memory, progress)
        network = checkpoint.load(folder, manifest, base, adapter_dtype=_read_as(adapter_dtype))
    return _cast(Loaded(network, base, manifest, merge=merge), adapter_dtype)


def open_checkpoint(
    folder: Path,
    cache: Path,
    where: Placement,
    *,
    base_name: str | None = None,
    check_memory: bool = True,
    merge: bool = True,
    progress: Progress | None = None,
) -> Loaded[Network | StoredNetwork]:
    """A checkpoint for inference; other arguments and errors as ``from_checkpoint``.

    A small native one is read without PEFT, whose layers nothing would train; ``merge`` allows merged copies of the
    weights.
    """
    if checkpoint.is_checkpoint(folder) and where.dtype != torch.float16:
        manifest, base, room = _native_base(folder, cache, where, base_name, check_memory, progress)
        if StoredAdapters.can_hold(base.model):
            return Loaded(checkpoint.load_stored(folder, manifest, base), base, manifest, merge=merge and room)
        network = checkpoint.load(folder, manifest, base, adapter_dtype=where.dtype)
        return Loaded(network, base, manifest, merge=room)
    return from_checkpoint(folder, cache, where, base_name=base_name, check_memory=check_memory, progress=progress)


def _native_base(
    folder: Path,
    cache: Path,
    where: Placement,
    base_name: str | None,
    check_memory: bool,  # noqa: FBT001 - internal
    progress: Progress | None,
) -> tuple[Manifest, BaseModel, bool]:
    """Manifest and base model of a native checkpoint, and room for merged copies."""
    manifest = checkpoint.read_manifest(folder)
    name = base_name or manifest.base_model
    merge = True
    if check_memory:
        files = hub_base.find_base(name, cache, progress=progress)
        merge = _fits(files, where, AdapterSize.of(folder, manifest), name)
    base = load_base(name, cache, dtype=where.dtype, device=where.device, bits=where.bits, progress=progress)
    return manifest, base, merge


def _read_as(dtype: torch.dtype) -> torch.dtype:
    """The dtype to read adapters in: float16 would lose small values before the fingerprint is taken."""
    return torch.float32 if dtype == torch.float16 else dtype


def _cast(loaded: Loaded, dtype: torch.dtype) -> Loaded:
    """With adapters of ``dtype``; only float16 needs a cast here."""
    if _read_as(dtype) == dtype:
        return loaded
    mark = checkpoint.fingerprint(loaded.network, loaded.manifest)
    for role in loaded.network.adapters.roles:
        for parameter in loaded.network.adapters.parameters_of(role):
            parameter.data = parameter.data.to(dtype)
    return replace(loaded, fingerprint=mark)


@dataclass(frozen=True, slots=True)
class AdapterSize:
    """LoRA weights of all of a checkpoint's roles, and the number of roles with weights of their own."""

    parameters: int
    roles: int

    @classmethod
    def of(cls, folder: Path, manifest: Manifest) -> AdapterSize:
        """Of a native checkpoint, whose files usually hold bf16; the loader reports missing ones."""
        files = [folder / "adapters" / role / ADAPTER for role in manifest.roles]
        return cls(sum(path.stat().st_size for path in files if path.is_file()) // 2, len(files))


def need(files: Path, where: Placement, size: AdapterSize) -> Estimate:
    """Memory of a model, with the merged copies that inference would make.

    Raises:
        BaseModelError: the base model's files cannot be read.
    """
    small = shapes_of(files).total <= MERGE_LIMIT and where.bits is None and not where.spread
    return Estimate.of(files, where, adapters=size.parameters, merged=size.roles if small else 0)


def _fits(files: Path, where: Placement, size: AdapterSize, name: str) -> bool:
    """There is room for merged copies too; ``MemoryShortageError`` if there is none even without them."""
    whole = need(files, where, size)
    if whole.total <= available(where):
        return True
    replace(whole, merged=0).require(where, name)
    return False


def _official_base(
    official: apple_format.Official, cache: Path, base_name: str | None, progress: Progress | None
) -> tuple[str, Path]:
    """Name and folder of the base model of a checkpoint in Apple's format."""
    if base_name is not None:
        return base_name, hub_base.find_base(base_name, cache, progress=progress)
    try:
        return official.base_name, hub_base.find_base(official.base_name, cache, progress=progress)
    except BaseModelError as error:
        raise CheckpointError(
            f"{official.folder} names its base model {official.config.decoder_model_name!r}, which cannot be had here; "
            f"say where it is with --base ({error})"
        ) from error
