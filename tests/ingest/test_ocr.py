"""Scanned pages: named without OCR, read with it, and marked."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path

import pypdfium2
import pytest
from PIL import Image, ImageDraw, ImageFont

from clara.errors import MissingExtraError
from clara.ingest import Reader, ReadLimits, find_files, ocr

needs_ocr = pytest.mark.skipif(importlib.util.find_spec("rapidocr_onnxruntime") is None, reason="needs the extra ocr")


def scanned(*pages: tuple[str, ...]) -> bytes:
    """A PDF of pictures of print."""
    font = ImageFont.load_default(size=40)
    pictures = []
    for lines in pages:
        picture = Image.new("RGB", (1240, 600), "white")
        for number, line in enumerate(lines):
            ImageDraw.Draw(picture).text((80, 60 + 90 * number), line, fill="black", font=font)
        pictures.append(picture)
    data = io.BytesIO()
    pictures[0].save(data, "PDF", save_all=True, append_images=pictures[1:], resolution=150)
    assert not pypdfium2.PdfDocument(data.getvalue())[0].get_textpage().get_text_range().strip()
    return data.getvalue()


def test_without_ocr_the_remedy_is_named(tmp_path: Path) -> None:
    (tmp_path / "scan.pdf").write_bytes(scanned(("Bees fly.",)))
    with Reader(find_files([tmp_path])) as reader:
        assert list(reader.documents()) == []
        (skipped,) = reader.report().skipped
    assert (
        "1 page(s) without text, so it is scanned; run ocrmypdf on it first, or read it with clara index --ocr"
        in skipped.message
    )


@needs_ocr
@pytest.mark.slow
def test_pages_without_text_are_read_and_marked(tmp_path: Path) -> None:
    print_ = ("Bees fly when the spring begins.", "The keeper feeds them 12 kg of sugar.")
    (tmp_path / "scan.pdf").write_bytes(scanned(print_, (), ("The second hive is green.",)))
    with Reader(find_files([tmp_path]), limits=ReadLimits(ocr=True)) as reader:
        (document,) = reader.documents()
        report = reader.report()
    assert document.text == "\n".join(print_) + "\n\nThe second hive is green."
    assert document.metadata["pages_by_ocr"] == "1,3"
    assert report.left_out == {"page pictures, whose text OCR read": 2}
    assert "1 of 3 pages hold no text" in report.skipped[0].message


def test_without_the_extra_the_install_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ocr, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"clara-rag\[ocr\]"):
        ocr.check_ocr()
