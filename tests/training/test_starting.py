import dataclasses
import io
import shutil
import zipfile

import keras
import numpy as np
import pytest
from PIL import Image

from keras_mas.errors import UsageError
from keras_mas.training.backbones import saved
from keras_mas.training.cli import main
from keras_mas.training.finished_run import FinishedRun
from keras_mas.training.learner import Learner
from keras_mas.training.run_directory import read_json, read_result
from keras_mas.training.saved_tasks import saved_heads, saved_importance
from keras_mas.training.starting import Start, own_task
from keras_mas.training.tasks import LearnedTask, Split, Task, TaskStream
from keras_mas.training.tasks.images import ImageSize, read_image, resized


def blobs(seed, count, first, size=4):
    """Two classes around opposite points; every task has points of its own."""
    rng = np.random.default_rng(seed)
    centre = np.random.default_rng(first).normal(size=size)
    labels = np.arange(count) % 2
    inputs = rng.normal(0, 0.4, [count, size]) + np.where(labels, 1, -1)[:, None] * centre
    return inputs.astype("float32"), labels


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A trained network, inputs that it knows, and a task to add."""
    folder = tmp_path_factory.mktemp("start")
    arrays = {}
    for role, seed in [("train", 1), ("test", 2)]:
        arrays[f"x_{role}"], arrays[f"y_{role}"] = blobs(seed, 64, first=7)
    np.savez(folder / "known.npz", **arrays)
    np.savez(folder / "unlabelled.npz", x=arrays["x_train"])
    for role, seed in [("train", 3), ("test", 4)]:
        arrays[f"x_{role}"], arrays[f"y_{role}"] = blobs(seed, 64, first=8)
    np.savez(folder / "new.npz", **arrays)
    for name in ("known", "new"):
        text = f'name = "{name}"\n[[task]]\nname = "{name}"\nnpz = "{name}.npz"\n'
        (folder / f"{name}.toml").write_text(text)
    keras.utils.set_random_seed(0)
    inputs = keras.Input([4])
    x = keras.layers.Dense(12, "relu", name="mine")(inputs)
    x = keras.layers.Dropout(0.1)(x)
    model = keras.Model(inputs, keras.layers.Dense(2, "softmax", name="out")(x))
    model.compile(keras.optimizers.Adam(0.05), "sparse_categorical_crossentropy")
    with np.load(folder / "known.npz") as known:
        model.fit(known["x_train"], known["y_train"], epochs=10, verbose=0)
    model.save(folder / "own.keras")
    return folder


QUICK = ["--epochs", "2", "--learning-rate", "0.05"]


def test_tasks_are_added_to_a_network_of_one_s_own(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["train", folder / "new.toml", "--start-from", folder / "own.keras", *QUICK]
    words += ["--unlabelled", folder / "unlabelled.npz", "--head", "known=no,yes"]
    words += ["--old-data", folder / "known.toml"]
    assert main(list(map(str, words))) == 0, capsys.readouterr().err
    [start, found] = sorted((tmp_path / "runs").iterdir(), key=lambda path: len(path.name))
    # The head answers as the network did, which never saw this library: its logits' largest.
    own = keras.models.load_model(folder / "own.keras")
    x = np.load(folder / "known.npz")["x_test"]
    models, classes = saved_heads(start, 1)
    logits = models["known"].predict(x, verbose=0)
    np.testing.assert_allclose(
        keras.ops.softmax(logits), own.predict(x, verbose=0), rtol=1e-5, atol=1e-6
    )
    assert classes == {"known": ("no", "yes")}
    # Ω of the logits, by hand: F = h W + b, so that ∂‖F‖²/∂b₁ = Σ_k 2 F_k W_jk 1[h_j > 0].
    hidden = own.get_layer("mine")
    unlabelled = np.load(folder / "unlabelled.npz")["x"]
    h = np.maximum(unlabelled @ hidden.get_weights()[0] + hidden.get_weights()[1], 0)
    kernel, bias = own.get_layer("out").get_weights()
    by_hand = np.abs(2 * ((h @ kernel + bias) @ kernel.T) * (h > 0)).mean(0)
    importance = saved_importance(start / "1")
    [name] = [name for name in importance if name.endswith("mine/bias")]
    np.testing.assert_allclose(importance[name], by_hand, rtol=1e-4, atol=1e-6)
    result = read_result(found)
    assert result["tasks"] == ["known", "new"]
    assert result["evaluated_tasks"] == ["known", "new"]
    assert result["accuracy_matrix"][0][0] == np.mean(
        own.predict(x, verbose=0).argmax(-1) == np.load(folder / "known.npz")["y_test"]
    )
    # It is continued from its folder alone.
    assert (found / "start.keras").read_bytes() == (folder / "own.keras").read_bytes()


@pytest.mark.slow
def test_what_starts_from_a_network_is_exported(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["train", folder / "new.toml", "--start-from", folder / "own.keras", *QUICK]
    words += ["--unlabelled", folder / "unlabelled.npz", "--output", "run", "--export", "models"]
    assert main(list(map(str, words))) == 0, capsys.readouterr().err
    said = "'start' was not measured, since there are no examples of it"
    assert said in " ".join(capsys.readouterr().err.split())
    assert main(["export", "run", "--to", "again"]) == 0, capsys.readouterr().err
    manifests = [
        read_json(tmp_path / base / "2/assets.extra/manifest.json")["run"]
        for base in ("models", "again")
    ]
    assert manifests[0] == manifests[1]
    assert manifests[0]["accuracy_matrix"][1][0] is None
    assert (
        main(["export", "run", "--to", "known", "--examples-of", str(folder / "known.toml")]) == 2
    )
    assert "of tasks that the run has learned, 'start', 'new'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_network_of_keras_applications(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    keras.utils.set_random_seed(0)
    network = keras.applications.MobileNetV2((32, 32, 3), alpha=0.35, weights=None, classes=3)
    network.save("mobile.keras")
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, [8, 32, 32, 3]).astype("float32")
    y = np.arange(8) % 2
    np.savez("a.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    (tmp_path / "a.toml").write_text('name = "a"\n[[task]]\nname = "a"\nnpz = "a.npz"\n')
    words = ["train", "a.toml", "--start-from", "mobile.keras", "--unlabelled", "a.npz"]
    words += ["--epochs", "1", "--max-examples", "4"]
    assert main(words) == 0, capsys.readouterr().err
    [start, found] = sorted((tmp_path / "runs").iterdir(), key=lambda path: len(path.name))
    logits = saved_heads(start, 1)[0]["start"].predict(x, verbose=0)
    np.testing.assert_allclose(
        keras.ops.softmax(logits), network.predict(x, verbose=0), rtol=1e-4, atol=1e-5
    )
    assert read_json(found / "arguments.json")["tasks"] == ["start", "a"]


@keras.saving.register_keras_serializable("mine")
class Doubled(keras.layers.Layer):
    def call(self, inputs):
        return 2 * inputs


def test_how_a_network_of_one_s_own_had_its_images_resized_is_unknown():
    images = Split(np.zeros([2, 8, 8, 3], np.uint8), np.arange(2))
    known = LearnedTask.without_examples("known", ("no", "yes"), (8, 8, 3), images.dtype)
    stream = TaskStream("known", "task", (known,), rescale=(1.0, 0.0))  # as `own_task` makes it
    assert stream.resize_of_files is None  # so that any task can be added
    task = Task("new", ("a", "b"), *[images] * 3)
    added = dataclasses.replace(stream, tasks=(*stream.tasks, task))
    assert added.resize_of_files == "none"
    assert dataclasses.replace(added, resize="crop").resize_of_files == "crop"


class OfAScript(keras.Model):
    """As a script defines it, in `__main__`."""

    __module__ = "__main__"

    def call(self, x):
        return x


def test_a_class_of_a_script_is_named(tmp_path):
    model = OfAScript()
    model(np.zeros([1, 4]))
    model.save(tmp_path / "own.keras")
    with pytest.raises(UsageError, match=r"one with a OfAScript of '__main__', .* from a script"):
        saved.read_network(tmp_path / "own.keras")


def test_what_is_no_such_network_is_refused(folder, tmp_path):
    inputs = keras.Input([4])

    def refusal(outputs, name="x.keras"):
        keras.Model(inputs, outputs).save(tmp_path / name)
        with pytest.raises(UsageError) as error:
            saved.read_network(tmp_path / name)
        return str(error.value)

    dense = keras.layers.Dense
    assert "Lambda" in refusal(dense(2)(keras.layers.Lambda(lambda x: 2 * x)(inputs)))
    assert "Doubled of 'mine'" in refusal(dense(2)(Doubled()(inputs)))
    assert "ends in a Dropout" in refusal(keras.layers.Dropout(0.5)(inputs))
    assert "has 1 units" in refusal(dense(1)(inputs))
    assert "several inputs or outputs" in refusal([dense(2)(inputs), dense(2)(inputs)])
    inside = keras.layers.TimeDistributed(adapted(keras.layers.Normalization()))
    steps = keras.layers.Reshape((1, 4))(inputs)
    wrapped = keras.layers.Flatten()(inside(steps))
    assert "Received: 'normalization" in refusal(dense(2)(wrapped))
    with pytest.warns(UserWarning, match="not yet been built"):
        keras.Sequential([dense(2)]).save(tmp_path / "unbuilt.keras")
    with pytest.raises(UsageError, match="a Sequential without the shape of its inputs"):
        saved.read_network(tmp_path / "unbuilt.keras")
    (tmp_path / "text.keras").write_text("text")
    for name, received in [("text.keras", "no file that `model.save` wrote"), ("no", "no file in")]:
        with pytest.raises(UsageError, match=received):
            saved.read_network(tmp_path / name)


def test_a_linear_network_has_nothing_to_share(tmp_path):
    inputs = keras.Input([2, 2])
    flat = keras.layers.Flatten()(inputs)
    keras.Model(inputs, keras.layers.Dense(3)(flat)).save(tmp_path / "linear.keras")
    unlabelled = Split(np.zeros([2, 2, 2], np.float32), np.zeros(2, np.int64))
    with pytest.raises(UsageError, match="before the last layer .*linear.keras.*a linear network"):
        own_task(Start(tmp_path / "linear.keras", unlabelled), "start", ())


def adapted(layer, rows=12):
    layer.adapt(np.arange(rows * 4).reshape(rows, 4) ** 2 % 7)
    return layer


def numbers_of(layer, shape, dtype):
    """A saved network that standardizes or looks up its inputs, and such inputs."""
    inputs = keras.Input(shape, dtype=dtype)
    prepared = keras.layers.Flatten()(layer(inputs))
    hidden = keras.layers.Dense(5, activation="relu")(keras.ops.cast(prepared, "float32"))
    return keras.Model(inputs, keras.layers.Dense(2)(hidden))


def by_first_axis():
    layer = keras.layers.Normalization(axis=1)
    layer.adapt(np.arange(24.0).reshape(2, 4, 3) ** 1.5)
    return layer


@pytest.mark.parametrize(
    ("layer", "shape", "dtype"),
    [
        (lambda: keras.layers.Normalization(mean=1.0, variance=4.0), (4,), "float32"),
        (lambda: adapted(keras.layers.Normalization()), (4,), "float32"),
        (lambda: adapted(keras.layers.Normalization(axis=None)), (4,), "float32"),
        (lambda: adapted(keras.layers.Normalization(invert=True)), (4,), "float32"),
        (by_first_axis, (4, 3), "float32"),
        (lambda: keras.Sequential([adapted(keras.layers.Normalization())]), (4,), "float32"),
        (lambda: adapted(keras.layers.IntegerLookup()), (4,), "int64"),
        (lambda: adapted(keras.layers.Discretization(num_bins=3)), (4,), "float32"),
    ],
    ids=["given", "adapted", "scalar", "inverse", "axis 1", "nested", "lookup", "discretized"],
)
def test_what_adapt_found_is_part_of_the_network(tmp_path, layer, shape, dtype):
    network = numbers_of(layer(), shape, dtype)
    network.save(path := tmp_path / "own.keras")
    given = np.arange(2 * np.prod(shape)).reshape(2, *shape).astype(dtype)
    np.testing.assert_array_equal(saved.read_network(path)(given), network(given))
    # In what a run saves, too: the copy of a copy.
    inputs = keras.Input(shape, dtype=dtype)
    trunk = keras.Model(inputs, saved.find(str(path)).features(inputs))
    trunk.save(tmp_path / "trunk.keras")
    again = keras.models.load_model(tmp_path / "trunk.keras")
    expected = keras.Model(network.input, network.layers[-1].input)(given)
    np.testing.assert_array_equal(again(given), expected)


def write_huge(path):
    """An archive of 100 bytes that say that they are 36 TiB."""
    header = io.BytesIO()
    about = {"descr": "<f4", "fortran_order": False, "shape": (10**13,)}
    np.lib.format.write_array_header_1_0(header, about)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", header.getvalue() + bytes(100))


def test_wrong_usage_is_one_sentence(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    own, new, data = folder / "own.keras", folder / "new.toml", folder / "unlabelled.npz"
    write_huge(tmp_path / "huge.npz")
    (tmp_path / "text.npz").write_text("no archive")
    start = ["--start-from", own]
    for words, sentence in [
        (start, "Expected `--unlabelled DATA`"),
        (["--unlabelled", data], "Expected `--start-from FILE` beside `--unlabelled`"),
        ([*start, "--unlabelled", data, "--method", "ewc"], "out of mas, local_mas, l2"),
        ([*start, "--unlabelled", data, "--strength", "auto"], "Expected a number as strength"),
        ([*start, "--unlabelled", data, "--head", "a=x,y,z"], "names of the 2 classes"),
        ([*start, "--unlabelled", data, "--head", "a=x,x"], "Received: 'x', 'x'. Rename those"),
        ([*start, "--unlabelled", data, "--backbone", "mlp-4"], "Received: --backbone"),
        ([*start, "--unlabelled", data, "--scenario", "class"], "Received: --scenario class."),
        ([*start, "--unlabelled", data, "--continue", "run", "--add", "x"], "Received: both"),
        ([*start, "--unlabelled", "no.npz"], "Expected an .npz file with inputs"),
        ([*start, "--unlabelled", "text.npz"], "Received: 'text.npz' (it is no archive of arrays"),
        ([*start, "--unlabelled", "huge.npz"], "file with inputs as an array `x`. Received: 'huge"),
    ]:
        given = words if "--continue" in words else [new, *words]
        assert main(["train", *map(str, given)]) == 2, words
        error = capsys.readouterr().err
        assert sentence in error, error
        assert error.count("\n") == 1


@pytest.fixture(scope="module")
def seeing(tmp_path_factory):
    """A network of images, images that it knows, and a task of images to add."""
    folder = tmp_path_factory.mktemp("seeing")
    rng = np.random.default_rng(0)
    for where, size in [("known/deep", 12), ("new/train/a", 8), ("new/train/b", 10)]:
        (folder / where).mkdir(parents=True)
        for k in range(4):
            pixels = rng.integers(0, 256, [size, size + k, 3], "uint8")
            Image.fromarray(pixels).save(folder / where / f"{k}.png")
    shutil.copytree(folder / "new/train", folder / "new/test")
    for k, file in enumerate(sorted((folder / "new/test").rglob("*.png"))):
        Image.fromarray(np.full([9, 9, 3], k, "uint8")).save(file)
    text = 'name = "new"\nimage_size = 8\n[[task]]\nname = "new"\nfolder = "new"\n'
    (folder / "new.toml").write_text(text)
    keras.utils.set_random_seed(0)
    inputs = keras.Input([8, 8, 3])
    x = keras.layers.Conv2D(4, 3, activation="relu", name="seen")(inputs / 255)
    features = keras.layers.GlobalAveragePooling2D(name="pooled")(x)
    outputs = keras.layers.Dense(2, name="out")(features)
    keras.Model(inputs, outputs).save(folder / "own.keras")
    return folder


def test_importance_of_features_by_hand(seeing, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Learner, "after_task", lambda *_, **__: None)  # which would add its own
    words = ["train", seeing / "new.toml", "--start-from", seeing / "own.keras", "--epochs", "1"]
    words += ["--features", "pooled", "--unlabelled", seeing / "known", "--output", "run"]
    assert main(list(map(str, words))) == 0, capsys.readouterr().err
    # F_c is the mean over the places p of ReLU(z_pc), so that ∂‖F‖²/∂b_c = 2 F_c · mean(z_pc > 0).
    own = keras.models.load_model(seeing / "own.keras")
    seen = keras.Model(own.input, own.get_layer("seen").output)
    files = (seeing / "known").rglob("*.png")
    known = np.stack([resized("", read_image(file), ImageSize(8)) for file in files])
    z = seen.predict(known.astype("float32"), verbose=0).reshape(4, -1, 4)
    by_hand = (2 * z.mean(1) * (z > 0).mean(1)).mean(0)
    importance = saved_importance(tmp_path / "run" / "1")
    [name] = [name for name in importance if name.endswith("seen/bias")]
    np.testing.assert_allclose(importance[name], by_hand, rtol=1e-4, atol=1e-7)


@pytest.mark.slow
def test_the_features_of_a_network_are_held_by_images_in_a_folder(
    seeing, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.keras").write_bytes((seeing / "own.keras").read_bytes())
    words = ["train", seeing / "new.toml", "--start-from", "own.keras", "--features", "pooled"]
    words += ["--unlabelled", seeing / "known", "--epochs", "1", "--learning-rate", "1e-9"]
    words = list(map(str, words))
    assert main([*words, "--output", "run"]) == 0, capsys.readouterr().err
    assert "up to 'pooled' is held; its own classes are not" in capsys.readouterr().err
    assert read_result(tmp_path / "run")["tasks"] == ["new"]
    assert main([*words, "--output", "run"]) == 0, capsys.readouterr().err  # a memory of one task
    (tmp_path / "own.keras").unlink()
    recipe = FinishedRun.read(tmp_path / "run").recorded_recipe
    assert recipe["backbone"] == f"{tmp_path}/run/start.keras/pooled"


def test_what_no_features_can_be_taken_of_is_refused(seeing, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "none").mkdir()

    def refusal(*more, data=seeing / "known", own=seeing / "own.keras"):
        words = ["train", seeing / "new.toml", "--start-from", own, "--unlabelled", data, *more]
        assert main(list(map(str, words))) in (1, 2)
        error = capsys.readouterr().err
        assert error.count("\n") == 1, error
        return error

    able = "can be cut behind 'out', 'pooled'"
    assert "Did you mean 'pooled'? It can be cut behind" in refusal("--features", "poled")
    error = refusal("--features", "seen")
    assert "'seen' of" in error and "with [N, 6, 6, 4]" in error and able in error
    assert "no head beside `--features`" in refusal("--features", "pooled", "--head", "a=b,c")
    assert "Expected images. Received: none in 'none'" in refusal(data="none")
    inputs = keras.Input([4])
    keras.Model(inputs, keras.layers.Dense(2)(inputs)).save("flat.keras")
    assert "Expected a network of square RGB images" in refusal(own="flat.keras")
    keras.Model(inputs, keras.layers.Dense(2)(Doubled()(inputs))).save("mine.keras")
    assert "@keras.saving.register_keras_serializable()" in refusal(own="mine.keras")
    inputs = keras.Input([8, 8, 3])
    flat = keras.layers.Flatten(name="flat")(inputs)
    keras.Model(inputs, keras.layers.Dense(2)(flat)).save("flat.keras")
    error = refusal("--features", "flat", own="flat.keras")
    assert "without any to hold" in error
