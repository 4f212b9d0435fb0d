"""Typed access to the fields of foreign JSON records; a fault is an ``UnusableRecordError`` with a countable reason."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, TypeVar

from clara.data.records import UnusableRecordError

_NAMES: dict[type, str] = {str: "a string", list: "a list", dict: "an object", bool: "true or false"}

_T = TypeVar("_T")


def get(value: Mapping[str, Any], key: str, kind: type[_T]) -> _T:
    """The field ``key``.

    Raises:
        UnusableRecordError: it is missing, or of another type.
    """
    if key not in value:
        raise UnusableRecordError(f"missing key {key!r}")
    return typed(value[key], key, kind)


def typed(item: object, label: str, kind: type[_T]) -> _T:
    """``item``, checked.

    Raises:
        UnusableRecordError: it is of another type than ``kind``.
    """
    if not isinstance(item, kind):
        expected = _NAMES.get(kind, kind.__name__)
        raise UnusableRecordError(f"wrong type of {label!r}", f"expected {expected}, got {str(item)[:60]!r}")
    return item


def strings(value: Mapping[str, Any], key: str) -> list[str]:
    """The field ``key``, a list of strings."""
    return [typed(item, f"{key}[]", str) for item in get(value, key, list)]


def worded(item: object, label: str) -> str:
    """An answer as text: a number as it is written, true and false as yes and no.

    Raises:
        UnusableRecordError: it is neither a text nor a number nor true or false.
    """
    if isinstance(item, bool):
        return "yes" if item else "no"
    return str(item) if isinstance(item, int | float) else typed(item, label, str)


def made_id(question: str) -> str:
    """An identifier made of a question's words, for formats that have none."""
    return hashlib.sha256(question.encode()).hexdigest()[:16]


def answers(found: list[str], left_out: list[str]) -> tuple[str, ...]:
    """Gold answers: blank ones left out and counted, repeated ones said once.

    Raises:
        UnusableRecordError: none is left.
    """
    kept = tuple(dict.fromkeys(answer for answer in found if answer.strip()))
    if not kept:
        raise UnusableRecordError("no answers")
    left_out.extend(["blank answer"] * sum(not answer.strip() for answer in found))
    return kept


def identifier(value: Mapping[str, Any], *keys: str) -> str:
    """The first of ``keys`` that the record has, as a string.

    Raises:
        UnusableRecordError: it has none of them.
    """
    for key in keys:
        if isinstance(value.get(key), str | int):
            return str(value[key])
    raise UnusableRecordError("missing key " + " or ".join(map(repr, keys)))
