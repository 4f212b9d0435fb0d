"""The network before the first step: a checkpoint's or a fresh one, gradients switched on, questions whitened."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from clara.config import CompressionConfig, LoraSettings, check
from clara.errors import ClaraError
from clara.model import checkpoint
from clara.model.backbone import load_base, padded_texts
from clara.model.checkpoint import Manifest
from clara.model.clara_model import find_checkpoint
from clara.model.create import Loaded, fresh, from_checkpoint, rebuilt
from clara.model.decoder import Decoder, Role
from clara.model.hub.base import Progress as HubProgress
from clara.model.network import Network
from clara.model.placement import DTYPES, placement
from clara.train.config import MemoryConfig
from clara.train.data import TrainingData
from clara.train.documents import Documents

_CALIBRATION_TEXTS = 32
WHITENING_DOCUMENTS = 4000
"""Enough, as the questions below, for a covariance of a few hundred dimensions beside its ridge."""
WHITENING_QUESTIONS = 1024
_WHITENING_SHARE = 2
"""Vectors of passages, and of questions, for each dimension of a covariance: fewer say less than the old whitening."""
_TOKENS_A_TEXT = 8
_QUESTIONS_A_BATCH = 32
_ADDED = ("read_out", "layers", "layer_rank", "places")
"""Fields of the compression that a run may add to its start checkpoint."""


def compressed_model(
    config: MemoryConfig, data: TrainingData, cache: Path, device: str, progress: HubProgress | None
) -> Loaded:
    """The checkpoint's network that a run goes on from, or a fresh one on its base model.

    ``start_faults`` has checked it.
    """
    where = placement(config.dtype, device)
    if config.start is not None:
        folder = find_checkpoint(config.start)
        loaded = from_checkpoint(folder, cache, where, adapter_dtype=DTYPES["fp32"], progress=progress)
        compression = _extended(config.compression, loaded.manifest.compression)
        if compression == loaded.manifest.compression:
            return loaded
        return rebuilt(loaded, compression, data.some_texts(_CALIBRATION_TEXTS), seed=config.seed)
    base = load_base(config.base, cache, dtype=where.dtype, device=device, bits=where.bits, progress=progress)
    texts = (text for rows in data.sources.values() for record in rows for text in record.passages)
    samples = data.some_texts(_CALIBRATION_TEXTS)
    return fresh(base, config.compression, config.lora, samples, counted=texts, seed=config.seed)


def _extended(given: CompressionConfig, own: CompressionConfig) -> CompressionConfig:
    """A checkpoint's ``own`` compression with the layers and places that a run adds, if they go together."""
    added = {name: getattr(given, name) for name in _ADDED if name in given.model_fields_set}
    if added.get("read_out") == "layers":
        added["pooled_input"] = False
    return check(CompressionConfig, own.model_dump() | added, source="compression")


def release(network: Decoder, roles: Sequence[Role]) -> None:
    """Turn gradients on in the adapters of ``roles``, with the compressor's in the memory table, and off elsewhere."""
    network.requires_grad_(requires_grad=False)
    for role in roles:
        for parameter in network.adapters.parameters_of(role):
            parameter.requires_grad = True
    if isinstance(network, Network) and "compressor" in roles:
        table = network.table.requires_grad_(requires_grad=True)
        for parameter in [*table.read_out_of_queries(), *table.projection_of_queries()]:
            parameter.requires_grad = False


def start_faults(config: MemoryConfig, of_stage: Callable[[str, Manifest], list[str]]) -> list[str]:
    """Contradictions of a fresh start, or of a start checkpoint, including ``of_stage``'s."""
    if config.start is None:
        return _paper_faults(config.compression, config.lora)
    try:
        folder = find_checkpoint(config.start)
        if not checkpoint.is_checkpoint(folder):
            return [
                f"start: {config.start} is in Apple's format; make a native checkpoint of it first, and start from "
                f"that: clara convert {config.start} --out DIR (--base MODEL)"
            ]
        manifest = checkpoint.read_manifest(folder)
    except ClaraError as error:
        return [f"start: {error}"]
    return [*_manifest_faults(config, config.start, manifest), *of_stage(config.start, manifest)]


def _manifest_faults(config: MemoryConfig, start: str, manifest: Manifest) -> list[str]:
    """Settings that contradict the start checkpoint's."""
    settings: list[tuple[str, object, object]] = []  # name, the run's value, the checkpoint's
    if "base" in config.model_fields_set:
        settings.append(("base", config.base, manifest.base_model))
    for part in ("compression", "lora"):
        given, own = getattr(config, part), getattr(manifest, part)
        names = sorted(given.model_fields_set if part in config.model_fields_set else ())
        decided = (name for name in names if part == "lora" or not _adds(name, given, own))
        settings.extend((f"{part}.{name}", getattr(given, name), getattr(own, name)) for name in decided)
    faults = [
        f"{name} is {given!r}, but {start} has {own!r}, which a run goes on with; leave it out"
        for name, given, own in settings
        if given != own
    ]
    rates = manifest.compression.rates
    if config.rate_weights and len(config.rate_weights) != len(rates):
        faults.append(f"rate_weights needs one weight for each rate of {start}: {rates}")
    return faults


def _adds(name: str, given: CompressionConfig, own: CompressionConfig) -> bool:
    """The run adds a part of the read-out that the checkpoint lacks."""
    return given.read_out == "layers" if name == "read_out" else name in _ADDED and not getattr(own, name)


def _paper_faults(compression: CompressionConfig, lora: LoraSettings) -> list[str]:
    """Settings of a fresh start with ``input_format`` ``official`` that Apple's format has no place for."""
    if compression.input_format != "official":
        return []
    rates, window = compression.rates, compression.window_tokens
    plain = CompressionConfig(window_tokens=window, rates=rates, input_format="official")
    given = [name for name, value in plain if getattr(compression, name) != value]
    faults = [f"compression.{name} has no place in input_format official: leave it out" for name in given]
    if lora.alpha != 2 * lora.rank:
        faults.append(f"input_format official needs lora.alpha = {2 * lora.rank}, twice the rank, got {lora.alpha}")
    if lora.targets:
        faults.append("lora.targets has no place in input_format official, whose adapters are on every linear layer")
    return faults


def whitening_needs(hidden: int, *, late: bool) -> int:
    """Passages, and as many questions, that whitening a space of ``hidden`` dimensions takes."""
    return -(-_WHITENING_SHARE * hidden // (_TOKENS_A_TEXT if late else 1))


@torch.no_grad()
def whiten(loaded: Loaded, documents: Documents, wanted: Mapping[int, Sequence[str]], asked: Sequence[str]) -> None:
    """Initialise the projection of questions from the run's documents and questions (``MemoryTable.whiten_queries``).

    Uses means of memories, or for late interaction ``_TOKENS_A_TEXT`` memory tokens of each, spread evenly; of the
    passages by rate in ``wanted`` the first ``WHITENING_DOCUMENTS``.
    """
    network = loaded.network
    sample = {rate: texts[:WHITENING_DOCUMENTS] for rate, texts in wanted.items()}
    documents.prepare(sample)  # in batches; one by one below they are only read
    for rate, texts in sample.items():
        seen = [_compared(network, documents([text], rate).float()) for text in texts]
        # A projection that has not been set yet is the identity: this is what it will be given.
        queries = [_compared(network, memories) for memories in _question_memories(loaded, asked, rate=rate)]
        if seen and queries:
            made = torch.cat(queries)
            network.table.whiten_queries(torch.cat(seen).to(made.device), made, rate=rate)


def whiten_anew(loaded: Loaded, texts: Sequence[str], asked: Sequence[str], cache: Path, *, late: bool) -> None:
    """Give questions a new projection from passages and questions alone: no label, no training step.

    The network is in evaluation mode; its query reasoner is the compressor's copy. ``cache`` is a folder for memories.
    """
    table = loaded.network.table
    table.project_queries(projected=True, late=late)
    table.to(loaded.network.adapters.bare().device)
    wanted = dict.fromkeys(loaded.manifest.compression.rates, texts)
    whiten(loaded, Documents(loaded, cache), wanted, asked)


def _compared(network: Network, memories: Tensor) -> Tensor:
    """The vectors [vectors, H] of memories [texts, N, H] that the projection compares, or a sample of them."""
    if not network.table.late:
        return memories.mean(dim=1)
    step = max(1, memories.shape[1] // _TOKENS_A_TEXT)
    return memories[:, step // 2 :: step].flatten(0, 1)


@torch.no_grad()
def _question_memories(loaded: Loaded, asked: Sequence[str], *, rate: int) -> Iterator[Tensor]:
    """Unweighted memories of questions by the query reasoner, in batches of float32 [questions, N, H]."""
    network, prompter = loaded.network, loaded.prompter()
    device = network.adapters.bare().device
    rows = [prompter.window_ids(question, network.table.config.window_tokens) for question in asked]
    for start in range(0, len(rows), _QUESTIONS_A_BATCH):
        ids, mask = (part.to(device) for part in padded_texts(rows[start : start + _QUESTIONS_A_BATCH]))
        with torch.autocast(device.type, torch.bfloat16, enabled=network.embed(ids).dtype == torch.bfloat16):
            parts = network.encode("query_reasoner", ids, mask, rate=rate).read_out
        yield network.table.assemble(parts.read, parts.residual, parts.layers, rate=rate, query=True).float()


@dataclass(frozen=True, slots=True)
class Carried:
    """Parts of a start checkpoint that are stale once the run has changed its weights.

    Notices are for the user, before the first step and in the card. With ``derives_queries`` the query reasoner is
    derived from the compressor again after the last step.
    """

    notices: tuple[str, ...] = ()
    derives_queries: bool = False


def carried(loaded: Loaded, data: TrainingData, roles: Sequence[Role]) -> Carried:
    """The parts of a loaded checkpoint that go stale when ``roles`` are trained on ``data``.

    An untrained query reasoner is the compressor's copy with a whitened projection: both are derived again when the
    compressor changes, if there are enough texts to whiten. A trained one stays as it is.
    """
    notices = []
    if loaded.manifest.measured():
        notices.append(f"kept, though not measured again with the new weights: {', '.join(loaded.manifest.measured())}")
    network, table = loaded.network, loaded.network.table
    own = "query_reasoner" in network.adapters.roles
    if "compressor" not in roles or "query_reasoner" in roles or not (own or table.query_projection is not None):
        return Carried(tuple(notices))
    adapters = network.adapters
    copied = not own or all(
        map(torch.equal, adapters.parameters_of("compressor"), adapters.parameters_of("query_reasoner"))
    )
    if table.read_out_of_queries() or not copied:
        stale = "it was trained with the compressor as it was: train stage end-to-end or retriever on the result"
    elif table.query_projection is not None and (few := _too_few(loaded, data)):
        stale = f"{few}: give more records"
    else:
        notices.append("the query reasoner is derived from the compressor again after the last step")
        return Carried(tuple(notices), derives_queries=True)
    notices.append(
        f"the query reasoner will be stale, because this run changes the compressor; {stale}, or give the "
        "result a new one: clara calibrate CHECKPOINT --only queries --data FILE --out DIR"
    )
    return Carried(tuple(notices))


def _too_few(loaded: Loaded, data: TrainingData) -> str:
    """The reason why a run's texts do not suffice to whiten questions; empty where they do."""
    needed = whitening_needs(loaded.manifest.hidden_size, late=loaded.network.table.late)
    passages, asked = len(data.texts()), len(data.some_questions(WHITENING_QUESTIONS))
    if min(passages, asked) >= needed:
        return ""
    return f"to whiten questions takes {needed} passages and as many questions, the run has {passages} and {asked}"


def derive_queries(loaded: Loaded, data: TrainingData, cache: Path) -> None:
    """Copy the compressor into the query reasoner and whiten questions anew, compared as before."""
    network, table = loaded.network.eval(), loaded.network.table
    if "query_reasoner" in network.adapters.roles:
        network.adapters.reset_query_reasoner(seed=None)
    if table.query_projection is not None:
        whiten_anew(loaded, data.texts(), data.some_questions(WHITENING_QUESTIONS), cache, late=table.late)
