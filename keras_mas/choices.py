"""The names of choices; importing them costs nothing, so that the command line may list them."""

# Where the penalty acts: in the loss, or in a proximal step after the optimizer's.
PENALTIES = ("in_loss", "decoupled")


def checked_penalty(name: str) -> str:
    """Return a name out of `PENALTIES` as it is; ValueError for any other."""
    if name not in PENALTIES:
        raise ValueError(f"Expected a penalty out of {', '.join(PENALTIES)}. Received: {name!r}.")
    return name


# What becomes of the moving statistics of batch normalization, which no penalty holds.
BATCH_NORM = ("freeze", "update")
