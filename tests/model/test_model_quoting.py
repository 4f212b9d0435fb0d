"""Quoted answers stand in their sources word for word, and nothing else does."""

from __future__ import annotations

import json
import random
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clara.model import ClaraModel, Sampling, generator
from clara.model.prompting import _LONGEST, BESIDE, Quotations, _words
from clara.records import GenerationRequest

TEXTS = (
    "Eiffel Tower\nThe tower cost 7,799,401.31 francs, 25% more than planned; O'Brien (U.S.) paid $5.",
    "東京は日本の首都です。 Tokyo was Edo until 1868–1869.",
)
WORDS = re.compile(r"\w+")


@pytest.fixture(scope="module")
def quotations(tiny_model: ClaraModel) -> Quotations:
    return Quotations(tiny_model._tokenizer, TEXTS)


def written(quotations: Quotations, tiny_model: ClaraModel, seed: int) -> str:
    """A quotation by chance."""
    drawn, ids = random.Random(seed), list[int]()
    while True:
        following = sorted(quotations.next_ids(ids))
        if quotations.may_end(ids) and (not following or drawn.random() < 0.1):
            text: str = tiny_model._tokenizer.decode(ids)
            return text
        ids.append(drawn.choice(following))


@given(st.integers(0, 2**32))
def test_what_is_written_is_a_stretch_of_a_line_between_words(
    quotations: Quotations, tiny_model: ClaraModel, seed: int
) -> None:
    text = written(quotations, tiny_model, seed)
    if text in BESIDE:
        return
    found = [(line, match) for source in TEXTS for line in source.splitlines() for match in _places(text, line)]
    assert found, text
    assert any(_whole(line, match) for line, match in found), text


def _places(text: str, line: str) -> list[int]:
    return [match.start() for match in re.finditer(re.escape(text), line)]


def _whole(line: str, start: int) -> bool:
    """Whether no number or name is cut at either end; scripts without spaces have no words to cut."""
    return line.startswith("東京") or (start == 0 or not line[start - 1].isalnum())


def every(quotations: Quotations, tiny_model: ClaraModel) -> set[str]:
    """All that may be quoted."""
    found, open_ = set[str](), [list[int]()]
    while open_:
        ids = open_.pop()
        if ids and quotations.may_end(ids):
            found.add(tiny_model._tokenizer.decode(ids))
        open_.extend([*ids, token] for token in quotations.next_ids(ids))
    return found


def test_numbers_names_and_signs_are_quoted_whole(quotations: Quotations, tiny_model: ClaraModel) -> None:
    found = every(quotations, tiny_model)
    assert {"Eiffel Tower", "7,799,401.31", "7,799,401.31 francs", "25%", "O'Brien", "U.S", "$5", "1868"} <= found
    assert {"yes", "no", "東", "東京", "首都", "Edo until 1868–1869"} <= found
    assert not found & {"7", "799", "401.31", "7,799", "Brien", "O", "Tow", "ower", "Tower\nThe", "", "Paris", "25"}
    # A word, a run of words from any word to any later one, or yes or no: nothing else.
    lines = [line for text in TEXTS for line in text.splitlines()]
    assert all(one in BESIDE or any(one in line for line in lines) for one in found)


@pytest.mark.parametrize(
    ("text", "whole", "cut"),
    [
        ("It was -52 degrees, or −5.", {"-52", "-52 degrees", "−5"}, {"52", "5", "-"}),
        ("Written in C++ and C#.", {"C++", "C#", "C++ and C#"}, {"C", "C+"}),
        ("Rated A+ from 1868-1869.", {"A+", "1868", "1869", "1868-1869"}, {"A", "-1869"}),
        ("1+1 is >5%, +3 dB", {"1+1", ">5%", "+3 dB"}, {"1", "1+", "5%", "3", "+3", "dB"}),
        ("A cafe\u0301 by the sea", {"cafe\u0301"}, {"cafe"}),
        ("हिन्दी भाषा", {"हिन्दी", "भाषा", "हिन्दी भाषा"}, {"हिन", "न्दी", "ह"}),
        ("ดีมาก", {"ดี", "ดีมาก"}, {"ด"}),
    ],
)
def test_signs_and_marks_go_with_their_word(text: str, whole: set[str], cut: set[str], tiny_model: ClaraModel) -> None:
    found = every(Quotations(tiny_model._tokenizer, [text]), tiny_model)
    assert whole <= found
    assert not found & cut


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("See `debian-security-announce` (a list).", ["See", "debian-security-announce", "a", "list"]),
        ("Start it with --prime=slow; code BX_SEAL_7.", ["Start", "it", "with", "--prime=slow", "code", "BX_SEAL_7"]),
        ("Kernel 2.6.20.1, v2.0-rc1.", ["Kernel", "2.6.20.1", "v2.0-rc1"]),
        ("In /etc/nginx/nginx.conf or ../x/*.conf:", ["In", "/etc/nginx/nginx.conf", "or", "../x/*.conf"]),
        ("<https://a.b/c?x=1&y=2>, me@a.org", ["https://a.b/c?x=1&y=2", "me@a.org"]),
        ("Call __init__(), a[0] or std::vector<int>.", ["Call", "__init__()", "a[0]", "or", "std::vector<int>"]),
        ("On 2024-01-05 at 12:30, 12/03/1999", ["On", "2024-01-05", "at", "12:30", "12/03/1999"]),
        ("At 40 bar, 5kg or 1,889 m", ["At", "40 bar", "5kg", "or", "1,889 m"]),
        ("From 1868-1869, 1900–1910", ["From", "1868", "1869", "1900", "1910"]),
        ("red,green 3,000", ["red", "green", "3,000"]),
    ],
)
def test_identifiers_dates_and_numbers_with_units_are_never_divided(text: str, whole: list[str]) -> None:
    assert [text[start:end] for start, end in _words(text)] == whole


def test_a_long_line_is_quoted_in_part_and_an_empty_one_not_at_all(tiny_model: ClaraModel) -> None:
    long = " ".join(f"word{number}" for number in range(200))
    quotations = Quotations(tiny_model._tokenizer, [long, "", "…!?"])
    ids = list[int]()
    while following := quotations.next_ids(ids):
        word = tiny_model._tokenizer("word0", add_special_tokens=False).input_ids
        ids.append(word[len(ids)] if len(ids) < len(word) else min(following))
    text = tiny_model._tokenizer.decode(ids)
    assert long.startswith(text)
    assert _LONGEST - 10 < len(text) <= _LONGEST
    assert quotations.may_end(ids)


def test_an_answer_is_held_to_its_own_sources_and_others_stay_free(tiny_model: ClaraModel) -> None:
    memories = tuple(tiny_model.compress(["The tower is high."]))
    free = GenerationRequest("Who?", memories=memories)
    first, second = (GenerationRequest("Who?", memories=memories, quote_from=(text,)) for text in TEXTS)
    together = tiny_model.generate_many([first, free, second], max_new_tokens=40)
    assert together == [tiny_model.generate_many([one], max_new_tokens=40)[0] for one in (first, free, second)]
    for answer, text in zip((together[0], together[2]), TEXTS, strict=True):
        assert answer.text in {*BESIDE}.union(*_stretches(text)), answer.text
    assert together[1].text not in together[0].text
    assert "".join(tiny_model.stream(first, Sampling(max_new_tokens=40))).strip() == together[0].text


def _stretches(text: str) -> list[set[str]]:
    return [{line[a:b] for a in range(len(line)) for b in range(a, len(line) + 1)} for line in text.splitlines()]


def test_a_quoted_answer_can_be_sampled(tiny_model: ClaraModel) -> None:
    request = GenerationRequest("Who?", quote_from=(TEXTS[0],))
    found = {
        "".join(tiny_model.stream(request, Sampling(temperature=5.0, seed=seed, max_new_tokens=64)))
        for seed in range(6)
    }
    assert len(found) > 1
    assert all(one.strip() in {*BESIDE}.union(*_stretches(TEXTS[0])) for one in found)


def test_a_reader_that_judges_its_answers_gives_the_one_it_believes_in(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "judging")
    manifest = json.loads((folder / "clara.json").read_text())
    shutil.copytree(folder / "adapters" / "generator", folder / "adapters" / "text_reader", dirs_exist_ok=True)
    roles = [*dict.fromkeys([*manifest["roles"], "text_reader"])]
    (folder / "clara.json").write_text(json.dumps(manifest | {"judges": True, "roles": roles}))
    model = ClaraModel.load(folder, dtype="fp32")
    request = GenerationRequest("Who?", texts=TEXTS, reader="text_reader", quote_from=TEXTS)
    decoder = model.decoder(request)
    ended = model._generator._ended(decoder, [request], Sampling(max_new_tokens=40), scored=False)
    rows = ended[0].rows
    assert len({row.written[0] for row in rows}) == len(rows) > 1
    believed = [(row.odds or 0.0) + generator._LIKELIHOOD_WEIGHT * sum(row.free) for row in rows]
    best = rows[believed.index(max(believed))]
    [made] = model.generate_many([request], max_new_tokens=40)
    assert made.text == model._generator._text(best.written).strip()
    assert made.evidence == pytest.approx(generator._evidence(best), abs=1e-4)
    assert generator._evidence(best) != pytest.approx(sum(best.free), abs=0.01)
    assert "".join(model.stream(request, Sampling(max_new_tokens=40))).strip() == made.text
    cut = model.generate_many([request], max_new_tokens=1)[0]
    assert cut.evidence is not None, "an answer that is cut off is judged as it stands"
    other = replace(request, reader="generator")
    assert model.generate_many([other])[0].evidence is None, "only the reader that was trained to judges"
