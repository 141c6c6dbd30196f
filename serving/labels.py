"""The labels of versions that clients ask for; they are imported without TensorFlow."""

STABLE, CANARY, PREVIOUS = "stable", "canary", "previous"
"""The labels: what all clients get, what some try, and what `stable` was before."""

LABELS = (STABLE, CANARY)
"""The labels that can be moved; `previous` follows `stable`."""
