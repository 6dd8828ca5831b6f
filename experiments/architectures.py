"""The architectures and settings of the paper's three data sets, as networks as data, each number with its source.

    python -m experiments.architectures        prints the table

Sources: "paper" is Bauer, Lenz, Haghighatshoar, Sheik, arXiv 2205.10242, table 2 and section 6.4; "authors' code" is
the repository of its experiments, github.com/synsense/slayer-comparison at b054a90, whose defaults these are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from exodus_core import network

#: Of the surrogate, in thresholds: `width_grad` of the authors' code.
WIDTH = 1.0


def neuron(threshold: float = 1.0, scale: float = 1.0) -> dict[str, Any]:
    """The paper's integrate-and-fire neuron, as a layer.

    Its surrogate derivative is that of sinabs' SingleExponential, scale / (WIDTH threshold) exp(-|u - threshold| /
    (WIDTH threshold)): the gradient through a spike and its reset, threshold f', is at most `scale`, whatever the
    threshold.
    """
    width = WIDTH * threshold
    return {
        "kind": "if",
        "threshold": threshold,
        "decay_reset": True,
        "surrogate": {"kind": "exponential", "slope": 1 / width, "scale": scale / width},
    }


def spoken(
    inputs: int,
    classes: int,
    *,
    hidden: Sequence[int] = (128, 128, 128),
    scale: float = 1.0,
    gains: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Fully connected layers without biases, neurons behind all but the last: HSD and SSC.

    Args:
        inputs, classes: size of the first and of the last layer.
        hidden: neurons of the layers between.
        scale: of the surrogate derivative.
        gains: factors on the initial weights of each layer, the last one included; default 1.
    """
    sizes = (*hidden, classes)
    layers: list[dict[str, Any]] = []
    for size, gain in zip(sizes, gains or [1.0] * len(sizes), strict=True):
        layers += [{"kind": "linear", "out_features": size, "bias": False, "gain": gain}, neuron(scale=scale)]
    return {"input_shape": [inputs], "layers": layers[:-1]}


def gesture(
    shape: Sequence[int],
    classes: int,
    *,
    channels: Sequence[int] = (2, 4, 8, 16),
    scale: float = 1.0,
    gains: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Convolutions of 3 x 3 with neurons, each pooled while the image is larger than 4 x 4, a readout: DVS Gesture.

    Args:
        shape: of the input in one step: (polarities, rows, columns).
        classes: size of the readout.
        channels: of each convolution.
        scale: of the surrogate derivative.
        gains: factors on the initial weights of each convolution and of the readout; default 1.
    """
    gains = gains or [1.0] * (len(channels) + 1)
    edge = min(shape[1:])
    layers: list[dict[str, Any]] = []
    for size, gain in zip(channels, gains[:-1], strict=True):
        convolution = {"kind": "conv2d", "out_channels": size, "kernel_size": 3, "padding": 1}
        layers += [{**convolution, "bias": False, "gain": gain}, neuron(GESTURE_THRESHOLD, scale)]
        if edge > SMALLEST_IMAGE:
            layers.append({"kind": "avg_pool", "kernel_size": 2})
            edge //= 2
    layers += [{"kind": "flatten"}, {"kind": "linear", "out_features": classes, "bias": False, "gain": gains[-1]}]
    return {"input_shape": list(shape), "layers": layers}


#: Threshold of the neurons of DVS Gesture; that of HSD and SSC is 1.
GESTURE_THRESHOLD = 0.25
#: Edge of an image that is not pooled any more.
SMALLEST_IMAGE = 4


@dataclass(frozen=True)
class Architecture:
    """A network of the paper and how it is trained.

    Attributes:
        title: its data set.
        description: the network (docs/networks.md).
        dt, steps: length of a step in microseconds, and steps of a sample.
        loss, optimizer: as of docs/networks.md.
        batch: samples in one update.
        updates: in one epoch.
        epochs: how often every sample is shown.
        sources: where each number is from.
    """

    title: str
    description: Mapping[str, Any]
    dt: int
    steps: int
    loss: str
    optimizer: Mapping[str, Any]
    batch: int
    updates: int
    epochs: int
    sources: Mapping[str, str]


_ADAM = {"kind": "adam", "lr": 1e-3}
_SPOKEN_SOURCES = {
    "inputs": "paper, table 2: 100; authors' code: channel floor(c 100 / 700) of the 700",
    "hidden layers": "authors' code: 128-128-128; the paper's text says four layers, its table 2 prints 100-128l-128l-",
    "readout": "authors' code: linear, without neurons",
    "neurons": "paper: IF, one spike a step; authors' code: LIF of 100,000 steps",
    "threshold": "authors' code: 1",
    "surrogate": "authors' code: exponential, width 1; paper: scale 1 in table 1",
    "step": "authors' code: 4 ms",
    "steps": "paper, table 2: 250",
    "spikes": "authors' code: counts of a bin, not only 0 and 1",
    "loss": "paper, table 2: cross-entropy of the maximum over time",
    "optimiser": "paper, table 2: Adam, 0.001",
    "batch": "paper, table 2: 128",
    "epochs": "paper, table 2: 200",
    "weights": "authors' code: torch's, U(-1/sqrt(n), 1/sqrt(n))",
}
_GESTURE_SOURCES = {
    "image": "authors' code: 128 x 128 joined to 64 x 64",
    "layers": "paper, table 2: 2c3-2p-4c3-2p-8c3-2p-16c3-11l; authors' code: padding 1, means, also before 11l",
    "readout": "authors' code: linear, without neurons",
    "neurons": "paper: IF, one spike a step",
    "threshold": "authors' code: 0.25",
    "surrogate": "authors' code: exponential, width 1; paper: scale 1 in table 1",
    "step": "authors' code: 5 ms, of the first 1.5 s",
    "steps": "paper, table 2: 300",
    "spikes": "authors' code: counts of a bin, not only 0 and 1",
    "loss": "paper, table 2: cross-entropy of the sum over time",
    "optimiser": "paper, table 2: Adam, 0.001; authors' code: weight decay 0.01",
    "batch": "paper, table 2: 32",
    "epochs": "paper, table 2: 100",
    "weights": "authors' code: torch's, U(-1/sqrt(n), 1/sqrt(n))",
}

#: What neither source says for certain, or what is not done here.
UNKNOWN = (
    "Whether the accuracies of HSD and SSC in table 1 are of two or of three hidden layers: text and table 2 differ. "
    "Three here, as the authors' code has by default.",
    "Whether those of DVS Gesture are with dropout (0.2 behind each convolution, 0.7 before the readout), weight norm "
    "and random shifts and rotations: the authors' code has all three as options, off by default. Off here.",
    "Threshold, width of the surrogate, length of a step and weight decay of the paper's runs: defaults of the code.",
    "The GPU's clock and the library's version of the times of table 3. Accuracies of table 1 are the maximum over "
    "epochs of those on the test part (on the valid part of SSC), which the authors' code evaluates after each epoch.",
)

#: By the name that commands use. Updates in an epoch: 8,156 samples of SHD and 1,077 of DVS Gesture without the last
#: batch, which is not full; 75,466 of SSC.
ARCHITECTURES = {
    "dvs": Architecture(
        title="DVS Gesture",
        description=gesture((2, 64, 64), 11),
        dt=5_000,
        steps=300,
        loss="sum_over_time_ce",
        optimizer={**_ADAM, "weight_decay": 1e-2},
        batch=32,
        updates=1_077 // 32,
        epochs=100,
        sources=_GESTURE_SOURCES,
    ),
    "shd": Architecture(
        title="HSD",
        description=spoken(100, 20),
        dt=4_000,
        steps=250,
        loss="max_over_time_ce",
        optimizer=_ADAM,
        batch=128,
        updates=8_156 // 128,
        epochs=200,
        sources=_SPOKEN_SOURCES,
    ),
    "ssc": Architecture(
        title="SSC",
        description=spoken(100, 35),
        dt=4_000,
        steps=250,
        loss="max_over_time_ce",
        optimizer=_ADAM,
        batch=128,
        updates=-(-75_466 // 128),
        epochs=200,
        sources=_SPOKEN_SOURCES,
    ),
}


def values(architecture: Architecture) -> dict[str, str]:
    """The numbers that `sources` are of, as they are used here."""
    layers: list[dict[str, Any]] = list(network.parse(architecture.description).data["layers"])
    shape = architecture.description["input_shape"]
    kinds = {"linear": "{out_features}l", "conv2d": "{out_channels}c{kernel_size}", "avg_pool": "{kernel_size}p"}
    sizes = "-".join(kinds[layer["kind"]].format_map(_Plain(layer)) for layer in layers if layer["kind"] in kinds)
    first = next(layer for layer in layers if layer["kind"] == "if")
    surrogate = first["surrogate"]
    return {
        "inputs": str(shape[0]),
        "image": " x ".join(map(str, shape)),
        "hidden layers": sizes,
        "layers": sizes,
        "readout": f"{layers[-1]['out_features']} outputs without neurons",
        "neurons": "IF, reset by subtraction",
        "threshold": f"{first['threshold']:g}",
        "surrogate": f"{surrogate['scale']:g} exp(-{surrogate['slope']:g} abs(u - {first['threshold']:g}))",
        "step": f"{architecture.dt / 1000:g} ms",
        "steps": str(architecture.steps),
        "spikes": "counts, 0 to 255",
        "loss": f"`{architecture.loss}`",
        "optimiser": ", ".join(f"{key} {value}" for key, value in architecture.optimizer.items()),
        "batch": str(architecture.batch),
        "epochs": str(architecture.epochs),
        "weights": "U(-1/sqrt(n), 1/sqrt(n))",
    }


class _Plain(dict[str, Any]):
    """Fields of a layer; a square kernel is one number."""

    def __getitem__(self, key: str) -> Any:
        value = super().__getitem__(key)
        return value[0] if isinstance(value, list) and len(set(value)) == 1 else value


def page() -> str:
    """All architectures in Markdown: what is used here, and the source of each number."""
    lines = []
    for name, architecture in ARCHITECTURES.items():
        used = values(architecture)
        lines += [f"## {architecture.title} (`--task {name}`)", "", "| | here | source |", "| --- | --- | --- |"]
        lines += [f"| {quantity} | {used[quantity]} | {source} |" for quantity, source in architecture.sources.items()]
        lines.append("")
    lines += ["## Unknown", "", *(f"- {line}" for line in UNKNOWN)]
    return "\n".join(lines)


if __name__ == "__main__":
    print(page())
