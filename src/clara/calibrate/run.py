"""``clara calibrate``: from a checkpoint and records to a checkpoint that says what was measured.

Weights first, which are made without a training step: a mean of adapters, a text reader, spans, the query side. Each of
their functions reads a checkpoint's folder and writes another; what was measured with the old weights is kept and named
in ``trained.not_remeasured``. Then how passages are found and read (``decoding``). A setting that was not asked for
stays as it was.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors.torch import save_file

from clara.calibrate.decoding import Bench, Sample, draw, measure, right_answers_needed
from clara.data import DataRecord
from clara.data.neighbours import passages_of
from clara.errors import CheckpointError, InputError
from clara.model import ClaraModel, checkpoint
from clara.model.backbone import ADAPTER, plain_ids, read_tensors
from clara.model.checkpoint import Manifest
from clara.model.clara_model import find_checkpoint
from clara.model.create import Loaded, from_checkpoint
from clara.model.hub.base import Progress
from clara.model.placement import natural_dtype
from clara.model.reader import read_reader_manifest
from clara.train.data import Window, questions_of, within_window
from clara.train.start import WHITENING_DOCUMENTS, WHITENING_QUESTIONS, whiten_anew, whitening_needs

_ADAPTER_FILES = ("adapter_config.json", ADAPTER)

Part = Literal["spans", "queries", "latent-weight", "rerank", "contrast", "wording", "reading", "evidence"]
"""What can be calibrated, in the order in which it is done."""
_DECODING: frozenset[Part] = frozenset({"latent-weight", "rerank", "contrast", "wording", "reading", "evidence"})

_SECTION = "## Calibrated"


@dataclass(frozen=True, slots=True)
class CheckpointLoader:
    """How a checkpoint is loaded.

    Attributes:
        cache: folder for base weights and for memories of documents.
        base: the base model, where the checkpoint's own entry does not lead to it.
        device: torch device.
        progress: told about downloads.
    """

    cache: Path
    base: str | None = None
    device: str = "cpu"
    progress: Progress | None = None

    def load(self, folder: Path) -> Loaded:
        """A checkpoint's network, its adapters in float32."""
        return from_checkpoint(
            folder,
            self.cache,
            base_name=self.base,
            dtype=natural_dtype(self.device),
            adapter_dtype=torch.float32,
            device=self.device,
            progress=self.progress,
        )


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to calibrate.

    Attributes:
        only: parts; None for all that the checkpoint supports: decoding, and a query side where it has none. Spans
            are cut anew only where they are named.
        other: a checkpoint to average adapters with.
        share: of ``other``.
        reader: a text reader to attach.
        late: whether questions are compared by late interaction; None as the checkpoint does, by late interaction
            where it has no query side.
        keep: share of right answers that evidence keeps.
        limit: most questions.
        seed: of the sample.
    """

    only: frozenset[Part] | None = None
    other: str | None = None
    share: float = 0.5
    reader: Path | None = None
    late: bool | None = None
    keep: float = 0.95
    limit: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise InputError(f"keep must be above 0 and at most 1, got {self.keep}")
        if self.limit < 2:
            raise InputError(f"limit must be at least 2 questions, got {self.limit}")


@dataclass(frozen=True, slots=True)
class Calibrated:
    """The checkpoint written, if one was asked for, and its record (``trained["calibrated"]``) of this run's parts."""

    folder: Path | None
    measured: Mapping[str, Any]


def calibrate(
    name: str,
    records: Sequence[DataRecord],
    wanted: Wanted,
    source: CheckpointLoader,
    *,
    out: Path | None = None,
    data: Sequence[str] = (),
    tell: Progress = lambda *_: None,
    notice: Callable[[str], None] = lambda _: None,
) -> Calibrated:
    """Calibrate a checkpoint.

    Args:
        name: of the checkpoint, as ``ClaraModel.load`` takes it; native.
        records: what is asked, and the passages; none is needed where nothing but a mean or a reader is wanted.
        wanted: what to calibrate.
        source: how the checkpoint is loaded.
        out: where the result is written, whole or not at all; None only measures.
        data: names of the records' files, for the record.
        tell: told about progress.
        notice: told what a user should know.

    Raises:
        CheckpointError: a checkpoint or reader that cannot be read or does not fit, or ``out`` cannot be replaced.
        InputError: the records do not hold what is needed.
    """
    start = find_checkpoint(name, progress=source.progress)
    if not checkpoint.is_checkpoint(start):
        raise CheckpointError(f"{name} is in Apple's format; convert it first: clara convert {name} --out DIR")
    if out is not None:
        checkpoint.check_replaceable(out)
    with tempfile.TemporaryDirectory(prefix="clara-calibrate-") as scratch:
        run = _Calibration(start, records, wanted, source, Path(scratch), tell, notice)
        folder, parts = run.weights()
        manifest = run.decoding(folder, parts)
        date = datetime.now(UTC).date().isoformat()
        facts = {"date": date, "data": list(data), "records": len(records), "seed": wanted.seed}
        entries = {part: facts | entry for part, entry in run.entries.items()}
        manifest = _recorded(manifest, entries)
        if out is not None:
            with checkpoint.copying(folder, out, manifest, card=_card(_card_of(start), manifest)):
                pass
    return Calibrated(out, entries)


@dataclass(slots=True)
class _Calibration:
    """One call of ``calibrate``; ``entries`` is the record that it makes."""

    start: Path
    records: Sequence[DataRecord]
    wanted: Wanted
    source: CheckpointLoader
    scratch: Path
    tell: Progress
    notice: Callable[[str], None]
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)

    def weights(self) -> tuple[Path, frozenset[Part]]:
        """The folder with the weights wanted, and the parts that are to be calibrated with them."""
        parts = self._parts()
        if parts and not self.records:
            raise InputError(f"{', '.join(sorted(parts))} take records to measure on: give --data FILE")
        folder = self._combined()
        compressor = Path("adapters") / "compressor" / ADAPTER
        changed = "spans" in parts or not _equal(folder / compressor, self.start / compressor)
        if changed and "queries" not in parts:
            parts |= self._stale(folder)
        if "spans" in parts:
            folder = self._cut(folder)
        return (self._queried(folder) if "queries" in parts else folder), parts

    def _stale(self, folder: Path) -> frozenset[Part]:
        """The query side, where other memories make it stale and it can be made anew; a trained one is only named."""
        manifest = checkpoint.read_manifest(folder)
        if not (manifest.query_projection or "query_reasoner" in manifest.roles):
            return frozenset()  # questions go through the compressor as it is
        if not (manifest.query_projection and _derives_queries(folder)):
            self.notice("the query reasoner was trained with other memories: train stage end-to-end or retriever next")
            return frozenset()
        if not self.records:
            raise InputError("the mean has another compressor, so its query side is made anew: give --data FILE")
        return frozenset({"queries"})

    def _parts(self) -> frozenset[Part]:
        if self.wanted.only is not None:
            return self.wanted.only
        if not self.records and (self.wanted.other or self.wanted.reader):
            return frozenset()
        manifest = checkpoint.read_manifest(self.start)
        own = manifest.query_projection or "query_reasoner" in manifest.roles
        return _DECODING if own else _DECODING | {"queries"}

    def _combined(self) -> Path:
        """With the mean and the reader that were asked for."""
        folder = self.start
        if self.wanted.other is not None:
            other, made = find_checkpoint(self.wanted.other, progress=self.source.progress), self.scratch / "mean"
            _average(folder, other, self.wanted.share, made)
            self.entries["mean"] = {"from": self.wanted.other, "share": self.wanted.share}
            folder = made
        if self.wanted.reader is not None:
            _attach_reader(folder, self.wanted.reader, self.scratch / "reader")
            self.entries["text_reader"] = {"from": str(self.wanted.reader)}
            folder = self.scratch / "reader"
        return folder

    def _texts(self) -> list[str]:
        return list(dict.fromkeys(text for record in self.records for text in passages_of(record)))

    def _cut(self, folder: Path) -> Path:
        """With spans cut by information instead of length."""
        texts, made, loaded = self._texts(), self.scratch / "spans", self.source.load(folder)
        vocabulary = len(loaded.base.model.get_input_embeddings().weight)
        loaded.network.table.count((plain_ids(loaded.base.tokenizer, text) for text in texts), vocabulary)
        compression = loaded.manifest.compression.model_copy(update={"spans": "information"})
        manifest = loaded.manifest.unmeasured(compression=compression)
        checkpoint.save(loaded.network, manifest, made, card=_card_of(folder))
        self.entries["spans"] = {"value": "information", "passages": len(texts)}
        self.notice("memories change with their spans: documents must be indexed again, and the weights want training")
        return made

    def _queried(self, folder: Path) -> Path:
        """With a query side that was not trained: the compressor's weights and a whitened projection."""
        manifest, made = checkpoint.read_manifest(folder), self.scratch / "queries"
        texts = self._texts()[:WHITENING_DOCUMENTS]
        asked = [question.strip() for record in self.records for question in questions_of(record)[:1]]
        asked = random.Random(self.wanted.seed).sample(asked, min(len(asked), WHITENING_QUESTIONS))
        if not asked:
            raise InputError(
                "the records hold no question, which a query side is made from; give records that have some"
            )
        late = self.wanted.late
        late = (manifest.late_interaction or not manifest.query_projection) if late is None else late
        needed = whitening_needs(manifest.hidden_size, late=late)
        if min(len(texts), len(asked)) < needed:
            self.notice(
                f"to whiten questions well takes {needed} passages and as many questions; "
                f"the records have {len(texts)} and {len(asked)}"
            )
        loaded = self.source.load(folder)
        network = loaded.network.eval()
        network.adapters.reset_query_reasoner(seed=None)
        network.table.share_query_read_out()
        whiten_anew(loaded, texts, asked, self.source.cache, late=late)
        checkpoint.save(network, loaded.manifest.unmeasured(), made, card=_card_of(folder))
        compared = "late interaction" if late else "mean"
        self.entries["queries"] = {"value": compared, "passages": len(texts), "questions": len(asked)}
        self.notice("the checkpoint has another fingerprint: stores that it filled must be indexed again")
        return made

    def decoding(self, folder: Path, parts: frozenset[Part]) -> Manifest:
        """The manifest with how passages are found and read as measured."""
        manifest = checkpoint.read_manifest(folder)
        chosen = parts & _DECODING
        if "contrast" in chosen and not manifest.late_interaction:
            if self.wanted.only is not None:
                raise InputError("contrast needs late interaction, which the checkpoint has not: calibrate queries too")
            chosen -= {"contrast"}
        if not chosen:
            return manifest
        source, sample = self.source, self._sample(manifest)
        if len(sample.questions) < 2:
            raise InputError(f"the records hold {len(sample.questions)} usable questions, at least 2 are needed")
        model = ClaraModel.load(
            folder, base=source.base, device=source.device, cache=source.cache, progress=source.progress
        )
        bench = Bench(model, sample, self.scratch, self.tell)
        try:
            self._measure(bench, chosen)
        finally:
            bench.close()
        return bench.model.manifest

    def _sample(self, manifest: Manifest) -> Sample:
        """Questions with their passages cut to the window; of many records no more are cut than are asked."""
        compression, source, limit = manifest.compression, self.source, self.wanted.limit
        window = Window(source.base or manifest.base_model, compression.window_tokens, compression.rates)
        order = random.Random(self.wanted.seed).sample(self.records, len(self.records))
        kept: list[DataRecord] = []
        sample = draw(kept, limit, self.wanted.seed)
        for start in range(0, len(order), limit):
            kept += within_window(order[start : start + limit], window, source.cache, source.progress).records
            sample = draw(kept, limit, self.wanted.seed)
            if len(sample.questions) == limit:
                break
        return sample

    def _measure(self, bench: Bench, chosen: frozenset[Part]) -> None:
        for part in (one for one in get_args(Part) if one in chosen):
            found = measure(bench, part, self.wanted.keep)
            if not found:
                self.notice(f"{part} could not be measured: {_UNMEASURED[part]}; it stays as it was")
                continue
            entries = {name: one.entry() for name, one in found.items()}
            self.entries[part] = {"passages": len(bench.sample.passages), **entries.get(part, entries)}
            needed = right_answers_needed(self.wanted.keep) if part == "evidence" else 0
            for name, one in found.items():
                if one.questions < needed:  # a single right answer is more than may be lost
                    self.notice(
                        f"{name} stands on {one.questions} right answers, to keep {self.wanted.keep:g} of them takes "
                        f"at least {needed}: ask more questions (--limit), or keep a smaller share (--keep)"
                    )


def _card_of(folder: Path) -> str:
    """A checkpoint's card; empty if it has none."""
    card = folder / "README.md"
    return card.read_text(encoding="utf-8") if card.is_file() else ""


def _average(folder: Path, other: Path, share: float, out: Path) -> None:
    """Average a checkpoint's adapters with those of another, as a rule the one that its run started from.

    A last stage on new data is partly kept so: it loses less of what the start could do, and what it learnt is less
    noisy (Wortsman et al., Model soups, arXiv 2203.05482; LOG.md, 2026-11-28). LoRA factors are averaged as they are:
    runs from one start stay near enough for that.

    Raises:
        CheckpointError: the two differ in more than adapters, or one cannot be read.
        InputError: a share that cannot be.
    """
    if not 0 < share < 1:
        raise InputError(f"the share of {other} must lie between 0 and 1, got {share}")
    manifest, given = checkpoint.read_manifest(folder), checkpoint.read_manifest(other)
    if differing := _differing(manifest, given):
        raise CheckpointError(
            f"{folder} and {other} differ in {differing}; name a checkpoint and the one that its run started from"
        )
    if not _equal(folder / checkpoint.MEMORY, other / checkpoint.MEMORY):
        raise CheckpointError(
            f"expected equal memory tables ({checkpoint.MEMORY}) in {folder} and {other}; only adapters are averaged"
        )
    weights = {"kept": "average", "start": str(other), "share": share}
    made = manifest.unmeasured(trained={**manifest.trained, "weights": weights})
    with checkpoint.copying(folder, out, made, card=_card_of(folder)) as scratch:
        for role in manifest.roles:
            place = Path("adapters") / role / ADAPTER
            left, right = read_tensors(folder / place), read_tensors(other / place)
            if {name: t.shape for name, t in left.items()} != {name: t.shape for name, t in right.items()}:
                raise CheckpointError(f"the adapters {role} of {folder} and {other} have other tensors")
            mean = {name: ((1 - share) * left[name].float() + share * right[name].float()) for name in left}
            stored = {name: tensor.to(left[name].dtype) for name, tensor in mean.items()}
            save_file(stored, scratch / place, metadata={"format": "pt"})


def _differing(one: Manifest, other: Manifest) -> str:
    """The settings without which a mean of adapters means nothing, where two checkpoints differ; empty if nowhere."""
    left, right = (
        {
            "base_identity": manifest.base_identity,
            **manifest.compression.model_dump(),
            "lora.rank": manifest.lora.rank,
            "lora.alpha": manifest.lora.alpha,
            "roles": " + ".join(manifest.roles),
        }
        for manifest in (one, other)
    )
    return ", ".join(f"{name} ({left[name]} and {right[name]})" for name in left if left[name] != right[name])


def _equal(first: Path, second: Path) -> bool:
    left, right = read_tensors(first), read_tensors(second)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def _attach_reader(folder: Path, reader: Path, out: Path) -> None:
    """Give a checkpoint a text reader (``clara train reader``), which answers from passages' text.

    Raises:
        CheckpointError: the reader cannot be read, was trained without context, or does not fit the checkpoint.
    """
    manifest, found = checkpoint.read_manifest(folder), read_reader_manifest(reader)
    if found.context != "text":
        raise CheckpointError(f'{reader} was trained without context (closed book); reader_context = "text" is needed')
    if found.base_identity != manifest.base_identity:
        raise CheckpointError(
            f"{reader} was trained on {found.base_model} ({found.base_identity}), {folder} on "
            f"{manifest.base_model} ({manifest.base_identity}); train a reader on the same base model"
        )
    if (found.lora.rank, found.lora.alpha) != (manifest.lora.rank, manifest.lora.alpha):
        raise CheckpointError(
            f"{reader} has LoRA rank {found.lora.rank} and alpha {found.lora.alpha}, {folder} has "
            f"{manifest.lora.rank} and {manifest.lora.alpha}; train a reader with the checkpoint's"
        )
    roles = tuple(role for role in manifest.roles if role != "text_reader")
    refuses = manifest.refuses or found.refuses
    made = manifest.unmeasured(roles=(*roles, "text_reader"), refuses=refuses)
    with checkpoint.copying(folder, out, made, card=_card_of(folder)) as scratch:
        place = scratch / "adapters" / "text_reader"
        place.mkdir(exist_ok=True)
        for name in _ADAPTER_FILES:
            if not (reader / name).is_file():
                raise CheckpointError(f"{reader} has no {name}")
            shutil.copyfile(reader / name, place / name)


def _derives_queries(folder: Path) -> bool:
    """Whether a checkpoint's questions go through the compressor itself, so that no trained reasoner would be lost."""
    manifest = checkpoint.read_manifest(folder)
    if manifest.query_read_out:
        return False
    if "query_reasoner" not in manifest.roles:
        return True
    adapters = folder / "adapters"
    return _equal(adapters / "compressor" / ADAPTER, adapters / "query_reasoner" / ADAPTER)


_UNMEASURED: Mapping[Part, str] = {
    "latent-weight": "of no question a gold passage is known",
    "rerank": "of no question a gold passage is known",
    "evidence": "no answer that is a quotation was right",
}


def _recorded(manifest: Manifest, entries: Mapping[str, Any]) -> Manifest:
    """With the record, and without the marks of what was measured again."""
    fields = {part.replace("-", "_") for part in entries}
    rule = manifest.reading
    if rule is not None and "evidence" not in entries and (rule.text_evidence, rule.memory_evidence) != (None, None):
        fields -= {"reading"}  # half of it is as it was
    trained = manifest.trained | {"calibrated": manifest.trained.get("calibrated", {}) | dict(entries)}
    left = [name for name in trained.pop("not_remeasured", ()) if name not in fields]
    return manifest.model_copy(update={"trained": trained | ({"not_remeasured": left} if left else {})})


def _card(card: str, manifest: Manifest) -> str:
    """The card with a section that says what was calibrated."""
    before, _, rest = card.partition(f"{_SECTION}\n")
    after = rest[rest.index("\n## ") + 1 :] if "\n## " in rest else ""
    lines = [_SECTION, "", "| what | value | before | measure | of each candidate | questions | date |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for part, entry in manifest.trained["calibrated"].items():
        rows = {part: entry} | {f"{part}, {key}": one for key, one in entry.items() if isinstance(one, dict)}
        lines += [_row(name, row, entry["date"]) for name, row in rows.items() if "value" in row or "from" in row]
    return "\n\n".join(part.strip("\n") for part in (before, "\n".join(lines), after) if part.strip()) + "\n"


def _row(name: str, entry: Mapping[str, Any], date: str) -> str:
    value = entry.get("value", f"{entry.get('from')} {entry.get('share', '')}".strip())
    figures = ", ".join(f"{one}: {figure:.3f}" for one, figure in entry.get("candidates", {}).items())
    cells = (name, value, entry.get("was", ""), entry.get("metric", ""), figures, entry.get("questions", ""), date)
    return f"| {' | '.join(map(str, cells))} |"
