import subprocess
import sys


def test_importing_the_package_does_not_import_tensorflow():
    # `keras-mas --help` imports these modules, and TensorFlow takes seconds to import.
    code = (
        "import sys, keras_mas.serving, keras_mas.serving.paths, keras_mas.serving.ports;"
        "sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
