"""Addresses of citations that open without a key: signed, for one stretch of one document, for a while.

A browser that follows a link sends no ``Authorization`` header. Who made the link could read the document, so the link
says that its bearer may too, until it expires. The key of the signatures is drawn at each start of the server.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Iterable
from urllib.parse import parse_qs, urlencode

from clara.serve.access import Caller
from clara.serve.faults import ApiError

_DOCUMENT = re.compile(r"(?:/v1)?/documents/(doc-[0-9a-f]+)(?:/.*)?")
"""What belongs to a document has an address below its own."""


class Links:
    """Makes and checks links to documents.

    Args:
        stores: the names of those that are served.
        seconds: that a link is good for.
        requests_a_minute: of all links to a store together; 0 for any number.
    """

    def __init__(self, stores: Iterable[str], *, seconds: int, requests_a_minute: int = 0) -> None:
        self._key = secrets.token_bytes(32)
        self._seconds = seconds
        self._callers = {
            name: Caller("link", frozenset({name}), write=False, requests_a_minute=requests_a_minute) for name in stores
        }

    def query(self, store: str, document: str, start: int, end: int) -> str:
        """The query of an address that opens characters ``start`` to ``end`` of a document of a store."""
        char, expires = f"{start},{end}", str(int(time.time()) + self._seconds)
        signature = self._signature(store, document, char, expires)
        return urlencode({"char": char, "expires": expires, "signature": signature}, safe=",")

    def caller(self, path: str, query: bytes) -> Caller | None:
        """Who follows a link: somebody who may read the store it was made for. None for what is no link.

        Raises:
            ApiError: it has expired, or is not one of this server's.
        """
        fields = {name: values[-1] for name, values in parse_qs(query.decode("latin-1")).items()}
        place = _DOCUMENT.fullmatch(path)
        if "signature" not in fields or place is None:
            return None
        char, expires = fields.get("char", ""), fields.get("expires", "")
        given = fields["signature"].encode("utf-8", "replace")
        # All are compared, whichever fits, so that the time says nothing.
        made_for = [
            caller
            for store, caller in self._callers.items()
            if hmac.compare_digest(self._signature(store, place[1], char, expires).encode(), given)
        ]
        if not made_for or not expires.isdigit() or int(expires) < time.time():
            raise ApiError(401, "link_expired", "this link has expired or is not this server's; ask again")
        return made_for[0]

    def _signature(self, store: str, document: str, char: str, expires: str) -> str:
        signed = "\0".join((store, document, char, expires)).encode("utf-8", "surrogatepass")
        return hmac.new(self._key, signed, hashlib.sha256).hexdigest()
