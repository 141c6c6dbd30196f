"""Chars74K: letters and digits of English in photographs of streets."""

import string
from pathlib import Path

import tensorflow_datasets as tfds

from .archive import Examples, ImageArchive

CHARACTERS = string.digits + string.ascii_uppercase + string.ascii_lowercase


class Chars74k(ImageArchive):
    """Characters cut out of photographs: the "good" English ones, 0-9, A-Z and a-z.

    They are not divided into training and test data.
    """

    URLS = {"archive": "http://www.ee.surrey.ac.uk/CVSSP/demos/chars74k/EnglishImg.tgz"}
    DIGESTS = {"archive": "md5:85d157e0c58f998e1cda8def62bcda0d"}
    CLASSES = len(CHARACTERS)
    HOMEPAGE = "http://www.ee.surrey.ac.uk/CVSSP/demos/chars74k/"
    CITATION = """@inproceedings{decampos2009character,
  title={Character recognition in natural images},
  author={de Campos, T. E. and Babu, B. R. and Varma, M.},
  booktitle={International Conference on Computer Vision Theory and Applications},
  year={2009}
}"""

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        images = self.extracted(dl_manager, "archive") / "English" / "Img" / "GoodImg" / "Bmp"
        self.name_classes(CHARACTERS)
        return {"train": self._generate_examples(images)}

    def _generate_examples(self, images: Path) -> Examples:
        for number, character in enumerate(CHARACTERS, 1):
            for path in sorted((images / f"Sample{number:03d}").glob("*.png")):
                yield path.stem, {"image": path, "label": character}
