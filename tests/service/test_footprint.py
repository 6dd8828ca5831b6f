"""Models and contexts count at least what they take: tensors, and the objects around them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

LAYERS: dict[str, list[dict[str, Any]]] = {
    "if": [{"kind": "exp_leak", "alpha": 0.9, "trainable": ["alpha"]}, *[{"kind": "if"}] * 119],
    "linear": [{"kind": "linear", "out_features": 1}] * 120,
    "lif": [{"kind": "lif", "alpha": 0.9, "trainable": ["alpha", "threshold"]}] * 120,
    "recurrent": [{"kind": "lif", "alpha": 0.9, "recurrent": {"bias": True}}] * 60,
    "batch_norm": [{"kind": "batch_norm"}] * 120,
    "srm": [
        {"kind": "exp_leak", "alpha": 0.9, "trainable": ["alpha"]},
        *[{"kind": "srm", "reset_kernel": [-1.0] * 40, "response_kernel": {"kind": "alpha", "tau": 2.0}}] * 100,
    ],
    "bptt": [{"kind": "lif", "alpha": 0.9, "trainable": ["alpha"], "method": "bptt"}] * 2,
    "pieces": [{"kind": "lif", "alpha": 0.9, "trainable": ["alpha", "threshold"]}] * 20,
    "pieces of one layer": [{"kind": "lif", "alpha": 0.9, "trainable": ["alpha"]}],
}
CHECKPOINT_STEPS = {"pieces": 10, "pieces of one layer": 1}
# Nothing is let go of before the end, so that nothing comes to lie where something else was.
MEASURE = """
import ctypes, gc, json, sys
import torch
torch.set_num_threads(1)
from exodus_service.models.model import Model
from exodus_service.models.model_spec import parse_spec
from exodus_service.models.sequencer import SequencerLimits

libc = ctypes.CDLL(None)
libc.mallopt(-8, 1)
COUNT, STEPS = 6, 50
kept = []

def resident():
    gc.collect()
    libc.malloc_trim(0)
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmRSS"))

def made(layers, steps, optimizer="adam"):
    network = {"input_shape": [1], "layers": layers, "checkpoint_steps": steps}
    spec = parse_spec("o", None, network=network, optimizer=optimizer, max_model_bytes=2**30)
    model = Model(spec, spec.build(torch.device("cpu")), SequencerLimits(2**20, 10.0))
    x, y = torch.rand(2, STEPS, 1), torch.zeros(2, STEPS, 1)
    model.trainer.step(x, y, "spike_train_mse")
    model.trainer.forward_backward(x, y, "spike_train_mse")
    return model

for name, (layers, steps) in json.loads(sys.stdin.read()).items():
    made(layers[:2], steps)
    start = resident()
    models = [made(layers, steps) for _ in range(COUNT)]
    middle = resident()
    contexts = [model.trainer.begin(torch.rand(2, STEPS, 1)) for model in models]
    end = resident()
    kept += [*models, *contexts]
    counted = [models[0].nbytes, contexts[0].nbytes + models[0].network.graph(STEPS)]
    print(json.dumps([name, (middle - start) // COUNT, (end - middle) // COUNT, *counted]), flush=True)
"""


@pytest.fixture(scope="module")
def measured() -> dict[str, list[int]]:
    if not Path("/proc/self/status").exists():
        pytest.skip("there is no /proc to measure with")
    command = [sys.executable, "-c", MEASURE]
    cases = {kind: (layers, CHECKPOINT_STEPS.get(kind)) for kind, layers in LAYERS.items()}
    run = subprocess.run(command, input=json.dumps(cases), capture_output=True, text=True, check=True)
    return {name: numbers for name, *numbers in map(json.loads, run.stdout.splitlines())}


@pytest.mark.parametrize("kind", LAYERS)
def test_models_and_contexts_of_many_layers_count_what_they_take(measured: dict[str, list[int]], kind: str) -> None:
    model, context, model_counts, context_counts = measured[kind]
    assert model <= model_counts <= 4 * model + 2**17
    assert context <= context_counts + 2**15 <= 8 * context + 2**17
