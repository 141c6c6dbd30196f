import pkgutil
import re
import subprocess
import sys

from keras_mas import serving


def test_the_docstring_of_the_package_names_every_module():
    words = re.findall(r"\w+", serving.__doc__.partition("\n")[2])
    assert {each.name for each in pkgutil.iter_modules(serving.__path__)} <= set(words)


def test_importing_the_package_does_not_import_tensorflow():
    # `keras-mas --help` imports these modules, and TensorFlow takes seconds to import.
    code = (
        "import sys, keras_mas.serving, keras_mas.serving.paths, keras_mas.serving.conventions;"
        "sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
