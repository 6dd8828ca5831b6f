"""Builds the operators against PyTorch's stable ABI: one binary for every torch from 2.10 on.

`_C` has the schemas and the CPU kernels; a plain C++ compiler builds it. `_C_cuda` has the CUDA kernels; it is built
where there is nvcc and either a torch with CUDA or EXODUS_FORCE_CUDA=1, for the architectures of TORCH_CUDA_ARCH_LIST.
No torch build helper is used: it would add libtorch_python and Python's own ABI, which the libraries do not touch.

EXODUS_LOCAL_VERSION, such as +cu130, goes behind the version of a wheel.

For tests: EXODUS_SANITIZE=address,undefined builds with sanitizers; EXODUS_EMULATE=90 builds a `_C` that runs the CUDA
kernels for compute capability 9.0 on the CPU (tests/cuda); EXODUS_MUTANTS=1 builds the portable instruction set only,
for tools/mutate, which has written many variants of each formula into the sources.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).parent
TORCH = Path(torch.__file__).parent
EMULATOR = HERE.parent / "tests" / "cuda"

STABLE_ABI = ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-isystem", str(TORCH / "include")]

# -ffp-contract=off: fused multiply-adds only where the source has them; the same bits on every instruction set, and
# forward those of a plain PyTorch loop. NaN and infinity keep their meaning; only the flags of the floating-point unit
# (errno, traps) are given up, so that loops vectorise.
# -g0: Python's own flags ask for debugging symbols, which are five sixths of the library.
COMPILE = ["-std=c++17", "-O3", "-g0", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"]
COMPILE += ["-fvisibility=hidden", "-Wall", "-Wextra"]
SANITIZE = os.environ.get("EXODUS_SANITIZE", "")
# Warnings are errors in the checked build only: those that a new compiler invents must not stop an installation.
# -O1: all that inlining makes of the checks takes eight minutes to compile at -O3. -g1: the lines that a report names.
SANITIZER = [f"-fsanitize={SANITIZE}", "-fno-sanitize-recover=all", "-g1", "-O1", "-Werror"] if SANITIZE else []
SANITIZER += ["-DEXODUS_FEW_KERNELS"] if SANITIZE else []
# Checks of addresses are calls: GCC takes three times as long to allocate registers around those written out.
SANITIZER += ["--param", "asan-instrumentation-with-call-threshold=0"] if "address" in SANITIZE else []

# -fmad=false: the bits of the CPU kernels. --expt-relaxed-constexpr is not used: what runs on the device says so.
# -O1, and nothing that must be inlined (csrc/core/macros.h): hundreds of switches in every kernel would take minutes to
# compile. The bits are the same.
# -fno-tree-sink: GCC 12 fails on choices between two comparisons of vectors.
MUTANTS = ["-O1", "-fno-tree-sink", "-w", "-DEXODUS_PORTABLE_ONLY"] if os.environ.get("EXODUS_MUTANTS") else []

# -compress-all: the library has each kernel for each architecture, and is less than half as large.
NVCC = ["-std=c++17", "-O3", "-fmad=false", "-DUSE_CUDA", "-Xcompiler", "-fPIC,-fvisibility=hidden"]
NVCC += ["-Xfatbin=-compress-all"]
ARCHITECTURES = "7.5;8.0;8.6;8.9;9.0;10.0;12.0+PTX"


def sources(*folders: str) -> list[str]:
    """The C++ and CUDA files directly in these folders of csrc."""
    return sorted(
        str(path.relative_to(HERE))
        for folder in folders
        for path in (HERE / "csrc" / folder).iterdir()
        if path.suffix in (".cpp", ".cu")
    )


def architecture_flags(listed: str) -> list[str]:
    """-gencode flags for a list such as "8.0;9.0+PTX".

    Raises:
        ValueError: an entry is not a compute capability.
    """
    flags = []
    for entry in listed.replace(" ", ";").split(";"):
        match = re.fullmatch(r"(\d+)\.(\d+)(a?)(\+PTX)?", entry)
        if match is None:
            raise ValueError(
                f"TORCH_CUDA_ARCH_LIST must list compute capabilities such as 9.0 or 9.0+PTX, got {entry!r}"
            )
        number = "".join(match.group(1, 2, 3))
        flags += ["-gencode", f"arch=compute_{number},code=sm_{number}"]
        if match[4]:
            flags += ["-gencode", f"arch=compute_{number},code=compute_{number}"]
    return flags


def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME")
    return shutil.which("nvcc", path=f"{home}/bin" if home else None)


class BuildOperators(build_ext):
    """Compiles .cu files: with nvcc for the CUDA library, as C++ for the emulation. Compiles files side by side."""

    def build_extension(self, ext: Extension) -> None:
        if ext.name.endswith("_C_cuda"):
            self.build_with_nvcc(ext)
        else:
            # "-x c++" must stand in front of the source, so it goes to the compiler and not to its options.
            self.compiler.src_extensions = [*self.compiler.src_extensions, ".cu"]
            self.compiler.compiler_so = [*self.compiler.compiler_so, "-x", "c++"]
            self.compiler.compiler_so_cxx = [*self.compiler.compiler_so_cxx, "-x", "c++"]
            self.compile_side_by_side()
            super().build_extension(ext)

    def compile_side_by_side(self) -> None:
        compile_in_turn = self.compiler.compile

        def compile_all(sources: list[str], **arguments: Any) -> list[str]:
            with ThreadPoolExecutor(os.cpu_count()) as threads:
                compiled = threads.map(lambda source: compile_in_turn([source], **arguments), sources)
                return [path for paths in compiled for path in paths]

        self.compiler.compile = compile_all

    def build_with_nvcc(self, ext: Extension) -> None:
        nvcc = find_nvcc()
        assert nvcc is not None
        listed = os.environ.get("TORCH_CUDA_ARCH_LIST") or ARCHITECTURES
        flags = [*NVCC, *architecture_flags(listed), *STABLE_ABI]
        folder = Path(self.build_temp)
        folder.mkdir(parents=True, exist_ok=True)

        def compile_one(source: str) -> Path:
            target = folder / f"{Path(source).stem}.cuda.o"
            command = [nvcc, *flags, "-c", source, "-o", target]
            ended = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            sys.stderr.write(ended.stdout)  # of each file together
            ended.check_returncode()
            return target

        with ThreadPoolExecutor(os.cpu_count()) as threads:
            objects = list(threads.map(compile_one, ext.sources))
        library = Path(self.get_ext_fullpath(ext.name))
        library.parent.mkdir(parents=True, exist_ok=True)
        link = ["-Xlinker", "--no-as-needed", f"-L{TORCH / 'lib'}", "-ltorch_cpu"]
        link += [f"-L{self.torch_cuda_folder(folder)}", "-ltorch_cuda", "-cudart", "shared"]
        subprocess.run([nvcc, "-shared", *objects, "-o", library, *link], check=True)
        version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
        facts = {
            "cuda": re.findall(r"release ([\d.]+)", version)[0],
            "architectures": listed,
            "torch": torch.__version__,
        }
        library.with_name("_C_cuda.json").write_text(json.dumps(facts) + "\n")

    @staticmethod
    def torch_cuda_folder(build: Path) -> Path:
        """Where the linker finds libtorch_cuda.so: that of torch, or an empty one of its name.

        Built beside a torch without CUDA, the library must still name the one it needs, or it loads nowhere.
        """
        if (TORCH / "lib" / "libtorch_cuda.so").exists():
            return TORCH / "lib"
        stub = build / "stub"
        stub.mkdir(exist_ok=True)
        (stub / "empty.c").touch()
        name = "libtorch_cuda.so"
        link = ["-shared", "-Wl,-soname," + name, stub / "empty.c", "-o", stub / name]
        subprocess.run([*shlex.split(os.environ.get("CC", "gcc")), *link], check=True)
        return stub


def extension(name: str, listed: list[str], flags: list[str]) -> Extension:
    return Extension(
        f"exodus_core.{name}",
        sources=listed,
        depends=[str(path.relative_to(HERE)) for path in (HERE / "csrc").glob("**/*.*h")],
        extra_compile_args=[*COMPILE, *SANITIZER, *MUTANTS, *flags, *STABLE_ABI],
        # Named as needed also where the library that is linked with has no symbols (tools/torch_versions.py).
        extra_link_args=["-Wl,--no-as-needed", "-ltorch_cpu", *SANITIZER[:1]],
        library_dirs=[str(TORCH / "lib")],
        language="c++",
        py_limited_api=True,
    )


if capability := os.environ.get("EXODUS_EMULATE"):
    emulator = sorted(os.path.relpath(path, HERE) for path in EMULATOR.glob("*.cpp"))
    as_cpp = ["-O1", f"-DEXODUS_EMULATE={capability}", f"-I{EMULATOR}", f"-I{HERE / 'csrc'}", "-Wno-unknown-pragmas"]
    extensions = [extension("_C", [*sources("", "cuda"), *emulator], as_cpp)]
else:
    extensions = [extension("_C", sources("", "cpu"), [])]
    force = bool(os.environ.get("EXODUS_FORCE_CUDA"))
    if force and find_nvcc() is None:
        raise SystemExit("EXODUS_FORCE_CUDA=1 needs nvcc, in CUDA_HOME/bin or in the PATH")
    if find_nvcc() and (torch.version.cuda or force):
        extensions.append(extension("_C_cuda", [*sources("cuda"), "csrc/older_systems.cpp"], []))

setup(
    ext_modules=extensions,
    cmdclass={"build_ext": BuildOperators},
    options={
        "bdist_wheel": {"py_limited_api": "cp311"},
        "egg_info": {"tag_build": os.environ.get("EXODUS_LOCAL_VERSION", "")},
    },
)
