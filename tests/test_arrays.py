import io
import pickle
import zipfile

import numpy as np
import pytest

from keras_mas.arrays import load_arrays, save_arrays

ARRAYS = {"omega": np.arange(6.0).reshape(2, 3), "tasks": np.array(2), "name": np.array("flowers")}


def load(path):
    return load_arrays(path, dict, "arrays of this test")


def test_arrays_are_read_as_they_were_saved(tmp_path):
    save_arrays(tmp_path / "a.npz", ARRAYS)
    read = load(tmp_path / "a.npz")
    assert read.keys() == ARRAYS.keys()
    assert all(np.array_equal(read[name], ARRAYS[name]) for name in ARRAYS)


def test_a_file_of_an_earlier_version_has_no_format(tmp_path):
    np.savez(tmp_path / "a.npz", **ARRAYS)
    assert load(tmp_path / "a.npz").keys() == ARRAYS.keys()


def test_a_later_format_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", **ARRAYS, keras_mas_format=np.array(2))
    with pytest.raises(ValueError, match=r"a.npz'.*format 2, .*reads format 1; use that which"):
        load(tmp_path / "a.npz")


def test_any_changed_bit_of_a_value_is_noticed(tmp_path):
    path = tmp_path / "a.npz"
    save_arrays(path, ARRAYS)
    intact = path.read_bytes()
    start = intact.index(ARRAYS["omega"].tobytes())
    for bit in range(0, 8 * ARRAYS["omega"].nbytes, 7):
        damaged = bytearray(intact)
        damaged[start + bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="Bad CRC-32"):
            load(path)


def test_a_header_that_says_less_than_was_written_is_noticed(tmp_path):
    path = tmp_path / "a.npz"
    save_arrays(path, {"omega": np.arange(9999, dtype="float32")})
    content = path.read_bytes()
    assert content.count(b"'<f4'") == 1
    path.write_bytes(content.replace(b"'<f4'", b"'<f2'"))  # half of the bytes, so not to the end
    with np.load(path) as archive:
        assert archive["omega"].shape == (9999,)  # other numbers, without a word
    with pytest.raises(ValueError, match="Bad CRC-32 for file 'omega.npy'"):
        load(path)


def test_a_pickle_is_not_executed(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (tmp_path.joinpath("exploded").touch, ())

    np.savez(tmp_path / "a.npz", omega=np.array([Bomb()], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        load(tmp_path / "a.npz")
    (tmp_path / "c.npz").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="no archive of arrays"):
        load(tmp_path / "c.npz")
    assert not (tmp_path / "exploded").exists()
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("omega.npy", b"cos\nsystem\n(S'true'\ntR.")
    (tmp_path / "b.npz").write_bytes(content.getvalue())
    with pytest.raises(ValueError, match="b.npz'"):
        load(tmp_path / "b.npz")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("path", ["a.txt", "a"])
def test_another_ending_is_refused(tmp_path, path):
    with pytest.raises(ValueError, match=r"ends in '.npz'"):
        save_arrays(tmp_path / path, ARRAYS)
