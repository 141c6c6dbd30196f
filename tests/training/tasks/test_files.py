import itertools
import os
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

from keras_mas.errors import UsageError
from keras_mas.training.tasks import DataError, files
from keras_mas.training.tasks.files import read_folder, read_npz
from keras_mas.training.tasks.images import ImageSize
from keras_mas.training.tasks.store import Store

# Archives.


def test_npz_as_it_is(write_npz):
    source = read_npz(write_npz(y_train=np.arange(20, dtype=np.uint8) % 3))
    assert source.classes == ("0", "1", "2")
    assert source.train.inputs.tolist() == np.arange(60).reshape(20, 3).tolist()
    assert source.train.labels.tolist() == (np.arange(20) % 3).tolist()
    assert len(source.test) == 4
    assert source.validation is None


def test_npz_with_validation_data(write_npz):
    source = read_npz(write_npz(x_val=np.ones((2, 3)), y_val=np.array([1, 0])))
    assert source.validation.labels.tolist() == [1, 0]


@pytest.mark.parametrize("missing", ["x_train", "y_train", "x_test", "y_test"])
def test_npz_without_an_array(write_npz, missing):
    with pytest.raises(DataError, match=f"Received: .*a.npz'. Add '{missing}'"):
        read_npz(write_npz(**{missing: None}))


def test_npz_with_half_a_pair_of_validation_arrays(write_npz):
    with pytest.raises(DataError, match="Add 'y_val'"):
        read_npz(write_npz(x_val=np.ones((2, 3))))


def test_npz_names_the_arrays_that_do_not_fit(write_npz):
    with pytest.raises(
        DataError, match="20 inputs and 7 labels in x_train and y_train of '.*a.npz"
    ):
        read_npz(write_npz(y_train=np.zeros(7, int)))


def test_pickled_objects_are_refused(write_npz):
    with pytest.raises(DataError, match="plain numeric arrays.*a.npz.*pickles are not read"):
        read_npz(write_npz(x_train=np.array([[1], [2, 3]], dtype=object)))


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut off"])
def test_what_is_no_archive(tmp_path, content):
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match="Expected an .npz archive.*a.npz' .it is no archive of ar"):
        read_npz(path)


def test_single_array_is_no_archive(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.ones(3))
    with pytest.raises(DataError, match="Expected an .npz archive.*a.npy"):
        read_npz(path)


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_damaged_archive(tmp_path, write):
    path = tmp_path / "a.npz"
    write(path, x_train=np.random.default_rng(0).normal(size=(20, 30)))
    content = bytearray(path.read_bytes())
    content[400:500] = b"\xff" * 100  # within x_train: its checksum or its compression is broken
    path.write_bytes(content)
    with pytest.raises(DataError, match="Expected an .npz archive.*a.npz"):
        read_npz(path)


@pytest.mark.parametrize("header", [b"{'shape': (3,", b"a\n  b\n c"])
def test_archive_of_an_array_whose_header_cannot_be_parsed(tmp_path, header):
    magic = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x_train.npy", magic + header)
    with pytest.raises(DataError, match="Expected an .npz archive.*a.npz"):
        read_npz(tmp_path / "a.npz")


def test_archive_that_may_not_be_read(write_npz, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError("Permission denied")

    monkeypatch.setattr(np, "load", refuse)  # root, in a container, may read everything
    with pytest.raises(DataError, match="a.npz.*Permission denied"):
        read_npz(write_npz())


# Folders.


def test_folder_as_it_is(pets):
    source = read_folder(pets, None)
    assert source.classes == ("cat", "dog")
    assert source.train.inputs.shape == (6, 4, 6, 3)
    assert source.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    # Colours say folder and number: train/cat is shade 0, train/dog 10, test/cat 20, test/dog 30.
    assert source.train.inputs[:, 0, 0, :2].tolist() == [[s, n] for s in (0, 10) for n in range(3)]
    assert source.test.inputs[:, 0, 0, 0].tolist() == [20, 30]
    assert source.validation is None


@pytest.mark.parametrize("name", ["val", "validation"])
def test_folder_with_validation_data(pets, write_images, name):
    write_images("photos", {f"{name}/dog": 2})
    assert read_folder(pets, None).validation.labels.tolist() == [1, 1]


def test_folder_resized(pets):
    assert read_folder(pets, ImageSize(8)).test.inputs.shape == (2, 8, 8, 3)


def test_folder_of_several_sizes_needs_image_size(pets, write_images):
    write_images("photos", {"train/cat": 1}, size=(9, 9))
    with pytest.raises(UsageError, match="Set `image_size`"):
        read_folder(pets, None)


def test_images_deeper_in_a_class_folder_belong_to_it(pets, write_images):
    write_images("photos", {"train/dog/puppies/small": 2})
    assert np.bincount(read_folder(pets, None).train.labels).tolist() == [3, 5]


def test_notes_and_hidden_files_are_passed_over(pets):
    (pets / "train" / "cat" / "notes.txt").write_text("not an image")
    (pets / "train" / "cat" / "._0.png").write_bytes(b"left by another computer")
    (pets / "train" / ".cache").mkdir()
    (pets / "train" / "README.md").write_text("not a class")
    source = read_folder(pets, None)
    assert source.classes == ("cat", "dog")
    assert len(source.train) == 6


@pytest.mark.parametrize("name", ["broken.JPG", "phone.heic"])
def test_image_that_cannot_be_decoded_is_not_passed_over(pets, name):
    (pets / "train" / "cat" / name).write_bytes(b"no image")
    with pytest.raises(DataError, match=name):
        read_folder(pets, None)


@pytest.mark.parametrize("split", ["train", "test"])
def test_folder_without_a_split(write_images, split):
    other = {"train": "test", "test": "train"}[split]
    path = write_images("photos", {f"{other}/cat": 2, f"{other}/dog": 2})
    with pytest.raises(DataError, match=f"folder for each class.*none in '.*{split}'"):
        read_folder(path, None)


def test_folder_without_classes(pets):
    (pets / "val").mkdir()
    with pytest.raises(DataError, match="folder for each class.*none in '.*val'"):
        read_folder(pets, None)


def test_folder_without_images(write_images):
    path = write_images("photos", {"train/cat": 0, "train/dog": 0, "test/cat": 1})
    with pytest.raises(DataError, match="Expected images. Received: none in '.*train'.*.jpg"):
        read_folder(path, None)


def test_a_class_whose_name_is_no_utf8_is_refused_before_training(pets):
    (pets / "train" / os.fsdecode(b"r\xff")).mkdir()
    with pytest.raises(DataError, match=r"in UTF-8.* Received: 'r\\udcff' in '.*train'. Rename"):
        read_folder(pets, None)


def test_class_that_is_tested_but_not_trained(pets, write_images):
    write_images("photos", {"test/cow": 1})
    with pytest.raises(DataError, match="'cat', 'dog'.*Received: 'cow' in '.*test'"):
        read_folder(pets, None)


# Links.


@pytest.mark.parametrize("target", [".", "..", "../..", "../dog"])
def test_link_back_into_the_split_repeats_nothing(pets, target):
    # Followed, these loops would give the cats again and again, and dogs the label of cats.
    (pets / "train" / "cat" / "again").symlink_to(target)
    source = read_folder(pets, None)
    assert source.train.labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_image_linked_twice_in_a_class_counts_once(pets):
    (pets / "train" / "cat" / "copy.png").symlink_to("0.png")
    (pets / "train" / "cat" / "hard.png").hardlink_to(pets / "train" / "cat" / "0.png")
    assert len(read_folder(pets, None).train) == 6


def test_images_may_lie_elsewhere(pets, write_images):
    elsewhere = write_images("elsewhere", {"small": 2})
    (pets / "train" / "cat" / "more").symlink_to(elsewhere)
    assert read_folder(pets, None).train.labels.tolist() == [0] * 5 + [1] * 3


@pytest.mark.parametrize("link", ["train/dog/0b.png", "test/cat/0b.png"])
def test_image_of_two_classes_or_splits(pets, link):
    (pets / link).symlink_to(pets / "train" / "cat" / "0.png")
    with pytest.raises(DataError, match=f"'.*{link}', which is the same file as '.*cat/0.png'"):
        read_folder(pets, None)


def test_test_folder_that_is_the_training_folder(write_images):
    path = write_images("photos", {"train/cat": 1, "train/dog": 1})
    (path / "test").symlink_to("train")
    with pytest.raises(DataError, match="different files in every class and split"):
        read_folder(path, None)


def test_link_to_nothing_is_named(pets):
    (pets / "train" / "cat" / "lost.png").symlink_to("nowhere.png")
    with pytest.raises(DataError, match="lost.png' .No such file"):
        read_folder(pets, None)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_pipe_is_no_image(pets, split):
    pipe = pets / split / "cat" / "x.jpg"
    os.mkfifo(pipe)
    with pytest.raises(DataError, match=f"ordinary files. Received: '{pipe}', which is a pipe"):
        read_folder(pets, None)


# Caches and broken files.


@pytest.fixture
def little_memory(tmp_path):
    """Make a store that keeps images of 8x8 on disk, two to a file."""
    return lambda **options: Store(2 * 192, tmp_path / "cache", **options)


def test_folder_on_disk_is_as_in_memory(pets, little_memory):
    on_disk, in_memory = (read_folder(pets, ImageSize(8), s) for s in (little_memory(), Store()))
    assert not on_disk.train.in_memory and in_memory.train.in_memory
    for role in ("train", "test"):
        a, b = getattr(on_disk, role), getattr(in_memory, role)
        np.testing.assert_array_equal(a.inputs, b.inputs)
        np.testing.assert_array_equal(a.labels, b.labels)
        assert a.fingerprint == b.fingerprint


def test_folder_without_image_size_knows_its_size_from_the_cache(pets, tmp_path, monkeypatch):
    first = read_folder(pets, None, Store(100, tmp_path / "cache"))
    monkeypatch.setattr(files, "read_image", None)  # nothing is decoded any more
    again = read_folder(pets, None, Store(100, tmp_path / "cache"))
    np.testing.assert_array_equal(again.train.inputs, first.train.inputs)


def test_fingerprint_is_of_names_sizes_and_times(pets, tmp_path):
    def fingerprints(path=pets, size=8, mode="crop"):
        source = read_folder(path, ImageSize(size, mode))
        return source.train.fingerprint, source.test.fingerprint

    first = fingerprints()
    moved = shutil.copytree(pets, tmp_path / "moved")  # with its times
    assert fingerprints() == fingerprints(moved) == first
    for other in (fingerprints(size=9), fingerprints(mode="stretch")):
        assert set(other).isdisjoint(first)
    image = pets / "train" / "dog" / "1.png"
    os.utime(image, ns=(0, 12_345))
    touched = fingerprints()
    assert touched[0] != first[0] and touched[1] == first[1]
    image.rename(image.with_name("9.png"))
    assert fingerprints()[0] not in (first[0], touched[0])


def test_a_changed_image_is_decoded_again(pets, little_memory):
    read_folder(pets, ImageSize(8), little_memory())
    Image.new("RGB", (6, 4), (99, 99, 99)).save(pets / "test" / "cat" / "0.png")
    inputs = read_folder(pets, ImageSize(8), little_memory()).test.inputs
    assert inputs[:, 0, 0, 0].tolist() == [99, 30]


@pytest.mark.parametrize("memory", [2 * 192, 10**6], ids=["disk", "memory"])
def test_broken_images_are_left_out_with_their_labels(pets, tmp_path, memory):
    (pets / "train" / "cat" / "0.png").write_bytes(b"no image")
    (pets / "train" / "dog" / "1.png").write_bytes(b"no image")
    store = Store(memory, tmp_path / "cache", skip_broken=True)
    with pytest.warns(UserWarning, match="left out: .*cat/0.png|left out: .*dog/1.png"):
        train = read_folder(pets, ImageSize(8), store).train
    assert train.labels.tolist() == [0, 0, 1, 1]
    # As above: cats have shade 0 and dogs 10, and the second colour is the number.
    assert train.inputs[:, 0, 0, :2].tolist() == [[0, 1], [0, 2], [10, 0], [10, 2]]
    assert ["cat/0.png" in store.left_out[0], "dog/1.png" in store.left_out[1]] == [True, True]


def test_a_failure_of_the_machine_leaves_no_image_out(pets, little_memory, monkeypatch):
    calls, whole = itertools.count(1), Image.open

    def every_third_fails(file):
        if next(calls) % 3 == 0:
            raise OSError(24, "Too many open files")
        return whole(file)

    monkeypatch.setattr(Image, "open", every_third_fails)
    with pytest.raises(DataError, match=r"png' \(Too many open files\).* run the same command"):
        read_folder(pets, ImageSize(8), little_memory(skip_broken=True))
    monkeypatch.setattr(Image, "open", whole)
    store = little_memory(skip_broken=True)
    assert len(read_folder(pets, ImageSize(8), store).train) == 6
    assert store.left_out == []


def test_error_of_a_broken_image_says_how_to_go_on(pets):
    (pets / "train" / "cat" / "0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="cat/0.png' .*`--skip-broken`"):
        read_folder(pets, ImageSize(8))


def test_folders_with_equal_names_sizes_and_times_are_told_apart_on_disk(tmp_path):
    # As archives unpack whose times are all the same.
    for name, shade in (("p", 0), ("q", 255)):
        for split in ("train", "test"):
            for label in ("cat", "dog"):
                file = tmp_path / name / split / label / "0.bmp"
                file.parent.mkdir(parents=True)
                Image.new("RGB", (2, 2), (shade,) * 3).save(file)
                os.utime(file, (1, 1))
    store = Store(memory=20, directory=tmp_path / "cache")
    black, white = (read_folder(tmp_path / name, None, store) for name in "pq")
    assert not black.train.in_memory
    assert black.train.inputs.max() == 0
    assert white.train.inputs.min() == 255
