"""Equations on one line, and the characters behind the codes of symbol fonts."""

from __future__ import annotations

import pytest
from docx.oxml import parse_xml
from docx.oxml.ns import nsdecls

from clara.ingest.docx_signs import _formatted, equation_text, symbol_text


def _run(text: str) -> str:
    return f"<m:r><m:t>{text}</m:t></m:r>"


def _of(name: str, **parts: str) -> str:
    """A form with its properties, which hold no text, and its parts."""
    inside = "".join(f"<m:{part}>{xml}</m:{part}>" for part, xml in parts.items())
    return f"<m:{name}>{inside}</m:{name}>"


_X, _SUM, _TEN = _run("x"), _run("a+b"), _run("10")


@pytest.mark.parametrize(
    ("xml", "text"),
    [
        (_run("a=") + _run("b"), "a=b"),
        (_of("f", num=_run("1"), den=_run("2")), "1/2"),
        (_of("f", num=_SUM, den=_TEN), "(a+b)/10"),
        (_of("f", fPr="<m:type m:val='noBar'/>", num=_run("n"), den=_run("k")), "n¦k"),
        (_of("sSup", e=_X, sup=_TEN), "x^10"),
        (_of("sSup", e=_of("d", e=_SUM), sup=_run("n+1")), "(a+b)^(n+1)"),
        (_of("sSub", e=_X, sub=_run("i")), "x_i"),
        (_of("sSubSup", e=_X, sub=_run("i"), sup=_run("2")), "x_i^2"),
        (_of("rad", deg="", e=_SUM), "√(a+b)"),
        (_of("rad", deg=_run("3"), e=_X), "√[3]x"),
        (_of("nary", naryPr="<m:chr m:val='∑'/>", sub=_run("i=1"), sup=_run("n"), e=_X), "∑_(i=1)^n x"),
        (_of("nary", sub="", sup="", e=_X), "∫ x"),
        (_of("d", dPr="<m:begChr m:val='{'/><m:endChr m:val=''/>", e=_of("eqArr", e=_X)), "{x"),
        (_of("func", fName=_run("sin"), e=_X), "sin x"),
        (_of("func", fName=_of("limLow", e=_run("lim"), lim=_run("n→∞")), e=_X), "lim_(n→∞) x"),
        (_of("acc", accPr="<m:chr m:val='\u20d7'/>", e=_X), "x\u20d7"),
        (_of("bar", barPr="<m:pos m:val='top'/>", e=_X), "x‾"),
        (_of("bar", e=_X), "x_"),
        (_of("m", mr=_of("e", x=_run("1")) + _of("e", x=_run("2"))), "1 2"),
        (f"<m:m>{2 * _of('mr', e=_X)}</m:m>", "x; x"),
        (_of("box", boxPr="", e=_X), "x"),
    ],
)
def test_equation(xml: str, text: str) -> None:
    assert equation_text(parse_xml(f"<m:oMath {nsdecls('m')}>{xml}</m:oMath>")) == text


def test_equation_with_tracked_changes() -> None:
    changes = f"<w:ins>{_run('b')}</w:ins><w:del>{_run('c')}</w:del><!-- note -->"
    xml = f"<m:oMath {nsdecls('m', 'w')}>{_run('a')}{changes}</m:oMath>"
    assert equation_text(parse_xml(xml)) == "ab"


@pytest.mark.parametrize(
    ("font", "code", "character"),
    [
        ("Symbol", "F0B0", "°"),
        ("Symbol", "00B1", "±"),
        ("Symbol", "F0A3", "≤"),
        ("Symbol", "F0B4", "×"),
        ("Symbol", "F06D", "μ"),
        ("Symbol", "F057", "Ω"),
        ("Symbol", "F0FE", "⎭"),
        ("Wingdings", "F0E0", "→"),
        ("Wingdings 2", "F052", "☑"),
        ("Times New Roman", "20AC", "€"),
        ("Times New Roman", "00A0", "\u00a0"),
        ("Times New Roman", "F025", "\ufffd"),
        ("Wingdings", "F025", "\ufffd"),
        ("Webdings", "F025", "\ufffd"),
        ("Symbol", "many", "\ufffd"),
        ("Arial", "FFFFFFFF", "\ufffd"),
    ],
)
def test_symbol(font: str, code: str, character: str) -> None:
    assert symbol_text(parse_xml(f"<w:sym {nsdecls('w')} w:font='{font}' w:char='{code}'/>")) == character


@pytest.mark.parametrize(
    ("form", "counted"),
    [
        ("chineseCountingThousand", {3: "三", 10: "十", 11: "十一", 20: "二十", 45: "四十五", 100: "100"}),
        ("japaneseCounting", {1: "一"}),
        ("decimalEnclosedCircle", {1: "①", 20: "⑳", 21: "21"}),
        ("ganada", {2: "나"}),
        ("russianLower", {1: "а", 29: "я", 30: "30"}),
        ("ordinal", {1: "1st", 12: "12th", 22: "22nd", 103: "103rd", 111: "111th"}),
        ("cardinalText", {4: "4"}),
    ],
)
def test_numbers_of_other_scripts(form: str, counted: dict[int, str]) -> None:
    assert {count: _formatted(count, form) for count in counted} == counted
