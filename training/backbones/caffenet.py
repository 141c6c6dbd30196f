"""AlexNet in two halves, as the authors of Caffe published it: `alexnet-caffe` and `caffenet`."""

import functools
from typing import Any

import keras
from keras import layers

from .alexnet import FULLY_CONNECTED, inputs_of_fc6
from .backbone import Backbone, bgr_without_mean
from .widths import require_memory_for_weights

# What follows conv1 and conv2, in this order.
_ORDERS = {"alexnet-caffe": ("norm", "pool"), "caffenet": ("pool", "norm")}

# The convolutions whose outputs see one half of their inputs each.
_HALVED = ("conv2", "conv4", "conv5")

# Local response normalization: how many channels, α and β.
_CHANNELS, _ALPHA, _BETA = 5, 1e-4, 0.75


def find(name: str) -> Backbone:
    """Return one of Caffe's two networks without its classifier.

    Krizhevsky, Sutskever and Hinton, "ImageNet Classification with Deep Convolutional Neural
    Networks", NeurIPS 2012: five convolutions, three of them in halves as on the paper's two GPUs,
    local response normalization, and two layers of 4096 units. Caffe's "BVLC AlexNet" normalizes
    before it pools, as the paper does, and its "BVLC CaffeNet" afterwards; the shapes of their
    weights are the same. They were learned on 227×227 images; for other sizes see `alexnet`.
    """
    order = tuple(f"{kind}1" for kind in _ORDERS[name])
    return Backbone(
        name,
        functools.partial(_features, name),
        smallest=39,
        preprocess=bgr_without_mean,
        halves={whole: _halves(whole) for whole in _HALVED},
        order=order,
    )


def _halves(name):
    return f"{name}-1", f"{name}-2"


def _features(name, x):
    require_memory_for_weights(FULLY_CONNECTED, 1, name)
    x = layers.Conv2D(96, 11, strides=4, activation="relu", name="conv1")(x)
    x = _pooled_and_normalized(name, x, 1)
    x = _in_halves(256, 5, "conv2", x)
    x = _pooled_and_normalized(name, x, 2)
    x = layers.Conv2D(384, 3, padding="same", activation="relu", name="conv3")(x)
    x = _in_halves(384, 3, "conv4", x)
    x = _in_halves(256, 3, "conv5", x)
    x = inputs_of_fc6(_pooled(x, 5))
    for number, units in enumerate(FULLY_CONNECTED[1:], 6):
        x = layers.Dense(units, activation="relu", name=f"fc{number}")(x)
        x = layers.Dropout(0.5, name=f"drop{number}")(x)
    return x


def _in_halves(channels, size, name, x):
    """Convolve the halves of the channels apart; a Conv2D of two groups trains slowly on a CPU."""
    convolved = [
        layers.Conv2D(channels // 2, size, padding="same", activation="relu", name=half_name)(half)
        for half_name, half in zip(_halves(name), keras.ops.split(x, 2, axis=-1), strict=True)
    ]
    return layers.Concatenate(name=name)(convolved)


def _pooled_and_normalized(name, x, number):
    for kind in _ORDERS[name]:
        x = _pooled(x, number) if kind == "pool" else _normalized(x)
    return x


def _pooled(x, number):
    """Return maxima over 3×3 positions, two apart; the last ones may lie beyond the edge."""
    beyond = [(0, 1 - length % 2) for length in x.shape[1:3]]
    # Zeros do no harm: nothing is negative after a ReLU.
    x = layers.ZeroPadding2D(beyond, name=f"padding{number}")(x)
    return layers.MaxPooling2D(3, 2, name=f"pool{number}")(x)


def _normalized(x: Any) -> Any:
    """Return x_c / (1 + α/5 Σ x²)^β, summed over the five channels around c."""
    around, count = _CHANNELS // 2, x.shape[-1]
    squares = keras.ops.pad(keras.ops.square(x), [(0, 0)] * 3 + [(around, around)])
    every = (slice(None),) * 3
    near = sum(squares[(*every, slice(i, i + count))] for i in range(_CHANNELS))
    return x / (1 + _ALPHA / _CHANNELS * near) ** _BETA
