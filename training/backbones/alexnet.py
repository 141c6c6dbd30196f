"""AlexNet, the backbone of the paper's experiments, as torchvision has it."""

from typing import Any

import keras
from keras import layers

from .backbone import Backbone
from .widths import require_memory_for_weights

# Mean and standard deviation over ImageNet of the channels of pixels from 0 to 1.
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# Torchvision numbers the parts of a network, those without weights too.
_TORCHVISION = {
    "features.0": "conv1",
    "features.3": "conv2",
    "features.6": "conv3",
    "features.8": "conv4",
    "features.10": "conv5",
    "classifier.1": "fc6",
    "classifier.4": "fc7",
}

# Height and width that fc6 takes.
_POSITIONS = 6

# Inputs of fc6, and the units of fc6 and fc7.
FULLY_CONNECTED = (256 * _POSITIONS**2, 4096, 4096)


def find(name: str) -> Backbone:
    """Return AlexNet without its classifier: five convolutions and two layers of 4096 units.

    Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014
    (arXiv:1404.5997): AlexNet in one piece, without local response normalization. Torchvision's
    weights, which the authors of "Memory Aware Synapses" began with in their code, are of it. They
    were learned on 224×224 images; other sizes are averaged to the 6×6 positions that `fc6` takes,
    or repeated where there are fewer, also as in torchvision.
    """
    return Backbone(name, _features, 63, _preprocess, published=_TORCHVISION)


def _preprocess(pixels):
    mean, variance = [255 * m for m in _MEAN], [(255 * d) ** 2 for d in _DEVIATION]
    return layers.Normalization(mean=mean, variance=variance, name="standardized")(pixels)


def _features(x):
    require_memory_for_weights(FULLY_CONNECTED, 1, "alexnet")
    x = layers.ZeroPadding2D(2, name="padding1")(x)
    x = layers.Conv2D(64, 11, strides=4, activation="relu", name="conv1")(x)
    x = layers.MaxPooling2D(3, 2, name="pool1")(x)
    x = _convolution(192, 5, "conv2")(x)
    x = layers.MaxPooling2D(3, 2, name="pool2")(x)
    x = _convolution(384, 3, "conv3")(x)
    x = _convolution(256, 3, "conv4")(x)
    x = _convolution(256, 3, "conv5")(x)
    x = layers.MaxPooling2D(3, 2, name="pool5")(x)
    x = inputs_of_fc6(x)
    for number, units in enumerate(FULLY_CONNECTED[1:], 6):
        x = layers.Dropout(0.5, name=f"drop{number}")(x)
        x = layers.Dense(units, activation="relu", name=f"fc{number}")(x)
    return x


def inputs_of_fc6(x: Any) -> Any:
    """Return `[N, 256 · 6²]` of the outputs `[N, H, W, 256]` of the convolutions."""
    x = _averaged(_averaged(x, axis=1), axis=2)
    # The rows of fc6 count the channels before the positions.
    return layers.Flatten(name="flatten")(layers.Permute((3, 1, 2), name="channels-first")(x))


def _averaged(x, axis):
    """Return the means over six spans of an axis, which overlap unless six divides its length."""
    # Keras's AdaptiveAveragePooling2D cannot be traced where there are fewer than six positions.
    length = x.shape[axis]
    if length == _POSITIONS:
        return x
    bounds = [
        (i * length // _POSITIONS, -(-(i + 1) * length // _POSITIONS)) for i in range(_POSITIONS)
    ]
    spans = [x[(slice(None),) * axis + (slice(*each),)] for each in bounds]
    means = [keras.ops.mean(span, axis=axis, keepdims=True) for span in spans]
    return keras.ops.concatenate(means, axis=axis)


def _convolution(channels, size, name):
    return layers.Conv2D(channels, size, padding="same", activation="relu", name=name)
