"""A stand-in for TensorFlow Serving, for development and tests.

The real `tensorflow_model_server` comes as an image and an apt package, and is not always at hand.
The stand-in answers the same requests on the same ports with the same messages, and its versions
and labels come and go by the same rules: a client that was tried with it meets the same refusals in
production, to the position at which JSON is wrong. It is built on the gRPC interfaces of
tensorflow-serving-api, on waitress for HTTP, and on TensorFlow's C++ runtime. Written after the
source of TensorFlow Serving; the table of cases in `tests/serving_conformance.py` names
the function behind each.

What it does not do: it has no metrics, TLS or authentication, and offers neither classify, regress
nor session runs. It is written for clarity, not for load. Use TensorFlow Serving in production.

Where it differs on purpose: a version that does not load is tried once, not six times in five
minutes. A version without its `variables/` does not load, where TensorFlow Serving loads it and
then fails every request. A new model without a version is refused, where TensorFlow Serving waits
for one, and a refused configuration changes nothing at all. A rollback to a version that is still
loaded takes effect even if the other has failed. Requests have a largest size, lists 64 levels. It
logs requests, which the open-source server cannot. What is no HTTP is refused in JSON, where
libevent sends a page. Requests of several dtypes are not joined into one batch, in which the server
would refuse them all. Doubles in JSON are read exactly, where RapidJSON may miss the last digit.
"""

from .batching import BatchingParameters, read_batching_parameters
from .model_config import ALL, LATEST, config_of
from .request_log import LogSettings
from .server import PortError, ServerOptions, StandIn

__all__ = [
    "ALL",
    "LATEST",
    "BatchingParameters",
    "LogSettings",
    "PortError",
    "ServerOptions",
    "StandIn",
    "config_of",
    "read_batching_parameters",
]
