"""The passages to write about: passage files as they are, documents cut into passages.

A passage file is JSON Lines whose first record has the keys ``{"id", "source", "title", "text"}``; its questions are
ignored. Other files go through ``ingest``, cut by words, so no tokenizer and no model is needed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clara.data import read_records
from clara.errors import SynthesisError
from clara.ingest import FileListing, Reader, find_files, iter_passages
from clara.synth.checks import words
from clara.synth.drafts import SourcePassage

_SPACED_WORD = re.compile(r"\S+")
_PASSAGE_SUFFIXES = (".jsonl", ".jsonl.gz")
_PASSAGE_KEYS = frozenset({"id", "source", "title", "text"})
_ID_DIGITS = 16


@dataclass(frozen=True, slots=True)
class Sources:
    """The passages of a run in the order of their paths, each id once, held in memory (some 1 kB each).

    A message is one sentence for each file or line that could not be read.
    """

    passages: tuple[SourcePassage, ...]
    skipped: dict[str, int]
    messages: tuple[str, ...]


def read_sources(paths: Sequence[Path], *, passage_words: int, min_passage_words: int) -> Sources:
    """Read passages from passage files, documents and folders of either.

    A document's passage has at most ``passage_words`` words, title included; shorter ones than ``min_passage_words``
    are left out and counted.

    Raises:
        InputError: a path does not exist.
        RecordError: a passage file cannot be read at all.
        SynthesisError: two passages have the same id and different texts, or there is no passage.
    """
    listing = find_files(paths)
    collected = _Collected(min_passage_words)
    for file in (*listing.files, *listing.unsupported):
        if file.name.endswith(_PASSAGE_SUFFIXES) and _is_passage_file(file):
            collected.add_passage_file(file)
    documents = [file for file in listing.files if file not in collected.files]
    unsupported = tuple(file for file in listing.unsupported if file not in collected.files)
    reader = Reader(FileListing(tuple(documents), unsupported, listing.skipped, listing.hidden))
    for file in documents:
        for document in reader.read(file):
            for passage in iter_passages(document, _word_spans, max_tokens=passage_words):
                identity = f"{document.content_hash}\n{passage.start}-{passage.end}"
                digest = hashlib.sha256(identity.encode()).hexdigest()[:_ID_DIGITS]
                text = passage.text.strip()
                collected.add(SourcePassage(digest, file.name, passage.title, text, document.content_hash))
    for skipped in reader.report().skipped:
        collected.skipped[f"source {skipped.reason}"] += 1
        collected.messages.append(skipped.message)
    if not collected.passages:
        reasons = ", ".join(f"{count} {reason}" for reason, count in collected.skipped.items()) or "nothing found"
        raise SynthesisError(f"no passage in {', '.join(map(str, paths))} ({reasons}); give documents or passage files")
    return Sources(tuple(collected.passages.values()), dict(collected.skipped), tuple(collected.messages))


class _Collected:
    """Passages so far, each id once."""

    def __init__(self, min_passage_words: int) -> None:
        self.passages: dict[str, SourcePassage] = {}
        self.skipped: Counter[str] = Counter()
        self.messages: list[str] = []
        self.files: set[Path] = set()
        self._min_words = min_passage_words

    def add_passage_file(self, path: Path) -> None:
        self.files.add(path)
        reading = read_records(path, plain_passages=True)
        for record in reading.passage_qa:
            self.add(SourcePassage(record.id, record.source, record.title, record.text, record.title))
        for reason, count in reading.rejected.items():
            self.skipped[f"record {reason}"] += count
        if reading.rejected:
            self.messages.append(reading.summary())
        if reading.multi_hop:
            self.skipped["record of questions over documents"] += len(reading.multi_hop)

    def add(self, passage: SourcePassage) -> None:
        if len(words(passage.text)) < self._min_words:
            self.skipped["passage too short"] += 1
            return
        known = self.passages.setdefault(passage.id, passage)
        if known is passage:
            return
        if (known.title, known.text) != (passage.title, passage.text):
            raise SynthesisError(
                f"two different passages have the id {passage.id!r} (from {known.source} and {passage.source}); "
                "give each its own"
            )
        self.skipped["passage repeated"] += 1


def _word_spans(text: str) -> list[tuple[int, int]]:
    return [match.span() for match in _SPACED_WORD.finditer(text)]


def _is_passage_file(path: Path) -> bool:
    """The first record has a passage's keys; a packed file always counts, ``ingest`` reads none."""
    if path.name.endswith(".gz"):
        return True
    try:
        with path.open("rb") as file:
            record = json.loads(next((line for line in file if line.strip()), b""))
    except (OSError, ValueError):
        return False  # its next reader reports the fault
    return isinstance(record, dict) and record.keys() >= _PASSAGE_KEYS
