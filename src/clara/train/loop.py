"""The training loop of every stage: Hugging Face's Trainer over planned batches, and the best weights.

Adds to the Trainer: only trained weights are saved, a checkpoint counts only once it is whole, held-out records are
measured at intervals, the best weights are kept, and several processes together do exactly what one would
(``processes``). Optimiser and random states are the Trainer's; native checkpoints ``model.checkpoint``'s.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from clara.errors import ConfigError, TrainingError
from clara.model.attention import enable_packing
from clara.model.checkpoint import MANIFEST
from clara.model.decoder import Decoder
from clara.train.batch import Batch
from clara.train.config import TrainConfig
from clara.train.data import PlannedBatches
from clara.train.log import RunLog, TrainProgress
from clara.train.objective import Losses
from clara.train.processes import ALONE, Processes
from clara.train.stages.base import Stage
from clara.train.validation import HeldOut, Validation, measure

_WHOLE = "whole"
"""Name of the empty file that is written into a checkpoint last."""

_WEIGHTS = "trained.safetensors"
_BEST = "best.safetensors"
_SCORES = "scores"
_KEPT_CHECKPOINTS = 2

_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}
"""Transformers' names of ``TrainConfig.schedule``, all after a warmup."""

_REPORTED = ("cross_entropy", "mse", "learning_rate", "samples_per_second")
_OWN = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-\d+")


@dataclass(frozen=True, slots=True)
class Best:
    """The best step so far: its held-out loss, nats a label token, and its quality.

    ``quality``: F1 of held-out answers, or Recall@5 of held-out questions; None where neither was measured.
    """

    step: int
    loss: float
    quality: float | None

    @classmethod
    def read(cls, folder: Path) -> Best | None:
        """The best step of a run so far; None if there is none (TrainingError: the file is damaged)."""
        path = folder / _BEST
        if not path.is_file():
            return None
        try:
            with safe_open(path, "pt") as file:
                return cls(**json.loads(file.metadata()[_SCORES]))
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise TrainingError(f"{path} cannot be read ({error}); remove it, and the run goes on without it") from None

    def beats(self, other: Best, *, by: str) -> bool:
        """Compare by quality, then by loss; or by loss alone (``by="loss"``)."""
        if by == "loss" or self.quality is None or other.quality is None:
            return self.loss < other.loss
        return (self.quality, -self.loss) > (other.quality, -other.loss)


def _restore(network: nn.Module, path: Path) -> None:
    tensors, own = load_file(path), _trained(network)
    if own.keys() != tensors.keys():
        odd = sorted(own.keys() ^ tensors.keys())
        raise TrainingError(f"{path} does not fit this run: {odd[0]} is in one of them only; use the run's own config")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(tensors[name])


def _save_best(folder: Path, state: Mapping[str, Tensor], best: Best) -> None:
    """Replace a run's best weights atomically."""
    target = folder / _BEST
    scratch = target.with_suffix(".tmp")
    save_file(dict(state), scratch, metadata={_SCORES: json.dumps(asdict(best))})
    _settle([scratch])
    scratch.replace(target)


def _settle(paths: Sequence[Path]) -> None:
    for path in filter(Path.is_file, paths):
        with path.open("rb") as handle:
            os.fsync(handle.fileno())


def _trained(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


class StageModule(nn.Module):
    """A network with its stage's loss as the forward pass, as the Trainer and DDP call it."""

    def __init__(self, network: Decoder, stage: Stage) -> None:
        super().__init__()
        self.network = network
        self._stage = stage
        self._autocast = network.adapters.bare().dtype == torch.bfloat16

    def forward(self, batch: Batch) -> Losses:
        with torch.autocast(batch.labels.device.type, torch.bfloat16, enabled=self._autocast):
            return self._stage.loss(self.network, batch)


def _only(items: list[Batch]) -> dict[str, Batch]:
    """Collate a data loader's item, a whole batch already, into the mapping that the Trainer expects."""
    return {"batch": items[0]}


@dataclass(frozen=True, slots=True)
class TrainRun:
    """Parameters of the loop beside the network; ``folder`` gets checkpoints, the best weights and the log."""

    stage: Stage
    folder: Path
    processes: Processes = ALONE
    held_out: HeldOut | None = None
    on_progress: Callable[[TrainProgress], None] | None = None

    @property
    def config(self) -> TrainConfig:
        return self.stage.config


class _StageTrainer(Trainer):  # type: ignore[misc]  # transformers is untyped here
    """Trainer over whole batches that saves trained weights only."""

    def __init__(self, module: StageModule, *, log: RunLog, run: TrainRun, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(model=module, data_collator=_only, **kwargs)
        self._log, self._run = log, run
        if self.sharded and run.config.held_out_answers:
            raise ConfigError(
                f"held_out_answers is {run.config.held_out_answers}, but answers cannot be generated from weights that "
                "are shared out between processes (FSDP, ZeRO-3); set held_out_answers = 0"
            )

    @property
    def sharded(self) -> bool:
        """No process holds all of the weights."""
        plugin = self.accelerator.state.deepspeed_plugin if self.is_deepspeed_enabled else None
        return bool(self.is_fsdp_enabled) or (plugin is not None and plugin.zero_stage == 3)

    def get_train_dataloader(self) -> DataLoader[Batch]:
        """Batches in planned order; the Trainer skips those that a resumed run has done."""
        loader: DataLoader[Batch] = DataLoader(self.train_dataset, batch_size=1, shuffle=False, collate_fn=_only)
        return loader

    def compute_loss(self, model: nn.Module, inputs: dict[str, Batch], **_: Any) -> Tensor:  # noqa: ANN401
        losses: Losses = model(**inputs)
        batch = inputs["batch"]
        ce, mse = (float(part.detach()) for part in (losses.cross_entropy, losses.mse))
        self._log.add(ce, mse, tokens=batch.tokens(), samples=len(batch.decoder_ids))
        return losses.total

    def get_batch_samples(self, *given: Any, **named: Any) -> tuple[list[dict[str, Batch]], Any]:  # noqa: ANN401
        """The passes of a step, each with its share of the step."""
        passes, items = super().get_batch_samples(*given, **named)
        shared = _with_shares([one["batch"] for one in passes], self._run.processes, self.args.device)
        return [{"batch": batch} for batch in shared], items

    def _prepare_inputs(self, inputs: dict[str, Batch]) -> dict[str, Batch]:
        return {"batch": inputs["batch"].to(self.args.device)}

    def create_optimizer(self, *_: Any) -> torch.optim.Optimizer:  # noqa: ANN401
        self.optimizer = self._run.stage.optimizer(self.model.network)
        return self.optimizer

    def save_best(self, best: Best) -> None:
        """Replace the run's best weights; every process must call it."""
        whole = self.accelerator.get_state_dict(self.model_wrapped) if self.sharded else None
        if self._run.processes.first:
            with _disk(self._run.folder):
                _save_best(self._run.folder, self._state(whole), best)

    def _state(self, whole: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """The trained weights, from ``whole`` where this process holds only shards of them."""
        trained: Mapping[str, Tensor] = _trained(self.model.network)
        if whole:
            trained = {name: whole[f"network.{name}"] for name in trained}
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in trained.items()}
        for name, tensor in state.items():
            if not bool(tensor.isfinite().all()):
                raise _diverged(f"after step {self.state.global_step} {name} has values that are not finite")
        return state

    def _save(self, output_dir: str | None = None, state_dict: Mapping[str, Tensor] | None = None) -> None:
        if not self._run.processes.first:
            return
        target = Path(output_dir or self.args.output_dir)
        target.mkdir(parents=True, exist_ok=True)
        # Only the trained part of the Trainer's state: the whole of it includes the frozen base.
        save_file(self._state(state_dict), target / _WEIGHTS)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:  # noqa: ANN401
        with _disk(self._run.folder):
            super()._save_checkpoint(model, trial)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        del model
        _restore(self.model.network, Path(resume_from_checkpoint) / _WEIGHTS)


def _diverged(what: str) -> TrainingError:
    """The advice after a loss or a weight that is not finite; earlier checkpoints stay as they are."""
    return TrainingError(
        f"the run has diverged: {what}; train anew, in another folder, with a lower learning_rate or a longer warmup"
    )


@contextmanager
def _disk(folder: Path) -> Iterator[None]:
    """Turn a failed write into advice; earlier checkpoints stay whole."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"a checkpoint in {folder} cannot be written ({error}); make room, and the same command goes on from the "
            "last whole one"
        ) from error


def _with_shares(
    passes: Sequence[Batch], processes: Processes = ALONE, device: torch.device | None = None
) -> list[Batch]:
    """The passes of a step on one process, each with its share of all passes on all processes.

    The Trainer takes means over passes and processes; losses times their share make those the means over the step's
    labels and texts. A whole batch stays as it is.
    """
    if processes.count * len(passes) <= 1:
        return list(passes)
    labels = [float(batch.weights.sum()) for batch in passes]
    texts = [float(len(batch.text_index)) for batch in passes]
    sums = processes.mean([sum(labels), sum(texts)], device)
    mean_labels, mean_texts = (total / len(passes) for total in sums)
    return [
        replace(batch, label_share=own / mean_labels, text_share=read / mean_texts if mean_texts else 1.0)
        for batch, own, read in zip(passes, labels, texts, strict=True)
    ]


class _Watch(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Logs each step, validates, keeps the best weights, and marks checkpoints that are whole."""

    def __init__(self, trainer: _StageTrainer, module: StageModule, log: RunLog, run: TrainRun) -> None:
        self._trainer, self._module, self._log, self._run = trainer, module, log, run
        self._best = Best.read(run.folder)
        self._rate = 0.0

    def on_step_begin(self, *_: Any, lr_scheduler: Any, **__: Any) -> None:  # noqa: ANN401
        self._rate = float(lr_scheduler.get_last_lr()[0])

    def on_step_end(self, _args: TrainingArguments, state: TrainerState, _control: TrainerControl, **_: Any) -> None:  # noqa: ANN401
        step, config = int(state.global_step), self._run.config
        due = step % config.evaluate_every == 0 or step == config.steps
        progress = self._log.step(step, learning_rate=self._rate, validation=self._validated(step) if due else None)
        if not math.isfinite(progress.cross_entropy):  # the same number in every process
            raise _diverged(f"the loss of step {step} is {progress.cross_entropy}")
        if config.report_to:
            self._trainer.log(_reported(progress))

    def _validated(self, step: int) -> Validation | None:
        if self._run.held_out is None:
            return None
        module = self._module
        scores = measure(module.network, lambda batch: float(module(batch).cross_entropy), self._run.held_out)
        best = Best(step=step, loss=scores.loss, quality=scores.quality)
        # The first process decides: the others may have rounded otherwise.
        beats = self._best is None or best.beats(self._best, by=self._run.config.best_by)
        if self._run.processes.agreed(beats, self._trainer.args.device):
            self._best = best
            self._trainer.save_best(best)
        return scores

    def on_save(self, args: TrainingArguments, state: TrainerState, _control: TrainerControl, **_: Any) -> None:  # noqa: ANN401
        self._run.processes.wait()  # every process writes its random state
        folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        if self._run.processes.first:
            with _disk(self._run.folder):
                _settle(sorted(folder.rglob("*")))
                (folder / _WHOLE).touch()


def _reported(progress: TrainProgress) -> dict[str, float]:
    """A step's figures for TensorBoard and the like."""
    values = {name: getattr(progress, name) for name in _REPORTED}
    if progress.validation is not None:
        scores = asdict(progress.validation).items()
        values |= {f"eval_{name}": value for name, value in scores if isinstance(value, float)}
    return values


def _last_whole_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end."""
    return max((path for path in _checkpoints(folder) if (path / _WHOLE).is_file()), key=_step_of, default=None)


def _checkpoints(folder: Path) -> list[Path]:
    """The checkpoints to resume from in a run's folder; other folders with such a name are the user's."""
    paths = (path for path in folder.iterdir() if _OWN.fullmatch(path.name) and path.is_dir())
    return [path for path in paths if not (path / MANIFEST).is_file()]


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


@dataclass(frozen=True, slots=True)
class TrainedWeights:
    """A finished run's file of the best weights, or the last where ``best`` is None.

    ``sharded``: the network no longer holds whole weights.
    """

    path: Path
    best: Best | None
    sharded: bool

    def put_into(self, network: nn.Module) -> None:
        """Restore them; ``TrainingError`` if the run trains other parameters."""
        _restore(network, self.path)


def run(network: Decoder, batches: PlannedBatches, given: TrainRun) -> TrainedWeights:
    """Train to the end, from the last whole checkpoint in the run's folder if there is one; changes the network.

    Raises:
        TrainingError: a checkpoint cannot be written, or does not fit.
        ConfigError: the settings do not fit the way the processes share the weights.
    """
    config, folder, processes = given.config, given.folder, given.processes
    device = network.adapters.bare().device
    enable_packing(network.adapters.bare())
    if config.gradient_checkpointing:
        network.adapters.recompute_layers()
    module = StageModule(network, given.stage)
    log = RunLog(folder, config, given.on_progress, processes=processes, device=device)
    trainer = _StageTrainer(module, log=log, run=given, args=_arguments(config, folder, device), train_dataset=batches)
    trainer.add_callback(_Watch(trainer, module, log, given))
    trainer.remove_callback(PrinterCallback)  # a library does not print
    if processes.first:
        for path in _checkpoints(folder):  # what is torn would be counted among those to keep
            if not (path / _WHOLE).is_file():
                shutil.rmtree(path)
    processes.wait()
    last = _last_whole_checkpoint(folder)
    log.rewind(0 if last is None else _step_of(last))
    trainer.train(resume_from_checkpoint=None if last is None else str(last))
    processes.wait()
    best = Best.read(folder) if config.keep == "best" else None
    if best is not None:
        return TrainedWeights(folder / _BEST, best, trainer.sharded)
    last = _last_whole_checkpoint(folder)
    if last is None:
        raise TrainingError(f"{folder} holds no whole checkpoint after the last step; it was removed meanwhile")
    return TrainedWeights(last / _WEIGHTS, None, trainer.sharded)


def _arguments(config: TrainConfig, folder: Path, device: torch.device) -> TrainingArguments:
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=config.steps,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=config.accumulation,
        lr_scheduler_type=_SCHEDULES[config.schedule],
        learning_rate=config.learning_rate,
        warmup_steps=round(config.warmup * config.steps),
        max_grad_norm=config.max_grad_norm,
        save_strategy="steps",
        save_steps=config.save_every,
        save_total_limit=_KEPT_CHECKPOINTS,
        logging_strategy="no",
        report_to=list(config.report_to),
        disable_tqdm=True,
        seed=config.seed,
        use_cpu=device.type == "cpu",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    # One process trains on one device; the Trainer would divide its batch among all GPUs that it sees.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments
