"""Build of the native modules; all metadata is in pyproject.toml."""

import os
from glob import glob
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, find_packages, setup

# No -march=native: wheels must run anywhere. No fused multiply-add: every backend must give the same bits.
# Nobody reads floating point flags, and gcc vectorises selections only when told so (the values are the same).
COMPILE_ARGS = [
    "-O3",
    "-std=c++17",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
    "-g0",
]

LINK_ARGS = []
if os.environ.get("TATOK_SANITIZE"):  # for tests/fuzz/sanitize.sh
    SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]
    COMPILE_ARGS += ["-O1", "-g1", "-DTATOK_NO_CLONES", *SANITIZERS]
    LINK_ARGS += SANITIZERS

# The modules check their arguments once per call, so that loops need no checks.
DIRECTIVES = {
    "language_level": 3,
    "boundscheck": False,
    "wraparound": False,
    "initializedcheck": False,
    "cdivision": True,
    "freethreading_compatible": True,
    "autotestdict": False,
}


def extension(source: str) -> Extension:
    """A Cython module of ``runtime/cpu`` as a module of ``tatok_edge.runtime.cpu``."""
    return Extension(
        "tatok_edge." + source.removesuffix(".pyx").replace("/", "."),
        [source],
        include_dirs=["runtime/cpp"],
        depends=sorted(glob("runtime/cpp/*.hpp")),
        extra_compile_args=COMPILE_ARGS,
        extra_link_args=LINK_ARGS,
        language="c++",
    )


# A module that an earlier build left in place would hide the Python module that has its name now.
for built in Path("runtime/cpu").glob("*.so"):
    if not built.with_name(built.name.split(".")[0] + ".pyx").exists():
        built.unlink()

setup(
    # tatok_edge/export and tatok_edge/runtime are links to the folders beside tatok_edge.
    packages=find_packages(include=["tatok_edge", "tatok_edge.*"]),
    package_data={
        "tatok_edge": ["py.typed", "models/**"],
        "tatok_edge.demo": ["page/*"],
        "tatok_edge.runtime": ["cpp/*.hpp", "cuda/*.cu", "cuda/*.cuh", "cuda/*.h*", "tensorrt/cpp/*"],
        "tatok_edge.runtime.cpu": ["*.pyi", "*.pxd"],
    },
    ext_modules=cythonize(
        [extension(source) for source in sorted(glob("runtime/cpu/*.pyx"))],
        build_dir="build/cython",
        compiler_directives=DIRECTIVES,
    ),
)
