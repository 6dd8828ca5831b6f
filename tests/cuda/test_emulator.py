"""The emulator of CUDA itself: what it runs right, and the errors that it must find, by small kernels compiled once."""

import json
import math
import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FLAGS = ["-std=c++17", "-O0", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
WARNINGS = ["-Wall", "-Wextra", "-Werror"]
ORDERS = ["forward", "reverse", "0", "1", "20240229"]

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs one command of example_kernels.cu in a given order."""
    program = tmp_path_factory.mktemp("emulator") / "example_kernels"
    includes = ["-I", str(HERE), "-I", str(HERE.parents[1] / "exodus_core" / "csrc")]
    source = ["-x", "c++", str(HERE / "example_kernels.cu"), *includes, "-o", str(program)]
    subprocess.run([os.environ.get("CXX", "g++"), *FLAGS, *WARNINGS, *source, "-pthread"], check=True)

    def run(command: str, order: str | None = None) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if name != "EXODUS_EMULATE_ORDER"}
        environment["ASAN_OPTIONS"] = "detect_leaks=0"
        if order is not None:
            environment["EXODUS_EMULATE_ORDER"] = order
        return subprocess.run([program, command], env=environment, capture_output=True, text=True)

    return run


def numbers(finished: subprocess.CompletedProcess[str]) -> list[float]:
    assert finished.returncode == 0, finished.stderr
    return [float(word) for word in finished.stdout.split()]


def complaint(finished: subprocess.CompletedProcess[str]) -> str:
    """The message of the emulator as it ended the program."""
    assert finished.returncode == -signal.SIGABRT, finished.stderr
    assert finished.stdout == ""
    (line,) = (line for line in finished.stderr.splitlines() if line.startswith("exodus emulation: "))
    # A place in the source is the line's number alone, so that the message can be compared.
    return re.sub(r"\S*example_kernels\.cu:(\d+)", r"line \1", line).removeprefix("exodus emulation: ")


def lines_of(kernel: str, statement: str) -> list[int]:
    """The lines of example_kernels.cu on which a kernel has a statement."""
    lines = (HERE / "example_kernels.cu").read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if re.search(rf"__global__ void {kernel}\(", line))
    end = next(i for i in range(start, len(lines)) if lines[i] == "}")
    return [i + 1 for i in range(start, end) if statement in lines[i]]


# What it runs.


@pytest.mark.parametrize("order", ORDERS)
def test_a_sum_through_shared_memory_is_right_in_every_order(example: Run, order: str) -> None:
    blocks = [range(256), range(256, 512), range(512, 768), range(768, 1000)]
    assert numbers(example("block_sums", order)) == [sum(block) for block in blocks]


@pytest.mark.parametrize("order", ORDERS)
def test_every_thread_of_two_dimensional_blocks_and_grids_runs_once(example: Run, order: str) -> None:
    assert numbers(example("blocks_of_two_dimensions", order)) == [1] * 72


@pytest.mark.parametrize("order", ORDERS)
def test_syncthreads_or_tells_every_thread_of_any_and_forgets_it_at_the_next(example: Run, order: str) -> None:
    assert numbers(example("any_thread_40", order)) == [10] * 64
    assert numbers(example("any_thread_none", order)) == [0] * 64


@pytest.mark.parametrize("order", ORDERS)
def test_shuffles_move_values_within_a_warp_and_not_across(example: Run, order: str) -> None:
    got = numbers(example("shuffles", order))
    below = [lane if lane % 32 == 0 else lane - 1 for lane in range(40)]
    above = [lane + 2 if (lane + 2) // 32 == lane // 32 and lane + 2 < 40 else lane for lane in range(40)]
    assert got == below + above + [1] * 32 + [33] * 8


def test_threads_take_turns_in_the_order_asked_for(example: Run) -> None:
    forward = numbers(example("turns"))
    assert forward == [0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7, 4, 5, 6, 7]
    assert numbers(example("turns", "forward")) == forward
    assert numbers(example("turns", "reverse")) == [7, 6, 5, 4, 7, 6, 5, 4, 3, 2, 1, 0, 3, 2, 1, 0]


def test_a_seed_shuffles_blocks_and_each_turn_of_the_threads_and_can_be_repeated(example: Run) -> None:
    shuffled = {seed: numbers(example("turns", str(seed))) for seed in range(8)}
    turns = [tuple(turn[i : i + 4]) for turn in shuffled.values() for i in range(0, 16, 4)]
    assert {tuple(sorted(turn)) for turn in turns} == {(0, 1, 2, 3), (4, 5, 6, 7)}
    assert len(set(turns)) > 8
    assert {turn[0] // 4 for turn in shuffled.values()} == {0, 1}
    assert any(turn[:4] != turn[4:8] for turn in shuffled.values())
    assert numbers(example("turns", "3")) == shuffled[3]


def test_two_threads_of_the_host_launch_at_the_same_time(example: Run) -> None:
    ten_launches = [10 * value for value in numbers(example("block_sums"))]
    assert numbers(example("two_threads")) == ten_launches + ten_launches


def test_counters_add_up_the_launches_of_a_kernel_until_they_are_reset(example: Run) -> None:
    counted, after_reset = map(json.loads, example("counters").stdout.splitlines())
    of_two_launches = {
        "launches": 2,
        "blocks": 2 * 4,
        "threads": 2 * 4 * 256,
        "barriers": 2 * 4 * 8,
        "shared_bytes": 2 * 4 * 256 * 8,
        "loads": 2 * 1000,
        "loaded_bytes": 2 * 1000 * 8,
        "stores": 2 * 4,
        "stored_bytes": 2 * 4 * 8,
    }
    assert list(counted) == ["(sum_of_block<double, 256>)"]
    assert {name: value for name, value in counted["(sum_of_block<double, 256>)"].items() if value} == of_two_launches
    assert after_reset == {}


def test_operations_are_counted_by_an_element_type_that_computes_as_float(example: Run) -> None:
    values, counters = example("operations").stdout.splitlines()
    got = [float(word) for word in values.split()]
    assert got[:10] == pytest.approx(got[10:], rel=1e-6)
    assert got[:5] == [0, 1, 0, 0, 1]
    counted = json.loads(counters)
    assert counted["neuron_steps<float>"]["multiplications"] == 0
    a_step = {name: value / 5 for name, value in counted["neuron_steps<Counted>"].items()}
    # alpha u + x - theta s, where alpha < 1 and abs(u) is not subnormal; u >= theta; exp(-abs(2 (u - theta)))
    assert a_step["multiplications"] == 1 + 1 + 1
    assert a_step["additions"] == 2 + 1
    assert a_step["comparisons"] == 2 + 1
    assert a_step["exponentials"] == 1
    assert a_step["divisions"] == 0


# What it finds.


def test_a_missing_barrier_shows_when_the_order_changes(example: Run) -> None:
    assert numbers(example("forgets_a_barrier", "forward")) == [0, 0, 1, 2, 3, 4, 5, 6, 0]
    reverse = numbers(example("forgets_a_barrier", "reverse"))
    assert reverse[0] == 0
    assert all(math.isnan(value) for value in reverse[1:8])


def test_a_block_that_reads_another_shows_when_the_order_changes(example: Run) -> None:
    assert numbers(example("reads_another_block", "forward")) == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert numbers(example("reads_another_block", "reverse")) == [0, 1, 1, 1, 1, 1, 1, 1, 1]


def test_shared_memory_that_nobody_wrote_is_nan_in_every_block(example: Run) -> None:
    assert all(math.isnan(value) for value in numbers(example("reads_what_nobody_wrote"))[:8])


def test_a_thread_that_leaves_before_a_barrier_is_found(example: Run) -> None:
    (barrier,) = lines_of("leaves_before_the_barrier", "__syncthreads")
    assert complaint(example("leaves_before_the_barrier")) == (
        "leaves_before_the_barrier, block (0, 0, 0), thread (7, 0, 0) has left the kernel, "
        f"but thread (0, 0, 0) waits at the barrier at line {barrier}"
    )


@pytest.mark.parametrize("order", ORDERS)
def test_a_copy_is_there_when_its_group_was_waited_for_and_not_before(example: Run, order: str) -> None:
    assert numbers(example("waits_for_copies", order)) == [6, 18]
    assert all(map(math.isnan, numbers(example("reads_a_copy_under_way", order))))


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("copies_beyond_shared_memory", "thread (1, 0, 0) copies beyond the shared memory of its block"),
        ("copies_across_alignment", "copies 8 bytes that are not aligned to that"),
    ],
)
def test_a_copy_that_a_gpu_would_not_do_is_found(example: Run, command: str, message: str) -> None:
    assert message in complaint(example(command))


@pytest.mark.parametrize("order", ORDERS)
def test_threads_at_two_different_barriers_are_found(example: Run, order: str) -> None:
    first, second = lines_of("waits_at_two_barriers", "__syncthreads")
    assert complaint(example("waits_at_two_barriers", order)) == (
        f"waits_at_two_barriers, block (0, 0, 0), thread (32, 0, 0) waits at the barrier at line {second}, "
        f"but thread (0, 0, 0) waits at the barrier at line {first}"
    )


def test_a_thread_that_waits_more_often_than_others_is_found(example: Run) -> None:
    assert "thread (0, 0, 0) has left the kernel, but thread (1, 0, 0) waits" in complaint(
        example("waits_more_often_than_others")
    )


def test_a_lane_that_does_not_come_to_a_shuffle_is_found(example: Run) -> None:
    assert "thread (5, 0, 0) has left the kernel, but thread (0, 0, 0) waits at the shuffle" in complaint(
        example("shuffles_without_a_lane")
    )


def test_a_shuffle_of_part_of_a_warp_is_refused(example: Run) -> None:
    assert "which is emulated for whole warps only" in complaint(example("shuffles_half_a_warp"))


@pytest.mark.parametrize(
    ("command", "report"),
    [
        ("writes_beyond_shared_memory", "heap-buffer-overflow"),
        ("reads_beyond_a_local_array", "stack-buffer-overflow"),
        ("loads_across_alignment", "misaligned address"),
        ("recurses_deeply", "stack-overflow"),
    ],
)
def test_the_sanitizers_see_into_kernels(example: Run, command: str, report: str) -> None:
    finished = example(command)
    assert finished.returncode != 0
    assert report in finished.stderr


def test_an_exception_in_a_kernel_is_found(example: Run) -> None:
    assert complaint(example("throws")) == "throws, block (0, 0, 0), thread (3, 0, 0) threw an exception: as asked"


def test_a_launch_inside_a_kernel_is_found(example: Run) -> None:
    assert complaint(example("launches_a_kernel")) == (
        "launches_a_kernel, block (0, 0, 0), thread (0, 0, 0) launches does_nothing; only the host launches"
    )


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("no_blocks", "does_nothing: grid.x must be 1 to 2147483647, got 0"),
        ("many_blocks_in_x", "does_nothing: grid.x must be 1 to 2147483647, got 2147483648"),
        ("many_blocks_in_y", "does_nothing: grid.y must be 1 to 65535, got 65536"),
        ("no_threads", "does_nothing: block.x must be 1 to 1024, got 0"),
        ("many_threads", "does_nothing: the threads of a block must be at most 1024, got 1056"),
        ("much_shared_memory", "does_nothing: the shared bytes of a block must be at most 49152, got 49153"),
        ("a_count_beyond_32_bits", "a dimension of dim3 must fit in 32 bits, got 4294967296"),
        ("barrier_on_the_host", "__syncthreads was called outside a kernel"),
    ],
)
def test_a_launch_that_a_gpu_would_refuse_is_refused(example: Run, command: str, message: str) -> None:
    assert complaint(example(command)) == message


@pytest.mark.parametrize("order", ["", "backward", "-1", "1000000000"])
def test_an_order_that_does_not_exist_is_refused(example: Run, order: str) -> None:
    assert complaint(example("block_sums", order)) == (
        f"EXODUS_EMULATE_ORDER must be forward, reverse or a number below 10^9, got '{order}'"
    )
