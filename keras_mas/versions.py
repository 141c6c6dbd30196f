"""The versions of what a result depends on, which is recorded with it."""

import platform

import keras
import numpy as np
import tensorflow as tf


def library_versions() -> dict[str, str]:
    """Return the versions of Python, TensorFlow, Keras and NumPy, by the library's name."""
    return {
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
    }
