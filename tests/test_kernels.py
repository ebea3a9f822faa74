"""The two kernels of prompted attention, and which is taken."""

import pytest
import torch
from torch.nn import functional

from mope.encoders import kernels


@pytest.mark.parametrize("mask", [None, "boolean", "additive"])
@pytest.mark.parametrize("keys", [62, 64])
def test_both_kernels_are_the_same_attention(mask, keys):
    query, key, value = (torch.randn(2, 4, n, 8) for n in (49, keys, keys))
    found = torch.rand(2, 1, 49, keys) > 0.3 if mask == "boolean" else torch.randn(1, 4, 49, keys)
    found = None if mask is None else found
    plain = kernels.plain_attention(query, key, value, found, None, 0.0)
    fused = functional.scaled_dot_product_attention(query, key, value, attn_mask=found).transpose(1, 2)
    torch.testing.assert_close(plain, fused, atol=1e-5, rtol=1e-4)


def test_the_choice_of_kernel():
    """Plain products only where they were measured to be faster: learning, bf16, CPU, few keys."""
    short, long = torch.zeros(1, 1, 64, 8), torch.zeros(1, 1, 577, 8)
    learns = short.bfloat16().requires_grad_()
    assert kernels.use_plain(short.bfloat16(), learns, learns)
    assert not kernels.use_plain(short.bfloat16(), short.bfloat16(), short.bfloat16())
    assert not kernels.use_plain(short.requires_grad_(), short, short)
    assert not kernels.use_plain(long.bfloat16(), long.bfloat16().requires_grad_(), long.bfloat16())
    with torch.no_grad():
        assert not kernels.use_plain(learns, learns, learns)
    device = torch.device("cpu")
    assert [kernels.padding(n, device) for n in (48, 50, 51, 52, 62, 64)] == [0, 0, 0, 12, 2, 0]
    assert kernels.padding(62, torch.device("cuda")) == 0
