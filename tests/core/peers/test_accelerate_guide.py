"""docs/peers.md is true: its examples run, and what it says of them holds."""

from pathlib import Path
from typing import Any

import pytest
import torch

PAGE = (Path(__file__).parents[3] / "docs" / "peers.md").read_text()
EXAMPLES = [part.split("```")[0] for part in PAGE.split("```python\n")[1:]]

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("default")]


def run(library: str, request: pytest.FixtureRequest) -> dict[str, Any]:
    """The names of the example that imports a library, after it has run."""
    request.getfixturevalue(library)
    (example,) = [text for text in EXAMPLES if f"import {library}" in text or f"from {library}" in text][:1]
    names: dict[str, Any] = {}
    exec(example, names)
    return names


def test_the_example_of_spikingjelly_trains(request):
    names = run("spikingjelly", request)
    assert names["rates"].shape == (8, 10)
    assert all(parameter.grad is not None for parameter in names["net"].parameters())


def test_the_example_of_snntorch_gives_spikes_and_membranes_of_all_steps(request):
    names = run("snntorch", request)
    assert names["spikes"].shape == names["membranes"].shape == (25, 8, 10)


def test_the_refusal_on_the_page_is_the_refusal(request, capsys):
    request.getfixturevalue("snntorch")
    (example,) = [text for text in EXAMPLES if "AccelerationError" in text]
    exec(example, {})
    assert capsys.readouterr().out.startswith("1 (snntorch.Alpha): has two currents whose difference is the membrane,")


def test_the_example_of_sinabs_is_a_network_with_the_same_spikes(request):
    names = run("sinabs", request)
    import exodus_core

    network = exodus_core.network.build(names["description"])
    network.load_state_dict(names["weights"])
    x = 20 * torch.rand(2, 30, 784)
    with torch.no_grad():
        wanted = names["net"](x)
        assert wanted.any()
        assert torch.equal(network(x), wanted)
