"""What the builders share: archives of labelled images, downloaded or put in place by hand."""

import hashlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from ..errors import DataError

# Of images that are cut out of others: large enough that nothing is seen of the compression.
JPEG_QUALITY = 95


class ImageArchive(  # type: ignore[call-arg] # which a base class of TFDS takes
    tfds.core.GeneratorBasedBuilder, skip_registration=True
):
    """A data set of images `[H, W, 3]` of any size with one label each.

    A file that lies under its own name in `<data_dir>/downloads/manual/` is not downloaded. Either
    way its digest is checked. TFDS would check a SHA-256 alone, which is not known of all of them:
    their authors publish none, and other libraries that download them have noted what is here.

    Attributes:
        URLS: Address of every file, by a short name for it.
        DIGESTS: Digest of every file, as "algorithm:hexadecimal digits", by the same names.
        CLASSES: Number of classes.
        HOMEPAGE: The data set's page, with its terms of use.
        CITATION: BibTeX.
    """

    VERSION = tfds.core.Version("1.0.0")
    URLS: ClassVar[dict[str, str]]
    DIGESTS: ClassVar[dict[str, str]]
    CLASSES: ClassVar[int]
    HOMEPAGE: ClassVar[str]
    CITATION: ClassVar[str]

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(),
                    "label": tfds.features.ClassLabel(num_classes=self.CLASSES),
                }
            ),
            supervised_keys=("image", "label"),
            homepage=self.HOMEPAGE,
            citation=self.CITATION,
        )

    def fetched(self, manager: tfds.download.DownloadManager, name: str) -> Path:
        """Return a file of `URLS`, downloaded unless it was put in place.

        Raises:
            DataError: If it has another digest than that of `DIGESTS`.
        """
        url = self.URLS[name]
        placed = Path(self.data_dir_root) / "downloads" / "manual" / url.rsplit("/", 1)[1]
        path = placed if placed.exists() else Path(manager.download(url))
        check_digest(path, self.DIGESTS[name], url)
        return path

    def extracted(self, manager: tfds.download.DownloadManager, name: str) -> Path:
        """Return the folder of an archive's content."""
        path = self.fetched(manager, name)
        method = tfds.download.ExtractMethod
        is_packed = self.URLS[name].endswith("gz")
        archive = tfds.download.Resource(
            path=path, extract_method=method.TAR_GZ if is_packed else method.TAR
        )
        return Path(manager.extract(archive))

    def name_classes(self, names: Sequence[str]) -> None:
        """Name the classes, in the order of their labels."""
        self.info.features["label"].names = list(names)


def check_digest(path: Path, expected: str, url: str) -> None:
    """Check that a file is the one that was published at an address.

    Args:
        path: The file.
        expected: Its digest, as "algorithm:hexadecimal digits".
        url: The address.

    Raises:
        DataError: If it is another file.
    """
    algorithm = expected.split(":")[0]
    with path.open("rb") as file:
        received = f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"
    if received != expected:
        raise DataError(
            f"Expected the file of {url} with the checksum {expected}. Received: '{path}' with "
            f"{received}, which is damaged, incomplete or another one. Remove it, and download it "
            "again."
        )


def lines(path: Path) -> list[str]:
    """Return the lines of a text file that are not empty."""
    return [line.strip() for line in path.read_text().splitlines() if line.strip()]


def within(folder: Path, name: str) -> Path:
    """Return the path of a file that a list names, in the folder that the list is of.

    Raises:
        DataError: If it would be outside.
    """
    if not (folder / name).resolve().is_relative_to(folder.resolve()):
        raise DataError(
            f"Expected files in '{folder}'. Received: a list that names '{name}', which lies "
            "outside. Take the archive from where its authors publish it."
        )
    return folder / name


def cut_out(path: Path, box: tuple[int, int, int, int]) -> io.BytesIO:
    """Return a part of an image as a JPEG file.

    Args:
        path: The image.
        box: Left, top, right, bottom in pixels.
    """
    from PIL import Image

    file = io.BytesIO()
    with Image.open(path) as image:
        image.convert("RGB").crop(box).save(file, "JPEG", quality=JPEG_QUALITY)
    file.seek(0)
    return file


Examples = Iterator[tuple[str, dict[str, Any]]]
