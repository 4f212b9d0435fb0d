"""A store as a LangChain retriever."""

from __future__ import annotations

from clara.errors import MissingExtraError

try:
    from langchain_core.callbacks import CallbackManagerForRetrieverRun
    from langchain_core.documents import Document
    from langchain_core.retrievers import BaseRetriever
except ModuleNotFoundError:
    raise MissingExtraError("langchain-core", "langchain") from None

from clara.integrations.passages import find, metadata
from clara.pipeline import Clara
from clara.records import SearchMode


class ClaraRetriever(BaseRetriever):
    """Passages of an open store as LangChain documents, best first; the metadata holds the score too.

    Attributes:
        rag: the store with its model.
        k: passages to find; None for what measured best for the model.
        mode: how they are found, see ``Clara.search``.
    """

    rag: Clara
    k: int | None = None
    mode: SearchMode = "hybrid"

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        del run_manager  # nothing below it reports to it
        return [
            Document(id=hit.passage.id, page_content=hit.passage.text, metadata={**metadata(hit), "score": hit.score})
            for hit in find(self.rag, query, self.k, self.mode)
        ]
