"""Passages with replies that are right about them, made by rule so that there can be many."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from clara.synth.drafts import SourcePassage

_PEOPLE = ("Ada Brenner", "Luis Ortega", "Mira Halonen", "Tomas Vesely", "Ines Duarte", "Kofi Mensah", "Yara Nassif")
_PLACES = ("Turku", "Braga", "Graz", "Accra", "Lyon", "Porto", "Tampere", "Leeds", "Ghent")
_TRADES = ("bridges", "telescopes", "violins", "sailing boats", "clocks", "bicycles", "pianos")


def passage(number: int) -> SourcePassage:
    """A short passage; no two numbers give the same."""
    who, where, what, born = _facts(number)
    text = (
        f"{who} was born in {where} in {born} as the child of a teacher. In {born + 24} {who} opened a workshop "
        f"that built {what} for customers abroad. The workshop employed {number + 31} people when it moved "
        f"to {_PLACES[(number + 4) % len(_PLACES)]} in {born + 40}."
    )
    return SourcePassage(f"case:{number}", "cases", who, text)


def replies(number: int) -> dict[str, Any]:
    """Good replies about ``passage(number)``."""
    who, where, what, born = _facts(number)
    second = _PLACES[(number + 4) % len(_PLACES)]
    return {
        "simple_qa": {
            "pairs": [
                {"question": f"Where was {who} born?", "answer": where},
                {"question": f"In which year was {who} born?", "answer": str(born)},
                {"question": f"What did the workshop of {who} build?", "answer": what},
                {
                    "question": f"How many people did the workshop of {who} employ when it moved?",
                    "answer": str(number + 31),
                },
                {"question": f"In which year did the workshop of {who} move to {second}?", "answer": str(born + 40)},
            ]
        },
        "complex_qa": {
            "pairs": [
                {
                    "question": f"What was built from {born + 24} on by the person born in {where} to a teacher?",
                    "answer": f"{who} built {what}",
                }
            ]
        },
        "paraphrase": {
            "paraphrase": (
                f"Customers in other countries bought {what} from a workshop founded by {who} in {born + 24}. With "
                f"{number + 31} workers on its payroll, this workshop relocated in {born + 40}, its new home being "
                f"{second}. The founder, a teacher's child, had come into the world at {where} in {born}."
            )
        },
    }


def knowledge(count: int) -> dict[str, dict[str, Any]]:
    """What a server must know to answer well about the first ``count`` passages."""
    return {passage(number).text: replies(number) for number in range(count)}


def write_passages(path: Path, count: int) -> Path:
    """Write the first ``count`` passages as a passage file."""
    lines = []
    for number in range(count):
        item = passage(number)
        lines.append(json.dumps({"id": item.id, "source": item.source, "title": item.title, "text": item.text}))
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def _facts(number: int) -> tuple[str, str, str, int]:
    who = f"{_PEOPLE[number % len(_PEOPLE)]}"
    return who, _PLACES[number % len(_PLACES)], _TRADES[(number // 3) % len(_TRADES)], 1800 + number
