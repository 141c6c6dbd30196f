"""Cases of a parametrized test of which `make test` runs one, and `make test-slow` the others."""

import pytest


def slow(*values):
    """Return a case that `make test` leaves out."""
    return pytest.param(*values, marks=pytest.mark.slow)


def slow_but(fast, values):
    """Return the values as cases, all of them slow but the one that is `fast`."""
    values = list(values)
    assert fast in values
    return [value if value == fast else slow(value) for value in values]
