"""A store as a Haystack component."""

from __future__ import annotations

from clara.errors import MissingExtraError

try:
    from haystack import Document, component
except ModuleNotFoundError:
    raise MissingExtraError("haystack-ai", "haystack") from None

from clara.integrations.passages import find, metadata
from clara.pipeline import Clara
from clara.records import SearchMode


@component
class ClaraRetriever:
    """Passages of an open store as Haystack documents, best first.

    A pipeline with it cannot be written to YAML: it holds an open store.

    Args:
        rag: the store with its model.
        top_k: passages to find; None for what measured best for the model.
        mode: how they are found, see ``Clara.search``.
    """

    def __init__(self, rag: Clara, top_k: int | None = None, mode: SearchMode = "hybrid") -> None:
        self._rag = rag
        self._top_k = top_k
        self._mode: SearchMode = mode

    @component.output_types(documents=list[Document])
    def run(self, query: str, top_k: int | None = None) -> dict[str, list[Document]]:
        """Find passages; ``top_k`` instead of the component's own number."""
        hits = find(self._rag, query, top_k or self._top_k, self._mode)
        return {
            "documents": [
                Document(id=hit.passage.id, content=hit.passage.text, meta=metadata(hit), score=hit.score)
                for hit in hits
            ]
        }
