"""A training run that several processes start together: BASE OUT STEPS [DIE_AFTER | frozen].

The first one may die at a step; a frozen compressor's memories are shared out.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from train_cases import made, passages, questions

from clara.train.log import TrainProgress
from clara.train.run import train
from clara.train.stages.base import Stage


def stage(base: Path, steps: int, *, frozen: bool = False) -> Stage:
    """A run without dropout, whose masks depend on how a batch is cut; examples of very different length."""
    return made(
        "instruct",
        base,
        steps=steps,
        batch_size=8,
        learning_rate=0.005,
        lora={"rank": 4, "alpha": 8, "dropout": 0.0},
        dtype="fp32",
        save_every=4,
        evaluate_every=10,
        pairs=2,
        held_out_answers=2,
        freeze_compressor=frozen,
        table_learning_rate=1e-4 if frozen else 0.01,  # as unset: no table is trained
    )


def main() -> None:
    """Train; with a fourth argument, be killed after that step."""
    base, out, steps, more = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), "".join(sys.argv[4:])

    def die(progress: TrainProgress) -> None:
        if more not in {"", "frozen"} and progress.step == int(more):
            os.kill(os.getpid(), signal.SIGKILL)

    records = [*passages(24), *questions(6)]
    train(stage(base, steps, frozen=more == "frozen"), records, out, cache=out, on_progress=die)


if __name__ == "__main__":
    main()
