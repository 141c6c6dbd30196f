"""FGVC-Aircraft: photographs of 100 variants of aeroplanes."""

from pathlib import Path

import tensorflow_datasets as tfds

from .archive import Examples, ImageArchive, cut_out, lines, within

# The last rows of every image hold a banner that names the photographer; the authors ask to remove
# it before training.
BANNER_ROWS = 20


class FgvcAircraft(ImageArchive):
    """Aeroplanes of 100 variants, with the authors' splits, without the banner at the bottom."""

    URLS = {
        "archive": "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/archives/"
        "fgvc-aircraft-2013b.tar.gz"
    }
    DIGESTS = {"archive": "sha256:e4e323d410e29f0370c81eabdcbb0e2b813acea1de22891b70b58ff41bfc9834"}
    CLASSES = 100
    HOMEPAGE = "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/"
    CITATION = """@techreport{maji2013fine,
  title={Fine-Grained Visual Classification of Aircraft},
  author={Maji, S. and Kannala, J. and Rahtu, E. and Blaschko, M. and Vedaldi, A.},
  year={2013},
  eprint={1306.5151},
  archivePrefix={arXiv}
}"""

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        data = self.extracted(dl_manager, "archive") / "fgvc-aircraft-2013b" / "data"
        self.name_classes(lines(data / "variants.txt"))
        roles = {"train": "train", "validation": "val", "test": "test"}
        return {role: self._generate_examples(data, name) for role, name in roles.items()}

    def _generate_examples(self, data: Path, split: str) -> Examples:
        from PIL import Image

        for line in lines(data / f"images_variant_{split}.txt"):  # such as "1025794 707-320"
            name, variant = line.split(maxsplit=1)
            path = within(data / "images", f"{name}.jpg")
            with Image.open(path) as image:
                width, height = image.size
            yield (
                name,
                {
                    "image": cut_out(path, (0, 0, width, height - BANNER_ROWS)),
                    "label": variant,
                },
            )
