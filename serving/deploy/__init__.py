"""Files to deploy a model server with: docker compose, Kubernetes, KServe, Prometheus, TLS.

`python -m keras_mas.serving.deploy FOLDER --model NAME` writes them to a folder.
"""

import os
import re
from importlib import resources
from pathlib import Path

from keras_mas.errors import UsageError
from keras_mas.files import atomic_file, check_writable

SSL = "ssl.config"

_EXAMPLE = "shop"  # the name of the model in the files
_MODEL = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")


def file_names() -> list[str]:
    """Return the names of the files."""
    files = (path.name for path in resources.files(__name__).iterdir() if path.is_file())
    return sorted(name for name in files if not name.endswith((".py", ".pyc")))


def write_files(
    folder: str | os.PathLike, model: str, *, ssl: str | None = None, overwrite: bool = False
) -> list[Path]:
    """Write the files for a model.

    Args:
        folder: Where to; it is made if it does not exist.
        model: Name of the model.
        ssl: Content of `ssl.config`, from `ssl_config`; None for the example.
        overwrite: Whether to replace files that are there.

    Returns:
        The paths of the files.

    Raises:
        UsageError: If a file is there already, the folder cannot be written, or the name is none
            that Kubernetes accepts. Nothing has been written then.
    """
    if not _MODEL.fullmatch(model) or len(model) > 63:
        raise UsageError(
            "Expected a name of lower-case letters, digits and '-' for a model, as Kubernetes "
            f"demands it, at most 63 of them. Received: '{model}'."
        )
    folder = Path(folder)
    check_writable(folder)
    paths = [folder / name for name in file_names()]
    taken = [path for path in paths if path.exists()]
    if taken and not overwrite:
        raise UsageError(
            f"Expected a folder without these files. Received: '{taken[0]}', which exists. Choose "
            "another folder, or replace them with `--overwrite`."
        )
    folder.mkdir(parents=True, exist_ok=True)
    for path in paths:
        text = (resources.files(__name__) / path.name).read_text(encoding="utf-8")
        text = re.sub(rf"\b{_EXAMPLE}\b", model, text)
        with atomic_file(path, "w") as file:
            file.write(ssl if path.name == SSL and ssl is not None else text)
        if path.name == SSL:
            path.chmod(0o600)  # it holds a private key
    return paths


def ssl_config(
    key: str | os.PathLike, certificate: str | os.PathLike, ca: str | os.PathLike | None = None
) -> str:
    """Return the content of a file for `--ssl_config_file` of TensorFlow Serving.

    Args:
        key: File of the server's private key, in PEM.
        certificate: File of its certificate, in PEM.
        ca: File of the authority's certificate; then clients must show one that it issued.

    Raises:
        UsageError: If a file cannot be read or is not PEM.
    """
    lines = [
        "# For --ssl_config_file of TensorFlow Serving: TLS on the gRPC port.",
        f"server_key: {_quoted(key)}",
        f"server_cert: {_quoted(certificate)}",
    ]
    if ca is not None:
        lines.append(f"custom_ca: {_quoted(ca)}")
    lines.append(f"client_verify: {'false' if ca is None else 'true'}")
    return "\n".join(lines) + "\n"


def _quoted(path: str | os.PathLike) -> str:
    try:
        text = Path(path).read_text(encoding="ascii")
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "a file that is no text"
        raise UsageError(f"Expected PEM in '{path}'. Received: {reason.lower()}.") from error
    if "-----BEGIN " not in text:
        raise UsageError(f"Expected PEM in '{path}'. Received: a file without '-----BEGIN'.")
    # In the text format of protobuf a string is written as in C.
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + escaped.replace("\r", "").replace("\n", "\\n") + '"'
