"""The systems that ``clara compare`` knows, one table of ranker, context and reader (docs/systems.md).

A system is built when it is asked for; only then are its optional packages and weights looked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from clara.errors import ConfigError
from clara.evaluate.contexts import make_context
from clara.evaluate.rankers import make_ranker
from clara.evaluate.system import Answering, AnswerModel, Build, RagSystem, SystemSettings, digest
from clara.evaluate.weights import base_identity, identity, open_checkpoint, open_reader, option

if TYPE_CHECKING:
    from clara.model.reader import TextReader


@dataclass(frozen=True, slots=True)
class _SystemParts:
    """A row of the table.

    Attributes:
        ranker: ``bm25``, ``minilm``, ``bge``, ``bge-reranker``, ``latent`` (memories), ``reasoner`` (memories where the
            checkpoint has a query reasoner, else BM25), ``dro``; None where nothing is ranked.
        context: ``memory``, ``text``, ``llmlingua``, ``llmlingua2``, ``none``; None for a system that only ranks.
        reader: weights of the model under test (``generator``, ``base``), or the option that names a LoRA reader.
        option: names the checkpoint that replaces the model under test, of training stage ``stage``.
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
_TABLE: Mapping[str, _SystemParts] = {
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


def _build(name: str, settings: SystemSettings) -> RagSystem:
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
    return RagSystem(name, settings, make_ranker(parts.ranker, settings, model), reading)


def model_system(settings: SystemSettings, *, context: str, reader: str) -> RagSystem:
    """The model under test by itself, as ``clara eval`` measures it: it ranks by its own memories.

    ``context`` is ``memory``, ``text`` or ``none``, ``reader`` is ``generator``, ``base``, or the option ``reader``.

    Raises:
        ConfigError: the rate is not served, the reader reads another context, or there is nothing to quote.
    """
    if context == "none" and settings.quoted:
        raise ConfigError("with context none there is nothing to quote; use wording free")
    parts = _SystemParts("latent", context, reader)
    reading = _reading(parts, settings, settings.model, documents=True)
    return RagSystem("model", settings, make_ranker(parts.ranker, settings, settings.model), reading)


SYSTEMS: Mapping[str, Build] = {name: partial(_build, name) for name in _TABLE}
"""Makers of systems by name."""


def _model(name: str, parts: _SystemParts, settings: SystemSettings) -> AnswerModel:
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


def _reading(
    parts: _SystemParts, settings: SystemSettings, model: AnswerModel, *, documents: bool | None = None
) -> Answering | None:
    if parts.context is None:
        return None
    answerer: AnswerModel | TextReader = model
    if parts.reader == "generator" or parts.context == "memory":
        fingerprint = identity(settings, model)
    elif parts.reader == "base":
        fingerprint = digest({"base": base_identity(settings.model)})
    else:
        reader = open_reader(settings, parts.reader, "none" if parts.context == "none" else "text")
        answerer, fingerprint = reader, reader.fingerprint
    maker = make_context(parts.context, "generator" if parts.reader == "generator" else "base", settings, model)
    return Answering(maker, answerer, fingerprint, parts.context != "none" if documents is None else documents)
