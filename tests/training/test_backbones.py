import numpy as np
import pytest

from keras_mas.errors import UsageError
from keras_mas.training.backbones import build_trunk


def test_the_trunk_takes_raw_inputs():
    # One unit, weights 1: the sum of the inputs after scale · x + offset.
    trunk = build_trunk("mlp-1", (2, 2, 1), rescale=(0.5, 1.0))
    trunk.set_weights([np.ones([4, 1]), np.zeros([1])])
    pixels = np.array([[[[2], [4]], [[6], [8]]]], "uint8")
    assert trunk(pixels).numpy() == [[0.5 * 20 + 4]]


def test_widths_are_in_the_name():
    trunk = build_trunk("mlp-5-3", (4,), (1.0, 0.0))
    assert [weight.shape for weight in trunk.weights] == [(4, 5), (5,), (5, 3), (3,)]
    trunk = build_trunk("cnn-4-8", (9, 9, 3), (1.0, 0.0))
    assert trunk.output_shape == (None, 8)
    assert trunk.get_layer("pooling-2").output.shape == (None, 3, 3, 8)


@pytest.mark.parametrize(
    "name",
    ["resnet", "mlp", "mlp-0", "mlp--2", "mlp-x", "", "cnn-3.5", "mlp-²", "mlp-٣", "mlp-1000000"]
    + ["mlp-" + "9" * 5000],  # more digits than `int` reads
    ids=lambda name: name[:12],
)
def test_an_unknown_backbone_is_named(name):
    with pytest.raises(UsageError, match=f"the kind mlp or cnn.*Received: '{name}'"):
        build_trunk(name, (4,), (1.0, 0.0))


@pytest.mark.parametrize(
    ("name", "shape", "weights"),
    # Kernels: 4 · 900,000 + 900,000²; 9 · (3 · 100,000 + 100,000²).
    [
        ("mlp-900000-900000", (4,), "810,003,600,000"),
        ("cnn-100000-100000", (8, 8, 3), "90,002,700,000"),
    ],
)
def test_a_backbone_that_does_not_fit_into_memory_is_refused(name, shape, weights):
    with pytest.raises(UsageError, match=f"{weights} weights of backbone '{name}'.* GiB needed"):
        build_trunk(name, shape, (1.0, 0.0))


def test_convolutions_need_images():
    with pytest.raises(UsageError, match=r"Expected images.*shape \[4\].*mlp-256-256"):
        build_trunk("cnn-8", (4,), (1.0, 0.0))
