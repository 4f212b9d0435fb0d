"""A training run: data and a stage with its settings in, a checkpoint out."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from clara.data import DataRecord
from clara.data.parsing import to_json
from clara.errors import ConfigError, TrainingError
from clara.model.create import Loaded
from clara.model.hub.base import Progress as HubProgress
from clara.train.backbones import check_backbone, training_memory
from clara.train.config import TrainConfig
from clara.train.data import PlannedBatches, TrainingData, divide, held_out_examples, within_window
from clara.train.documents import Documents
from clara.train.log import TrainProgress, add_curves
from clara.train.loop import TrainedWeights, TrainRun, run
from clara.train.processes import check_device, joined
from clara.train.stages.base import Stage
from clara.train.start import WHITENING_QUESTIONS, derive_queries, whiten
from clara.train.validation import asked_questions, held_out

_RUN_CONFIG = "config.json"
_LOCK_FILE = ".lock"
_KEPT = "kept"
"""In the cache folder: answers and likelihoods by frozen networks."""


def train(  # noqa: PLR0913 - four callbacks
    stage: Stage,
    records: Sequence[DataRecord],
    out: Path,
    *,
    cache: Path,
    device: str = "cpu",
    on_progress: Callable[[TrainProgress], None] | None = None,
    hub_progress: HubProgress | None = None,
    on_unused: Callable[[Mapping[str, int]], None] = lambda _: None,
    on_notice: Callable[[str], None] = lambda _: None,
) -> Path:
    """Train a stage and write ``out/checkpoint``, or ``out/reader`` in stage ``reader``; returns that folder.

    Resumes the run with the same settings and data that stopped in ``out``, which also holds resumable checkpoints,
    ``log.jsonl`` and ``config.json``. ``cache`` is the folder of base weights, and of memories, answers and likelihoods
    that several runs may need. Before the first step ``on_unused`` gets the unusable records, counted by reason, and
    ``on_notice`` the memory estimate and stale parts of the start checkpoint.

    Raises:
        ConfigError: the settings do not fit the stage, the data or what they name.
        TrainingError: nothing to train on, or ``out`` holds a run with other settings or data, or one that goes on.
    """
    check_device(device)
    _check_run(stage, records)
    cut = within_window(records, stage.window(), cache, hub_progress)
    prompt = check_backbone(stage, cut.longest_question, cache)
    data = divide(cut.records, stage, left_out=cut.left_out)
    stage = stage.in_steps(sum(map(len, data.sources.values())))
    on_unused(data.rejected)
    on_notice(training_memory(stage, data, prompt, cache, device).summary())
    with joined(device) as processes, ExitStack() as kept:
        processes.check(stage.config.batch_size, stage.config.accumulation)
        if processes.first:
            kept.enter_context(_claimed(out, stage, records))
        processes.wait()
        loaded = stage.network(data, cache, device, hub_progress)
        carried = stage.carried(loaded, data)
        facts = stage.facts(loaded) | ({"carried": list(carried.notices)} if carried.notices else {})
        for notice in carried.notices:
            on_notice(notice)
        stage = stage.as_loaded(loaded)
        documents = stage.documents(loaded, cache)
        collator = stage.collator(loaded, documents, cache / _KEPT)
        taught = stage.training_collator(collator, loaded, cache / _KEPT)
        batches = PlannedBatches(data, stage, taught, processes=processes)
        if documents is not None or stage.whitens(loaded):
            texts = _texts_by_rate(batches, data, stage)
            if documents is not None:
                documents.prepare(texts, hub_progress, share=processes)
                processes.wait()
                documents.prepare(texts)  # finds those that the others computed
            if stage.whitens(loaded):
                asked = data.some_questions(WHITENING_QUESTIONS)
                whiten(loaded, documents or Documents(loaded, cache), texts, asked)
        kept_back = held_out(data, stage, collator, loaded.base.tokenizer)
        weights = run(loaded.network, batches, TrainRun(stage, out, processes, kept_back, on_progress))
        target = out / stage.writes
        if processes.first:
            if weights.sharded:  # no process has whole weights to write: make a network that has
                loaded = stage.network(data, cache, "cpu", hub_progress)
            weights.put_into(loaded.network)
            if carried.derives_queries:
                derive_queries(loaded, data, cache)
            _finish(loaded, weights, stage, data, facts, target)
        processes.wait()
    return target


def _check_run(stage: Stage, records: Sequence[DataRecord]) -> None:
    """Refuse contradictory settings, as they were given (ConfigError: names every fault)."""
    faults = [*stage.faults(), *_run_faults(records, stage.config)]
    if faults:
        raise ConfigError(f"stage {stage.name}: {len(faults)} fault(s): " + "; ".join(faults))


def _run_faults(records: Sequence[DataRecord], config: TrainConfig) -> Iterator[str]:
    known = {record.source for record in records}
    # A weight of 0 keeps a source out; that it is not there at all is no fault.
    unknown = sorted({name for name, weight in config.mix.items() if weight > 0} - known)
    if unknown:
        listed = ", ".join(sorted(known))
        yield f"mix names {', '.join(unknown)}, which no record has as its source (sources: {listed})"
    if config.held_out >= len(records) > 0:
        yield f"held_out is {config.held_out}, which leaves nothing of {len(records)} records to train on"
    missing = [name for name in config.report_to if importlib.util.find_spec(name) is None]
    if missing:
        yield f"report_to needs packages that are not installed: pip install {' '.join(missing)}"


def _texts_by_rate(batches: PlannedBatches, data: TrainingData, stage: Stage) -> dict[int, list[str]]:
    """The passages that a run needs memories of, by rate, each once."""
    texts: dict[int, dict[str, None]] = {rate: {} for rate in stage.config.compression.rates}
    plan = [(batches.rate(step), batches.examples(step)) for step in range(stage.config.steps)]
    kept_back = [*held_out_examples(data, stage), *(asked.example for asked in asked_questions(data, stage))]
    for rate, examples in [*plan, *((rate, kept_back) for rate in texts)]:
        for example in examples:
            texts[rate].update(dict.fromkeys(example.compressed))
    return {rate: list(some) for rate, some in texts.items()}


def _finish(
    loaded: Loaded[Any, Any],
    weights: TrainedWeights,
    stage: Stage,
    data: TrainingData,
    facts: Mapping[str, object],
    target: Path,
) -> None:
    config = stage.config
    trained = {
        "steps": config.steps,
        "examples": config.steps * config.batch_size,
        "records": {name: len(rows) for name, rows in sorted(data.sources.items())},
        **facts,
        "weights": {"kept": "last"} if weights.best is None else {"kept": "best", **asdict(weights.best)},
        "config": config.model_dump(mode="json"),
    }
    stage.save(loaded, trained, data.rejected, target)
    add_curves(target.parent, target)


@contextmanager
def _claimed(out: Path, stage: Stage, records: Sequence[DataRecord]) -> Iterator[None]:
    """Make ``out`` the folder of this run, or check that it is, and lock it.

    Raises:
        TrainingError: a run with other settings or other data is in it, or another process trains in it.
    """
    out.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(out / _LOCK_FILE, timeout=0).acquire()
    except Timeout:
        raise TrainingError(f"another process trains in {out}; wait until it ends, or choose another --out") from None
    with lock:
        _claim(out / _RUN_CONFIG, stage, records)
        yield


def finished(stage: Stage, records: Sequence[DataRecord], out: Path) -> bool:
    """A run is there to its end: its output folder, which is written whole and last.

    Raises:
        TrainingError: a run with other settings or other data is in ``out``.
    """
    if not (out / stage.writes).is_dir() or not (out / _RUN_CONFIG).is_file():
        return False
    _claim(out / _RUN_CONFIG, stage, records)
    return True


def _data_hash(records: Sequence[DataRecord]) -> str:
    """A hash of training records and their order: 16 hex digits."""
    digest = hashlib.sha256()
    for record in records:
        digest.update(json.dumps(to_json(record), sort_keys=True).encode() + b"\n")
    return digest.hexdigest()[:16]


def _claim(path: Path, stage: Stage, records: Sequence[DataRecord]) -> None:
    data = _data_hash(records)
    if path.is_file():
        differs = _difference(path, stage, data)
        if differs is not None:
            raise TrainingError(
                f"{path.parent} holds a run with other {differs}; choose another --out, or remove that folder"
            )
        return
    text = f'{{"stage": "{stage.name}", "data": "{data}", "config": {stage.config.model_dump_json()}}}\n'
    scratch = path.with_suffix(".tmp")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)


def _difference(path: Path, stage: Stage, data: str) -> str | None:
    """The difference of a run from the one in a folder, ``settings`` or ``data``.

    Settings, and the data's hash, may be missing in a run from before they existed; one from before settings had their
    stages holds those of all of them.
    """
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        own = {name: value for name, value in held["config"].items() if name in stage.Config.model_fields}
        settings = stage.Config.model_validate(own)
        if held["stage"] != stage.name or settings.model_dump() != stage.config.model_dump():
            return "settings"
        return "data" if held.get("data", data) != data else None
    except (ValueError, KeyError, TypeError, AttributeError):  # pydantic's errors are ValueErrors
        return "settings"
