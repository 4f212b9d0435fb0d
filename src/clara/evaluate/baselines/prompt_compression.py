"""What ``llmlingua`` and ``llmlingua2`` share: the best candidates as text shortened to the tokens that memories take.

Each window of a document is compressed by itself, before the question comes, to the number of memory tokens that the
model under test would make of it; BM25 ranks and the base weights read, as in ``text-bm25``. What the packages are
made to do is in ``lingua``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from clara.data import DocText
from clara.errors import ConfigError, DocumentError
from clara.evaluate.baselines.bm25 import Bm25
from clara.evaluate.baselines.composed import Composed, Context, Ranking, Reading, digest
from clara.evaluate.baselines.folders import base_identity, manifest_of, rate_of
from clara.evaluate.baselines.full_text import token_counts
from clara.evaluate.isolation import Failure, each
from clara.evaluate.protocol import AnswerModel
from clara.evaluate.shelf import Shelf
from clara.evaluate.system import Ask, SystemSettings
from clara.ingest import make_document, split
from clara.prompts import passage_text
from clara.records import GenerationRequest


class TextCompressor(Protocol):
    """Shortens a text."""

    def compress(self, text: str, target: int) -> str:
        """The text in about ``target`` tokens of the generator."""


class CompressedTextContext:
    """Makes contexts of shortened documents.

    Args:
        compressor: shortens.
        fingerprint: of its weights.
        target: tokens that a window is shortened to.
        model: cuts documents into windows, and counts.
        shelf: keeps shortened windows.
    """

    def __init__(
        self, compressor: TextCompressor, fingerprint: str, *, target: int, model: AnswerModel, shelf: Shelf
    ) -> None:
        self._compressor = compressor
        self._target = target
        self._model = model
        self._shelf = shelf
        self.fingerprint = digest({"compressor": fingerprint, "target": target})

    def contexts(self, asks: Sequence[Ask], used: Sequence[Ranking]) -> list[Context | Failure]:
        """The documents ``used``, in that order, shortened."""
        pairs = list(zip(asks, used, strict=True))
        return each(pairs, lambda some: [self._context(ask, chosen) for ask, chosen in some])

    def _context(self, ask: Ask, chosen: Ranking) -> Context:
        windows = [window for index in chosen for window in self._windows(ask.docs[index])]
        texts: list[str] = []
        for found in self._shelf.derived(f"shortened {self.fingerprint}", windows, self._shorten):
            if isinstance(found, Failure):
                raise found.error
            texts.append(found)
        return Context(
            # A text of which nothing was kept leaves no empty line in the prompt.
            GenerationRequest(ask.question, texts=tuple(text for text in texts if text), reader="base"),
            tokens=sum(token_counts(self._model, self._shelf, texts)),
            source_tokens=sum(token_counts(self._model, self._shelf, windows)),
        )

    def _windows(self, doc: DocText) -> list[str]:
        """The texts that the model under test would make memories of."""
        document = make_document(f"evaluation:{doc.title}", doc.title, doc.text)
        passages = split(document, self._model.token_spans, max_tokens=self._model.window_tokens)
        if not passages:
            raise DocumentError(f"the document titled {doc.title!r} gave no passage")
        return [passage_text(passage.title, passage.text) for passage in passages]

    def _shorten(self, texts: Sequence[str]) -> list[str]:
        return [self._compressor.compress(text, self._target) for text in texts]


def shortened(name: str, settings: SystemSettings, compressor: TextCompressor, fingerprint: str) -> Composed:
    """A system that reads what a compressor leaves of the best candidates.

    Raises:
        ConfigError: the model does not serve the rate, or comes from no checkpoint.
    """
    context = CompressedTextContext(
        compressor, fingerprint, target=_target(settings), model=settings.model, shelf=settings.shelf
    )
    weights = digest({"base": base_identity(settings.model)})
    return Composed(name, settings, Bm25(settings.shelf), Reading(context, settings.model, weights))


def _target(settings: SystemSettings) -> int:
    """Memory tokens of a window at the run's rate.

    Raises:
        ConfigError: the model does not serve the rate, or comes from no checkpoint.
    """
    manifest, rate = manifest_of(settings.model), rate_of(settings, settings.model)
    if manifest is None or rate is None:
        raise ConfigError(f"{settings.model.name} comes from no checkpoint: what its memories take is not known")
    return manifest.compression.memory_tokens(rate)
