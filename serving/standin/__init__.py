"""A stand-in for TensorFlow Serving, for development and tests.

The real `tensorflow_model_server` comes as an image and an apt package, and is not always at hand.
The stand-in answers the same requests on the same ports with the same messages. It is built on the
gRPC interfaces of tensorflow-serving-api, on waitress for HTTP, and on TensorFlow's C++ runtime.

What it does not do: it loads every version once, when it starts, and does not notice later ones; it
does not replay warm-up requests; it has no version labels, configuration files, batching, metrics,
TLS or authentication; it offers neither classify, regress nor session runs. It is written for
clarity, not for load. Use TensorFlow Serving in production.

It is stricter in two respects. It refuses a request in column format that names an input unknown to
the signature, where TensorFlow Serving ignores the input. And a version without its `variables/`
does not load, where TensorFlow Serving loads it and then fails every request.
"""

from .server import PortError, StandIn

__all__ = ["PortError", "StandIn"]
