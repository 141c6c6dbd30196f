"""The commands of `keras-mas`, a file each.

Every module has a `SUMMARY`, `add_arguments(parser)` and `run(args)`. What takes long to import,
TensorFlow above all, is imported by `run`, since `--help` needs none of it.
"""

COMMANDS = (
    "train",
    "compare",
    "search",
    "report",
    "importance",
    "export",
    "serve",
    "predict",
    "status",
    "promote",
    "rollback",
    "completion",
)
# Commands that start without TensorFlow: `predict` imports it for the examples of a stream alone,
# and `promote` to check a version, once all else is as expected.
WITHOUT_TENSORFLOW = ("report", "predict", "status", "promote", "rollback", "completion")
