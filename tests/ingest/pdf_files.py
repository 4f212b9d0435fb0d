"""PDF files written by hand, so that tests know every byte of them.

The packaged sample ``printing-press.pdf`` was made by ``make_pdf`` too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

# The 32 bytes that the PDF standard pads passwords with (ISO 32000-1, 7.6.3.3).
_PADDING = bytes.fromhex("28BF4E5E4E758A4164004E56FFFA01082E2E00B6D0683E802F0CA9FE6453697A")
_FILE_ID = b"0123456789abcdef"
_PERMISSIONS = -44


def make_pdf(pages: Sequence[Sequence[str]], *, password: str = "") -> bytes:
    """A PDF with one line of text per string, in Helvetica.

    Args:
        pages: the lines of each page, characters of Windows-1252; a page without lines is blank, as a scan is.
        password: encrypts with it (RC4, 40 bits), so that the file cannot be opened without.
    """
    count = len(pages)
    kids = " ".join(f"{4 + 2 * number} 0 R" for number in range(count))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {count} >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
    ]
    key = _key(password)
    for number, lines in enumerate(pages):
        content = _content(lines)
        if password:
            content = _rc4(_object_key(key, 5 + 2 * number), content)
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents {5 + 2 * number} 0 R "
            "/Resources << /Font << /F1 3 0 R >> >> >>".encode()
        )
        objects.append(f"<< /Length {len(content)} >>\nstream\n".encode() + content + b"\nendstream")
    trailer = b""
    if password:
        objects.append(_encryption(key, password))
        trailer = f" /Encrypt {len(objects)} 0 R /ID [<{_FILE_ID.hex()}> <{_FILE_ID.hex()}>]".encode()
    return _assembled(objects, trailer)


def _content(lines: Sequence[str]) -> bytes:
    shown = []
    for line in lines:
        text = line.encode("cp1252").replace(b"\\", b"\\\\").replace(b"(", b"\\(").replace(b")", b"\\)")
        shown.append(b"(" + text + b") Tj T*")
    return b"BT /F1 12 Tf 16 TL 60 780 Td\n" + b"\n".join(shown) + b"\nET" if shown else b""


def _assembled(objects: Sequence[bytes], trailer: bytes) -> bytes:
    out = bytearray(b"%PDF-1.4\n")
    offsets = []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(out))
        out += f"{number} 0 obj\n".encode() + body + b"\nendobj\n"
    start = len(out)
    out += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n".encode()
    out += b"".join(f"{offset:010d} 00000 n \n".encode() for offset in offsets)
    out += f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R".encode() + trailer
    return bytes(out + f" >>\nstartxref\n{start}\n%%EOF\n".encode())


def _key(password: str) -> bytes:
    data = _padded(password) + _owner_entry(password) + _PERMISSIONS.to_bytes(4, "little", signed=True) + _FILE_ID
    return hashlib.md5(data, usedforsecurity=False).digest()[:5]


def _owner_entry(password: str) -> bytes:
    return _rc4(hashlib.md5(_padded(password), usedforsecurity=False).digest()[:5], _padded(password))


def _encryption(key: bytes, password: str) -> bytes:
    owner, user = _owner_entry(password).hex(), _rc4(key, _PADDING).hex()
    return f"<< /Filter /Standard /V 1 /R 2 /O <{owner}> /U <{user}> /P {_PERMISSIONS} >>".encode()


def _object_key(key: bytes, number: int) -> bytes:
    data = key + number.to_bytes(3, "little") + b"\0\0"
    return hashlib.md5(data, usedforsecurity=False).digest()[: len(key) + 5]


def _padded(password: str) -> bytes:
    return (password.encode("latin-1") + _PADDING)[:32]


def _rc4(key: bytes, data: bytes) -> bytes:
    state = list(range(256))
    j = 0
    for i in range(256):
        j = (j + state[i] + key[i % len(key)]) % 256
        state[i], state[j] = state[j], state[i]
    i = j = 0
    out = bytearray()
    for byte in data:
        i = (i + 1) % 256
        j = (j + state[i]) % 256
        state[i], state[j] = state[j], state[i]
        out.append(byte ^ state[(state[i] + state[j]) % 256])
    return bytes(out)


def make_drawn_pdf(
    contents: Sequence[str],
    *,
    page: str = "",
    fields: Sequence[str] = (),
    bookmarks: Sequence[tuple[int, str]] = (),
    meanings: Mapping[str, str] | None = None,
) -> bytes:
    """A PDF from the content streams of its pages.

    Args:
        contents: what draws each page, in Windows-1252; Helvetica is ``/F1``.
        page: further entries of every page (``/Rotate 90``).
        fields: entries of form fields (widgets), all on the first page; ``10 0 R`` is an empty appearance.
        bookmarks: the outline, each with its page, from 0.
        meanings: what characters stand for, by the font's own table.
    """
    table = "".join(
        f"<{ord(sign):02x}> <{text.encode('utf-16-be').hex()}>\n" for sign, text in (meanings or {}).items()
    )
    table = f"1 begincodespacerange <00> <ff> endcodespacerange {len(meanings or {})} beginbfchar\n{table}endbfchar"
    first = 11  # object number of the first page
    count, shown = len(contents), len(fields)
    numbers = range(first + 2 * count, first + 2 * count + shown)
    widgets = " ".join(f"{number} 0 R" for number in numbers)
    kids = " ".join(f"{first + 2 * number} 0 R" for number in range(count))
    form = f"/AcroForm << /Fields [{widgets}] /DA (/F1 12 Tf) /DR << /Font << /F1 3 0 R >> >> >>" if fields else ""
    marked = first + 2 * count + shown
    outline = f"/Outlines << /First {marked} 0 R /Last {marked + len(bookmarks) - 1} 0 R >>" if bookmarks else ""
    objects = [
        f"<< /Type /Catalog /Pages 2 0 R {form} {outline} >>".encode(),
        f"<< /Type /Pages /Kids [{kids}] /Count {count} >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding "
        + (b"/ToUnicode 4 0 R >>" if meanings else b">>"),
        f"<< /Length {len(table)} >>\nstream\n{table}\nendstream".encode(),
        *[b"null"] * 5,
        b"<< /Type /XObject /Subtype /Form /BBox [0 0 10 10] /Length 0 >>\nstream\n\nendstream",
    ]
    for number, content in enumerate(contents):
        notes = f"/Annots [{widgets}]" if number == 0 else ""
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents {first + 2 * number + 1} 0 R "
            f"/Resources << /Font << /F1 3 0 R >> >> {notes} {page} >>".encode()
        )
        data = content.encode("cp1252")
        objects.append(f"<< /Length {len(data)} >>\nstream\n".encode() + data + b"\nendstream")
    objects.extend(f"<< /Type /Annot /Subtype /Widget {field} >>".encode() for field in fields)
    for number, (at, title) in enumerate(bookmarks, start=1):
        after = f"/Next {marked + number} 0 R" if number < len(bookmarks) else ""
        text = title.encode("utf-16-be", "surrogatepass").hex()
        objects.append(f"<< /Title <feff{text}> /Dest [{first + 2 * at} 0 R /Fit] {after} >>".encode())
    return _assembled(objects, b"")


def make_form_bomb(levels: int, times: int = 10) -> bytes:
    """A PDF whose page shows a form that shows a form ``times`` times, and so on: ``times ** levels`` lines of text."""
    fonts = "/Font << /F1 3 0 R >>"
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [4 0 R] /Count 1 >>",
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents 5 0 R "
        b"/Resources << /XObject << /X 6 0 R >> >> >>",
        b"<< /Length 4 >>\nstream\n/X Do\nendstream",
    ]
    for level in range(levels):
        content = b"/X Do\n" * times
        resources = f"/XObject << /X {7 + level} 0 R >>"
        objects.append(_form(content, resources))
    objects.append(_form(b"BT /F1 12 Tf 60 700 Td (All work and no play.) Tj ET", fonts))
    return _assembled(objects, b"")


def _form(content: bytes, resources: str) -> bytes:
    head = (
        f"<< /Type /XObject /Subtype /Form /BBox [0 0 595 842] /Resources << {resources} >> /Length {len(content)} >>"
    )
    return head.encode() + b"\nstream\n" + content + b"\nendstream"
