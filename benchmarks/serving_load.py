"""Many clients of a model server, who check every answer, while versions come and go.

`benchmarks/serving.py` and a test of the stand-in use it.
"""

import dataclasses
import itertools
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import requests
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from keras_mas.serving.standin import config_of

LABEL = "stable"
AVAILABLE = get_model_status_pb2.ModelVersionStatus.State.AVAILABLE


@dataclasses.dataclass
class Traffic:
    """What clients ask: `inputs` of one signature, and each version's answer to them.

    `answers` maps a version to the array that its output `output` has to be, up to rounding.
    """

    model: str
    signature: str
    inputs: Mapping[str, np.ndarray]
    output: str
    answers: Mapping[int, np.ndarray]

    def is_right(self, array: Any, version: int | None) -> bool:
        """Whether an array is the answer of a version, or of any if the version is unknown."""
        candidates = self.answers.values() if version is None else [self.answers[version]]
        return any(np.allclose(array, answer, rtol=1e-4, atol=1e-6) for answer in candidates)


@dataclasses.dataclass
class Outcome:
    """What came back: the seconds of every request, and sentences on those that went wrong."""

    seconds: list[float] = dataclasses.field(default_factory=list)
    wrong: list[str] = dataclasses.field(default_factory=list)
    duration: float = 0.0


def run_clients(traffic: Traffic, ports: tuple[int, int], clients: int, duration: float) -> Outcome:
    """Ask without a pause, from a thread per client.

    Half of the clients ask for the latest version and half for the label, all over gRPC but every
    eighth, which uses REST.

    Args:
        traffic: What is asked.
        ports: gRPC and REST port on this machine.
        clients: Number of threads.
        duration: Seconds.
    """
    outcomes = [Outcome() for _ in range(clients)]
    end = time.monotonic() + duration
    began = time.monotonic()
    threads = [
        threading.Thread(target=_client, args=[number, traffic, ports, end, outcome])
        for number, outcome in enumerate(outcomes)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = [each for outcome in outcomes for each in outcome.seconds]
    wrong = [each for outcome in outcomes for each in outcome.wrong]
    return Outcome(seconds, wrong, time.monotonic() - began)


def _client(
    number: int, traffic: Traffic, ports: tuple[int, int], end: float, outcome: Outcome
) -> None:
    labelled = number % 2 == 1
    ask = _over_rest if number % 8 == 7 else _over_grpc
    answers = ask(traffic, ports, labelled)
    try:
        while time.monotonic() < end:
            began = time.monotonic()
            array, version = next(answers)
            outcome.seconds.append(time.monotonic() - began)
            if not traffic.is_right(array, version):
                outcome.wrong.append(f"client {number}: version {version} answered {array}")
    except Exception as error:  # whatever goes wrong is counted
        outcome.wrong.append(f"client {number}: {type(error).__name__}: {error}")


def _over_grpc(
    traffic: Traffic, ports: tuple[int, int], labelled: bool
) -> Iterator[tuple[np.ndarray, int | None]]:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = traffic.model
    request.model_spec.signature_name = traffic.signature
    if labelled:
        request.model_spec.version_label = LABEL
    for name, array in traffic.inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(array))
    with grpc.insecure_channel(f"127.0.0.1:{ports[0]}") as channel:
        predict = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict
        while True:
            response = predict(request, timeout=60)
            array = tf.make_ndarray(response.outputs[traffic.output])
            yield array, response.model_spec.version.value


def _over_rest(
    traffic: Traffic, ports: tuple[int, int], labelled: bool
) -> Iterator[tuple[np.ndarray, int | None]]:
    which = f"/labels/{LABEL}" if labelled else ""
    url = f"http://127.0.0.1:{ports[1]}/v1/models/{traffic.model}{which}:predict"
    inputs = {name: array.tolist() for name, array in traffic.inputs.items()}
    body = {"signature_name": traffic.signature, "inputs": inputs}
    with requests.Session() as session:
        while True:
            answer = session.post(url, json=body, timeout=60)
            answer.raise_for_status()
            outputs = answer.json()["outputs"]
            yield outputs[traffic.output] if isinstance(outputs, dict) else outputs, None


class Publisher:
    """Publishes version 2 of a model beside version 1, moves the label there, and rolls back.

    Args:
        model: Name of the model.
        base: Its folder, with version 1.
        port: gRPC port of the server, whose configuration has the model alone.
        versions: A folder for each version, which is copied.
    """

    def __init__(self, model: str, base: Path, port: int, versions: Mapping[int, Path]):
        self._model, self._base, self._versions = model, base, versions
        self._channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        self._server = model_service_pb2_grpc.ModelServiceStub(self._channel)
        self.rounds = 0

    def run(self, duration: float) -> None:
        """Publish and roll back for some seconds."""
        end = time.monotonic() + duration
        for number in itertools.cycle((2, 1)):
            if time.monotonic() > end:
                return
            self._move(number)
            self.rounds += 1

    def _move(self, to: int) -> None:
        other = 3 - to
        folder, hidden = self._base / str(to), self._base / f".tmp-{to}"
        if not folder.exists():
            shutil.copytree(self._versions[to], hidden)
            hidden.rename(folder)
        self._reload((other, to), other)
        self._wait_for(to)
        self._reload((other, to), to)
        self._reload((to,), to)
        self._wait_for(other, ended=True)
        shutil.rmtree(self._base / str(other))

    def _reload(self, versions: tuple[int, ...], stable: int) -> None:
        config = config_of({self._model: self._base}, versions)
        config.model_config_list.config[0].version_labels[LABEL] = stable
        request = model_management_pb2.ReloadConfigRequest(config=config)
        self._server.HandleReloadConfigRequest(request, timeout=60)

    def _wait_for(self, version: int, ended: bool = False) -> None:
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = self._model
        state = get_model_status_pb2.ModelVersionStatus.State.END if ended else AVAILABLE
        while True:
            statuses = self._server.GetModelStatus(request, timeout=60).model_version_status
            if (version, state) in {(each.version, each.state) for each in statuses}:
                return
            time.sleep(0.02)
