"""`keras-mas status`: print the state of every version of a served model, and its labels."""

import argparse

from . import basics, rollouts

SUMMARY = "show which versions of a model there are, which a server has, and their labels"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    rollouts.add_model_folder(parser)
    rollouts.add_config(parser)
    basics.add_server(parser)
    basics.add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from keras_mas.serving.client import ServingError

    rollouts.check_config(args.config)
    folder = rollouts.model_folder(args.model)
    rows, missing = _on_disk(folder, args.config)
    failure = None
    try:
        with basics.client_of(args) as client:
            statuses = client.status(folder.resolve().name)
    except ServingError as error:
        failure = error
    else:
        for row in rows.values():
            row["state"] = "NOT LOADED"  # but what follows; it is no state of a server
        for status in statuses:
            row = rows.setdefault(status.version, _row(status.version))
            row |= {"state": status.state, "error": status.error}
    if failure is not None and rows:
        _say_that_states_are_unknown(args)
    if failure is None or rows:
        _print([rows[version] for version in sorted(rows)], folder.name, args.json)
    if failure is not None:
        raise failure
    # A server may have it from elsewhere.
    missing = {k: v for k, v in missing.items() if rows[v]["state"] != "AVAILABLE"}
    if missing:
        raise RuntimeError(_of_missing(folder, missing))


def _say_that_states_are_unknown(args):
    from ..console import stderr_console

    stderr_console().print(
        f"the server at {basics.address_of(args)} said nothing of this model: what follows is on "
        "the disk, and whether it is loaded is UNKNOWN",
        soft_wrap=True,
    )


def _on_disk(folder, config):
    """Return a row for every version in a folder or under a label, and the labels of no folder."""
    from keras_mas.serving.config import config_path, labels_of, read_config
    from keras_mas.serving.paths import list_versions

    labels = labels_of(read_config(config or config_path(folder)), folder.resolve().name)
    versions = list_versions(folder)
    rows = {version: _row(version) for version in versions}
    for label in sorted(labels):
        rows.setdefault(labels[label], _row(labels[label]))["labels"].append(label)
    return rows, {label: labels[label] for label in sorted(labels) if labels[label] not in versions}


def _of_missing(folder, missing):
    said = ", ".join(f"{label} → version {version}" for label, version in missing.items())
    return (
        f"Expected every label of '{folder.name}' to point to a version in '{folder}'. Received: "
        f"{said}, which is not there. Restore its folder, or `keras-mas promote {folder} VERSION`."
    )


def _row(version):
    return {"version": version, "labels": [], "state": "UNKNOWN", "error": ""}


def _print(rows, model, as_json):
    from ..console import result_console

    if as_json:
        basics.print_json(rows)
        return
    for row in rows:
        labels = f"({', '.join(row['labels'])})" if row["labels"] else ""
        words = [f"{model} version {row['version']}", row["state"], labels, row["error"]]
        result_console().print("  ".join(filter(None, words)), soft_wrap=True)
