"""Build of the native modules and the mapping of the source folders to packages; all metadata is in pyproject.toml."""

from glob import glob

from Cython.Build import cythonize
from setuptools import Extension, setup

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


def extension(name: str) -> Extension:
    """The Cython module ``runtime/<name>.pyx`` as ``tatok_edge.runtime.<name>``."""
    return Extension(
        f"tatok_edge.runtime.{name}",
        [f"runtime/{name}.pyx"],
        include_dirs=["runtime/cpp"],
        depends=sorted(glob("runtime/cpp/*.hpp")),
        extra_compile_args=COMPILE_ARGS,
        language="c++",
    )


setup(
    packages=[
        "tatok_edge",
        "tatok_edge.datasets",
        "tatok_edge.demo",
        "tatok_edge.training",
        "tatok_edge.export",
        "tatok_edge.runtime",
    ],
    package_dir={"tatok_edge.export": "export", "tatok_edge.runtime": "runtime"},
    package_data={
        "tatok_edge": ["py.typed", "models/**"],
        "tatok_edge.demo": ["page/*"],
        "tatok_edge.runtime": ["*.pyi", "cpp/*.hpp", "cuda/*", "plugin/*"],
    },
    ext_modules=cythonize([extension("_kernels"), extension("_coder")], build_dir="build/cython", language_level=3),
)
