"""Equations of what a network is held to by a copy of itself: its logits, and codes of features."""

import tensorflow as tf


def within_head(logits: tf.Tensor, labels: tf.Tensor, head_of_logit: tf.Tensor) -> tf.Tensor:
    """Leave every example the logits of one head, that of its label: no other can be chosen.

    Cross-entropy and accuracy of the result are those of the head alone, and have no gradient at
    other heads.

    Args:
        logits: `[N, C]`, those of all heads side by side.
        labels: `[N]` or `[N, 1]`, the number of a logit each.
        head_of_logit: `[C]`, the number of the head that a logit belongs to.

    Returns:
        `[N, C]`.
    """
    own = tf.gather(head_of_logit, tf.reshape(tf.cast(labels, tf.int32), [-1]))
    is_own = head_of_logit[None, :] == own[:, None]
    return _only(is_own, logits)


def distillation_loss(
    logits: tf.Tensor,
    targets: tf.Tensor,
    learned: tf.Tensor,
    head_of_logit: tf.Tensor,
    temperature: float,
) -> tf.Tensor:
    """How far the answers of several heads are from those that they gave before.

    With the softmax p_h of a head's learned logits z / T, and p*_h of those before,

        1/N Σ_n Σ_h KL(p*_h(x_n) ‖ p_h(x_n))

    is the distillation loss of Li and Hoiem, "Learning without Forgetting", ECCV 2016,
    arXiv:1606.09282 (Eq. 2 to 4), less the entropy of p*, which is constant: it is 0 where nothing
    has changed. As there, it is not multiplied by T², by which Hinton et al. (arXiv:1503.02531)
    make gradients as large as at T = 1: a factor of 4 in its weight at T = 2.

    Args:
        logits: z, `[N, C]`, those of all heads side by side.
        targets: z*, `[N, C]`, the logits before; they are taken as constant.
        learned: `[C]`, whether a logit had been learned; others do not count.
        head_of_logit: `[C]`, ascending: the number of the head that a logit belongs to.
        temperature: T > 0.

    Returns:
        Scalar, float32, ≥ 0, in nats.
    """

    def log_p(z):
        softened = tf.cast(z, tf.float32) / temperature
        return _log_softmax_of_heads(_only(learned, softened), head_of_logit)

    log_before = log_p(tf.stop_gradient(targets))
    gaps = tf.exp(log_before) * (log_before - log_p(logits))
    return tf.reduce_mean(tf.reduce_sum(tf.where(learned, gaps, 0.0), axis=-1))


def code_loss(
    features: tf.Tensor, features_before: tf.Tensor, kernels: tf.Tensor, biases: tf.Tensor
) -> tf.Tensor:
    """How far the codes of features are from those that they had before.

    1/N Σ_n ½ ‖σ(W f(x_n) + b) − σ(W f*(x_n) + b)‖², summed over the encoders (W, b) of earlier
    tasks, which stand side by side: Rannen Triki, Aljundi, Blaschko and Tuytelaars, "Encoder Based
    Lifelong Learning", ICCV 2017, arXiv:1704.01920, without the weight α.

    Args:
        features: f, `[N, F]`.
        features_before: f*, `[N, F]`; they are taken as constant.
        kernels: W of all encoders, `[F, K]`.
        biases: b of all encoders, `[K]`.

    Returns:
        Scalar, float32, ≥ 0; 0 if there is no encoder.
    """

    def code(f):
        return tf.sigmoid(tf.cast(f, tf.float32) @ kernels + biases)

    change = code(features) - code(tf.stop_gradient(features_before))
    return tf.reduce_mean(tf.reduce_sum(change**2, axis=-1)) / 2


def _only(choices, logits):
    """Return the logits of choices, and for others one of which the softmax is 0."""
    # It is finite, so that 0 times it is 0.
    return tf.where(choices, logits, tf.constant(logits.dtype.min, logits.dtype))


def _log_softmax_of_heads(logits, head_of_logit):
    """Return the logarithm of each head's softmax, `[N, C]`."""
    rows = tf.transpose(logits)  # [C, N], for the segments are of the first axis
    largest = tf.stop_gradient(tf.math.segment_max(rows, head_of_logit))
    rows -= tf.gather(largest, head_of_logit)
    total = tf.math.segment_sum(tf.exp(rows), head_of_logit)
    return tf.transpose(rows - tf.gather(tf.math.log(total), head_of_logit))
