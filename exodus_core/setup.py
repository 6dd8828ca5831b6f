"""Builds the extension against PyTorch's stable ABI: one binary for every torch from 2.10 on.

Only headers of torch and libtorch_cpu are needed, so a plain C++ compiler is enough. No torch build helper is used: it
would add libtorch_python and Python's own ABI, which the library does not touch.
"""

import os
import pathlib

import torch
from setuptools import Extension, setup

HERE = pathlib.Path(__file__).parent
TORCH = pathlib.Path(torch.__file__).parent
TORCH_2_10 = "0x020a000000000000"

# -ffp-contract=off: the same bits on every instruction set, and those of a plain PyTorch loop. NaN and infinity keep
# their meaning; only the flags of the floating-point unit (errno, traps) are given up, so that loops vectorise.
# -g0: Python's own flags ask for debugging symbols, which are five sixths of the library.
COMPILE = ["-std=c++17", "-O3", "-g0", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"]
COMPILE += ["-fvisibility=hidden", "-Wall", "-Wextra"]
SANITIZE = os.environ.get("EXODUS_SANITIZE", "")  # such as "address,undefined"
SANITIZER = [f"-fsanitize={SANITIZE}", "-fno-sanitize-recover=all", "-g"] if SANITIZE else []
# Warnings are errors in the checked build only: those that a new compiler invents must not stop an installation.
STRICT = ["-Werror"] if SANITIZE else []

extension = Extension(
    "exodus_core._C",
    sources=sorted(str(path.relative_to(HERE)) for path in (HERE / "csrc").glob("**/*.cpp")),
    depends=sorted(str(path.relative_to(HERE)) for path in (HERE / "csrc").glob("**/*.h")),
    extra_compile_args=[
        *COMPILE,
        *SANITIZER,
        *STRICT,
        f"-DTORCH_TARGET_VERSION={TORCH_2_10}",
        "-isystem",
        str(TORCH / "include"),
    ],
    extra_link_args=SANITIZER,
    library_dirs=[str(TORCH / "lib")],
    libraries=["torch_cpu"],
    language="c++",
    py_limited_api=True,
)

setup(ext_modules=[extension], options={"bdist_wheel": {"py_limited_api": "cp311"}})
