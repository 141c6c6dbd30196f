"""Names and numbers that clients, servers and commands share; importing it takes no time."""

from keras_mas.errors import without_operations

GRPC_PORT, REST_PORT = 8500, 8501
"""The default ports of TensorFlow Serving, which are also those of the stand-in."""

DEFAULT_SIGNATURE = "serving_default"
"""The signature of a request that names none."""

FEATURES, ENCODED, EXAMPLES = "features", "encoded", "examples"
"""The signatures, besides `serving_default` and those of the tasks, that a version may have."""

IMAGE_BYTES = "image_bytes"
"""Name of the input that holds files of images."""

IMAGE_BEGINNINGS: dict[str, bytes] = {"PNG": b"\x89PNG\r\n\x1a\n", "JPEG": b"\xff\xd8\xff"}
"""What the files that the signature `encoded` takes begin with."""

EXTRA_ASSETS = "assets.extra"
"""Folder of a version for files that its graph does not read; TensorFlow Serving fixes the name."""

MAX_PIXELS = 2**26
"""Pixels of the largest image that is decoded: a file of 400 kB may hold 400 million."""

RESIZE_MODES = ("crop", "stretch", "none")
"""How images get the size of a model's inputs.

"crop": the short side is resized, and the middle of the long side is kept. "stretch": both sides
are resized. "none": images of another size are refused.
"""

STABLE, CANARY, PREVIOUS = "stable", "canary", "previous"
"""The labels: what all clients get, what some try, and what `stable` was before."""

LABELS = (STABLE, CANARY)
"""The labels that can be moved; `previous` follows `stable`."""

MAX_FORGETTING = 0.05
"""How much accuracy a task may lose from one version to the next unless another bound is given."""

MAX_SECONDS = 1_000_000
"""The longest time, eleven days, that anything may be asked to wait; the system counts no further
than 292 years."""

HTTP_STATUS: dict[str, int] = {
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "OUT_OF_RANGE": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ABORTED": 409,
    "ALREADY_EXISTS": 409,
    "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 499,
    "INTERNAL": 500,
    "UNKNOWN": 500,
    "DATA_LOSS": 500,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
"""Name of a gRPC status code to the HTTP status that TensorFlow Serving gives it."""


def in_one_line(message: object) -> str:
    """Return what TensorFlow says went wrong, without the nodes of the graph that it lists."""
    text = str(message).removeprefix("Graph execution error:").partition("\n\t [[")[0]
    return " ".join(without_operations(text).split())
