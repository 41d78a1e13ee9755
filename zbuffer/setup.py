"""Install the rasterizer with its compiled units:

    cd zbuffer && python setup.py install
    pip install --no-build-isolation ./zbuffer

The CPU unit needs a C++ compiler and nothing else. The CUDA unit is added where nvcc, a torch built with CUDA, and a
GPU (or TORCH_CUDA_ARCH_LIST) are found, torch being visible only without pip's build isolation. ZBUFFER_CUDA=0 leaves
the CUDA unit out, ZBUFFER_CUDA=1 insists on it.

The libraries go to a package of their own, zbuffer_native, so they are found from this repository's root too, where the
source folder hides the installed package of the same name.
"""

import importlib.util
import os
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent


def load_native():
    """The module native.py, without the package around it, which needs torch."""
    spec = importlib.util.spec_from_file_location("native", HERE / "native.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class BuildLibraries(build_py):
    """Copies the Python files and compiles the units beside them."""

    def run(self):
        """The command; it ends with one line where the CPU unit cannot be compiled."""
        super().run()
        native = load_native()
        try:
            self.compile_units(native)
        except native.BuildError as error:
            raise SystemExit(f"error: {error}") from None

    def compile_units(self, native):
        """Compiles the CPU unit, and the CUDA unit where there is a compiler and a GPU, or ZBUFFER_CUDA is 1."""
        folder = Path(self.build_lib) / "zbuffer_native"
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("*.so"):
            old.unlink()
        (folder / "__init__.py").write_text('"""The compiled libraries of zbuffer."""\n')
        print("zbuffer: compiling the CPU unit")
        native.build("cpu", folder)
        problem = native.cuda_problem()
        insisted = os.environ.get("ZBUFFER_CUDA") == "1"
        if problem is None and not native.architectures() and not insisted:
            problem = "no GPU is at hand; name some in TORCH_CUDA_ARCH_LIST to compile for others"
        if problem is None:
            print("zbuffer: compiling the CUDA unit (a minute or two)")
            native.build("cuda", folder)
        elif insisted:
            raise SystemExit(f"error: ZBUFFER_CUDA is 1, but the CUDA unit cannot be built: {problem}")
        else:
            print(f"zbuffer: the CUDA unit is left out: {problem}")


class PlatformDistribution(Distribution):
    """Marks the result as specific to this platform."""

    def has_ext_modules(self):
        return True


setup(
    name="zbuffer",
    version="1.0.0",
    description="An exact, differentiable z-buffer for triangle meshes",
    python_requires=">=3.10",
    packages=["zbuffer"],
    package_dir={"zbuffer": "."},
    package_data={"zbuffer": ["csrc/*"]},
    cmdclass={"build_py": BuildLibraries},
    distclass=PlatformDistribution,
    zip_safe=False,
)
