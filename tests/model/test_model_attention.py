"""The grouped products against torch's own attention."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from clara.model.attention import _grouped_products


@pytest.mark.parametrize(("heads", "groups", "s", "t"), [(4, 2, 7, 7), (6, 1, 5, 5), (3, 3, 4, 4)])
def test_causal_attention_equals_torch(heads: int, groups: int, s: int, t: int) -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, heads, s, 8, generator=generator)
    key, value = torch.randn(2, groups, t, 8, generator=generator), torch.randn(2, groups, t, 8, generator=generator)
    out, _ = _grouped_products(nn.Identity(), query, key, value, None)
    expected = functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(out, expected.transpose(1, 2))


def test_a_mask_and_a_scale_are_applied() -> None:
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(2, 4, 3, 8, generator=generator)
    key, value = torch.randn(2, 2, 9, 8, generator=generator), torch.randn(2, 2, 9, 8, generator=generator)
    mask = torch.zeros(2, 1, 3, 9).masked_fill(torch.rand(2, 1, 3, 9, generator=generator) < 0.4, float("-inf"))
    mask[..., 0] = 0
    out, _ = _grouped_products(nn.Identity(), query, key, value, mask, scaling=0.5)
    expected = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.5, enable_gqa=True)
    torch.testing.assert_close(out, expected.transpose(1, 2))
