"""What follows the epochs of a run, and interrupts it; used by tests of runs that go on."""

import keras

from keras_mas.training.listening import Listener


class Follower(Listener):
    """Notes the epochs that are learned, and interrupts the run when one of them begins or ends."""

    def __init__(self, interrupts=None):
        self.interrupts = interrupts
        self.epochs, self.resumed, self.task = [], [], 0
        self.callbacks = (keras.callbacks.LambdaCallback(on_epoch_begin=self.begun),)

    def task_started(self, number, task, epochs):
        self.task = number

    def task_resumed(self, history, evaluations):
        self.resumed.append((self.task, len(history["loss"]), len(evaluations)))

    def importance_measured(self, examples, total):
        if self.interrupts == (self.task, "importance"):
            raise KeyboardInterrupt

    def begun(self, epoch, logs):
        if self.interrupts == (self.task, epoch + 1):
            raise KeyboardInterrupt
        self.epochs.append((self.task, epoch + 1))
