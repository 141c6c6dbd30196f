"""EBLL, Encoder Based Lifelong Learning: LwF that also holds codes of the features."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import keras
import numpy as np
import tensorflow as tf

from ..distillation import code_loss
from ..importance.batches import batches
from . import lwf
from .lwf import DistillingModel, Learned

# α, the weight of the codes; the authors' demonstration takes 0.1.
CODE_WEIGHT = 0.1

# The authors' codes have 100 or 300 numbers, for features of 9216; here at most half the features.
LARGEST_CODE = 100

# The weight λ of the reconstruction beside the task's loss, as in the authors' code.
RECONSTRUCTION_WEIGHT = 1e-6

# How an autoencoder is trained; these are ours.
_RATE, _STEPS, _BATCH = 0.01, 500, 64


@dataclasses.dataclass
class Encoders:
    """The encoders of all tasks learned so far, side by side.

    Attributes:
        kernels: `[F, K]`, float32.
        biases: `[K]`, float32.
    """

    kernels: np.ndarray
    biases: np.ndarray

    def add(self, kernel: np.ndarray, bias: np.ndarray) -> None:
        """Add the encoder of one more task, `[F, k]` and `[k]`."""
        self.kernels = np.concatenate([self.kernels, kernel], axis=1)
        self.biases = np.concatenate([self.biases, bias])

    def clear(self) -> None:
        """Forget all encoders."""
        self.kernels, self.biases = self.kernels[:, :0], self.biases[:0]


def no_encoders() -> Encoders:
    """Return those of no task, of features whose number is not known yet."""
    return Encoders(np.zeros([0, 0], "float32"), np.zeros([0], "float32"))


@keras.saving.register_keras_serializable("keras_mas")
class EncoderModel(DistillingModel):
    """A `DistillingModel` that holds the codes of its features, too.

    Args:
        inputs: As for `AllHeadsModel`.
        outputs: Logits, each made by one layer from the features, which all heads share.
        name: As for `AllHeadsModel`.
        learned: As for `DistillingModel`.
        encoders: Encoders of the tasks that had been learned; the method keeps them up to date.
            None for a model of no method.
        **options: As for `AllHeadsModel`.
    """

    def __init__(
        self,
        inputs: Any,
        outputs: Any,
        name: str | None = None,
        *,
        learned: Learned | None = None,
        encoders: Encoders | None = None,
        **options: Any,
    ):  # pragma: no mutate block
        super().__init__(inputs, outputs, name, learned=learned, **options)
        features = _features_of(self.inputs, self.heads)
        if encoders is None:
            encoders = no_encoders()
        self._features: Any = None
        self._encoders = encoders
        # Their number grows, and nothing is traced again.
        size = features.shape[-1]
        if not encoders.kernels.size:
            encoders.kernels = np.zeros([size, 0], "float32")
        self._kernels = tf.Variable(tf.zeros([size, 0]), shape=[size, None], trainable=False)
        self._biases = tf.Variable(tf.zeros([0]), shape=[None], trainable=False)
        self.autoencoder = Autoencoder(features, self)

    def held_tensors(self) -> Any:
        """Return the logits, and the features that they are made from."""
        return [self.outputs[0], _features_of(self.inputs, self.heads)]

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Return the logits, and keep the features that they were made from for the loss."""
        logits, self._features = self._logits_and_features(inputs, training)
        return logits

    def hold(self, strength: float) -> None:
        """Hold the answers and the codes that the model gives now."""
        super().hold(strength)
        self._kernels.assign(self._encoders.kernels)
        self._biases.assign(self._encoders.biases)

    def held_loss(self, x: Any, logits: tf.Tensor) -> tf.Tensor:
        """Return how far answers and codes are from those before; `x` was the last call's input."""
        logits_before, features_before = self._before(x)
        codes = code_loss(self._features, features_before, self._kernels, self._biases)
        return self.distance(logits, logits_before) + CODE_WEIGHT * codes

    def learn_encoder(self, x: Any, y: Any, max_examples: int | None, seed: int) -> None:
        """Learn the encoder of the task that was just learned, and add it to those before.

        Args:
            x: Inputs and labels, as for `Method.after_task`.
            y: As for `Method.after_task`.
            max_examples: As for `Method.after_task`.
            seed: Of the initial weights and of the order of the examples.
        """
        features, labels = [], []
        for inputs, numbers in batches(x, 256, max_examples, "given" if y is None else y):
            features.append(self._logits_and_features(inputs, training=False)[1])
            labels.append(tf.reshape(tf.cast(numbers, tf.int64), [-1]))
        all_features = tf.cast(tf.concat(features, 0), tf.float32)
        learned = self.autoencoder.learn(all_features, tf.concat(labels, 0), seed)
        self._encoders.add(*learned)

    def _logits_and_features(self, inputs, training):
        """Return both from the network as it is now, of whose weights `_before` holds copies."""
        return self._before.model(inputs, training=training)


class Autoencoder:
    """Compresses features to what the heads need: minimizes ℓ(T(r(f)), y) + λ ‖r(f) − f‖².

    r(f) = W' σ(W f + b) + b' is an autoencoder with fewer codes than features, T are the heads and
    ℓ is the task's cross-entropy. The autoencoder computes in float32 whatever the dtype policy of
    the heads, for the small λ and a sum over many features fit no float16.

    Args:
        features: The features, the model's tensor `[N, F]`.
        model: The model, whose heads take them.
    """

    def __init__(self, features: keras.KerasTensor, model: DistillingModel):
        size = features.shape[-1]
        heads = keras.Model(features, model.outputs[0])
        inputs = keras.Input([size], dtype="float32")
        codes = max(1, min(LARGEST_CODE, size // 2))
        code = keras.layers.Dense(codes, "sigmoid", dtype="float32")(inputs)
        reconstructed = keras.layers.Dense(size, dtype="float32")(code)
        # The heads are no part of the autoencoder, and are not trained with it.
        self._model = _Reconstruction(inputs, reconstructed, name="autoencoder")
        self._model.answer = lambda r, labels: model.own_logits(
            tf.cast(heads(tf.cast(r, features.dtype)), tf.float32), labels
        )
        # With "mixed_float16", Keras would put Adam into an optimizer that scales the loss.
        self._model.compile(keras.optimizers.Adam(_RATE), auto_scale_loss=False)
        self._model.optimizer.build(self._model.trainable_variables)

    def learn(
        self, features: tf.Tensor, labels: tf.Tensor, seed: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return W `[F, k]` and b `[k]` of the encoder that is learned for a task.

        Args:
            features: `[n, F]`, float32.
            labels: `[n]`, numbers of logits.
            seed: Of the initial weights and of the order of the examples.
        """
        random = np.random.default_rng(seed)
        for weight in self._model.weights:
            limit = np.sqrt(6 / sum(weight.shape)) if len(weight.shape) == 2 else 0  # Glorot's
            weight.assign(random.uniform(-limit, limit, weight.shape))
        for variable in self._model.optimizer.variables[2:]:  # Adam's moments
            variable.assign(tf.zeros_like(variable))
        self._model.optimizer.iterations.assign(0)
        order = random.integers(len(labels), size=[_STEPS, _BATCH])
        data = tf.data.Dataset.from_tensor_slices(order)
        data = data.map(lambda rows: (tf.gather(features, rows), tf.gather(labels, rows)))
        self._model.fit(data, shuffle=False, verbose=0)
        kernel, bias, *_ = self._model.get_weights()
        return kernel, bias


class _Reconstruction(keras.Model):
    """An autoencoder of features; `answer` returns the logits of reconstructed ones."""

    answer: Callable

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> tf.Tensor:
        logits = self.answer(y_pred, y)
        task = tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits)
        gap = tf.reduce_sum((y_pred - x) ** 2, axis=-1)
        return tf.reduce_mean(task + RECONSTRUCTION_WEIGHT * gap)


def _features_of(inputs, heads):
    """Return the tensor from which every head makes its logits, by one layer."""
    features, *others = [keras.Model(inputs, head).layers[-1].input for head in heads]
    if any(other is not features for other in others):
        raise ValueError(
            "Expected heads of one layer each, on features that they share, of which EBLL holds "
            "the codes. Received: heads whose last layers have inputs of their own. Put the layers "
            "between into what tasks share, or choose the method `lwf`."
        )
    return features


class Method(lwf.Method):
    """Encoder Based Lifelong Learning (Rannen Triki et al., ICCV 2017, arXiv:1704.01920).

    A task is learned with the loss

        L_new + λ (Σ_old heads KL(p* ‖ p) + α/2 Σ_old tasks ‖σ(W_t f + b_t) − σ(W_t f* + b_t)‖²)

    on its own inputs: LwF's, and one that holds the codes which the encoders of earlier tasks give
    to the features f, the inputs of the heads. The encoder of a task is learned when the task has
    been, with a decoder that is then dropped (`Autoencoder`). α = 0.1 as in the authors'
    demonstration; they take λ = 1 and, unlike here, train the autoencoder by Adadelta, for features
    of a convolutional layer. Models and labels are as for `lwf`.

        >>> import keras, numpy as np
        >>> from keras_mas.methods import load_method
        >>> method = load_method("ebll")(strength=1.0)
        >>> x, y = np.eye(4, dtype="float32"), np.array([0, 1, 0, 1])
        >>> inputs = keras.Input([4])
        >>> features = keras.layers.Dense(6, "relu")(inputs)
        >>> heads = []
        >>> for task in range(2):
        ...     heads.append(keras.layers.Dense(2)(features))
        ...     model = method.model(inputs, heads)
        ...     model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        ...     method.before_task(model, x)
        ...     _ = model.fit(x, y + 2 * task, verbose=0)
        ...     method.after_task(model, x, y + 2 * task)
        >>> method.encoders.kernels.shape  # two encoders of three codes each
        (6, 6)

    Args:
        strength: λ ≥ 0, the weight of what is held beside the task's loss.
        penalty: Unused.
    """

    measures_examples: ClassVar[bool] = True
    needs_one_device: ClassVar[str | None] = (
        "learns an autoencoder after each task, in a `fit` of Keras that is not divided"
    )

    def __init__(self, strength: float | str | None = None, penalty: str = "in_loss"):
        super().__init__(strength, penalty)
        self.encoders = no_encoders()

    def _made_model(self, inputs, outputs, name):
        return EncoderModel(inputs, outputs, name, learned=self.learned, encoders=self.encoders)

    def restart(self, strength: float | str) -> None:
        """Forget every task and take another λ."""
        super().restart(strength)
        self.encoders.clear()

    def after_task(
        self,
        model: keras.Model,
        x: Any,
        y: Any = None,
        *,
        max_examples: int | None = None,
        on_progress: Callable | None = None,
    ) -> None:
        """Learn the encoder of the task from its examples, with their labels."""
        model.learn_encoder(x, y, max_examples, seed=self.learned.tasks)
        super().after_task(model, x, y)

    def state(self) -> dict[str, np.ndarray]:
        """Return what `save` writes."""
        encoders = {"kernels": self.encoders.kernels, "biases": self.encoders.biases}
        return super().state() | encoders

    def restore(self, arrays: dict[str, np.ndarray], tasks: int) -> None:
        """Take over a `state`; arguments and errors as in `lwf`."""
        kernels, biases = arrays["kernels"], arrays["biases"]
        super().restore(arrays, tasks)
        self.encoders.kernels, self.encoders.biases = kernels, biases
