"""The deploy kit, read by the parsers of what it is for."""

import json
import math
import socket
import subprocess
import sys
from importlib import resources

import jsonschema
import kubernetes_validate
import pytest
import requests
import trustme
import yaml
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from keras_mas.errors import UsageError
from keras_mas.serving import deploy
from keras_mas.serving.config import read_config
from keras_mas.serving.deploy.__main__ import main
from keras_mas.serving.messages import message_classes
from keras_mas.serving.rollout import Rollout
from keras_mas.serving.standin import StandIn, read_batching_parameters

KUBERNETES = ("1.31", "1.37")

# The messages that tensorflow-serving-api lacks, with the fields and numbers of their published
# definitions in tensorflow/serving: config/ssl_config.proto and config/monitoring_config.proto.
ABSENT = message_classes(
    "absent",
    {
        "SSLConfig": [
            "1 server_key string",
            "2 server_cert string",
            "3 custom_ca string",
            "4 client_verify bool",
        ],
        "PrometheusConfig": ["1 enable bool", "2 path string"],
        "MonitoringConfig": ["1 prometheus_config PrometheusConfig"],
    },
)


def text_of(name):
    return (resources.files(deploy) / name).read_text(encoding="utf-8")


def documents(name):
    return list(yaml.safe_load_all(text_of(name)))


def by_kind():
    return {document["kind"]: document for document in documents("kubernetes.yaml")}


def batching():
    return read_batching_parameters(resources.files(deploy) / "batching.config")


def test_every_file_is_one_of_those_that_are_checked_here():
    assert deploy.file_names() == [
        "README.md",
        "batching.config",
        "docker-compose.yml",
        "kserve.yaml",
        "kubernetes.yaml",
        "models.config",
        "monitoring.config",
        "prometheus.yml",
        "ssl.config",
    ]


def test_the_configuration_serves_the_two_latest_versions():
    message = model_server_config_pb2.ModelServerConfig()
    text_format.Parse(text_of("models.config"), message)
    [model] = message.model_config_list.config
    assert (model.name, model.base_path, model.model_platform) == (
        "shop",
        "/models/shop",
        "tensorflow",
    )
    assert model.model_version_policy.latest.num_versions == 2


def test_a_server_starts_with_labels():
    [container] = by_kind()["Deployment"]["spec"]["template"]["spec"]["containers"]
    server = yaml.safe_load(text_of("docker-compose.yml"))["services"]["model-server"]
    for words in (container["args"], server["command"]):
        assert "--allow_version_labels_for_unavailable_models=true" in words


def test_labels_are_moved_in_the_configuration(tmp_path):
    deploy.write_files(tmp_path / "kit", "flowers")
    for version in (1, 2):
        (tmp_path / "models" / "flowers" / str(version)).mkdir(parents=True)
    config = tmp_path / "kit" / "models.config"
    heading = config.read_text().split("model_config_list")[0]
    rollout = Rollout(tmp_path / "models" / "flowers", config=config)
    rollout.promote(1)
    assert rollout.replaced == 2  # the two latest
    assert config.read_text().startswith(heading) and "keras-mas promote" in heading
    [entry] = read_config(config).model_config_list.config
    assert entry.base_path == "/models/flowers"
    assert list(entry.model_version_policy.specific.versions) == [1]
    rollout.promote(2)
    assert rollout.replaced == 0


def test_monitoring_is_scraped_where_it_is_offered():
    message = text_format.Parse(text_of("monitoring.config"), ABSENT["MonitoringConfig"]())
    assert message.prometheus_config.enable
    path = message.prometheus_config.path
    [job] = yaml.safe_load(text_of("prometheus.yml"))["scrape_configs"]
    assert job["metrics_path"] == path
    pod = by_kind()["Deployment"]["spec"]["template"]["metadata"]["annotations"]
    assert pod["prometheus.io/path"] == path
    [host, port] = job["static_configs"][0]["targets"][0].split(":")
    assert host in yaml.safe_load(text_of("docker-compose.yml"))["services"] and port == "8501"


def test_batches_are_of_sizes_that_the_server_accepts_and_padding_is_what_is_said():
    parameters = batching()  # as the server reads and checks them
    rows_of_batches = range(1, parameters.max_batch_size + 1)
    worst = max(1 - rows / parameters.padded(rows) for rows in rows_of_batches)
    assert worst == 1 - 17 / 32 and "17 rows run as 32" in text_of("batching.config")
    assert math.isclose(worst, 0.47, abs_tol=0.005)  # "nearly half"


def test_the_clients_send_no_more_than_a_batch_holds():
    from keras_mas.training.commands.predict import _BATCH_SIZE

    assert batching().max_batch_size == _BATCH_SIZE


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_manifests_are_valid(version):
    kinds = [document["kind"] for document in documents("kubernetes.yaml")]
    assert kinds == [
        "PersistentVolumeClaim",
        "ConfigMap",
        "Deployment",
        "Service",
        "HorizontalPodAutoscaler",
    ]
    for document in documents("kubernetes.yaml"):
        kubernetes_validate.validate(document, version, strict=True)


def test_a_mistake_in_a_manifest_is_noticed():
    broken = by_kind()["Deployment"]
    broken["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, KUBERNETES[-1], strict=True)


def test_kubernetes_manifests_fit_together():
    objects = by_kind()
    deployment, pod = objects["Deployment"], objects["Deployment"]["spec"]["template"]
    [container] = pod["spec"]["containers"]
    labels = pod["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    assert objects["Service"]["spec"]["selector"] == labels
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == {
        port["name"]: port["port"] for port in objects["Service"]["spec"]["ports"]
    }
    target = objects["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", deployment["metadata"]["name"])
    assert container["resources"]["requests"]["cpu"]  # of which autoscaling takes its share
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in pod["spec"]["volumes"]
    }
    for name, content in objects["ConfigMap"]["data"].items():
        assert content == text_of(name)
    config = [word.split("=")[1] for word in container["args"] if "/config/" in word]
    assert {f"/config/{name}" for name in objects["ConfigMap"]["data"]} == set(config)


def test_the_compose_file_is_valid_and_a_mistake_in_it_is_noticed():
    schemas = resources.files("check_jsonschema") / "builtin_schemas" / "vendor"
    schema = json.loads((schemas / "compose-spec.json").read_text(encoding="utf-8"))
    compose = yaml.safe_load(text_of("docker-compose.yml"))
    jsonschema.validate(compose, schema)
    compose["services"]["model-server"]["imagee"] = "x"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(compose, schema)


def test_compose_mounts_what_the_server_is_told_to_read():
    server = yaml.safe_load(text_of("docker-compose.yml"))["services"]["model-server"]
    told = [word.split("/config/")[1] for word in server["command"] if "/config/" in word]
    assert set(told) <= set(deploy.file_names())
    assert all(port.startswith("127.0.0.1:") for port in server["ports"])


# What KServe's InferenceService has of its own, by pkg/apis/serving/v1beta1 in kserve/kserve. All
# else in `model` is a container's, and is checked as such.
KSERVE = {
    "type": "object",
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "additionalProperties": False,
    "properties": {
        "apiVersion": {"const": "serving.kserve.io/v1beta1"},
        "kind": {"const": "InferenceService"},
        "metadata": {"type": "object", "required": ["name"]},
        "spec": {
            "type": "object",
            "required": ["predictor"],
            "additionalProperties": False,
            "properties": {
                "predictor": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "minReplicas": {"type": "integer"},
                        "maxReplicas": {"type": "integer"},
                        "scaleTarget": {"type": "integer"},
                        "scaleMetric": {"enum": ["cpu", "memory", "concurrency", "rps"]},
                        "model": {"type": "object", "required": ["modelFormat"]},
                    },
                }
            },
        },
    },
}
KSERVE_MODEL = {
    "modelFormat": {
        "type": "object",
        "required": ["name"],
        "additionalProperties": False,
        "properties": {"name": {"type": "string"}, "version": {"type": "string"}},
    },
    "storageUri": {"type": "string", "pattern": "^(pvc|gs|s3|https?)://"},
    "runtimeVersion": {"type": "string"},
    "protocolVersion": {"enum": ["v1", "v2", "grpc-v1", "grpc-v2"]},
}


def test_the_kserve_manifest_is_valid():
    [service] = documents("kserve.yaml")
    jsonschema.validate(service, KSERVE)
    model = service["spec"]["predictor"]["model"]
    own = {name: value for name, value in model.items() if name in KSERVE_MODEL}
    jsonschema.validate(own, {"type": "object", "properties": KSERVE_MODEL})
    container = {name: value for name, value in model.items() if name not in KSERVE_MODEL}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": service["metadata"],
        "spec": {"containers": [{"name": "kserve-container", **container}]},
    }
    kubernetes_validate.validate(pod, KUBERNETES[-1], strict=True)


# Readiness.


def probes():
    """Return the paths that the probes of every file ask for."""
    [container] = by_kind()["Deployment"]["spec"]["template"]["spec"]["containers"]
    [kserve] = documents("kserve.yaml")
    found = [container["startupProbe"], container["readinessProbe"]]
    found.append(kserve["spec"]["predictor"]["model"]["readinessProbe"])
    return {probe["httpGet"]["path"] for probe in found}


def healthcheck(model, port):
    """Run the check of docker compose against a port, as it unescapes and runs it."""
    server = yaml.safe_load(text_of("docker-compose.yml"))["services"]["model-server"]
    kind, *words = server["healthcheck"]["test"]
    assert kind == "CMD"
    words[-1] = words[-1].replace("8501", str(port)).replace("/shop/", f"/{model}/")
    return subprocess.run(words, capture_output=True).returncode


def test_probes_see_whether_a_version_is_available(models, tmp_path):
    (tmp_path / "broken" / "1").mkdir(parents=True)
    served = {"shop": models / "shop", "broken": tmp_path / "broken"}
    with StandIn(served, grpc_port=0, rest_port=0) as server:
        address = f"http://127.0.0.1:{server.rest_port}"
        assert requests.get(f"{address}/v1/models/broken").status_code == 200  # the status path
        for path in probes():
            assert requests.get(f"{address}{path}").status_code == 200
            broken = requests.get(f"{address}{path.replace('shop', 'broken')}")
            assert broken.status_code == 404
        assert healthcheck("shop", server.rest_port) == 0
        assert healthcheck("broken", server.rest_port) != 0
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        assert healthcheck("shop", closed.getsockname()[1]) != 0


# TLS, and writing the files.


def test_the_example_of_tls_holds_a_key_and_asks_clients_for_a_certificate():
    message = text_format.Parse(text_of("ssl.config"), ABSENT["SSLConfig"]())
    assert message.client_verify and message.server_key.startswith("-----BEGIN PRIVATE KEY-----\n")


def test_keys_of_ones_own_are_written_for_the_owner_alone_to_read(tmp_path):
    authority = trustme.CA()
    own = authority.issue_cert("model-server")
    for name, pem in (
        ("key", own.private_key_pem),
        ("certificate", own.cert_chain_pems[0]),
        ("ca", authority.cert_pem),
    ):
        pem.write_to_path(tmp_path / name)
    words = [f"--{name}={tmp_path / name}" for name in ("key", "certificate", "ca")]
    assert main([str(tmp_path / "kit"), *words]) == 0
    written = (tmp_path / "kit" / "ssl.config").read_text()
    message = text_format.Parse(written, ABSENT["SSLConfig"]())
    assert message.server_key.encode() == own.private_key_pem.bytes()
    assert message.server_cert.encode() == own.cert_chain_pems[0].bytes()
    assert message.custom_ca.encode() == authority.cert_pem.bytes()
    assert message.client_verify
    assert (tmp_path / "kit" / "ssl.config").stat().st_mode & 0o077 == 0


def test_without_an_authority_clients_need_no_certificate(tmp_path):
    own = trustme.CA().issue_cert("model-server")
    own.private_key_pem.write_to_path(tmp_path / "key")
    own.cert_chain_pems[0].write_to_path(tmp_path / "certificate")
    text = deploy.ssl_config(tmp_path / "key", tmp_path / "certificate")
    assert not text_format.Parse(text, ABSENT["SSLConfig"]()).client_verify


def test_the_files_are_written_for_a_model_of_ones_own(tmp_path):
    paths = deploy.write_files(tmp_path / "kit", "flowers-2")
    assert [path.name for path in paths] == deploy.file_names()
    texts = {path.name: path.read_text() for path in paths}
    assert "/v1/models/flowers-2/metadata" in texts["kubernetes.yaml"]
    assert 'base_path: "/models/flowers-2"' in texts["models.config"]
    assert not any("shop" in text.replace("`shop`", "") for text in texts.values())
    for document in yaml.safe_load_all(texts["kubernetes.yaml"]):
        kubernetes_validate.validate(document, KUBERNETES[-1], strict=True)


def test_files_are_not_replaced_unasked(tmp_path, capsys):
    (tmp_path / "ssl.config").write_text("mine")
    assert main([str(tmp_path)]) == 2
    assert "ssl.config', which exists" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["ssl.config"]
    assert main([str(tmp_path), "--overwrite"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(deploy.file_names())


def test_a_model_keeps_its_name_and_resources_get_one_that_kubernetes_takes(tmp_path):
    deploy.write_files(tmp_path, "My_shop.v2")
    entry = read_config(tmp_path / "models.config").model_config_list.config[0]
    assert (entry.name, entry.base_path) == ("My_shop.v2", "/models/My_shop.v2")
    kserve = yaml.safe_load((tmp_path / "kserve.yaml").read_text())
    assert kserve["metadata"]["name"] == "my-shop-v2"
    model = kserve["spec"]["predictor"]["model"]
    assert model["storageUri"] == "pvc://models/My_shop.v2"
    # KServe's runtime starts the server with `--model_name={{.Name}}`, that of the resource.
    assert model["readinessProbe"]["httpGet"]["path"] == "/v1/models/my-shop-v2/metadata"
    assert yaml.safe_load((tmp_path / "docker-compose.yml").read_text())["name"] == "my-shop-v2"
    assert deploy.resource_name("2_shops") == "model-2-shops"
    text = (tmp_path / "kubernetes.yaml").read_text()
    assert "/v1/models/My_shop.v2/metadata" in text and 'name: "My_shop.v2"' in text
    for document in yaml.safe_load_all(text):
        kubernetes_validate.validate(document, KUBERNETES[-1], strict=True)


@pytest.mark.parametrize("model", ["", "-a", "_", "a" * 64, "a/b", "größe"])
def test_a_name_that_kubernetes_refuses_is_refused(tmp_path, model):
    with pytest.raises(UsageError, match="one of it as Kubernetes demands"):
        deploy.write_files(tmp_path / "kit", model)
    assert not (tmp_path / "kit").exists()


@pytest.mark.parametrize("words", [["--key", "k"], ["--ca", "c"]])
def test_tls_needs_a_key_and_a_certificate(tmp_path, capsys, words):
    assert main([str(tmp_path / "kit"), *words]) == 2
    said = capsys.readouterr().err
    assert "--key and --certificate together" in said and f"Received: {words[0]}. Give" in said


def test_a_key_that_is_no_pem_is_refused_and_nothing_is_written(tmp_path, capsys):
    (tmp_path / "der").write_bytes(b"\x30\x82")
    for name, received in (("der", "a file without '-----BEGIN'"), ("gone", "no such file")):
        path = tmp_path / name
        words = ["--key", str(path), "--certificate", str(path)]
        assert main([str(tmp_path / "kit"), *words]) == 2
        assert f"'{path}'. Received: {received}" in capsys.readouterr().err
    assert not (tmp_path / "kit").exists()


def test_the_command_needs_no_tensorflow(tmp_path):
    code = (
        "import sys; from keras_mas.serving.deploy.__main__ import main;"
        f"sys.exit(main([{str(tmp_path / 'kit')!r}]) or 'tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
