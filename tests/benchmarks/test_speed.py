"""The speed benchmark: it times nobody who is wrong, and writes the section of the README between its markers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import exodus_core
from benchmarks.speed import report
from benchmarks.speed.comparison import Comparison
from benchmarks.speed.contenders import CONTENDERS, Contender
from benchmarks.speed.gate import fault
from benchmarks.speed.measure import Timing, interleaved
from benchmarks.speed.workloads import ALPHA, SURROGATE, Workload

SMALL = Workload(2, 40, 16)
OURS = [contender for contender in CONTENDERS if contender.is_ours]


def spikes_of(x: Tensor, **options: Any) -> Tensor:
    return exodus_core.lif(x, **{"alpha": ALPHA, "decay_reset": True, "surrogate": SURROGATE, **options})[0]


@pytest.mark.parametrize("contender", OURS, ids=lambda contender: contender.name)
def test_our_own_contenders_pass_the_gate(contender: Contender) -> None:
    assert fault(contender, contender.build(), SMALL) is None


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"alpha": 0.8}, "spikes differ"),
        ({"method": "slayer"}, "the gradient differs"),
        ({"surrogate": exodus_core.surrogate.Sigmoid(4.01)}, "the gradient differs"),
    ],
    ids=["another decay", "another method", "another surrogate"],
)
def test_the_gate_says_what_is_wrong(options: dict[str, Any], found: str) -> None:
    contender = Contender("wrong", lambda: lambda x: spikes_of(x, **options))
    assert found in (fault(contender, contender.build(), SMALL) or "")


def test_the_gate_reads_a_layout_with_time_first_and_a_scaled_input() -> None:
    contender = Contender("time first", lambda: lambda x: spikes_of(x / 10, time_dim=0), time_dim=0, gain=10.0)
    assert fault(contender, contender.build(), SMALL) is None


def test_a_slow_call_is_not_repeated_and_others_fill_their_share() -> None:
    calls = {"slow": 0, "long": 0, "fast": 0}

    def turn(name: str, seconds: float) -> Callable[[], tuple[float, ...]]:
        def run() -> tuple[float, ...]:
            calls[name] += 1
            return (seconds,)

        return run

    turns = {name: turn(name, seconds) for name, seconds in (("slow", 60.0), ("long", 2.0), ("fast", 0.125))}
    timings = interleaved(turns, most=10, share=4.0)
    # Two calls to warm up, then what is timed; before each of the short ones a call to settle.
    assert calls == {"slow": 1, "long": 2 + 2, "fast": 2 + 2 * 10}
    assert {name: len(timing.repeats) for name, timing in timings.items()} == {"slow": 1, "long": 2, "fast": 10}


def test_the_table_shows_times_ratios_and_who_is_wrong() -> None:
    comparison = Comparison(
        neuron={"2x40x16": {"exodus": Timing([(1e-3, 1e-3)]), "sinabs": Timing([(0.1, 0.1), (0.2, 0.2)])}},
        wrong={"2x40x16": {"norse": "3 of 1280 spikes differ"}},
    )
    lines = report.comparison_table(comparison.neuron, comparison.wrong).splitlines()
    assert lines[2:] == ["| **exodus** | 2.00 ms |", "| sinabs | 200 ms (100x) |", "| norse | wrong |"]
    assert "norse at 2x40x16: wrong, not timed; 3 of 1280 spikes differ" in report.remarks(comparison)


def test_the_section_of_the_readme_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.rewrite_readme(readme, "new")
    assert readme.read_text() == f"before\n{report.BEGIN}\nnew\n{report.END}\nafter\n"
    readme.write_text("no markers")
    with pytest.raises(LookupError, match="no section"):
        report.rewrite_readme(readme, "new")


def test_a_wrong_contender_of_ours_fails_the_run() -> None:
    assert not Comparison(wrong={"w": {"sinabs": "x"}}).ours_is_wrong
    assert Comparison(wrong={"w": {"exodus": "x"}}).ours_is_wrong


def test_bytes_kept_are_counted_once_a_storage() -> None:
    from benchmarks.speed.memory import kept_arrays

    def twice(x: Tensor) -> Tensor:
        return torch.sin(x) + torch.cos(x)  # both keep x, and nothing else

    assert kept_arrays(CONTENDERS[0], twice, SMALL) == 1.0
