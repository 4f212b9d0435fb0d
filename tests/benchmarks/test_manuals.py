"""The test bed's catalogue, its questions as far as no document is needed, and how its documents are fetched.

That each evidence stands in its document is checked wherever the bed is read: ``clara.evaluate.bed.read_bed``.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import re
import sys
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clara.metrics import normalize_answer

MANUALS = Path(__file__).parents[2] / "benchmarks" / "manuals"
QUESTION_FILES = sorted((MANUALS / "questions").glob("*.jsonl"))


def _module() -> Any:  # noqa: ANN401 - a script, not a package
    spec = importlib.util.spec_from_file_location("manuals_fetch", MANUALS / "fetch.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


fetching = _module()
CATALOGUE = {collection.name: collection for collection in fetching.read_catalogue()}


def test_the_catalogue_pins_six_collections_of_four_formats() -> None:
    formats = Counter(collection.format for collection in CATALOGUE.values())
    assert len(CATALOGUE) >= 6
    assert formats["HTML"] >= 2
    assert set(formats) == {"HTML", "PDF", "text", "Markdown"}
    for collection in CATALOGUE.values():
        assert re.fullmatch(r"[0-9a-f]{64}", collection.sha256)
        assert re.fullmatch(r"[0-9.]+", collection.version)
        assert collection.registry in {"pypi", "npm"}


def test_every_collection_has_its_questions() -> None:
    assert {file.stem for file in QUESTION_FILES} <= set(CATALOGUE)


@pytest.mark.parametrize("file", QUESTION_FILES, ids=lambda file: file.stem)
def test_questions_keep_to_the_bed_s_rules(file: Path) -> None:
    questions = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    answerable = [question for question in questions if question["answers"]]
    unanswerable = [question for question in questions if not question["answers"]]
    documents = {str(path) for path in CATALOGUE[file.stem].targets().values()}

    assert len(questions) >= 42
    assert 0.17 <= len(unanswerable) / len(questions) <= 0.25
    assert [question["id"] for question in questions] == [f"{file.stem}-{n:02}" for n in range(1, len(questions) + 1)]
    assert len({question["question"] for question in questions}) == len(questions)
    for group in (answerable, unanswerable):
        halves = Counter(question["half"] for question in group)
        assert set(halves) == {"tuning", "reporting"}
        assert abs(halves["tuning"] - halves["reporting"]) <= 1
    yes_no = [question for question in answerable if question["answers"][0] in {"yes", "no"}]
    assert len(yes_no) <= 0.05 * len(questions)
    for question in answerable:
        assert question["evidence"]["document"] in documents, question["id"]
        form, text = normalize_answer(question["answers"][0]), normalize_answer(question["evidence"]["text"])
        assert question in yes_no or f" {form} " in f" {text} ", question["id"]
    assert all(question["evidence"] is None for question in unanswerable)


def _archive(**files: str) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return packed.getvalue()


@pytest.fixture
def fetch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    """Fetches a made-up package, whose client is replaced by writing the archive; counts what it downloads."""
    content = _archive(**{"guide.rst": "A guide.", "LICENSE": "MIT", "other.txt": "not listed"})
    downloads: list[str] = []

    def download(collection: Any, folder: Path) -> Path:  # noqa: ANN401
        downloads.append(collection.name)
        (folder / "package.tgz").write_bytes(content)
        return folder / "package.tgz"

    monkeypatch.setattr(fetching, "_download", download)

    def call(**changes: object) -> Path:
        values: dict[str, object] = {
            "name": "guide",
            "about": "",
            "format": "text",
            "registry": "npm",
            "package": "guide",
            "version": "1.0",
            "sha256": hashlib.sha256(content).hexdigest(),
            "licence": "MIT",
            "licence_file": "package/LICENSE",
            "root": "package",
            "files": ("guide.rst",),
            "saved_as": ".txt",
            **changes,
        }
        folder: Path = fetching.fetch(fetching.Collection(**values), tmp_path)
        assert len(downloads) <= 1
        return folder

    return call


def test_fetching_takes_the_listed_files_and_the_licence_once(fetch: Callable[..., Path], tmp_path: Path) -> None:
    folder = fetch()
    assert fetch() == folder
    assert [path.name for path in folder.iterdir()] == ["guide.txt"]
    assert (folder / "guide.txt").read_text() == "A guide."
    assert (tmp_path / "licences" / "guide").read_text() == "MIT"
    (folder / "guide.txt").write_text("changed by somebody")
    fetch()
    assert (folder / "guide.txt").read_text() == "A guide."


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sha256": "0" * 64}, "sha256 is .* expected 0000"),
        ({"files": ("lost.rst",)}, "holds no file package/lost.rst"),
    ],
)
def test_a_package_that_is_not_what_was_pinned_is_refused(
    fetch: Callable[..., Path], tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(fetching.FetchError, match=message):
        fetch(**changes)
    assert not (tmp_path / "guide").exists()


def test_files_of_somebody_else_are_neither_indexed_nor_deleted(fetch: Callable[..., Path]) -> None:
    stranger = fetch() / "notes.txt"
    stranger.write_text("mine")
    with pytest.raises(fetching.FetchError, match=r"notes\.txt is not a file of guide"):
        fetch()
    assert stranger.read_text() == "mine"


def test_an_unknown_field_of_the_catalogue_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "collections.toml"
    path.write_text('[[collection]]\nname = "a"\ncolour = "red"\nfiles = []\n')
    with pytest.raises(fetching.FetchError, match="colour"):
        fetching.read_catalogue(path)
