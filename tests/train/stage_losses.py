"""The losses of short runs of every stage, to compare before and after a change: the same to the bit.

    python tests/train/stage_losses.py OUT.json [STEPS] [NAME…]

Runs ``clara train`` with ``recipes/tiny.toml`` on the random model of two layers, fp32 and one thread, on records made
here; OUT.json holds, by run, each step's losses and validations as the log has them. Not collected as a test.
"""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

# name: stage, the run it starts from, settings beside the recipe's
RUNS: dict[str, tuple[str, str | None, dict[str, Any]]] = {
    "scp": ("scp", None, {}),
    "instruct": ("instruct", "scp", {}),
    "end-to-end": ("end-to-end", "instruct", {"candidates": 6, "top_k": 2}),
    "retriever": ("retriever", "scp", {"candidates": 6}),
    "reader": ("reader", None, {}),
    "reader-none": ("reader", None, {"reader_context": "none"}),
    "scp-undivided": ("scp", None, {"accumulation": 1}),
    "instruct-shared": ("instruct", "scp", {"shared_distractors": True, "quoted_weight": 0.5}),
    "instruct-near-frozen": (
        "instruct",
        "scp",
        {"near_distractors": True, "freeze_compressor": True, "table_learning_rate": 1e-4},
    ),
    "instruct-taught": ("instruct", "scp", {"targets": "both", "teacher": "reader"}),
    "scp-taught": ("scp", None, {"targets": "teacher", "teacher": "reader"}),
    "reader-scp": ("reader", None, {"reader_examples": "scp", "quoted_weight": 0.5}),
    "end-to-end-all": ("end-to-end", "instruct", {"candidates": 6, "top_k": 2, "train_compressor": True}),
    "end-to-end-late": (
        "end-to-end",
        "instruct",
        {"candidates": 6, "top_k": 2, "query_projection": True, "late_interaction": True},
    ),
    "retriever-whitened": ("retriever", "scp", {"candidates": 6, "query_projection": True}),
}


def records() -> list[dict[str, Any]]:
    """Passages of several lengths with and without questions, and questions over four documents, of three sources."""
    found: list[dict[str, Any]] = []
    for i in range(40):
        text = f"Mill {i} was built in {1700 + 7 * i} by the miller Jonas {i}. " + "It grinds rye and oats. " * (i % 5)
        pairs = [
            {"question": f"When was mill {i} built?", "answers": [str(1700 + 7 * i)]},
            {"question": f"Who built mill {i}?", "answers": [f"Jonas {i}", "the miller"]},
        ]
        row: dict[str, Any] = {
            "kind": "passage_qa",
            "id": f"p{i}",
            "source": "ab"[i % 2],
            "title": f"Mill {i}",
            "text": text,
        }
        row["qa"] = [] if i % 7 == 6 else pairs
        if i % 3 == 0:
            row["paraphrase"] = f"Jonas {i} built mill {i} in {1700 + 7 * i}."
        found.append(row)
    for i in range(20):
        docs = [
            {"title": f"River {i}-{d}", "text": f"River {i}-{d} is {11 * i + d} km long. " + "Boats sail on it. " * d}
            for d in range(4)
        ]
        question = f"How long is the river {i}-{i % 4} which boats use?"
        answers = [f"{11 * i + i % 4} km"]
        row = {"kind": "multi_hop", "id": f"m{i}", "source": "rivers", "question": question, "answers": answers}
        found.append(row | {"docs": docs, "gold": [i % 4]})
    return found


def run(folder: Path, name: str, steps: int) -> list[dict[str, Any]]:
    """Train one run in ``folder``, after those that it needs; its log without the speeds."""
    stage, start, changed = RUNS[name]
    recipe = tomllib.loads((ROOT / "recipes/tiny.toml").read_text(encoding="utf-8"))
    recipe = {key: value for key, value in recipe.items() if key not in {"stage", "chain", "calibrate"}}
    recipe |= {"base": str(folder / "tiny-base"), "steps": steps, "save_every": steps, "evaluate_every": steps // 2}
    if "teacher" in changed:
        changed = changed | {"teacher": str(folder / changed["teacher"] / "reader")}
    if start is not None:
        recipe = {key: value for key, value in recipe.items() if key not in {"base", "compression", "lora"}}
        recipe["start"] = str(folder / start / "checkpoint")
    config = folder / f"{name}.toml"
    config.write_text(_toml(recipe | changed), encoding="utf-8")
    data, out = folder / "records.jsonl", folder / name
    command = [sys.executable, "-m", "clara.cli", "train", stage, "--data", str(data), "--config", str(config)]
    command += ["--out", str(out), "--cache", str(folder / "cache"), "--threads", "1"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=environment, capture_output=True)
    lines = (out / "log.jsonl").read_text(encoding="utf-8").splitlines()
    kept = ("step", "cross_entropy", "mse", "learning_rate", "held_out", "validation")
    return [{key: value for key, value in json.loads(line).items() if key in kept} for line in lines]


def prepare(folder: Path) -> None:
    """Write base model and records."""
    runpy.run_path(str(ROOT / "scripts" / "tiny_base.py"))["make"](folder / "tiny-base")
    rows = "".join(json.dumps(row) + "\n" for row in records())
    (folder / "records.jsonl").write_text(rows, encoding="utf-8")


def _in_order(names: Iterable[str]) -> list[str]:
    """The named runs with those they go on from or learn from, which come first."""
    wanted: dict[str, None] = {}
    for name in names:
        _, start, changed = RUNS[name]
        needed = [one for one in (start, changed.get("teacher")) if one is not None]
        wanted |= dict.fromkeys([*_in_order(needed), name])
    return list(wanted)


def _toml(values: dict[str, Any]) -> str:
    """Plain values first, then the tables; both one level deep."""
    plain = [f"{key} = {json.dumps(value)}" for key, value in values.items() if not isinstance(value, dict)]
    tables = [f"[{key}]\n{_toml(value)}" for key, value in values.items() if isinstance(value, dict)]
    return "\n".join([*plain, *tables]) + "\n"


def main() -> None:
    """Run all, or the named ones and what they need."""
    target, steps = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 50
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        for name in _in_order(sys.argv[3:] or RUNS):
            print(name, flush=True)  # noqa: T201 - a program
            found[name] = run(Path(folder), name, steps)
            target.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
