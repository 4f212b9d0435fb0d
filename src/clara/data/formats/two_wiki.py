"""2WikiMultihopQA: HotpotQA's layout with the reasoning path in ``evidences``.

Other names of an answer count as answers, as in the official score: ``answer_aliases``, where the copy at hand holds
them; else those of ``answer_id`` in the data set's own ``id_aliases.json`` beside the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from clara.data.formats import fields, hotpotqa
from clara.data.questions import Question
from clara.errors import RecordError

KEYS = hotpotqa.KEYS | {"evidences"}
_ALIASES = "id_aliases.json"


def parse(value: Mapping[str, Any], left_out: list[str]) -> Question:
    """One question.

    Raises:
        UnusableRecordError: the record cannot be used.
    """
    question = hotpotqa.parse(value, left_out, source="2wiki")
    if value.get("answer_aliases") is None:
        if value.get("answer_id"):
            left_out.append(f"aliases of an answer ({_ALIASES} is not beside the file)")
        return question
    named = [*(question.answers or ()), *fields.strings(value, "answer_aliases")]
    return replace(question, answers=fields.answers(named, left_out))


class Aliases:
    """Other names of 2Wiki's answers, from the file that the data set keeps them in.

    Args:
        path: the questions' file; the aliases lie beside it, one ``{"Q_id", "aliases", "demonyms"}`` a line.

    Raises:
        RecordError: the aliases cannot be read.
    """

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
        """A record with ``answer_aliases``; as it is where it has them, names no answer, or there is no file."""
        known = value.get("answer_id")
        if self._names is None or value.get("answer_aliases") is not None or not isinstance(known, str):
            return value
        return {**value, "answer_aliases": self._names.get(known, [])}
