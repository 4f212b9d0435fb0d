"""Superscripts and subscripts: which numbers they are kept apart from, and how."""

from __future__ import annotations

import pytest

from clara.ingest.scripts import Script, spelt, subscript, superscript


@pytest.mark.parametrize(
    ("before", "script", "after", "text"),
    [
        ("3×10", "6", " cells", "^6"),
        ("10", "−4", "", "^−4"),
        ("10", "n+1", "", "^(n+1)"),
        ("25 m", "2", " of", "^2"),
        ("per km", "2", ".", "^2"),
        ("2", "10", " bytes", "^10"),
        ("10", "6", "8", "^6 "),
        ("e", "x", "", "^x"),
        ("Na", "+", "", "^+"),
        ("(a+b)", "2", "", "^2"),
        ("is 1024", "2", " bytes", "^2"),
        ("in 1024", "2", "", "[2]"),
        ("in 2019", "1", " only", "[1]"),
        ("cost 1,250", "3", "", "[3]"),
        ("of 3.5", "2", "", "[2]"),
        ("the depot", "12", "", "[12]"),
        ("open daily.", "1,2", "", "[1,2]"),
        ("text", "[4]", "", "[4]"),
        ("(see the annex)", "1", "", "[1]"),
        ("the 21", "st", " of", "st"),
        ("M", "lle", " Curie", "lle"),
        ("Mada", "me", " Curie", "me"),
        ("Acme", "™", "", "™"),
        ("L", "A", "TEX", "A"),
        ("2019", "*", "", "*"),
        ("Total", "a", "", "[a]"),
        ("Costs", "a, b", ".", "[a, b]"),
        ("Sr", "a", " Paz", "a"),
        ("sin", "n", " x", "^n"),
        ("sin", "2", " x", "^2"),
        ("Acme", "TM", " pumps", "™"),
        ("45", "o", "C", "°"),
        ("45", "0", " F,", "°"),
        ("the 45", "o", " Congreso", "o"),
        ("", "1", "See", "1 "),
        ("word", " ", "", ""),
    ],
)
def test_superscript(before: str, script: str, after: str, text: str) -> None:
    assert superscript(before, script, after) == text


@pytest.mark.parametrize(
    ("before", "script", "after", "text"),
    [
        ("CO", "2", " levels", "2"),
        ("(OH)", "2", "", "2"),
        ("101", "2", "", "_2"),
        ("log", "2", "8", "_2 "),
        ("x", "i+1", "", "_(i+1)"),
        ("x", "i", "", "_i"),
        ("", "2", "", "2"),
        ("x", "", "", ""),
    ],
)
def test_subscript(before: str, script: str, after: str, text: str) -> None:
    assert subscript(before, script, after) == text


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        (["10", Script("1", raised=True), Script("2", raised=True), " cells"], "10^12 cells"),
        (["10", Script("6", raised=True), "", "5"], "10^6 5"),
        (["10", Script("6 ", raised=True), "5"], "10^6 5"),
        (["10", Script("3", raised=True), Script("4", raised=False)], "10^3_4"),
        (["~~", "10", "~~", "~~", Script("6", raised=True), "~~", "5"], "~~10^6~~5"),
        (["a", Script(" ", raised=True), "b"], "a b"),
    ],
)
def test_pieces_of_a_line(pieces: list[str | Script], text: str) -> None:
    assert spelt(pieces) == text
