"""The paper's architectures are networks that can be built, and each of their numbers has a source."""

import pytest

from exodus_core import network
from experiments.architectures import ARCHITECTURES, gesture, neuron, page, spoken, values


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_number_has_a_source(name: str) -> None:
    architecture = ARCHITECTURES[name]
    assert set(architecture.sources) <= set(values(architecture))
    for source in architecture.sources.values():
        assert "paper" in source or "authors' code" in source


def test_the_networks_have_the_paper_s_sizes() -> None:
    sizes = {name: [shape for _, shape in network.parse(a.description).parameters] for name, a in ARCHITECTURES.items()}
    assert sizes["shd"] == [(128, 100), (128, 128), (128, 128), (20, 128)]
    assert sizes["ssc"] == [(128, 100), (128, 128), (128, 128), (35, 128)]
    assert sizes["dvs"] == [(2, 2, 3, 3), (4, 2, 3, 3), (8, 4, 3, 3), (16, 8, 3, 3), (11, 16 * 4 * 4)]


def test_an_image_is_pooled_until_it_is_4_by_4() -> None:
    layers = gesture((2, 34, 34), 10)["layers"]
    assert [layer["kind"] for layer in layers].count("avg_pool") == 3
    assert network.parse(gesture((2, 34, 34), 10)).parameters[-1][1] == (10, 16 * 4 * 4)


def test_the_surrogate_scales_with_the_threshold() -> None:
    """The gradient through a spike and its reset, threshold f', is at most the scale."""
    for threshold in (0.25, 1.0, 3.0):
        assert threshold * neuron(threshold, scale=0.5)["surrogate"]["scale"] == pytest.approx(0.5)


def test_gains_are_those_of_the_layers_in_order() -> None:
    layers = spoken(5, 3, hidden=(4, 4), gains=(2.0, 3.0, 1.0))["layers"]
    assert [layer["gain"] for layer in layers if layer["kind"] == "linear"] == [2.0, 3.0, 1.0]
    with pytest.raises(ValueError, match="zip"):
        spoken(5, 3, hidden=(4, 4), gains=(2.0,))


def test_the_page_has_every_architecture_and_what_is_unknown() -> None:
    text = page()
    for title in ("DVS Gesture", "HSD", "SSC", "Unknown"):
        assert f"## {title}" in text
    assert "2c3-2p-4c3-2p-8c3-2p-16c3-2p-11l" in text
