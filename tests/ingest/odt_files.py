"""OpenDocument texts, made by hand."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping

_NAMESPACES = " ".join(
    f'xmlns:{prefix}="urn:oasis:names:tc:opendocument:xmlns:{name}:1.0"'
    for prefix, name in (
        ("office", "office"),
        ("style", "style"),
        ("text", "text"),
        ("table", "table"),
        ("draw", "drawing"),
        ("fo", "xsl-fo-compatible"),
        ("meta", "meta"),
    )
)


def make_odt(body: str, *, styles: str = "", title: str = "", parts: Mapping[str, str] | None = None) -> bytes:
    """A text document.

    Args:
        body: elements of its text.
        styles: its automatic styles.
        title: the title among its properties.
        parts: other parts, name to content.
    """
    content = (
        f"<office:document-content {_NAMESPACES} xmlns:xlink='http://www.w3.org/1999/xlink'>"
        f"<office:automatic-styles>{styles}</office:automatic-styles>"
        f"<office:body><office:text>{body}</office:text></office:body></office:document-content>"
    )
    meta = f"<office:document-meta {_NAMESPACES} xmlns:dc='http://purl.org/dc/elements/1.1/'><dc:title>{title}</dc:title></office:document-meta>"
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("mimetype", "application/vnd.oasis.opendocument.text")
        for name, part in {"content.xml": content, "meta.xml": meta, **(parts or {})}.items():
            archive.writestr(name, part)
    return file.getvalue()
