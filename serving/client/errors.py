"""The error of both clients: what was expected, what came from the server, and what to do."""

from ..conventions import in_one_line

_ADVICE = {
    "INVALID_ARGUMENT": "Compare the request with the signatures in the model's metadata.",
    "FAILED_PRECONDITION": "Compare the request with the signatures in the model's metadata.",
    "NOT_FOUND": "Check the name and the version against the status of the model.",
    "RESOURCE_EXHAUSTED": "Send fewer inputs at once, as with `batch_size`, or try again later.",
    "CANCELLED": "The server was stopping, perhaps: send the request again.",
    "UNAVAILABLE": "Start the server, or check its host, its port, which is another one for gRPC "
    "than for REST, and whether it speaks TLS.",
    "DEADLINE_EXCEEDED": "Allow more time, or send fewer inputs at once.",
}
OTHER_ADVICE = "The log of the server may say more."

# The beginning of what is said of a handshake that is never answered.
NO_HANDSHAKE = "no answer to the TLS handshake"

# In what both libraries, OpenSSL and gRPC's, say where the other side does not speak TLS.
_NO_TLS = "WRONG_VERSION_NUMBER"

# What to do about messages that tell more than their code does, by what they contain.
_ADVICE_ON = {
    "servable version label": "`keras-mas status {name}` shows which versions have labels.",
    "request: Specific(": "`keras-mas status {name}` shows which versions are loaded: without "
    "labels only the newest one, and with labels those that have one.",
    "to be float but double": "Convert the input with `astype('float32')`.",
    _NO_TLS: "Connect without TLS, or correct the port.",
    NO_HANDSHAKE: "Connect without TLS, correct the port, or allow more time.",
}

# How gRPC's message begins if no address of a server can be connected to; it ends with the reason
# for the last one.
_NO_CONNECTION = "failed to connect"

# Of a handshake in which a certificate was refused, it says why before the end.
_HANDSHAKE, _HANDSHAKE_ENDS = "handshake failed", ": OK"


class ServingError(RuntimeError):
    """A model server refused a request, failed or could not be reached; the message says why.

    Attributes:
        code: Name of the gRPC status code that says what kind of error it was, also over REST.
    """

    def __init__(self, message: str, code: str = "UNKNOWN"):
        super().__init__(message)
        self.code = code


def failure_of(message: str) -> str:
    """Return why there was no answer; what gRPC says of each address it tried, in a few words."""
    if _NO_TLS in message:
        return "no encrypted connection, for what answers does not speak TLS"
    if message.startswith(_NO_CONNECTION):
        what = "no encrypted connection" if _HANDSHAKE in message else "no connection"
        reason = message.rstrip(".").removesuffix(_HANDSHAKE_ENDS).rpartition(": ")[2]
        return f"{what} ({reason})"
    return message


def error_of(name: str, host_port: str, code: str, message: str | None) -> ServingError:
    """Return the error of a request about a model.

    Args:
        name: Name of the model.
        host_port: Where the server listens.
        code: Name of a gRPC status code.
        message: What the server or the connection says, if anything.
    """
    message = message or "no reason"
    told = [advice for text, advice in _ADVICE_ON.items() if text in message]
    advice = told[0].format(name=name) if told else _ADVICE.get(code, OTHER_ADVICE)
    said = in_one_line(failure_of(message)).rstrip(".")
    return ServingError(
        f"Expected an answer about model '{name}' from {host_port}. "
        f"Received: {code}: {said}. {advice}",
        code,
    )
