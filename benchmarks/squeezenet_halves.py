"""SqueezeNet v1.1 in two halves: one is frozen and run once for every image, the other learns."""

import keras

from keras_mas.training.backbones import build_trunk, squeezenet


def frozen_half(input_shape, weights):
    """Return a model from images to what the module fire6 takes."""
    whole = build_trunk("squeezenet", input_shape, (1.0, 0.0), weights)
    return keras.Model(whole.inputs[0], whole.get_layer("pool5").output)


def learned_half(maps):
    """Return the features from what the module fire6 takes, as a backbone does."""
    return squeezenet.fires(maps, first=6)
