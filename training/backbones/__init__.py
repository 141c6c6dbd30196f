"""Backbones: the networks that all tasks of a stream share, by name."""

import functools
from pathlib import Path

import keras
import numpy as np

from keras_mas.errors import UsageError
from keras_mas.plugins import is_own

from ..tasks.stream import Rescale
from ..wording import did_you_mean
from . import alexnet, applications, caffenet, own, saved, squeezenet, widths
from .backbone import Backbone
from .weights import IMAGENET, check_weights, digest_of_file, digest_of_values, load_weights

# The networks of one shape, by name.
_FIXED = {
    "alexnet": alexnet.find,
    "alexnet-caffe": caffenet.find,
    "caffenet": caffenet.find,
    "squeezenet": squeezenet.find,
}


def build_trunk(
    backbone: str,
    input_shape: tuple[int, ...],
    rescale: Rescale,
    weights: str | None = None,
) -> keras.Model:
    """Build the trunk that all tasks share.

    Args:
        backbone: A kind and its widths, `"mlp-256-256"`, `"cnn-32-64-128"` or `"vgg-32-64-128"`;
            `"alexnet"`, `"alexnet-caffe"`, `"caffenet"` or `"squeezenet"`; the name of a network of
            `keras.applications`, in any case, with α after a MobileNet's, as in
            `"mobilenet-0.75"`; `MODULE:FUNCTION`, see `own.find`; or the path of a `.keras` file,
            perhaps with a layer in it, see `saved.find`.
        input_shape: Shape of one raw input.
        rescale: `(scale, offset)`: the first layer computes `scale * inputs + offset`, so that the
            model takes raw inputs. Networks without widths do what their published weights were
            learned with instead: they take pixels, 0 to 255, of RGB or grey images.
        weights: `"imagenet"`, for a network of `keras.applications`, or the path of a file, see
            `weights`; None for random ones.

    Returns:
        Model from inputs `[N, *input_shape]` to features `[N, F]`, float32.

    Raises:
        UsageError: If there is no such backbone, it cannot take inputs of this shape, it would not
            fit into memory, or there are no such weights.
    """
    found = check_backbone(backbone, weights)
    trunk = found.build(input_shape, rescale, imagenet=weights == IMAGENET)
    if weights not in (None, IMAGENET):
        load_weights(trunk, Path(weights), found)
    return trunk


def check_backbone(backbone: str, weights: str | None = None) -> Backbone:
    """Return a backbone by its name, if it can have such weights.

    Raises:
        UsageError: If there is no such backbone, or it cannot have such weights.
    """
    found = _find(backbone)
    if weights is not None:
        check_weights(found, weights)
    return found


def check_pixels(backbone: str, dtype: np.dtype) -> None:
    """Refuse inputs that are no pixels for a backbone that has its own preprocessing.

    Raises:
        UsageError: If they are not of type uint8.
    """
    if check_backbone(backbone).preprocess is not None and dtype != np.uint8:
        raise UsageError(
            f"Expected images as pixels, whole numbers from 0 to 255 of type uint8, for backbone "
            f"'{backbone}', which prepares them itself. Received: inputs of type {dtype}. Save "
            "them as uint8, or choose another `--backbone`, such as cnn-32-64-128."
        )


def weights_digest(backbone: str, input_shape: tuple[int, ...], weights: str | None) -> str | None:
    """Return what tells the weights that a trunk begins with apart from others.

    Args:
        backbone: As for `build_trunk`.
        input_shape: As for `build_trunk`.
        weights: As for `build_trunk`.

    Returns:
        A hash of the file's content, or of the ImageNet weights; None for random ones.

    Raises:
        UsageError: As `build_trunk`.
    """
    if weights is None:
        return None
    check_backbone(backbone, weights)
    if weights == IMAGENET:
        return _imagenet_digest(backbone, input_shape)
    return digest_of_file(Path(weights))


@functools.lru_cache
def _imagenet_digest(backbone, input_shape):
    return digest_of_values(build_trunk(backbone, input_shape, (1.0, 0.0), IMAGENET).get_weights())


def _find(name):
    if saved.parts(name) is not None:
        return saved.find(name)
    if is_own(name):
        return own.find(name)
    kind, *parts = name.split("-")
    if kind in widths.KINDS:
        return widths.find(name, kind, parts)
    if kind.lower() in applications.names():
        return applications.find(name, kind.lower(), parts)
    if name in _FIXED:
        return _FIXED[name](name)
    kinds = [f"{kind}-WIDTH-…" for kind in widths.KINDS]
    known = [*widths.KINDS, *_FIXED, *applications.names()]
    raise UsageError(
        f"Expected a backbone out of {', '.join([*kinds, *_FIXED])}, a network of "
        "keras.applications such as mobilenet or mobilenet-0.75, or MODULE:FUNCTION. Received: "
        f"'{name}'."
        f"{did_you_mean(kind.lower(), known)} Correct `--backbone`."
    )
