"""Records and settings of a tiny training run; as a program, a run that hangs at a step so that it can be killed."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from clara.data import DataRecord, DocText, MultiHop, PassageQA, QAPair
from clara.train.log import TrainProgress
from clara.train.run import train
from clara.train.stages import stage_of
from clara.train.stages.base import Stage

COMPRESSION = {
    "window_tokens": 64,
    "rates": (4, 16),
    "residual": True,
    "gain": True,
    "pooled_input": True,
    "positions": "spread",
    "attention": "span",
}


def passages(count: int, source: str = "a") -> list[DataRecord]:
    """Passage records with questions; every third has a paraphrase, every fifth no question."""
    return [
        PassageQA(
            id=f"{source}{i}",
            source=source,
            title=f"Tower {source}{i}",
            text=f"Tower {source}{i} is {3 * i} metres high. " + "It is made of iron. " * (i % 4),
            pairs=()
            if i % 5 == 4
            else (QAPair(f"How high is tower {i}?", (f"{3 * i} metres",)), QAPair("Of what?", ("iron",))),
            paraphrase=f"The height of tower {source}{i} is {3 * i} m." if i % 3 == 0 else None,
        )
        for i in range(count)
    ]


def questions(count: int, source: str = "m") -> list[DataRecord]:
    """Questions over four documents; the first and third support the answer."""
    return [
        MultiHop(
            id=f"{source}{i}",
            source=source,
            question=f"Which is higher in {i}?",
            answers=("the first",),
            docs=tuple(DocText(f"D{d}", f"Document {d} of {source}{i}.") for d in range(4)),
            gold=(0, 2),
        )
        for i in range(count)
    ]


def made(name: str, base: Path, **values: Any) -> Stage:  # noqa: ANN401 - any setting
    """A stage with settings of a run of six steps, as a recipe gives them."""
    plain: dict[str, Any] = {
        "base": str(base),
        "compression": COMPRESSION,
        "lora": {"rank": 4, "alpha": 8},
        "steps": 6,
        "batch_size": 4,
        "accumulation": 2,
        "learning_rate": 0.01,
        "table_learning_rate": 0.01,
        "held_out": 3,
        "save_every": 2,
        "evaluate_every": 3,
        "restate": {"repeat": 0.5, "resume": 0.3, "tokens": 16},
    }
    return stage_of(name, plain | values, source="test")


def changed(stage: Stage, **values: Any) -> Stage:  # noqa: ANN401 - any setting
    """The same stage with other settings, unchecked."""
    return replace(stage, config=stage.config.model_copy(update=values))


def losses(out: Path) -> list[dict[str, float]]:
    """What the run's log says, speeds left out."""
    lines = (out / "log.jsonl").read_text(encoding="utf-8").splitlines()
    kept = ("step", "cross_entropy", "mse", "held_out")
    return [{name: value for name, value in json.loads(line).items() if name in kept} for line in lines]


def main() -> None:
    """Train, and hang for ever after a step: BASE OUT STEP."""
    base, out, step = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])

    def hang(progress: TrainProgress) -> None:
        if progress.step == step:
            time.sleep(600)

    train(made("scp", base), passages(20), out, cache=out, on_progress=hang)


if __name__ == "__main__":
    main()
