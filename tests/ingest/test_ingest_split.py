"""Windows: all characters, never too long, cut where a reader would."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sample_tokenizers import characters, golden, moody, trained, words

from clara.errors import ConfigError
from clara.ingest import Reader, TokenSpans, find_files, iter_passages, make_document
from clara.ingest.split import split
from clara.prompts import passage_text
from clara.records import Document, Passage
from clara.samples import sample_folder

_TOKENIZERS: dict[str, TokenSpans] = {"trained": trained(), "characters": characters, "words": words, "moody": moody}
if (_golden := golden()) is not None:
    _TOKENIZERS["golden"] = _golden

_PIECES = st.sampled_from(
    [
        *["The bee ", "flew. ", "Why? ", "Mr. Fox ", "e", "supercalifragilistic" * 9, "# Head\n\n", "- item\n"],
        *["\n\n", "\n", " ", " " * 40, "\u3000", "日本語。", "e\u0301\u0302", "z\u0335" * 30, "👩\u200d👩\u200d👧"],
        *["🇫🇷🇩🇪", "ز", "3.14 ", "U.S. "],
    ]
)
_TEXTS = st.one_of(
    st.lists(_PIECES, min_size=1, max_size=60).map("".join),
    st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), min_size=1, max_size=300),
).filter(lambda text: bool(text.strip()) and not text.startswith("\ufeff"))
_TITLES = st.one_of(st.just(""), st.sampled_from(["The bee", "A title " * 40, "x" * 500, "日本語" * 30, "👩‍👩‍👧"]))


def _check_windows(document: Document, passages: Sequence[Passage], spans: TokenSpans, max_tokens: int) -> None:
    assert "".join(passage.text for passage in passages) == document.text
    assert passages[0].start == 0
    for left, right in pairwise(passages):
        assert left.end == right.start
    for passage in passages:
        assert passage.start < passage.end
        assert passage.text == document.text[passage.start : passage.end]
        assert passage.document == document.uri
        assert document.title.startswith(passage.title)
        assert len(spans(passage_text(passage.title, passage.text))) <= max_tokens
    assert len({passage.id for passage in passages}) == len(passages)


@pytest.mark.parametrize("name", sorted(_TOKENIZERS))
@given(text=_TEXTS, title=_TITLES, max_tokens=st.sampled_from([12, 16, 40, 256]))
@settings(max_examples=80, deadline=None)
def test_windows_cover_everything_and_fit(name: str, text: str, title: str, max_tokens: int) -> None:
    spans = _TOKENIZERS[name]
    document = make_document("/a.txt", title, text)
    passages = split(document, spans, max_tokens=max_tokens)
    _check_windows(document, passages, spans, max_tokens)
    assert passages == split(document, spans, max_tokens=max_tokens)
    quarter = max(1, max_tokens // 4)
    assert all(len(spans(passage.title)) <= quarter for passage in passages)


@given(text=st.text(alphabet="ab.\n #e\u0301", min_size=1, max_size=120), max_tokens=st.integers(4, 20))
@example(text="aaaaaaaa ", max_tokens=8)
@example(text=" " * 30 + "a", max_tokens=8)
@example(text=" a\u0301\u0301\u0301aa  ", max_tokens=7)
@example(text="a" * 8 + " " * 9 + "b" + "\n" * 17, max_tokens=8)
@settings(max_examples=300, deadline=None)
def test_only_space_is_a_window_only_where_it_fits_no_neighbour(text: str, max_tokens: int) -> None:
    if not text.strip():
        return
    passages = split(make_document("/a.txt", "", text), characters, max_tokens=max_tokens)
    for left, right in pairwise(passages):
        if left.text.isspace() or right.text.isspace():
            assert len(left.text) + len(right.text) > max_tokens


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=80),
    breaks=st.lists(st.booleans(), min_size=80, max_size=80),
)
@settings(max_examples=80, deadline=None)
def test_short_sentences_are_never_broken(lengths: list[int], breaks: list[bool]) -> None:
    sentences = [
        "It " + " ".join(["ran"] * n) + "." + ("\n\n" if new else " ") for n, new in zip(lengths, breaks, strict=False)
    ]
    passages = split(make_document("/a.txt", "", "".join(sentences)), trained(), max_tokens=64)
    assert all(passage.text.rstrip().endswith(".") for passage in passages)
    assert all(passage.text.lstrip().startswith("It") for passage in passages)


def _texts(text: str, max_tokens: int, title: str = "") -> list[str]:
    return [p.text for p in split(make_document("/a.txt", title, text), characters, max_tokens=max_tokens)]


@pytest.mark.parametrize(
    ("text", "max_tokens", "expected"),
    [
        pytest.param("One two. Three.\n\nFour five. Six seven.", 30, ["One two. Three.\n\n", "Four five. Six seven."]),
        pytest.param("Aaa bbb ccc. Ddd eee fff.", 15, ["Aaa bbb ccc. ", "Ddd eee fff."], id="sentence"),
        pytest.param("one two three four five six", 14, ["one two three ", "four five six"], id="word"),
        pytest.param("He met Dr. Fox in May. Bye.", 24, ["He met Dr. Fox in May. ", "Bye."], id="abbreviation"),
        pytest.param("He is J. R. Fox. He ran off.", 24, ["He is J. R. Fox. ", "He ran off."], id="initials"),
        pytest.param("The U.S. Army. Bye then now.", 20, ["The U.S. Army. ", "Bye then now."], id="letters"),
        pytest.param("Aaaa bbbb.\n\n# New\n\nCccc dddd.", 22, ["Aaaa bbbb.\n\n", "# New\n\nCccc dddd."], id="heading"),
        pytest.param("我喜欢茶。他喜欢咖啡。", 8, ["我喜欢茶。", "他喜欢咖啡。"], id="Chinese"),
        pytest.param("e\u0301e\u0301e\u0301", 5, ["e\u0301e\u0301", "e\u0301"], id="accents"),
        pytest.param("👩‍👧👩‍👧", 5, ["👩‍👧", "👩‍👧"], id="emoji"),
        pytest.param("🇫🇷🇩🇪", 3, ["🇫🇷", "🇩🇪"], id="flags"),
        pytest.param("aaaaaaaa ", 8, ["aaaa", "aaaa "], id="space last"),
    ],
)
def test_cuts(text: str, max_tokens: int, expected: list[str]) -> None:
    assert _texts(text, max_tokens) == expected


def test_tiny_last_window_is_evened_out() -> None:
    sentences = ["Abcdefgh. "] * 11
    lengths = [len(text) for text in _texts("".join(sentences), 100)]
    assert lengths in ([50, 60], [60, 50])


def test_own_paragraph_at_the_end_is_not_torn_from_its_neighbour_by_evening_out() -> None:
    first = "Abcdefgh. " * 9
    assert _texts(first.rstrip() + "\n\nEnd.", 93) == [first.rstrip() + "\n\n", "End."]


def test_title_counts_and_is_cut_after_a_word() -> None:
    document = make_document("/a.txt", "Lives of eminent bees", "Bees fly. " * 20)
    passages = split(document, characters, max_tokens=40)
    assert {passage.title for passage in passages} == {"Lives of"}
    assert all(len(passage_text(p.title, p.text)) <= 40 for p in passages)
    assert max(len(passage_text(p.title, p.text)) for p in passages) == 39


def test_title_that_the_text_begins_with_costs_nothing() -> None:
    document = make_document("/a.txt", "Bees", "Bees fly to the flower and back")
    assert len(split(document, characters, max_tokens=31)) == 1


def test_id_is_the_documented_hash() -> None:
    document = make_document("/a.txt", "", "Bees fly.")
    (passage,) = split(document, characters)
    digest = hashlib.sha256(f"/a.txt\n{document.content_hash}\n0-9".encode()).hexdigest()
    assert passage.id == digest[:16]


def test_title_is_left_out_where_it_leaves_no_room() -> None:
    spans = trained()
    document = make_document("/a.txt", "T", "👩 a")
    passages = split(document, spans, max_tokens=4)
    _check_windows(document, passages, spans, 4)
    assert passages[0].title == ""


def test_window_too_small_for_a_character() -> None:
    with pytest.raises(ConfigError, match=r"windows of 2 tokens cannot hold the character '👩' of /a\.txt"):
        split(make_document("/a.txt", "", "👩"), trained(), max_tokens=2)


@pytest.mark.parametrize("piece", ["Bees fly to flowers. ", "x", "\n", ".", "# a\n"])
def test_long_text_streams(piece: str) -> None:
    """A text of a million characters is tokenised in short parts, a few times over; the first window needs one part."""
    calls: list[int] = []

    def counted(text: str) -> Sequence[tuple[int, int]]:
        calls.append(len(text))
        return characters(text)

    text = "Begin. " + piece * (1_000_000 // len(piece))
    windows = iter_passages(make_document("/a.txt", "Bees", text), counted)
    next(windows)
    assert sum(calls) < 50_000
    covered = sum(len(window.text) for window in windows)
    assert covered > 0.999 * len(text) - 256
    assert max(calls) <= 64 * 256
    assert sum(calls) < 3 * len(text)


def test_windows_of_prose_are_well_filled() -> None:
    """A memory costs the same for a short window, so short ones waste the store."""
    texts = [document.text for document in Reader(find_files([sample_folder()])).documents()]
    document = make_document("/a.txt", "", "\n\n".join(texts))
    counts = [len(trained()(passage.text)) for passage in split(document, trained(), max_tokens=128)]
    assert sum(counts) / len(counts) > 0.7 * 128
