"""MobileNet (α = 0.75) in two parts: one is frozen and run once per image, the other learns."""

import keras
from keras import layers

SIDE = 96  # to which smaller images are enlarged


def frozen_part(weights):
    """Return a function from batches of RGB images to what the twelfth block takes."""
    whole = keras.applications.MobileNet(
        (SIDE, SIDE, 3), alpha=0.75, include_top=False, weights=weights
    )
    model = keras.Model(whole.inputs[0], whole.get_layer("conv_pw_11_relu").output)

    def maps(images):
        larger = keras.ops.image.resize(keras.ops.cast(images, "float32"), (SIDE, SIDE))
        return model(larger / 127.5 - 1, training=False).numpy()

    return maps


def learned_part(maps):
    """Return the features from what the twelfth block takes, as a backbone does."""
    x = layers.ZeroPadding2D(((0, 1), (0, 1)), name="conv_pad_12")(maps)
    x = _block(x, 12, strides=2, padding="valid")
    x = _block(x, 13, strides=1, padding="same")
    return layers.GlobalAveragePooling2D(name="pooled")(x)


def _block(x, number, *, strides, padding):
    """Convolve each channel, then mix the channels; layers have the names of Keras's MobileNet."""
    depthwise = layers.DepthwiseConv2D(
        3, strides, padding, use_bias=False, name=f"conv_dw_{number}"
    )
    pointwise = layers.Conv2D(768, 1, use_bias=False, name=f"conv_pw_{number}")
    for layer in (depthwise, pointwise):
        x = layers.BatchNormalization(name=f"{layer.name}_bn")(layer(x))
        x = layers.ReLU(6.0, name=f"{layer.name}_relu")(x)
    return x
