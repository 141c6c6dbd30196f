"""Changes of all inputs of a source: channels repeated, pixels padded, permuted or rotated."""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Change:
    """What is done to every input of a source, whenever it is read; this one does nothing.

    It belongs to the data, not to the model: a model learns, and takes when it is served, inputs
    that have been changed. Its name and fields tell it from other changes: a fingerprint of the
    data includes them.
    """

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of a changed input, given an input's."""
        return shape

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        """Return changed inputs `[n, ...]` of inputs `[n, ...]`, of the same dtype."""
        return inputs


@dataclass(frozen=True)
class Rgb(Change):
    """Grey images `[n, H, W, 1]` become RGB images: their channel three times."""

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape with three channels."""
        return (*shape[:-1], 3)

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        """Return the images in three channels."""
        return np.repeat(inputs, 3, axis=-1)


@dataclass(frozen=True)
class Padding(Change):
    """Images `[n, H, W, C]` get a margin of zeros on all four sides.

    Attributes:
        margin: Its width in pixels.
    """

    margin: int

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape with two margins in height and width."""
        height, width, channels = shape
        return (height + 2 * self.margin, width + 2 * self.margin, channels)

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        """Return the images within their margins."""
        margin = (self.margin, self.margin)
        return np.pad(inputs, [(0, 0), margin, margin, (0, 0)])


@dataclass(frozen=True)
class Permutation(Change):
    """The values of every input come in another order, the same one for all.

    Attributes:
        seed: Seed of the order: `np.random.default_rng(seed).permutation(number of values)`.
    """

    seed: int

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        """Return the inputs with their values in the new order."""
        count = math.prod(inputs.shape[1:])
        order = np.random.default_rng(self.seed).permutation(count)
        return inputs.reshape(len(inputs), count)[:, order].reshape(inputs.shape)


@dataclass(frozen=True)
class Rotation(Change):
    """Images `[n, H, W, C]` are rotated about their middle, with bilinear interpolation.

    What comes from outside the image is zero.

    Attributes:
        degrees: Angle, counter-clockwise.
    """

    degrees: float

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        """Return the rotated images."""
        from scipy import ndimage

        rotated = ndimage.rotate(
            inputs,
            self.degrees,
            axes=(1, 2),
            reshape=False,
            order=1,
            mode="grid-constant",
            output=np.float32,
        )
        return (np.rint(rotated) if inputs.dtype == np.uint8 else rotated).astype(inputs.dtype)
