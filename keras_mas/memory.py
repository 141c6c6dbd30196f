"""SynapticMemory: what was learned, by weight path, and how strongly it is held."""

import dataclasses
import numbers
import weakref

import keras
import numpy as np
import tensorflow as tf

from .arrays import load_arrays, save_arrays
from .importance import ImportanceSums, compute_importance
from .regularizer import MASRegularizer, drawn_to_anchor, drift_penalty
from .stability import warn_if_unstable
from .weights import trainable_weights

# Keys of a saved memory: the kind of array, then the path of the weight.
_IMPORTANCE, _ANCHOR = "importance/", "anchor/"


@dataclasses.dataclass
class Synapses:
    """What is kept of one weight: Ω and θ*, variables of its shape, and the weight itself."""

    importance: keras.Variable
    anchor: keras.Variable
    weight: keras.Variable | None = None  # None: loaded, and not yet met in a model

    @classmethod
    def of(cls, importance, anchor):
        """Return synapses of given Ω and θ*, arrays of the same shape."""
        dtype = "float64" if anchor.dtype == "float64" else "float32"
        return cls(
            keras.Variable(importance, trainable=False, dtype=dtype, name="importance"),
            keras.Variable(anchor, trainable=False, dtype=dtype, name="anchor"),
        )

    @classmethod
    def blank(cls, weight):
        """Return synapses of a weight of which nothing is known yet: Ω = 0, θ* = θ."""
        anchor = weight.numpy()
        return cls.of(np.zeros_like(anchor), anchor)


class SynapticMemory:
    """Ω, θ* and λ of a model's weights, and the penalty λ Σ Ω (θ − θ*)² that protects them.

    For any Keras model and its stock `train_step`:

        memory = SynapticMemory(strength=1.0)
        memory.protect(model)
        model.fit(a, ...)
        memory.consolidate(model, inputs_of_a)
        model.fit(b, ...)

    λ, Ω and θ* live in variables outside the model, kept by weight path: they are not exported with
    it, changing them traces nothing again, and they can be saved and met again in another process.

    Args:
        strength: λ ≥ 0, the weight of the penalty beside the loss. 0 is plain fine-tuning.

    Raises:
        ValueError: If `strength` is negative or not finite.
    """

    def __init__(self, strength=1.0):
        self._strength = keras.Variable(
            _checked_strength(strength), trainable=False, dtype="float32", name="strength"
        )
        self._synapses = {}
        self._felt_by = weakref.WeakSet()  # models whose training step has the penalty in it

    @property
    def strength(self):
        """λ, a float. Setting it acts in the next training step."""
        return float(self._strength.numpy())

    @strength.setter
    def strength(self, value):
        self._strength.assign(_checked_strength(value))

    @property
    def importance(self):
        """Ω so far, summed over tasks: dict from weight path to array."""
        return {path: kept.importance.numpy() for path, kept in self._synapses.items()}

    @property
    def anchor(self):
        """θ*, the weights when the last task ended: dict from weight path to array."""
        return {path: kept.anchor.numpy() for path, kept in self._synapses.items()}

    def protect(self, model, *, strict=True):
        """Hold every trainable weight of a model from the next `fit` on.

        Call it before the first `fit` of every model that the weights are in, before or after
        `compile`, and again for a model that has gained weights or unfrozen some. Until the first
        `consolidate` Ω is 0, and so is the penalty. A regularizer that a weight already has stays
        active beside the penalty.

        Args:
            model: Built `keras.Model`; or a layer or inner model (a trunk) of the models that will
                be fitted: weights outside it (heads) stay free.
            strict: Whether every weight of a loaded memory must be in the model. False keeps those
                that are not aside.

        Returns:
            The memory itself.

        Raises:
            ValueError: If the model is not built, has no trainable weights, is protected by another
                memory, or does not fit a loaded memory; then nothing is changed.
        """
        self._check_free(model)
        for weight in self.attend(model, strict=strict):
            kept = self._synapses[weight.path]
            weight.regularizer = MASRegularizer(
                kept.importance, kept.anchor, self._strength, also=weight.regularizer
            )
        self._have_it_felt(model)
        return self

    def release(self, model):
        """Let go of a model's weights: no penalty from the next trace on; Ω and θ* are kept.

        Args:
            model: The model, or trunk, that `protect` was called with.
        """
        self._felt_by.discard(model)
        for kept in self._held(model).values():
            if self._is_own(kept.weight.regularizer):
                kept.weight.regularizer = kept.weight.regularizer.also
            kept.weight = None
        _trace_again(model)

    def attend(self, model, *, strict=True):
        """Keep Ω and θ* for the trainable weights of a model, adding no penalty to it.

        `protect` and `MASModel` build on it; arguments and errors are those of `protect`.

        Returns:
            List of the weights that were not attended to before.
        """
        weights = trainable_weights(model)
        self._check_fit(model, weights, strict)
        new = [weight for weight in weights.values() if self.kept(weight) is None]
        for weight in new:
            if weight.path not in self._synapses:
                self._synapses[weight.path] = Synapses.blank(weight)
            self._synapses[weight.path].weight = weight
        return new

    def consolidate(self, model, inputs, **options):
        """Make what the model knows now the thing to protect: Ω ← Ω + Ω_now, θ* ← θ.

        Args:
            model: The model that was just fitted; its output is the function to keep.
            inputs: Unlabelled inputs, as for `compute_importance`; or `ImportanceSums` of this
                model, measured elsewhere.
            **options: As for `compute_importance`: `batch_size`, `max_examples`, `output`, ….

        Raises:
            ValueError: If nothing is protected, if sums are of another model, or as
                `compute_importance`; then the memory is left as it was.
        """
        held = self._held(model)
        if not held:
            raise ValueError(
                f"Expected a protected model. Received: '{model.name}', none of whose weights this "
                "memory protects. Call `memory.protect(model)` before the first `fit`."
            )
        importance = self._measured(model, inputs, options)
        for path, kept in held.items():
            if path in importance:  # not frozen since
                kept.importance.assign_add(importance[path])
            kept.anchor.assign(kept.weight.value)
        self._have_it_felt(model)
        if self._is_in_loss(model):
            self.warn_if_unstable(model)

    def kept(self, weight):
        """Return the `Synapses` of a weight that is attended to, or None."""
        kept = self._synapses.get(weight.path)
        return kept if kept is not None and kept.weight is weight else None

    def penalty(self, model):
        """Return λ Σ Ω (θ − θ*)² over a model's trainable weights, a scalar tensor."""
        held = filter(None, map(self.kept, model.trainable_weights))
        terms = [
            drift_penalty(kept.weight, kept.importance, kept.anchor, self._strength)
            for kept in held
        ]
        return tf.add_n([tf.cast(term, keras.config.floatx()) for term in terms or [0.0]])

    def drawn(self, weight, rate):
        """Return one weight drawn to its anchor at a learning rate, or None if it is free."""
        kept = self.kept(weight)
        if kept is None:
            return None
        return drawn_to_anchor(weight, kept.importance, kept.anchor, self._strength, rate)

    def warn_if_unstable(self, model):
        """Warn if the optimizer of a compiled model cannot follow the penalty in its loss."""
        if getattr(model, "optimizer", None) is not None:
            held = {path: kept.importance.numpy() for path, kept in self._held(model).items()}
            warn_if_unstable(held, self.strength, model.optimizer)

    def save(self, path):
        """Write λ, Ω and θ* to one `.npz` file; a crash leaves the old file or the new one.

        Args:
            path: File to write, ending in `.npz`.

        Raises:
            ValueError: If the path does not end in `.npz`.
        """
        save_arrays(path, self.state())

    @classmethod
    def load(cls, path):
        """Read a memory that `save` wrote; then `protect` the model with the same layers.

        Args:
            path: File to read.

        Returns:
            A `SynapticMemory`.

        Raises:
            ValueError: If the file is not a saved memory.
            FileNotFoundError: If there is no such file.
        """
        memory = cls()
        load_arrays(path, memory.restore, "a memory written by `SynapticMemory.save`")
        return memory

    def state(self):
        """Return λ, Ω and θ* as a flat dict of arrays, for `restore`."""
        arrays = {"strength": self._strength.numpy()}
        for path, kept in self._synapses.items():
            arrays[_IMPORTANCE + path] = kept.importance.numpy()
            arrays[_ANCHOR + path] = kept.anchor.numpy()
        return arrays

    def restore(self, arrays):
        """Take over a `state`, in place: nothing is traced again.

        Args:
            arrays: Dict as `state` returns it.

        Raises:
            ValueError: If arrays are missing, of other shapes than the weights attended to, not
                finite, or an importance is negative; then nothing is changed.
        """
        strength, loaded = _parsed(arrays)
        for path, (importance, _) in loaded.items():
            if path in self._synapses:
                _check_shape(path, importance.shape, self._synapses[path].importance.shape)
        self.strength = strength
        for path, (importance, anchor) in loaded.items():
            if path not in self._synapses:
                self._synapses[path] = Synapses.of(importance, anchor)
            self._synapses[path].importance.assign(importance)
            self._synapses[path].anchor.assign(anchor)

    def _measured(self, model, inputs, options):
        """Return Ω_now by path of the trainable weights that are held."""
        if not isinstance(inputs, ImportanceSums):
            return compute_importance(model, inputs, **options)
        if options:
            raise ValueError(
                f"Expected sums alone, which were measured with options of their own. Received: "
                f"{', '.join(options)} beside them. Pass these to `measure_sums`."
            )
        importance, held = inputs.mean(), self._held(model)
        for path in trainable_weights(model).keys() & held.keys():
            if path not in importance:
                raise ValueError(
                    f"Expected sums over the weights of '{model.name}'. Received: none for "
                    f"'{path}'. Measure the sums with this model, its weights as they are now."
                )
            _check_shape(path, importance[path].shape, held[path].importance.shape)
        return importance

    def _held(self, model):
        held = {weight.path: self.kept(weight) for weight in model.weights}
        return {path: kept for path, kept in held.items() if kept is not None}

    def _is_own(self, regularizer):
        return isinstance(regularizer, MASRegularizer) and regularizer.strength is self._strength

    def _check_free(self, model):
        for weight in model.weights:
            is_foreign = isinstance(weight.regularizer, MASRegularizer)
            if is_foreign and not self._is_own(weight.regularizer):
                raise ValueError(
                    "Expected weights that no other memory protects. Received: "
                    f"'{weight.path}' of '{model.name}', held by another `SynapticMemory`. Use "
                    "that one, or call its `release(model)` first."
                )
        if isinstance(getattr(model, "memory", None), SynapticMemory):
            raise ValueError(
                f"Expected a model without a memory of its own. Received: '{model.name}', a "
                f"{type(model).__name__} that protects itself. Call `model.consolidate(inputs)`."
            )

    def _check_fit(self, model, weights, strict):
        for path, weight in weights.items():
            if path in self._synapses:
                _check_shape(path, weight.shape, self._synapses[path].importance.shape)
        present = {weight.path for weight in model.weights}  # frozen ones too
        unmet = [
            path
            for path, kept in self._synapses.items()
            if kept.weight is None and path not in present
        ]
        if strict and unmet:
            raise ValueError(
                f"Expected a model with the {len(unmet)} remembered weights "
                f"'{unmet[0]}', … Received: '{model.name}' with '{next(iter(weights))}', … "
                "Build the model with layers of the same names, or pass `strict=False` to keep "
                "only the weights that match."
            )

    def _have_it_felt(self, model):
        """Have a model trace its steps again, once: those traced before would lack the penalty.

        A model around a protected trunk is not known before it is consolidated.
        """
        if self._is_in_loss(model) and model not in self._felt_by:
            self._felt_by.add(model)
            _trace_again(model)

    def _is_in_loss(self, model):
        """Return whether regularizers carry the penalty; a `MASModel` has a step of its own."""
        return any(self._is_own(kept.weight.regularizer) for kept in self._held(model).values())


def _trace_again(model):
    if isinstance(model, keras.Model):
        model.train_function = None
        model.test_function = None


def _checked_strength(value):
    if not (isinstance(value, numbers.Real) and np.isfinite(value) and value >= 0):
        raise ValueError(f"Expected a strength λ ≥ 0. Received: {value!r}. 0 is plain fine-tuning.")
    return value


def _check_shape(path, expected, received):
    if tuple(expected) != tuple(received):
        raise ValueError(
            f"Expected a memory of shape {tuple(expected)} for weight '{path}'. Received: shape "
            f"{tuple(received)}. The memory was made with another architecture; build the model "
            "with the same layers."
        )


def _parsed(arrays):
    """Check a `state` and return λ and {path: (Ω, θ*)}."""
    paths = [key.removeprefix(_IMPORTANCE) for key in arrays if key.startswith(_IMPORTANCE)]
    expected = {"strength", *(kind + path for kind in (_IMPORTANCE, _ANCHOR) for path in paths)}
    if set(arrays) != expected:
        raise ValueError(
            f"Expected a strength, and an importance and an anchor per weight. Received: "
            f"{sorted(set(arrays) ^ expected)[:3]} too many or missing. Take the whole file that "
            "`save` wrote."
        )
    loaded = {path: (arrays[_IMPORTANCE + path], arrays[_ANCHOR + path]) for path in paths}
    for path, (importance, anchor) in loaded.items():
        _check_shape(path, anchor.shape, importance.shape)
        if not np.all(np.isfinite(anchor) & np.isfinite(importance) & (importance >= 0)):
            raise ValueError(
                f"Expected finite anchors, and finite importance ≥ 0. Received: others in '{path}'."
                " The file is damaged; take an older one."
            )
    return _checked_strength(float(arrays["strength"])), loaded
