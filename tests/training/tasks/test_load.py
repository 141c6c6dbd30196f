import subprocess
import sys

import pytest

from keras_mas.errors import UsageError
from keras_mas.training.tasks import load_tasks


def test_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(UsageError) as error:
        load_tasks("split-minst")
    for fact in ["'split-digits', 'split-mnist'", "'split-minst'", "Did you mean 'split-mnist'?"]:
        assert fact in str(error.value)


def test_missing_file():
    with pytest.raises(UsageError, match="TOML file.*'no.toml', which does not exist"):
        load_tasks("no.toml")


def test_wrong_options_are_refused_before_data_is_read():
    with pytest.raises(UsageError, match="validation fraction"):
        load_tasks("split-mnist", validation_fraction=0.0)


def test_names_for_help_cost_no_heavy_import():
    code = (
        "import sys, keras_mas.training.tasks as tasks; tasks.builtin_names();"
        "heavy = {'tensorflow', 'keras', 'tensorflow_datasets', 'sklearn', 'PIL'};"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
