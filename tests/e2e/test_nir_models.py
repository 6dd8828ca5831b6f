"""A NIR graph trains on the server, and the state that comes back is a graph again."""

import json
from pathlib import Path

import nir
import numpy as np
import safetensors.numpy
import torch
from typer.testing import CliRunner

from exodus_client import Client
from exodus_core import network
from exodus_core.nir import import_graph
from exodus_core.nir.commands import app


def test_a_graph_trains_on_the_server_and_comes_back_as_one(client: Client, tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    ones = np.ones(6)
    taus = {"tau_syn": 0.004 * ones, "tau_mem": 0.01 * ones}
    neurons = nir.CubaLIF(**taus, r=10 * ones, w_in=4 * ones, v_leak=0 * ones, v_threshold=ones)
    graph = nir.NIRGraph.from_list(nir.Affine(weight=generator.uniform(-1, 2, (6, 4)), bias=0.1 * ones), neurons)
    nir.write(tmp_path / "model.nir", graph)
    files = {"--network": tmp_path / "network.json", "--weights": tmp_path / "weights.safetensors"}
    options = ["--written-by", "norse", "--dt", "1e-3", *(str(part) for pair in files.items() for part in pair)]
    assert CliRunner().invoke(app, ["import", str(tmp_path / "model.nir"), *options]).exit_code == 0

    model = client.create_model(json.loads(files["--network"].read_text()), optimizer={"kind": "sgd", "lr": 0.1})
    model.load_state_dict(safetensors.numpy.load_file(files["--weights"]))
    x = torch.rand(3, 20, 4) < 0.5
    found = import_graph(tmp_path / "model.nir", written_by="norse", dt=1e-3)
    local = network.build(found.description)
    local.load_state_dict(found.weights)
    spikes = local(x)
    assert spikes.any()
    assert torch.equal(torch.as_tensor(model.forward(x).result().outputs), spikes)

    model.step(x, torch.tensor([0, 3, 5]), loss="sum_over_time_ce").result()
    model.save(tmp_path / "trained.safetensors")
    arguments = [
        "export",
        str(tmp_path / "trained.safetensors"),
        "--out",
        str(tmp_path / "trained.nir"),
        "--dt",
        "1e-3",
    ]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    again = import_graph(tmp_path / "trained.nir")
    trained = model.state_dict("torch")
    assert list(again.weights) == list(trained)
    assert all(torch.equal(value, torch.as_tensor(trained[name])) for name, value in again.weights.items())
    assert any(not torch.equal(value, found.weights[name]) for name, value in again.weights.items())
