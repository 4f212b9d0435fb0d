"""Settings of a training run that every stage has, checked whole before anything is loaded.

What only some stages know stands in their own files (``stages``). Recipes are TOML files with the settings of one
stage, or of several (``stages.stage_of``).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from clara.config import CompressionConfig, LoraSettings, Settings


class TrainConfig(Settings):
    """What every stage's settings begin with.

    Attributes:
        base: base model by name, folder or hub id; ignored when ``start`` names a checkpoint.
        compression: read-out and rates of a fresh start.
        lora: adapters of a fresh start.
        steps: optimisation steps.
        epochs: passes over the usable records, in place of ``steps``: as many examples as so many times the records.
        batch_size: examples a step.
        accumulation: forward passes a step; each takes ``batch_size / accumulation`` examples.
        learning_rate: peak, of the LoRA weights.
        table_learning_rate: peak, of memory-token embeddings and read-out gains.
        warmup: share of the steps with a rising rate.
        schedule: what follows: a fall to zero along a ``cosine`` or ``linear``, or a ``constant`` rate.
        gradient_checkpointing: keep no activations inside layers and compute them again in the backward pass: less
            memory, about a third more work, the same gradients.
        weight_decay: AdamW's.
        max_grad_norm: gradients are scaled down to this norm.
        reply_tokens: longest reply, in tokens; what is longer is cut there and has no end.
        mix: weight of each source in the data; a source that is not named has weight 1.
        held_out: examples kept back for the validation loss.
        held_out_answers: most questions of the held-out records that are answered at each validation, greedily.
        best_by: what makes weights the best so far: ``f1`` of those answers (Recall@5 in stage ``retriever``; a tie
            is decided by the loss, and so is all of it where nothing is answered), or the ``loss`` alone.
        keep: what the run's final checkpoint holds: the ``best`` weights or the ``last``. Where nothing is held out
            there is no best, and the last are kept.
        report_to: services that are told about each step, beside the log.
        seed: of everything random.
        save_every: steps between checkpoints to resume from.
        evaluate_every: steps between validations; the last step is always validated.
        dtype: of the frozen base and of matrix products; ``auto`` is bf16 where the device multiplies it faster,
            else fp32. ``int8`` and ``int4`` quantise the frozen base (QLoRA; the extra ``quantised``). Trained weights
            and their optimiser state stay fp32.
    """

    base: str = "smollm2-135m"
    compression: CompressionConfig = CompressionConfig()
    lora: LoraSettings = LoraSettings()
    steps: int = Field(default=1000, ge=1)
    epochs: float | None = Field(default=None, gt=0)
    batch_size: int = Field(default=16, ge=1)
    accumulation: int = Field(default=1, ge=1)
    learning_rate: float = Field(default=1e-4, gt=0)
    table_learning_rate: float = Field(default=1e-4, gt=0)
    warmup: float = Field(default=0.03, ge=0, lt=1)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    gradient_checkpointing: bool = False
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    reply_tokens: int = Field(default=96, ge=2)
    mix: dict[str, float] = Field(default_factory=dict)
    held_out: int = Field(default=64, ge=0)
    held_out_answers: int = Field(default=32, ge=0)
    best_by: Literal["f1", "loss"] = "f1"
    keep: Literal["best", "last"] = "best"
    report_to: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    seed: int = Field(default=0, ge=0)
    save_every: int = Field(default=50, ge=1)
    evaluate_every: int = Field(default=200, ge=1)
    dtype: Literal["auto", "bf16", "fp32", "int8", "int4"] = "auto"

    @model_validator(mode="after")
    def _check_division(self) -> TrainConfig:
        if self.epochs is not None and "steps" in self.model_fields_set:
            raise ValueError(f"steps {self.steps} and epochs {self.epochs} both say how long to train; give one")
        if self.batch_size % self.accumulation:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of accumulation {self.accumulation}")
        return self


class MemoryConfig(TrainConfig):
    """Settings of the stages that train a compressed model, and can go on from one.

    Attributes:
        start: checkpoint folder to go on from, or None for fresh adapters.
        rate_weights: how often each rate is drawn, in the order of ``compression.rates``; all equal when empty.
    """

    start: str | None = None
    rate_weights: tuple[float, ...] = ()

    @model_validator(mode="after")
    def _check_rates(self) -> MemoryConfig:
        fresh = self.start is None  # else the rates are the checkpoint's, which ``start`` compares them with
        if fresh and self.rate_weights and len(self.rate_weights) != len(self.compression.rates):
            raise ValueError(f"rate_weights needs one weight for each of the rates {self.compression.rates}")
        return self
