"""Which passages a store holds, by document and version: ids only, kept in memory between calls.

Reading it from the table takes tens of milliseconds; indexing asks for every document. ``store`` loads it and tells
it of every change.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Place:
    """Which document, and which version of it, a passage belongs to."""

    document: str
    content_hash: str


class Catalogue:
    """Passage ids with their places.

    Args:
        places: the place of each passage id.
    """

    def __init__(self, places: Iterable[tuple[str, Place]] = ()) -> None:
        self._places: dict[str, Place] = {}
        self._documents: dict[str, dict[str, set[str]]] = {}
        for passage_id, place in places:
            self.put(passage_id, place)

    def __contains__(self, passage_id: str) -> bool:
        return passage_id in self._places

    def put(self, passage_id: str, place: Place) -> None:
        """Add a passage, or move it if its id is known."""
        self.drop([passage_id])
        self._places[passage_id] = place
        self._documents.setdefault(place.document, {}).setdefault(place.content_hash, set()).add(passage_id)

    def drop(self, passage_ids: Iterable[str]) -> None:
        """Take passages out; unknown ids are passed over."""
        for passage_id in passage_ids:
            place = self._places.pop(passage_id, None)
            if place is None:
                continue
            versions = self._documents[place.document]
            versions[place.content_hash].discard(passage_id)
            if not versions[place.content_hash]:
                del versions[place.content_hash]
            if not versions:
                del self._documents[place.document]

    def documents(self) -> set[str]:
        """Documents with at least one passage."""
        return set(self._documents)

    def ids(self, document: str) -> set[str]:
        """Ids of all passages of a document."""
        return set().union(*self._documents.get(document, {}).values())

    def ids_except(self, document: str, content_hash: str | None) -> set[str]:
        """Ids of a document's passages of every version but one; ``None`` excepts none."""
        versions = self._documents.get(document, {})
        return set().union(*(ids for version, ids in versions.items() if version != content_hash))

    def version_count(self, document: str, content_hash: str) -> int:
        """Number of passages of one version of a document."""
        return len(self._documents.get(document, {}).get(content_hash, ()))
