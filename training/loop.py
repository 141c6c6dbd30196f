"""The training loop: many steps in one call of a function that is traced once."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_mas.binding import has_frozen_statistics
from keras_mas.finite import check_fit
from keras_mas.heads import AllHeads

from .devices import Devices
from .tasks import Split
from .tasks.pipeline import epoch_order

# A call of the compiled function takes so many batches: enough that a small network does not wait
# for Python, and few enough that progress is shown and Ctrl-C acts within an epoch.
STEPS_PER_CALL = 32

# Unless their inputs are larger: several calls' inputs are in memory at the same time.
_BYTES_PER_CALL = 2**25

# A call that counts right answers takes more examples than a batch, if their inputs are small.
_EVALUATED, _BYTES_EVALUATED = 1024, 2**22


class CompiledLoop:
    """Training and evaluation of a compiled model, traced once for data of any length.

    It does what `model.fit` does, step for step, with the model's own `train_step`; but `fit` makes
    an input pipeline for each call and enters Python for each step, which costs a small network
    more than the step itself.

    Args:
        model: Compiled and built model of one input and one output, logits `[N, classes]`.
        dtype: Type of the inputs that it will be given.
        devices: What every batch is divided among; the model was made within their scope.
    """

    def __init__(self, model: keras.Model, dtype: np.dtype, devices: Devices | None = None):
        self.model = model
        self.devices = Devices() if devices is None else devices
        self.batches = (
            tf.TensorSpec((None, *model.input_shape[1:]), dtype),
            tf.TensorSpec([None], tf.int64),
        )
        # By which batch normalizations have frozen statistics, since that is part of a trace.
        self._traced: dict[tuple[bool, ...], Any] = {}
        self.devices.follow_loss(model)
        self.devices.once(lambda: _make_variables_of_metrics(model))
        model.reset_metrics()
        self._count = self._total_of(_right)
        self._sum_losses = self._total_of(_losses)

    def fit(
        self,
        split: Split,
        *,
        epochs: int,
        batch_size: int,
        seed: int,
        augment: tuple[str, ...] = (),
        callbacks: Sequence[keras.callbacks.Callback] = (),
        verbose: int = 0,
        pause_every: int | None = None,
        initial_epoch: int = 0,
    ) -> dict[str, float]:
        """Train the model as `model.fit` does.

        Args:
            split: Examples; labels are the numbers of logits.
            epochs: Passes over the examples.
            batch_size: Examples per step; the last step of an epoch takes what remains.
            seed: Of the order of the examples, another one in each epoch.
            augment: As for `Split.dataset`.
            callbacks: As for `model.fit`. They are told of batches once per call, after up to
                `STEPS_PER_CALL` of them, as with `steps_per_execution`; with inputs on disk or
                augmented, once per batch.
            verbose: As for `model.fit`.
            pause_every: A call ends after every so many steps, counted over all epochs, so that
                callbacks are told of those steps; the steps are the same. None for no such pause.
            initial_epoch: How many of the epochs have been learned before.

        Returns:
            The metrics of the last epoch, by name; none if all had been learned before.

        Raises:
            FitDivergedError: If the loss or a weight becomes NaN or infinite.
        """
        model, steps = self.model, -(-len(split) // batch_size)
        following = keras.callbacks.CallbackList(
            list(callbacks),
            add_history=True,  # which tells how many steps there will be
            add_progbar=verbose != 0,
            model=model,
            verbose=verbose,
            epochs=epochs,
            steps=steps,
        )
        check_fit(model)
        with self.devices.scope():
            self._prepare()
        logs: dict[str, float] = {}
        model.stop_training = False
        epochs_of_data = _epochs(split, batch_size, seed, augment, pause_every, initial_epoch)
        following.on_train_begin()
        for epoch in range(initial_epoch, epochs):
            following.on_epoch_begin(epoch)
            with self.devices.training(model):
                logs = self._epoch(next(epochs_of_data), batch_size, following)
            following.on_epoch_end(epoch, logs)
            if model.stop_training:
                break
        if logs:
            # An optimizer that averages weights puts the averages in their place.
            model.optimizer.finalize_variable_values(model.trainable_weights)
        following.on_train_end(logs)
        return logs

    def accuracy(self, split: Split, batch_size: int) -> float:
        """Return the share of examples whose largest logit is that of their label.

        Args:
            split: Examples; labels are the numbers of logits.
            batch_size: Examples in a call, or more if they are small.
        """
        return self._mean(self._count, split, batch_size)

    def cross_entropy(self, split: Split, batch_size: int) -> float:
        """Return the mean cross-entropy of examples, in nats.

        Args:
            split: As for `accuracy`.
            batch_size: As for `accuracy`.
        """
        return self._mean(self._sum_losses, split, batch_size)

    def _mean(self, total, split, batch_size):
        """Return the mean over examples of what a compiled function adds up over some of them."""
        size = max(batch_size, min(_EVALUATED, _BYTES_EVALUATED // _bytes_of_one(split)))
        starts = range(0, len(split), size)
        labels = np.split(split.labels, starts[1:])
        totals = map(total, split.batches(size), labels)
        return sum(each.numpy().item() for each in totals) / len(split)

    def _prepare(self):
        """Check what `fit` checks when it begins, and trace anew if the model asks for it."""
        # A model whose steps have to be traced again, for another penalty, drops this function.
        has_changed = self.model.train_function is None
        self.model.make_train_function()
        if has_changed:
            self._traced.clear()
        frozen = tuple(map(has_frozen_statistics, self.model._flatten_layers()))
        if frozen not in self._traced:
            signature = (*self.batches, tf.TensorSpec([], tf.int32))
            self._traced[frozen] = tf.function(
                self._train_steps, autograph=False, input_signature=signature
            )
        self._train = self._traced[frozen]

    def _epoch(self, data, batch_size, callbacks):
        self.model.reset_metrics()
        logs: dict[str, float] = {}
        step = 0
        for inputs, labels in data:
            callbacks.on_train_batch_begin(step)
            logs = self._train(inputs, labels, batch_size)
            logs = {name: float(value) for name, value in logs.items()}
            step += -(-len(labels) // batch_size)
            callbacks.on_train_batch_end(step - 1, logs)
            if self.model.stop_training:
                break
        return logs

    def _train_steps(self, inputs, labels, batch_size):
        """Take a step with each batch of the examples, in order; return the metrics."""

        def step(start):
            end = start + batch_size  # a slice ends where the tensor does
            self.devices.train_step(self.model, inputs[start:end], labels[start:end])
            return (end,)

        examples = tf.shape(inputs)[0]
        tf.while_loop(lambda start: start < examples, step, (tf.constant(0),))
        return self.model.get_metrics_result()

    def _total_of(self, measure):
        """Return a compiled function that adds up a measure of logits and labels over examples."""

        def measured(inputs, labels):
            logits = self.model(inputs, training=False)
            if isinstance(self.model, AllHeads):
                logits = self.model.own_logits(logits, labels)
            return tf.reduce_sum(measure(logits, labels))

        def total(inputs, labels):
            return self.devices.total(measured, inputs, labels)

        return tf.function(total, autograph=False, input_signature=self.batches)


def _right(logits, labels):
    return tf.cast(tf.argmax(logits, axis=-1) == labels, tf.int64)


def _losses(logits, labels):
    logits = tf.cast(logits, tf.float32)
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)


def _make_variables_of_metrics(model):
    """Have the metrics make their variables now: a function that makes some is traced twice."""
    logits, labels = tf.zeros([1, *model.output_shape[1:]]), tf.zeros([1], tf.int64)
    model.compute_metrics(None, labels, logits)


def steps_per_call(split: Split, batch_size: int) -> int:
    """Return how many batches of a split one call of the compiled function takes."""
    return max(1, min(STEPS_PER_CALL, _BYTES_PER_CALL // (batch_size * _bytes_of_one(split))))


def _bytes_of_one(split):
    return max(1, split.dtype.itemsize * math.prod(split.input_shape))


def _epochs(split, batch_size, seed, augment, pause_every, first):
    """Yield the data of one epoch after the other: pairs of inputs and labels, for a call each."""
    if split.in_memory and not augment:  # a pipeline would only cost time
        steps = -(-len(split) // batch_size)
        per_call = steps_per_call(split, batch_size)
        for epoch in itertools.count(first):
            order = epoch_order(len(split), seed, epoch)
            ends = call_ends(epoch * steps, steps, per_call, pause_every)
            parts = np.split(order, [end * batch_size for end in ends])
            yield ((split.read(part), split.labels[part]) for part in parts)
    dataset = split.dataset(batch_size, shuffle_seed=seed, augment=augment, first_epoch=first)
    while True:
        yield dataset


def call_ends(done: int, steps: int, per_call: int, pause_every: int | None) -> list[int]:
    """Return after which steps of an epoch a call ends, the last step left out.

    Args:
        done: Steps of earlier epochs.
        steps: Steps of this one.
        per_call: Steps of a call, at most.
        pause_every: A call ends where the steps of all epochs are a multiple of it; None to ignore.

    Example:
        >>> call_ends(done=0, steps=10, per_call=4, pause_every=None)
        [4, 8]
        >>> call_ends(done=10, steps=10, per_call=4, pause_every=3)  # steps 12, 15 and 18 of all
        [2, 5, 8]
    """
    ends = [0]
    while ends[-1] < steps:
        until_pause = pause_every - (done + ends[-1]) % pause_every if pause_every else per_call
        ends.append(ends[-1] + min(per_call, until_pause))
    return ends[1:-1]
