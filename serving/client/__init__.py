"""Clients of a model server, TensorFlow Serving or the stand-in: one over REST, one over gRPC.

Both have the same methods and return the same values, and both keep their connections and may be
used by several threads at once. Neither imports Keras or TensorFlow.
"""

from .base import Prediction
from .errors import ServingError
from .grpc import GrpcClient
from .rest import RestClient
from .tls import Tls
from .versions import Readiness, VersionStatus, newest, readiness

__all__ = [
    "GrpcClient",
    "Prediction",
    "Readiness",
    "RestClient",
    "ServingError",
    "Tls",
    "VersionStatus",
    "newest",
    "readiness",
]
