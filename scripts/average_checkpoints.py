"""Average a checkpoint's adapters with those of the checkpoint that its run started from.

A last stage on new data is half kept so: it loses less of what the start could do and what it learnt is less noisy
(Wortsman et al., Model soups, arXiv 2203.05482; LOG.md, 2026-11-28). LoRA factors are averaged as they are: runs from
one start stay near enough for that. Only adapters may differ; memories in stores stay valid where the compressor's
are equal.
Usage: average_checkpoints.py START CHECKPOINT OUT   (START's share is a half)
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from clara.errors import ClaraError
from clara.model import checkpoint

SHARE = 0.5


def main() -> None:
    """Read two checkpoints, write the one between them."""
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    start, end, out = (Path(text) for text in sys.argv[1:])
    of_start, of_end = (checkpoint.read_manifest(folder) for folder in (start, end))
    if differing := _differing(of_start, of_end):
        sys.exit(f"{start} and {end} differ in {differing}; name a checkpoint and the one that its run started from")
    if not _equal(start / checkpoint.MEMORY, end / checkpoint.MEMORY):
        sys.exit(f"expected equal memory tables ({checkpoint.MEMORY}) in {start} and {end}; only adapters are averaged")
    if out.exists():
        sys.exit(f"{out} is there already; name a new folder")
    weights = {"kept": "average", "start": str(start), "share": SHARE}
    manifest = of_end.unmeasured(trained={**of_end.trained, "weights": weights})
    with checkpoint.replacing(out) as made:
        shutil.copytree(end, made, dirs_exist_ok=True)
        for path in sorted((end / "adapters").rglob(checkpoint.ADAPTER)):
            place = path.relative_to(end)
            first, last = load_file(start / place), load_file(path)
            between = {name: _between(first[name], last[name]) for name in last}
            save_file(between, made / place, metadata={"format": "pt"})
        (made / checkpoint.MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
        (made / "README.md").write_text(
            f"{end.name}, its adapters averaged with those of {start.name}.\n", encoding="utf-8"
        )


def _differing(start: checkpoint.Manifest, end: checkpoint.Manifest) -> str:
    """The settings without which a mean of adapters means nothing, where two checkpoints differ; empty if nowhere."""
    left, right = _decisive(start), _decisive(end)
    return ", ".join(f"{name} ({left[name]} and {right[name]})" for name in left if left[name] != right[name])


def _decisive(manifest: checkpoint.Manifest) -> dict[str, object]:
    return {
        "base_identity": manifest.base_identity,
        **manifest.compression.model_dump(),
        "lora.rank": manifest.lora.rank,
        "lora.alpha": manifest.lora.alpha,
        "roles": " + ".join(manifest.roles),
    }


def _between(first: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    return (SHARE * first.float() + (1 - SHARE) * last.float()).to(last.dtype)


def _equal(first: Path, second: Path) -> bool:
    left, right = load_file(first), load_file(second)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


if __name__ == "__main__":
    try:
        main()
    except (ClaraError, OSError) as error:
        sys.exit(str(error))
