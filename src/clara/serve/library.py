"""The stores of a server by name, their documents by public id, and what of them a caller sees.

Every route comes to a store through ``Library.store`` or ``Library.visible``: a store that a caller may not use is the
same to it as one that there is not. Paths of this machine stay here; a client sees a file's own name.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath

from clara.errors import ConfigError
from clara.pipeline import Clara
from clara.serve.access import Caller
from clara.serve.faults import ApiError

_ID_DIGITS = 32


@dataclass(slots=True)
class ServedStore:
    """A store that is served.

    Attributes:
        name: what clients call it: a model, and a vector store.
        uploads: the folder of its uploaded files.
        created: Unix seconds.
        writing: held while documents are added or removed.
    """

    name: str
    rag: Clara
    uploads: Path
    created: int
    writing: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True, slots=True)
class ServedDocument:
    """A document of a store that is served; its ``uri`` is a path of this machine, its ``id`` is for clients."""

    store: ServedStore
    uri: str
    id: str
    passages: int

    @property
    def filename(self) -> str:
        """The file's own name."""
        return filename_of(self.uri)


class Library:
    """The stores of a server."""

    def __init__(self, stores: Sequence[ServedStore]) -> None:
        self._stores = {store.name: store for store in stores}
        if len(self._stores) < len(stores):
            raise ConfigError("two stores have the same name; name them: --store NAME=DIR")

    def all(self) -> Mapping[str, ServedStore]:
        """Every store by name; for the server itself, never for a client."""
        return self._stores

    def visible(self, caller: Caller) -> list[ServedStore]:
        """The stores that a caller may use."""
        return [store for name, store in self._stores.items() if caller.may_use(name)]

    def store(self, caller: Caller, name: str | None, *, param: str = "model") -> ServedStore:
        """A store by name; without a name, or with an empty one, the only one.

        Raises:
            ApiError: there is none of that name that the caller may use, or none was named of several.
        """
        visible = self.visible(caller)
        if not name:
            if len(visible) == 1:
                return visible[0]
            raise ApiError(400, "missing_store", f"name a store; there are: {_names(visible)}", param=param)
        found = next((store for store in visible if store.name == name), None)
        if found is None:
            raise ApiError(404, "model_not_found", f"there is no {name!r}; there are: {_names(visible)}", param=param)
        return found

    def to_write(self, caller: Caller, name: str | None) -> ServedStore:
        """As ``store``, for a caller that may write (ApiError: as ``store``, or the caller may not)."""
        found = self.store(caller, name, param="store")
        if not caller.write:
            raise ApiError(403, "read_only_key", "this key may read, not write")
        return found

    def documents(self, store: ServedStore) -> list[ServedDocument]:
        """The complete documents of a store, by file name."""
        entries = store.rag.store.documents().values()
        found = [ServedDocument(store, e.uri, document_id(store.name, e.uri), e.passages) for e in entries]
        return sorted(found, key=lambda document: (document.filename, document.id))

    def document(self, caller: Caller, public_id: str) -> ServedDocument:
        """A document by its public id (ApiError: there is none in the stores that the caller may use)."""
        for store in self.visible(caller):
            for entry in store.rag.store.documents().values():
                if document_id(store.name, entry.uri) == public_id:
                    return ServedDocument(store, entry.uri, public_id, entry.passages)
        raise no_document()


def no_document() -> ApiError:
    """The error of a document that there is not, or not any more."""
    return ApiError(404, "document_not_found", "there is no such document; GET /v1/documents lists them")


@lru_cache(maxsize=1 << 16)
def document_id(store: str, uri: str) -> str:
    """A document's public id: says nothing of its path, and is another one in each store."""
    named = "\0".join((store, uri)).encode("utf-8", "surrogatepass")
    return f"doc-{hashlib.sha256(named).hexdigest()[:_ID_DIGITS]}"


def filename_of(uri: str) -> str:
    """The file's own name, with the record's number where it is one."""
    return PurePosixPath(uri).name


def _names(stores: Sequence[ServedStore]) -> str:
    return ", ".join(sorted(store.name for store in stores)) or "none"
