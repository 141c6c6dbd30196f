"""Methods of continual learning, one file each: what happens around the training of a task."""

from importlib import import_module

# Names only: importing a method imports TensorFlow.
METHODS = ("mas", "finetune")


def load_method(name: str) -> type:
    """Return the `Method` class of a name in `METHODS`.

    Args:
        name: Name of the method, also of its file.

    Raises:
        UsageError: If there is no such method.
    """
    if name not in METHODS:
        from ..errors import UsageError

        raise UsageError(
            f"Expected a method out of {', '.join(METHODS)}. Received: '{name}'. Choose one of "
            "them with `--method`."
        )
    return import_module(f".{name}", __name__).Method
