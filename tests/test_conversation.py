"""Follow-ups made self-contained from the conversation, or asked back; and what a manual is."""

from __future__ import annotations

import pytest

from clara.conversation import AskBack, Turn, Understood, understand
from clara.messages import belongs_to, manual_of

VALVE = Turn("At how many bar does the relief valve of the Cedar pump open?", "18 bar", "/m/pumps.jsonl#3")
FIRM = Turn("Which firm installed the Birch pump?", "Kestrel", "/m/pumps.jsonl#2")
YEAR = Turn("When was the Birch pump installed?", "1986", "/m/pumps.jsonl#2")
CODE = Turn("What code is the Birch pump painted with?", "BX_SEAL_7", "/m/pumps.jsonl#2")
OPTION = Turn("With which option is the Birch pump switched on?", "--prime=slow", "/m/pumps.jsonl#2")
LOUDEST = Turn("Which pump is the loudest?", "the Damson pump", "/m/pumps.jsonl#4")
BEFORE = Turn("At how many bar did the valve of the Alder pump open in 1981?", "12 bar", "/m/pumps.jsonl#1")
CHAMPION = Turn("Who was the first world chess champion?", "Wilhelm Steinitz", "/m/chess.txt")
RIVER = Turn("Where does the Danube rise?", "in the Black Forest", "/m/danube.txt")
FRANCE = Turn("What is the capital of France?", "Paris", "/m/france.txt")
SETTING = Turn("What does `pool_size` set?", "the number of connections", "/m/db.html")
BOTH = Turn("Did Kestrel install the Birch pump?", "yes", "/m/pumps.jsonl#2")
PARTS = Turn("Where are the spare parts of the Cedar pump listed?", "CED_PART_LIST", "/m/pumps.jsonl#3")
OFFLINE = Turn("How do I enable offline mode in Alembic?", "--sql", "/m/alembic/offline.html")
LICENCE = Turn("Which licence does Nuitka use?", "Apache License 2.0", "/m/nuitka/README.md")
COMMAND = Turn("Which command creates a new migration?", "alembic revision", "/m/alembic/tutorial.html")
TOWER = Turn("Who built the tower in Paris?", "Gustave Eiffel", "/m/tower.txt")
MARKED = Turn("How high is the <b>Eiffel Tower</b>?", "324 metres", "/m/tower.txt")
BOOK = Turn("Who is the author of the Django book?", "Adrian Holovaty", "/m/django.txt")
LIBRARY = Turn("When does the library open on Monday?", "9 a.m.", "/m/library.txt")
GERMAN = Turn("Wann wurde die Birch-Pumpe eingebaut?", "1986", "/m/pumpen.txt")


@pytest.mark.parametrize(
    ("last", "message", "question"),
    [
        # pronouns stand for what the last question is about
        (YEAR, "Who painted it?", "Who painted the Birch pump?"),
        (YEAR, "it is painted with which code?", "The Birch pump is painted with which code?"),
        (YEAR, "What is its code?", "What is the Birch pump's code?"),
        (VALVE, "And when does it close?", "And when does the relief valve of the Cedar pump close?"),
        (CODE, "With which option is it switched on?", "With which option is the Birch pump switched on?"),
        (LOUDEST, "When was it installed?", "When was the Damson pump installed?"),
        (SETTING, "What is its default?", "What is `pool_size`'s default?"),
        (RIVER, "How long is it?", "How long is the Danube?"),
        (YEAR, "Is it possible to paint it?", "Is it possible to paint the Birch pump?"),
        (YEAR, "Is it safe?", "Is the Birch pump safe?"),
        (YEAR, "How long does it take?", "How long does the Birch pump take?"),
        (YEAR, "Does the manual say when it was painted?", "Does the manual say when the Birch pump was painted?"),
        (YEAR, "What happens when it overheats?", "What happens when the Birch pump overheats?"),
        (YEAR, "How can the user change its code?", "How can the user change the Birch pump's code?"),
        (CHAMPION, "When was he born?", "When was Wilhelm Steinitz born?"),
        (CHAMPION, "What was his profession?", "What was Wilhelm Steinitz's profession?"),
        (FRANCE, "How many people live there?", "How many people live in the capital of France?"),
        (PARTS, "Who sells them?", "Who sells the spare parts of the Cedar pump?"),
        (TOWER, "How tall is it?", "How tall is the tower in Paris?"),
        (MARKED, "When was it built?", "When was Eiffel Tower built?"),
        (BOOK, "When was it published?", "When was the Django book published?"),
        (BOOK, "When did he write it?", "When did Adrian Holovaty write it?"),
        (LIBRARY, "When does it close?", "When does the library close?"),
        # so do a demonstrative or an article with its noun, and "one"
        (YEAR, "Who maintains that pump?", "Who maintains the Birch pump?"),
        (YEAR, "Who maintains the pump?", "Who maintains the Birch pump?"),
        (VALVE, "When does the valve close?", "When does the relief valve of the Cedar pump close?"),
        (YEAR, "Which one is the loudest?", "Which pump is the loudest?"),
        (YEAR, "Thanks. Which one is the loudest?", "Thanks. Which pump is the loudest?"),
        # what leaves out a verb takes the last question's
        (VALVE, "And the Birch pump?", "At how many bar does the relief valve of the Birch pump open?"),
        (VALVE, "What about the Birch pump?", "At how many bar does the relief valve of the Birch pump open?"),
        (VALVE, "how about Birch", "At how many bar does the relief valve of the Birch pump open?"),
        (VALVE, "And for the Elder pump?", "At how many bar does the relief valve of the Elder pump open?"),
        (VALVE, "Is it the same for the Elder pump?", "At how many bar does the relief valve of the Elder pump open?"),
        (VALVE, "The Elder pump?", "At how many bar does the relief valve of the Elder pump open?"),
        (BEFORE, "And in 1985?", "At how many bar did the valve of the Alder pump open in 1985?"),
        (YEAR, "and in winter?", "When was the Birch pump installed in winter?"),
        (FRANCE, "And of Germany?", "What is the capital of Germany?"),
        (FRANCE, "what about Germany?", "What is the capital of Germany?"),
        (SETTING, "And `timeout`?", "What does `timeout` set?"),
        (YEAR, "And the colour?", "What is the colour of the Birch pump?"),
        (YEAR, "And its colour?", "What is the colour of the Birch pump?"),
        (SETTING, "and the default?", "What is the default of `pool_size`?"),
        (SETTING, "What is the default value?", "What is the default value of `pool_size`?"),
        (PARTS, "And those of the Birch pump?", "Where are the spare parts of the Birch pump listed?"),
        (PARTS, "How many are there?", "Where are the spare parts of the Cedar pump listed? How many are there?"),
        (OFFLINE, "Since which version?", "How do I enable offline mode in Alembic? Since which version?"),
        (LICENCE, "And Alembic?", "Which licence does Alembic use?"),
        (LICENCE, "Why not GPL?", "Which licence does Nuitka use? Why not GPL?"),
        (LIBRARY, "And on Sunday?", "When does the library open on Sunday?"),
        (TOWER, "And in Tokyo?", "Who built the tower in Tokyo?"),
        (YEAR, "Where?", "Where was the Birch pump installed?"),
        (YEAR, "Why?", "Why was the Birch pump installed?"),
        (FIRM, "When?", "Which firm installed the Birch pump? When?"),
        (BOTH, "why is that?", "Did Kestrel install the Birch pump? Why is that?"),
        (FIRM, "how many?", "Which firm installed the Birch pump? How many?"),
    ],
)  # fmt: skip
def test_a_follow_up_is_made_self_contained(last: Turn, message: str, question: str) -> None:
    understood = understand([CHAMPION, last], message)
    assert understood == Understood(question, last.question, last.document)


@pytest.mark.parametrize(
    "message",
    [
        "Is it possible to index a folder twice?",
        "Would it be better to use the text search?",
        "How long does it take to fill the Alder pump?",
        "What is it called when a valve leaks?",
        "What does it mean to prime a pump?",
        "Why is it important that the Alder pump is closed first?",
        "What makes it possible to close the Alder pump?",
        "How is the Alder pump stopped before it overheats?",
        "If a table has no key, how is it altered?",
        "How do bees find their way?",
        "What does the Alder pump do when its valve opens?",
        "Does the Alder pump open its valve at 40 bar?",
        "Which pump is so loud that people complain?",
        "Which pumps have a valve that opens at 16 bar?",
        "Who says that the Alder pump is old?",
        "Who maintains that building in Leeds?",
        "Is there a cabinet for the service book?",
        "How many pumps are there in the hall of Leeds?",
        "Is the pressure of the Alder pump higher than that of the Elder pump?",
        "Do all pumps have the same valve?",
        "What does the IT department of Leeds do?",
        "Who owns the Fir pump?",
        "And who owns the Fir pump?",
        "What is 1981 known for?",
        "Cedar pump relief valve pressure",
        "When one pump of the two fails, what starts?",
        "There are two saws, the Husky and the Stihl. Which one is older?",
        "There are two servers, kranich and amsel. Which one is older?",
        "Context: the old one is the Fir pump.\n\nQuestion: Who owns the Oak pump?",
        "Ist es möglich, die Pumpe zu streichen?",
        "Und die Ahornpumpe?",
        "¿Ha cambiado? He visto otra bomba",
        "Thanks",
        "",
    ],
)
def test_a_question_that_stands_alone_is_left_as_it_is(message: str) -> None:
    assert understand([CHAMPION, YEAR], message) == Understood(message)
    assert understand([], message) == Understood(message)


@pytest.mark.parametrize(
    ("turns", "message", "question"),
    [
        ([], "When was it installed?", "What does 'it' refer to? Ask with its name."),
        ([], "And the Birch pump?", "What about the Birch pump? Ask the whole question."),
        ([], "Why?", "Why? Ask the whole question."),
        ([FIRM], "Where is it based?", "What does 'it' refer to: the Birch pump or Kestrel? Ask with its name."),
        ([BOTH], "When was it painted?", "What does 'it' refer to: Kestrel or the Birch pump? Ask with its name."),
        ([OPTION], "What does it do?", "What does 'it' refer to: the Birch pump or --prime=slow? Ask with its name."),
        ([OFFLINE], "Can it write to a file?", "What does 'it' refer to? Ask with its name."),
        ([OFFLINE], "And on Windows?", "What about Windows? Ask the whole question."),
        (
            [LICENCE],
            "Is it free?",
            "What does 'it' refer to: Nuitka or Apache License 2.0? Ask with its name.",
        ),
        (
            [COMMAND],
            "What does it do?",
            "What does 'it' refer to: the new migration or alembic revision? Ask with its name.",
        ),
        ([YEAR], "Where was he born?", "What does 'he' refer to? Ask with its name."),
        ([YEAR], "What happens after that?", "What does 'that' refer to? Ask with its name."),
        ([YEAR], "Is that possible?", "What does 'that' refer to? Ask with its name."),
        ([YEAR], "Is the same true?", "What does 'the same' refer to? Ask with its name."),
        ([YEAR], "What about the Larkspur team?", "What about the Larkspur team? Ask the whole question."),
        ([YEAR], "And the espresso?", "What about the espresso? Ask the whole question."),
        ([BOTH], "And Larkspur?", "What about Larkspur? Ask the whole question."),
        ([YEAR], "And 1990?", "What about 1990? Ask the whole question."),
        ([YEAR], "What does the other one do?", "What does 'the other one' refer to? Ask with its name."),
        ([YEAR], "tell me more", "Tell me more? Ask the whole question."),
        ([Turn("Is it possible to index twice?", "yes")], "Is it fast?", "What does 'it' refer to? Ask with its name."),
    ],
)  # fmt: skip
def test_what_cannot_be_decided_is_asked_back(turns: list[Turn], message: str, question: str) -> None:
    document = turns[-1].document if turns else ""
    assert understand(turns, message) == AskBack(question, message, document)


def test_the_other_one_is_the_other_of_two() -> None:
    turns = [Turn("When was the Alder pump installed?", "1974"), YEAR]
    made = "Who installed the Alder pump?"
    assert understand(turns, "Who installed the other one?") == Understood(made, YEAR.question, YEAR.document)
    swapped = "When was the Alder pump installed?"
    assert understand(turns, "And the other one?") == Understood(swapped, YEAR.question, YEAR.document)
    assert isinstance(understand([VALVE, *turns], "Who installed the other one?"), AskBack)


@pytest.mark.parametrize(
    ("reply", "question"),
    [
        ("the firm", None),
        ("Kestrel", "Where is Kestrel based?"),
        ("the pump", "Where is the Birch pump based?"),
        ("The Alder pump.", "Where is the Alder pump based?"),
    ],
)
def test_a_name_answers_what_was_asked_back(reply: str, question: str | None) -> None:
    asked = understand([FIRM], "Where is it based?")
    assert isinstance(asked, AskBack)
    turns = [FIRM, asked.turn()]
    understood = understand(turns, reply)
    wanted = question or "Where is the firm based?"
    assert understood == Understood(wanted, FIRM.question, FIRM.document)


def test_a_whole_question_leaves_what_was_asked_back() -> None:
    asked = understand([FIRM], "Where is it based?")
    assert isinstance(asked, AskBack)
    turns = [FIRM, asked.turn()]
    assert understand(turns, "Who owns the Fir pump?") == Understood("Who owns the Fir pump?")
    made = "When was the Birch pump installed?"
    assert understand(
        [YEAR, Turn("Is that so?", "What does 'that' refer to? Ask with its name.")], "When was it installed?"
    ) == (Understood(made, YEAR.question, YEAR.document))


def test_a_chain_of_follow_ups_keeps_its_subject_and_its_manual() -> None:
    turns = [YEAR]
    for message, wanted in (
        ("Who installed it?", "Who installed the Birch pump?"),
        ("and the Cedar pump?", "Who installed the Cedar pump?"),
        ("What is its relief valve's pressure?", "What is the Cedar pump's relief valve's pressure?"),
    ):
        understood = understand(turns, message)
        assert isinstance(understood, Understood)
        assert understood.question == wanted
        turns.append(understood.turn("", "", answered=False))
        assert turns[-1].document == YEAR.document, "not answered: the manual stays"


def test_after_a_question_in_another_language_nothing_is_completed() -> None:
    assert understand([GERMAN], "Cedar-Pumpe?") == Understood("Cedar-Pumpe?")
    assert understand([GERMAN], "Und wann wurde sie gestrichen?") == Understood("Und wann wurde sie gestrichen?")


@pytest.mark.parametrize(
    ("document", "manual"),
    [
        ("/d/pumps.jsonl#2", "/d/pumps.jsonl"),
        ("/d/alembic/tutorial.html", "/d/alembic/"),
        ("/d/codemirror/manual.html", "/d/codemirror/"),
        ("/d/django/internals/how/style.txt", "/d/django/"),
        ("/d/almanac/ALMANAC.md", "/d/almanac/"),
        ("/d/todo.txt", "/d/todo.txt"),
        ("/d/sphinx/faq/usage.html", "/d/sphinx/"),
    ],
)
def test_manuals_in_folders_side_by_side(document: str, manual: str) -> None:
    documents = [
        "/d/pumps.jsonl#1", "/d/pumps.jsonl#2", "/d/alembic/tutorial.html", "/d/alembic/batch.html",
        "/d/codemirror/manual.html", "/d/codemirror/internals.html", "/d/django/faq/general.txt",
        "/d/django/internals/how/style.txt", "/d/almanac/ALMANAC.md", "/d/todo.txt", "/d/sphinx/index.html",
        "/d/sphinx/install.html", "/d/sphinx/faq/usage.html", "/d/sphinx/faq/index.html",
    ]  # fmt: skip
    assert manual_of(document, documents) == manual
    inside = {uri for uri in documents if belongs_to(uri, manual)}
    assert document in inside
    assert inside == {uri for uri in documents if uri.startswith(manual)}


def test_a_flat_folder_holds_a_manual_in_each_file_but_html_pages_are_one() -> None:
    flat = ["/d/notes/chess.txt", "/d/notes/eiffel-tower.md", "/d/notes/coffee.html", "/d/notes/pumps.jsonl#1"]
    assert [manual_of(uri, flat) for uri in flat] == [*flat[:3], "/d/notes/pumps.jsonl"]
    pages = ["/d/alembic/batch.html", "/d/alembic/front.html", "/d/alembic/notes.txt"]
    assert manual_of(pages[0], pages) == "/d/alembic/"
    assert manual_of(pages[2], pages) == pages[2]
    sources = ["/d/ephem/index.txt", "/d/ephem/date.txt"]
    assert manual_of(sources[1], sources) == "/d/ephem/"
    assert manual_of("/d/one.txt", ["/d/one.txt"]) == "/d/one.txt"
    assert not belongs_to("/d/a-b/c.html", "/d/a/")
