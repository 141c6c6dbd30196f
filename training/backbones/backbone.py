"""What every backbone has: how raw inputs become what it takes, and its layers."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
from keras import layers

from keras_mas.errors import UsageError

from ..tasks.stream import Rescale

# Mean over ImageNet of the blue, green and red pixels, as Caffe's networks subtract it.
_BGR_MEAN = (104.0, 117.0, 123.0)

# From a tensor `[N, ...]` to a tensor.
Layers = Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A network that all tasks of a stream share.

    Attributes:
        name: Its name, as it was asked for.
        features: Layers from inputs `[N, ...]` to features `[N, F]`, with random weights.
        smallest: Height and width of the smallest images that it takes; None if it takes inputs of
            any shape.
        preprocess: Layers from RGB pixels, 0 to 255, to what `features` takes; None if that is what
            the stream of tasks rescales its inputs to, in any number of channels.
        imagenet: As `features`, with weights learned on ImageNet; None if Keras publishes none.
        published: Names of its layers in weights that others publish, as `{theirs: ours}`.
        halves: Layers that others publish as one and that are several here, side by side, as
            `{theirs: ours}`.
        order: Two layers without weights, in the order in which they come here: it tells the
            network from another one, whose weights have the same shapes.
        takes_raw: Whether `features` takes inputs as they are, neither rescaled nor prepared.
    """

    name: str
    features: Layers
    smallest: int | None = None
    preprocess: Layers | None = None
    imagenet: Layers | None = None
    published: Mapping[str, str] = dataclasses.field(default_factory=dict)
    halves: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    order: tuple[str, ...] = ()
    takes_raw: bool = False

    def build(
        self, input_shape: tuple[int, ...], rescale: Rescale, imagenet: bool = False
    ) -> keras.Model:
        """Return the trunk for raw inputs of a shape; arguments and errors as `build_trunk`."""
        self._check_shape(input_shape)
        inputs = keras.Input(input_shape, name="inputs")
        if self.takes_raw:
            x = layers.Rescaling(1.0, name="as-they-are")(inputs)  # integers become float32
        elif self.preprocess is None:
            scale, offset = rescale
            x = layers.Rescaling(scale, offset, name="rescale")(inputs)
        else:
            x = self.preprocess(_rgb(inputs))
        features = self.imagenet if imagenet and self.imagenet else self.features
        return keras.Model(inputs, features(x), name="trunk")

    def _check_shape(self, shape):
        if self.smallest is None:
            return
        if len(shape) != 3:
            raise UsageError(
                f"Expected images [height, width, channels] for backbone '{self.name}'. Received: "
                f"inputs of shape {list(shape)}. Choose '--backbone mlp-256-256'."
            )
        height, width, channels = shape
        if min(height, width) < self.smallest:
            raise UsageError(
                f"Expected images of at least {self.smallest}×{self.smallest} pixels for backbone "
                f"'{self.name}'. Received: {height}×{width}. Raise `image_size` in the TOML file "
                "of tasks, or choose another `--backbone`, such as cnn-32-64-128."
            )
        if self.preprocess is not None and channels not in (1, 3):
            raise UsageError(
                f"Expected grey or RGB images for backbone '{self.name}'. Received: images of "
                f"{channels} channels. Choose '--backbone cnn-32-64-128'."
            )


def _rgb(images):
    """Return RGB images `[N, H, W, 3]` of RGB or grey ones, as float32."""
    x = layers.Rescaling(1.0, name="pixels")(images)  # integers become float32
    return x if x.shape[-1] == 3 else layers.Concatenate(name="rgb")([x, x, x])


def bgr_without_mean(pixels: Any) -> Any:
    """Return what Caffe's networks take: blue, green and red, less the mean over ImageNet."""
    bgr = keras.ops.flip(pixels, axis=-1)
    return layers.Normalization(mean=_BGR_MEAN, variance=[1.0] * 3, name="centred")(bgr)
