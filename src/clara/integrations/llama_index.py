"""A store as a LlamaIndex retriever."""

from __future__ import annotations

import asyncio

from clara.errors import MissingExtraError

try:
    from llama_index.core.retrievers import BaseRetriever
    from llama_index.core.schema import NodeRelationship, NodeWithScore, QueryBundle, RelatedNodeInfo, TextNode
except ModuleNotFoundError:
    raise MissingExtraError("llama-index-core", "llama-index") from None

from clara.integrations.passages import find, metadata
from clara.pipeline import Clara
from clara.records import Hit, SearchMode

_NOT_FOR_MODELS = ["start", "end"]


class ClaraRetriever(BaseRetriever):
    """Passages of an open store as LlamaIndex nodes, best first.

    Args:
        rag: the store with its model.
        k: passages to find; None for what measured best for the model.
        mode: how they are found, see ``Clara.search``.
    """

    def __init__(self, rag: Clara, *, k: int | None = None, mode: SearchMode = "hybrid") -> None:
        super().__init__()
        self._rag = rag
        self._k = k
        self._mode: SearchMode = mode

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        hits = find(self._rag, query_bundle.query_str, self._k, self._mode)
        return [NodeWithScore(node=_node(hit), score=hit.score) for hit in hits]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await asyncio.to_thread(self._retrieve, query_bundle)


def _node(hit: Hit) -> TextNode:
    passage = hit.passage
    return TextNode(
        id_=passage.id,
        text=passage.text,
        start_char_idx=passage.start,
        end_char_idx=passage.end,
        metadata=metadata(hit),
        excluded_llm_metadata_keys=_NOT_FOR_MODELS,
        excluded_embed_metadata_keys=_NOT_FOR_MODELS,
        relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=passage.document)},
    )
