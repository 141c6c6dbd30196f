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
    DIGESTS = {
        "images": "sha1:0b252516e746ba428b96af408d2e8162d9b08ac5",
        "train": "sha256:7ec85f88735739d8159061e4bcf6a9765aab8606ab444605b3f8e0641be0260e",
        "test": "sha256:906c529a5a0918feec371de5b07a465ddb1f15ebaebc90a33cc321c371133bf1",
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
