"""Which graphs TensorFlow optimizes before it runs them."""

import contextlib
from collections.abc import Iterator

import tensorflow as tf

# No graph has so many operations.
NONE = 2**31 - 1

_OPTION = "min_graph_nodes"


@contextlib.contextmanager
def optimized_from(operations: int) -> Iterator[None]:
    """Have TensorFlow optimize only larger graphs of those that are run inside the block.

    Args:
        operations: How many operations a graph, or a function in it, needs to be optimized; `NONE`
            to optimize none.
    """
    before = tf.config.optimizer.get_experimental_options().get(_OPTION)
    tf.config.optimizer.set_experimental_options({_OPTION: operations})
    try:
        yield
    finally:
        # None, where nothing was set: TensorFlow takes a function for another one, and optimizes it
        # anew, if an option is set that was not, whatever its value.
        tf.config.optimizer.set_experimental_options({_OPTION: before})
