"""One copy of the base weights: peak memory of converting and loading, measured in a process of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from official_folders import content
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from clara.model import create
from clara.model.placement import Placement, shapes_of

PROGRAM = """
import json, sys
from pathlib import Path
import torch
from clara.model import ClaraModel
from clara.model.apple.write import convert

def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(key + ":")))

work, folder, base, out = sys.argv[1], *map(Path, sys.argv[2:])
torch.zeros(64, 64) @ torch.zeros(64, 64)
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
if work == "convert":
    convert(folder, out, out, base_name=str(base), progress=lambda *_: None)
else:
    model = ClaraModel.load(folder, base=str(base), dtype="bf16")
    for parameter in model._network.parameters():  # a file that is only mapped is no memory before it is read
        parameter.detach().reshape(-1)[::1024].float().sum()
    if work == "use":
        model.generate("Who?", model.compress(["The keeper wrote three letters."]), max_new_tokens=2)
print(json.dumps({"peak": status("VmHWM") - before, "kept": status("RssAnon")}))
"""


@dataclass(frozen=True)
class Case:
    """A random base model in bf16 with a checkpoint in Apple's format on it, and the bytes of its weights."""

    folder: Path
    base: Path
    weights: int


def make(tiny_base: Path, folder: Path, *, hidden: int, layers: int) -> Case:
    base = folder / "base"
    shutil.copytree(tiny_base, base)
    config = AutoConfig.from_pretrained(base)
    config.hidden_size, config.intermediate_size, config.num_hidden_layers = hidden, 4 * hidden, layers
    config.num_attention_heads, config.num_key_value_heads, config.head_dim = hidden // 64, hidden // 64, 64
    config.dtype = torch.bfloat16
    config.save_pretrained(base)
    with torch.device("meta"):
        shapes = AutoModelForCausalLM.from_config(config).state_dict()
    draw = torch.Generator().manual_seed(0)
    noise = (
        torch.randn(1 << 20, generator=draw) * 0.02
    ).bfloat16()  # repeated: drawing a billion numbers takes a minute

    def fill(shape: torch.Size) -> torch.Tensor:
        return noise.repeat(-(-shape.numel() // len(noise)))[: shape.numel()].reshape(shape)

    tied = config.tie_word_embeddings
    save_file(
        {name: fill(t.shape) for name, t in shapes.items() if not (tied and name == "lm_head.weight")},
        base / "model.safetensors",
    )
    made = content(base, dtype=torch.bfloat16).write(folder / "official")
    return Case(made, base, 2 * shapes_of(base).total)


def peak(case: Case, work: str, out: Path) -> int:
    """Bytes that a kind of work adds at its worst, mapped files included."""
    command = [sys.executable, "-c", PROGRAM, work, str(case.folder), str(case.base), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: int = json.loads(done.stdout.splitlines()[-1])["peak"]
    return found


SPARE = 150_000_000
"""Bytes for libraries that are imported on the way, the adapters and a batch."""


def check(case: Case, tmp_path: Path, spare: int) -> dict[str, float]:
    adapters = (case.folder / "adapters.pth").stat().st_size + (
        case.folder / "decoder_first_last_layers.pth"
    ).stat().st_size
    shares = {}
    for work in ("convert", "load"):
        taken = peak(case, work, tmp_path / "native")
        shares[work] = (taken - 2 * adapters) / case.weights
        assert taken < case.weights + 2 * adapters + spare, (work, taken, case.weights, adapters)
    return shares


def test_one_copy_of_the_base_weights(tiny_base: Path, tmp_path: Path) -> None:
    case = make(tiny_base, tmp_path, hidden=1024, layers=14)
    assert case.weights > 2.5 * SPARE
    check(case, tmp_path, SPARE)


@pytest.mark.slow
def test_one_copy_of_a_billion_weights(tiny_base: Path, tmp_path: Path) -> None:
    """Large enough to be used without merged copies: answering takes one copy too."""
    case = make(tiny_base, tmp_path, hidden=2048, layers=16)
    assert case.weights > 2_000_000_000
    shares = check(case, tmp_path, SPARE)
    used = peak(case, "use", tmp_path / "native")
    need = create.need(case.base, Placement(dtype=torch.bfloat16), create.AdapterSize(0, 3))
    assert need.merged == 0
    assert used < need.total + 2 * SPARE
    sys.stdout.write(f"{shares}, used {used / case.weights:.2f}\n")
