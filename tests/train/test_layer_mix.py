"""The read-out of several layers: without effect at first, equal to the slow version, and no layer run in vain."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load
from torch import Tensor
from train_cases import losses, made, passages

from clara import prompts
from clara.config import CompressionConfig
from clara.errors import ConfigError
from clara.model import ClaraModel, checkpoint
from clara.model.attention import enable_packing
from clara.model.backbone import padded_texts
from clara.model.create import Loaded, rebuilt
from clara.model.network import encode
from clara.model.prompting import Prompter
from clara.model.table import LayerMix
from clara.train.batch import Collator
from clara.train.documents import Documents
from clara.train.examples import Example, Target
from clara.train.objective import generation_loss
from clara.train.run import train
from clara.train.start import release

WINDOW, RATE = 64, 16
TEXTS = ("The tower is 330 metres high, and it is made of iron.", "Bees dance. " * 20, "Gutenberg printed in Mainz.")
PLAIN: dict[str, Any] = {
    "window_tokens": WINDOW,
    "rates": (4, RATE),
    "residual": True,
    "gain": True,
    "pooled_input": True,
    "attention": "span",
    "positions": "spread",
}
MIXED: dict[str, Any] = {"layers": (1, 2), "places": 3}
Make = Callable[[CompressionConfig], Loaded]


def batch_of(loaded: Loaded) -> tuple[Tensor, Tensor]:
    return padded_texts([Prompter(loaded.base.tokenizer).plain(text)[:WINDOW] for text in TEXTS])


def memory_of(loaded: Loaded, rate: int = RATE) -> Tensor:
    with loaded.network.adapters.use("compressor"):
        network = loaded.network
        return encode(network.adapters.bare(), network.table, *batch_of(loaded), rate=rate).memory


def moved(loaded: Loaded) -> Loaded:
    """The same with a mix that has an effect, the same on every machine."""
    mix = loaded.network.table.mix
    assert mix is not None
    with torch.no_grad():
        for number, parameter in enumerate(mix.parameters(), start=3):
            parameter.copy_(torch.linspace(-0.1, 0.1, parameter.numel()).roll(7 * number).reshape(parameter.shape))
    return loaded


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("rate", [4, RATE])
def test_the_mix_starts_without_effect(make_network: Make, rank: int, rate: int) -> None:
    before = make_network(CompressionConfig(**PLAIN))
    wider = CompressionConfig(**PLAIN, **MIXED, layer_rank=rank)
    after = rebuilt(before, wider, TEXTS)
    with torch.no_grad():
        assert torch.equal(memory_of(before, rate), memory_of(after, rate)), "to the bit"
        assert not torch.equal(memory_of(before, rate), memory_of(moved(after), rate))


def slow_memory(loaded: Loaded, text: str) -> Tensor:
    """One text at ``RATE``, token by token and layer by layer, by transformers' own hidden states."""
    network, table = loaded.network, loaded.network.table
    mix = table.mix
    assert mix is not None and mix.maps is not None and mix.places is not None  # noqa: PT018
    row = network.table.config.rates.index(RATE)
    ids = torch.tensor([Prompter(loaded.base.tokenizer).plain(text)[:WINDOW]])
    with network.adapters.use("compressor"):
        decoder = network.adapters.bare().get_decoder()
        outputs: list[Tensor] = []
        hooks = [layer.register_forward_hook(lambda _m, _i, out: outputs.append(out)) for layer in decoder.layers]
        decoder(input_ids=ids)
        for hook in hooks:
            hook.remove()
        plain = network.encode("compressor", ids, torch.ones_like(ids).bool(), rate=RATE).read_out.read[0]
    embeds, length, n = network.embed(ids)[0], ids.shape[1], WINDOW // RATE
    rows = []
    for i in range(n):
        first = i * length // n
        tokens = range(first, max((i + 1) * length // n, first + 1))
        residual = sum(embeds[t] for t in tokens) / len(tokens)
        for place, t in enumerate(tokens):
            residual = residual + mix.places[min(place, 2)] @ embeds[t] / len(tokens)
        assert table.gain is not None and table.bias is not None and table.residual_gain is not None  # noqa: PT018
        memory = plain[i] * table.gain[row] + table.bias[row] + residual * table.residual_gain[row]
        for number, states in enumerate(outputs):
            level = [states[0, t] / (states[0, t].square().mean() + 1e-6).sqrt() for t in tokens]
            pooled = sum(level) / len(tokens)
            memory = memory + mix.maps[number] @ ((pooled - mix.centre[row, number]) / mix.spread[row, number])
        rows.append(memory)
    return torch.stack(rows)


def test_memories_and_gradients_equal_the_slow_version(make_network: Make) -> None:
    loaded = moved(make_network(CompressionConfig(**PLAIN, **MIXED)))
    found = memory_of(loaded)
    slow = torch.stack([slow_memory(loaded, text) for text in TEXTS])
    torch.testing.assert_close(found, slow, rtol=1e-4, atol=1e-5)
    mix = loaded.network.table.mix
    assert mix is not None
    trained = [*mix.parameters(), *loaded.network.adapters.parameters_of("compressor")]
    weights = torch.linspace(-1, 1, found.numel()).reshape(found.shape)
    fast, wanted = (torch.autograd.grad((memory * weights).sum(), trained) for memory in (found, slow))
    for left, right in zip(fast, wanted, strict=True):
        assert float(right.abs().max()) > 0
        torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-4 * float(right.abs().max()))


@pytest.mark.parametrize("rank", [0, 4])
def test_at_its_start_something_of_the_mix_has_a_gradient(make_network: Make, rank: int) -> None:
    loaded = make_network(CompressionConfig(**PLAIN, layers=(2,), layer_rank=rank))
    mix = loaded.network.table.mix
    assert mix is not None
    first = mix.up if rank else mix.maps
    assert first is not None
    [gradient] = torch.autograd.grad(memory_of(loaded).square().sum(), [first])
    assert float(gradient.abs().max()) > 0
    assert float(mix.spread.min()) > 0
    assert not torch.equal(mix.spread, torch.ones_like(mix.spread)), "it was calibrated"


@contextmanager
def counted(loaded: Loaded) -> Iterator[list[int]]:
    """Which layers are run, from 1."""
    run: list[int] = []
    layers = loaded.network.adapters.bare().get_decoder().layers
    hooks = [
        layer.self_attn.register_forward_hook(lambda *_, number=number: run.append(number))
        for number, layer in enumerate(layers, start=1)
    ]
    yield run
    for hook in hooks:
        hook.remove()


def test_layers_above_the_highest_are_never_run(make_network: Make) -> None:
    alone = CompressionConfig(window_tokens=WINDOW, rates=(RATE,), read_out="layers", layers=(1,), residual=True)
    loaded = make_network(alone)
    assert loaded.network.table.tokens is None
    with counted(loaded) as run:
        memory_of(moved(loaded))
    assert run == [1]
    decoder = loaded.network.adapters.bare().get_decoder()
    assert len(decoder.layers) == 2, "the model itself stays whole"
    assert not any(layer._forward_hooks for layer in decoder.layers)
    both = make_network(CompressionConfig(**PLAIN, layers=(1,)))
    with counted(both) as run:
        memory_of(both)
    assert run == [1, 2, 1, 2], "text, then memory tokens"


@pytest.mark.parametrize("values", [PLAIN | MIXED, {"read_out": "layers", "layers": (1, 2), "residual": True}])
def test_packed_and_padded_are_the_same(make_network: Make, values: dict[str, Any]) -> None:
    given: dict[str, Any] = {"window_tokens": WINDOW, "rates": (4, RATE), **values}
    loaded = moved(make_network(CompressionConfig(**given)))
    with torch.no_grad():
        padded = memory_of(loaded)
        assert enable_packing(loaded.network.adapters.bare())
        torch.testing.assert_close(memory_of(loaded), padded, rtol=1e-4, atol=1e-5)


def test_a_layer_that_is_not_there(make_network: Make) -> None:
    with pytest.raises(ConfigError, match="layer 3, the base model has 2"):
        make_network(CompressionConfig(window_tokens=WINDOW, rates=(RATE,), layers=(1, 3)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"layers": (2, 1)}, "ascending"),
        ({"layers": (0,)}, "from 1"),
        ({"layer_rank": 4}, "no layers are read"),
        ({"places": 2}, "residual = true"),
        ({"read_out": "layers", "layers": (1,)}, "residual = true to start from"),
        ({"read_out": "layers", "layers": (1,), "residual": True, "pooled_input": True}, "pooled_input"),
    ],
)
def test_settings_that_do_not_go_together(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CompressionConfig(**values)
    assert "layers" not in CompressionConfig().model_dump(), "older checkpoints stay as they are"


def test_a_run_adds_layers_to_a_checkpoint(tiny_base: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    values: dict[str, Any] = {"start": str(tiny_checkpoint), "dtype": "fp32", "held_out_answers": 0, "keep": "last"}
    logs, folders = [], []
    for name, compression in (("before", {}), ("after", {"residual": True, "layers": [1, 2], "places": 2})):
        stage = made("scp", tiny_base, compression=compression, **values)
        folders.append(train(stage, passages(12), tmp_path / name, cache=tmp_path / "cache"))
        logs.append(losses(tmp_path / name))
    assert logs[0][0]["cross_entropy"] == pytest.approx(logs[1][0]["cross_entropy"], rel=1e-6), "the same start"
    assert logs[0][-1]["cross_entropy"] != pytest.approx(logs[1][-1]["cross_entropy"], rel=1e-6)
    manifest = checkpoint.read_manifest(folders[1])
    assert (manifest.compression.layers, manifest.compression.places) == ((1, 2), 2)
    model = ClaraModel.load(folders[1], dtype="fp32")
    mix = model._network.table.mix
    assert isinstance(mix, LayerMix)
    assert mix.maps is not None
    assert float(mix.maps.detach().abs().max()) > 0
    assert model.compress(["The tower is high."])[0].values.shape == (WINDOW // 4, 32)
    again = made("scp", tiny_base, compression={"layers": [1]}, **values | {"start": str(folders[1])})
    with pytest.raises(ConfigError, match=r"compression.layers is \(1,\), but"):
        train(again, passages(12), tmp_path / "again", cache=tmp_path)


def test_a_run_can_drop_memory_tokens(tiny_base: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    alone = {"read_out": "layers", "layers": [1], "residual": True}
    stage = made("scp", tiny_base, start=str(tiny_checkpoint), compression=alone)
    folder = train(stage, passages(12), tmp_path / "run", cache=tmp_path)
    before, after = ClaraModel.load(tiny_checkpoint, dtype="fp32"), ClaraModel.load(folder, dtype="fp32")
    assert after._network.table.tokens is None
    assert after.compression_flops(40) < 0.5 * before.compression_flops(40)
    assert after.compress(["The tower is high."], rate=RATE)[0].values.shape == (WINDOW // RATE, 32)


def test_states_that_are_kept_give_the_same_loss_and_gradient(make_network: Make, tmp_path: Path) -> None:
    loaded = moved(make_network(CompressionConfig(**PLAIN, **MIXED)))
    release(loaded.network, ("compressor", "generator"))
    network, prompter = loaded.network, Prompter(loaded.base.tokenizer)
    examples = [
        Example(TEXTS[:2], (Target(prompts.QUESTION + "How high?", "330 metres"),)),
        Example(TEXTS[1:], (Target(prompts.REPEAT_INSTRUCTION, "Bees dance."),)),
    ]
    states = Documents(loaded, tmp_path, states=True)
    kept = Collator(prompter, window_tokens=WINDOW, states=states)(examples, rate=RATE)
    assert kept.states is not None
    assert kept.states.shape == (3, WINDOW // RATE, 3, 32)
    fresh = Collator(prompter, window_tokens=WINDOW)(examples, rate=RATE)
    found, wanted = (generation_loss(network, batch, mse_weight=0.0).total for batch in (kept, fresh))
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    trained = [*network.table.read_out(), *network.adapters.parameters_of("generator")]
    for left, right in zip(*(torch.autograd.grad(loss, trained) for loss in (found, wanted)), strict=True):
        torch.testing.assert_close(left, right, rtol=2e-2, atol=5e-3 * float(right.abs().max()) + 1e-6)


def test_a_run_with_a_frozen_encoder(tiny_base: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "start": str(tiny_checkpoint),
        "compression": {"residual": True, "layers": [1, 2], "places": 2},
        "freeze_encoder": True,
        "generator_learning_rate": 1e-3,
        "held_out_answers": 2,
    }
    folder = train(made("scp", tiny_base, **values), passages(12), tmp_path / "run", cache=tmp_path / "cache")
    before, after = (
        {p.name if p.name == "memory.safetensors" else p.parent.name: load(p.read_bytes()) for p in f.rglob("*.safe*")}
        for f in (tiny_checkpoint, folder)
    )
    assert all(torch.equal(tensor, after["compressor"][name]) for name, tensor in before["compressor"].items())
    assert not all(torch.equal(tensor, after["generator"][name]) for name, tensor in before["generator"].items())
    table = after["memory.safetensors"]
    assert torch.equal(before["memory.safetensors"]["tokens"], table["tokens"])
    assert not torch.equal(before["memory.safetensors"]["bias"], table["bias"])
    assert float(table["mix.maps"].abs().max()) > 0
    assert float(table["mix.places"].abs().max()) > 0
    assert list((tmp_path / "cache" / "memories").glob("states-*"))
    both = made("scp", tiny_base, **values, freeze_compressor=True)
    with pytest.raises(ConfigError, match="freeze_compressor freezes the read-out, too"):
        train(both, passages(12), tmp_path / "both", cache=tmp_path)


def test_each_part_has_its_rate(tiny_base: Path, make_network: Make) -> None:
    loaded = make_network(CompressionConfig(**PLAIN, **MIXED))
    stage = made("scp", tiny_base, generator_learning_rate=1e-3, mix_learning_rate=2e-3, table_learning_rate=3e-3)
    network = loaded.network
    release(network, ("compressor", "generator"))
    groups = {group["lr"]: {id(p) for p in group["params"]} for group in stage.parameter_groups(network)}
    assert network.table.mix is not None
    assert groups[1e-3] == {id(p) for p in network.adapters.parameters_of("generator")}
    assert groups[2e-3] == {id(p) for p in network.table.mix.parameters()}
    assert groups[1e-2] == {id(p) for p in network.adapters.parameters_of("compressor")}
    assert id(network.table.gain) in groups[3e-3]
