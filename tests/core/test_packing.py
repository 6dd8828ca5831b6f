"""Spikes as bits: the bits of the wire format, and back."""

import numpy as np
import pytest
import torch

from exodus_core.sparse.packing import pack, pack_if_binary, unpack

DTYPES = [torch.bool, torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1,), (7,), (8,), (9,), (3, 0), (0, 5), (2, 3, 17), (4, 64)])
def test_bits_come_back(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    spikes = (torch.rand(shape) < 0.4).to(dtype)
    bits = pack(spikes)
    assert torch.equal(pack_if_binary(spikes), bits)
    assert bits.dtype == torch.uint8
    assert bits.shape == (*shape[:-1], -(-shape[-1] // 8))
    found = unpack(bits, shape[-1], dtype)
    assert found.dtype == dtype
    assert found.is_contiguous()
    assert torch.equal(found, spikes)


def test_the_first_element_is_the_least_significant_bit_as_on_the_wire() -> None:
    spikes = torch.tensor([1, 0, 0, 0, 0, 0, 1, 0, 1], dtype=torch.bool)
    assert pack(spikes).tolist() == [0b01000001, 1]
    spikes = torch.rand(5, 19) < 0.5
    assert pack(spikes).tolist() == np.packbits(spikes.cpu().numpy(), axis=-1, bitorder="little").tolist()


def test_a_view_is_packed_as_its_values() -> None:
    spikes = torch.rand(6, 9, 4) < 0.5
    view = spikes.transpose(0, 2)[1:, ::2]
    assert torch.equal(unpack(pack(view), 6, torch.bool), view)


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_what_is_not_all_zeros_and_ones_is_told(dtype: torch.dtype) -> None:
    spikes = (torch.rand(3, 40) < 0.4).to(dtype)
    others: list[float] = [2, 16, 255] if dtype == torch.uint8 else [2, -1, 16, 3]
    if dtype.is_floating_point:
        info = torch.finfo(dtype)
        others += [0.5, 1 + info.eps, 1 - info.eps / 2, info.tiny, float("nan"), float("inf"), -float("inf"), 1e4]
    for other in others:
        changed = spikes.clone()
        changed[1, 17] = other
        assert pack_if_binary(changed) is None, other


def test_a_number_has_no_axis_to_pack() -> None:
    with pytest.raises(ValueError, match=r"spikes must be of shape \(\.\.\., n\), got \(\)"):
        pack(torch.tensor(1.0))
    assert pack_if_binary(torch.tensor(1.0)) is None
