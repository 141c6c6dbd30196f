"""The registry of rules."""

_RULES = {}


def rule(*layer_classes):
    """Register the rule of layer classes; a subclass needs a rule of its own.

    The rule is called once per batch with

        layer: the layer;
        inputs: what the layer was called with, `[N, ...]`;
        delta: the gradient at its pre-activation (its output, if it has no activation), `[N, ...]`;
        magnitude: elementwise function, |·| or (·)²;

    and returns a dict from the attribute that holds a weight (`"kernel"`) to Σ_k magnitude(g_k), a
    tensor of that weight's shape: first the sum over the positions of an example, then the
    magnitude, then the sum over examples. A weight that the dict leaves out is measured example by
    example, and so is a layer that is called several times, or with several tensors.

    Example:
        >>> import keras, tensorflow as tf
        >>> class Shift(keras.layers.Layer):
        ...     def build(self, shape):
        ...         self.offset = self.add_weight(shape=(shape[-1],))
        ...     def call(self, inputs):
        ...         return inputs + self.offset
        >>> @rule(Shift)
        ... def shift(layer, inputs, delta, magnitude):  # z = a + b, so ∂/∂b = δ
        ...     return {"offset": tf.reduce_sum(magnitude(delta), axis=0)}
    """

    def register(function):
        _RULES.update(dict.fromkeys(layer_classes, function))
        return function

    return register


def rule_for(layer):
    """Return the rule of exactly this layer's class, or None: a subclass may compute otherwise."""
    return _RULES.get(type(layer))
