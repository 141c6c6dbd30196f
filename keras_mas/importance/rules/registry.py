"""The registry of rules, by layer class."""

from collections.abc import Callable

import keras
import tensorflow as tf

# From layer, inputs, delta and magnitude to the sums, by the attribute that holds a weight.
Rule = Callable[
    [keras.Layer, tf.Tensor, tf.Tensor, Callable[[tf.Tensor], tf.Tensor]], dict[str, tf.Tensor]
]

# With the `call` that the class had when the rule was registered.
_RULES: dict[type[keras.Layer], tuple[Rule, Callable]] = {}


def rule(*layer_classes: type[keras.Layer]) -> Callable[[Rule], Rule]:
    """Register the rule of layer classes, as a decorator; a subclass needs a rule of its own.

    The rule is called once per trace, for batches of any size, with

        layer: the layer;
        inputs: what the layer was called with, `[N, ...]`;
        delta: the gradient at its pre-activation (its output, if it has no activation), `[N, ...]`;
        magnitude: elementwise function, |·| or (·)²;

    and returns a dict from the attribute that holds a weight (`"kernel"`) to Σ_k magnitude(g_k), a
    tensor of that weight's shape: first the sum over the positions of an example, then the
    magnitude, then the sum over examples. A weight that the dict leaves out is measured example by
    example, and so is a layer that is called several times, or with several tensors.
    `keras_mas.check_importance` compares a rule with the definition.

    Args:
        *layer_classes: The classes that the rule is for; it replaces a rule they have.

    Returns:
        Decorator that registers a function and returns it.

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

    def register(function: Rule) -> Rule:
        _RULES.update({kind: (function, kind.call) for kind in layer_classes})
        return function

    return register


def rule_for(layer: keras.Layer) -> Rule | None:
    """Return the rule of exactly this layer's class, or None.

    The rule of a parent class does not count: a subclass may compute something else. So may a layer
    whose `call` was replaced, its own or that of its class.
    """
    found, call = _RULES.get(type(layer), (None, None))
    return found if call is type(layer).call and _has_call_of_class(layer) else None


def _has_call_of_class(layer):
    # What the measurement itself, or the freezing of statistics, puts in place calls the class's.
    own = vars(layer).get("call")
    while own is not None and hasattr(own, "calls_instead_of"):
        own = own.calls_instead_of
    return own is None or getattr(own, "__func__", None) is type(layer).call
