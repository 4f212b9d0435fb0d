"""``/``, the page, and its files: what a browser needs to ask, read and upload. Needs no key; what it asks for does."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from html import escape
from importlib.resources import files
from itertools import pairwise
from typing import Final

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response

from clara.ingest import location_of, page_breaks
from clara.records import StoredText
from clara.serve.faults import ApiError

router = APIRouter(tags=["page"], include_in_schema=False)

ROOT: Final = "/"
FILES: Final = "/page/"
"""Where the page's own files are."""

_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    # No string becomes markup: a script that tried would be stopped by the browser.
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
"""No script, style, image or request but this server's own, and none within the markup."""

_PAGE: Final = '<p class="page-mark">Page {}</p>'
# A line of a printed page that goes on in the next one; a blank in its place leaves every offset as it is.
_FLOWING: Final = re.compile(r"(?<=[^\n]{60})\n(?=\S)")
# By name and not by the machine's table, which may call a script plain text.
_TYPES: Final = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8", "svg": "image/svg+xml"}


@router.get(ROOT, name="page")
async def _page() -> HTMLResponse:
    """The page."""
    headers = {"content-security-policy": _POLICY, "cache-control": "no-cache"}
    return HTMLResponse(_contents()["index.html"], headers=headers)


@router.get(FILES + "{name}", name="page_file")
async def _page_file(request: Request, name: str) -> Response:
    """A file of the page; asked for again, only whether it is still the same.

    Raises:
        ApiError: there is none of that name.
    """
    kind, content = _TYPES.get(name.rpartition(".")[2]), _contents().get(name)
    if kind is None or content is None:
        raise ApiError(404, "not_found", "the page has no such file")
    headers = {"etag": f'"{hashlib.sha256(content).hexdigest()[:32]}"', "cache-control": "no-cache"}
    if request.headers.get("if-none-match") == headers["etag"]:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=kind, headers=headers)


def document_page(title: str, texts: Sequence[StoredText], start: int, end: int, *, root: str) -> HTMLResponse:
    """A page of its own for the text of a document, characters ``start`` to ``end`` highlighted.

    Args:
        title: of the document, as text.
        texts: its passages, in order.
        start: first character highlighted.
        end: one past the last.
        root: the address of the server's root, as seen from the page.
    """
    return _alone(escape(title), _marked(texts, start, end), root)


def refusal_page(error: ApiError, path: str) -> HTMLResponse | None:
    """What a person sees who follows the address of a document in vain; None for any other path."""
    folders = path.removeprefix("/v1").split("/")
    if folders[1:2] != ["documents"] or len(folders) != 3:
        return None
    root = "../" * (path.count("/") - 1)
    return _alone(
        "This document cannot be shown",
        f"<p>{escape(error.message[:1].upper() + error.message[1:])}.</p>",
        root,
        error.status_code,
    )


def _alone(name: str, body: str, root: str, status: int = 200) -> HTMLResponse:
    return HTMLResponse(
        f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{name}</title>
<link rel="icon" href="{root}page/icon.svg" type="image/svg+xml">
<link rel="stylesheet" href="{root}page/page.css">
<script type="module" src="{root}page/document.js"></script>
</head>
<body>
<main class="document">
<h1>{name}</h1>
{body}
</main>
</body>
</html>
""",
        status,
        headers={"content-security-policy": _POLICY},
    )


def _marked(texts: Sequence[StoredText], start: int, end: int) -> str:
    """Passages as markup, their pages marked and characters ``start`` to ``end`` highlighted."""
    shown: list[str] = []
    page: int | None = None
    for each in texts:
        passage, breaks = each.passage, page_breaks(each.metadata)
        first = location_of(each.metadata, passage.start).page
        if first is not None and first != page:
            shown.append(_PAGE.format(first))
        text = passage.text if first is None else _FLOWING.sub(" ", passage.text)
        inside = [min(max(offset - passage.start, 0), len(passage.text)) for offset in (start, end, *breaks)]
        cuts = sorted({0, len(passage.text), *inside})
        numbers = {offset: (first or 0) + place for place, offset in enumerate(inside[2:], start=1)}
        for cut, next_cut in pairwise(cuts):
            if cut in numbers:
                shown.append(_PAGE.format(numbers[cut]))
            piece = escape(text[cut:next_cut])
            shown.append(f"<mark>{piece}</mark>" if inside[0] <= cut < inside[1] else piece)
        page = None if first is None else first + len(breaks)
    return f'<div class="passages passage">{"".join(shown)}</div>'


@lru_cache(maxsize=1)
def _contents() -> Mapping[str, bytes]:
    return {each.name: each.read_bytes() for each in (files("clara.serve") / "page").iterdir()}
