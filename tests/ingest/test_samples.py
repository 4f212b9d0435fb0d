"""The packaged sample documents are there, readable, short, and say what the demo asks about."""

from __future__ import annotations

import pytest

from clara.ingest import Reader, find_files
from clara.records import Document
from clara.samples import sample_folder

_FACTS = {
    "amazon-river.md": ("Amazon River", ["Atlantic Ocean", "Francisco de Orellana", "Manaus"]),
    "apollo-11.docx": ("Apollo 11", ["Michael Collins", "20 July 1969", "Saturn V"]),
    "chess.txt": ("", ["Wilhelm Steinitz", "64 squares", "Deep Blue"]),
    "coffee.html": ("Coffee", ["Ethiopia", "Brazil", "caffeine"]),
    "eiffel-tower.md": ("Eiffel Tower", ["Gustave Eiffel", "330 metres", "Chrysler Building"]),
    "honey-bee.txt": ("", ["Karl von Frisch", "hexagonal", "2,000 eggs"]),
    "marie-curie.html": ("Marie Curie", ["Warsaw", "polonium and radium", "1911"]),
    "penicillin.md": ("Penicillin", ["Alexander Fleming", "1928", "Dorothy Hodgkin"]),
    "printing-press.pdf": ("", ["Mainz", "William Caxton", "Bi Sheng"]),
    "volcano.txt": ("", ["Pompeii", "Mauna Loa", "Olympus Mons"]),
}


@pytest.fixture(scope="module")
def documents() -> dict[str, Document]:
    reader = Reader(find_files([sample_folder()]))
    found = {document.uri.rpartition("/")[2]: document for document in reader.documents()}
    assert reader.report().skipped == ()
    return found


def test_all_are_there(documents: dict[str, Document]) -> None:
    assert sorted(documents) == sorted(_FACTS)


@pytest.mark.parametrize("name", sorted(_FACTS))
def test_sample(name: str, documents: dict[str, Document]) -> None:
    title, facts = _FACTS[name]
    document = documents[name]
    assert document.title == title
    for fact in facts:
        assert fact in " ".join(document.text.split())
    assert 80 <= len(document.text.split()) <= 250


def test_each_is_named_in_the_readme() -> None:
    readme = (sample_folder().parent / "README.md").read_text(encoding="utf-8")
    assert "Apache-2.0" in readme
    for name in _FACTS:
        assert f"`documents/{name}`" in readme
