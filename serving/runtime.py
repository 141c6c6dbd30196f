"""A SavedModel as TensorFlow Serving sees it: a graph in a session, without Python's objects.

`tf.saved_model.load` rebuilds Python objects and so finds variables that a server does not. Here a
version is restored by the graph's own restore operation, and a request reaches the C++ runtime with
no array checked on the way: what fails here fails in the server, what passes here passes there.
"""

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2

from keras_mas.logs import quiet

from .protocol import invalid_argument

DEFAULT_SIGNATURE = "serving_default"
"""The signature that a request means when it names none."""


class LoadError(RuntimeError):
    """A version's folder does not hold a SavedModel that can be loaded."""


class LoadedVersion:
    """One version of a model, loaded and ready to answer; safe to use from several threads.

    Args:
        directory: Folder of a SavedModel with the tag `serve`.

    Attributes:
        signatures: Dict from signature name to its `SignatureDef`, whose `inputs` and `outputs` map
            names to `TensorInfo` (dtype and shape).

    Raises:
        LoadError: If the folder is missing, incomplete or not a SavedModel.
    """

    def __init__(self, directory):
        self._session = tf.compat.v1.Session(graph=tf.Graph())
        try:
            self.signatures = _restore(self._session, directory)
            self._calls = {name: self._compile(sig) for name, sig in self.signatures.items()}
        except Exception as error:  # what a loader raises has no narrower class in common
            self.close()
            raise LoadError(
                f"Expected a complete SavedModel in '{directory}'. Received: "
                f"{type(error).__name__}: {error}. Export the version again."
            ) from error

    def run(self, signature_name, inputs):
        """Answer one request.

        Args:
            signature_name: Name of a signature; empty for `serving_default`.
            inputs: Mapping from input name to array. Dtypes and shapes are checked by the graph
                alone, as in the server.

        Returns:
            Dict from output name to array; strings are object arrays of `bytes`.

        Raises:
            tf.errors.OpError: With the code and the words of TensorFlow Serving:
                `FailedPreconditionError` for an unknown signature, `InvalidArgumentError` for
                names, dtypes or shapes that do not fit.
        """
        name = signature_name or DEFAULT_SIGNATURE
        if name not in self.signatures:
            message = f'Serving signature key "{name}" not found.'
            raise tf.errors.FailedPreconditionError(None, None, message)
        _check_names(set(inputs), set(self.signatures[name].inputs))
        return self._calls[name](inputs)

    def close(self):
        """Free what the version holds. It cannot answer afterwards."""
        self._session.close()

    def _compile(self, signature):
        """Make a function from a dict of arrays to a dict of arrays.

        `Session.run` would compare each array with the placeholder's shape in Python and refuse
        what a server lets through; a callable made from options goes straight to the C++ session.
        """
        inputs, outputs = list(signature.inputs), list(signature.outputs)
        options = config_pb2.CallableOptions(
            feed=[signature.inputs[name].name for name in inputs],
            fetch=[signature.outputs[name].name for name in outputs],
        )
        run = self._session._make_callable_from_options(options)

        def call(arrays):
            values = run(*(np.asarray(arrays[name]) for name in inputs))
            return dict(zip(outputs, values, strict=True))

        return call


def _restore(session, directory):
    """Load a SavedModel into `session`; return the signatures that can be asked."""
    with quiet(), session.graph.as_default():
        meta_graph = tf.compat.v1.saved_model.load(session, ["serve"], str(directory))
    # The initialisation operation is listed among the signatures too, but has no method.
    return {name: sig for name, sig in meta_graph.signature_def.items() if sig.method_name}


def _check_names(received, expected):
    """Hold the names of a request's inputs against the signature's, as the server does."""
    if len(received) != len(expected):
        message = (
            f"input size does not match signature: {len(received)}!={len(expected)} "
            f"len({{{_join(received)}}}) != len({{{_join(expected)}}}). "
            f"Sent extra: {{{_join(received - expected)}}}. "
            f"Missing but required: {{{_join(expected - received)}}}."
        )
        raise invalid_argument(message)
    if received != expected:
        message = (
            f"input tensor alias not found in signature: {_join(received - expected)}. "
            f"Inputs expected to be in the set {{{_join(expected)}}}."
        )
        raise invalid_argument(message)


def _join(names):
    return ",".join(sorted(names))
