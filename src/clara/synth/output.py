"""The two files of a run, accepted records and dropped passages with the reasons, and their report.

Records are ``passage_qa``, as ``clara train scp`` reads them. A passage is finished by one line in one of the two, so
that a killed run leaves each passage either finished or untouched, for ``--resume``. Nothing else remembers progress;
the report counts all runs that wrote the same files.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from clara.errors import SynthesisError, optional
from clara.llm import Usage
from clara.synth.drafts import Pair, SourcePassage, Templates
from clara.synth.rounds import Outcome
from clara.synth.settings import SynthSettings
from clara.synth.sources import Sources

_LINE_START = b'{"id": "'  # a line that begins otherwise is not ours to cut
_Keys = Mapping[str, type]
_ACCEPTED: _Keys = {"id": str, "text": str, "qa": list, "complex_qa": list, "rounds": int, "provenance": dict}
_DROPPED: _Keys = {"id": str, "text": str, "dropped": str, "provenance": dict}
"""Fields of a line that ``--resume`` and the report need."""


class Output:
    """Appends finished passages, one whole line at a time; dropped ones to ``<path>.dropped.jsonl``.

    Raises:
        SynthesisError: the files are there without ``resume``; another run writes them; they hold something else; they
            cannot be written.
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

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files and release the lock."""
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()
        self._lock.release()

    def accept(self, record: Mapping[str, Any]) -> None:
        """Write an accepted record, synced."""
        self._append(self.path, record)

    def drop(self, record: Mapping[str, Any]) -> None:
        """Write a dropped passage with its reasons, synced."""
        self._append(self.dropped_path, record)

    def unfinished(self, passages: Sequence[SourcePassage]) -> list[SourcePassage]:
        """The passages in neither file; ``SynthesisError`` if one is there with another text."""
        values = itertools.chain(_read_lines(self.path, _ACCEPTED), _read_lines(self.dropped_path, _DROPPED))
        finished = {value["id"]: _digest(value["text"]) for value in values}
        for passage in passages:
            if finished.get(passage.id, same := _digest(passage.text)) != same:
                raise SynthesisError(
                    f"{self.path} was made from other passages: {passage.id!r} has another text there; "
                    "choose another --out"
                )
        return [passage for passage in passages if passage.id not in finished]

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


def record_of(
    passage: SourcePassage, outcome: Outcome, settings: SynthSettings, templates: Templates
) -> dict[str, Any]:
    """The line of a finished passage: a ``passage_qa`` record, or the reason for dropping it."""
    # "id" comes first: lines of a run are known by it.
    made: dict[str, Any] = {"id": passage.id, "source": passage.source, "title": passage.title, "text": passage.text}
    if outcome.dropped:
        made["dropped"] = outcome.dropped
    else:
        made |= {
            "qa": _pairs(outcome.draft.simple),
            "paraphrase": outcome.draft.paraphrase,
            "complex_qa": _pairs(outcome.draft.complex),
        }
    provenance = {
        "generator": f"clara-rag {version('clara-rag')}",
        "model": settings.server.model,
        "sampling": settings.sampling.model_dump(mode="json"),
        "judge": settings.judge,
        "templates": templates.hashes,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "rejections": dict(sorted(outcome.rejections.items())),
    }
    return {**made, "rounds": outcome.rounds, "provenance": provenance}


def _pairs(pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    return [{"question": pair.question, "answers": [pair.answer]} for pair in pairs]


def _digest(text: str) -> bytes:
    """Eight bytes that tell texts apart: millions of passages fit in memory."""
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def _read_lines(path: Path, keys: _Keys) -> Iterator[dict[str, Any]]:
    """The lines of an output file; none if it is not there, ``SynthesisError`` for a line of another program."""
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
    """The fields that a parsed line lacks to be a synthesis run's; empty if none."""
    if not isinstance(value, dict):
        return "it is no JSON object"
    wrong = [key for key, kind in keys.items() if not isinstance(value.get(key), kind)]
    if not wrong and not isinstance(value["provenance"].get("rejections"), dict):
        wrong = ["provenance.rejections"]
    return f"it lacks {', '.join(wrong)}" if wrong else ""


def _mend_last_line(path: Path, keys: _Keys) -> None:
    """Cut off a torn last line; its passage is not finished."""
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


@dataclass(frozen=True, slots=True)
class RunFigures:
    """Figures of a run that its files do not hold.

    Attributes:
        finished: passages accepted or dropped in this run.
        requests, answered, retried: as ``AsyncLLM.patience`` and ``ChatClient`` count them.
        spent: tokens of all replies in the cache, earlier runs included.
        cost: price of ``spent``; 0 without prices.
        stopped: the cause of an early end: ``budget`` or ``server``; else empty.
        message: the same in words.
    """

    finished: int = 0
    requests: int = 0
    answered: int = 0
    retried: Mapping[str, int] = field(default_factory=dict)
    spent: Usage = field(default_factory=Usage)
    spent_now: Usage = field(default_factory=Usage)
    cost: float = 0.0
    seconds: float = 0.0
    stopped: Literal["", "budget", "server"] = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class SynthReport:
    """The result of a synthesis.

    Attributes:
        dropped: dropped passages, by their last shortcoming.
        pairs, complex_pairs: written, simple ones and complex ones.
        accepted_by_round: accepted passages by the number of rounds.
        skipped, messages: as in ``Sources``.
    """

    passages: int
    accepted: int
    dropped: Mapping[str, int]
    unfinished: int
    pairs: int
    complex_pairs: int
    rejections: Mapping[str, int]
    accepted_by_round: Mapping[int, int]
    skipped: Mapping[str, int]
    messages: tuple[str, ...]
    run: RunFigures

    @classmethod
    def of(cls, output: Output, sources: Sources, run: RunFigures, *, unfinished: int) -> SynthReport:
        """Count the files of a run."""
        rejections: Counter[str] = Counter()
        by_round: Counter[int] = Counter()
        drops: Counter[str] = Counter()
        pairs = complex_pairs = 0
        for record in _read_lines(output.path, _ACCEPTED):
            pairs += len(record["qa"])
            complex_pairs += len(record["complex_qa"])
            by_round[record["rounds"]] += 1
            rejections.update(record["provenance"]["rejections"])
        for record in _read_lines(output.dropped_path, _DROPPED):
            drops[record["dropped"]] += 1
            rejections.update(record["provenance"]["rejections"])
        return cls(
            passages=len(sources.passages),
            accepted=by_round.total(),
            dropped=dict(drops),
            unfinished=unfinished,
            pairs=pairs,
            complex_pairs=complex_pairs,
            rejections=dict(rejections),
            accepted_by_round=dict(sorted(by_round.items())),
            skipped=dict(sources.skipped),
            messages=sources.messages,
            run=run,
        )

    def rows(self) -> list[tuple[str, str]]:
        """The table of figures."""
        dropped = sum(self.dropped.values())
        rows = [
            ("passages", f"{self.passages:,}"),
            ("accepted", f"{self.accepted:,}{_share(self.accepted, self.accepted + dropped)}"),
            ("dropped", f"{dropped:,}{_share(dropped, self.accepted + dropped)}"),
            *((f"  dropped: {reason}", f"{count:,}") for reason, count in _ordered(self.dropped)),
            ("unfinished", f"{self.unfinished:,}"),
            ("simple pairs a record", _mean(self.pairs, self.accepted)),
            ("complex pairs a record", _mean(self.complex_pairs, self.accepted)),
            *((f"accepted in round {number}", f"{n:,}") for number, n in sorted(self.accepted_by_round.items())),
            *((f"rejected: {reason}", f"{count:,}") for reason, count in _ordered(self.rejections)),
            *((f"skipped: {reason}", f"{count:,}") for reason, count in _ordered(self.skipped)),
            *((f"retried: {reason}", f"{count:,}") for reason, count in _ordered(self.run.retried)),
            ("requests, this run", f"{self.run.requests:,}"),
            ("prompt tokens", f"{self.run.spent.prompt:,}"),
            ("completion tokens", f"{self.run.spent.completion:,}"),
        ]
        if self.run.cost:
            rows.append(("cost", f"{self.run.cost:.4g}"))
        rows.append(("seconds, this run", f"{self.run.seconds:.1f}"))
        if self.run.stopped:
            rows.append(("stopped", self.run.message))
        return rows

    def write(self, path: Path) -> tuple[Path, Path]:
        """Write the table (Markdown) and, beside it, the plot of accepted passages by round (PNG); returns both paths.

        ``path`` is the table's file, or a folder (a name without a suffix) that gets ``report.md`` and ``report.png``.

        Raises:
            MissingExtraError: matplotlib is not installed.
            SynthesisError: the files cannot be written.
        """
        table = path / "report.md" if path.is_dir() or not path.suffix else path.with_suffix(".md")
        plot = table.with_suffix(".png")
        try:
            table.parent.mkdir(parents=True, exist_ok=True)
            rows = "\n".join(f"| {name.strip()} | {value} |" for name, value in self.rows())
            picture = f"![accepted passages by round]({plot.name})"
            table.write_text(f"# Synthesis report\n\n| | |\n|---|---:|\n{rows}\n\n{picture}\n", "utf-8")
            _draw(self, plot)
        except OSError as error:
            raise SynthesisError(
                f"the report {os.fspath(table)} cannot be written: {error.strerror or error}"
            ) from None
        return table, plot


def _draw(report: SynthReport, path: Path) -> None:
    # Imported when needed: it takes longer than everything else here. The Figure alone needs no display.
    library = optional("matplotlib.figure", package="matplotlib", extra="synth")
    rounds = list(range(1, max(report.accepted_by_round, default=1) + 1))
    counts = [report.accepted_by_round.get(number, 0) for number in rounds]
    figure = library.Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    bars = axes.bar(rounds, counts, color="#3b6ea5")
    axes.bar_label(bars)
    axes.set_xlabel("round in which the passage was accepted")
    axes.set_ylabel("passages")
    axes.locator_params(integer=True)
    axes.set_title(f"{report.accepted:,} accepted, {sum(report.dropped.values()):,} dropped")
    figure.savefig(path, dpi=120)


def _ordered(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _share(part: int, whole: int) -> str:
    return f" ({part / whole:.1%})" if whole else ""


def _mean(total: int, count: int) -> str:
    return f"{total / count:.2f}" if count else "–"
