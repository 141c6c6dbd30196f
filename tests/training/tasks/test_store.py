"""Decoded inputs in memory and on disk, from examples that count how often they are decoded."""

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import filelock
import numpy as np
import pytest

from keras_mas.errors import UsageError
from keras_mas.training import available_memory
from keras_mas.training.tasks import DataError, cache
from keras_mas.training.tasks.encoded import Encoded, Example
from keras_mas.training.tasks.errors import BrokenFileError
from keras_mas.training.tasks.inputs import Row
from keras_mas.training.tasks.store import Store, default_directory

ROW = 12  # bytes of an input below


@pytest.fixture(autouse=True)
def two_to_a_file(monkeypatch):
    monkeypatch.setattr(cache, "SHARD_BYTES", 2 * ROW)


class Pictures:
    """Seven inputs of 2x2x3 pixels, whose shade is their number, and a note of every decoding."""

    def __init__(self, broken=(), count=7, fingerprint="pictures"):
        self.broken, self.count, self.fingerprint, self.decoded = broken, count, fingerprint, []

    def decode(self, number):
        self.decoded.append(number)
        if number in self.broken:
            raise BrokenFileError(f"Expected an image. Received: picture {number}.")
        return np.full((2, 2, 3), number, np.uint8)

    def encoded(self, count=None, row=None):
        def examples(first):
            for number in range(first, self.count):
                yield Example(f"picture {number}", lambda number=number: self.decode(number))

        return Encoded("pictures", count or self.count, self.fingerprint, examples, row)


def shades(inputs, rows=None):
    """Read rows and return the one shade of each."""
    read = inputs.read(np.arange(len(inputs)) if rows is None else np.array(rows))
    assert (read.min(axis=(1, 2, 3)) == read.max(axis=(1, 2, 3))).all()
    return read[:, 0, 0, 0].tolist()


@pytest.fixture
def on_disk(tmp_path):
    """A store without the memory for seven pictures."""
    return lambda **options: Store(7 * ROW - 1, tmp_path / "cache", **options)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache" / "pictures"


def test_what_fits_is_kept_in_memory_and_nothing_on_disk(tmp_path):
    inputs, rows = Store(7 * ROW, tmp_path / "cache").keep(Pictures().encoded())
    assert inputs.in_memory
    assert (shades(inputs), rows.tolist()) == (list(range(7)), list(range(7)))
    assert list(tmp_path.iterdir()) == []


def test_memory_is_shared_by_all_that_a_store_keeps(tmp_path):
    store = Store(20 * ROW, tmp_path)
    kept = [store.keep(Pictures(fingerprint=name).encoded())[0].in_memory for name in "abc"]
    assert kept == [True, True, False]
    assert store.keep(Pictures(count=6, fingerprint="d").encoded())[0].in_memory


def test_the_rest_is_kept_in_files_that_numpy_reads(on_disk, folder):
    inputs, rows = on_disk().keep(Pictures().encoded())
    assert not inputs.in_memory
    assert rows.tolist() == list(range(7))
    files = sorted(folder.glob("*.npy"))
    assert [np.load(file).shape for file in files] == [(2, 2, 2, 3)] * 3 + [(1, 2, 2, 3)]
    assert np.concatenate([np.load(file) for file in files])[:, 0, 0, 0].tolist() == list(range(7))
    about = json.loads((folder / "about.json").read_text())
    assert about == {"inputs of": "pictures", "dtype": "|u1", "shape": [2, 2, 3], "count": 7}


@pytest.mark.parametrize("rows", [[], [3], [6, 0, 5, 0], [1, 2, 3], list(range(7)), [0, 1]])
def test_any_rows_are_read_in_any_order(on_disk, rows):
    inputs, _ = on_disk().keep(Pictures().encoded())
    read = inputs.read(np.array(rows, np.int64))
    assert read.shape == (len(rows), 2, 2, 3)
    assert read[:, 0, 0, 0].tolist() == rows


def test_numbers_of_other_types_survive(tmp_path):
    values = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    labels = np.array([3, -1, 2**40, 0, 7])
    for name, array in (("values", values), ("labels", labels)):
        examples = [Example(str(i), lambda v=value: v) for i, value in enumerate(array)]
        encoded = Encoded(name, 5, name, lambda first, all=examples: iter(all[first:]))
        inputs, _ = Store(16, tmp_path).keep(encoded)
        assert inputs.dtype == array.dtype
        np.testing.assert_array_equal(inputs.read(np.array([4, 2, 0])), array[[4, 2, 0]])


def test_a_second_start_decodes_nothing(on_disk):
    on_disk().keep(Pictures().encoded())
    again = Pictures()
    assert shades(on_disk().keep(again.encoded())[0]) == list(range(7))
    assert again.decoded == []


def test_later_memory_is_filled_from_the_disk(on_disk, tmp_path):
    on_disk().keep(Pictures().encoded())
    again = Pictures()
    inputs, _ = Store(7 * ROW, tmp_path / "cache").keep(again.encoded())
    assert inputs.in_memory and again.decoded == []
    assert shades(inputs) == list(range(7))


def test_memory_and_disk_have_one_fingerprint(on_disk, tmp_path):
    kept = (
        on_disk().keep(Pictures().encoded())[0],
        Store(999, tmp_path).keep(Pictures().encoded())[0],
    )
    assert kept[0].fingerprint == kept[1].fingerprint
    other = on_disk().keep(Pictures(fingerprint="other").encoded())[0]
    assert other.fingerprint != kept[0].fingerprint


# What is interrupted or damaged.


def test_an_interrupted_decoding_goes_on_after_its_last_file(on_disk):
    with pytest.raises(BrokenFileError, match="picture 5"):
        on_disk().keep(Pictures(broken=[5]).encoded())
    again = Pictures()
    assert shades(on_disk().keep(again.encoded())[0]) == list(range(7))
    assert sorted(again.decoded) == [4, 5, 6]


KILLED = """
import os, pathlib, sys, time
import numpy as np
from keras_mas.training.tasks import cache
from keras_mas.training.tasks.encoded import Encoded, Example
from keras_mas.training.tasks.store import Store

def decode(number):
    while number == 5:
        time.sleep(0.01)
        if pathlib.Path(sys.argv[1], "pictures", "00001.npy").exists():
            os.kill(os.getpid(), 9)
    return np.full((2, 2, 3), number, np.uint8)

def examples(first):
    return (Example(str(n), lambda n=n: decode(n)) for n in range(first, 7))

cache.SHARD_BYTES = 24
Store(83, sys.argv[1]).keep(Encoded("pictures", 7, "pictures", examples))
"""


def test_a_killed_process_leaves_whole_files_and_nothing_locked(on_disk, tmp_path):
    command = [sys.executable, "-c", KILLED, str(tmp_path / "cache")]
    assert subprocess.run(command, timeout=60).returncode == -9
    again = Pictures()
    assert shades(on_disk().keep(again.encoded())[0]) == list(range(7))
    assert sorted(again.decoded) == [4, 5, 6]
    assert list((tmp_path / "cache/pictures").glob(".tmp-*")) == []


@pytest.mark.parametrize("damage", ["cut", "longer", "header", "pixel", "gone"])
def test_a_damaged_file_is_decoded_again(on_disk, folder, damage):
    on_disk().keep(Pictures().encoded())
    path = folder / "00001.npy"
    content = path.read_bytes()
    path.unlink()
    changed = {"cut": content[:-1], "longer": content + b"0", "header": b"x" + content[1:]}
    changed["pixel"] = content[:-1] + bytes([content[-1] ^ 1])
    if damage in changed:
        path.write_bytes(changed[damage])
    again = Pictures()
    assert shades(on_disk().keep(again.encoded())[0]) == list(range(7))
    assert set(again.decoded) >= {2, 3}
    assert path.read_bytes() == content


def test_files_between_whole_ones_get_their_own_inputs_again(on_disk, folder):
    def keep(pictures):
        return on_disk(skip_broken=True).keep(pictures.encoded())

    with pytest.warns(UserWarning, match="picture 5"):
        keep(Pictures(broken=[5]))
    for number in (0, 2):
        (folder / f"0000{number}.npy").unlink()
    again = Pictures(broken=[5])
    with pytest.warns(UserWarning, match="picture 5"):
        inputs, rows = keep(again)
    assert shades(inputs, rows) == rows.tolist() == [0, 1, 2, 3, 4, 6]
    notes = [json.loads(path.read_text()) for path in sorted(folder.glob("0*.json"))]
    assert len({note.pop("crc32") for note in notes}) == 4
    assert notes == [{}, {}, {"5": "Expected an image. Received: picture 5."}, {}]


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", '{"5": "x"}', '{"5": 1}'])
def test_notes_that_are_gone_or_damaged_are_made_again(on_disk, folder, content):
    for number in range(2):
        pictures = Pictures(broken=[5])
        with pytest.warns(UserWarning, match="picture 5"):
            inputs, rows = on_disk(skip_broken=True).keep(pictures.encoded())
        assert rows.tolist() == [0, 1, 2, 3, 4, 6]
        if number == 0:
            (folder / "00002.json").unlink()
            if content is not None:
                (folder / "00002.json").write_text(content)
    assert min(pictures.decoded) == 4  # only the file whose notes are missing, and what follows


def test_a_note_of_another_row_is_made_again(on_disk, folder):
    def rows():
        with pytest.warns(UserWarning, match="picture 5"):
            return on_disk(skip_broken=True).keep(Pictures(broken=[5]).encoded())[1].tolist()

    rows()
    notes = folder / "00002.json"
    notes.write_text(notes.read_text().replace('"5":', '"4":'))
    assert rows() == [0, 1, 2, 3, 4, 6]


def test_a_process_compares_checksums_once(on_disk, monkeypatch):
    on_disk().keep(Pictures().encoded())
    compared = []
    whole = cache._checksum
    monkeypatch.setattr(cache, "_checksum", lambda *a: compared.append(a) or whole(*a))
    for _ in range(2):
        on_disk().keep(Pictures().encoded())
    assert len(compared) == 4  # files


def test_many_examples_are_decoded_at_the_same_time_and_stay_in_order(tmp_path):
    pictures = Pictures(count=200)
    original = pictures.decode

    def decode(number):
        time.sleep(0.002 * (number % 3 == 0))
        return original(number)

    pictures.decode = decode
    inputs, _ = Store(200 * ROW, tmp_path).keep(pictures.encoded())
    assert shades(inputs) == list(range(200))


@pytest.mark.parametrize("about", ["{", '{"dtype": "|u1", "shape": "883", "count": 7}', None])
def test_what_a_folder_holds_is_told_by_its_files(on_disk, folder, about):
    on_disk().keep(Pictures().encoded())
    (folder / "about.json").unlink()
    if about is not None:
        (folder / "about.json").write_text(about)
    again = Pictures()
    assert shades(on_disk().keep(again.encoded())[0]) == list(range(7))
    assert again.decoded == []


@pytest.mark.parametrize("first", [b"", b"no array", None])
def test_without_its_first_file_an_input_is_decoded_to_know(on_disk, folder, first):
    on_disk().keep(Pictures().encoded())
    (folder / "00000.npy").unlink()
    if first is not None:
        (folder / "00000.npy").write_bytes(first)
    assert shades(on_disk().keep(Pictures().encoded())[0]) == list(range(7))


def test_a_file_that_goes_while_it_is_used_is_named(on_disk, folder):
    inputs, _ = on_disk().keep(Pictures().encoded())
    (folder / "00002.npy").write_bytes((folder / "00002.npy").read_bytes()[:-5])
    with pytest.raises(DataError, match="00002.npy'.*ends too early. Run the same command again"):
        inputs.read(np.array([0, 5]))
    (folder / "00002.npy").unlink()
    with pytest.raises(DataError, match="00002.npy'.*No such file"):
        inputs.read(np.array([0, 5]))
    assert shades(inputs, [0, 1]) == [0, 1]


def test_a_second_process_waits_for_the_first_and_decodes_nothing(on_disk, folder, tmp_path):
    done = tmp_path / "done"
    Store(7 * ROW - 1, done).keep(Pictures().encoded())
    folder.mkdir(parents=True)
    held = threading.Event()

    def other_process():
        with filelock.FileLock(folder / ".lock"):
            held.set()
            time.sleep(0.2)
            for file in (done / "pictures").glob("0*"):
                shutil.copy(file, folder)

    thread = threading.Thread(target=other_process)
    thread.start()
    held.wait()
    again = Pictures()
    with pytest.warns(UserWarning, match="waiting for another process that decodes to .*pictures"):
        inputs, _ = on_disk().keep(again.encoded(row=Row(np.dtype(np.uint8), (2, 2, 3))))
    thread.join()
    assert shades(inputs) == list(range(7))
    assert again.decoded == []


# What cannot be decoded.


@pytest.mark.parametrize("memory", [7 * ROW, 7 * ROW - 1], ids=["memory", "disk"])
def test_broken_examples_are_left_out_on_request(tmp_path, memory):
    def keep(**options):
        store = Store(memory, tmp_path / "cache", **options)
        return store, *store.keep(Pictures(broken=[0, 3, 6]).encoded())

    with pytest.warns(UserWarning, match="left out: Expected an image. Received: picture") as told:
        store, inputs, rows = keep(skip_broken=True)
    assert rows.tolist() == [1, 2, 4, 5]
    assert shades(inputs, rows) == [1, 2, 4, 5]
    assert [reason[-2] for reason in store.left_out] == ["0", "3", "6"]
    assert len(told) == 3
    # The next start tells again, from the cache or by decoding; and refuses if not asked to skip.
    with pytest.warns(UserWarning, match="left out"):
        assert keep(skip_broken=True)[2].tolist() == [1, 2, 4, 5]
    with pytest.raises(BrokenFileError, match="picture 0"):
        keep()


def test_nothing_but_broken_examples(on_disk):
    with pytest.raises(DataError, match="at least one example that can be decoded.*in pictures"):
        on_disk(skip_broken=True).keep(Pictures(broken=range(7)).encoded())


@pytest.mark.parametrize("memory", [999, 7 * ROW - 1], ids=["memory", "disk"])
def test_inputs_of_another_shape_midway(tmp_path, memory):
    pictures = Pictures()
    original = pictures.decode
    pictures.decode = lambda n: original(n) if n != 5 else np.zeros((4, 2, 3), np.uint8)
    with pytest.raises(UsageError, match="2x2x3 in picture 0 and 4x2x3 in picture 5. Set"):
        Store(memory, tmp_path).keep(pictures.encoded())
    if memory < 999:
        assert len(list(tmp_path.glob("*/*.npy"))) == 2  # what was finished stays


@pytest.mark.parametrize(("count", "facts"), [(9, "9 examples in pictures. Received: 7, after")])
@pytest.mark.parametrize("memory", [999, 7 * ROW], ids=["memory", "disk"])
def test_data_that_end_too_early(tmp_path, memory, count, facts):
    with pytest.raises(DataError, match=facts):
        Store(memory, tmp_path).keep(Pictures().encoded(count))


def test_data_that_yield_nothing(on_disk):
    with pytest.raises(DataError, match="at least one example that can be decoded. Received: none"):
        on_disk().keep(Pictures(count=0).encoded(count=3))


# Room.


def test_too_little_room_is_noticed_before_anything_is_written(on_disk, folder, monkeypatch):
    # Four files with a header of 128 bytes each and 84 bytes of pixels in all.
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=595))
    pictures = Pictures()
    with pytest.raises(UsageError, match="cache'. Received: 596 bytes needed, 595 bytes free"):
        on_disk().keep(pictures.encoded())
    assert pictures.decoded == [0]  # to know its size
    assert list(folder.glob("*.npy")) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=596))
    on_disk().keep(pictures.encoded())


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_midway(on_disk, folder, monkeypatch, code):
    whole = cache.Shard.write

    def write(shard, inputs, broken):
        if shard.start == 4:
            raise OSError(code, os.strerror(code))
        whole(shard, inputs, broken)

    monkeypatch.setattr(cache.Shard, "write", write)
    with pytest.raises(UsageError, match="Expected room .*cache'.*`--cache-dir`.*decoded stays"):
        on_disk().keep(Pictures().encoded())
    monkeypatch.setattr(cache.Shard, "write", whole)
    again = Pictures()
    on_disk().keep(again.encoded())
    assert sorted(again.decoded) == [4, 5, 6]


def test_a_cache_that_cannot_be_a_folder(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="'.*file' is a file"):
        Store(ROW, tmp_path / "file").keep(Pictures().encoded())


def test_memory_below_one_input(tmp_path):
    with pytest.raises(UsageError, match="one input of pictures, 12 bytes. Received: 11 bytes"):
        Store(ROW - 1, tmp_path).keep(Pictures().encoded())


def test_memory_below_one_batch(on_disk):
    inputs, _ = on_disk().keep(Pictures().encoded())
    inputs.check_batch(6)
    cache.CachedArray(Path(), 9, Row(np.dtype(np.uint8), (12,)), "", memory=84).check_batch(7)
    with pytest.raises(UsageError, match="one batch of 7 inputs, 84 bytes. Received: 83 bytes.*"):
        inputs.check_batch(7)


def test_memory_below_one_batch_is_refused_before_anything_is_decoded(on_disk, folder):
    pictures = Pictures()
    with pytest.raises(UsageError, match="one batch of 7 inputs, 84 bytes. Received: 83 bytes"):
        on_disk(batch_size=7).keep(pictures.encoded())
    assert pictures.decoded == [0]  # to know its size
    assert not folder.exists()
    on_disk(batch_size=6).keep(pictures.encoded())


def test_more_memory_than_the_machine_has(tmp_path):
    row = Row(np.dtype(np.uint8), (10**6, 10**6))
    with pytest.raises(UsageError, match="7 inputs of pictures to fit.*Lower `--cache-memory`"):
        Store(10**15, tmp_path).keep(Pictures().encoded(row=row))


# Defaults.


def test_the_cache_is_in_the_users_folder(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/ann")
    assert default_directory() == Path("/home/ann/.cache/keras_mas")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/ann")
    assert default_directory() == Path("/var/cache/ann/keras_mas")


@pytest.mark.parametrize(
    ("limit", "expected"), [("4000\n", 1000), ("max\n", 250_000), (None, 250_000)]
)
def test_the_memory_is_a_quarter_of_the_machine_or_of_its_container(
    monkeypatch, tmp_path, limit, expected
):
    import psutil

    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=1_000_000))
    monkeypatch.setattr(available_memory, "_CONTAINER_LIMIT", tmp_path / "memory.max")
    if limit is not None:
        (tmp_path / "memory.max").write_text(limit)
    assert Store().memory == expected


def test_a_cache_that_vanishes_while_it_is_used_is_named(on_disk, folder):
    inputs, _ = on_disk().keep(Pictures().encoded())
    shutil.rmtree(folder.parent)
    words = r"cache/pictures/.*npy'.* Received: No such file or directory\. Run the same command"
    with pytest.raises(DataError, match=words):
        inputs.read(np.arange(7))
    again, _ = on_disk().keep(Pictures().encoded())
    assert shades(again) == list(range(7))


def test_pictures_that_vanish_after_they_were_decoded_are_not_missed(on_disk):
    pictures = Pictures()
    inputs, _ = on_disk().keep(pictures.encoded())
    pictures.broken = range(7)
    assert shades(inputs) == list(range(7))
