"""Public question-answering formats, one small file each; the keys of the first record tell which one a file is in.

A format says which keys a record of it has and how one becomes a ``Question``. Bytes are ``reading_questions``' matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from clara.data.formats import (
    dpr,
    flashrag,
    hotpotqa,
    kilt,
    mrqa,
    musique,
    natural_questions,
    nq_open,
    official,
    own,
    popqa,
    squad,
    triviaqa,
    two_wiki,
)
from clara.data.questions import Question
from clara.data.records import UnusableRecordError


def _itself(value: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield value


def _has(keys: frozenset[str]) -> Callable[[Mapping[str, Any]], bool]:
    return lambda value: value.keys() >= keys


@dataclass(frozen=True, slots=True)
class QuestionFormat:
    """A public format.

    Attributes:
        matches: whether a record is of this format.
        parse: makes a question of one item; the second argument takes the reasons of what was left out of it. Raises
            ``UnusableRecordError``.
        items: the items of a top-level JSON value; a fault stands in the place of an item that has one.
    """

    matches: Callable[[Mapping[str, Any]], bool]
    parse: Callable[[Mapping[str, Any], list[str]], Question]
    items: Callable[[Mapping[str, Any]], Iterator[Mapping[str, Any] | UnusableRecordError]] = _itself


# The first that matches is taken: those with more keys of their own come first.
FORMATS: Mapping[str, QuestionFormat] = MappingProxyType(
    {
        "clara": QuestionFormat(_has(own.KEYS), own.parse),
        "official": QuestionFormat(_has(official.KEYS), official.parse),
        "2wiki": QuestionFormat(_has(two_wiki.KEYS), two_wiki.parse),
        "hotpotqa": QuestionFormat(_has(hotpotqa.KEYS), hotpotqa.parse),
        "musique": QuestionFormat(_has(musique.KEYS), musique.parse),
        "dpr": QuestionFormat(dpr.matches, dpr.parse),
        "kilt": QuestionFormat(_has(kilt.KEYS), kilt.parse),
        "squad": QuestionFormat(_has(squad.KEYS), squad.parse, squad.items),
        "squad_hub": QuestionFormat(_has(squad.HUB_KEYS), squad.parse),
        "mrqa": QuestionFormat(_has(mrqa.KEYS), mrqa.parse, mrqa.items),
        "natural_questions": QuestionFormat(natural_questions.matches, natural_questions.parse),
        "flashrag": QuestionFormat(_has(flashrag.KEYS), flashrag.parse),
        "popqa": QuestionFormat(_has(popqa.KEYS), popqa.parse),
        "triviaqa": QuestionFormat(_has(triviaqa.KEYS), triviaqa.parse, triviaqa.items),
        "triviaqa_hub": QuestionFormat(triviaqa.hub_matches, triviaqa.parse),
        "nq_open": QuestionFormat(_has(nq_open.KEYS), nq_open.parse),
    }
)
