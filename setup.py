"""Packaging. The documented way to install is editable: pip install -c constraints.txt -e .[dev]"""

import re
from pathlib import Path

from setuptools import find_packages, setup

PACKAGE = Path(__file__).with_name("fastmc") / "__init__.py"
VERSION = re.search(r'__version__ = "(.+)"', PACKAGE.read_text(encoding="utf-8"))[1]

RUNTIME = [
    "numpy>=1.26",
    "nvtx>=0.2.13; platform_system == 'Linux'",  # tells NVIDIA's profilers the parts of a step; not needed to run
    "torch>=2.6",
    "tyro>=0.9",  # command lines from dataclasses
    "tqdm>=4.64",
    "matplotlib>=3.7",
    "tensorboard>=2.12",
    "scikit-learn>=1.3",  # confusion matrices, t-SNE, and an independent kNN for the tests
]
CPU = [
    "numba>=0.63",  # compiles the making of views; without it PyTorch makes them, at a sixth of the speed
]
GPU = [
    # The first whose recurrent nets are cuDNN's in bfloat16, given cuDNN 9.13 or later; its CUDA build brings Triton
    # 3.6. Older ones run too: from 2.8 on with our kernels, before that with PyTorch's operators alone. Tested: 2.11
    # with Triton 3.6, 2.13 with 3.7.
    "torch>=2.10",
]
DEV = [
    *CPU,
    "pytest>=8",
    "pytest-benchmark>=5",
    "pytest-xdist>=3.5",
    "hypothesis>=6.100",
    "ruff>=0.6",
    "mypy>=1.11",
    # The CUDA build of torch brings its own; beside a CPU build, kernels are compiled and interpreted in the tests.
    "triton>=3.6; platform_system == 'Linux'",
    # Runs compiled kernels on the CPU. An alpha by one author, so one version; on Python 3.11 see the Makefile.
    "ttsem==0.1.0; platform_system == 'Linux' and python_version >= '3.12'",
]

setup(
    name="fastmc",
    version=VERSION,
    description="A2MC: self-supervised pre-training of skeleton encoders, fast and proved against a plain reference",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    python_requires=">=3.11",
    packages=find_packages(include=["fastmc", "fastmc.*", "kernels", "kernels.*", "train", "train.*"]),
    package_data={"fastmc": ["py.typed"]},
    install_requires=RUNTIME,
    extras_require={"cpu": CPU, "gpu": GPU, "dev": DEV},
)
