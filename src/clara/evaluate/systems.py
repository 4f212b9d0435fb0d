"""The systems that ``clara compare`` knows, in one table: who ranks, what is read, who reads it. docs/systems.md.

A system is built when it is asked for; only then are its optional packages and weights looked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType

from clara.errors import ConfigError
from clara.evaluate.contexts import MemoryContext, NoContext, ShortenedContext, TextCompressor, TextContext, Weights
from clara.evaluate.rankers import Bm25, Dense, Latent, bge, bge_reranker, dro_selector, minilm
from clara.evaluate.system import (
    Answerer,
    Answering,
    AnswerModel,
    Build,
    ContextMaker,
    RagSystem,
    Ranker,
    SystemSettings,
    digest,
)
from clara.evaluate.weights import (
    base_folder,
    base_identity,
    has_query_reasoner,
    hub_folder,
    identity,
    manifest_of,
    open_checkpoint,
    open_reader,
    option,
    rate_of,
    weights_hash,
)

_LLMLINGUA2 = "microsoft/llmlingua-2-xlm-roberta-large-meetingbank"


@dataclass(frozen=True, slots=True)
class _SystemParts:
    """A row of the table.

    Attributes:
        ranker: ``bm25``, ``minilm``, ``bge``, ``bge-reranker``, ``latent`` (memories), ``reasoner`` (memories where the
            checkpoint has a query reasoner, else BM25), ``dro``; None where nothing is ranked.
        context: ``memory``, ``text``, ``llmlingua``, ``llmlingua2``, ``none``; None for a system that only ranks.
        reader: weights of the model under test (``generator``, ``base``), or the option that names a LoRA reader.
        option: names the checkpoint that takes the place of the model under test.
        stage: that this checkpoint's last training stage must be.
    """

    ranker: str | None
    context: str | None = None
    reader: str = "base"
    option: str | None = None
    stage: str | None = None


_RANKERS = ("bm25", "minilm", "bge")
_QUOTABLE: dict[str, _SystemParts] = {
    **{f"text-{name}": _SystemParts(name, "text", "base") for name in _RANKERS},
    **{f"reader-{name}": _SystemParts(name, "text", "reader") for name in _RANKERS},
    "clara": _SystemParts("reasoner", "memory", "generator"),
    "clara-bm25": _SystemParts("bm25", "memory", "generator"),
    "clara-scp": _SystemParts("reasoner", "memory", "generator", option="scp", stage="scp"),
    "clara-instruct": _SystemParts("reasoner", "memory", "generator", option="instruct", stage="instruct"),
    "clara-end-to-end": _SystemParts("reasoner", "memory", "generator", option="end_to_end", stage="end_to_end"),
}
_TABLE: Mapping[str, _SystemParts] = MappingProxyType(
    {
        "closed-book": _SystemParts(None, "none", "base"),
        "closed-book-reader": _SystemParts(None, "none", "closed_book_reader"),
        **_QUOTABLE,
        **{f"{name}-quoted": parts for name, parts in _QUOTABLE.items()},
        "pisco": _SystemParts("bm25", "memory", "generator", option="pisco", stage="instruct"),
        "llmlingua": _SystemParts("bm25", "llmlingua", "base"),
        "llmlingua2": _SystemParts("bm25", "llmlingua2", "base"),
        "dro": _SystemParts("dro", "text", "dro_reader"),
        "bm25": _SystemParts("bm25"),
        "minilm": _SystemParts("minilm"),
        "bge-reranker": _SystemParts("bge-reranker"),
        "latent": _SystemParts("latent"),
        "supervised": _SystemParts("latent", option="supervised", stage="retriever"),
    }
)
"""The parts of systems by their names."""


def _build(name: str, settings: SystemSettings) -> RagSystem:
    """The system of a name.

    Raises:
        ConfigError: an option is missing or does not fit, a rate is not served, or there is nothing to rank.
        ClaraError: an extra, a folder or the hub is missing.
    """
    parts = _TABLE[name]
    if parts.context is None and settings.given == "gold":
        raise ConfigError(
            f"system {name} only ranks, and with the gold documents given there is nothing to rank; "
            "give it candidates, or take a system that answers"
        )
    if name.endswith("-quoted"):
        settings = replace(settings, quoted=True)
    if parts.context == "text" and parts.reader == "dro_reader":
        # Selector and reader were tuned together: the reader of this system is not the option ``reader`` of the others.
        folder = option(settings, "dro", "the folder that examples/train_dro.py wrote (OUT/dro)")
        settings = replace(settings, options={**settings.options, "dro_reader": folder / "reader"})
    model = _model(name.removesuffix("-quoted"), parts, settings)
    reading = _reading(parts, settings, model)
    return RagSystem(name, settings, _ranker(parts.ranker, settings, model), reading)


def model_system(settings: SystemSettings, *, context: str, reader: str) -> RagSystem:
    """The model under test by itself, as ``clara eval`` measures it: it ranks by its own memories.

    Args:
        settings: of the run.
        context: ``memory``, ``text`` or ``none``.
        reader: ``generator``, ``base``, or the option ``reader``.

    Raises:
        ConfigError: the rate is not served, the reader reads another context, or there is nothing to quote.
    """
    if context == "none" and settings.quoted:
        raise ConfigError("with context none there is nothing to quote; use wording free")
    parts = _SystemParts("latent", context, reader)
    reading = _reading(parts, settings, settings.model, documents=True)
    return RagSystem("model", settings, _ranker(parts.ranker, settings, settings.model), reading)


SYSTEMS: Mapping[str, Build] = MappingProxyType({name: partial(_build, name) for name in _TABLE})
"""Makers of systems by their names."""


def _model(name: str, parts: _SystemParts, settings: SystemSettings) -> AnswerModel:
    """The model that compresses, ranks and answers."""
    if parts.option is None or parts.stage is None:
        return settings.model
    model = open_checkpoint(settings, parts.option, parts.stage, label=name)
    if name == "pisco":
        trained = model.manifest.trained.get("config", {})
        start, targets = trained.get("start"), trained.get("targets")
        if start is not None or targets != "teacher":
            raise ConfigError(
                f"--option pisco={settings.options['pisco']} starts from {start or 'the base model'} and has targets "
                f"{targets!r}; PISCO starts from the base model and learns a teacher's answers (recipes/pisco-*.toml)"
            )
    return model


def _ranker(name: str | None, settings: SystemSettings, model: AnswerModel) -> Ranker | None:
    if name == "reasoner":
        # Without a reasoner BM25 ranks, as the paper gives a retriever's order to the models of its compression tables.
        name = "latent" if has_query_reasoner(model) else "bm25"
    if name is None:
        return None
    make: dict[str, Callable[[], Ranker]] = {
        "bm25": lambda: Bm25(settings.cache),
        "minilm": lambda: Dense(minilm(settings), settings.cache),
        "bge": lambda: Dense(bge(settings), settings.cache),
        "bge-reranker": lambda: bge_reranker(settings),
        "latent": lambda: Latent(model, rate_of(settings, model), settings.cache),
        "dro": lambda: dro_selector(settings, settings.options["dro"] / "selector"),
    }
    return make[name]()


def _reading(
    parts: _SystemParts, settings: SystemSettings, model: AnswerModel, *, documents: bool | None = None
) -> Answering | None:
    if parts.context is None:
        return None
    weights: Weights = "generator" if parts.reader == "generator" else "base"
    answerer: Answerer = model
    if parts.reader == "generator" or parts.context == "memory":
        fingerprint = identity(settings, model)
    elif parts.reader == "base":
        fingerprint = digest({"base": base_identity(settings.model)})
    else:
        reader = open_reader(settings, parts.reader, "none" if parts.context == "none" else "text")
        answerer, fingerprint = reader, reader.fingerprint
    maker = _context(parts.context, weights, settings, model)
    return Answering(maker, answerer, fingerprint, parts.context != "none" if documents is None else documents)


def _context(name: str, reader: Weights, settings: SystemSettings, model: AnswerModel) -> ContextMaker:
    if name == "none":
        return NoContext(reader)
    if name == "text":
        return TextContext(settings.model, settings.cache, reader)
    if name == "memory":
        return MemoryContext(model, rate_of(settings, model), settings.cache, reader)
    return _llmlingua2(settings) if name == "llmlingua2" else _llmlingua(settings)


def _llmlingua(settings: SystemSettings) -> ContextMaker:
    """Text shortened by LLMLingua on the run's own base weights."""

    def load() -> TextCompressor:
        from clara.evaluate.lingua import PerplexityCompressor  # noqa: PLC0415 - slow

        return PerplexityCompressor(base_folder(settings), settings.device)

    name = base_identity(settings.model)
    return _shortened(settings, settings.cache.opened("llmlingua", name, load), name)


def _llmlingua2(settings: SystemSettings) -> ContextMaker:
    """Text shortened by LLMLingua-2's published encoder, from the hub or the option ``llmlingua2``."""
    folder = hub_folder(_LLMLINGUA2, settings.options.get("llmlingua2"), option="llmlingua2")

    def load() -> TextCompressor:
        from transformers import AutoTokenizer  # noqa: PLC0415 - slow

        from clara.evaluate.lingua import ClassifierCompressor, TokenCounter  # noqa: PLC0415 - slow

        tokenizer = AutoTokenizer.from_pretrained(base_folder(settings), local_files_only=True)
        return ClassifierCompressor(folder, TokenCounter(tokenizer), settings.device)

    return _shortened(settings, settings.cache.opened("llmlingua2", str(folder), load), weights_hash(folder))


def _shortened(settings: SystemSettings, compressor: TextCompressor, fingerprint: str) -> ShortenedContext:
    target = _window_memory(settings)
    return ShortenedContext(compressor, fingerprint, target=target, model=settings.model, cache=settings.cache)


def _window_memory(settings: SystemSettings) -> int:
    """Memory tokens of a window at the run's rate: the budget of shortened text.

    Raises:
        ConfigError: the model does not serve the rate, or comes from no checkpoint.
    """
    manifest = manifest_of(settings.model)
    if manifest is None:
        raise ConfigError(f"{settings.model.name} comes from no checkpoint: the size of its memories is not known")
    return manifest.compression.memory_tokens(rate_of(settings, settings.model))
