"""Backbones of the user's own: functions in their modules."""

import functools

import keras

from keras_mas.errors import UsageError
from keras_mas.plugins import load_named

from .backbone import Backbone


def find(name: str) -> Backbone:
    """Return the backbone whose layers a function of the user's own adds to the inputs.

    Args:
        name: `MODULE:FUNCTION`, such as `my_module:features`. The function takes a tensor of
            inputs `[N, ...]`, as the stream of tasks rescales them, and returns features `[N, F]`.

    Raises:
        UsageError: If there is no such function; when it is built, if it returns anything else.
    """
    function = load_named(name, "backbone")
    if not callable(function):
        raise UsageError(
            f"Expected '{name}' to be a function from inputs to features. Received: "
            f"{type(function).__name__}. Correct `--backbone`."
        )
    return Backbone(name, functools.partial(_features, function, name))


def _features(function, name, x):
    features = function(x)
    shape = list(features.shape) if keras.backend.is_keras_tensor(features) else None
    if shape is None or len(shape) != 2 or shape[1] is None:
        received = type(features).__name__ if shape is None else f"a tensor of shape {shape}"
        raise UsageError(
            f"Expected a tensor of features [N, F] from the backbone '{name}'. Received: "
            f"{received}. Return the output of its last layer, after pooling or flattening."
        )
    return features
