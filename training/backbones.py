"""Backbones: the shared trunk of all tasks, by name."""

import keras
from keras import layers

from keras_mas.errors import UsageError

BACKBONES = {
    "mlp": "fully connected ReLU layers of the given widths",
    "cnn": "3×3 ReLU convolutions of the given widths, each halving the image, and a pooled end",
}


def build_trunk(backbone: str, input_shape: tuple[int, ...], rescale: tuple[float, float]):
    """Build the trunk that all tasks share.

    Args:
        backbone: A kind from `BACKBONES` and its widths, `"mlp-256-256"` or `"cnn-32-64-128"`.
        input_shape: Shape of one raw input.
        rescale: `(scale, offset)` of the first layer, so that the model takes raw inputs.

    Returns:
        `keras.Model` from inputs `[N, *input_shape]`, float32, to features `[N, F]`.

    Raises:
        UsageError: If there is no such backbone, or it cannot take inputs of this shape.
    """
    kind, widths = _parsed(backbone)
    scale, offset = rescale
    inputs = keras.Input(input_shape, name="inputs")
    x = layers.Rescaling(scale, offset, name="rescale")(inputs)
    x = {"mlp": _mlp, "cnn": _cnn}[kind](x, widths)
    return keras.Model(inputs, x, name="trunk")


def check_backbone(backbone: str) -> str:
    """Return a backbone's name as it is; UsageError if there is no such backbone."""
    _parsed(backbone)
    return backbone


def _parsed(backbone):
    kind, *widths = backbone.split("-")
    if kind in BACKBONES and widths and all(width.isdigit() and int(width) for width in widths):
        return kind, [int(width) for width in widths]
    raise UsageError(
        f"Expected a backbone of a kind out of {', '.join(BACKBONES)} and its widths, like "
        f"'mlp-256-256'. Received: '{backbone}'. Correct `--backbone`."
    )


def _mlp(x, widths):
    x = layers.Flatten(name="flatten")(x)
    for number, width in enumerate(widths, 1):
        x = layers.Dense(width, activation="relu", name=f"hidden-{number}")(x)
    return x


def _cnn(x, widths):
    if len(x.shape) != 4:
        raise UsageError(
            "Expected images [height, width, channels] for a 'cnn' backbone. Received: inputs of "
            f"shape {list(x.shape[1:])}. Choose '--backbone mlp-256-256'."
        )
    for number, width in enumerate(widths, 1):
        x = layers.Conv2D(
            width, 3, padding="same", activation="relu", name=f"convolution-{number}"
        )(x)
        x = layers.MaxPooling2D(padding="same", name=f"pooling-{number}")(x)
    return layers.GlobalAveragePooling2D(name="pooled")(x)
