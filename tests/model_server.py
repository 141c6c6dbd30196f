"""What a model server does with configurations, and nothing else: it loads no model.

As TensorFlow Serving's `ServerCore::ReloadConfig`, it first moves the labels, each of which must
point to a version that is available, and only then takes over the policies of versions.
"""

import contextlib
import threading
from concurrent import futures
from pathlib import Path

import grpc
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
)
from tensorflow_serving.apis.model_service_pb2_grpc import (
    ModelServiceServicer,
    add_ModelServiceServicer_to_server,
)
from tensorflow_serving.apis.prediction_service_pb2_grpc import (
    PredictionServiceServicer,
    add_PredictionServiceServicer_to_server,
)

from keras_mas.serving.config import read_config

STATE = get_model_status_pb2.ModelVersionStatus.State
LOADING_SECONDS = 0.15
POLL_SECONDS = 0.05


class ModelServer(ModelServiceServicer, PredictionServiceServicer):
    """A model server on a port of its own.

    Args:
        broken: Versions that fail to load.
        polls: File of its configuration, which it reads again and again; None for no file.

    Attributes:
        loads: Whether versions that are wanted get another state; a version that failed keeps its
            state then.
        states: From the name of a model and a version to state, and message of an error.
        labels: From the name of a model and a label to the version.
        history: The labels and the versions loaded of `shop`, after each change of the labels.
    """

    def __init__(self, broken=(), polls=None):
        self.broken, self.polls, self.loads = broken, polls, True
        self.states, self.labels, self.history, self.configs = {}, {}, [], []
        self.lock, self.stopping = threading.RLock(), threading.Event()
        self.server = grpc.server(futures.ThreadPoolExecutor(2))
        add_ModelServiceServicer_to_server(self, self.server)
        add_PredictionServiceServicer_to_server(self, self.server)
        self.port = self.server.add_insecure_port("127.0.0.1:0")

    @property
    def address(self):
        return f"127.0.0.1:{self.port}"

    def available(self, name):
        with self.lock:
            return {v for (n, v), (state, _) in self.states.items() if n == name and state == 30}

    def serve(self, name, *versions):
        """Have versions loaded, as a server that was started for one model."""
        with self.lock:
            self.states |= {(name, version): (STATE.AVAILABLE, "") for version in versions}

    def reload(self, config):
        with self.lock:
            labels = {}
            for model in config.model_config_list.config:
                for label, version in model.version_labels.items():
                    if version not in self.available(model.name):
                        raise ValueError(
                            f"Request to assign label to version {version} of model {model.name}, "
                            "which is not currently available for inference"
                        )
                    labels[model.name, label] = version
            self.labels = labels
            self.configs.append(config)
            for model in config.model_config_list.config:
                self._aspire(model)
            self._unload_all_but({model.name for model in config.model_config_list.config})
            self.history.append((labels, self.available("shop")))

    def _aspire(self, model):
        wanted = set(model.model_version_policy.specific.versions)
        policy = model.model_version_policy.WhichOneof("policy_choice") or "latest"
        if policy != "specific":
            wanted = {int(path.name) for path in Path(model.base_path).glob("[0-9]*")}
        if policy == "latest":
            wanted = {max(wanted)} if wanted else set()
        for version in wanted - self.available(model.name) if self.loads else ():
            self.states[model.name, version] = (STATE.LOADING, "")
            threading.Timer(LOADING_SECONDS, self._load, (model.name, version)).start()
        for version in self.available(model.name) - wanted:
            self.states[model.name, version] = (STATE.END, "")

    def _unload_all_but(self, names):
        for name, version in self.states:
            if name not in names and version in self.available(name):
                self.states[name, version] = (STATE.END, "")

    def _load(self, name, version):
        with self.lock:
            failed = version in self.broken
            outcome = (STATE.END, "Could not find meta graph") if failed else (STATE.AVAILABLE, "")
            self.states[name, version] = outcome

    def HandleReloadConfigRequest(self, request, context):
        response = model_management_pb2.ReloadConfigResponse()
        try:
            self.reload(request.config)
        except ValueError as error:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        return response

    def GetModelStatus(self, request, context):
        with self.lock:
            states = {v: s for (n, v), s in self.states.items() if n == request.model_spec.name}
        if not states:
            context.abort(grpc.StatusCode.NOT_FOUND, "Could not find any versions of model")
        response = get_model_status_pb2.GetModelStatusResponse()
        for version, (state, message) in states.items():
            status = response.model_version_status.add(version=version, state=state)
            status.status.error_message = message
        return response

    def GetModelMetadata(self, request, context):
        spec = request.model_spec
        version = self.labels.get((spec.name, spec.version_label))
        if version is None:
            message = f"Unrecognized servable version label: {spec.version_label}"
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, message)
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        response.model_spec.version.value = version
        return response

    def _poll(self):
        while not self.stopping.wait(POLL_SECONDS):
            with contextlib.suppress(ValueError):
                self.reload(read_config(self.polls))

    def __enter__(self):
        self.server.start()
        self.poller = threading.Thread(target=self._poll) if self.polls else None
        if self.poller:
            self.poller.start()
        return self

    def __exit__(self, *exception):
        self.stopping.set()
        if self.poller:
            self.poller.join()
        self.server.stop(0).wait()
