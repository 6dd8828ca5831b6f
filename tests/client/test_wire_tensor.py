"""Arrays become tensors and tensors become arrays, without a copy where that is possible."""

import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import msgpack  # type: ignore[import-untyped]
import numpy as np
import pytest
import torch

from exodus_client.wire import MSGPACK_TYPE, Message, Tensor, decode, encode, is_torch


def body_of(*tensors: Tensor, form: Any = "stream") -> bytearray:
    return bytearray(b"".join(encode(Message.of({}, tensors), form).chunks))


@pytest.mark.parametrize("form", ["stream", "inline"])
def test_a_raw_payload_is_read_and_written_without_a_copy(form: Any) -> None:
    # msgpack reserves 256 KiB to write a header in, which is little against the 4 MiB of the array.
    array = np.arange(1 << 20, dtype=np.float32).reshape(64, -1)
    tracemalloc.start()
    encoded = encode(Message.of({}, [Tensor.of("a", array)]), form)
    written = tracemalloc.get_traced_memory()[1]
    body = bytearray(b"".join(encoded.chunks))
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    read = decode(body, MSGPACK_TYPE).tensors["a"]
    views = read.torch()
    needed = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    assert written < array.nbytes / 10
    if form == "stream":  # inline payloads may start at odd addresses, which costs a copy to put right
        assert needed < array.nbytes / 10
        views[0, 0] = 7
        assert read.numpy()[0, 0] == 7
        assert np.frombuffer(body, np.float32, offset=len(body) - array.nbytes)[0] == 7


def test_decoding_takes_the_same_time_whatever_the_size() -> None:
    small, large = (body_of(Tensor.of("a", np.zeros(n, np.float32))) for n in (1, 1 << 23))

    def best(body: bytearray) -> float:
        times = []
        for _ in range(20):
            began = time.perf_counter()
            decode(body, MSGPACK_TYPE).tensors["a"].numpy()
            times.append(time.perf_counter() - began)
        return min(times)

    assert best(large) < 20 * best(small)


def test_a_read_only_body_gives_read_only_arrays_and_torch_a_copy() -> None:
    tensor = decode(bytes(body_of(Tensor.of("a", np.ones(3)))), MSGPACK_TYPE).tensors["a"]
    assert not tensor.numpy().flags.writeable
    tensor.torch()[0] = 7
    assert tensor.numpy()[0] == 1


@pytest.mark.parametrize("shift", range(8))
def test_an_inline_payload_at_an_odd_address_is_put_right(shift: int) -> None:
    entry = {"name": "a", "dtype": "float64", "shape": [2], "data": np.array([1.5, 2.5]).tobytes()}
    body = msgpack.packb({"v": 1, "params": {"x": "y" * shift}, "tensors": [entry]})
    tensor = decode(body, MSGPACK_TYPE).tensors["a"]
    assert tensor.numpy().flags.aligned
    assert tensor.numpy().tolist() == tensor.torch().tolist() == [1.5, 2.5]


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=">f4").reshape(2, 3),
        np.arange(12.0).reshape(3, 4).T[::2],
        np.arange(12)[::-1],
        np.broadcast_to(np.float32(3), (2, 2)),
        np.float16(1.5),
        7,
        [[True, False]],
        [1.5, 2],
    ],
)
def test_any_memory_layout_and_any_list_travels(array: Any) -> None:
    tensor = decode(body_of(Tensor.of("a", array)), MSGPACK_TYPE).tensors["a"]
    np.testing.assert_array_equal(tensor.numpy(), array)
    assert tensor.shape == np.shape(array)
    assert tensor.dtype == np.asarray(array).dtype.name
    assert tensor.size == np.size(array)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(6.0).reshape(2, 3).T,
        torch.ones(2, 2, requires_grad=True),
        torch.nn.Parameter(torch.tensor(0.5)),
        torch.tensor([1.5, -2], dtype=torch.bfloat16, requires_grad=True)[::1],
        torch.arange(6).to(torch.bfloat16).reshape(2, 3).T,
        torch.ones(3, dtype=torch.float64).expand(2, 3),
        torch.view_as_complex(torch.ones(2, 2)).conj().imag,
    ],
)
def test_any_torch_tensor_travels(tensor: torch.Tensor) -> None:
    assert is_torch(tensor)
    read = decode(body_of(Tensor.of("a", tensor)), MSGPACK_TYPE).tensors["a"].torch()
    assert read.dtype == tensor.dtype
    assert torch.equal(read, tensor)


@pytest.mark.parametrize(
    "array", [np.array([1j]), np.array(["a"]), np.array([None]), torch.zeros(1, dtype=torch.complex64), "text"]
)
def test_what_cannot_travel_is_a_type_error_that_names_it(array: Any) -> None:
    with pytest.raises(TypeError, match=r"dtype of 'a' must be one of float32"):
        Tensor.of("a", array)


def test_numpy_has_no_bfloat16() -> None:
    with pytest.raises(TypeError, match=r"numpy has no bfloat16; use \.torch"):
        Tensor.of("a", torch.zeros(1, dtype=torch.bfloat16)).numpy()


@pytest.mark.parametrize("encoding", ["bits", "events"])
@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64]
)
def test_spikes_of_any_dtype_travel_as_bits_and_as_events(encoding: Any, dtype: torch.dtype) -> None:
    fired = torch.rand(3, 70_001) < 0.1
    spikes = fired.to(dtype)
    tensor = Tensor.of("s", spikes, encoding)
    assert tensor.dtype == "bool"
    assert torch.equal(tensor.torch(), fired)
    assert torch.equal(Tensor.of("s", spikes.T, encoding).torch(), fired.T)
    assert tensor.nbytes == (-(-fired.numel() // 8) if encoding == "bits" else 8 * int(fired.sum()))


@pytest.mark.parametrize("encoding", ["bits", "events"])
@pytest.mark.parametrize("minus_zero", [np.float32(-0.0), torch.tensor(-0.0, dtype=torch.bfloat16)])
def test_a_minus_zero_is_no_spike(encoding: Any, minus_zero: Any) -> None:
    assert not Tensor.of("s", minus_zero.reshape(1), encoding).torch().any()


@pytest.mark.parametrize("encoding", ["bits", "events"])
@pytest.mark.parametrize("values", [[0, 2], [0.5], [-1.0], [float("nan")], torch.tensor([0.5], dtype=torch.bfloat16)])
def test_what_is_not_zeros_and_ones_does_not_travel_as_spikes(encoding: Any, values: Any) -> None:
    with pytest.raises(ValueError, match=r"tensor 's' must be zeros and ones"):
        Tensor.of("s", values, encoding)


def test_events_want_dimensions_that_an_index_can_count() -> None:
    with pytest.raises(ValueError, match="must be of one dimension or more"):
        Tensor.of("s", True, "events")
    with pytest.raises(ValueError, match="no longer than 2"):
        Tensor.of("s", np.zeros((0, 2**31 + 1), bool), "events")
    with pytest.raises(ValueError, match="encoding must be one of raw, bits, events, got 'csr'"):
        Tensor.of("s", [True], "csr")  # type: ignore[arg-type]


def test_the_first_element_is_in_the_least_significant_bit() -> None:
    assert bytes(Tensor.of("s", [1, 0, 0, 0, 0, 0, 0, 0, 1], "bits").payload) == b"\x01\x01"


def test_lists_that_are_no_array_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"tensor 'a': .*inhomogeneous"):
        Tensor.of("a", [[1.0], [1.0, 2.0]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_json_writes_the_numbers_that_it_does_not_have_as_strings(dtype: torch.dtype) -> None:
    tensor = Tensor.of("a", torch.tensor([0.5, torch.nan, torch.inf, -torch.inf], dtype=dtype))
    encoded = encode(Message.of({}, [tensor]), "json")
    assert b'[0.5, "NaN", "Infinity", "-Infinity"]' in encoded.chunks[0]
    read = decode(encoded.chunks[0], encoded.content_type).tensors["a"].torch()
    torch.testing.assert_close(read, tensor.torch(), equal_nan=True)


@pytest.mark.parametrize(("unsigned", "sent"), [("uint16", "int32"), ("uint32", "int64"), ("uint64", "int64")])
def test_unsigned_integers_travel_in_a_signed_dtype_that_has_room(unsigned: str, sent: str) -> None:
    numbers = [0, 1, 2**16 - 1]
    for array in (np.array(numbers, unsigned), torch.tensor(numbers, dtype=getattr(torch, unsigned))):
        tensor = Tensor.of("labels", array)
        assert tensor.dtype == sent
        assert tensor.numpy().tolist() == numbers
        assert Tensor.of("spikes", array[:2], "bits").numpy().tolist() == [False, True]


def test_an_unsigned_integer_that_has_no_room_is_refused_by_its_value() -> None:
    assert Tensor.of("labels", np.array([2**63 - 1], np.uint64)).numpy().tolist() == [2**63 - 1]
    with pytest.raises(ValueError, match=r"'labels' must have values below 2\*\*63, .*, got 9223372036854775808"):
        Tensor.of("labels", np.array([1, 2**63], np.uint64))


@pytest.mark.filterwarnings("ignore:.*(nested tensors|CSR tensor):UserWarning")
@pytest.mark.parametrize(
    ("tensor", "got"),
    [
        (lambda: torch.eye(2).to_sparse(), "must be dense, got a sparse_coo tensor"),
        (lambda: torch.eye(2).to_sparse_csr(), "must be dense, got a sparse_csr tensor"),
        (lambda: torch.nested.nested_tensor([torch.ones(2)]), "must be dense, got a nested tensor"),
        (lambda: torch.ones(2, device="meta"), "must have elements, got one on the device meta"),
    ],
)
def test_a_tensor_without_elements_in_rows_is_refused(tensor: Callable[[], torch.Tensor], got: str) -> None:
    with pytest.raises(TypeError, match=f"tensor 'x' {got}"):
        Tensor.of("x", tensor())
