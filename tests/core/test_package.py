"""The installed package: where it comes from, what it says of itself, what its library needs."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import exodus_core
from exodus_core import _library, arguments, ops

ROOT = Path(__file__).parents[2]


def test_the_folder_at_the_root_is_not_imported_in_place_of_the_package() -> None:
    code = "import exodus_core; print(exodus_core.__file__)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert Path(run.stdout.strip()).parent.joinpath("functional.py").exists()


def test_capabilities_tell_versions_devices_and_why_there_is_no_cuda() -> None:
    told = exodus_core.capabilities()
    assert told["version"] == exodus_core.__version__
    assert told["torch"] == torch.__version__
    assert told["devices"][0] == "cpu"
    assert told["instruction_set"] in ("portable", "avx2", "avx512", "emulated CUDA")
    assert told["cuda_library"]["loaded"] or told["cuda_library"]["reason"]
    assert set(told["surrogates"]) == set(exodus_core.surrogate.KINDS)


def test_library_needs_only_symbols_of_the_stable_interface() -> None:
    library = Path(exodus_core.__file__).parent / "_C.abi3.so"
    listing = subprocess.run(["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True)
    needed = {line.split()[-1] for line in listing.stdout.splitlines()}
    assert any(name.startswith("aoti_torch_") for name in needed)
    # What is not C of the shim or of libstdc++ would be a mangled name of torch, c10 or Python.
    assert not {n for n in needed if n.startswith(("_ZN2at", "_ZNK2at", "_ZN3c10", "_ZNK3c10", "_ZN5torch", "Py"))}


def test_a_missing_library_is_one_clear_error(tmp_path: Path) -> None:
    copy = tmp_path / "exodus_core"
    copy.mkdir()
    for source in Path(exodus_core.__file__).parent.glob("*.py"):
        (copy / source.name).write_text(source.read_text())
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", "import exodus_core"], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert "ImportError: exodus_core is not built: _C.abi3.so is missing" in run.stderr


def test_the_shared_arithmetic_includes_neither_torch_nor_cuda() -> None:
    headers = list((ROOT / "exodus_core/csrc/core").glob("*.h"))
    included = {line.split()[1] for path in headers for line in path.read_text().splitlines() if "#include" in line}
    own = {f'"{path.name}"' for path in headers}
    assert headers
    assert included - own <= {"<cmath>", "<cstdint>", "<cstring>"}


def enumerators(header: str, name: str) -> dict[str, int]:
    """The enumerators of an enum of csrc, with their numbers."""
    text = (ROOT / "exodus_core/csrc" / header).read_text()
    body = text.split(f" {name} : ")[1].split("{")[1].split("}")[0]
    listed = re.sub(r"//[^\n]*", "", body).split(",")
    found: dict[str, int] = {}
    for entry in filter(str.strip, listed):
        enumerator, _, number = entry.partition("=")
        found[enumerator.strip()] = int(number) if number else len(found)
    return found


def test_numbers_in_python_are_those_of_the_kernels() -> None:
    surrogates = {kind: cls.code for kind, cls in exodus_core.surrogate.KINDS.items()}
    assert enumerators("core/surrogate.h", "SurrogateKind") == surrogates
    methods = enumerators("core/adjoint.h", "Method")
    assert methods.pop("detached_reset") == arguments.DETACHED_RESET
    assert methods == {name: arguments.METHOD_NUMBERS[name] for name in methods}
    assert set(exodus_core.METHODS) - set(methods) == {"bptt"}
    resets = enumerators("core/neuron.h", "Reset")
    assert resets.pop("subtract_decayed") == arguments.RESET_NUMBERS["subtract", True]
    assert resets == {name: arguments.RESET_NUMBERS[name, False] for name in exodus_core.RESETS}


def test_lane_gradients_have_one_order() -> None:
    rows = enumerators("core/adjoint.h", "LaneGradient")
    assert rows.pop("kLaneGradients") == len(ops.LANE_GRADIENTS)
    assert list(rows) == ["k" + name.title().replace("_", "") for name in ops.LANE_GRADIENTS]


CUDA_REPORT = """
import torch
torch.version.cuda = "12.8"
import exodus_core
print(exodus_core.capabilities()["cuda_library"]["reason"])
"""


@pytest.mark.parametrize(
    ("built", "reason"),
    [
        (None, "exodus_core was built without CUDA: there was no nvcc, or no torch with CUDA"),
        ("13.0", "exodus_core was built for CUDA 13.0, and torch {torch} uses CUDA 12.8"),
        ("12.4", "_C_cuda.abi3.so, built for CUDA 12.4, does not load: {copy}/_C_cuda.abi3.so: file too short"),
    ],
    ids=["not built", "another CUDA", "damaged"],
)
def test_a_missing_or_mismatched_cuda_library_is_said_once_and_the_cpu_works(
    tmp_path: Path, built: str | None, reason: str
) -> None:
    copy = tmp_path / "exodus_core"
    # A copy, not links: what is written below must not end up in the installed package.
    shutil.copytree(Path(exodus_core.__file__).parent, copy, ignore=shutil.ignore_patterns("_C_cuda*", "__pycache__"))
    if built is not None:
        (copy / "_C_cuda.json").write_text(f'{{"cuda": "{built}", "architectures": "9.0"}}')
        (copy / "_C_cuda.abi3.so").write_bytes(b"no library")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", CUDA_REPORT], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    told = run.stdout.strip()
    assert told.startswith(reason.format(torch=torch.__version__, copy=copy))
    assert run.stderr.count("no CUDA kernels: ") == 1


@pytest.mark.parametrize(
    ("source", "reason", "advice"),
    [
        (
            "void absent(void); void load(void) { absent(); }",
            "undefined symbol: absent",
            "build it again beside this one",
        ),
        ("", "libabsent.so: cannot open shared object file", "install a torch with CUDA of the same major version"),
    ],
    ids=["another torch", "a missing library"],
)
def test_a_library_that_does_not_load_tells_the_reason_and_what_to_do(
    tmp_path: Path, source: str, reason: str, advice: str
) -> None:
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no compiler")
    library, absent = tmp_path / "library.so", tmp_path / "libabsent.so"
    for text, path, links in (("", absent, []), (source, library, [] if source else [absent])):
        (tmp_path / "source.c").write_text(text)
        options = ["-shared", "-fPIC", "-Wl,--no-as-needed", f"-Wl,-soname,{path.name}"]
        subprocess.run([compiler, *options, tmp_path / "source.c", "-o", path, *links], check=True)
    absent.unlink()
    with pytest.raises(OSError, match="library") as raised:
        torch.ops.load_library(str(library))
    told = _library.explained(library, raised.value)
    assert reason in told
    assert advice in told
