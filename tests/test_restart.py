"""The monthly job: what one process has learned is protected in the next."""

import json
import subprocess
import sys
from pathlib import Path

import keras
import pytest
import restart

from keras_mas import SynapticMemory


def in_a_new_process(folder, cases):
    script = Path(restart.__file__)
    done = subprocess.run([sys.executable, script, folder, *cases], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("trunk", restart.TRUNKS)
def test_a_restart_changes_nothing(trunk, tmp_path):
    drifts = {}
    for way in restart.WAYS:
        folder = tmp_path / f"{trunk}-{way}"
        folder.mkdir()
        model, memory = restart.learn_a(trunk, way)
        restart.save(folder, model, memory, way)
        drifts[way] = restart.drift_after_b(model, memory)
    after = in_a_new_process(tmp_path, [f"{trunk}-{way}" for way in restart.WAYS])
    for way in restart.WAYS:
        drift, held = drifts[way]
        assert drift > 0
        assert after[f"{trunk}-{way}"] == [pytest.approx(drift, rel=1e-3), held], way


@pytest.mark.slow
@pytest.mark.parametrize("way", restart.WAYS)
def test_without_protection_the_drift_is_larger(way):
    held, _ = restart.drift_after_b(*restart.learn_a("functional", way))
    free, _ = restart.drift_after_b(*restart.learn_a("functional", way, strength=0.0))
    assert held < 0.9 * free


def test_what_a_shared_memory_left_free_stays_free(tmp_path):
    model, _ = restart.learn_a("functional", "shared trunk")
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.shares_memory
    assert loaded.memory.state_for(loaded.layers[-1].kernel) is None
    assert len(loaded.memory.importance) == 4
    loaded.save(tmp_path / "again.keras")
    assert keras.models.load_model(tmp_path / "again.keras").shares_memory


def test_weights_saved_apart_from_the_model(tmp_path):
    model, memory = restart.learn_a("functional", "regularizer")
    model.save_weights(tmp_path / "model.weights.h5")
    memory.save(tmp_path / "memory.npz")
    drift, _ = restart.drift_after_b(model, memory)
    again, _ = restart.build("functional", "regularizer", 0.0)
    again = keras.models.clone_model(again)
    again.load_weights(tmp_path / "model.weights.h5")
    loaded = SynapticMemory.load(tmp_path / "memory.npz").protect(restart.compiled(again))
    assert restart.drift_after_b(again, loaded)[0] == pytest.approx(drift, rel=1e-3)
