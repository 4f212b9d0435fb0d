"""Web pages: what they show is kept, what they hide or repeat is left out and counted."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from clara.errors import DocumentError
from clara.ingest import LeftOut, Reader, find_files, read_file
from clara.ingest.read_html import READERS, _check_tags
from clara.records import Document

_LOST_BEFORE = "sidebar related comments widget share social author-box promo teaser legal popup banner tags meta date"


def _read(page: str | bytes, folder: Path, name: str = "a.html") -> tuple[Document, Mapping[str, int]]:
    path = folder / name
    path.write_bytes(page.encode("utf-8") if isinstance(page, str) else page)
    document, *rest = read_file(path)
    assert isinstance(document, Document)
    return document, {item.kind: item.count for item in rest if isinstance(item, LeftOut)}


def _text(page: str | bytes, folder: Path) -> str:
    return _read(page, folder)[0].text


def test_every_region_keeps_its_heading(tmp_path: Path) -> None:
    models = "".join(f"<article><h2>Model {name}</h2><p>It weighs {name} kg.</p></article>" for name in "ABC")
    document, _ = _read(f"<main><h1>Scales</h1>{models}</main>", tmp_path)
    expected = ["# Scales"]
    for name in "ABC":
        expected += [f"## Model {name}", f"It weighs {name} kg."]
    assert document.text == "\n\n".join(expected)
    assert [heading.text for heading in document.headings] == ["Scales", "Model A", "Model B", "Model C"]
    for heading in document.headings:
        assert document.text[heading.start :].lstrip("# ").startswith(heading.text)


@pytest.mark.parametrize("name", _LOST_BEFORE.split())
def test_no_block_is_lost_by_its_class(tmp_path: Path, name: str) -> None:
    page = f"<p>{'Gulls cry. ' * 50}</p><div class='{name}' id='{name}'><p>The pump weighs 5 kg.</p></div>"
    assert "The pump weighs 5 kg." in _text(page, tmp_path)


@pytest.mark.parametrize(
    "element",
    ["aside", "footer", "header", "section", "fieldset", "address", "details", "figure", "blockquote", "form"],
)
def test_no_block_is_lost_by_its_element(tmp_path: Path, element: str) -> None:
    page = f"<p>{'Gulls cry. ' * 50}</p><{element}>The pump weighs 5 kg.</{element}>"
    assert _text(page, tmp_path).endswith("\n\nThe pump weighs 5 kg.")


def test_parts_of_forms_and_pictures(tmp_path: Path) -> None:
    page = (
        "<fieldset><legend>Kind</legend><input type=checkbox checked> new <input type=radio> used</fieldset>"
        "<table><caption>Table 1</caption><tr><td>a</td></tr></table><input type=checkbox><br>"
        "<select><option>one<option selected>two</select><img src=x alt='Chart of sales 2201'><img alt=icon>"
        "<iframe srcdoc='&lt;p&gt;In a frame&lt;/p&gt;'></iframe><svg><title>no</title><text>Drawn</text></svg>"
        "<object>Shown instead</object><object data=x>Not shown</object><video>No video</video>"
    )
    assert _text(page, tmp_path).split("\n") == [
        *["Kind", "☒ new ☐ used", "", "Table 1", "a", "", "two Chart of sales 2201", "", "In a frame", "", "Drawn"],
        "Shown instead",
    ]


@pytest.mark.parametrize(
    ("page", "kind"),
    [
        ("<nav><p>Menu 7 kg</p></nav>", "menus"),
        ("<div role=navigation>Menu 7 kg</div>", "menus"),
        ("<div class=sphinxsidebar><ul><li><a href=a>Menu 7 kg</a><li><a href=b>More</a></ul></div>", "menus"),
        ("<div class=navheader>Title <a href=a>Prev</a> <a href=b>Next</a> 7 kg</div>", "menus"),
        ("<div><p>Next: <a rel=next href=a>7 kg</a>, Previous: <a rel=prev href=b>More</a></p></div>", "menus"),
        ("<div class=navfooter><a accesskey=p href=a>Zurück</a> <a accesskey=n href=b></a> Kapitel 7</div>", "menus"),
        ("<div class=contents><p>Contents</p><a href='#a'>Menu 7 kg</a><a href='#b'>More</a></div>", "menus"),
        ("<p hidden>7 kg</p>", "hidden parts"),
        ("<p style='color:red; display : none'>7 kg</p>", "hidden parts"),
        ("<span style='visibility:hidden'>7 kg</span>", "hidden parts"),
        ("<dialog>7 kg</dialog>", "hidden parts"),
        ("<del>7 kg</del>", "deleted parts"),
        ("<noscript>Please enable JavaScript or 7 kg</noscript>".replace(" or 7 kg", ""), "notices to turn scripts on"),
        ("<table><tr><td><pre>7\n8\n9</pre></td><td><pre>a kg\nb</pre></td></tr></table>", "columns of line numbers"),
    ],
)
def test_what_is_left_out_is_counted(tmp_path: Path, page: str, kind: str) -> None:
    document, left_out = _read(f"<p>The pump weighs 5 kg.</p>{page}<p>After.</p>", tmp_path)
    assert "7" not in document.text
    assert document.text.startswith("The pump weighs 5 kg.")
    assert document.text.endswith("After.")
    assert left_out == {kind: 1}
    with Reader(find_files([tmp_path])) as reader:
        assert len(list(reader.documents())) == 1
        assert reader.report().left_out == {kind: 1}


@pytest.mark.parametrize(
    "page",
    [
        "<div>The pump weighs 7 kg.<p><a rel=next href=a>Next</a> <a rel=prev href=b>Back</a></p></div>",
        "<p>The pump weighs 7 kg, as <a rel=next href=a>the next page</a> and <a rel=prev href=b>the last</a> say.</p>",
    ],
)
def test_text_around_steps_to_other_pages_is_kept(tmp_path: Path, page: str) -> None:
    assert "The pump weighs 7 kg" in _text(page, tmp_path)


def test_what_was_never_meant_to_be_read_is_not_counted(tmp_path: Path) -> None:
    page = "<script>a</script><style>b</style><template>c</template><h1>Pumps<a href='#p'>¶</a></h1>"
    document, left_out = _read(page, tmp_path)
    assert document.text == "# Pumps"
    assert left_out == {}


def test_pages_of_nothing_but_menus(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match="shows nothing but menus; "):
        _read("<nav>Home</nav>", tmp_path)


def test_pages_that_need_scripts(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match="a page that scripts fill"):
        _read("<div id=root></div><noscript>You need to enable JavaScript to run this app.</noscript>", tmp_path)
    page = "<p>Pumps.</p><noscript><p>Without JavaScript: call 0800 7781 to order.</p></noscript>"
    assert _text(page, tmp_path).endswith("call 0800 7781 to order.")


def test_title_stands_apart(tmp_path: Path) -> None:
    page = (
        "<html><head><title>F</title></head><frameset><frame src=a><noframes>Framed text</noframes></frameset></html>"
    )
    document, _ = _read(page, tmp_path)
    assert (document.title, document.text) == ("F", "Framed text")


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("10<sup>6</sup> cells", "10^6 cells"),
        ("3×10<sup>−4</sup> m", "3×10^−4 m"),
        ("in 2019<sup>1</sup> and", "in 2019[1] and"),
        ("in 10<sup><a href='#n1'>1</a></sup> and", "in 10[1] and"),
        ("in 10<a href='#n1'><sup>1</sup></a> and", "in 10[1] and"),
        ("word<a class='footnote-reference' href='#n1'>15</a>.", "word[15]."),
        ("the 21<sup>st</sup> of", "the 21st of"),
        ("CO<sub>2</sub> and 101<sub>2</sub>", "CO2 and 101_2"),
        ("was <s>$100</s> $80", "was ~~$100~~ $80"),
        ("<ruby>漢字<rp>(</rp><rt>かんじ</rt><rp>)</rp></ruby>", "漢字"),
        ("<q>Ahoy</q>", "“Ahoy”"),
        ("let <script type='math/tex'>x^2</script> be", "let x^2 be"),
        ("a<span role=tabpanel hidden>b</span>", "ab"),
        ("<math><mi>E</mi><mo>=</mo><mi>m</mi><msup><mi>c</mi><mn>2</mn></msup></math>", "E = mc^2"),
        ("<math><mfrac><mrow><mi>a</mi><mo>+</mo><mi>b</mi></mrow><mn>2</mn></mfrac></math>", "(a+b)/2"),
        ("<math><msqrt><mi>x</mi><mo>+</mo><mn>1</mn></msqrt></math>", "√(x+1)"),
        ("<math><msubsup><mi>x</mi><mn>10</mn><mi>n</mi></msubsup><annotation>x</annotation></math>", "x_10^n"),
        ("<span style='display:none'><math><mi>x</mi></math></span><img alt='the variable x'>", "x"),
        ("decom\u2010\n   missioned", "decommissioned"),
    ],
)
def test_numbers_and_words_keep_their_value(tmp_path: Path, page: str, text: str) -> None:
    assert _text(f"<p>{page}</p>", tmp_path) == text


def test_tables(tmp_path: Path) -> None:
    inner = "<table><tr><td>Day</td><td>12.50</td></tr><tr><td>Night</td><td>9.75</td><td>8</td></tr></table>"
    page = (
        f"<table><tr><th>Zone</th><th>Rates</th></tr><tr><td>Inner</td><td>{inner}</td></tr>"
        "<tr><td rowspan=2>Outer</td><td>4.20</td></tr><tr><td>4.30</td></tr>"
        "<tr><td>List</td><td><ul><li>a<li>b</ul></td></tr></table>"
    )
    assert _text(page, tmp_path).split("\n") == [
        *["Zone | Rates", "Inner | Day: 12.50; Night: 9.75, 8", "Outer | 4.20", "Outer | 4.30", "List | a; b"]
    ]


def test_tables_that_lay_out_a_page(tmp_path: Path) -> None:
    long = "".join(f"<p>{'Gulls cry. ' * 50}</p>" for _ in range(3))
    parts = "<table><tr><td>Left</td><td><h2>Pumps</h2><p>One.</p><p>Two.</p></td></tr></table>"
    page = f"{parts}<table><tr><td>{long}</table>"
    assert _text(page, tmp_path).startswith("Left\n\n## Pumps\n\nOne.\n\nTwo.\n\nGulls")
    placed = "<table role=presentation><tr><td>a</td><td>b</td></tr></table>"
    assert _text(placed, tmp_path) == "a\nb"


def test_lists_and_code(tmp_path: Path) -> None:
    page = (
        "<ol start=3><li>three<ul><li>inner</ul><li value=7>seven</ol><ol type=a><li>first</ol>"
        "<dl><dt>Term<dd>Its meaning</dl><h2>One<br>line</h2><pre>\nif x:<br>    y = 1\n\n\nz</pre>"
        "one<br>two<br><br>three"
    )
    assert _text(page, tmp_path).split("\n") == [
        *["3. three", "  - inner", "7. seven", "", "a. first", "", "Term", "Its meaning", "", "## One line", ""],
        *["if x:", "    y = 1", "", "z", "", "one", "two", "", "three"],
    ]


@pytest.mark.parametrize(
    "part",
    [
        "<p>word <b>bold</b> and <sup>2</sup> more.</p>",
        "<tr><td>a<td>b<td>c",
        "<div class=nav><a href=x>word</a>",
        "<table><tr><td>a",
        "<pre>1 <b>2</b>",
        "<noscript>a<b>b</b>",
        "<ul><li>a",
    ],
)
def test_time_grows_with_the_page(tmp_path: Path, part: str) -> None:
    def seconds(times: int) -> float:
        # Parsers of pages stop at some 2000 levels; the deep part comes first.
        page = f"<p>x</p>{part * 400}{'<p>Gulls <i>cry</i>.</p>' * times}"
        started = time.process_time()
        _read(page, tmp_path)
        return time.process_time() - started

    seconds(100)
    assert seconds(16_000) < 3 * 4 * max(seconds(4_000), 0.05)


# Encodings


def _page(text: bytes, label: str, before: str = "") -> bytes:
    return f"<html><head>{before}<meta charset='{label}'></head><body><p>".encode() + text + b"</p></body></html>"


@pytest.mark.parametrize(
    ("label", "data", "text"),
    [
        ("iso-8859-9", "Iğdır şehri".encode("cp1254"), "Iğdır şehri"),
        ("latin5", "Iğdır".encode("cp1254"), "Iğdır"),
        ("iso-8859-11", "ผึ้งบิน".encode("cp874"), "ผึ้งบิน"),
        ("iso-8859-8-i", "דבורה".encode("iso8859-8"), "דבורה"),
        ("x-mac-cyrillic", "Пчела".encode("mac-cyrillic"), "Пчела"),
        ("shift_jis", "①㈱髙".encode("cp932"), "①㈱髙"),
        ("euc-kr", "똠방각하".encode("cp949"), "똠방각하"),
        ("gb2312", "朱镕基".encode("gbk"), "朱镕基"),
        ("gbk", "价格".encode("gbk") + b"\x80" + b"5", "价格€5"),
        ("big5", b"\xf9\xd8\xa3\xe15", "裏€5"),
        ("euc-jp", b"\xad\xa1\xfc\xe2\xa4\xac", "①髙が"),
        ("iso-2022-jp", b"\x1b$B-!$,\x1b(I1\x1b(B a", "①がｱ a"),
        ("windows-1252", b"\x93a\x94\x81b", "“a”b"),
        ("hz-gb-2312", "蜂蜜".encode("hz"), "蜂蜜"),
        ("ibm850", "Müller ½".encode("cp850"), "Müller ½"),
    ],
)
def test_encodings_as_browsers_read_them(tmp_path: Path, label: str, data: bytes, text: str) -> None:
    assert _text(_page(data, label), tmp_path) == text


@pytest.mark.parametrize(
    "before",
    [
        "<form accept-charset='iso-8859-1'></form>",
        "<script src=a.js charset='iso-8859-1'></script>",
        "<script>document.write('<meta charset=latin1>')</script>",
        "<!-- <meta charset='iso-8859-1'> -->",
        "<a title='<meta charset=latin1>'></a>",
        "<meta name=description content='text/html; charset=latin1'>",
        "<style>" + "a { color: red }" * 100 + "</style>",
    ],
)
def test_only_the_page_itself_declares_its_encoding(tmp_path: Path, before: str) -> None:
    assert _text(_page("Мост построен".encode("koi8-r"), "koi8-r", before), tmp_path) == "Мост построен"


def test_encoding_by_http_equiv_and_xml_declaration(tmp_path: Path) -> None:
    data = "Мост".encode("cp1251")
    meta = b"<meta http-equiv='Content-Type' content='text/html; charset=windows-1251'><p>"
    assert _text(meta + data, tmp_path) == "Мост"
    assert _text(b"<?xml version='1.0' encoding='windows-1251'?><html><body><p>" + data, tmp_path) == "Мост"


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("shift_jis", "declares the encoding 'shift_jis', in which byte 0x81"),
        ("x-none", "'x-none', which is not known"),
    ],
)
def test_wrong_declarations_are_named(tmp_path: Path, label: str, message: str) -> None:
    with pytest.raises(DocumentError, match=message):
        _read(_page(b"a \x81 b", label), tmp_path)


def test_xhtml_in_which_any_element_may_close_itself(tmp_path: Path) -> None:
    page = (
        "<?xml version='1.0'?><!DOCTYPE html><html xmlns='http://www.w3.org/1999/xhtml'><head><title/><script src='a'/>"
        "</head><body><h1>Pumps</h1><p>5&nbsp;kg: 10<sup>6</sup></p></body></html>"
    )
    assert _read(page, tmp_path, "a.xhtml")[0].text == "# Pumps\n\n5 kg: 10^6"
    assert _read("<p>No XML<br>at all", tmp_path, "b.xhtml")[0].text == "No XML\nat all"
    bomb = "<!DOCTYPE html [<!ENTITY a '" + "x" * 1000 + "'>]><html><body><p>Pumps &a;&a;</p></body></html>"
    assert _read(bomb, tmp_path, "c.xhtml")[0].text == "Pumps"


MANY = 100_000


@pytest.mark.parametrize(
    "attributes",
    [
        " ".join(f"a{number}=1" for number in range(MANY)),
        " ".join(f'a{number}=">"' for number in range(MANY)),
        "".join(f"a{number}='<b>'" for number in range(MANY)),
        "/".join(f"a{number}" for number in range(MANY)),
        " ".join(f"a{number}=1" for number in range(MANY)) + ' b="',
    ],
    ids=["plain", "quoted end", "quoted tag", "slashes", "no end"],
)
def test_a_tag_of_many_attributes_is_refused_before_it_is_parsed(attributes: str, tmp_path: Path) -> None:
    path = tmp_path / "many.html"
    path.write_text(f"<p>Hello</p><p {attributes}>there</p>")
    started = time.process_time()
    with pytest.raises(DocumentError, match="has a tag with more than 1,000 attributes"):
        _check_tags(path.read_text(), "many.html")
    assert time.process_time() - started < 3, "libxml2 alone takes twenty seconds"


def test_what_only_looks_like_many_attributes_is_read(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    words = "word " * 5000
    script = f"<script>if (a<b && c) {{ say('{words}') }}</script><!-- <p {words}> --><style>a<b {words}</style>"
    path.write_text(f"<p title=it's>Hello</p>{script}<p data-x='{words}'>there, it's a < b {words}</p>")
    text = READERS[".html"](path.read_bytes(), "page.html").text
    assert text.startswith("Hello\n\nthere, it's a < b word word")
    _check_tags("<" * 1_000_000, "page.html")


@pytest.mark.parametrize(
    ("page", "text"),
    [
        (
            "10<span style='vertical-align: super'>6</span> of H<font style='vertical-align:sub'>2</font>O",
            "10^6 of H2O",
        ),
        ("3<sup>1</sup>/<sub>2</sub> or 2 <sup>1</sup>&frasl;<sub>4</sub>", "3 1/2 or 2 1/4"),
        ("3<math><mfrac><mn>1</mn><mn>2</mn></mfrac></math> cups", "3 1/2 cups"),
        ("<math><mn>3</mn><mfrac><mn>1</mn><mn>2</mn></mfrac></math>", "3 1/2"),
        ("<math><msup><mi>x</mi><mn>2</mn></msup><mn>3</mn></math>", "x^2 3"),
        ("<math><mfrac linethickness='0'><mi>n</mi><mi>k</mi></mfrac></math>", "n¦k"),
        ("<math><msubsup><mrow/><mn>6</mn><mn>14</mn></msubsup><mi>C</mi></math>", "_6^14 C"),
        (
            "<math><mmultiscripts><mi>C</mi><none/><mn>4</mn><mprescripts/><mn>6</mn><mn>14</mn></mmultiscripts></math>",
            "C^4_6^14",
        ),
        ("the end<sup><a href='#n4'>iv</a></sup>, see<a href='#b'><sup>b</sup></a>", "the end[iv], see[b]"),
        ("costs $3<sup>99</sup>, 2<sup>10</sup>", "costs $3^99, 2^10"),
        ("<ol reversed><li>c<li>b<li>a</ol>", "3. c\n2. b\n1. a"),
        ("<ol start=39 style='list-style-type: upper-roman'><li>x<li>y</ol>", "XXXIX. x\nXL. y"),
        ("<ol start=26 style='list-style: lower-alpha'><li>x<li>y</ol>", "z. x\naa. y"),
        ("<ol style='margin: 0; list-style: none'><li>(4) x<li>(4a) y</ol>", "- (4) x\n- (4a) y"),
        ("price <span style='text-decoration: line-through'>100</span> 80", "price ~~100~~ 80"),
        ("<label>Name<input value=Bob></label><button>Send</button><output>21</output>", "Name Bob Send 21"),
    ],
)
def test_what_is_seen_keeps_its_value(tmp_path: Path, page: str, text: str) -> None:
    assert _text(f"<p>{page}", tmp_path) == text


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("10<sup>6</sup><b>5</b>", "10^6 5"),
        ("10<sup>1</sup><sup>2</sup>", "10^12"),
        ("10<sup>10<sup>2</sup></sup>", "10^(10^2)"),
        ("10<b style='vertical-align: super'>6</b>", "10^6"),
        ("10<span style='position: relative; top: -4pt'>6</span>", "10^6"),
        ("10<span style='vertical-align: 30%'>6</span> a<span style='vertical-align: -2px'>1</span>1", "10^6 a_1 1"),
        ("10<span class='c3 superscript'>6</span>, x<span class='superscript'>n+1</span>", "10^6, x^(n+1)"),
        ("10<span class='sup'>6</span> <span class='sub'>below</span>", "10^6 below"),
        ("<div style='vertical-align: 3px; margin-top: 4px'>10</div>", "10"),
        ("<s>10</s><s><sup>6</sup></s>", "~~10^6~~"),
        ("Thanks <span style='font-family: Wingdings'>J</span> <font face=Symbol>m</font>g", "Thanks ☺ μg"),
        ("<p style='font-family: Symbol'>·<span style='font: 7pt \"Times\"'>&nbsp; a</span></p>", "• a"),
        ("<p style='font-family: Arial, Symbol'>mg</p>", "mg"),
        ("<s>old <span style='text-decoration: line-through'>1</span></s>", "~~old 1~~"),
        ("10<sup style='text-decoration: line-through'>6</sup>", "10~~^6~~"),
        ("<ul><li style='text-decoration: line-through'>salt<li>oil</ul>", "- ~~salt~~\n- oil"),
        (
            "<table><tr style='text-decoration: line-through'><td>a<td>1<tr><td style='text-decoration: line-through'>"
            "b<td>2</table>",
            "~~a~~ | ~~1~~\n~~b~~ | 2",
        ),
    ],
)
def test_what_styles_raise_and_strike(tmp_path: Path, page: str, text: str) -> None:
    assert _text(page, tmp_path) == text


@pytest.mark.parametrize(
    ("style", "rest", "text"),
    [
        (".x, p.y { color: red; display : none }", "", "Shown"),
        ("/* { */ .x{visibility:hidden}#z { display:none }", "", "Shown\n\nother"),
        ("@import url(a.css); .x.wide { display: none } .y {display:none}", "", "Shown\n\nhidden"),
        ("@media print { .x { display: none } } .y { display: none }", "", "Shown\n\nhidden"),
        (".x { display: none } :checked ~ .x { display: block } .y { display: none }", "", "Shown\n\nhidden"),
        (".x, .y { display: none }", "<script src='a.js'></script>", "Shown\n\nhidden\n\nother"),
        (".x, .y { display: none }", "<b onclick='show()'></b>", "Shown\n\nhidden\n\nother"),
        (".x, .y { display: none }", "<script type='application/ld+json'>{}</script>", "Shown"),
        ("p { display: none } .x { display: none }", "", "Shown\n\nother"),
        ("} .x { display: none } .y {", "", "Shown\n\nother"),
    ],
)
def test_what_style_sheets_hide(tmp_path: Path, style: str, rest: str, text: str) -> None:
    page = f"<style>{style}</style>{rest}<p>Shown<p class='a x'>hidden<p class=y>other<p id=z style='display:none'>gone"
    assert _text(page, tmp_path) == text
    opened = f"<style>{style}</style><p class=x style='display: block'>hidden"
    assert _text(opened, tmp_path) == "hidden"


@pytest.mark.parametrize(
    ("style", "page", "text"),
    [
        ("span.up, i.x { font-size: 60%; vertical-align: super }", "10<span class='b up'>6</span>", "10^6"),
        (".up {\n position: relative;\n top: -0.33em }", "10<span class=up>6</span>", "10^6"),
        (".up { position: absolute; top: -1em } p { vertical-align: super }", "10<span class=up>6</span>", "106"),
        ("@media print { .up { vertical-align: super } }", "10<span class=up>6</span>", "106"),
        (".old { text-decoration: line-through; display: inline }", "<p class=old>1</p>", "~~1~~"),
        (".k { display: block }", "<b class=k>Key</b><b>Value</b>", "Key\nValue"),
        (".k { display: table-cell }", "<p><b class=k>Key</b><b>Value</b>", "Key Value"),
        (".up { display: inline-block; vertical-align: super }", "10<b class=up>6</b>", "10^6"),
        (".k { display: inline }", "<p><b class=k>Key</b><b style='display: flex'>Value</b>", "Key\nValue"),
        ("#law { list-style-type: lower-alpha }", "<ol id=law><li>x<li>y</ol>", "a. x\nb. y"),
        (".law { list-style: none }", "<ol class=law><li>x<li>y</ol>", "1. x\n2. y"),
        (".code { white-space: pre }", "<div class=code>a = 1\n  b = 2</div>", "a = 1\nb = 2"),
    ],
)
def test_what_style_sheets_raise_and_strike(tmp_path: Path, style: str, page: str, text: str) -> None:
    assert _text(f"<style>{style}</style>{page}", tmp_path) == text


@pytest.mark.parametrize(
    "page",
    [
        "<picture><source srcset='a.webp'><img alt='wiring of the pump'></picture>",
        "<p>wiring <embed src='a.svg'> of the pump</p>",
        "<p>wiring <track src='a.vtt'> of the pump</p>",
    ],
)
def test_text_behind_elements_that_the_parser_does_not_close(tmp_path: Path, page: str) -> None:
    assert _text(page, tmp_path) == "wiring of the pump"


@pytest.mark.parametrize(
    ("mark", "text"),
    [
        ("class='pre-in-pp'", "Fonts:\n-r roman\n-b bold\nEnd"),
        ("class=pre", "Fonts:\n-r roman\n-b bold\nEnd"),
        ("style='white-space: pre-wrap'", "Fonts:\n-r roman\n-b bold\nEnd"),
        ("class='box whitespace-pre-wrap'", "Fonts:\n-r roman\n-b bold\nEnd"),
        ("class=pre-footer", "Fonts:\n-r roman -b bold End"),
        ("style='white-space: nowrap'", "Fonts:\n-r roman -b bold End"),
    ],
)
def test_lines_that_a_style_keeps(tmp_path: Path, mark: str, text: str) -> None:
    assert _text(f"<p>Fonts:<br><span {mark}>-r roman\n-b bold\n</span>End", tmp_path) == text
    assert _text(f"<p>The <span {mark}>one\n</span> word", tmp_path) == "The one word"


def test_columns_that_only_keep_others_apart(tmp_path: Path) -> None:
    rows = "<tr><td>%d<td width=20><td>day<tr><td>%m<td><td>month"
    assert _text(f"<table>{rows}</table>", tmp_path) == "%d | day\n%m | month"
