"""Files to deploy a model server with: docker compose, Kubernetes, KServe, Prometheus, TLS.

`python -m keras_mas.serving.deploy FOLDER --model NAME` writes them to a folder.
"""

import os
import re
from functools import partial
from importlib import resources
from pathlib import Path

from google.protobuf import text_encoding

from keras_mas.errors import UsageError
from keras_mas.files import atomic_file, check_writable

from ..client.tls import read_pem

SSL = "ssl.config"
_KSERVE = "kserve.yaml"

_EXAMPLE = "shop"  # the name of the model in the files

# Alone in its line, and not quoted, it is the name of a resource of docker compose, Kubernetes or
# KServe: a DNS label, which the name of a model need not be. In a path it is what the server calls
# the model.
_NAMED = re.compile(
    rf"^(?P<resource> *name: ){_EXAMPLE}$|(?P<path>/v1/models/){_EXAMPLE}\b|\b{_EXAMPLE}\b",
    re.MULTILINE,
)
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_MAX_LENGTH = 63


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
        UsageError: If a file is there already, the folder cannot be written, or no name for
            Kubernetes can be made of that of the model. Nothing has been written then.
    """
    resource = resource_name(model)
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
        # KServe starts the server with the name of its resource, `--model_name={{.Name}}`.
        served = resource if path.name == _KSERVE else model
        rename = partial(_renamed, model=model, resource=resource, served=served)
        text = _NAMED.sub(rename, text)
        with atomic_file(path, "w") as file:
            file.write(ssl if path.name == SSL and ssl is not None else text)
        if path.name == SSL:
            path.chmod(0o600)  # it holds a private key
    return paths


def _renamed(found: re.Match[str], model: str, resource: str, served: str) -> str:
    if found["path"] is not None:
        return f"{found['path']}{served}"
    before = found["resource"]
    return model if before is None else f"{before}{resource}"


def resource_name(model: str) -> str:
    """Return what a resource is called that serves a model: a DNS label, `my-shop` of `My_shop`.

    Args:
        model: Name of the model.

    Raises:
        UsageError: If it has other characters than ASCII letters, digits, `_`, `.` and `-`, does
            not begin with one of the first two, or is too long.
    """
    name = re.sub("[^a-z0-9]+", "-", model.lower()).strip("-")
    if name[:1].isdigit():  # which KServe refuses
        name = f"model-{name}"
    if not _MODEL.fullmatch(model) or len(name) > _MAX_LENGTH:
        raise UsageError(
            "Expected a name of ASCII letters, digits, '_', '.' and '-' for a model, a letter or "
            f"digit first and at most {_MAX_LENGTH} in all, to make one of it as Kubernetes "
            f"demands. Received: '{model}'. Give the model another name."
        )
    return name


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
    """Return the text of a file in PEM as a string in protobuf's text format."""
    return f'"{text_encoding.CEscape(read_pem(path), as_utf8=True)}"'
