"""What `import keras_mas` needs of Keras, and does for it, whichever is imported first."""

import os
import subprocess
import sys

import keras
import pytest

from keras_mas import MASModel


def run(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_another_backend_is_named_before_its_packages_are_looked_for(backend):
    code = """
import keras_mas
try:
    keras_mas.SynapticMemory()
except ImportError as error:
    print(error)
"""
    done = run(code, KERAS_BACKEND=backend)
    assert done.returncode == 0, done.stderr
    assert f"needs Keras with the TensorFlow backend. Received: '{backend}'." in done.stdout
    assert "KERAS_BACKEND=tensorflow" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "imports",
    [
        "import keras_mas, keras",
        "import keras, keras_mas",
        "import keras_mas, tensorflow; keras = tensorflow.keras",
    ],
)
def test_a_mas_model_loads_whichever_is_imported_first(imports, tmp_path):
    inputs = keras.Input([2])
    MASModel(inputs, keras.layers.Dense(2)(inputs)).save(tmp_path / "m.keras")
    done = run(f"{imports}; keras.models.load_model({str(tmp_path / 'm.keras')!r})")
    assert done.returncode == 0, done.stderr
