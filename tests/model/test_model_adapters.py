"""Roles switch in one place: they nest, survive exceptions, and merged copies compute the same."""

from __future__ import annotations

import contextlib
import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from clara.config import CompressionConfig
from clara.model import ClaraModel, checkpoint, default_cache
from clara.model import decoder as module
from clara.model.adapters import Adapters
from clara.model.create import Loaded, from_checkpoint, open_checkpoint
from clara.model.decoder import Role, RoleWeights, StoredAdapters
from clara.model.network import StoredNetwork
from clara.model.placement import Placement, natural_dtype

IDS = torch.tensor([[5, 80, 301, 44, 7, 599]])
ROLES: tuple[Role | None, ...] = (None, "compressor", "generator")

Make = Callable[[CompressionConfig], Loaded]


@pytest.fixture
def adapters(make_network: Make) -> Adapters:
    return make_network(CompressionConfig(window_tokens=64, rates=(16,))).network.adapters


@torch.no_grad()
def states(adapters: Adapters) -> Tensor:
    """Last hidden states of the backbone as it is switched now."""
    hidden: Tensor = adapters.bare().get_decoder()(IDS, use_cache=False).last_hidden_state
    return hidden


def as_role(adapters: Adapters, role: Role | None) -> Tensor:
    with adapters.use(role):
        return states(adapters)


def test_each_role_computes_something_else(adapters: Adapters) -> None:
    base, compressor, generator = (as_role(adapters, role) for role in ROLES)
    for left, right in ((base, compressor), (base, generator), (compressor, generator)):
        assert float((left - right).abs().max()) > 0.01


def test_use_nests_and_restores_after_exceptions(adapters: Adapters) -> None:
    wanted = {role: as_role(adapters, role) for role in ROLES}
    with adapters.use("compressor"):
        with adapters.use("generator"):
            assert torch.equal(states(adapters), wanted["generator"])
            with contextlib.suppress(KeyError), adapters.use(None):
                assert torch.equal(states(adapters), wanted[None])
                raise KeyError("inside")
            assert torch.equal(states(adapters), wanted["generator"])
        assert torch.equal(states(adapters), wanted["compressor"])
    assert torch.equal(states(adapters), wanted[None])


@pytest.mark.parametrize("role", ["compressor", "generator", "query_reasoner"])
def test_a_merged_copy_computes_the_same(role: Role, adapters: Adapters) -> None:
    switched, base = as_role(adapters, role), as_role(adapters, None)
    merged = adapters.merged(role)
    with torch.no_grad():
        found = merged.get_decoder()(IDS, use_cache=False).last_hidden_state
    assert float((found - switched).abs().max()) < 1e-5
    assert not any("lora" in name for name, _ in merged.named_parameters())
    assert not any(p.requires_grad for p in merged.parameters())
    assert torch.equal(as_role(adapters, None), base), "the original is left as it was"
    assert torch.equal(as_role(adapters, role), switched)


@pytest.mark.parametrize("limit", [0, 10**9])
def test_role_weights_merge_or_switch(limit: int, adapters: Adapters, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MERGE_LIMIT", limit)
    weights = RoleWeights(adapters)
    for role in ROLES:
        with weights.acting_as(role) as model, torch.no_grad():
            found = model.get_decoder()(IDS, use_cache=False).last_hidden_state
            with weights.acting_as(role) as again:
                assert again is model
        assert (model is adapters.bare()) == (limit == 0 or role is None)
        assert float((found - as_role(adapters, role)).abs().max()) < 1e-5


def test_role_weights_forget_merged_copies(adapters: Adapters) -> None:
    weights = RoleWeights(adapters)
    with weights.acting_as("compressor") as old:
        pass
    with torch.no_grad():
        adapters.parameters_of("compressor")[-1].mul_(3)
    weights.forget()
    with weights.acting_as("compressor") as new, torch.no_grad():
        found = new.get_decoder()(IDS, use_cache=False).last_hidden_state
    assert new is not old
    assert float((found - as_role(adapters, "compressor")).abs().max()) < 1e-5


@pytest.mark.skipif(natural_dtype("cpu") != torch.bfloat16, reason="a processor without units for bf16")
@pytest.mark.parametrize("role", ["compressor", "generator"])
def test_weights_that_are_laid_out_compute_the_same(role: Role, tiny_checkpoint: Path) -> None:
    adapters = open_checkpoint(tiny_checkpoint, default_cache(), Placement(dtype=torch.bfloat16)).network.adapters
    plain = adapters.merged(role)
    with RoleWeights(adapters).acting_as(role) as model, torch.inference_mode():
        found, wanted = model(IDS).logits, plain(IDS).logits
        assert float((found - wanted).abs().mean()) < 0.02
    held, before = (sum(p.numel() for p in each.parameters()) for each in (model, plain))
    assert held < before, "a weight that is laid out is not held twice"
    rows = plain.get_input_embeddings()(IDS).requires_grad_()
    slopes = [torch.autograd.grad(each(inputs_embeds=rows).logits.sum(), rows)[0] for each in (model, plain)]
    assert float((slopes[0] - slopes[1]).norm() / slopes[1].norm()) < 0.05, "gradients of what is read go through"


def test_the_query_reasoner_is_the_compressor_until_it_is_split(adapters: Adapters) -> None:
    assert list(adapters.roles) == ["compressor", "generator"]
    assert adapters.weights_of("query_reasoner") == "compressor"
    shared = as_role(adapters, "query_reasoner")
    assert torch.equal(shared, as_role(adapters, "compressor"))

    adapters.split_query_reasoner()
    adapters.split_query_reasoner()
    assert list(adapters.roles) == ["compressor", "query_reasoner", "generator"]
    assert adapters.weights_of("query_reasoner") == "query_reasoner"
    assert torch.equal(as_role(adapters, "query_reasoner"), shared), "it starts as a copy"

    own, others = adapters.parameters_of("query_reasoner"), adapters.parameters_of("compressor")
    assert len(own) == len(others) == 28
    assert not {id(p) for p in own} & {id(p) for p in others}
    with torch.no_grad():
        for parameter in own:
            parameter.mul_(2)
    assert not torch.equal(as_role(adapters, "query_reasoner"), shared)
    assert torch.equal(as_role(adapters, "compressor"), shared)


def test_one_backward_pass_reaches_two_adapters(adapters: Adapters) -> None:
    roles: tuple[Role, Role] = ("compressor", "generator")
    for role in roles:
        for parameter in adapters.parameters_of(role):
            parameter.requires_grad = True
    decoder, embed = adapters.bare().get_decoder(), adapters.bare().get_input_embeddings()
    with adapters.use("compressor"):
        memory = decoder(IDS, use_cache=False).last_hidden_state
    with adapters.use("generator"):
        out = decoder(inputs_embeds=torch.cat([memory, embed(IDS)], dim=1), use_cache=False).last_hidden_state
    (out * torch.linspace(-1, 1, out.numel()).reshape(out.shape)).sum().backward()
    for role in roles:
        grads = [p.grad for p in adapters.parameters_of(role)]
        assert all(g is not None and torch.isfinite(g).all() for g in grads)
        assert sum(float(g.abs().sum()) > 0 for g in grads if g is not None) == len(grads)
    frozen = [p for name, p in adapters.peft_model.named_parameters() if "lora_" not in name]
    assert all(p.grad is None for p in frozen)


def test_stored_adapters_merge_as_peft_does(tiny_checkpoint: Path) -> None:
    """Two ways to the same weights: a checkpoint's numbers added in, and PEFT's own merge."""
    cache = default_cache()
    manifest = checkpoint.read_manifest(tiny_checkpoint)
    whole = from_checkpoint(tiny_checkpoint, cache, Placement(dtype=torch.bfloat16))
    stored = open_checkpoint(tiny_checkpoint, cache, Placement(dtype=torch.bfloat16))
    assert isinstance(stored.network, StoredNetwork)
    assert checkpoint.fingerprint(stored.network, manifest) == checkpoint.fingerprint(whole.network, manifest)
    for role in manifest.roles:
        twin = copy.deepcopy(whole.network.adapters.peft_model)
        wanted = twin.merge_and_unload(adapter_names=[role]).state_dict()
        for adapters in (stored.network.adapters, whole.network.adapters):
            merged = adapters.merged(role).state_dict()
            assert merged.keys() == wanted.keys()
            assert all(torch.equal(merged[name], wanted[name]) for name in wanted)


def test_a_checkpoint_is_read_without_peft(tiny_checkpoint: Path) -> None:
    code = (
        "import sys; from clara.model import ClaraModel\n"
        f"model = ClaraModel.load({str(tiny_checkpoint)!r})\n"
        "model.generate('Who?', model.compress(['The tower is high.']), max_new_tokens=2)\n"
        "print('peft' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("role", ["compressor", "query_reasoner", "generator"])
def test_stored_adapters_act_in_the_backbone_as_merged_ones_do(tiny_checkpoint: Path, role: Role) -> None:
    """The same answer with an adapter beside the weights and in them; outside of the block it does not act."""
    adapters = open_checkpoint(tiny_checkpoint, default_cache(), Placement(dtype=torch.float32)).network.adapters
    assert isinstance(adapters, StoredAdapters)
    bare, merged = adapters.bare(), adapters.merged(role)
    with torch.inference_mode():
        before = bare(IDS).logits
        with adapters.use(role):
            added = bare(IDS).logits
            with adapters.use(None):
                assert torch.equal(bare(IDS).logits, before)
        assert torch.allclose(added, merged(IDS).logits, atol=1e-4)
        assert not torch.allclose(added, before, atol=1e-4)
        assert torch.equal(bare(IDS).logits, before)


def test_without_merged_copies_memories_and_answers_are_the_same(tiny_checkpoint: Path) -> None:
    merged = ClaraModel.load(tiny_checkpoint, dtype="fp32")
    added = ClaraModel.load(tiny_checkpoint, dtype="fp32", merge=False)
    assert added.fingerprint == merged.fingerprint
    text = "The tower is 324 metres high."
    one, other = merged.compress([text])[0], added.compress([text])[0]
    assert np.allclose(one.values, other.values, atol=1e-4)
    assert added.generate("How high?", [one], max_new_tokens=4) == merged.generate("How high?", [one], max_new_tokens=4)
