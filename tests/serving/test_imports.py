import subprocess
import sys


def test_the_room_opens_without_tensorflow():
    # What `--help` imports must not cost the seconds that TensorFlow takes.
    code = (
        "import sys, keras_mas.serving, keras_mas.serving.paths;"
        "sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
