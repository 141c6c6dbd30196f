import subprocess
import sys

import numpy as np
import pytest

from keras_mas.errors import UsageError
from keras_mas.training.tasks import builtin_names, load_tasks


def test_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(UsageError) as error:
        load_tasks("split-minst")
    for fact in [*builtin_names(), "'split-minst'", "Did you mean 'split-mnist'?"]:
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
        "heavy = {'tensorflow', 'keras', 'tensorflow_datasets', 'sklearn', 'scipy', 'PIL'};"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


TOML = 'name = "shop"\nimage_size = 8\n[[task]]\nname = "a"\nfolder = "photos"\n'


def test_files_left_out_are_counted(pets, tmp_path):
    (tmp_path / "shop.toml").write_text(TOML)
    assert load_tasks(tmp_path / "shop.toml").left_out == ()
    for name in ("train/cat/0.png", "train/dog/2.png"):
        (pets / name).write_bytes(b"no image")
    with pytest.warns(UserWarning) as told:
        stream = load_tasks(tmp_path / "shop.toml", skip_broken=True)
    assert len(stream.left_out) == 2
    assert str(told[-1].message) == "2 files that cannot be decoded were left out of 'shop'"
    assert len(stream.tasks[0].train) + len(stream.tasks[0].validation) == 4


def test_splits_of_a_stream_share_the_memory(pets, tmp_path):
    # Eight images of 192 bytes: training takes 1,152 and testing 384.
    (tmp_path / "shop.toml").write_text(TOML)
    for memory, expected in [(1600, [True, True]), (1400, [True, False]), (400, [False, True])]:
        (task,) = load_tasks(tmp_path / "shop.toml", cache_memory=memory, cache_dir=tmp_path).tasks
        assert [task.train.in_memory, task.test.in_memory] == expected


def test_grey_images_on_disk_become_rgb_beside_colours(pets, write_npz, tmp_path):
    grey = np.arange(20, dtype=np.uint8)[:, None, None] * np.ones((8, 8), np.uint8)
    write_npz(x_train=grey, x_test=grey[:4])
    (tmp_path / "shop.toml").write_text(TOML + '[[task]]\nname = "b"\nnpz = "a.npz"\n')
    stream = load_tasks(tmp_path / "shop.toml", cache_memory=400, cache_dir=tmp_path)
    assert stream.tasks[1].input_shape == (8, 8, 3)
    ((batch, _),) = stream.tasks[1].test.dataset(8)
    np.testing.assert_array_equal(batch, np.repeat(grey[:4, ..., None], 3, axis=-1))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cache_dir": "cache"}, "--cache-dir makes no difference: nothing in 'split-digits' is"),
        ({"cache_dir": "cache", "skip_broken": True}, "--cache-dir and --skip-broken make no diff"),
    ],
)
def test_options_for_what_is_decoded_are_told_of_where_nothing_is(options, words):
    with pytest.warns(UserWarning, match=words):
        load_tasks("split-digits", **options)
