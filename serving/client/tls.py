"""How a connection is encrypted."""

import os
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from keras_mas.errors import UsageError

if TYPE_CHECKING:
    import grpc


@dataclass(frozen=True)
class Tls:
    """How a connection is encrypted, and who proves to be whom; all files are in PEM.

    Attributes:
        roots: Certificates of the authorities that the server's certificate is checked against;
            None for those that the machine trusts.
        certificate: The client's own certificate, for a server that asks for one; or None.
        key: Its private key; given if and only if `certificate` is.

    Raises:
        UsageError: If there is a certificate without a key or the reverse, no such file, one that
            is damaged or encrypted, or a key of another certificate.
    """

    roots: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def __post_init__(self):
        if (self.certificate is None) != (self.key is None):
            raise UsageError(
                "Expected a client's certificate and its key, or neither. Received: "
                f"certificate {self.certificate}, key {self.key}. Name both files."
            )
        for file in filter(None, (self.roots, self.certificate, self.key)):
            read_pem(file)
        _check_pems(self)


def grpc_channel(
    host_port: str, tls: Tls | None, options: Sequence[tuple[str, int]] = ()
) -> "grpc.Channel":
    """Return a gRPC channel to a model server.

    Args:
        host_port: Where the server listens.
        tls: How the connection is encrypted; None for one that is not.
        options: Options of the channel.
    """
    import grpc  # which a client over REST need not wait for

    # As over REST: proxies are for the way out of a network, which a model server is in.
    settings = [("grpc.enable_http_proxy", 0), *options]
    if tls is None:
        return grpc.insecure_channel(host_port, options=settings)
    files = (tls.roots, tls.key, tls.certificate)
    pems = [None if file is None else Path(file).read_bytes() for file in files]
    return grpc.secure_channel(host_port, grpc.ssl_channel_credentials(*pems), options=settings)


def _check_pems(tls: Tls) -> None:
    """Read the files as a connection will, which would only fail for one that is damaged."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if tls.roots is not None:
        try:
            context.load_verify_locations(tls.roots)
        except ssl.SSLError as error:
            raise UsageError(
                f"Expected certificates in PEM in '{tls.roots}'. Received: a damaged file, or one "
                f"without certificates ({_reason(error)}). Take it from a copy."
            ) from error
    if tls.certificate is not None:
        try:
            context.load_cert_chain(tls.certificate, tls.key, password=lambda: "")
        except ssl.SSLError as error:
            raise UsageError(
                f"Expected a certificate in PEM in '{tls.certificate}' and its key, not encrypted, "
                f"in '{tls.key}'. Received: a damaged file, or another key ({_reason(error)}). "
                "Take the two from a copy."
            ) from error


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or "PEM lib").lower().replace("_", " ")


def read_pem(file: str | os.PathLike) -> str:
    """Return the text of a file of certificates or of a key, in PEM.

    Raises:
        UsageError: If it cannot be read, or is something else.
    """
    try:
        text = Path(file).read_text(encoding="ascii", errors="replace")
    except OSError as error:
        raise UsageError(
            f"Expected certificates or a key in PEM in '{file}'. Received: "
            f"{(error.strerror or str(error)).lower()}. Correct the path."
        ) from error
    if "-----BEGIN " not in text:
        raise UsageError(
            f"Expected certificates or a key in PEM in '{file}'. Received: a file without "
            "'-----BEGIN'. Convert it, for example with `openssl x509 -inform der`."
        )
    return text
