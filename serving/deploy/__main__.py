"""`python -m keras_mas.serving.deploy`: write the files to deploy a model server with."""

import argparse
import sys
from pathlib import Path

from keras_mas.errors import UsageError

from . import ssl_config, write_files


def main(argv: list[str] | None = None) -> int:
    """Write the files; return the exit code: 0 done, 1 failed, 2 wrong usage."""
    parser = argparse.ArgumentParser(
        prog="python -m keras_mas.serving.deploy",
        description="Write files to deploy a model server with: docker compose, Kubernetes, "
        "KServe, Prometheus, TLS.",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where to")
    parser.add_argument("--model", metavar="NAME", default="shop", help="name (default: shop)")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    group = parser.add_argument_group("TLS (default: an example in ssl.config)")
    group.add_argument("--key", type=Path, metavar="FILE", help="private key of the server, PEM")
    group.add_argument("--certificate", type=Path, metavar="FILE", help="its certificate, PEM")
    group.add_argument(
        "--ca", type=Path, metavar="FILE", help="authority of clients, which must then identify"
    )
    args = parser.parse_args(argv)
    try:
        if (args.key is None) != (args.certificate is None) or (args.ca and not args.key):
            given = [name for name in ("key", "certificate", "ca") if getattr(args, name)]
            raise UsageError(
                "Expected --key and --certificate together, --ca with both. Received: "
                f"{' and '.join(f'--{name}' for name in given)}. Give what is missing, too."
            )
        ssl = ssl_config(args.key, args.certificate, args.ca) if args.key else None
        paths = write_files(args.folder, args.model, ssl=ssl, overwrite=args.overwrite)
    except (UsageError, OSError) as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")
        return 2 if isinstance(error, UsageError) else 1
    sys.stdout.write("".join(f"{path}\n" for path in paths))
    return 0


if __name__ == "__main__":
    sys.exit(main())
