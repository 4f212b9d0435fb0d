"""Packed sequences give what padded ones give: states, memories, gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from clara.config import CompressionConfig
from clara.model.attention import enable_packing
from clara.model.create import Loaded
from clara.model.network import Network, read_outs
from clara.model.table import MemoryTable

LENGTHS = (17, 1, 40)
CONFIGS = (
    CompressionConfig(window_tokens=64, rates=(4, 16)),
    CompressionConfig(
        window_tokens=64, rates=(4, 16), attention="span", positions="spread", pooled_input=True, residual=True
    ),
    CompressionConfig(window_tokens=64, rates=(4, 16), read_out="mean_pool"),
)


@pytest.fixture(scope="module")
def loaded(make_network: Callable[[CompressionConfig], Loaded]) -> Loaded:
    return make_network(CONFIGS[0])


@pytest.fixture
def packed(loaded: Loaded) -> Iterator[Callable[[str], None]]:
    """Switches the backbone between packed and padded sequences; padded again afterwards."""
    backbone = loaded.network.adapters.bare()

    def switch(kind: str) -> None:
        if kind == "packed":
            assert enable_packing(backbone)
        else:
            backbone.set_attn_implementation("sdpa")

    yield switch
    switch("padded")


def gradients(network: Network, value: Tensor) -> dict[str, Tensor]:
    network.zero_grad(set_to_none=True)
    value.backward()  # type: ignore[no-untyped-call]  # torch
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def texts() -> tuple[Tensor, Tensor]:
    """Token ids and mask of texts of ``LENGTHS``, padded on the right."""
    ids = torch.zeros(len(LENGTHS), max(LENGTHS) + 3, dtype=torch.int64)
    mask = torch.zeros_like(ids).bool()
    for row, length in enumerate(LENGTHS):
        ids[row, :length] = torch.arange(length) * 7 % 590 + 2
        mask[row, :length] = True
    return ids, mask


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("kind", ["padded", "packed"])
@torch.no_grad()
def test_rates_read_together_are_what_each_reads_alone(
    loaded: Loaded, packed: Callable[[str], None], config: CompressionConfig, kind: str
) -> None:
    packed(kind)
    adapters = loaded.network.adapters
    table = MemoryTable(config, loaded.manifest.hidden_size)
    table.initialise(adapters.bare().get_input_embeddings().weight)
    model, (ids, mask) = adapters.bare(), texts()
    with adapters.use("compressor"):
        together = read_outs(model, table, ids, mask, rates=(16, 4))
        assert list(together) == [16, 4]
        for rate, found in together.items():
            alone = read_outs(model, table, ids, mask, rates=(rate,))[rate]
            assert found.read.shape == (len(LENGTHS), config.memory_tokens(rate), loaded.manifest.hidden_size)
            for name in ("read", "residual", "text_mean"):
                torch.testing.assert_close(getattr(found, name), getattr(alone, name), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("config", CONFIGS)
def test_encoding(loaded: Loaded, packed: Callable[[str], None], config: CompressionConfig) -> None:
    adapters = loaded.network.adapters
    for parameter in adapters.parameters_of("compressor"):
        parameter.requires_grad = True
    table = MemoryTable(config, loaded.manifest.hidden_size)
    table.initialise(adapters.bare().get_input_embeddings().weight)
    network = Network(adapters, table)
    ids, mask = texts()
    found = []
    for kind in ("padded", "packed"):
        packed(kind)
        encoded = network.encode("compressor", ids, mask, rate=16)
        ramp = torch.linspace(-1, 1, encoded.memory.numel()).view_as(encoded.memory)
        found.append((encoded, gradients(network, (encoded.memory * ramp).sum() + encoded.read_out.text_mean.sum())))
    (padded, slow), (dense, fast) = found
    torch.testing.assert_close(dense.memory, padded.memory, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(dense.read_out.text_mean, padded.read_out.text_mean, atol=1e-5, rtol=1e-4)
    assert slow.keys() == fast.keys()
    assert slow
    for name, gradient in slow.items():
        torch.testing.assert_close(fast[name], gradient, atol=1e-4, rtol=1e-3, msg=name)


def test_decoding(loaded: Loaded, packed: Callable[[str], None]) -> None:
    network = loaded.network
    for parameter in network.adapters.parameters_of("generator"):
        parameter.requires_grad = True
    length, sizes = 9, (9, 5, 1)
    generator = torch.Generator().manual_seed(0)
    embeds = torch.randn(3, length, loaded.manifest.hidden_size, generator=generator)
    allowed = torch.eye(length, dtype=torch.bool).repeat(3, 1, 1)
    for row, size in enumerate(sizes):
        allowed[row, :size, :size] = torch.ones(size, size).tril().bool()
    allowed[0, 6:, 3:6] = False  # a second target that does not see the first
    positions = torch.arange(length).repeat(3, 1)
    positions[0, 6:] = torch.arange(3, 6)
    found = []
    for kind in ("padded", "packed"):
        packed(kind)
        hidden = network.decode(embeds, allowed[:, None], positions)
        real = torch.cat([hidden[row, :size] for row, size in enumerate(sizes)])
        ramp = torch.linspace(-1, 1, real.numel()).view_as(real)
        found.append((real, gradients(network, (real * ramp).sum())))
    torch.testing.assert_close(found[1][0], found[0][0], atol=1e-5, rtol=1e-4)
    assert found[0][1].keys() == found[1][1].keys()
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], gradient, atol=1e-4, rtol=1e-3, msg=name)


def test_without_a_packing_torch_answers(loaded: Loaded, packed: Callable[[str], None]) -> None:
    """Generation through the backbone that trains goes on as before."""
    backbone = loaded.network.adapters.bare()
    ids = torch.arange(2, 22).view(2, 10)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    with torch.no_grad():
        packed("padded")
        plain = backbone(input_ids=ids, attention_mask=mask).logits
        packed("packed")
        through = backbone(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(through, plain)


def test_only_plain_attention_is_replaced() -> None:
    class Gemma(nn.Module):
        class config:  # noqa: N801 - transformers' name
            model_type = "gemma2"

        device = torch.device("cpu")

    assert not enable_packing(Gemma())
