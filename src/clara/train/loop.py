"""The one training loop: Hugging Face's Trainer over planned batches, for every stage.

Adds to the Trainer what this project needs: only trained weights are saved, a checkpoint counts only once it is
whole, and losses and speed go to a callback and to ``log.jsonl``.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from clara.errors import TrainingError
from clara.model.network import Network
from clara.train.batch import Batch
from clara.train.config import TrainConfig
from clara.train.objective import Losses, generation_loss
from clara.train.plan import PlannedBatches

WEIGHTS = "trained.safetensors"
WHOLE = "whole"
"""Name of the empty file that is written into a checkpoint last."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What a run says after each step.

    Attributes:
        step: steps done.
        steps: steps in all.
        cross_entropy: nats a label token, of this step.
        mse: the MSE term, of this step.
        held_out: cross-entropy on the held-out examples, where it was measured at this step.
        samples_per_second: since this process started.
        tokens_per_second: tokens and memory slots read, since this process started.
        seconds_left: at that speed.
    """

    step: int
    steps: int
    cross_entropy: float
    mse: float
    held_out: float | None
    samples_per_second: float
    tokens_per_second: float
    seconds_left: float


class StageModule(nn.Module):
    """A network with its stage's loss as the forward pass, which is what the Trainer and DDP call."""

    def __init__(self, network: Network, config: TrainConfig) -> None:
        super().__init__()
        self.network = network
        self._mse_weight = config.mse_weight
        self._autocast = config.dtype == "bf16"

    def forward(self, batch: Batch) -> Losses:
        """Losses of one batch."""
        with torch.autocast(batch.labels.device.type, torch.bfloat16, enabled=self._autocast):
            return generation_loss(self.network, batch, mse_weight=self._mse_weight)


def _only(items: list[Batch]) -> dict[str, Batch]:
    """The data loader's items are whole batches already; the Trainer wants a mapping of arguments."""
    return {"batch": items[0]}


class StageTrainer(Trainer):  # type: ignore[misc]  # transformers is untyped here
    """Trainer over whole batches that saves trained weights only."""

    module: StageModule

    def __init__(self, module: StageModule, *, log: RunLog, config: TrainConfig, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(model=module, data_collator=_only, **kwargs)
        self._log, self._config = log, config

    def get_train_dataloader(self) -> DataLoader[Batch]:
        """Batches in planned order; the Trainer skips those that a resumed run has done."""
        loader: DataLoader[Batch] = DataLoader(self.train_dataset, batch_size=1, shuffle=False, collate_fn=_only)
        return loader

    def compute_loss(self, model: nn.Module, inputs: dict[str, Batch], **_: Any) -> Tensor:  # noqa: ANN401
        """The stage's loss, its parts noted for the log."""
        losses: Losses = model(**inputs)
        self._log.add(losses, inputs["batch"])
        return losses.total

    def _prepare_inputs(self, inputs: dict[str, Batch]) -> dict[str, Batch]:
        return {name: batch.to(self.args.device) for name, batch in inputs.items()}

    def create_optimizer(self, *_: Any) -> torch.optim.Optimizer:  # noqa: ANN401
        """AdamW with a learning rate of its own for the memory table."""
        table, lora = split_parameters(self.model.network)
        groups = [
            {"params": lora, "lr": self._config.learning_rate},
            {"params": table, "lr": self._config.table_learning_rate, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]], weight_decay=self._config.weight_decay, betas=(0.9, 0.98)
        )
        return self.optimizer

    def _save(self, output_dir: str | None = None, state_dict: Mapping[str, Tensor] | None = None) -> None:
        del state_dict  # the Trainer's whole state includes the frozen base
        target = Path(output_dir or self.args.output_dir)
        target.mkdir(parents=True, exist_ok=True)
        save_file(trained_state(self.model.network), target / WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        del model
        load_trained(self.model.network, Path(resume_from_checkpoint) / WEIGHTS)


def split_parameters(network: Network) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Trainable parameters: those of the memory table, and all others."""
    table = [p for p in network.table.parameters() if p.requires_grad]
    lora = [p for p in network.backbone.parameters() if p.requires_grad]
    return table, lora


def trained_state(network: Network) -> dict[str, Tensor]:
    """The parameters that training changes, by name."""
    return {name: p.detach().cpu().contiguous() for name, p in network.named_parameters() if p.requires_grad}


def load_trained(network: Network, path: Path) -> None:
    """Put back what ``trained_state`` gave.

    Raises:
        TrainingError: the file holds other parameters than this run trains.
    """
    tensors = load_file(path)
    own = {name: p for name, p in network.named_parameters() if p.requires_grad}
    if own.keys() != tensors.keys():
        odd = sorted(own.keys() ^ tensors.keys())
        raise TrainingError(f"{path} does not fit this run: {odd[0]} is in one of them only; use the run's own config")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(tensors[name])


class RunLog:
    """Collects the losses of a step and says them."""

    def __init__(self, path: Path, config: TrainConfig, tell: Callable[[Progress], None] | None) -> None:
        self._path, self._config, self._tell = path, config, tell
        self._parts: list[tuple[float, float]] = []
        self._tokens = self._samples = 0
        self._started = time.monotonic()
        self._first_step: int | None = None

    def rewind(self, step: int) -> None:
        """Drop what a killed run said after ``step``: those steps are done, and said, again."""
        if not self._path.is_file():
            return
        kept = []
        for line in self._path.read_text(encoding="utf-8").splitlines(keepends=True):
            # The last line may be torn; nothing after it counts.
            if not line.endswith("\n") or json.loads(line)["step"] > step:
                break
            kept.append(line)
        scratch = self._path.with_suffix(".tmp")
        scratch.write_text("".join(kept), encoding="utf-8")
        scratch.replace(self._path)

    def add(self, losses: Losses, batch: Batch) -> None:
        """Note one forward pass."""
        self._parts.append((float(losses.cross_entropy.detach()), float(losses.mse.detach())))
        self._tokens += batch.tokens()
        self._samples += len(batch.decoder_ids)

    def step(self, step: int, held_out: float | None) -> None:
        """Say what a finished step came to."""
        if self._first_step is None:
            self._first_step = step - 1
        seconds = time.monotonic() - self._started
        ce, mse = (sum(part[i] for part in self._parts) / max(1, len(self._parts)) for i in (0, 1))
        self._parts.clear()
        progress = Progress(
            step=step,
            steps=self._config.steps,
            cross_entropy=ce,
            mse=mse,
            held_out=held_out,
            samples_per_second=self._samples / seconds,
            tokens_per_second=self._tokens / seconds,
            seconds_left=(self._config.steps - step) * seconds / (step - self._first_step),
        )
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(progress)) + "\n")
        if self._tell is not None:
            self._tell(progress)


class _Watch(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Logs each step, measures the held-out loss, and marks checkpoints that are whole."""

    def __init__(self, log: RunLog, module: StageModule, held_out: Sequence[Batch], config: TrainConfig) -> None:
        self._log, self._module, self._held_out, self._config = log, module, held_out, config

    def on_step_end(self, _args: TrainingArguments, state: TrainerState, _control: TrainerControl, **_: Any) -> None:  # noqa: ANN401
        step = int(state.global_step)
        due = step % self._config.evaluate_every == 0 or step == self._config.steps
        self._log.step(step, held_out_loss(self._module, self._held_out) if due and self._held_out else None)

    def on_save(self, args: TrainingArguments, state: TrainerState, _control: TrainerControl, **_: Any) -> None:  # noqa: ANN401
        (Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}" / WHOLE).touch()


@torch.no_grad()
def held_out_loss(module: StageModule, batches: Sequence[Batch]) -> float:
    """Mean cross-entropy over label tokens, in evaluation mode; the mode is put back."""
    training = module.training
    module.eval()
    total = weight = 0.0
    for batch in batches:
        share = float(batch.weights.sum())
        total += float(module(batch).cross_entropy) * share
        weight += share
    module.train(training)
    return total / weight


def last_whole_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end; torn ones are removed."""
    found = []
    for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        if (path / WHOLE).is_file():
            found.append(path)
        else:
            shutil.rmtree(path)
    return max(found, key=_step_of, default=None)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def run(
    network: Network,
    batches: PlannedBatches,
    held_out: Sequence[Batch],
    config: TrainConfig,
    folder: Path,
    *,
    tell: Callable[[Progress], None] | None = None,
) -> None:
    """Train to the end, from the last whole checkpoint in ``folder`` if there is one.

    Args:
        network: its trainable parameters are those with ``requires_grad``; changed in place.
        batches: the run's batches.
        held_out: for the validation loss.
        config: the run.
        folder: for checkpoints and ``log.jsonl``.
        tell: told after each step.
    """
    module = StageModule(network, config)
    log = RunLog(folder / "log.jsonl", config, tell)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=config.steps,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=config.accumulation,
        lr_scheduler_type="cosine",
        learning_rate=config.learning_rate,
        warmup_steps=round(config.warmup * config.steps),
        max_grad_norm=config.max_grad_norm,
        save_strategy="steps",
        save_steps=config.save_every,
        save_total_limit=2,
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=config.seed,
        use_cpu=next(network.parameters()).device.type == "cpu",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    trainer = StageTrainer(
        module,
        log=log,
        config=config,
        args=arguments,
        train_dataset=batches,
        callbacks=[_Watch(log, module, held_out, config)],
    )
    trainer.remove_callback(PrinterCallback)  # a library does not print
    last = last_whole_checkpoint(folder)
    log.rewind(0 if last is None else _step_of(last))
    trainer.train(resume_from_checkpoint=None if last is None else str(last))
