"""The builders, on tiny archives with the layout of the real ones, put in place by hand."""

import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from keras_mas.errors import UsageError
from keras_mas.training.tasks import DataError, builders, builtin, datasets, load_tasks
from keras_mas.training.tasks.builders.archive import check_digest
from keras_mas.training.tasks.images import ImageSize

tfds = pytest.importorskip("tensorflow_datasets")

for _name in builders.names():
    builders.register(_name)
BUILDERS = {name: tfds.builder_cls(name) for name in builders.names()}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Put a file where TFDS looks for it, and have it taken for the published one.

    An archive is given as the contents of its files by their paths.
    """

    def put(name, content):
        folder = tmp_path / "downloads" / "manual"
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / name, content)
        for builder in BUILDERS.values():
            for file, url in builder.URLS.items():
                if url.endswith(f"/{name}"):
                    digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
                    monkeypatch.setitem(builder.DIGESTS, file, f"sha256:{digest}")

    return put


def write(path, content):
    if isinstance(content, str):
        path.write_text(content)
        return
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for member, inner in content.items():
            content_bytes = inner.encode() if isinstance(inner, str) else inner
            info = tarfile.TarInfo(member)
            info.size = len(content_bytes)
            archive.addfile(info, io.BytesIO(content_bytes))


def picture(colour, size=(8, 6), form="JPEG"):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, form)
    return file.getvalue()


def read(name, tmp_path, **options):
    return datasets.read_tfds(name, ImageSize(4), tmp_path, **options)


def shades(split):
    """Return the red channel of every image, by label."""
    found = zip(split.labels.tolist(), split.inputs[:, 1, 1, 0].tolist(), strict=True)
    return {label: shade for label, shade in sorted(found)}


def test_indoor_scenes(place, tmp_path):
    names = [f"room{n:02d}" for n in range(67)]
    listed = {role: [f"{c}/{role}.jpg" for c in names] for role in ("train", "test")}
    images = {
        f"Images/{path}": picture((3 * number, 0, 0))
        for paths in listed.values()
        for number, path in enumerate(paths)
    }
    place("indoorCVPR_09.tar", images)
    place("TrainImages.txt", "\n".join(listed["train"]))
    place("TestImages.txt", "\n".join(listed["test"]) + "\n")
    source = read("mit_indoor67", tmp_path)
    assert source.classes == tuple(names)
    for split in (source.train, source.test):
        assert len(split) == 67
        assert all(abs(shade - 3 * label) <= 3 for label, shade in shades(split).items())


def test_aircraft_without_their_banner(place, tmp_path):
    variants = [f"Plane {n}/B" for n in range(100)]
    data = "fgvc-aircraft-2013b/data"
    files = {f"{data}/variants.txt": "\n".join(variants)}
    for offset, split in enumerate(("train", "val", "test")):
        lines = []
        for number, variant in enumerate(variants):
            image = Image.new("RGB", (24, 44), (2 * number, 0, 0))
            image.paste((255, 255, 255), (0, 24, 24, 44))  # the banner: the last 20 rows
            file = io.BytesIO()
            image.save(file, "JPEG", quality=95)
            files[f"{data}/images/{offset}{number:03d}.jpg"] = file.getvalue()
            lines.append(f"{offset}{number:03d} {variant}")
        files[f"{data}/images_variant_{split}.txt"] = "\n".join(lines)
    place("fgvc-aircraft-2013b.tar.gz", files)
    source = read("fgvc_aircraft", tmp_path)
    assert source.classes == tuple(variants)
    for split in (source.train, source.validation, source.test):
        assert all(abs(shade - 2 * label) <= 3 for label, shade in shades(split).items())
        assert split.inputs[:, -1].max() < 230


PERSON = """<object><name>person</name><bndbox><xmin>{}</xmin><ymin>1</ymin><xmax>{}</xmax>
<ymax>6</ymax></bndbox><actions>{}</actions></object>"""


def actions(*done):
    return "".join(f"<{a}>{int(a in done)}</{a}>" for a in ("jumping", "reading", "walking"))


def test_actions_of_persons_who_do_one(place, tmp_path):
    # The left half of the image is red, and the person in it reads; the one on the right jumps.
    image = Image.new("RGB", (8, 6), (200, 0, 0))
    image.paste((40, 0, 0), (4, 0, 8, 6))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95)
    root = "VOCdevkit/VOC2012"
    persons = [PERSON.format(1, 4, actions("reading")), PERSON.format(5, 8, actions("jumping"))]
    both = PERSON.format(1, 8, actions("reading", "walking"))
    files = {f"{root}/JPEGImages/{name}.jpg": file.getvalue() for name in ("a", "b")}
    for name in ("a", "b"):
        text = f"<annotation>{''.join(persons)}{both}</annotation>"
        files[f"{root}/Annotations/{name}.xml"] = text
    files[f"{root}/ImageSets/Action/train.txt"] = "a 1\na 2\na 3\n"
    files[f"{root}/ImageSets/Action/val.txt"] = "b 2\n"
    place("VOCtrainval_11-May-2012.tar", files)
    source = read("voc2012_actions", tmp_path)
    assert source.classes[:4] == ("jumping", "phoning", "playinginstrument", "reading")
    found = shades(source.train)
    assert set(found) == {0, 3}
    assert abs(found[0] - 40) < 20 and abs(found[3] - 200) < 20
    assert source.test.labels.tolist() == [0]


def test_letters_and_digits(place, tmp_path):
    folder = "English/Img/GoodImg/Bmp"
    files = {
        f"{folder}/Sample{n:03d}/img{n:03d}-{k:05d}.png": picture((3 * n, k, 0), form="PNG")
        for n in range(1, 63)
        for k in range(1, 6)
    }
    place("EnglishImg.tgz", files)
    with pytest.raises(DataError, match="`test_fraction`"):
        read("chars74k", tmp_path)
    source = read("chars74k", tmp_path, test_fraction=0.2)
    assert "".join(source.classes[9:12]) == "9AB"
    assert np.bincount(source.train.labels).tolist() == [4] * 62
    assert shades(source.test) == {n: 3 * (n + 1) for n in range(62)}


@pytest.mark.parametrize("name", builders.names())
def test_a_file_that_is_not_the_published_one_is_refused(name, tmp_path):
    builder = BUILDERS[name]
    manual = tmp_path / "downloads" / "manual"
    manual.mkdir(parents=True)
    names = [url.rsplit("/", 1)[1] for url in builder.URLS.values()]
    for each in names:
        write(manual / each, {"a": "another archive"})
    with pytest.raises(DataError) as error:
        read(name, tmp_path)
    url, digest = next(iter(builder.URLS.values())), next(iter(builder.DIGESTS.values()))
    for fact in [url, digest, f"'{manual / names[0]}'", "download it again"]:
        assert fact in str(error.value)
    assert all((manual / each).exists() for each in names)


def test_every_file_has_a_digest():
    for builder in BUILDERS.values():
        assert builder.DIGESTS.keys() == builder.URLS.keys()


@pytest.mark.parametrize(
    "digest",  # of "abc", from RFC 1321 and FIPS 180
    [
        "md5:900150983cd24fb0d6963f7d28e17f72",
        "sha1:a9993e364706816aba3e25717850c26c9cd0d89d",
        "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    ],
)
def test_a_digest_is_that_of_the_content(tmp_path, digest):
    path = tmp_path / "abc"
    path.write_text("abc")
    check_digest(path, digest, "https://example.org/abc")
    path.write_text("abd")
    with pytest.raises(DataError, match=f"with the checksum {digest}. Received: '{path}' with"):
        check_digest(path, digest, "https://example.org/abc")


def test_an_archive_unpacks_nothing_outside_its_folder(place, tmp_path):
    outside = tmp_path / "outside.jpg"
    evil = {"../../../../../outside.jpg": picture((1, 2, 3)), str(outside): picture((1, 2, 3))}
    names = [f"room{n:02d}/a.jpg" for n in range(67)]
    place("indoorCVPR_09.tar", evil | {f"Images/{name}": picture((9, 9, 9)) for name in names})
    place("TrainImages.txt", "\n".join(names))
    place("TestImages.txt", "\n".join(names))
    assert len(read("mit_indoor67", tmp_path).train) == 67
    assert not outside.exists()
    assert list(tmp_path.iterdir()) == [tmp_path / "downloads", *tmp_path.glob("mit_indoor67")]


def test_a_list_that_names_a_file_outside_is_refused(place, tmp_path):
    (tmp_path / "private.jpg").write_bytes(picture((1, 2, 3)))
    names = [f"room{n:02d}/a.jpg" for n in range(67)]
    place("indoorCVPR_09.tar", {f"Images/{name}": picture((9, 9, 9)) for name in names})
    place("TrainImages.txt", "\n".join([*names, "room00/../../../../../private.jpg"]))
    place("TestImages.txt", "\n".join(names))
    with pytest.raises(DataError, match="a list that names 'room00/../.*which lies outside"):
        read("mit_indoor67", tmp_path)


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("mit_indoor67", ["indoorCVPR_09.tar", "TrainImages.txt", "TestImages.txt"]),
        ("chars74k", ["EnglishImg.tgz"]),
        ("cars196", ["cars_train.tgz", "car_devkit.tgz"]),
    ],
)
def test_without_a_network_the_files_to_put_in_place_are_named(name, files, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "_answers", lambda url: False)
    with pytest.raises(DataError) as error:
        read(name, tmp_path)
    for fact in [*files, str(tmp_path / "downloads" / "manual"), "no answer from"]:
        assert fact in str(error.value)


def test_our_builders_are_suggested(tmp_path):
    with pytest.raises(UsageError, match="Did you mean 'mit_indoor67'"):
        read("mit_indoor76", tmp_path)


def test_a_stream_of_the_paper(tmp_path, monkeypatch):
    # Which sets, of which size, in which order; the data are another test's.
    calls = []

    def read_any(name, size, data_dir, store, test_fraction):
        calls.append((name, size, test_fraction))
        return builtin._digits()

    monkeypatch.setattr(builtin, "read_tfds", read_any)
    stream = load_tasks("paper-eight")
    assert [task.name for task in stream.tasks] == [
        "flowers", "scenes", "birds", "cars", "aircraft", "actions", "letters", "svhn",
    ]  # fmt: skip
    assert (stream.scenario, {size for _, size, _ in calls}) == ("task", {ImageSize(224)})
    assert calls[6] == ("chars74k", ImageSize(224), 0.2)
    assert [t.name for t in load_tasks("paper-flowers-birds").tasks] == ["flowers", "birds"]


def test_tasks_of_the_paper_in_small_images():
    folder = Path(__file__).parents[3] / "benchmarks" / "paper"
    for path in folder.glob("*.toml"):
        assert f'name = "paper-{path.stem}"' in path.read_text()
    assert len(list(folder.glob("*.toml"))) == 6
