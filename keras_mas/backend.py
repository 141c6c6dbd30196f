"""Keras with its TensorFlow backend, which everything that computes here needs.

Importing this module raises an ImportError where Keras has another backend.
"""

import os
import sys


def _refuse_other(backend: str) -> None:
    if backend != "tensorflow":
        raise ImportError(
            f"keras_mas needs Keras with the TensorFlow backend. Received: '{backend}'. Set the "
            "environment variable KERAS_BACKEND=tensorflow before Keras is imported, or "
            '"backend": "tensorflow" in ~/.keras/keras.json.'
        )


if "keras" not in sys.modules:
    # Said before Keras looks for the packages of a backend that may not be installed.
    _refuse_other(os.environ.get("KERAS_BACKEND") or "tensorflow")

import keras  # noqa: E402

_refuse_other(keras.config.backend())
