"""Which arithmetic a machine is given."""

import pytest
import torch

from mope import device
from mope.device import has_fast_bf16


@pytest.mark.parametrize(
    ("maker", "vectors", "tiles", "fast"),
    [
        ("GenuineIntel", False, False, False),
        ("GenuineIntel", True, False, False),
        ("GenuineIntel", True, True, True),
        ("AuthenticAMD", True, False, True),
        ("AuthenticAMD", False, False, False),
    ],
)
def test_a_cpu_takes_bf16_where_it_is_faster_than_float32(monkeypatch, maker, vectors, tiles, fast):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: vectors, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles, raising=False)
    monkeypatch.setattr(device, "_processor", lambda: f"vendor_id : {maker}\nmodel name : X")
    assert has_fast_bf16(torch.device("cpu")) is fast
    assert device.describe_machine(torch.device("cpu")).endswith(" of X")
