"""Settings that every stage shares, checked whole before anything is loaded.

Those of one stage alone stand in ``stages``. Recipes are TOML files with the settings of one stage, or of several.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, FiniteFloat, model_validator

from clara.config import CompressionConfig, LoraSettings, Settings


class TrainConfig(Settings):
    """Settings of every stage.

    Attributes:
        base: base model by name, folder or hub id; ignored when ``start`` names a checkpoint.
        compression: read-out and rates of a fresh start.
        epochs: passes over the usable records, in place of ``steps``.
        accumulation: forward passes a step, of ``batch_size / accumulation`` examples each.
        learning_rate: peak, of the LoRA weights.
        table_learning_rate: peak, of memory-token embeddings and read-out gains.
        warmup: share of the steps with a rising rate.
        schedule: of the rate after the warmup; ``cosine`` and ``linear`` fall to zero.
        gradient_checkpointing: recompute activations in the backward pass: less memory, a third more work, the same
            gradients.
        reply_tokens: longest reply; a longer one is cut and has no end token.
        mix: weight of each source in the data, 1 unless named.
        held_out: records kept back for validation.
        held_out_answers: most held-out questions that are answered greedily at each validation.
        best_by: measure of the best weights: ``f1`` of those answers (Recall@5 in stage ``retriever``), ties decided by
            the loss; or the ``loss`` alone.
        keep: weights of the final checkpoint, ``best`` or ``last``; the last where nothing is held out.
        report_to: services that get each step's figures beside the log.
        save_every: steps between checkpoints to resume from.
        evaluate_every: steps between validations; the last step is always validated.
        dtype: of the frozen base and of matrix products; ``auto`` is bf16 where the device multiplies it faster, else
            fp32. ``int8`` and ``int4`` quantise the frozen base (QLoRA; extra ``quantised``). Trained weights and their
            optimiser state stay fp32.
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
    mix: dict[str, FiniteFloat] = Field(default_factory=dict)
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
    """Settings of the stages that train a compressed model.

    Attributes:
        start: checkpoint folder to go on from, or None for fresh adapters.
        rate_weights: relative frequency of each of ``compression.rates``; equal when empty.
    """

    start: str | None = None
    rate_weights: tuple[float, ...] = ()

    @model_validator(mode="after")
    def _check_rates(self) -> MemoryConfig:
        fresh = self.start is None  # else the rates are the checkpoint's, which ``start`` compares them with
        if fresh and self.rate_weights and len(self.rate_weights) != len(self.compression.rates):
            raise ValueError(f"rate_weights needs one weight for each of the rates {self.compression.rates}")
        return self
