"""From top tokens to words: what is left out and why, on lenses written by hand; and the share that passages hold."""

from __future__ import annotations

import pytest

from clara.analysis.logit_lens import LensSettings, common_words, condense, lens_hits, view
from clara.data import DocText, MultiHop
from clara.errors import RecordError
from clara.model import ClaraModel
from clara.model.inspection import EncoderRole, Lens, Space, _LensToken


def lens(*slots: str) -> Lens:
    """Slots of ``token:score`` items; a token begins a word unless it starts with a plus."""
    made = []
    for slot in slots:
        items = [item.rsplit(":", 1) for item in slot.split(",")]
        made.append(tuple(_LensToken(t.removeprefix("+"), float(s), not t.startswith("+")) for t, s in items))
    return Lens("hidden", "logit", tuple(made))


def test_condensed_words_are_counted_by_slots() -> None:
    seen = lens(" NFL:3, league:2", " nfl:5, Texas:1", " NFL:4, Oklahoma:7")
    words = condense(seen, "Where does he play?", frozenset())
    assert [(w.word, w.slots, w.score) for w in words] == [
        ("NFL", 3, 5.0),
        ("Oklahoma", 1, 7.0),
        ("league", 1, 2.0),
        ("Texas", 1, 1.0),
    ]


@pytest.mark.parametrize(
    ("token", "kept"),
    [
        (" Paris:1", True),
        ("+iffel:1", False),  # a later piece of a word
        (" ?:1", False),
        (" P:1", False),  # one letter says nothing
        (" 19:1", True),
        (" tower:1", False),  # in the question, whatever its case
        (" towers:1", False),  # a longer form of a word of the question
        (" ower:1", False),  # a part of one
        (" whenever:1", False),
        (" wasp:1", True),  # "was" is too short to hide longer words
        (" the:1", False),  # common
    ],
)
def test_what_is_left_out(token: str, kept: bool) -> None:  # noqa: FBT001 - a table
    words = condense(lens(token), "When was a Tower built?", frozenset({"the"}))
    assert bool(words) == kept


class FakeInsight:
    """Shows for every text the words of a table."""

    name, fingerprint, default_rate = "m", "f", 16

    def __init__(self, table: dict[str, Lens]) -> None:
        self.table = table

    def inspector(self) -> FakeInsight:
        return self

    def lens(self, text: str, *, role: EncoderRole, rate: int, space: Space = "hidden", top: int = 5) -> Lens:
        assert (role, rate, space, top) == ("query_reasoner", 16, "hidden", 5)
        return self.table.get(text, lens(" extraord:9"))


def question(number: int, text: str) -> MultiHop:
    docs = (DocText("Paris", "A tower in Paris, 1889."), DocText("Rome", "A temple in Rome."))
    return MultiHop(str(number), "hand", text, ("x",), docs, (0,))


def test_hits_are_shares_of_words_in_gold_and_other_passages() -> None:
    insight = FakeInsight(
        {
            "Q one?": lens(" Paris:2, 1889:1", " Rome:1, elephant:1, extraord:9"),
            "Q two?": lens(" Rome:1"),
            "Q three?": lens(" extraord:1"),  # as the references show it, it is no word of this question
        }
    )
    records = [question(1, "Q one?"), question(2, "Q two?"), question(3, "Q three?")]
    found = lens_hits(insight, records, LensSettings())  # type: ignore[arg-type]
    assert (found.n, found.gold, found.other) == (2, (2 / 4 + 0) / 2, (1 / 4 + 1) / 2)
    assert dict(found.unusable) == {"questions whose lens shows no word of its own": 1}
    assert dict(found.examples) == {"Q one?": ("paris", "1889"), "Q two?": ()}
    assert found.gold_ci95.low <= found.gold <= found.gold_ci95.high
    with pytest.raises(RecordError, match="gold documents"):
        lens_hits(insight, [], LensSettings())  # type: ignore[arg-type]


def test_a_view_leaves_out_what_any_text_shows(tiny_model: ClaraModel) -> None:
    inspector = tiny_model.inspector()
    text = "Rye bread is baked twice a year."
    seen = view(inspector, text, role="compressor", rate=16, top=20)
    plain = inspector.lens(text, role="compressor", rate=16, top=20)
    assert seen.lens == plain
    everything = condense(plain, text, frozenset())
    shown = {word.word for word in seen.words}
    assert shown < {word.word for word in everything}
    assert not {word.lower() for word in shown} & common_words(
        [inspector.lens("What is it?", role="compressor", rate=16, top=20)]
    )
