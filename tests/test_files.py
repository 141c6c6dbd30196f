import os

import pytest

from keras_mas.errors import UsageError
from keras_mas.files import atomic_file, atomic_folder, check_writable, remove_unfinished


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_not_there_before_it_is_whole(tmp_path):
    path = tmp_path / "a.txt"
    with atomic_file(path, "w") as file:
        file.write("λ")
        assert not path.exists()
    assert path.read_text(encoding="utf-8") == "λ"
    assert names(tmp_path) == ["a.txt"]


def test_a_missing_folder_is_named(tmp_path):
    missing = pytest.raises(FileNotFoundError, match="No such folder: '.*/none'")
    with missing, atomic_file(tmp_path / "none" / "a.txt"):
        pass


def test_a_link_stays_and_a_device_is_not_replaced(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with atomic_file(tmp_path / "link", "w") as file:
        file.write("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "new"
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(FileExistsError, match="no regular file"), atomic_file(path):
            raise AssertionError
    assert not (tmp_path / "pipe").is_file()


def test_an_error_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_file(path, "w") as file:
        file.write("new")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_folder_is_not_there_before_it_is_whole(tmp_path):
    with atomic_folder(tmp_path / "models" / "1") as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "a.txt").write_text("a")
        assert not (tmp_path / "models" / "1").exists()
        # TensorFlow Serving takes a name that is an integer for a version.
        assert folder.name.startswith(".tmp-")
    assert names(tmp_path / "models") == ["1"]
    assert (tmp_path / "models/1/inner/a.txt").read_text() == "a"


def test_an_error_leaves_no_folder(tmp_path):
    with pytest.raises(ValueError, match="no"), atomic_folder(tmp_path / "1") as folder:
        (folder / "a.txt").write_text("a")
        raise ValueError("no")
    assert names(tmp_path) == []


def test_an_existing_folder_stays(tmp_path):
    with pytest.raises(FileExistsError, match="Expected no"), atomic_folder(tmp_path / "1"):
        (tmp_path / "1").mkdir()
    assert names(tmp_path) == ["1"]


def test_what_a_killed_process_left_is_removed(tmp_path):
    (tmp_path / ".tmp-1-aa").mkdir()
    (tmp_path / ".tmp-1-aa" / "a").write_text("a")
    (tmp_path / ".tmp-b").write_text("b")
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "c").write_text("c")
    (tmp_path / ".tmp-link").symlink_to("kept")
    remove_unfinished(tmp_path)
    assert names(tmp_path) == ["kept"] and names(tmp_path / "kept") == ["c"]


def test_what_is_left_of_one_file_is_removed_and_of_no_other(tmp_path):
    # The second is of "a", the third of "[a].bak", and the fourth of "[a]-b".
    others = [".tmp-a-00112233", ".tmp-[a].bak-00112233", ".tmp-[a]-b-00112233"]
    for name in (".tmp-[a]-00112233", *others):
        (tmp_path / name).write_text("")
    remove_unfinished(tmp_path, "[a]")
    assert names(tmp_path) == sorted(others)


def test_a_folder_that_can_be_made_leaves_no_trace(tmp_path):
    before = tmp_path.stat().st_mtime_ns
    check_writable(tmp_path)
    check_writable(tmp_path / "new" / "folder")
    assert names(tmp_path) == []
    assert tmp_path.stat().st_mtime_ns == before


def test_paths_that_cannot_be_folders_are_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    for path in ("file", "file/inside", "link", "link/inside"):
        with pytest.raises(UsageError, match="is a file, or a link to nothing"):
            check_writable(tmp_path / path)
    for path in ("x" * 300, "null\0"):
        with pytest.raises(UsageError, match="cannot be a folder"):
            check_writable(tmp_path / path)


def test_a_folder_without_permission_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UsageError, match=f"no permission to write in '{tmp_path}'"):
        check_writable(tmp_path / "run")
