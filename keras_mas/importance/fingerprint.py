"""What a trace of a model depends on, remembered in order to notice that the model has changed.

A `Fingerprint` remembers

- the attributes of every layer, and of its class and the classes that this derives from, among them
  `call`; the rule of each layer;
- the contents of lists, tuples, dicts, sets and arrays in these attributes, in any depth, the
  values that functions of the user's hold in closures, defaults and attributes, and the attributes
  and classes of other objects that an attribute holds: of a module and of an object of Keras,
  TensorFlow or NumPy, such as a constraint, only numbers and text;
- which weights are trainable, and the paths of all weights, but not their values, which a trace
  reads when it runs;
- what Keras and TensorFlow are set to (`floatx`, the strategy in whose scope we are, ...).

Objects are compared by identity and plain values by equality. Not seen is what Python code reads
from elsewhere: a global name, or an object within an object.
"""

import array
import collections
import functools
import operator
import sys
import types
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from .rules import rule_for
from .unchanged import KEPT_ENGINE, MEASURING, flatten_layers

# Attributes that change as a layer is called, measured and combined into other models, and that its
# output does not depend on.
_RECORDS = frozenset(
    [
        "_auto_config",
        "_build_shapes_dict",
        "_called",
        "_inbound_nodes",
        "_lock",
        "_loss_ids",
        "_losses",
        "_losses_override",
        "_metrics",
        "_outbound_nodes",
        "_self_name_based_restores",
        "_self_saveable_object_factories",
        "_self_unconditional_checkpoint_dependencies",
        "_self_unconditional_deferred_dependencies",
        "_self_unconditional_dependency_names",
        "_self_update_uid",
        "_tracker",
        "predict_function",
        "test_function",
        "train_function",
    ]
)

# The same of a model that is compiled, fitted and measured.
_RECORDS_OF_A_MODEL = _RECORDS | {
    "_compile_config",
    "_compile_loss",
    "_compile_metrics",
    "_compiled_trainable_state",
    "_compute_loss_has_training_arg",
    "_distribute_strategy",
    "_eval_epoch_iterator",
    "_initial_epoch",
    "_jit_compile",
    KEPT_ENGINE,
    "_loss_tracker",
    "_optimizer",
    "_run_eagerly",  # `run_eagerly` is among the surroundings
    "auto_scale_loss",
    "compiled",
    "make_train_function",
    "steps_per_execution",
    "stop_evaluating",
    "stop_predicting",
    "stop_training",
    "unrolled_steps_per_execution",
}

# What Keras puts where a model of the user's own may have an attribute of the same name.
_PUT_BY_KERAS: dict[str, Any] = {
    "history": keras.callbacks.History | None,
    "loss": str | list | tuple | dict | Callable | None,
    "optimizer": keras.optimizers.Optimizer | None,
}

_PLAIN = (bool, int, float, complex, str, bytes)

# Whose classes and functions nobody changes in place: they are compared by identity alone.
_LIBRARIES = ("keras", "keras_mas", "numpy", "tensorflow")

# Objects of the libraries that nobody changes in place, that no output depends on, or that a trace
# reads when it runs.
_UNCHANGING = (
    keras.DTypePolicy,
    keras.Initializer,
    keras.InputSpec,
    keras.KerasTensor,
    keras.Variable,
    tf.Tensor,
    tf.Variable,
)


class Fingerprint:
    """What a trace of a model depends on, as it is now.

    Args:
        model: Built `keras.Model`.
        *values: Other values that the trace depends on, such as a function of the user's.
    """

    def __init__(self, model: keras.Model, *values: Any):
        self._read: list[tuple[Callable[[Any], Any], Any]] = []  # what was read, of what
        self._contents: list[Any] = []
        # Whether what was seen was inside an object, by `id`; `_read` holds it, so that no `id` is
        # given anew.
        self._seen: dict[int, bool] = {}
        with MEASURING:
            self._remember(_surroundings, model)
            self._remember(_weights, model)
            self._walk([*values, model, *_rules(model)])
            self._remember(_rules, model)

    def is_current(self) -> bool:
        """Return whether nothing of it has changed since."""
        with MEASURING:
            return all(
                _is_same(read(value), contents)
                for (read, value), contents in zip(self._read, self._contents, strict=True)
            )

    def _remember(self, read, value):
        contents = read(value)
        self._read.append((read, value))
        self._contents.append(contents)
        return contents

    def _walk(self, values, in_object=False):
        """Remember values and what they hold; of an object within an object nothing but its id."""
        for value in values:
            read = _reader(value)
            # A layer is one of the model's wherever it is found.
            is_inside = in_object and read is not _of_layer
            if read is None or (is_inside and read is _of_object):
                continue
            # What was found inside an object first is walked again where more of it counts.
            was_inside = self._seen.get(id(value))
            if was_inside is False or was_inside is is_inside:
                continue
            self._seen[id(value)] = is_inside
            contents = self._remember(read, value)
            if _is_of_library(value):
                continue
            inside = contents.values() if isinstance(contents, dict) else contents
            self._walk(inside, is_inside or read is _of_object)
            if read in (_of_layer, _of_object):
                self._walk(type(value).__mro__)


def _surroundings(model: keras.Model) -> list:
    return [
        tf.distribute.get_strategy(),
        keras.config.floatx(),
        keras.config.epsilon(),
        keras.config.image_data_format(),
        model.run_eagerly,
    ]


def _weights(model: keras.Model) -> list:
    trainable = [(weight, weight.path) for weight in model.trainable_weights]
    return [part for pair in trainable for part in pair] + [w.value for w in model.weights]


def _rules(model: keras.Model) -> list:
    return [rule_for(layer) for layer in flatten_layers(model)]


def _reader(value: Any) -> Callable[[Any], Any] | None:
    """Return a function that reads what may change in a value, or None if nothing does."""
    if isinstance(value, keras.Operation):
        return _of_layer
    for kinds, read in _READERS:
        if isinstance(value, kinds):
            return read
    if hasattr(value, "python_function"):  # a `tf.function`
        return _of_traced
    if _module(type(value)) == "keras_mas":  # a penalty does not change what a model computes
        return None
    of_library = _module(type(value)) in _LIBRARIES
    return _of_settings if of_library or isinstance(value, types.ModuleType) else _of_object


def _of_layer(layer: keras.Operation) -> dict:
    attributes = _of_object(layer)
    if not isinstance(layer, keras.Model):
        return {name: value for name, value in attributes.items() if name not in _RECORDS}
    return {
        name: value
        for name, value in attributes.items()
        if name not in _RECORDS_OF_A_MODEL and not isinstance(value, _PUT_BY_KERAS.get(name, ()))
    }


def _of_settings(value: Any) -> dict:
    return {name: held for name, held in _of_object(value).items() if isinstance(held, _PLAIN)}


def _of_object(value: Any) -> dict:
    return {name: getattr(value, name) for name in _slots(value) if hasattr(value, name)} | dict(
        getattr(value, "__dict__", {})
    )


def _slots(value: Any) -> list[str]:
    names = []
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in [slots] if isinstance(slots, str) else slots:
            is_private = name.startswith("__") and not name.endswith("__")
            names.append(f"_{kind.__name__.lstrip('_')}{name}" if is_private else name)
    return names


def _of_dict(value: dict) -> list:
    # Their order may decide what is computed. A class derived from dict may have attributes too.
    return [*value, *value.values(), *getattr(value, "__dict__", {}).values()]


def _of_class(value: type) -> dict:
    # Python adds these to a class when they are first asked for.
    return {name: v for name, v in vars(value).items() if name != "__annotations__"}


def _of_array(array: np.ndarray) -> list:
    return [array.shape, array.dtype.str, hash(array.tobytes())]


def _of_function(function: types.FunctionType) -> list:
    cells = [cell for cell in function.__closure__ or () if _is_filled(cell)]
    values = [cell.cell_contents for cell in cells]
    own = vars(function).values()
    return [function.__code__, function.__defaults__, function.__kwdefaults__, *values, *own]


def _is_filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:  # of a name that is deleted, or not yet assigned
        return False
    return True


def _of_partial(partial: functools.partial) -> list:
    return [partial.func, partial.args, partial.keywords]


def _of_method(method: types.MethodType) -> list:
    return [method.__self__, method.__func__]


def _of_property(value: property) -> list:
    return [value.fget]


def _of_wrapper(value: Any) -> list:
    return [value.__func__]


def _of_traced(value: Any) -> list:
    return [value.python_function]


def _of_buffer(value: Any) -> list:
    return [bytes(value)]


_READERS: tuple[tuple[Any, Callable[[Any], Any] | None], ...] = (
    ((type(None), *_PLAIN, *_UNCHANGING), None),
    (dict | types.MappingProxyType, _of_dict),
    (list | tuple | collections.deque, list),
    (set | frozenset, frozenset),  # a copy of a set may have another order
    (np.ndarray, _of_array),
    (types.FunctionType, _of_function),
    (types.MethodType, _of_method),
    (property, _of_property),
    (staticmethod | classmethod, _of_wrapper),
    (bytearray | memoryview | array.array, _of_buffer),
    (functools.partial, _of_partial),
    (type, _of_class),
)


def _is_of_library(value: Any) -> bool:
    """Return whether a class or function belongs to Python, Keras, TensorFlow or NumPy."""
    if not isinstance(value, type | types.FunctionType):
        return False
    return _module(value) in _LIBRARIES or _module(value) in sys.stdlib_module_names


def _module(value: Any) -> str:
    return (value.__module__ or "").partition(".")[0]  # there is none in code that was executed


def _is_same(now: Any, before: Any) -> bool:
    """Return whether what was read of a value is the same as before."""
    if isinstance(now, frozenset):
        return now == before
    if isinstance(now, dict):
        if now.keys() != before.keys():
            return False
        before = [before[key] for key in now]
        now = list(now.values())
    if len(now) != len(before):
        return False
    # Nearly always everything is: this loop is not Python's.
    return all(map(operator.is_, now, before)) or all(map(_is_equal, now, before))


def _is_equal(now: Any, before: Any) -> bool:
    if now is before:
        return True
    if type(now) is not type(before):
        return False
    if isinstance(now, tuple):
        return _is_same(now, before)
    return isinstance(now, _PLAIN) and now == before
