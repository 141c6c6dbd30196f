"""SavedModels in TensorFlow's C++ runtime, loaded and run as TensorFlow Serving does it.

`tf.saved_model.load` rebuilds Python objects and so finds variables that a server does not find.
Here a version is restored by the restore operation of its graph, and the arrays of a request reach
the C++ runtime unchecked, so that the same requests fail as in the server.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2, meta_graph_pb2

from keras_mas.logs import quiet

from .conventions import DEFAULT_SIGNATURE
from .protocol import invalid_argument


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

    signatures: dict[str, meta_graph_pb2.SignatureDef]

    def __init__(self, directory: str | Path):
        self._session = tf.compat.v1.Session(graph=tf.Graph())
        try:
            self.signatures = _restore(self._session, directory)
            self._calls = {name: self._compile(sig) for name, sig in self.signatures.items()}
        except Exception as error:  # loading raises errors of many classes
            self.close()
            raise LoadError(
                f"Expected a complete SavedModel in '{directory}'. Received: "
                f"{type(error).__name__}: {error}. Export the version again."
            ) from error

    def run(self, signature_name: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Answer one request.

        Args:
            signature_name: Name of a signature; empty for `serving_default`.
            inputs: Mapping from input name to array. Dtypes and shapes are checked by the graph
                alone, as in the server.

        Returns:
            Dict from output name to array; strings are object arrays of `bytes`.

        Raises:
            tf.errors.OpError: With the code and the message of TensorFlow Serving:
                `FailedPreconditionError` for an unknown signature, `InvalidArgumentError` for
                names, dtypes or shapes that do not fit.
        """
        name = signature_name or DEFAULT_SIGNATURE
        if name not in self.signatures:
            message = f'Serving signature key "{name}" not found.'
            raise tf.errors.FailedPreconditionError(None, None, message)
        _check_names(set(inputs), set(self.signatures[name].inputs))
        return self._calls[name](inputs)

    def close(self) -> None:
        """Free the memory of the version, which cannot run afterwards."""
        self._session.close()

    def _compile(
        self, signature: meta_graph_pb2.SignatureDef
    ) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
        """Make a function from a dict of arrays to a dict of arrays.

        `Session.run` would compare the shape of each array with the placeholder's in Python and
        refuse arrays that a server accepts; a callable made from options does not.
        """
        inputs, outputs = list(signature.inputs), list(signature.outputs)
        options = config_pb2.CallableOptions(
            feed=[signature.inputs[name].name for name in inputs],
            fetch=[signature.outputs[name].name for name in outputs],
        )
        run = self._session._make_callable_from_options(options)

        def call(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            values = run(*(np.asarray(arrays[name]) for name in inputs))
            return dict(zip(outputs, values, strict=True))

        return call


def _restore(
    session: tf.compat.v1.Session, directory: str | Path
) -> dict[str, meta_graph_pb2.SignatureDef]:
    """Load a SavedModel into `session`; return the signatures that requests can name."""
    with quiet(), session.graph.as_default():
        meta_graph = tf.compat.v1.saved_model.load(session, ["serve"], str(directory))
    # The initialisation operation is listed among the signatures too, but has no method.
    return {name: sig for name, sig in meta_graph.signature_def.items() if sig.method_name}


def _check_names(received: set[str], expected: set[str]) -> None:
    """Compare the names of a request's inputs with the signature's, as the server does."""
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


def _join(names: set[str]) -> str:
    return ",".join(sorted(names))
