"""What a stage starts from, and which weights it trains: the network before the first step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clara import prompts
from clara.data import MultiHop, PassageQA
from clara.model.adapters import Adapters
from clara.model.backbone import BaseModel, load_base
from clara.model.checkpoint import Manifest, memory_fingerprint
from clara.model.clara_model import find_checkpoint
from clara.model.create import Loaded, fresh, from_checkpoint
from clara.model.hub import Progress
from clara.model.memory import MemoryTable
from clara.model.network import Network
from clara.model.placement import DTYPES, placement
from clara.model.roles import Role
from clara.train.batch import padded_texts
from clara.train.candidates import passages_of
from clara.train.config import Stage, TrainConfig
from clara.train.distil import add_teacher, teacher_fingerprint
from clara.train.documents import Documents
from clara.train.plan import TrainingData

CALIBRATION_TEXTS = 32
WHITENING_DOCUMENTS = 4000
"""Enough, as the questions below, for a covariance of a few hundred dimensions beside its ridge."""
WHITENING_QUESTIONS = 1024
TOKENS_A_TEXT = 8
QUESTIONS_A_BATCH = 32


def start(
    stage: Stage, data: TrainingData, config: TrainConfig, cache: Path, device: str, progress: Progress | None
) -> Loaded:
    """The network of a run before its first step, gradients on where the stage trains.

    What the start cannot be is ``checks``' matter.
    """
    dtype = placement(config.dtype, device).dtype
    if stage == "reader":
        return _reader(load_base(config.base, cache, dtype=dtype, device=device, progress=progress), config)
    if config.start is not None:
        folder = find_checkpoint(config.start)
        loaded = from_checkpoint(
            folder, cache, dtype=dtype, adapter_dtype=DTYPES["fp32"], device=device, progress=progress
        )
    else:
        base = load_base(config.base, cache, dtype=dtype, device=device, progress=progress)
        texts = (text for rows in data.sources.values() for record in rows for text in passages_of(record))
        loaded = fresh(base, config.compression, config.lora, _samples(data), counted=texts, seed=config.seed)
    if "query_reasoner" in trained_roles(stage, config):
        _start_reasoner(loaded, config)
    if config.teacher is not None:
        add_teacher(loaded, Path(config.teacher).expanduser())
    _release(loaded.network, stage, config)  # last: PEFT turns gradients on and off as it adds adapters
    return loaded


def _reader(base: BaseModel, config: TrainConfig) -> Loaded:
    """A backbone with a fresh generator; the rest of the network is there in name only."""
    compression = config.compression.model_copy(update={"rates": (config.compression.default_rate,)})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        adapters = Adapters.fresh(base.model, config.lora, roles=("generator",))
    width = int(base.model.get_input_embeddings().weight.shape[1])
    network = Network(adapters, compression, MemoryTable(compression, width).to(base.model.device))
    manifest = Manifest(
        base_model=base.name,
        base_identity=base.identity,
        hidden_size=width,
        compression=compression,
        lora=config.lora,
        roles=adapters.roles,
    )
    _release(network, "reader", config)
    return Loaded(network, base, manifest)


def trained_roles(stage: Stage, config: TrainConfig) -> tuple[Role, ...]:
    """The adapters that a stage trains."""
    if stage == "retriever":
        return ("query_reasoner",)
    if stage == "reader":
        return ("generator",)
    if stage == "end_to_end":
        return (
            ("compressor", "query_reasoner", "generator")
            if config.train_compressor
            else ("query_reasoner", "generator")
        )
    return ("generator",) if config.freeze_compressor else ("compressor", "generator")


def keeps_memories(stage: Stage, config: TrainConfig) -> bool:
    """Whether the compressor stays as it is, so that each passage is compressed once."""
    return stage != "reader" and "compressor" not in trained_roles(stage, config)


def facts_of(loaded: Loaded, config: TrainConfig) -> dict[str, Any]:
    """What a card says of the start (checkpoint, its last stage, its compressor's fingerprint) and of the teacher."""
    facts: dict[str, Any] = {}
    if config.start is not None:
        mark = memory_fingerprint(loaded.network, loaded.manifest)
        facts["start"] = {"checkpoint": config.start, "stage": loaded.manifest.stage, "compressor": mark}
    if config.teacher is not None:
        mark = teacher_fingerprint(loaded, Path(config.teacher).expanduser())
        facts["teacher"] = {"reader": config.teacher, "fingerprint": mark}
    return facts


def starts_projection(loaded: Loaded, config: TrainConfig) -> bool:
    """Whether a run makes a projection of questions anew, rather than go on with its checkpoint's or have none."""
    return config.query_projection and not _keeps_projection(loaded, config)


def _keeps_projection(loaded: Loaded, config: TrainConfig) -> bool:
    manifest = loaded.manifest
    same = manifest.query_projection and manifest.late_interaction == config.late_interaction
    return config.reasoner_start == "checkpoint" and same


def _start_reasoner(loaded: Loaded, config: TrainConfig) -> None:
    """Adapter and read-out of the reasoner as the run wants them before its first step."""
    network, going_on = loaded.network, config.reasoner_start == "checkpoint"
    if not config.query_read_out:
        if not going_on:
            network.table.share_query_read_out()
    elif not (going_on and network.table.read_out_of_queries()):
        network.table.split_query_read_out()
    if not _keeps_projection(loaded, config):
        network.table.project_queries(projected=config.query_projection, late=config.late_interaction)
    if not going_on:
        network.adapters.reset_query_reasoner(seed=config.seed if config.reasoner_start == "random" else None)


@torch.no_grad()
def whiten(loaded: Loaded, documents: Documents, wanted: Mapping[int, Sequence[str]], asked: Sequence[str]) -> None:
    """Start the projection of questions from the run's own documents and questions (``MemoryTable.whiten_queries``).

    By means of memories, or for late interaction by ``TOKENS_A_TEXT`` memory tokens of each, spread evenly.

    Args:
        loaded: the network before its first step.
        documents: gives memories.
        wanted: passages by rate; the first ``WHITENING_DOCUMENTS`` of each are taken.
        asked: questions.
    """
    network = loaded.network
    sample = {rate: texts[:WHITENING_DOCUMENTS] for rate, texts in wanted.items()}
    documents.prepare(sample)  # in batches; one by one below they are only read
    for rate, texts in sample.items():
        seen = [_compared(network, documents([text], rate).float()) for text in texts]
        # A projection that has not been set yet is the identity: this is what it will be given.
        queries = [_compared(network, memories) for memories in question_memories(loaded, asked, rate=rate)]
        if seen and queries:
            made = torch.cat(queries)
            network.table.whiten_queries(torch.cat(seen).to(made.device), made, rate=rate)


def _compared(network: Network, memories: Tensor) -> Tensor:
    """Of memories [texts, N, H] the vectors [vectors, H] that the projection compares, or a sample of them."""
    if not network.table.late:
        return memories.mean(dim=1)
    step = max(1, memories.shape[1] // TOKENS_A_TEXT)
    return memories[:, step // 2 :: step].flatten(0, 1)


@torch.no_grad()
def question_memories(loaded: Loaded, asked: Sequence[str], *, rate: int) -> Iterator[Tensor]:
    """Memories of questions as the query reasoner makes them, before weights; in batches, float32 [questions, N, H]."""
    network, prompter = loaded.network, loaded.prompter()
    device = network.adapters.bare().device
    rows = [prompter.encoder_ids(question)[: network.config.window_tokens] for question in asked]
    for start in range(0, len(rows), QUESTIONS_A_BATCH):
        ids, mask = (part.to(device) for part in padded_texts(rows[start : start + QUESTIONS_A_BATCH]))
        with torch.autocast(device.type, torch.bfloat16, enabled=network.embed(ids).dtype == torch.bfloat16):
            parts = network.encode("query_reasoner", ids, mask, rate=rate).read_out
        yield network.table.assemble(parts.read, parts.residual, rate=rate, query=True).float()


def _release(network: Network, stage: Stage, config: TrainConfig) -> None:
    roles = trained_roles(stage, config)
    for parameter in network.parameters():
        parameter.requires_grad = False
    for role in roles:
        for parameter in network.adapters.parameters_of(role):
            parameter.requires_grad = True
    for parameter in network.table.parameters():
        parameter.requires_grad = "compressor" in roles
    for parameter in network.table.read_out_of_queries():
        parameter.requires_grad = "query_reasoner" in roles and config.query_read_out
    for parameter in network.table.projection_of_queries():
        parameter.requires_grad = "query_reasoner" in roles and config.query_projection


def sample_questions(data: TrainingData) -> list[str]:
    """About a thousand questions, from all sources alike."""
    each = -(-WHITENING_QUESTIONS // len(data.sources))
    asked: list[str] = []
    for rows in data.sources.values():
        for record in rows[:each]:
            pairs = [record] if isinstance(record, MultiHop) else record.all_pairs
            asked.extend(pair.question.strip() for pair in pairs[:1])
    return asked


def _samples(data: TrainingData) -> Sequence[str]:
    texts = []
    for rows in data.sources.values():
        for record in rows[:CALIBRATION_TEXTS]:
            if isinstance(record, PassageQA):
                texts.append(prompts.passage_text(record.title, record.text))
            else:
                texts.extend(prompts.passage_text(doc.title, doc.text) for doc in record.docs[:1])
    return texts[:: max(1, len(texts) // CALIBRATION_TEXTS)][:CALIBRATION_TEXTS]
