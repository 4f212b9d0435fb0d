"""HotpotQA, distractor and fullwiki: ``{"_id", "question", "answer", "context", "supporting_facts"}``.

``context`` is ``[[title, [sentence, …]], …]`` in the original files and ``{"title": […], "sentences": [[…], …]}`` in
the hub's copies (of 2WikiMultihopQA ``content``); ``supporting_facts`` likewise. In fullwiki the context is what a
retriever found, so a supporting article may be missing from it: it is then known by its title.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from clara.data.formats import fields
from clara.data.questions import Candidates, GoldRef, Question
from clara.data.records import UnusableRecordError

KEYS = frozenset({"question", "context", "supporting_facts"})


def parse(value: Mapping[str, Any], left_out: list[str], *, source: str = "hotpotqa") -> Question:
    """One question.

    Raises:
        UnusableRecordError: the record cannot be used.
    """
    wanted = dict.fromkeys(title for title, _ in _pairs(value, "supporting_facts", ("sent_id",)))
    found = Candidates(left_out)
    titles = set()
    for title, sentences in _pairs(value, "context", ("sentences", "content")):
        # Sentences hold their own spaces in most copies, and none in a few.
        text = " ".join(str(sentence).strip() for sentence in fields.typed(sentences, "context", list))
        titles.add(title)
        found.add(title, text, gold=title in wanted)
    return Question(
        id=fields.identifier(value, "_id", "id"),
        source=source,
        question=fields.get(value, "question", str),
        answers=fields.answers([fields.get(value, "answer", str)], left_out),
        docs=tuple(found.docs),
        gold=tuple(found.gold),
        elsewhere=tuple(GoldRef(title) for title in wanted if title not in titles),
    )


def _pairs(value: Mapping[str, Any], key: str, names: tuple[str, ...]) -> Iterator[tuple[str, object]]:
    """(title, the other part) of each entry, in either layout; the other part has one of these names in the hub's."""
    entries = value.get(key)
    if isinstance(entries, str):  # some copies hold the list as JSON text
        try:
            entries = json.loads(entries)
        except ValueError:
            raise UnusableRecordError(f"wrong type of {key!r}", entries[:60]) from None
    if isinstance(entries, dict):
        titles = fields.strings(entries, "title")
        others = fields.get(entries, next((name for name in names if name in entries), names[0]), list)
        if len(titles) != len(others):
            raise UnusableRecordError(f"lists of different length in {key!r}", f"{len(titles)} and {len(others)}")
        entries = [list(pair) for pair in zip(titles, others, strict=True)]
    for entry in fields.typed(entries, key, list):
        pair = fields.typed(entry, f"{key}[]", list)
        if len(pair) != 2:
            raise UnusableRecordError(f"wrong length of {key!r}[]", str(pair)[:60])
        yield fields.typed(pair[0], f"{key}[]", str), pair[1]
