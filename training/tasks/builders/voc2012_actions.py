"""PASCAL VOC 2012 Actions: people in photographs, and what they do."""

from pathlib import Path
from xml.etree import ElementTree

import tensorflow_datasets as tfds

from .archive import Examples, ImageArchive, cut_out, lines, within

ACTIONS = (
    "jumping",
    "phoning",
    "playinginstrument",
    "reading",
    "ridingbike",
    "ridinghorse",
    "running",
    "takingphoto",
    "usingcomputer",
    "walking",
)


class Voc2012Actions(ImageArchive):
    """People, cut out of their photograph, who do exactly one of ten actions.

    The labels of the test images are not published: the authors' validation images are test data.
    """

    URLS = {"archive": "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar"}
    DIGESTS = {"archive": "sha256:e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb"}
    CLASSES = len(ACTIONS)
    HOMEPAGE = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/"
    CITATION = """@misc{pascal-voc-2012,
  author={Everingham, M. and Van Gool, L. and Williams, C. K. I. and Winn, J. and Zisserman, A.},
  title={The {PASCAL} {V}isual {O}bject {C}lasses {C}hallenge 2012 {(VOC2012)} {R}esults},
  howpublished={http://www.pascal-network.org/challenges/VOC/voc2012/workshop/index.html}
}"""

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        folder = self.extracted(dl_manager, "archive") / "VOCdevkit" / "VOC2012"
        self.name_classes(ACTIONS)
        roles = {"train": "train", "test": "val"}
        return {role: self._generate_examples(folder, name) for role, name in roles.items()}

    def _generate_examples(self, folder: Path, split: str) -> Examples:
        for line in lines(folder / "ImageSets" / "Action" / f"{split}.txt"):
            image, number = line.split()[:2]  # such as "2010_006215 1": the first person in it
            described = within(folder / "Annotations", f"{image}.xml")
            photograph = within(folder / "JPEGImages", f"{image}.jpg")
            person = ElementTree.parse(described).findall("object")[int(number) - 1]
            done = [action for action in ACTIONS if _does(person, action)]
            if len(done) == 1:
                yield (
                    f"{image}-{number}",
                    {
                        "image": cut_out(photograph, _box(person)),
                        "label": done[0],
                    },
                )


def _does(person: ElementTree.Element, action: str) -> bool:
    return float(person.findtext(f"actions/{action}", "0")) == 1


def _box(person: ElementTree.Element) -> tuple[int, int, int, int]:
    """Return left, top, right, bottom; VOC counts pixels from 1, and its last ones are inside."""
    left, top, right, bottom = (
        round(float(person.findtext(f"bndbox/{side}", "0")))
        for side in ("xmin", "ymin", "xmax", "ymax")
    )
    return left - 1, top - 1, right, bottom
