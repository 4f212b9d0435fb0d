"""A whole training stage: data and settings in, a native checkpoint out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from clara import prompts
from clara.data import DataRecord, PassageQA
from clara.errors import TrainingError
from clara.model import checkpoint
from clara.model.backbone import load_base
from clara.model.create import DTYPES, Loaded, fresh, from_checkpoint
from clara.model.hub import Progress as HubProgress
from clara.model.prompting import Prompter
from clara.train.batch import Collator
from clara.train.card import model_card
from clara.train.config import Stage, TrainConfig
from clara.train.loop import Progress, run
from clara.train.plan import PlannedBatches, TrainingData, divide, held_out_batches

RUN_CONFIG = "config.json"
CALIBRATION_TEXTS = 32


def train(
    stage: Stage,
    records: Sequence[DataRecord],
    config: TrainConfig,
    out: Path,
    *,
    cache: Path,
    device: str = "cpu",
    tell: Callable[[Progress], None] | None = None,
    hub_progress: HubProgress | None = None,
) -> Path:
    """Train a stage and write ``out/checkpoint``; goes on where a run with the same settings in ``out`` stopped.

    Args:
        stage: which stage.
        records: training records; those the stage cannot use are counted in the card.
        config: the run.
        out: folder of the run: resumable checkpoints, ``log.jsonl``, ``config.json`` and the final checkpoint.
        cache: folder for base weights.
        device: for the model.
        tell: told after each step.
        hub_progress: told about downloads.

    Returns:
        The folder of the native checkpoint.

    Raises:
        TrainingError: nothing to train on, or ``out`` holds a run with other settings.
    """
    data = divide(records, stage, config)
    claim(out, stage, config)
    loaded = _start(data, config, cache, device, hub_progress)
    config = config.model_copy(update={"compression": loaded.manifest.compression})
    collator = Collator(Prompter(loaded.base.tokenizer), window_tokens=config.compression.window_tokens)
    batches = PlannedBatches(data, stage, config, collator)
    run(loaded.network, batches, held_out_batches(data, stage, config, collator), config, out, tell=tell)
    trained = {
        "steps": config.steps,
        "examples": config.steps * config.batch_size,
        "records": {name: len(rows) for name, rows in sorted(data.sources.items())},
        "config": config.model_dump(mode="json"),
    }
    manifest = loaded.manifest.model_copy(update={"stage": stage, "trained": trained})
    target = out / "checkpoint"
    checkpoint.save(loaded.network, manifest, target, card=model_card(manifest, data.rejected))
    return target


def claim(out: Path, stage: Stage, config: TrainConfig) -> None:
    """Make ``out`` the folder of this run, or make sure that it already is.

    Raises:
        TrainingError: a run with other settings is in it.
    """
    text = f'{{"stage": "{stage}", "config": {config.model_dump_json()}}}\n'
    path = out / RUN_CONFIG
    if path.is_file():
        if path.read_text(encoding="utf-8") != text:
            raise TrainingError(f"{out} holds a run with other settings; choose another --out, or remove that folder")
        return
    out.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".tmp")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)


def _start(data: TrainingData, config: TrainConfig, cache: Path, device: str, progress: HubProgress | None) -> Loaded:
    dtype = DTYPES[config.dtype]
    if config.start is not None:
        loaded = from_checkpoint(
            Path(config.start), cache, dtype=dtype, adapter_dtype=DTYPES["fp32"], device=device, progress=progress
        )
    else:
        base = load_base(config.base, cache, dtype=dtype, device=device, progress=progress)
        loaded = fresh(base, config.compression, config.lora, _samples(data), seed=config.seed)
    if loaded.manifest.compression.input_format == "official":
        raise TrainingError(
            f"{config.start} is in Apple's input format, which can be used but not trained here; start from a native "
            "checkpoint or from a base model"
        )
    rates = loaded.manifest.compression.rates
    if config.rate_weights and len(config.rate_weights) != len(rates):
        raise TrainingError(f"rate_weights needs one weight for each rate of {config.start}: {rates}")
    for role in ("compressor", "generator"):
        for parameter in loaded.network.adapters.parameters_of(role):
            parameter.requires_grad = True
    return loaded


def _samples(data: TrainingData) -> list[str]:
    texts = []
    for rows in data.sources.values():
        for record in rows[:CALIBRATION_TEXTS]:
            if isinstance(record, PassageQA):
                texts.append(prompts.passage_text(record.title, record.text))
            else:
                texts.extend(prompts.passage_text(doc.title, doc.text) for doc in record.docs[:1])
    return texts[:: max(1, len(texts) // CALIBRATION_TEXTS)][:CALIBRATION_TEXTS]
