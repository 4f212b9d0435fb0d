"""Each deterministic check on its own, and the words they compare."""

from __future__ import annotations

import pytest
from cases import passage, replies
from hypothesis import given
from hypothesis import strategies as st

from clara.synth.checks import (
    LexicalJudge,
    _check_copied,
    _content_stems,
    _language_of,
    _names,
    _numbers,
    _stem,
    _stems,
    check_pair,
    check_paraphrase,
    sentences,
    words,
)
from clara.synth.drafts import Pair, SourcePassage
from clara.synth.settings import CheckSettings, LexicalSettings

LIMITS = CheckSettings()
PASSAGE = SourcePassage(
    "p",
    "test",
    "Marie Curie",
    "Marie Curie moved to Paris in 1891. She won the Nobel Prize in Physics in 1903 with Pierre Curie and Henri "
    "Becquerel, and a second one in Chemistry in 1911. Her notebooks weigh 1,200 grams and are kept in boxes of lead.",
)
GERMAN = SourcePassage(
    "g", "test", "", "Der Turm wurde von den Bürgern der Stadt gebaut und ist mit einer Mauer und dem Tor verbunden."
)
JAPANESE = SourcePassage("j", "test", "", "東京は日本の首都である。人口は約1400万人で、国内最大の都市である。")


def fault_of(question: str, answer: str, about: SourcePassage = PASSAGE, taken: tuple[Pair, ...] = ()) -> str | None:
    fault = check_pair(Pair(question, answer), about, taken, LIMITS)
    return fault.reason if fault else None


@pytest.mark.parametrize(
    ("question", "answer", "reason"),
    [
        ("When did Marie Curie move to Paris?", "1891", None),
        ("How much do the notebooks weigh?", "1200 grams", None),
        ("How many Nobel Prizes did Marie Curie win?", "two", None),
        ("How many Nobel Prizes did Marie Curie win?", "2", None),
        ("Why?", "In 1891", "length"),
        ("word " * 61, "Paris", "length"),
        ("Who moved to Paris?", "!", "length"),
        ("When did Marie Curie move to Paris?", "In 1892", "number_not_in_passage"),
        ("To which city, Paris, did Marie Curie move?", "Paris", "answer_in_question"),
        ("Did Marie Curie move to Paris or to London?", "to Paris", None),
        ("Is yes the answer?", "Yes", None),
        ("Куда переехала Мария Кюри?", "В Париж", "wrong_language"),
        ("Wann ist die Frau mit dem Preis in die Stadt und von wem wurde das bezahlt?", "Paris", "wrong_language"),
    ],
)
def test_pair_checks(question: str, answer: str, reason: str | None) -> None:
    assert fault_of(question, answer) == reason


def test_duplicates_are_found_in_any_order_and_spelling() -> None:
    taken = (Pair("When did Marie Curie move to Paris?", "1891"),)
    assert fault_of("when did marie curie MOVE to Paris", "In 1891", taken=taken) == "duplicate_question"
    assert fault_of("Marie Curie did move to Paris when?", "1891", taken=taken) == "duplicate_question"
    assert fault_of("When did Pierre Curie win the prize?", "1903", taken=taken) is None


def test_other_languages_are_judged_by_their_own_passage() -> None:
    assert fault_of("Von wem wurde der Turm gebaut?", "von den Bürgern der Stadt", GERMAN) is None
    assert (
        fault_of("What was the tower built of and by whom, and who paid for it?", "the city", GERMAN)
        == "wrong_language"
    )
    assert fault_of("Wo steht der Turm?", "in der Stadt", PASSAGE) == "wrong_language"
    assert fault_of("Quand Marie Curie vient-elle à Paris ?", "1891") == "wrong_language"
    assert fault_of("Marie Curie, Rio de Janeiro: which year?", "1891") is None
    assert fault_of("日本の首都はどこですか。", "東京", JAPANESE) is None
    assert fault_of("What is the capital of Japan?", "Tokyo", JAPANESE) == "wrong_language"


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The tower that was built by the king is of stone", "English"),
        ("Der Turm ist von dem König und der Stadt", "German"),
        ("La tour est dans une ville avec des murs et pour les gens", "French"),
        ("Rio de Janeiro, Porto de Galinhas, Foz de Iguaçu, Praia de Pipa", None),
        ("1911", None),
    ],
)
def test_languages_are_told_apart_only_when_clear(text: str, language: str | None) -> None:
    assert _language_of(text) == language


def paraphrase_fault(text: str, about: SourcePassage = PASSAGE) -> str | None:
    fault = check_paraphrase(text, about, LIMITS)
    return fault.reason if fault else None


GOOD = (
    "In 1891 Paris became the home of Marie Curie. Together with Henri Becquerel and Pierre Curie she won the "
    "1903 Nobel Prize for Physics; in 1911 another followed, for Chemistry. Boxes of lead hold her notebooks, whose "
    "weight is 1200 grams."
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (GOOD, None),
        (PASSAGE.text, "paraphrase_is_copy"),
        (PASSAGE.text.lower().replace(",", ""), "paraphrase_is_copy"),
        (f"Well: {PASSAGE.text.split('.')[1]}. In 1891 Marie Curie went to Paris, 1,200 grams.", "paraphrase_is_copy"),
        (GOOD.replace("1911", "that decade").replace("1891", "the past"), "numbers_lost"),
        (GOOD.replace("1911", "1911 or 1912"), "number_invented"),
        (
            GOOD.replace("Becquerel", "B.").replace("Henri", "H.").replace("Pierre", "P.").replace("Chemistry", "it"),
            "names_lost",
        ),
        ("Curie moved.", "length"),
        (GOOD * 3, "length"),
        (f"{PASSAGE.text.split('.')[0]}.", "length"),
    ],
)
def test_paraphrase_checks(text: str, reason: str | None) -> None:
    assert paraphrase_fault(text) == reason


def test_short_passages_have_their_own_measure() -> None:
    short = SourcePassage("s", "test", "", "Ada Brenner built bridges in Graz.")
    assert (
        paraphrase_fault("In the town of Graz bridges were what the engineer Ada Brenner used to build.", short) is None
    )
    assert paraphrase_fault("Ada Brenner built bridges in Graz.", short) == "paraphrase_is_copy"
    assert paraphrase_fault("Ada Brenner built bridges at Graz.", short) == "paraphrase_is_copy"


def test_made_up_cases_pass_every_check() -> None:
    """The scripted server's good replies are good, so that its tests mean something."""
    judge = LexicalJudge(LexicalSettings())
    for number in range(40):
        about, good = passage(number), replies(number)
        assert paraphrase_fault(good["paraphrase"]["paraphrase"], about) is None
        for item in good["simple_qa"]["pairs"] + good["complex_qa"]["pairs"]:
            pair = Pair(item["question"], item["answer"])
            assert check_pair(pair, about, (), LIMITS) is None
            assert judge.check_pair(pair, about) is None


def test_the_lexical_judge_knows_what_is_about_the_passage() -> None:
    judge = LexicalJudge(LexicalSettings())

    def reason(question: str, answer: str) -> str | None:
        fault = judge.check_pair(Pair(question, answer), PASSAGE)
        return fault.reason if fault else None

    assert reason("Where did Marie Curie move in 1891?", "to Paris") is None
    assert reason("Did Marie Curie win the Nobel Prize in Physics?", "yes") is None
    assert reason("Is the Amazon longer than the Nile?", "yes") == "question_off_passage"
    assert reason("Where did Marie Curie move in 1891?", "to the suburbs of London") == "answer_not_supported"
    assert reason("Which river flows through Vienna and Budapest?", "boxes of Danube") == "question_off_passage"
    years = Pair("How many years after moving to Paris did Marie Curie win in Chemistry?", "20")
    assert judge.check_pair(years, PASSAGE) is not None
    assert judge.check_pair(years, PASSAGE, inferred=True) is None
    assert check_pair(years, PASSAGE, (), LIMITS) is not None
    assert check_pair(years, PASSAGE, (), LIMITS, inferred=True) is None
    assert judge.check_paraphrase(GOOD, PASSAGE) is None
    assert judge.check_paraphrase(passage(1).text, PASSAGE) is not None


def test_japanese_endings_are_no_content() -> None:
    pair = Pair("東京の人口はどのくらいですか？", "約1400万人")
    assert LexicalJudge(LexicalSettings()).check_pair(pair, JAPANESE) is None
    assert LexicalJudge(LexicalSettings()).check_pair(Pair("大阪の名物は何ですか？", "たこ焼き"), JAPANESE) is not None


def test_words_stems_numbers_and_names() -> None:
    assert words("Besanc\u0327on") == ["besançon"]
    assert words("It's 1,200.5 kg — OK_go") == ["it", "s", "1,200.5", "kg", "ok", "go"]
    assert words("首都A東") == ["首都", "a", "東"]
    assert _stems("Compressors compress 2nd twelve 1,000") == ["compre", "compre", "2", "12", "1000"]
    assert _content_stems("Who was the king of the hill?") == [_stem("king"), _stem("hill")]
    assert _numbers("In 1,200 and 3.5 of 2nd x86 ten") == {"1200", "3.5", "2"}
    assert _names("The king Louis met Anna. Then NASA left. Paris is far, Paris!") == {"louis", "anna", "nasa", "paris"}
    assert sentences('One. Two! "Three?" Four.\n\nFive') == ["One.", "Two!", '"Three?"', "Four.", "Five"]


@given(st.text(max_size=200))
def test_any_text_can_be_checked(text: str) -> None:
    """No reply, however odd, breaks a check."""
    check_pair(Pair(text, text), PASSAGE, (Pair(text[1:], text),), LIMITS)
    check_paraphrase(text, PASSAGE, LIMITS)
    check_paraphrase(GOOD, SourcePassage("x", "", text, text), LIMITS)
    assert _check_copied(PASSAGE.text, PASSAGE, LIMITS) is not None
