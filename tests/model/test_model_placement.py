"""Large models: what transformers is handed, quantised weights, attention, and the memory that is asked for first."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from official_folders import content
from transformers import AutoConfig, AutoModelForCausalLM

from clara.errors import BaseModelError, ConfigError, MemoryShortageError, MissingExtraError
from clara.model import ClaraModel, create, default_cache
from clara.model import placement as placing
from clara.model.apple.write import convert
from clara.model.create import from_checkpoint
from clara.model.placement import Dtype, Placement, placement

TEXTS = ["The lighthouse keeper wrote three letters to the harbour.", "Rain."]


def test_words_become_what_transformers_is_handed() -> None:
    assert placement("fp32").options() == {"dtype": torch.float32}
    assert placement("fp16", "cuda:1").options() == {"dtype": torch.float16, "device_map": {"": "cuda:1"}}
    assert placement("bf16", "mps").options() == {"dtype": torch.bfloat16, "device_map": {"": "mps"}}
    for name in ("balanced", "sequential"):
        assert placement("bf16", name).options() == {"dtype": torch.bfloat16, "device_map": name}
    eight = placement("int8", "cuda").options()
    assert (eight["device_map"], eight["quantization_config"].load_in_8bit) == ({"": "cuda"}, True)
    assert eight["dtype"] == torch.bfloat16
    four = Placement("cuda", torch.bfloat16, 4).options()["quantization_config"]
    assert four.load_in_4bit
    assert (four.bnb_4bit_quant_type, four.bnb_4bit_use_double_quant) == ("nf4", True)
    assert four.bnb_4bit_compute_dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [
        ({"cpu_name": "AMD EPYC", "avx512_bf16": True, "amx_bf16": False}, torch.bfloat16),
        ({"cpu_name": "AMD EPYC", "avx512_bf16": False, "amx_bf16": False}, torch.float32),
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": False}, torch.float32),
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": True}, torch.bfloat16),
        ({}, torch.float32),
    ],
    ids=["AMD", "AMD without", "Intel without AMX", "Intel with AMX", "another architecture"],
)
def test_auto_is_what_the_processor_multiplies_faster(
    capabilities: dict[str, object], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert placement("auto").dtype == dtype
    assert placement("bf16").dtype == torch.bfloat16
    assert placement("auto", "cuda").dtype == torch.bfloat16


def test_attention_flash_says_what_it_needs() -> None:
    assert placement("bf16").attention is None
    assert placement("bf16", attention="eager").attention == "eager"
    with pytest.raises(ConfigError, match="flash needs a CUDA device; leave it at auto"):
        placement("bf16", attention="flash")
    with pytest.raises(ConfigError, match="flash needs the package flash-attn"):
        placement("bf16", "cuda", "flash")


def test_attention_flash_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placing, "find_spec", lambda _: object())
    assert placement("bf16", "cuda", "flash").attention == "flash_attention_2"
    with pytest.raises(ConfigError, match="flash needs bf16 or fp16"):
        placement("fp32", "cuda", "flash")


def test_quantised_weights_need_the_extra(monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path) -> None:
    monkeypatch.setattr(placing, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"bitsandbytes is not installed.*clara-rag\[quantised\]"):
        ClaraModel.load(tiny_checkpoint, dtype="int8")


@pytest.fixture(scope="module")
def wide_base(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base with widths that 4-bit blocks of 64 weights divide."""
    folder = tmp_path_factory.mktemp("models") / "wide"
    shutil.copytree(tiny_base, folder)
    config = AutoConfig.from_pretrained(folder)
    config.hidden_size, config.intermediate_size, config.head_dim = 64, 128, 16
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["native", "official"])
def checkpoint(
    request: pytest.FixtureRequest, wide_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A checkpoint and its base."""
    folder = tmp_path_factory.mktemp("checkpoints") / "made"
    official = content(wide_base).write(folder)
    if request.param == "native":
        convert(official, folder.with_name("native"), folder, base_name=str(wide_base), progress=lambda *_: None)
        folder = folder.with_name("native")
    return folder, wide_base


@pytest.mark.parametrize(("dtype", "nearness"), [("int8", 0.99), ("int4", 0.9), ("fp16", 0.999)])
def test_other_number_formats_give_nearly_the_same_memories(
    dtype: Dtype, nearness: float, checkpoint: tuple[Path, Path]
) -> None:
    """With the CPU kernels of bitsandbytes: the whole way, from loading to an answer."""
    if dtype != "fp16":
        pytest.importorskip("bitsandbytes")
    folder, base = checkpoint
    exact = ClaraModel.load(folder, base=str(base), dtype="fp32")
    model = ClaraModel.load(folder, base=str(base), dtype=dtype)
    assert model.fingerprint == exact.fingerprint
    layer = model._network.adapters.bare().get_decoder().layers[0].mlp.up_proj
    held = {"int8": torch.int8, "int4": torch.uint8, "fp16": torch.float16}[dtype]
    assert layer.base_layer.weight.dtype == held
    pairs = zip(model.compress(TEXTS), exact.compress(TEXTS), strict=True)
    for ours, theirs in pairs:
        assert np.isfinite(ours.values).all()
        cosine = (ours.values * theirs.values).sum() / np.linalg.norm(ours.values) / np.linalg.norm(theirs.values)
        assert cosine > nearness
    question = model.encode_queries(["Who wrote letters?"])
    assert question[0].fingerprint == model.fingerprint
    assert model.generate("Who wrote letters?", model.compress(TEXTS), max_new_tokens=4).tokens.generated >= 0
    merged = model._weights._merged
    assert bool(merged) is (dtype == "fp16"), "quantised weights are not merged"
    assert model.compression_flops(10) == exact.compression_flops(10)


def test_a_device_map_changes_nothing(checkpoint: tuple[Path, Path]) -> None:
    """Without GPUs accelerate puts all on the CPU; hooks, resized vocabulary and generation are the same code."""
    folder, base = checkpoint
    plain = ClaraModel.load(folder, base=str(base), dtype="fp32")
    spread = ClaraModel.load(folder, base=str(base), dtype="fp32", device="balanced")
    memories = [model.compress(TEXTS) for model in (plain, spread)]
    for one, other in zip(*memories, strict=True):
        np.testing.assert_allclose(one.values, other.values, rtol=0, atol=1e-5)
    answers = [
        model.generate("Who?", made, max_new_tokens=6).token_ids
        for model, made in zip((plain, spread), memories, strict=True)
    ]
    assert answers[0] == answers[1]


def test_attention_is_that_of_the_role(tiny_checkpoint: Path) -> None:
    """Prompts are read with the attention asked for; compression keeps one that takes memory tokens' masks."""
    loaded = from_checkpoint(tiny_checkpoint, default_cache(), Placement())
    model = ClaraModel("tiny", loaded, attention="eager")
    model._weights._merge = False
    before = model._network.adapters.bare().config._attn_implementation
    with model._weights.acting_as("generator") as acting:
        assert acting.config._attn_implementation == "eager"
    with model._weights.acting_as("compressor") as acting:
        assert acting.config._attn_implementation == before != "eager"
    with model._weights.acting_as(None) as acting:
        assert acting.config._attn_implementation == "eager"
    merged = ClaraModel.load(tiny_checkpoint, dtype="fp32", attention="eager")
    sdpa = ClaraModel.load(tiny_checkpoint, dtype="fp32", attention="sdpa")
    memories = sdpa.compress(TEXTS)
    answers = [m.generate("Who?", memories, max_new_tokens=6).token_ids for m in (merged, sdpa)]
    assert answers[0] == answers[1]


def published(folder: Path) -> Path:
    """A base folder with the tensors of Mistral-7B-Instruct-v0.2 in its header and, on the disk, nothing behind it."""
    hidden, inner, layers, groups, size = 4096, 14336, 32, 1024, 32000
    shapes = {
        "model.embed_tokens.weight": [size, hidden],
        "lm_head.weight": [size, hidden],
        "model.norm.weight": [hidden],
    }
    for i in range(layers):
        start = f"model.layers.{i}."
        shapes |= {start + f"self_attn.{n}_proj.weight": [hidden, hidden] for n in "qo"}
        shapes |= {start + f"self_attn.{n}_proj.weight": [groups, hidden] for n in "kv"}
        shapes |= {start + f"mlp.{n}_proj.weight": [inner, hidden] for n in ("gate", "up")}
        shapes[start + "mlp.down_proj.weight"] = [hidden, inner]
        shapes |= {start + f"{n}_layernorm.weight": [hidden] for n in ("input", "post_attention")}
    header, place = {}, 0
    for name, shape in shapes.items():
        size_bytes = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [place, place + size_bytes]}
        place += size_bytes
    text = json.dumps(header).encode()
    folder.mkdir(parents=True)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + place)
    config = {
        "model_type": "mistral",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_published_size_is_estimated_from_headers(tmp_path: Path) -> None:
    folder = published(tmp_path / "mistral")
    shapes = placing.shapes_of(folder)
    assert shapes.total == 7_241_732_096
    weights = {
        dtype: placing.Estimate.of(folder, placement(dtype), adapters=0, merged=0).weights / 1e9
        for dtype in ("fp32", "fp16", "int8", "int4")
    }
    # float16: 14.5 GB. In 8 and 4 bits the layers' 6.98 billion weights shrink, embeddings and head do not (as bf16 or
    # fp32, whichever this processor multiplies).
    assert weights["fp32"] == pytest.approx(28.97, abs=0.01)
    assert weights["fp16"] == pytest.approx(14.48, abs=0.01)
    rest = placement("int8").dtype.itemsize * 0.2624
    assert weights["int8"] == pytest.approx(6.979 + rest, abs=0.02)
    assert weights["int4"] == pytest.approx(0.5159 * 6.979 + rest, abs=0.02)
    # Keys and values of 4,096 tokens in half precision: 2 * 32 layers * 1,024 * 2 bytes each.
    working = placing.Estimate.of(folder, placement("fp16"), adapters=0, merged=0).working
    assert 4096 * 131_072 < working < 3 * 4096 * 131_072
    assert create.need(folder, placement("bf16"), create.AdapterSize(10, 3)).merged == 0, "too large for merged copies"


def test_weights_that_lie_there_twice_are_counted_once(tmp_path: Path) -> None:
    """Some bases bring a second, consolidated file that is never loaded; the index names those that are."""
    folder = published(tmp_path / "mistral")
    expected = placing.shapes_of(folder)
    (folder / "consolidated.safetensors").hardlink_to(folder / "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model.safetensors"}}))
    assert placing.shapes_of(folder) == expected


def test_what_does_not_fit_is_refused_before_it_is_loaded(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = published(tmp_path / "mistral")
    monkeypatch.setattr(placing, "_free_memory", lambda: 8_000_000_000)
    checkpoint = content(tiny_base).write(tmp_path / "made")
    with pytest.raises(
        MemoryShortageError,
        match=r"mistral needs about 15\.\d GB \(base weights 14\.5 GB.*8\.0 GB are free; try --dtype int8 or int4, a "
        r"smaller base model, or load it all the same with --no-memory-check",
    ):
        ClaraModel.load(checkpoint, base=str(folder), dtype="bf16")
    with pytest.raises(MemoryShortageError, match="try --dtype bf16"):
        ClaraModel.load(checkpoint, base=str(folder), dtype="fp32")
    monkeypatch.setattr(placing, "_free_memory", lambda: 0)
    assert ClaraModel.load(checkpoint, base=str(tiny_base), dtype="bf16", check_memory=False).rates == (8,)


def test_where_merged_copies_do_not_fit_adapters_are_switched(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roomy = ClaraModel.load(tiny_checkpoint, dtype="fp32")
    base = Path(roomy.manifest.base_model)
    whole = create.need(base, Placement(), create.AdapterSize.of(tiny_checkpoint, roomy.manifest))
    assert whole.merged == 2 * 4 * placing.shapes_of(base).total
    monkeypatch.setattr(placing, "_free_memory", lambda: whole.total - 1)
    tight = ClaraModel.load(tiny_checkpoint, dtype="fp32")
    for one, other in zip(roomy.compress(TEXTS), tight.compress(TEXTS), strict=True):
        np.testing.assert_allclose(one.values, other.values, rtol=0, atol=1e-4)
    assert roomy._weights._merged
    assert not tight._weights._merged
    monkeypatch.setattr(placing, "_free_memory", lambda: whole.total - whole.merged - 1)
    with pytest.raises(MemoryShortageError, match="MB are free"):
        ClaraModel.load(tiny_checkpoint, dtype="fp32")


def group(folder: Path, names: tuple[str, str, str], values: tuple[str, str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in zip(names, values, strict=True):
        (folder / name).write_text(value)


V2 = ("memory.max", "memory.current", "memory.stat")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat")


def test_a_containers_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    membership = tmp_path / "cgroup"
    machine = type("Machine", (), {"available": 10**12})
    monkeypatch.setattr(psutil, "virtual_memory", machine)
    free: Callable[[], int] = lambda: placing._free_memory(tmp_path / "fs", membership)  # noqa: E731
    assert free() == 10**12, "no control groups at all"
    membership.write_text("0::/job/step\n")
    assert free() == 10**12
    group(tmp_path / "fs" / "job", V2, ("5000", "1000", "anon 1\ninactive_file 300\n"))
    group(tmp_path / "fs" / "job" / "step", V2, ("max", "900", "inactive_file 300\n"))
    assert free() == 4300, "the parent's limit, its cached files left out"
    group(tmp_path / "fs" / "job" / "step", V2, ("2000", "2500", "inactive_file 0\n"))
    assert free() == 0
    membership.write_text("3:cpu:/x\n4:memory:/old\n")
    group(tmp_path / "fs" / "memory" / "old", V1, ("9000", "2000", "total_inactive_file 500\n"))
    assert free() == 7500


def test_a_header_that_is_no_header_is_named(tmp_path: Path) -> None:
    for content_ in (b"", b"\xff" * 8, struct.pack("<Q", 4) + b"nope"):
        (tmp_path / "model.safetensors").write_bytes(content_)
        with pytest.raises(BaseModelError, match=r"model\.safetensors is no whole safetensors file"):
            placing.shapes_of(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(BaseModelError, match="has no weights"):
        placing.shapes_of(tmp_path)
