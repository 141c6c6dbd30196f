"""Packaging: three rooms at the top of the repository, one name in site-packages."""

from pathlib import Path

from setuptools import find_packages, setup


def package_dirs():
    """Map every installed package to its folder: `training/` installs as `keras_mas.training`."""
    folders = {name: name.replace(".", "/") for name in find_packages(include=["keras_mas*"])}
    for room in ("training", "serving"):
        inner = [room, *(f"{room}.{name}" for name in find_packages(room))]
        folders |= {f"keras_mas.{name}": name.replace(".", "/") for name in inner}
    return folders


PACKAGE_DIRS = package_dirs()

SERVING = ["tensorflow-serving-api>=2.19", "requests>=2.31"]
TRAINING = [
    *SERVING,
    "tensorflow-datasets>=4.9.9",
    "importlib_resources>=6.0",  # tensorflow-datasets imports it and does not declare it
    "keras-tuner>=1.4.7",
    "tensorboard>=2.19",  # keras-tuner imports it; TensorFlow 2.21 no longer brings it
    "scikit-learn>=1.5",  # the bundled digits; keras-tuner's Bayesian search
    "scipy>=1.13",
    "matplotlib>=3.9",
    "pillow>=10.1",
    "rich>=13.0",
    "filelock>=3.13",
    "shtab>=1.9",
]
TEST = ["pytest>=8.0", "hypothesis>=6.100", "ruff>=0.6"]

setup(
    name="keras-mas",
    version="0.1.0",
    description="Memory Aware Synapses for Keras 3: models that keep learning without forgetting",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    python_requires=">=3.11,<3.14",
    packages=list(PACKAGE_DIRS),
    package_dir=PACKAGE_DIRS,
    install_requires=["tensorflow>=2.20", "keras>=3.12", "numpy>=1.26"],
    extras_require={"training": TRAINING, "serving": SERVING, "test": TEST},
    entry_points={"console_scripts": ["keras-mas = keras_mas.training.cli:main"]},
)
