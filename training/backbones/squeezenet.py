"""SqueezeNet 1.1: about AlexNet's accuracy on ImageNet with a fiftieth of its weights."""

from keras import layers

from .backbone import Backbone, bgr_without_mean

# Channels of the squeezing convolution of each module, and of both expanding ones; after the
# modules 3 and 5 the image is halved.
_FIRES = {
    2: (16, 64),
    3: (16, 64),
    4: (32, 128),
    5: (32, 128),
    6: (48, 192),
    7: (48, 192),
    8: (64, 256),
    9: (64, 256),
}


def find(name: str) -> Backbone:
    """Return SqueezeNet 1.1 without its classifier; the mean over positions is its features.

    Iandola et al., "SqueezeNet: AlexNet-level accuracy with 50x fewer parameters and <0.5MB model
    size", 2016 (arXiv:1602.07360), with the smaller first convolution and earlier pooling that its
    authors published as version 1.1. Layers have the names of Caffe's, with `-` for `/`.
    """
    return Backbone(name, _features, 31, bgr_without_mean)


def _features(x):
    x = layers.Conv2D(64, 3, strides=2, activation="relu", name="conv1")(x)
    x = layers.MaxPooling2D(3, 2, name="pool1")(x)
    for number, channels in _FIRES.items():
        x = _fire(x, number, *channels)
        if number in (3, 5):
            x = layers.MaxPooling2D(3, 2, name=f"pool{number}")(x)
    return layers.GlobalAveragePooling2D(name="pooled")(x)


def _fire(x, number, squeezed, expanded):
    """Squeeze the channels, and expand them by 1×1 and by 3×3 convolutions side by side."""
    x = _convolution(squeezed, 1, f"fire{number}-squeeze1x1")(x)
    sides = [_convolution(expanded, k, f"fire{number}-expand{k}x{k}")(x) for k in (1, 3)]
    return layers.Concatenate(name=f"fire{number}-concat")(sides)


def _convolution(channels, size, name):
    return layers.Conv2D(channels, size, padding="same", activation="relu", name=name)
