"""Packaging: three top-level folders that install as one package.

`keras_mas/` installs as `keras_mas`, `training/` as `keras_mas.training` and `serving/` as
`keras_mas.serving`. The extras follow this division; `distributed` is `training` on many machines,
and `test` and `mutation` are for development.
"""

from pathlib import Path

from setuptools import find_packages, setup


def package_dirs() -> dict[str, str]:
    """Return the source folder of every installed package, by the package's name."""
    folders = {name: name.replace(".", "/") for name in find_packages(include=["keras_mas*"])}
    for top in ("training", "serving"):
        inner = [top, *(f"{top}.{name}" for name in find_packages(top))]
        folders |= {f"keras_mas.{name}": name.replace(".", "/") for name in inner}
    return folders


PACKAGE_DIRS = package_dirs()
TOP_LEVEL = ["keras_mas", "keras_mas.serving", "keras_mas.training"]  # each has its `py.typed`

SERVING = [
    "tensorflow-serving-api>=2.19",
    "filelock>=3.13",  # publishers take turns
    "grpcio>=1.60",
    "scipy>=1.13",  # intervals of accuracies
    "urllib3>=2.2",
    "waitress>=3.0.1",  # the HTTP server of the stand-in
]
TRAINING = [
    *SERVING,
    "tensorflow-datasets>=4.9.9",
    "importlib_resources>=6.0",  # tensorflow-datasets imports it and does not declare it
    "pyarrow>=17.0",  # tables; tensorflow-datasets brings it too
    "keras-tuner>=1.4.7",
    "tensorboard>=2.19",  # keras-tuner imports it; TensorFlow 2.21 no longer brings it
    "scikit-learn>=1.5",  # the bundled digits; keras-tuner's Bayesian search
    "matplotlib>=3.9",
    "pillow>=10.1",
    "h5py>=3.10",  # published weights; Keras has it too
    "safetensors>=0.4",  # published weights of PyTorch
    "psutil>=5.9",
    "rich>=13.0",
    "jinja2>=3.1",  # the report in HTML
    "shtab>=1.9",
]
DISTRIBUTED = [
    *TRAINING,
    "ray>=2.60",  # Ω over data that one machine cannot read
]
TEST = [
    "pytest>=8.0",
    "pytest-xdist>=3.6",
    "requests>=2.31",  # a client of the stand-in that is not ours
    "trustme>=1.1",  # certificates
    "kubernetes-validate>=1.31",  # schemas of the deploy kit's files
    "check-jsonschema>=0.30",  # the schema of the Compose specification
    "pyyaml>=6.0",
    "hypothesis>=6.100",
    "ruff>=0.6",
    "mypy>=1.15",
    "kubernetes-validate>=1.30",  # manifests, by Kubernetes's own schemas
    "pyyaml>=6.0",
    "ray>=2.60",  # as in `distributed`; 79 MB to download, 240 MB installed
]
MUTATION = [*TEST, "mutmut>=3.8"]

setup(
    name="keras-mas",
    version="0.1.0",
    description="Memory Aware Synapses for Keras 3: models that keep learning without forgetting",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    python_requires=">=3.11,<3.14",
    packages=list(PACKAGE_DIRS),
    package_dir=PACKAGE_DIRS,
    package_data={name: ["py.typed", "templates/*"] for name in TOP_LEVEL}
    | {
        "keras_mas.serving.deploy": ["*.yml", "*.yaml", "*.config", "README.md"],
    },
    install_requires=["tensorflow>=2.20", "keras>=3.12", "numpy>=1.26", "wrapt>=1.15"],
    extras_require={
        "training": TRAINING,
        "serving": SERVING,
        "distributed": DISTRIBUTED,
        "test": TEST,
        "mutation": MUTATION,
    },
    entry_points={"console_scripts": ["keras-mas = keras_mas.training.cli:main"]},
)
