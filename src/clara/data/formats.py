"""Public question-answering formats, told apart by the keys of a file's first record.

A format names the keys of its records and makes a ``Question`` of one; parts left out are added to ``left_out``, an
unusable record raises ``UnusableRecordError``. Bytes are ``reading``'s matter.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from clara.data.parsing import field, parse, strings, typed
from clara.data.records import Candidates, DocText, GoldRef, MultiHop, Question, UnusableRecordError
from clara.errors import RecordError
from clara.metrics import normalize_answer

_HOTPOTQA = frozenset({"question", "context", "supporting_facts"})
_ALIASES = "id_aliases.json"
_MUSIQUE = frozenset({"question", "paragraphs"})
_MRQA_MARK = re.compile(r"\[(?:TLE|DOC|PAR|SEP)\]|</?[A-Z][A-Za-z]*[0-9]?>")

_UNKNOWN = "<unk>"  # the answer in TriviaQA's test sets
_PAGES = (("entity_pages", "wiki_context"), ("search_results", "search_context"))
_YES_NO = {"YES": "yes", "NO": "no", 1: "yes", 0: "no"}  # words in Google's files, numbers of labels in the hub's


@dataclass(frozen=True, slots=True)
class QuestionFormat:
    """A public format; ``items`` are those of a top-level JSON value, a fault in the place of one that has it."""

    matches: Callable[[Mapping[str, Any]], bool]
    parse: Callable[[Mapping[str, Any], list[str]], Question]
    items: Callable[[Mapping[str, Any]], Iterator[Mapping[str, Any] | UnusableRecordError]] = lambda value: iter(
        [value]
    )


def _has(*keys: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda value: value.keys() >= set(keys)


def _parse_own(value: Mapping[str, Any], left_out: list[str]) -> Question:
    """Our own records: a question over candidate documents; passages ask no single question."""
    parsed = parse(value)
    if not isinstance(parsed.record, MultiHop):
        raise UnusableRecordError("passage record, which asks no single question")
    left_out.extend(parsed.left_out)
    return Question.of(parsed.record)


def _parse_official(value: Mapping[str, Any], left_out: list[str]) -> Question:
    """The evaluation lines of Apple's CLaRa code: ``{"question", "docs": [text, …], "gold_answer"}``.

    ``pos_index``, if given, holds the indices of the supporting documents. A document is one string, whose first line
    is its title, if any, and stays there.
    """
    texts = strings(value, "docs")
    positive = _positive(value.get("pos_index"), len(texts))
    candidates = Candidates(left_out)
    for index, text in enumerate(texts):
        candidates.add("", text, gold=index in positive)
    gold_answer = field(value, "gold_answer", object)
    named = gold_answer if isinstance(gold_answer, list) else [gold_answer]
    question = field(value, "question", str)
    return candidates.question(
        str(value["id"]) if isinstance(value.get("id"), str | int) else _made_id(question),
        "official",
        question,
        _gold_answers([_worded(answer, "gold_answer") for answer in named], left_out),
    )


def _positive(value: object, count: int) -> set[int]:
    if value is None:
        return set()
    listed = value if isinstance(value, list) else [value]
    for index in listed:
        if not isinstance(index, int) or isinstance(index, bool):
            raise UnusableRecordError("wrong type of 'pos_index'", str(value)[:60])
        if not 0 <= index < count:
            raise UnusableRecordError("gold index out of range", f"{index} of {count} documents")
    return set(listed)


def _parse_hotpotqa(value: Mapping[str, Any], left_out: list[str], *, source: str = "hotpotqa") -> Question:
    """HotpotQA, distractor and fullwiki: ``{"_id", "question", "answer", "context", "supporting_facts"}``.

    ``context`` is ``[[title, [sentence, …]], …]`` in the original files and ``{"title": […], "sentences": [[…], …]}``
    in the hub's copies (of 2WikiMultihopQA ``content``); ``supporting_facts`` likewise. In fullwiki a retriever found
    the context, so a supporting article may be missing from it and is then known by its title.
    """
    supporting = dict.fromkeys(title for title, _ in _titled(value, "supporting_facts", ("sent_id",)))
    candidates = Candidates(left_out)
    titles = set()
    for title, sentences in _titled(value, "context", ("sentences", "content")):
        # Sentences hold their own spaces in most copies, and none in a few.
        text = " ".join(str(sentence).strip() for sentence in typed(sentences, "context", list))
        titles.add(title)
        candidates.add(title, text, gold=title in supporting)
    return candidates.question(
        _identifier(value, "_id", "id"),
        source,
        field(value, "question", str),
        _gold_answers([field(value, "answer", str)], left_out),
        (GoldRef(title) for title in supporting if title not in titles),
    )


def _titled(value: Mapping[str, Any], key: str, names: tuple[str, ...]) -> Iterator[tuple[str, object]]:
    """(title, the other part) of each entry, in either layout; ``names`` of the other part in the hub's."""
    entries = value.get(key)
    if isinstance(entries, str):  # some copies hold the list as JSON text
        try:
            entries = json.loads(entries)
        except ValueError:
            raise UnusableRecordError(f"wrong type of {key!r}", entries[:60]) from None
    if isinstance(entries, dict):
        titles = strings(entries, "title")
        others = field(entries, next((name for name in names if name in entries), names[0]), list)
        if len(titles) != len(others):
            raise UnusableRecordError(f"lists of different length in {key!r}", f"{len(titles)} and {len(others)}")
        entries = [list(pair) for pair in zip(titles, others, strict=True)]
    for entry in typed(entries, key, list):
        pair = typed(entry, f"{key}[]", list)
        if len(pair) != 2:
            raise UnusableRecordError(f"wrong length of {key!r}[]", str(pair)[:60])
        yield typed(pair[0], f"{key}[]", str), pair[1]


def _parse_two_wiki(value: Mapping[str, Any], left_out: list[str]) -> Question:
    """2WikiMultihopQA: HotpotQA's layout with the reasoning path in ``evidences``.

    Aliases of an answer count, as in the official score: ``answer_aliases`` of some copies, else those of ``answer_id``
    in the data set's own ``id_aliases.json`` beside the file.
    """
    question = _parse_hotpotqa(value, left_out, source="2wiki")
    if value.get("answer_aliases") is None:
        if value.get("answer_id"):
            left_out.append(f"aliases of an answer ({_ALIASES} is not beside the file)")
        return question
    named = [*(question.answers or ()), *strings(value, "answer_aliases")]
    return replace(question, answers=_gold_answers(named, left_out))


class Aliases:
    """Aliases of 2Wiki's answers, from a file beside the questions', one ``{"Q_id", "aliases", …}`` a line."""

    def __init__(self, path: Path) -> None:
        self._names: dict[str, list[str]] | None = None
        beside = path.with_name(_ALIASES)
        if not beside.is_file():
            return
        self._names = {}
        try:
            for line in beside.read_text(encoding="utf-8").splitlines():
                if line.strip():
                    entry = json.loads(line)
                    self._names[entry["Q_id"]] = [*entry["aliases"], *entry.get("demonyms", ())]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise RecordError(
                f"{beside} cannot be read ({error}): expected one {{'Q_id', 'aliases', 'demonyms'}} a line; fetch it "
                "anew, or move it away to score without aliases"
            ) from None

    def added(self, value: Mapping[str, Any]) -> Mapping[str, Any]:
        """A record with ``answer_aliases``; as it is if it has them, names no answer, or there is no file."""
        known = value.get("answer_id")
        if self._names is None or value.get("answer_aliases") is not None or not isinstance(known, str):
            return value
        return {**value, "answer_aliases": self._names.get(known, [])}


def _parse_musique(value: Mapping[str, Any], left_out: list[str]) -> Question:
    """MuSiQue: ``{"id", "question", "answer", "answer_aliases", "answerable", "paragraphs"}``.

    In the full version half of the questions have lost a supporting paragraph: those are unanswerable.
    """
    candidates = Candidates(left_out)
    for item in field(value, "paragraphs", list):
        paragraph = typed(item, "paragraphs[]", dict)
        gold = typed(paragraph.get("is_supporting", False), "is_supporting", bool)
        candidates.add(field(paragraph, "title", str), field(paragraph, "paragraph_text", str), gold=gold)
    answerable = typed(value.get("answerable", True), "answerable", bool)
    aliases = strings(value, "answer_aliases") if value.get("answer_aliases") is not None else []
    return candidates.question(
        _identifier(value, "id"),
        "musique",
        field(value, "question", str),
        _gold_answers([field(value, "answer", str), *aliases], left_out) if answerable else (),
    )


def _parse_flashrag(value: Mapping[str, Any], left_out: list[str]) -> Question:
    """FlashRAG: ``{"id", "question", "golden_answers": […], "metadata": {…}}`` a line, for some thirty data sets.

    Of HotpotQA and 2WikiMultihopQA the metadata holds ``context`` and ``supporting_facts`` as the hub's copies do, of
    MuSiQue ``paragraphs``; the others come without documents. Multiple-choice sets name answers by their places in
    ``choices``.
    """
    answers = _gold_answers(_choices(value), left_out)
    asked = field(value, "question", str)
    identity = _identifier(value, "id") if "id" in value else _made_id(asked)
    plain = Question(identity, "flashrag", asked, answers)
    about = value.get("metadata")
    if not isinstance(about, dict):
        return plain
    known = {"id": plain.id, "question": asked, "answer": answers[0], **about}
    if known.keys() >= _HOTPOTQA:
        question = _parse_hotpotqa(known, left_out, source="2wiki" if "evidences" in about else "hotpotqa")
    elif known.keys() >= _MUSIQUE:
        question = _parse_musique(known, left_out)
    else:
        return plain
    return replace(question, id=plain.id, question=asked, answers=answers)


def _choices(value: Mapping[str, Any]) -> list[str]:
    """The answers; a place in ``choices`` stands for that choice."""
    named = field(value, "golden_answers", object)
    listed = named if isinstance(named, list) else [named]
    choices = value.get("choices")
    if not choices:
        return [_worded(item, "golden_answers") for item in listed]
    offered = strings(value, "choices")
    places = [item for item in listed if isinstance(item, int) and not isinstance(item, bool)]
    if len(places) < len(listed) or not all(0 <= place < len(offered) for place in places):
        raise UnusableRecordError("answer is none of the choices", str(named)[:60])
    return [offered[place] for place in places]


def _is_dpr(value: Mapping[str, Any]) -> bool:
    return value.keys() >= {"question", "answers"} and ("positive_ctxs" in value or "ctxs" in value)


def _parse_dpr(value: Mapping[str, Any], left_out: list[str]) -> Question:
    """Natural Questions with DPR's passages: training files (``positive_ctxs``) and retrieval results (``ctxs``).

    In a training file the positive passages are gold and the hard negatives the other candidates; its random negatives
    belong to other questions and are left aside. In a retrieval result the candidates come in the retriever's order,
    and those with ``has_answer``, DPR's own notion of a hit, are gold.
    """
    candidates = Candidates(left_out)
    if "ctxs" in value:
        for context in _contexts(value, "ctxs"):
            gold = typed(context.get("has_answer", False), "has_answer", bool)
            candidates.add(str(context.get("title") or ""), field(context, "text", str), gold=gold)
    else:
        for key in ("positive_ctxs", "hard_negative_ctxs"):
            for context in _contexts(value, key):
                text = field(context, "text", str)
                candidates.add(str(context.get("title") or ""), text, gold=key == "positive_ctxs")
    question = field(value, "question", str)
    return candidates.question(
        str(value["id"]) if isinstance(value.get("id"), str | int) else _made_id(question),
        "nq",
        question,
        _gold_answers(strings(value, "answers"), left_out),
    )


def _contexts(value: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    return [typed(item, f"{key}[]", dict) for item in value.get(key) or []]


def _parse_kilt(value: Mapping[str, Any], left_out: list[str]) -> Question:
    """KILT: ``{"id", "input", "output": [{"answer", "provenance": [{"wikipedia_id", "title", …}]}]}`` a line.

    Provenance names Wikipedia articles, not passages: references by title, for a corpus.
    """
    named: list[str] = []
    titles: dict[str, None] = {}
    for item in field(value, "output", list):
        output = typed(item, "output[]", dict)
        if isinstance(output.get("answer"), str):
            named.append(output["answer"])
        for source in output.get("provenance") or []:
            title = typed(source, "provenance[]", dict).get("title")
            if isinstance(title, str) and title.strip():
                titles[title] = None
            else:
                left_out.append("provenance without a title")
    return Question(
        id=_identifier(value, "id"),
        source="kilt",
        question=field(value, "input", str),
        answers=_gold_answers(named, left_out),
        elsewhere=tuple(GoldRef(title) for title in titles),
    )


def _parse_nq_open(value: Mapping[str, Any], left_out: list[str]) -> Question:
    """Natural Questions open, ``{"question", "answer": […]}`` a line; some copies hold one answer as a text.

    Documents come from a corpus, the identifier from the question's words.
    """
    question = field(value, "question", str)
    alone = value.get("answer")
    named = [alone] if isinstance(alone, str) else strings(value, "answer")
    return Question(_made_id(question), "nq", question, _gold_answers(named, left_out))


def _parse_popqa(value: Mapping[str, Any], left_out: list[str]) -> Question:
    """PopQA: ``{"id", "question", "possible_answers", "s_wiki_title", …}``, a line of JSON or of a table with a head.

    ``possible_answers`` is a list, or a list as JSON text. Documents come from a corpus; supporting ones are unknown
    (the questions were made from Wikidata).
    """
    named = field(value, "possible_answers", object)
    if isinstance(named, str):
        try:
            named = json.loads(named)
        except (ValueError, RecursionError):
            raise UnusableRecordError("wrong type of 'possible_answers'", named[:60]) from None
    listed = typed(named, "possible_answers", list)
    return Question(
        id=_identifier(value, "id"),
        source="popqa",
        question=field(value, "question", str),
        answers=_gold_answers([_worded(item, "possible_answers") for item in listed], left_out),
    )


def _squad_items(document: Mapping[str, Any]) -> Iterator[Mapping[str, Any] | UnusableRecordError]:
    """Questions of an original file, ``{"data": [{"title", "paragraphs": [{"context", "qas": […]}]}]}``."""
    for article in field(document, "data", list):
        try:
            paragraphs = field(typed(article, "data[]", dict), "paragraphs", list)
        except UnusableRecordError as fault:
            yield fault
            continue
        for paragraph in paragraphs:
            yield from _paragraph_questions(str(article.get("title", "")), paragraph)


def _paragraph_questions(title: str, paragraph: object) -> Iterator[Mapping[str, Any] | UnusableRecordError]:
    try:
        owner = typed(paragraph, "paragraphs[]", dict)
        questions = field(owner, "qas", list)
    except UnusableRecordError as fault:
        yield fault
        return
    for question in questions:
        if isinstance(question, dict):
            yield {"title": title, "context": owner.get("context"), **question}
        else:
            yield UnusableRecordError("wrong type of 'qas[]'", str(question)[:60])


def _parse_squad(value: Mapping[str, Any], left_out: list[str]) -> Question:
    """SQuAD 1.1 and 2.0, a flat record a question, as the hub's copies have it.

    A question's one candidate is its paragraph; more come from a corpus. ``is_impossible`` marks the unanswerable
    questions of 2.0, whose ``plausible_answers`` are wrong on purpose and not read. The hub's copies, ``{"id", "title",
    "context", "question", "answers": {"text": […]}}``, have no such mark: there, no text means no answer.
    """
    impossible = typed(value.get("is_impossible", False), "is_impossible", bool)
    listed = value.get("answers") or []
    if isinstance(listed, dict):
        named = strings(listed, "text")
        impossible = impossible or not named
    else:
        named = [field(typed(item, "answers[]", dict), "text", str) for item in listed]
    title = field(value, "title", str).replace("_", " ")
    return Question(
        id=_identifier(value, "id"),
        source="squad",
        question=field(value, "question", str),
        answers=() if impossible else _gold_answers(named, left_out),
        docs=(DocText(title, field(value, "context", str)),),
        gold=(0,),
    )


def _mrqa_items(document: Mapping[str, Any]) -> Iterator[Mapping[str, Any] | UnusableRecordError]:
    """``{"context", "qas": [{"qid", "question", "answers", "detected_answers"}]}`` a line, below a head."""
    if "header" in document:
        return
    for item in field(document, "qas", list):
        if isinstance(item, dict):
            yield {**item, "context": document.get("context")}
        else:
            yield UnusableRecordError("wrong type of 'qas[]'", str(item)[:60])


def _parse_mrqa(value: Mapping[str, Any], left_out: list[str]) -> Question:
    """MRQA's shared task, whose context is the one document.

    It has marks for titles and paragraphs, and those of HTML in Natural Questions.
    """
    detected = [typed(item, "detected_answers[]", dict) for item in value.get("detected_answers") or []]
    named = [*strings(value, "answers"), *(field(item, "text", str) for item in detected)]
    text = " ".join(_MRQA_MARK.sub(" ", field(value, "context", str)).split())
    return Question(
        id=_identifier(value, "qid", "id"),
        source="mrqa",
        question=field(value, "question", str),
        answers=_gold_answers(named, left_out),
        docs=(DocText("", text),),
        gold=(0,),
    )


def _is_triviaqa_hub(value: Mapping[str, Any]) -> bool:
    answer = value.get("answer")
    return "question" in value and isinstance(answer, dict) and "value" in answer


def _triviaqa_items(document: Mapping[str, Any]) -> Iterator[Mapping[str, Any] | UnusableRecordError]:
    """Questions of an original file, ``{"Data": [{"Question", "Answer": {"Value", "Aliases"}, …}]}``."""
    for item in field(document, "Data", list):
        answer = item.get("Answer") if isinstance(item, dict) else None
        if not isinstance(answer, dict):
            yield UnusableRecordError("wrong type of 'Data[]'", str(item)[:60])
            continue
        pages = item.get("EntityPages") or []
        yield {
            "question": item.get("Question"),
            "question_id": item.get("QuestionId"),
            "answer": {"value": answer.get("Value"), "aliases": answer.get("Aliases") or []},
            "entity_pages": {"title": [page.get("Title") for page in pages if isinstance(page, dict)]},
        }


def _parse_triviaqa(value: Mapping[str, Any], left_out: list[str]) -> Question:
    """TriviaQA, a question a record with small keys, as in the hub's copies.

    These hold the texts of both kinds of page, ``entity_pages`` and ``search_results``; the original files keep them
    apart, so their questions only name Wikipedia articles. A page that holds an answer is gold: the data set's own
    distant supervision.
    """
    answer = field(value, "answer", dict)
    if answer.get("value") == _UNKNOWN:
        raise UnusableRecordError("answer is not published", _UNKNOWN)
    aliases = strings(answer, "aliases") if answer.get("aliases") is not None else []
    answers = _gold_answers([field(answer, "value", str), *aliases], left_out)
    candidates = Candidates(left_out)
    titles = []
    normal = [text for text in map(normalize_answer, answers) if text]
    for key, texts in _PAGES:
        pages = typed(value.get(key) or {}, key, dict)
        named = pages.get("title") or []
        # Without context the lists of texts are empty, or hold empty texts.
        written = pages.get(texts) or [""] * len(named)
        if len(named) != len(written):
            raise UnusableRecordError(f"lists of different length in {key!r}", f"{len(named)} and {len(written)}")
        for title, text in zip(strings({key: named}, key), strings({key: written}, key), strict=True):
            if text.strip():
                plain = f" {normalize_answer(text)} "
                candidates.add(title, text, gold=any(f" {one} " in plain for one in normal))
            elif key == "entity_pages" and title.strip():
                titles.append(title)
    return candidates.question(
        _identifier(value, "question_id"),
        "triviaqa",
        field(value, "question", str),
        answers,
        (GoldRef(title) for title in dict.fromkeys(titles)),
    )


def _is_natural_questions(value: Mapping[str, Any]) -> bool:
    return "annotations" in value and ("question_text" in value or isinstance(value.get("question"), dict))


def _parse_natural_questions(value: Mapping[str, Any], left_out: list[str]) -> Question:
    """Natural Questions with its pages: Google's full and simplified files, and the hub's copies.

    Candidates are the top-level blocks of the page (``long_answer_candidates``), gold those that an annotator chose as
    the long answer. Answers are the annotators' short ones, yes and no among them. Where all chose a block and no short
    answer, the answer is unknown as a phrase and only the ranking can be measured; where they chose nothing, there is
    none.
    """
    page = value.get("document")
    about = typed(page, "document", dict) if page is not None else value
    tokens = _tokens(value, about)
    annotations = list(_rows(field(value, "annotations", object), "annotations"))
    short = [text for one in annotations for text in _short(one, tokens)]
    chosen = {span for one in annotations if (span := _span(one.get("long_answer"))) is not None}
    candidates, spans = Candidates(left_out), set[tuple[int, int]]()
    for block in _rows(value.get("long_answer_candidates") or [], "long_answer_candidates"):
        span = _span(block)
        if span is None or span in spans or not (block.get("top_level", True) or span in chosen):
            continue
        spans.add(span)
        if text := _text(tokens, span):
            candidates.add(_page_title(about), text, gold=span in chosen)
        elif span in chosen:
            raise UnusableRecordError("empty gold document", str(span))
    asked = value["question_text"] if "question_text" in value else field(field(value, "question", dict), "text", str)
    if short:
        answers: tuple[str, ...] | None = _gold_answers(short, left_out)
    else:
        answers = None if chosen else ()
    return candidates.question(_identifier(value, "example_id", "id"), "nq", asked, answers)


def _tokens(value: Mapping[str, Any], about: Mapping[str, Any]) -> list[str]:
    """The words of the page by their places; marks of HTML are empty."""
    if isinstance(value.get("document_text"), str):  # simplified: words and marks between single spaces
        return ["" if part[:1] == "<" and part[-1:] == ">" else part for part in value["document_text"].split(" ")]
    listed = about.get("document_tokens", about.get("tokens"))
    if listed is None:
        return []
    rows = _rows(listed, "tokens")
    return ["" if row.get("html_token", row.get("is_html")) else field(row, "token", str) for row in rows]


def _rows(listed: object, label: str) -> Iterator[Mapping[str, Any]]:
    """Records of a list, or of a mapping of lists of equal length (the hub's copies)."""
    if isinstance(listed, dict):
        columns = {key: typed(column, f"{label}.{key}", list) for key, column in listed.items()}
        if len({len(column) for column in columns.values()}) > 1:
            raise UnusableRecordError(f"lists of different length in {label!r}", str(list(columns)))
        names = list(columns)
        yield from (dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True))
        return
    for row in typed(listed, label, list):
        yield typed(row, f"{label}[]", dict)


def _span(block: object) -> tuple[int, int] | None:
    """The places of a block's first word and after its last; None where there is none."""
    if not isinstance(block, dict):
        return None
    start, end = block.get("start_token"), block.get("end_token")
    if not isinstance(start, int) or not isinstance(end, int) or not 0 <= start < end:
        return None
    return start, end


def _short(annotation: Mapping[str, Any], tokens: Sequence[str]) -> Iterator[str]:
    said = annotation.get("yes_no_answer")
    if isinstance(said, str | int) and said in _YES_NO:
        yield _YES_NO[said]
    for answer in _rows(annotation.get("short_answers") or [], "short_answers"):
        span = _span(answer)
        text = answer.get("text") or (_text(tokens, span) if span is not None else "")
        yield typed(text, "short_answers[].text", str)


def _text(tokens: Sequence[str], span: tuple[int, int]) -> str:
    return " ".join(token for token in tokens[span[0] : span[1]] if token.strip())


def _page_title(about: Mapping[str, Any]) -> str:
    """The page's title, else the one in its address."""
    named = about.get("document_title", about.get("title"))
    if isinstance(named, str):
        return named
    address = about.get("document_url", about.get("url"))
    if not isinstance(address, str):
        return ""
    try:
        return parse_qs(urlsplit(address).query).get("title", [""])[0].replace("_", " ")
    except ValueError:
        return ""


def _worded(item: object, label: str) -> str:
    """An answer as text: a number as it is written, true and false as yes and no."""
    if isinstance(item, bool):
        return "yes" if item else "no"
    return str(item) if isinstance(item, int | float) else typed(item, label, str)


def _made_id(question: str) -> str:
    """An identifier from a question's words, for formats without any."""
    return hashlib.sha256(question.encode()).hexdigest()[:16]


def _identifier(value: Mapping[str, Any], *keys: str) -> str:
    """The first of ``keys`` that the record has, as a string; it has to have one."""
    for key in keys:
        if isinstance(value.get(key), str | int):
            return str(value[key])
    raise UnusableRecordError("missing key " + " or ".join(map(repr, keys)))


def _gold_answers(answers: Sequence[str], left_out: list[str]) -> tuple[str, ...]:
    """Gold answers, each once: blank ones are left out and counted; one has to remain."""
    kept = tuple(dict.fromkeys(answer for answer in answers if answer.strip()))
    if not kept:
        raise UnusableRecordError("no answers")
    left_out.extend(["blank answer"] * sum(not answer.strip() for answer in answers))
    return kept


# The first that matches is taken: those with more keys of their own come first.
FORMATS: Mapping[str, QuestionFormat] = {
    "clara": QuestionFormat(_has("question", "docs", "gold", "answers"), _parse_own),
    "official": QuestionFormat(_has("question", "docs", "gold_answer"), _parse_official),
    "2wiki": QuestionFormat(_has(*_HOTPOTQA, "evidences"), _parse_two_wiki),
    "hotpotqa": QuestionFormat(_has(*_HOTPOTQA), _parse_hotpotqa),
    "musique": QuestionFormat(_has(*_MUSIQUE), _parse_musique),
    "dpr": QuestionFormat(_is_dpr, _parse_dpr),
    "kilt": QuestionFormat(_has("input", "output"), _parse_kilt),
    "squad": QuestionFormat(_has("data"), _parse_squad, _squad_items),
    "squad_hub": QuestionFormat(_has("id", "title", "context", "question", "answers"), _parse_squad),
    "mrqa": QuestionFormat(_has("context", "qas"), _parse_mrqa, _mrqa_items),
    "natural_questions": QuestionFormat(_is_natural_questions, _parse_natural_questions),
    "flashrag": QuestionFormat(_has("question", "golden_answers"), _parse_flashrag),
    "popqa": QuestionFormat(_has("question", "possible_answers"), _parse_popqa),
    "triviaqa": QuestionFormat(_has("Data"), _parse_triviaqa, _triviaqa_items),
    "triviaqa_hub": QuestionFormat(_is_triviaqa_hub, _parse_triviaqa),
    "nq_open": QuestionFormat(_has("question", "answer"), _parse_nq_open),
}
