"""Spikes as bits: they are packed and unpacked without loss, written by LIF kernels, and read by products."""

import copy
import itertools
import pickle
from typing import Any

import pytest
import torch
from sparse_cases import on_cpu, spikes
from torch import Tensor

import exodus_core
from assertions import DTYPES, RESETS, lif_parameters, name_of
from exodus_core import PackedSpikes, functional, pack
from exodus_core.functional import lif_packed
from exodus_core.sparse.product import linear
from exodus_core.surrogate import Sigmoid

pytestmark = on_cpu

Size = torch.Size


@pytest.mark.parametrize("shape", [(7,), (3, 17), (2, 5, 4, 3), (2, 3, 64), (0, 5), (4, 0)], ids=name_of)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.bool, torch.uint8, torch.int64], ids=name_of)
def test_packing_loses_nothing(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = spikes(shape, 0.4, "ones", dtype)
    for features in range(1, len(shape) + 1):
        packed = pack(x, features)
        rows, columns = shape[: len(shape) - features], shape[len(shape) - features :]
        assert packed.bits.shape == (torch.Size(rows).numel(), -(-packed.columns // 8))
        assert (packed.shape, packed.features, packed.graph) == (x.shape, features, None)
        assert packed.columns == torch.Size(columns).numel()
        for wanted in (dtype, torch.float32, torch.bool, torch.uint8):
            assert torch.equal(packed.unpack(wanted), x.to(wanted))
        assert packed.density == pytest.approx(x.double().mean().item() if x.numel() else 0.0)
        flat = packed.flatten()
        assert flat.shape == (*rows, packed.columns)
        assert torch.equal(flat.unpack(dtype), x.reshape(flat.shape))


def test_bits_are_in_little_order_and_zero_behind_the_last_element() -> None:
    x = torch.zeros(2, 11)
    x[0, 0] = x[0, 9] = x[1, 7] = x[1, 10] = 1
    assert pack(x).bits.tolist() == [[1, 2], [128, 4]]
    assert pack(torch.ones(1, 11)).bits.tolist() == [[255, 7]]


def test_views_are_packed_as_they_are() -> None:
    x = spikes((9, 34), 0.5, "ones", torch.float32)
    for view in (x.T, x[:, ::2], x[:1].expand(5, 34)):
        assert torch.equal(pack(view).unpack(), view)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: pack(x.tolist()), TypeError, "spikes must be a tensor of floats, integers or bool, got list"),
        (lambda x: pack(x.cfloat()), TypeError, "spikes must be .*, got torch.complex64"),
        (lambda x: pack(x * 2), ValueError, "spikes must be zeros and ones, got other values"),
        (lambda x: pack(x * torch.nan), ValueError, "spikes must be zeros and ones, got other values"),
        (lambda x: pack(x, 0), ValueError, "features must be from 1 to the 2 dimensions of spikes, got 0"),
        (lambda x: pack(x, 3), ValueError, "features must be from 1 to the 2 dimensions of spikes, got 3"),
        (lambda x: PackedSpikes(x, Size((4, 9))), TypeError, "bits must be a tensor of uint8, got torch.float32"),
        (lambda x: PackedSpikes(b"", Size((4, 9))), TypeError, "bits must be a tensor of uint8, got bytes"),
        (
            lambda x: PackedSpikes(pack(x).bits, Size((4, 17))),
            ValueError,
            r"bits must be contiguous, of shape \(4, 3\), got \(4, 2\)",
        ),
        (
            lambda x: PackedSpikes(pack(x).bits.T.contiguous().T, Size((4, 9))),
            ValueError,
            r"bits must be contiguous, of shape \(4, 2\), got one that is not contiguous",
        ),
        (
            lambda x: PackedSpikes(pack(x).bits, Size((4, 9)), 3),
            ValueError,
            "features must be from 1 to the 2 dimensions of shape, got 3",
        ),
    ],
)
def test_a_wrong_argument_is_named(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(spikes((4, 9), 0.5, "ones", torch.float32))


def test_bits_behind_the_last_element_are_refused() -> None:
    """They would select rows of a weight that it does not have."""
    broken = PackedSpikes(torch.full((64, 5), 255, dtype=torch.uint8), Size((64, 33)))
    weight = torch.randn(700, 33)
    said = "bits must be 0 behind the last of 33 elements"
    with pytest.raises(RuntimeError, match=said):
        broken.unpack()
    with pytest.raises(RuntimeError, match=said):
        linear(broken, weight)


@pytest.mark.usefixtures("all_sparse")
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_a_product_of_packed_spikes_has_the_bits_of_one_of_floats(dtype: torch.dtype) -> None:
    x = spikes((3, 20, 4, 10), 0.2, "ones", dtype)
    weight, bias = torch.randn(65, 40).to(dtype), torch.randn(65).to(dtype)
    results = []
    for given in (x.flatten(2), pack(x, 2), pack(x.flatten(2))):
        leaves = [t.clone().requires_grad_() for t in (weight, bias)]
        y = linear(given, *leaves)
        results.append([y, *torch.autograd.grad(y.square().sum(), leaves)])
    for others in results[1:]:
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(results[0], others, strict=True))
    assert torch.equal(linear(pack(x, 2), weight, exact=True), linear(x.flatten(2), weight, exact=True))


def lif_and_product(x: Tensor, weight: Tensor, parameters: dict[str, Any], packed: bool, exact: bool) -> list[Tensor]:
    """The output of a LIF layer and a product behind it, and the gradients of everything."""
    leaves = {name: v.clone().requires_grad_() if isinstance(v, Tensor) else v for name, v in parameters.items()}
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    spikes_of = lif_packed if packed else lambda *a, **o: exodus_core.lif(*a, **o)[0]
    given = spikes_of(x, leaves.pop("alpha"), **leaves)
    assert isinstance(given, PackedSpikes) == packed
    y = linear(given.flatten() if isinstance(given, PackedSpikes) else given.flatten(2), weight, exact=exact)
    wanted = [x, weight, *(v for v in leaves.values() if isinstance(v, Tensor))]
    return [y, *torch.autograd.grad(y.square().sum(), wanted)]


@pytest.mark.usefixtures("all_sparse")
@pytest.mark.parametrize("reset", RESETS, ids=name_of)
@pytest.mark.parametrize("method", ["exodus", "slayer"])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_bits_of_a_lif_layer_have_the_gradients_of_its_spikes(
    reset: tuple[str, bool], method: str, dtype: torch.dtype
) -> None:
    x = torch.randn(2, 23, 3, 11, dtype=torch.float64).to(dtype)
    weight = torch.randn(5, 33, dtype=torch.float64).to(dtype)
    given = lif_parameters(x.shape, 1, dtype)
    given = {name: value for name, value in given.items() if "initial" not in name}
    options = {"reset": reset[0], "decay_reset": reset[1], "method": method, "surrogate": Sigmoid()}
    for exact in (False, True):
        by_bits, by_spikes = (lif_and_product(x, weight, given | options, packed, exact) for packed in (True, False))
        assert by_spikes[0].any()
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(by_bits, by_spikes, strict=True))


# Batch, time, neurons: of one step, of one vector and more, in several tiles, and in blocks of 8 to 128 steps.
SHAPES = [(1, 1, 16), (3, 300, 17), (2, 9, 100), (5, 130, 33), (1, 300, 1000), (2, 7, 5000), (1, 20, 4113)]


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("shape", SHAPES, ids=name_of)
def test_bits_are_the_spikes_at_every_edge_of_tiles_and_blocks(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.randn(shape).to(dtype)
    by_neuron = {"alpha": torch.rand(shape[2:]), "min_membrane": -torch.rand(shape[2:])}
    given: list[dict[str, Any]] = [{"alpha": 0.9}, {n: v.to(dtype) for n, v in by_neuron.items()}]
    given.append({**given[1], "bound_after_reset": True})
    for parameters in given:
        expected = exodus_core.lif(x, **parameters)[0]
        with torch.no_grad():
            alone = lif_packed(x, **parameters)
        leaf = x.clone().requires_grad_()
        packed = lif_packed(leaf, **parameters)
        assert isinstance(packed, PackedSpikes)
        for found in (alone, packed):
            assert isinstance(found, PackedSpikes)
            assert torch.equal(found.bits, pack(expected).bits)  # those behind the last element too
            assert torch.equal(found.unpack(dtype), expected)
        weight = torch.randn_like(expected)
        (by_bits,) = torch.autograd.grad(packed.unpack(dtype), leaf, weight)
        (by_spikes,) = torch.autograd.grad(exodus_core.lif(leaf, **parameters)[0], leaf, weight)
        assert torch.equal(by_bits, by_spikes)


@pytest.mark.parametrize("wanted", [w for w in itertools.product([False, True], repeat=3) if any(w)])
def test_gradients_flow_to_what_requires_them(wanted: tuple[bool, ...]) -> None:
    given = [torch.randn(2, 9, 20), torch.rand(20), 0.5 + torch.rand(20)]
    results = []
    for packed in (True, False):
        x, alpha, threshold = (t.clone().requires_grad_(w) for t, w in zip(given, wanted, strict=True))
        options: Any = {"threshold": threshold, "reset_by": threshold}
        found = lif_packed(x, alpha, **options) if packed else exodus_core.lif(x, alpha, **options)[0]
        spikes_of = found.unpack() if isinstance(found, PackedSpikes) else found
        spikes_of.square().sum().backward()
        results.append([x.grad, alpha.grad, threshold.grad])
    for ours, theirs, want in zip(*results, wanted, strict=True):
        assert (ours is not None) == want
        assert not want or torch.equal(ours, theirs)


def test_two_readers_of_the_bits_add_their_gradients() -> None:
    x = torch.randn(4, 60, 50, requires_grad=True)
    first, second = torch.randn(2, 128, 50)
    results = []
    for spikes_of in (lif_packed(x, 0.9), exodus_core.lif(x, 0.9)[0]):
        y = linear(spikes_of, first, exact=True).square() + linear(spikes_of, second, exact=True)
        results.append(torch.autograd.grad(y.sum(), x)[0])
    assert torch.equal(*results)


def test_views_of_currents_and_gradients_are_as_good_as_contiguous_ones() -> None:
    buffer = torch.full((5, 40, 60), 42.0)
    buffer[1:4, 5:35, 3:52] = torch.randn(3, 30, 49)
    view = buffer[1:4, 5:35, 3:52].requires_grad_()
    copied = view.detach().clone().requires_grad_()
    results = []
    for x in (view, copied):
        packed = lif_packed(x, 0.9)
        assert isinstance(packed, PackedSpikes)
        results.append([packed.bits, *torch.autograd.grad(packed.unpack().sum(), x)])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*results, strict=True))
    outside = torch.ones_like(buffer, dtype=torch.bool)
    outside[1:4, 5:35, 3:52] = False
    assert (buffer.detach()[outside] == 42).all()


def test_what_kernels_cannot_pack_is_a_tensor() -> None:
    x = torch.randn(2, 9, 20)
    others: list[Any] = [
        (x[..., :15], {}),
        (x[..., 0], {}),
        (x, {"max_spikes": 2}),
        (x, {"method": "bptt"}),
        (x.to("meta"), {}),
    ]
    for given, options in others:
        found = lif_packed(given, 0.9, **options)
        assert isinstance(found, Tensor)
        assert given.is_meta or torch.equal(found, exodus_core.lif(given, 0.9, **options)[0])
    assert isinstance(lif_packed(x, 0.9), PackedSpikes)
    with pytest.raises(ValueError, match="reset must be"):
        lif_packed(x, 0.9, reset="hard")
    with pytest.raises(ValueError, match="max_spikes must be"):
        lif_packed(x, 0.9, max_spikes=0)


def test_packed_neurons_without_steps_or_samples_are_empty() -> None:
    for shape in ((0, 5, 16), (2, 0, 16)):
        x = torch.zeros(shape, requires_grad=True)
        alpha = torch.tensor(0.9, requires_grad=True)
        packed = lif_packed(x, alpha)
        assert isinstance(packed, PackedSpikes)
        assert packed.unpack().shape == shape
        packed.unpack().sum().backward()
        assert alpha.grad == 0


def test_a_membrane_of_nan_does_not_spike() -> None:
    x = torch.full((1, 4, 40), 2.0)
    x[0, 1, 7] = torch.nan
    packed = lif_packed(x, 0.9)
    assert isinstance(packed, PackedSpikes)
    assert torch.equal(packed.unpack(), exodus_core.lif(x, 0.9)[0])
    assert not packed.unpack()[0, 1:, 7].any()


def test_second_derivatives_of_bits_are_refused() -> None:
    x = torch.randn(2, 9, 20, requires_grad=True)
    packed = lif_packed(x, 0.9)
    assert isinstance(packed, PackedSpikes)
    (gradient,) = torch.autograd.grad(packed.unpack().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives of a spiking neuron"):
        gradient.sum().backward()


def test_the_membrane_is_kept_for_the_backward_pass_and_the_spikes_are_not() -> None:
    x = torch.randn(4, 50, 32, requires_grad=True)
    kept = []

    def counted(tensor: Tensor) -> Tensor:
        kept.append(tensor.untyped_storage().nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(counted, lambda tensor: tensor):
        packed = lif_packed(x, 0.9)
    assert sum(kept) == x.nbytes + x.itemsize
    assert isinstance(packed, PackedSpikes)
    assert packed.graph is not None
    assert packed.graph.untyped_storage().nbytes() == x.itemsize


def test_packed_spikes_are_copied_and_pickled() -> None:
    packed = pack(spikes((3, 20), 0.5, "ones", torch.float32))
    for twin in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        assert torch.equal(twin.unpack(), packed.unpack())
        assert twin.shape == packed.shape


def test_neurons_from_which_on_bits_are_written_are_those_of_the_kernel() -> None:
    arguments = (0.9, 1.0, 1.0, -1.0, *[None] * 6, 1, False, 1)
    neurons = functional._PACKED_NEURONS
    torch.ops.exodus.lif_forward_packed(torch.randn(2, 3, neurons), *arguments)
    with pytest.raises(RuntimeError, match=f"at least {neurons} neurons must lie next to each other"):
        torch.ops.exodus.lif_forward_packed(torch.randn(2, 3, neurons - 1), *arguments)
