"""Weights by path: the name under which Ω, θ* and the importance of a weight are kept."""


def trainable_weights(model):
    """Return the trainable weights of a built model by path.

    A path (`"dense/kernel"`) survives saving and loading, which the identity of a variable does
    not.

    Args:
        model: Built `keras.Model` or `keras.Layer`.

    Returns:
        Dict from `variable.path` to `keras.Variable`, in the model's order.

    Raises:
        ValueError: If the model is not built, has no trainable weight, or gives two weights the
            same path.
    """
    if not model.built:
        raise ValueError(
            f"Expected a built model. Received: '{model.name}', which has no weights yet. "
            "Call it on one batch, or `build` it with an input shape, first."
        )
    weights = {}
    for weight in model.trainable_weights:
        if weight.path in weights:
            raise ValueError(
                f"Expected every weight of '{model.name}' to have a path of its own. Received: "
                f"two weights named '{weight.path}'. Give the layers that own them different names."
            )
        weights[weight.path] = weight
    if not weights:
        raise ValueError(
            f"Expected a model with trainable weights. Received: '{model.name}' with none. "
            "Set `trainable = True` on the layers that are to learn."
        )
    return weights
