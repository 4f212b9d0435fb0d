"""The two files that a run writes: accepted records, and dropped passages with the reasons.

Records are ``passage_qa``, as ``clara train scp`` reads them. A passage is finished by one line in one of the two, so
that a run that is killed anywhere leaves each passage either finished or untouched: ``--resume`` finishes the rest.
Nothing else remembers what is done.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from clara.errors import SynthesisError
from clara.synth.drafts import Pair, SourcePassage
from clara.synth.rounds import Outcome
from clara.synth.settings import SynthSettings
from clara.synth.templates import Templates

_LINE_START = b'{"id": "'  # how each line begins: what does not is not ours to cut
_Keys = Mapping[str, type]
_ACCEPTED: _Keys = {"id": str, "text": str, "qa": list, "complex_qa": list, "rounds": int, "provenance": dict}
_DROPPED: _Keys = {"id": str, "text": str, "dropped": str, "provenance": dict}
"""What ``--resume`` and the report need of a line."""


class Output:
    """Appends finished passages, one whole line at a time.

    Args:
        path: accepted records; ``<path>.dropped.jsonl`` beside it holds the dropped passages.
        resume: go on with files that are there; otherwise there must be none.

    Raises:
        SynthesisError: the files are there and ``resume`` is not asked for; another run writes them; they hold
            something else; they cannot be written.
    """

    def __init__(self, path: Path, *, resume: bool) -> None:
        if path.suffix != ".jsonl":
            raise SynthesisError(f"--out {path}: expected a file named *.jsonl")
        self.path = path
        self.dropped_path = path.with_name(f"{path.name}.dropped.jsonl")
        self._lock = FileLock(path.with_name(f"{path.name}.lock"))
        self._files: dict[Path, int] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout:
            raise SynthesisError(f"another run is writing {path}; wait for it or choose another --out") from None
        except OSError as error:
            raise SynthesisError(f"{path} cannot be written: {error.strerror or error}") from None
        try:
            self._open(resume=resume)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Output:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the files and let another run have them."""
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()
        self._lock.release()

    def accept(self, record: Mapping[str, Any]) -> None:
        """Write an accepted record, for good."""
        self._append(self.path, record)

    def drop(self, record: Mapping[str, Any]) -> None:
        """Write a dropped passage with its reasons, for good."""
        self._append(self.dropped_path, record)

    def finished(self) -> dict[str, bytes]:
        """Each finished passage's id, with the ``text_digest`` of its text."""
        values = itertools.chain(read_accepted(self.path), read_dropped(self.dropped_path))
        return {value["id"]: text_digest(value["text"]) for value in values}

    def _open(self, *, resume: bool) -> None:
        for path, keys in ((self.path, _ACCEPTED), (self.dropped_path, _DROPPED)):
            if not resume and path.exists() and path.stat().st_size:
                raise SynthesisError(f"{path} is there already; go on with --resume or choose another --out")
            try:
                _mend_last_line(path, keys)
                self._files[path] = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            except OSError as error:
                raise SynthesisError(f"{path} cannot be written: {error.strerror or error}") from None

    def _append(self, path: Path, value: Mapping[str, Any]) -> None:
        data = json.dumps(value, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        descriptor = self._files[path]
        before = os.fstat(descriptor).st_size
        try:
            if os.write(descriptor, data) != len(data):
                raise OSError("no space left")  # noqa: TRY301 - the same end as an error of the write itself
            os.fsync(descriptor)
        except OSError as error:
            os.ftruncate(descriptor, before)
            raise SynthesisError(
                f"{path} cannot be written: {error.strerror or error}; make room, then go on with --resume"
            ) from None


@dataclass(frozen=True, slots=True)
class RecordMaker:
    """Makes the lines of one run.

    Attributes:
        settings: of the run.
        templates: of the run.
    """

    settings: SynthSettings
    templates: Templates

    def accepted(self, passage: SourcePassage, outcome: Outcome) -> dict[str, Any]:
        """A ``passage_qa`` record with ``paraphrase``, ``complex_qa``, ``rounds`` and ``provenance``."""
        return {
            **_passage(passage),
            "qa": _pairs(outcome.draft.simple),
            "paraphrase": outcome.draft.paraphrase,
            "complex_qa": _pairs(outcome.draft.complex),
            "rounds": outcome.rounds,
            "provenance": self._provenance(outcome.rejections),
        }

    def dropped(self, passage: SourcePassage, outcome: Outcome) -> dict[str, Any]:
        """A passage that was given up, with why."""
        return {
            **_passage(passage),
            "dropped": outcome.dropped,
            "rounds": outcome.rounds,
            "provenance": self._provenance(outcome.rejections),
        }

    def _provenance(self, rejections: Mapping[str, int]) -> dict[str, Any]:
        return {
            "generator": f"clara-rag {version('clara-rag')}",
            "model": self.settings.server.model,
            "sampling": self.settings.sampling.model_dump(mode="json"),
            "judge": self.settings.judge,
            "templates": self.templates.hashes,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "rejections": dict(sorted(rejections.items())),
        }


def text_digest(text: str) -> bytes:
    """Eight bytes that tell texts apart: millions of passages fit in memory."""
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def read_accepted(path: Path) -> Iterator[dict[str, Any]]:
    """The records of an output file; none if it is not there.

    Raises:
        SynthesisError: a line is no record of a synthesis run.
    """
    return _read_lines(path, _ACCEPTED)


def read_dropped(path: Path) -> Iterator[dict[str, Any]]:
    """The passages in the file of dropped ones; none if it is not there.

    Raises:
        SynthesisError: a line is no dropped passage of a synthesis run.
    """
    return _read_lines(path, _DROPPED)


def _read_lines(path: Path, keys: _Keys) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            value = _parsed(line)
            if lacking := _lacking(value, keys):
                raise SynthesisError(
                    f"{path}, line {number} is no line of a synthesis run ({lacking}); choose another --out, or mend "
                    "the line"
                )
            yield value


def _parsed(line: bytes) -> Any:  # noqa: ANN401 - whatever the JSON holds; None if it is none
    try:
        return json.loads(line)
    except ValueError:
        return None


def _lacking(value: object, keys: _Keys) -> str:
    """What a parsed line lacks to be one that a synthesis run wrote; empty if nothing."""
    if not isinstance(value, dict):
        return "it is no JSON object"
    wrong = [key for key, kind in keys.items() if not isinstance(value.get(key), kind)]
    if not wrong and not isinstance(value["provenance"].get("rejections"), dict):
        wrong = ["provenance.rejections"]
    return f"it lacks {', '.join(wrong)}" if wrong else ""


def _mend_last_line(path: Path, keys: _Keys) -> None:
    """Cut off a last line that was not written to its end; its passage is simply not finished."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        start = file.seek(0, os.SEEK_END)
        tail = b""
        while start and b"\n" not in tail:
            step = min(1 << 16, start)
            start -= step
            file.seek(start)
            tail = file.read(step) + tail
        kept = start + tail.rfind(b"\n") + 1
        torn = tail[tail.rfind(b"\n") + 1 :]
        ours = torn.startswith(_LINE_START) or _LINE_START.startswith(torn)
        whole = _parsed(torn)  # of another's file, whose last line has no line end; ours lacks nothing then
        if torn and (not ours or (whole is not None and _lacking(whole, keys))):
            raise SynthesisError(f"{path} ends in something that no synthesis run wrote; choose another --out")
        if torn:
            file.truncate(kept)
            file.flush()
            os.fsync(file.fileno())


def _passage(passage: SourcePassage) -> dict[str, Any]:
    # "id" comes first: lines of a run are known by it.
    return {"id": passage.id, "source": passage.source, "title": passage.title, "text": passage.text}


def _pairs(pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    return [{"question": pair.question, "answers": [pair.answer]} for pair in pairs]
