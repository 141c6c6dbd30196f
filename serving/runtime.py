"""SavedModels in TensorFlow's C++ runtime, loaded and run as TensorFlow Serving does it.

`tf.saved_model.load` rebuilds Python objects and so finds variables that a server does not find.
Here a version is restored by the restore operation of its graph, and the arrays of a request reach
the C++ runtime unchecked, so that the same requests fail as in the server.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow.python.client import pywrap_tf_session

from keras_mas.logs import quiet

from .conventions import DEFAULT_SIGNATURE, in_one_line
from .paths import parse_version

_Call = Callable[[Mapping[str, np.ndarray], Sequence[str]], dict[str, np.ndarray]]


class LoadError(RuntimeError):
    """A version's folder does not hold a SavedModel that can be loaded."""


def damaged(directory: str | os.PathLike, reason: str) -> LoadError:
    """Return the error of a version that exists, and is not as it was published.

    Args:
        directory: Folder of the version.
        reason: What is wrong with it, as a sentence.
    """
    return LoadError(
        f"Expected version {parse_version(directory)} in '{directory}', which exists already, to "
        f"be whole. Received: a damaged version. {reason} It is not overwritten, since a server "
        "may have loaded it: remove its folder and export again, or export with `--as next`."
    )


class LoadedVersion:
    """One version of a model, loaded and ready to answer; safe to use from several threads.

    Args:
        directory: Folder of a SavedModel with the tag `serve`.

    Attributes:
        signatures: Dict from signature name to its `SignatureDef`, whose `inputs` and `outputs` map
            names to `TensorInfo` (dtype and shape).
        listed: The same with what is no function, the operation that initializes the version, which
            the server lists among them.

    Raises:
        LoadError: If the folder is missing, incomplete or not a SavedModel.
    """

    signatures: dict[str, meta_graph_pb2.SignatureDef]
    listed: dict[str, meta_graph_pb2.SignatureDef]

    def __init__(self, directory: str | Path):
        self._session = tf.compat.v1.Session(graph=tf.Graph())
        try:
            self.listed = _restore(self._session, directory)
            # The initialisation operation has no method.
            self.signatures = {name: sig for name, sig in self.listed.items() if sig.method_name}
            self._calls = {name: self._compile(sig) for name, sig in self.signatures.items()}
            # Kept apart, since protobuf takes microseconds to list them for every request.
            self._inputs = {name: set(sig.inputs) for name, sig in self.listed.items()}
            self._outputs = {name: list(sig.outputs) for name, sig in self.listed.items()}
        except Exception as error:  # loading raises errors of many classes
            self.close()
            raise LoadError(
                f"Expected a complete SavedModel in '{directory}'. Received: "
                f"{type(error).__name__}: {in_one_line(error).rstrip('.')}. Export the version "
                "again."
            ) from error

    def run(
        self,
        signature_name: str,
        inputs: Mapping[str, np.ndarray],
        outputs: Sequence[str] = (),
    ) -> dict[str, np.ndarray]:
        """Answer one request.

        Args:
            signature_name: Name of a signature; empty for `serving_default`.
            inputs: Mapping from input name to array. Dtypes and shapes are checked by the graph
                alone, as in the server.
            outputs: Names of the outputs that are asked for; all of them by default.

        Returns:
            Dict from output name to array; strings are object arrays of `bytes`.

        Raises:
            tf.errors.OpError: With the code and the message of TensorFlow Serving:
                `FailedPreconditionError` for an unknown signature, `InvalidArgumentError` for
                names, dtypes or shapes that do not fit.
        """
        self.check(signature_name, inputs, outputs)
        name = signature_name or DEFAULT_SIGNATURE
        if name not in self._calls:
            raise _produces_nothing(self.listed[name], outputs)
        return self._calls[name](inputs, outputs or self._outputs[name])

    def check(
        self, signature_name: str, inputs: Iterable[str], outputs: Sequence[str] = ()
    ) -> None:
        """Check the names in a request, as `run` does.

        Args:
            signature_name: As in `run`.
            inputs: Names of the inputs.
            outputs: As in `run`.

        Raises:
            tf.errors.OpError: As `run`.
        """
        self.check_inputs(signature_name, inputs)
        _check_outputs(outputs, self._outputs[signature_name or DEFAULT_SIGNATURE])

    def check_inputs(self, signature_name: str, inputs: Iterable[str]) -> None:
        """Check the signature that a request names, and the names of its inputs; see `check`."""
        name = signature_name or DEFAULT_SIGNATURE
        if name not in self.listed:
            message = f'Serving signature key "{name}" not found.'
            raise tf.errors.FailedPreconditionError(None, None, message)
        if set(inputs) != self._inputs[name]:
            _check_inputs(inputs, self.listed[name].inputs)

    def close(self) -> None:
        """Free the memory of the version, which cannot run afterwards."""
        self._session.close()

    def _compile(self, signature: meta_graph_pb2.SignatureDef) -> _Call:
        """Make a function from a dict of arrays and names of outputs to a dict of arrays.

        `Session.run` would compare the shape of each array with the placeholder's in Python and
        refuse arrays that a server accepts; the function below it, which it calls, does not.
        """
        session = self._session._session
        inputs, outputs = (self._tensors(infos) for infos in (signature.inputs, signature.outputs))

        def call(arrays: Mapping[str, np.ndarray], names: Sequence[str]) -> dict[str, np.ndarray]:
            feeds = {tensor: np.asarray(arrays[name]) for name, tensor in inputs.items()}
            fetches = [outputs[name] for name in names]
            values = pywrap_tf_session.TF_SessionRun_wrapper(
                session, None, feeds, fetches, [], None
            )
            return dict(zip(names, values, strict=True))

        return call

    def _tensors(self, infos: Mapping[str, meta_graph_pb2.TensorInfo]) -> dict[str, Any]:
        element = self._session.graph.as_graph_element
        return {name: element(info.name)._as_tf_output() for name, info in infos.items()}


def _restore(
    session: tf.compat.v1.Session, directory: str | Path
) -> dict[str, meta_graph_pb2.SignatureDef]:
    """Load a SavedModel into `session`; return what it lists as its signatures."""
    with quiet(), session.graph.as_default():
        meta_graph = tf.compat.v1.saved_model.load(session, ["serve"], str(directory))
    return dict(meta_graph.signature_def)


def _check_inputs(names: Iterable[str], expected: Mapping[str, meta_graph_pb2.TensorInfo]) -> None:
    """Compare the names of a request's inputs with the signature's, as the server does.

    VerifyRequestInputsSize in TensorFlow Serving's predict_util.cc, and then GetInputValues in
    TensorFlow's cc/saved_model/util.cc.
    """
    received, expected_names = set(names), set(expected)
    if len(received) != len(expected):
        message = (
            f"input size does not match signature: {len(received)}!={len(expected)} "
            f"len({{{_join(received)}}}) != len({{{_join(expected)}}}). "
            f"Sent extra: {{{_join(received - expected_names)}}}. "
            f"Missing but required: {{{_join(expected_names - received)}}}."
        )
        raise tf.errors.InvalidArgumentError(None, None, message)
    for name in sorted(expected_names - received):
        message = (
            f"Signature input alias: {name}(feed name: {expected[name].name}) not found in request "
            f"and no default value provided. Inputs expected to be in the request "
            f"{{{_join(received)}}}, or default input alias set: "
        )
        raise tf.errors.InvalidArgumentError(None, None, message)


def _check_outputs(names: Sequence[str], expected: Sequence[str]) -> None:
    """Check which outputs a request asks for (PreProcessPrediction in predict_util.cc)."""
    for index, name in enumerate(names):
        if name not in expected:
            message = (
                f"output tensor alias not found in signature: {name} "
                f"Outputs expected to be in the set {{{_join(expected)}}}."
            )
            raise tf.errors.InvalidArgumentError(None, None, message)
        if name in names[:index]:
            message = f"duplicate output tensor alias: {name}"
            raise tf.errors.InvalidArgumentError(None, None, message)


def _produces_nothing(
    signature: meta_graph_pb2.SignatureDef, outputs: Sequence[str]
) -> tf.errors.OpError:
    """Return the error of fetching an operation (FetchOutputs in TensorFlow's subgraph.cc)."""
    name = signature.outputs[(outputs or sorted(signature.outputs))[0]].name
    message = (
        f"Tried to fetch data for '{name}', which produces no output.  To run to a node but not "
        f"fetch any data, pass '{name}' as an argument to the 'target_node_names' argument of the "
        "Session::Run API."
    )
    return tf.errors.InvalidArgumentError(None, None, message)


def _join(names: Iterable[str]) -> str:
    return ",".join(sorted(names))
