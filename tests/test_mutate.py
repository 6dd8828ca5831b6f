"""The mutants of a header: which there are, what each computes, and that tests that miss one are told."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from tools.commands import ROOT
from tools.mutate import __main__ as command
from tools.mutate import build, mutants, report
from tools.mutate.mutants import Header, Mutant
from tools.mutate.plugin import Plan, Verdict

SWITCH = Path(build.__file__).parent

HEADER = """\
#pragma once

#define EXODUS_HOST_DEVICE inline

namespace tiny {

enum class Kind : int { first = 1 };

constexpr int kStep = 4;

EXODUS_HOST_DEVICE int grow(int n) {
#if defined(__CUDA_ARCH__)
  return n * 3;
#else
  constexpr int more = 10;
  return n + more * kStep;  // 1 + 10 * 4
#endif
}

struct Interval {
  int low;

  EXODUS_HOST_DEVICE bool has(int n) const { return low <= n && !(n == 7); }
};

}  // namespace tiny
"""

LIBRARY = """\
#include "core/tiny.h"

extern "C" __attribute__((visibility("default"))) int grow(int n) { return tiny::grow(n); }
extern "C" __attribute__((visibility("default"))) int has(int low, int n) { return tiny::Interval{low}.has(n); }
"""

TESTS = """\
import ctypes

tiny = ctypes.CDLL({library!r})

def test_it_grows():
    assert tiny.grow(1) == 41

def test_it_has_what_is_above():
    assert tiny.has(3, 4)
    assert not tiny.has(3, 2)
"""


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> Header:
    path = tmp_path_factory.mktemp("header") / "tiny.h"
    path.write_text(HEADER)
    return mutants.read(path)


@pytest.fixture(scope="module")
def library(header: Header, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_library(header, tmp_path_factory.mktemp("library"))


def changes(header: Header) -> list[tuple[str, str, str]]:
    return [(m.function, m.before.removeprefix("return "), m.after.removeprefix("return ")) for m in header.mutants]


def build_library(header: Header, folder: Path) -> Path:
    core = folder / "core"
    core.mkdir()
    numbers = frozenset(m.number for m in header.mutants)
    (core / "switch.h").write_text((SWITCH / "switch.h").read_text())
    (core / "tiny.h").write_text(header.guarded(numbers).replace("#pragma once", '#include "switch.h"'))
    (folder / "tiny.cpp").write_text(LIBRARY)
    library = folder / "tiny.so"
    sources = (folder / "tiny.cpp", SWITCH / "switch.cpp")
    command = ["g++", "-std=c++17", "-shared", "-fPIC", "-fvisibility=hidden", "-I", folder, *sources, "-o", library]
    subprocess.run([str(part) for part in command], check=True)
    return library


def test_operators_numbers_and_conditions_are_changed_one_at_a_time(header: Header) -> None:
    assert changes(header) == [
        ("kStep", "constexpr int kStep = 4", "constexpr int kStep = 5"),
        ("kStep", "constexpr int kStep = 4", "constexpr int kStep = 3"),
        ("grow", "constexpr int more = 10", "constexpr int more = 11"),
        ("grow", "constexpr int more = 10", "constexpr int more = 9"),
        ("grow", "n + more * kStep", "n - more * kStep"),
        ("grow", "n + more * kStep", "n + more / kStep"),
        ("Interval::has", "low <= n && !(n == 7)", "low <= n || !(n == 7)"),
        ("Interval::has", "low <= n && !(n == 7)", "low < n && !(n == 7)"),
        ("Interval::has", "low <= n && !(n == 7)", "low > n && !(n == 7)"),
        ("Interval::has", "low <= n && !(n == 7)", "low <= n && (n == 7)"),
        ("Interval::has", "low <= n && !(n == 7)", "low <= n && !(n != 7)"),
        ("Interval::has", "low <= n && !(n == 7)", "low <= n && !(n == 8)"),
        ("Interval::has", "low <= n && !(n == 7)", "low <= n && !(n == 6)"),
    ]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("multiply_add(a, b, c)", {"multiply_add(-(a), b, c)", "(a) * (b)", "c"}),
        ("multiply_add(-a, b, c)", {"multiply_add(a, b, c)", "(-a) * (b)", "c"}),
        ("at_least(a, b)", {"a"}),
        ("as_stored<Half>(a)", {"a"}),
        ("Real(0)", {"Real(1)"}),
        ("Real(0.5f)", {"Real((2 * 0.5f))"}),
        ("Real(-2)", {"Real(-1)", "Real(-3)", "Real(2)"}),
        ("0x0fu", {"0x10u", "0xeu"}),
        ("a ? b : c", {"!a ? b : c"}),
        ("fire(true)", {"fire(false)"}),
        ("a >> b & c", {"a >> b | c", "a << b & c"}),
        ("a != b || c % d", {"a != b && c % d", "a == b || c % d", "a != b || c / d"}),
    ],
)
def test_an_expression_has_these_mutants(expression: str, expected: set[str], tmp_path: Path) -> None:
    path = tmp_path / "one.h"
    path.write_text(f"int one() {{ return {expression}; }}\n")
    assert {m.after.removeprefix("return ") for m in mutants.read(path).mutants} == expected


def test_equal_changes_of_one_function_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "twice.h"
    path.write_text("void twice(int& a) {\n  a += 3;\n  a += 3;\n}\n")
    found = mutants.read(path).mutants
    assert len({m.key for m in found}) == len(found) == 6
    assert [m.occurrence for m in found] == [1, 1, 1, 2, 2, 2]


def test_overloads_are_told_apart_by_their_first_parameter(tmp_path: Path) -> None:
    path = tmp_path / "overloads.h"
    path.write_text("int f(int a, int b) { return a + b; }\nint f(float a, int b) { return a + b; }\n")
    assert [m.function for m in mutants.read(path).mutants] == ["f(int a)", "f(float a)"]


def test_a_header_that_is_not_understood_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "wrong.h"
    path.write_text("int f() {\n  return 1 +;\n}\n")
    with pytest.raises(mutants.ParseError, match=r"wrong\.h:2"):
        mutants.read(path)


def test_without_wanted_mutants_a_header_stays_as_it_is(header: Header) -> None:
    assert header.guarded(frozenset()) == HEADER


def test_every_mutant_computes_its_change_and_none_the_original(header: Header, library: Path) -> None:
    code = f"import ctypes; t = ctypes.CDLL({str(library)!r}); print(t.grow(1), t.has(3, 3), t.has(3, 7))"

    def computed(number: int) -> list[int]:
        environment = {**os.environ, "EXODUS_MUTANT": str(number)}
        run = subprocess.run([sys.executable, "-S", "-c", code], env=environment, capture_output=True, check=True)
        return [int(word) for word in run.stdout.split()]

    assert computed(0) == [41, 1, 0]
    expected = {"int kStep = 5": 51, "int kStep = 3": 31, "more = 11": 45, "n - more": -39, "more / kStep": 3}
    for mutant in header.mutants:
        grown, low, seven = computed(mutant.number)
        for change, value in expected.items():
            if change in mutant.after:
                assert grown == value
        assert ((grown, low, seven) != (41, 1, 0)) == (not mutant.after.endswith("!(n == 3)"))


def run_plugin(
    header: Header, library: Path, folder: Path, tests: str, limit: float = 10.0
) -> tuple[subprocess.CompletedProcess[str], list[Verdict]]:
    (folder / "test_tiny.py").write_text(tests.format(library=str(library)))
    verdicts = folder / "verdicts.jsonl"
    files = {header.name: [m.number for m in header.mutants]}
    Plan(str(library), files, str(verdicts), limit).save(folder / "plan.json")
    command = [sys.executable, "-m", "pytest", "-p", "tools.mutate.plugin", "-p", "no:cacheprovider", "--capture=no"]
    command += ["--rootdir", str(folder), "-c", os.devnull, str(folder / "test_tiny.py")]
    environment = {**os.environ, "EXODUS_MUTATE_PLAN": str(folder / "plan.json"), "PYTHONPATH": str(ROOT)}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    found = [Verdict(**json.loads(line)) for line in verdicts.read_text().splitlines()] if verdicts.exists() else []
    return ended, found


def test_each_mutant_has_a_process_of_its_own_and_those_that_no_test_notices_survive(
    header: Header, library: Path, tmp_path: Path
) -> None:
    ended, verdicts = run_plugin(header, library, tmp_path, TESTS)
    assert len(verdicts) == len(header.mutants), ended.stdout + ended.stderr
    alive = {verdict.number for verdict in verdicts if not verdict.killed_by}
    # The tests do not look at 3 itself, nor at 7 and its neighbours; 4 and 2 are told apart by each of the others.
    assert {m.after.removeprefix("return ") for m in header.mutants if m.number in alive} == {
        "low < n && !(n == 7)",
        "low <= n && !(n == 8)",
        "low <= n && !(n == 6)",
    }
    killers = {verdict.killed_by for verdict in verdicts if verdict.killed_by}
    assert {name.split("::")[1] for name in killers} == {"test_it_grows", "test_it_has_what_is_above"}
    # A test that does not reach a mutant is not run for it.
    local = {m.number for m in header.mutants if m.function != "kStep"}
    assert all(verdict.tests == 1 for verdict in verdicts if verdict.number in local)


def test_a_mutant_that_ends_the_process_or_never_ends_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "tiny.h"
    body = "for (int i = 0; i < 3; i += 1) n += 0;\n  return 40 + 4 / (2 - n) - 3;"
    path.write_text(
        HEADER.replace("return n + more * kStep;  // 1 + 10 * 4", body).replace("constexpr int more = 10;", "")
    )
    header = mutants.read(path)
    ended, verdicts = run_plugin(header, build_library(header, tmp_path), tmp_path, TESTS, limit=0.1)
    how = {m.after: verdict.how for m, verdict in zip(header.mutants, verdicts, strict=True)}
    assert how["for (int i = 0; i < 3; i += 0) n += 0"] == "time", ended.stderr
    assert how["return 40 + 4 / (1 - n) - 3"] == "SIGFPE"


def test_tests_that_fail_without_mutants_are_refused(header: Header, library: Path, tmp_path: Path) -> None:
    ended, verdicts = run_plugin(header, library, tmp_path, TESTS.replace("== 41", "== 40"))
    assert ended.returncode != 0
    assert verdicts == []
    assert "without mutants all tests must pass, got 1 failures" in ended.stderr + ended.stdout


def fake_compiler(broken: set[int], says: bool) -> Callable[[frozenset[int]], frozenset[int]]:
    def blame(numbers: frozenset[int]) -> frozenset[int]:
        return frozenset() if not numbers & broken else frozenset(n for n in numbers if n < 8) if says else numbers

    return blame


@pytest.mark.parametrize(
    ("broken", "says"),
    [(set(), False), ({1}, False), ({3, 17}, False), (set(range(20)), False), ({1}, True), ({3, 7}, True)],
)
def test_mutants_that_do_not_compile_are_found(broken: set[int], says: bool) -> None:
    numbers = frozenset(range(20))
    assert build.valid(numbers, fake_compiler(broken, says)) == numbers - broken


def mutant(number: int, after: str) -> Mutant:
    return Mutant("tiny.h", "grow", "a + b", after, 1, 3, number)


def test_survivors_without_explanation_and_explanations_without_survivor_are_told(tmp_path: Path) -> None:
    path = tmp_path / "survivors.toml"
    path.write_text(
        '[[survivors]]\nfile = "tiny.h"\nfunction = "grow"\nbecause = "b is\\n always 0"\n'
        'changes = [["a + b", "a - b"], ["a + b", "b + a"], ["a + b", "a | b", 2]]\n'
    )
    everything = [mutant(1, "a - b"), mutant(2, "b + a"), mutant(3, "a"), mutant(4, "nothing"), mutant(5, "a * b")]
    verdicts = [Verdict(n, killer, "", 1, 0.1) for n, killer in ((1, ""), (2, ""), (2, "test"), (3, ""), (5, "test"))]
    found = report.outcome(everything, frozenset({4}), verdicts, report.read_explanations(path))
    assert [m.after for m in found.unexplained] == ["a"]
    assert [key[3:] for key in found.outdated] == [("b + a", 1), ("a | b", 2)]
    assert report.table(found).splitlines()[2:] == ["| tiny.h | 5 | 2 | 1 | 2 |", "| all | 5 | 2 | 1 | 2 |"]
    assert "b is always 0" in report.survivors(found)


def test_a_mutant_is_explained_once(tmp_path: Path) -> None:
    path = tmp_path / "survivors.toml"
    entry = '[[survivors]]\nfile = "a.h"\nfunction = "f"\nbecause = "so"\nchanges = [["a", "b"]]\n'
    path.write_text(entry + entry)
    with pytest.raises(ValueError, match="must be the only one"):
        report.read_explanations(path)


# The command


def run_command(
    monkeypatch: pytest.MonkeyPatch, folder: Path, killed: dict[str, set[int]], *arguments: str
) -> tuple[int, dict[str, set[int]]]:
    """The command on mutants 1 to 3 of a header that both libraries have, of which 2 is explained, and 4 and 5 of the
    scan, of which 5 is. `killed` has those that the tests of a library kill. Returns the exit status, and the mutants
    that those tests ran against."""
    tried: dict[str, set[int]] = {}

    def run_tests(name: str, library: Path, headers: list[Header], numbers: frozenset[int]) -> list[Verdict]:
        tried[name] = set(numbers)
        return [Verdict(n, "test" if n in killed[name] else "", "", 1, 0.1) for n in sorted(numbers)]

    (folder / "survivors.toml").write_text(
        "".join(
            f'[[survivors]]\nfile = "{file}"\nfunction = "f"\nbecause = "so"\nchanges = [["a", "b{number}"]]\n'
            for file, number in (("lif.h", 2), ("scan.h", 5))
        )
    )
    files = {"lif.h": range(1, 4), "scan.h": range(4, 6)}
    headers = [
        SimpleNamespace(mutants=[Mutant(file, "f", "a", f"b{number}", 1, 1, number) for number in numbers])
        for file, numbers in files.items()
    ]
    monkeypatch.setattr(command, "EXPLANATIONS", folder / "survivors.toml")
    monkeypatch.setattr(command, "LAST", folder / "kills.json")
    monkeypatch.setattr(command, "read_folder", lambda path: headers)
    monkeypatch.setattr(command, "run_tests", run_tests)
    monkeypatch.setattr(build, "digest_of_sources", lambda: "these")
    monkeypatch.setattr(build, "find_valid", lambda headers, numbers: numbers)
    monkeypatch.setattr(build, "build", lambda name, headers, numbers, path: path)
    return command.main(list(arguments)), tried


def test_explained_mutants_of_the_scan_run_on_the_emulation_which_alone_has_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    status, tried = run_command(monkeypatch, tmp_path, {"cpu": {1}, "emulated": {3, 4}})
    assert (status, tried) == (0, {"cpu": {1, 2, 3, 4, 5}, "emulated": {3, 4, 5}})


def test_an_explanation_of_a_mutant_of_the_scan_that_a_test_kills_is_outdated(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _ = run_command(monkeypatch, tmp_path, {"cpu": {1, 3}, "emulated": {4, 5}})
    assert status == 1
    assert "EXPLAINED, but no survivor: ('scan.h', 'f', 'a', 'b5', 1)" in capsys.readouterr().out


def test_what_survived_the_last_run_is_tried_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert run_command(monkeypatch, tmp_path, {"cpu": {1}, "emulated": {4}})[0] == 1  # nothing kills 3
    status, tried = run_command(monkeypatch, tmp_path, {"cpu": {3}, "emulated": set()}, "--again")
    assert (status, tried) == (0, {"cpu": {2, 3, 5}, "emulated": {5}})


@pytest.mark.parametrize(("kept", "found"), [("", "none"), ('{"sources": "others"}', "one on other sources")])
def test_without_a_last_run_on_the_same_sources_nothing_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], kept: str, found: str
) -> None:
    if kept:
        (tmp_path / "kills.json").write_text(kept)
    assert run_command(monkeypatch, tmp_path, {}, "--again") == (1, {})
    assert capsys.readouterr().err == f"mutate: --again must follow a full run on the same sources, got {found}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--quick", "--markdown", "page.md"], "--markdown is of all mutants: it does not go with --quick"),
        (["--quick", "--again"], "--again is of all mutants: it does not go with --quick"),
        (["--seed", "0"], "--seed is of the mutants that --quick draws: it needs --quick"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        command.main(arguments)
    told = capsys.readouterr().err
    assert told.startswith("usage: python -m tools.mutate ")
    assert told.endswith(f"error: {message}\n")


def test_what_an_installation_leaves_is_no_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = tmp_path / "exodus_core" / "src" / "exodus_core"
    for name in (source / "nn.py", source / "_C.abi3.so", source.parent / "exodus_core.egg-info" / "PKG-INFO"):
        name.parent.mkdir(parents=True, exist_ok=True)
        name.write_text("")
    monkeypatch.setattr(build, "ROOT", tmp_path)
    assert build.sources_of_core() == [source / "nn.py"]
