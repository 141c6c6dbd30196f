"""When the loss of a stream of data rests on a plateau: something has been learned."""

import tensorflow as tf


class PlateauDetector:
    """Finds the plateaus of a loss, of which every one but the first follows a peak.

    Over a window of the last losses, with mean μ and variance v, there is a plateau where μ and v
    are below a threshold each. After one, the next is not looked for before a peak: a window with
    μ > μ* + √v*, the mean and the variance of the last plateau (Aljundi, Kelchtermans and
    Tuytelaars, "Task-Free Continual Learning", CVPR 2019, arXiv:1812.03596). As in the authors'
    code, the window is not emptied at a plateau.

    It works in a traced function as it does outside of one.

    Args:
        window: How many losses; fewer are no window.
        mean_threshold: Largest mean of a plateau, in units of the loss.
        variance_threshold: Largest variance of a plateau, in squared units of the loss.

    Attributes:
        has_met_plateau: Scalar bool variable: whether a plateau was met since this was last set to
            false.
    """

    def __init__(
        self, window: int = 5, mean_threshold: float = 0.2, variance_threshold: float = 0.1
    ):
        self.mean_threshold, self.variance_threshold = mean_threshold, variance_threshold
        self.losses = tf.Variable(tf.fill([window], float("inf")), trainable=False)
        self.limit = tf.Variable(float("-inf"), trainable=False)
        self.is_armed = tf.Variable(True, trainable=False)
        self.has_met_plateau = tf.Variable(False, trainable=False)

    def add(self, loss: tf.Tensor) -> None:
        """Take note of the next loss, a scalar."""
        losses = tf.concat([self.losses[1:], [tf.cast(loss, tf.float32)]], axis=0)
        self.losses.assign(losses)
        # No window yet: with the infinite losses before the first, both are infinite or NaN, and
        # no comparison holds.
        mean, variance = tf.reduce_mean(losses), tf.math.reduce_variance(losses)
        is_armed = self.is_armed | (mean > self.limit)
        is_plateau = is_armed & (mean < self.mean_threshold) & (variance < self.variance_threshold)
        self.is_armed.assign(is_armed & ~is_plateau)
        self.limit.assign(tf.where(is_plateau, mean + tf.sqrt(variance), self.limit))
        self.has_met_plateau.assign(self.has_met_plateau | is_plateau)

    def restart(self) -> None:
        """Begin anew, as if no loss had been seen."""
        self.losses.assign(tf.fill(self.losses.shape, float("inf")))
        self.limit.assign(float("-inf"))
        self.is_armed.assign(True)
        self.has_met_plateau.assign(False)

    @property
    def variables(self) -> dict[str, tf.Variable]:
        """The state, by name, to save or to assign."""
        return {
            "losses": self.losses,
            "limit": self.limit,
            "is_armed": self.is_armed,
            "is_on_plateau": self.has_met_plateau,  # its name in files of earlier versions, too
        }
