"""What every passage index offers, and the records that go in and out.

Two implementations: :class:`clara.index.store.LanceStore` on disk, and the oracle of the tests in memory. How a
question becomes a vector is ``model``'s business; when to add and remove is ``pipeline``'s.
Shape letters: N memory tokens, H hidden size of the backbone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from clara.errors import InputError, StoreError, StoreModelError
from clara.records import Hit, Memory, Passage, QueryMemory, QuerySpace


@dataclass(frozen=True, slots=True)
class StoreModel:
    """The model whose memories an index holds.

    Attributes:
        fingerprint: fingerprint of the model, as in ``Memory.fingerprint``.
        name: what loads the model again: the value of ``--model``.
        rate: compression rate of the memories.
        memory_tokens: N, memory tokens of a passage.
        width: H, hidden size of the backbone.
        query_space: what its questions are: ``mean``, one vector at each memory token (or late interaction, whose
            first stage is that); ``flat``, N vectors.
    """

    fingerprint: str
    name: str
    rate: int
    memory_tokens: int
    width: int
    query_space: QuerySpace = "flat"

    @property
    def values(self) -> int:
        """N * H: numbers in one memory, and in one search vector."""
        return self.memory_tokens * self.width

    def describe(self) -> str:
        """One line for messages: name, rate, shape and the start of the fingerprint."""
        return f"{self.name} at {self.rate}x [{self.memory_tokens}, {self.width}] (fingerprint {self.fingerprint[:12]})"

    def fits(self, other: StoreModel) -> bool:
        """Whether memories of both can stand in one index; the name may differ (a folder moved)."""
        mine = (self.fingerprint, self.rate, self.memory_tokens, self.width)
        return mine == (other.fingerprint, other.rate, other.memory_tokens, other.width)


@dataclass(frozen=True, slots=True, eq=False)
class IndexRow:
    """One passage with its memory, as it is stored.

    Attributes:
        passage: the passage.
        memory: its memory.
        content_hash: content hash of the document version the passage was cut from.
        metadata: small facts of the document.
    """

    passage: Passage
    memory: Memory
    content_hash: str
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DocumentEntry:
    """A document all of whose passages are in the index.

    Attributes:
        uri: the document's ``uri``.
        content_hash: the version that is in the index.
        passages: how many passages that version has; 0 for a document without text.
    """

    uri: str
    content_hash: str
    passages: int


class PassageIndex(Protocol):
    """Passages of documents with their memories, searched by memory, by words, or by both.

    The order of calls for one document: ``passage_ids`` tells what is there already, ``add`` brings the rest (in as
    many calls as wanted, several documents mixed), ``finish_documents`` makes it complete. Doing that again, or again
    from the start after the process was killed, ends in the same index. All searches order by falling score, equal
    scores by passage id, and find nothing in an empty index.
    """

    @property
    def model(self) -> StoreModel:
        """The model whose memories the index holds."""
        ...

    def add(self, rows: Sequence[IndexRow]) -> None:
        """Add passages; one that is there already (same id) is replaced.

        Raises:
            StoreModelError: a memory of another model, rate or shape; nothing is added.
            StoreError: a value beyond fp16, or the index cannot be written.
        """
        ...

    def passage_ids(self, uri: str) -> set[str]:
        """Ids of a document's passages in the index, of every version of it."""
        ...

    def finish_documents(self, entries: Sequence[DocumentEntry]) -> None:
        """Record documents, each uri once, as complete and drop their passages of other versions.

        Raises:
            StoreError: the index does not hold ``passages`` passages of one of them; none is recorded.
        """
        ...

    def documents(self) -> dict[str, DocumentEntry]:
        """The complete documents by uri."""
        ...

    def unfinished(self) -> set[str]:
        """Documents of which passages are in the index but which are not complete (indexing was cut short)."""
        ...

    def remove(self, uris: Iterable[str]) -> int:
        """Remove documents, complete or not.

        Returns:
            The number of passages removed; an unknown uri counts nothing.
        """
        ...

    def count(self) -> int:
        """Number of passages in the index."""
        ...

    def get(self, passage_ids: Sequence[str]) -> list[IndexRow]:
        """Passages by id, in the order asked for.

        Raises:
            StoreError: an id is not in the index.
        """
        ...

    def search_latent(self, query: QueryMemory, k: int, *, within: Collection[str] | None = None) -> list[Hit]:
        """The ``k`` passages whose flattened memories have the highest cosine with ``query.search_vector()``.

        Where the question has a centre, the best :func:`clara.index.ranking.late_depth` of them are put in order anew
        by late interaction (:func:`clara.similarity.covering`), whose score they then have. A question of zeros has
        cosine 0 with everything.

        Args:
            query: the question.
            k: at least 1.
            within: uris of documents whose passages alone are found; None for all.

        Raises:
            StoreError: the question is of another shape or model.
            InputError: ``k`` is below 1.
        """
        ...

    def search_text(self, words: str, k: int, *, within: Collection[str] | None = None) -> list[Hit]:
        """The ``k`` passages with the highest BM25 score over title and text.

        ``words`` are plain words: no character in them has a meaning of its own. Only passages that share a word with
        them are found. With ``within``, as in :meth:`search_latent`, a passage has the score that it has among all.

        Raises:
            InputError: ``k`` is below 1.
        """
        ...

    def search_hybrid(
        self,
        query: QueryMemory,
        words: str,
        k: int,
        *,
        latent_weight: float = 1.0,
        within: Collection[str] | None = None,
    ) -> list[Hit]:
        """Reciprocal rank fusion of both searches, each taken to :func:`clara.index.ranking.fusion_depth` passages.

        Args:
            query: as :meth:`search_latent`.
            words: as :meth:`search_text`.
            k: at least 1.
            latent_weight: what a rank by memory counts beside 1 for a rank by words.
            within: as :meth:`search_latent`.

        Raises:
            StoreError: as :meth:`search_latent`.
            InputError: ``k`` is below 1.
        """
        ...

    def settled(self) -> bool:
        """Whether ``optimize`` has nothing to finish: every change so far was followed by one."""
        ...

    def optimize(self) -> None:
        """End a round of changes: make searches fast again and give disk space back."""
        ...

    def close(self) -> None:
        """Give locks and caches back; the index is not used afterwards."""
        ...


def check_rows(model: StoreModel, rows: Sequence[IndexRow]) -> None:
    """Refuse memories that do not belong into an index of ``model``.

    Raises:
        StoreModelError: names the passage and both models.
    """
    shape = (model.memory_tokens, model.width)
    for row in rows:
        memory = row.memory
        if (memory.fingerprint, memory.rate, memory.values.shape) != (model.fingerprint, model.rate, shape):
            raise StoreModelError(
                f"passage {row.passage.id}: this index holds memories of {model.describe()}, got one of "
                f"fingerprint {memory.fingerprint[:12]} at {memory.rate}x {list(memory.values.shape)}; "
                "compress it with the index's model or use another index"
            )


def check_complete(entry: DocumentEntry, found: int) -> None:
    """Refuse to call a document complete whose passages are not all there.

    Args:
        entry: the document.
        found: passages of its version in the index.

    Raises:
        StoreError: the numbers differ.
    """
    if found != entry.passages:
        raise StoreError(
            f"{entry.uri} has {entry.passages} passages, but {found} of this version are in the index; "
            "add the missing ones before finishing the document"
        )


def check_query(model: StoreModel, query: QueryMemory) -> None:
    """Refuse a question that cannot be compared with the memories of ``model``.

    Raises:
        StoreError: it was made by another model, has another shape, or is N vectors where the store expects one.
    """
    shape = (model.memory_tokens, model.width)
    if (query.fingerprint, query.values.shape) != (model.fingerprint, shape):
        raise StoreError(
            f"this index holds memories of {model.describe()}, got a question of fingerprint {query.fingerprint[:12]} "
            f"{list(query.values.shape)}; encode the question with the index's model and rate"
        )
    if model.query_space == "mean" and query.centre is None and (query.values != query.values[0]).any():
        raise StoreError(
            f"this index is searched by one vector a question, got {len(query.values)} different ones; "
            "encode the question with the index's model"
        )


def check_k(k: int) -> None:
    """Refuse a number of results below 1.

    Raises:
        InputError: ``k`` is below 1.
    """
    if k < 1:
        raise InputError(f"k must be at least 1, got {k}")
