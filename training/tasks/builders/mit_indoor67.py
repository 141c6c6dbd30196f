"""MIT Indoor-67: photographs of 67 kinds of rooms."""

from pathlib import Path

import tensorflow_datasets as tfds

from .archive import Examples, ImageArchive, lines, within


class MitIndoor67(ImageArchive):
    """Indoor scenes of 67 classes, with the authors' 80 training and 20 test images of each."""

    URLS = {
        "images": "http://groups.csail.mit.edu/vision/LabelMe/NewImages/indoorCVPR_09.tar",
        "train": "http://web.mit.edu/torralba/www/TrainImages.txt",
        "test": "http://web.mit.edu/torralba/www/TestImages.txt",
    }
    CLASSES = 67
    HOMEPAGE = "https://web.mit.edu/torralba/www/indoor.html"
    CITATION = """@inproceedings{quattoni2009recognizing,
  title={Recognizing indoor scenes},
  author={Quattoni, Ariadna and Torralba, Antonio},
  booktitle={IEEE Conference on Computer Vision and Pattern Recognition},
  pages={413--420},
  year={2009}
}"""

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        images = self.extracted(dl_manager, "images") / "Images"
        listed = {role: lines(self.fetched(dl_manager, role)) for role in ("train", "test")}
        self.name_classes(sorted({name.split("/")[0] for name in listed["train"]}))
        return {role: self._generate_examples(images, names) for role, names in listed.items()}

    def _generate_examples(self, images: Path, names: list[str]) -> Examples:
        for name in names:  # such as "airport_inside/airport_inside_0001.jpg"
            yield name, {"image": within(images, name), "label": name.split("/")[0]}
