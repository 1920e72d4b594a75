"""Exported networks as servers call them: many threads, bad inputs among good ones, the clients."""

import base64
import io
import json
import re
import struct
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import keras
import numpy as np
import pytest
import tensorflow as tf
import yaml
from conftest import ROOT
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format, wrappers_pb2
from PIL import Image
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2, prediction_service_pb2_grpc

from superres import export
from superres.models.lapsrn import lapsrn
from superres.models.signatures import signatures
from superres.models.srmap import generator

MEGAPIXELS = 0.02


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Two versions of one network, and one with noise."""
    folder = tmp_path_factory.mktemp("served")
    for version in (1, 2):
        keras.utils.set_random_seed(version)
        network = lapsrn(2, filters=4, depth=1)
        for layer in network.layers:
            if layer.name.endswith("_residual"):
                layer.kernel.assign(keras.random.normal(layer.kernel.shape, stddev=0.05))
        network.save(folder / "x2.keras")
        export.export(folder / "x2.keras", folder, "x2", version, megapixels=MEGAPIXELS)
    generator(2, stem=8, widths=(8, 8), blocks=(1,)).save(folder / "noisy.keras")
    export.export(folder / "noisy.keras", folder, "noisy", 1, megapixels=MEGAPIXELS)
    return folder


@pytest.fixture(scope="module")
def loaded(served):
    return {name: tf.saved_model.load(str(served / name)) for name in ("x2/1", "x2/2", "noisy/1")}


def pictures(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype="uint8")


def encoded(picture, kind="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, kind, **options)
    return file.getvalue()


def answer(loaded, files, **values):
    """[(file, status)] of a model's signature `image_bytes`."""
    values = {key: tf.fill(len(files), value) for key, value in values.items()}
    answers = loaded.signatures["image_bytes"](image_bytes=tf.constant(files), **values)
    return list(zip(answers["image_bytes"].numpy(), (x.decode() for x in answers["status"].numpy()),
                    strict=True))


def of_size(file, height, width):
    """A PNG or JPEG file that says that it is of another size."""
    if file.startswith(b"\x89PNG"):
        return file[:16] + struct.pack(">II", width, height) + file[24:]
    at = file.index(b"\xff\xc0") + 5
    return file[:at] + struct.pack(">HH", height, width) + file[at + 4 :]


PNG, JPEG = encoded(pictures(40, 50)), encoded(pictures(40, 50), "JPEG")
NEITHER, DAMAGED = "image_bytes: no header of a PNG or JPEG file", "image_bytes: a damaged file"
TOO_LARGE = "pixels, at most 20000 can be computed"
BAD = {
    "empty": (b"", NEITHER),
    "one byte": (b"\x89", NEITHER),
    "text": (b"no picture, but text of more than a few bytes", NEITHER),
    "GIF": (encoded(pictures(4, 5), "GIF"), NEITHER),
    "BMP": (encoded(pictures(4, 5), "BMP"), NEITHER),
    "PNG of its first bytes": (PNG[:20], NEITHER),
    "PNG of a header": (PNG[:33], DAMAGED),
    "truncated PNG": (PNG[:-60], DAMAGED),
    "wrong CRC": (PNG[:100] + bytes([PNG[100] ^ 1]) + PNG[101:], DAMAGED),
    "PNG of 0 x 5": (of_size(PNG, 0, 5), NEITHER),
    "PNG of 2^31 pixels": (of_size(PNG, 1, 2**31), NEITHER),
    "JPEG of its first bytes": (JPEG[:30], NEITHER),
    "truncated JPEG": (JPEG[:-300], DAMAGED),
    "bomb": (of_size(PNG, 50000, 60000), f"image_bytes: 50000 x 60000 {TOO_LARGE}"),
    "JPEG bomb": (of_size(JPEG, 65000, 65500), f"image_bytes: 65000 x 65500 {TOO_LARGE}"),
}


def test_a_bad_picture_does_not_fail_its_neighbours(loaded):
    deep = np.random.default_rng(0).integers(0, 2**16, (4, 5), "uint16")
    good = [PNG, JPEG, encoded(pictures(1, 1)), encoded(deep)]
    alone = [answer(loaded["x2/1"], [file])[0] for file in good]
    assert all(file and not status for file, status in alone)
    files = [file for file, _ in BAD.values()]
    answers = answer(loaded["x2/1"], [*good[:2], *files, *good[2:]])
    assert answers[:2] + answers[-2:] == alone
    assert dict(zip(BAD, answers[2:-2], strict=True)) == {
        name: (b"", status) for name, (_, status) in BAD.items()}


def test_rows_out_of_range_are_black_and_say_so(loaded):
    lr = pictures(4, 6, 7) / np.float32(255)
    lr[1, 2, 3, 0], lr[2, 0, 0, 1] = np.nan, 1.01
    answers = loaded["x2/1"].signatures["serving_default"](lr=tf.constant(lr))
    text = b"lr: values must lie from 0 to 1"
    assert answers["status"].numpy().tolist() == [b"", text, text, b""]
    assert not answers["sr"][1:3].numpy().any()
    for i in (0, 3):
        alone = loaded["x2/1"].signatures["serving_default"](lr=tf.constant(lr[i : i + 1]))["sr"]
        np.testing.assert_allclose(answers["sr"][i], alone[0], atol=1e-6)


def test_rows_of_noise_that_cannot_be(loaded):
    signatures, lr = loaded["noisy/1"].signatures, tf.zeros((5, 3, 4, 3))
    noise = {"temperature": tf.constant([1.0, np.inf, np.nan, 1.0, 1.0]),
             "seed": tf.constant([0, 0, 0, -1, 2**31 - 1])}
    wanted = [b"", *[b"temperature: must be 0 or more and finite"] * 2,
              b"seed: must be 0 or more, below 2^31"]
    answers = signatures["uint8"](lr=tf.cast(lr, "uint8"), **noise)
    assert answers["status"].numpy().tolist() == [*wanted, b""]
    answers = signatures["samples"](lr=lr, count=tf.constant(2), **noise)
    assert answers["status"].numpy().tolist() == [*wanted, wanted[3]]  # the last one's second seed is 2^31
    assert answers["sr"].shape == (5, 2, 6, 8, 3)
    assert not answers["sr"][1:].numpy().any()


@pytest.mark.parametrize(("name", "signature", "inputs", "trouble"), [
    ("x2/1", "image_bytes", {"image_bytes": np.zeros(0, "S1")}, "image_bytes: no pictures"),
    ("x2/1", "uint8", {"lr": np.zeros((0, 4, 5, 3), "uint8")}, r"lr: no pictures, .* \[0 4 5 3\]"),
    ("x2/1", "uint8", {"lr": np.zeros((2, 0, 5, 3), "uint8")}, "lr: no pictures, or no pixels:"),
    ("x2/1", "serving_default", {"lr": np.zeros((1, 100, 201, 3), "float32")}, "lr: more than 20000 pixels:"),
    ("noisy/1", "uint8", {"lr": np.zeros((2, 4, 5, 3), "uint8"), "temperature": np.ones(1, "float32"),
                          "seed": np.zeros(2, "int32")}, "temperature: one for each picture"),
    ("noisy/1", "samples", {"lr": np.zeros((1, 4, 5, 3), "float32"), "temperature": np.ones(1, "float32"),
                            "seed": np.zeros(1, "int32"), "count": np.int32(0)}, "count: must be 1 or more"),
    ("noisy/1", "samples", {"lr": np.zeros((1, 4, 5, 3), "float32"), "temperature": np.ones(1, "float32"),
                            "seed": np.zeros(1, "int32"), "count": np.int32(1001)}, "count: times"),
    ("noisy/1", "samples", {"lr": np.zeros((10, 4, 5, 3), "float32"), "temperature": np.ones(10, "float32"),
                            "seed": np.zeros(10, "int32"), "count": np.int32(101)}, "count: times"),
])
def test_what_is_wrong_with_a_whole_batch_is_named(loaded, name, signature, inputs, trouble):
    with pytest.raises(tf.errors.InvalidArgumentError, match=trouble):
        loaded[name].signatures[signature](**{key: tf.constant(value) for key, value in inputs.items()})


def test_eight_threads_of_mixed_sizes_and_a_thousand_bad_files(loaded):
    """Each good picture's answer is the one it has alone; each broken one's a picture or a status."""
    random = np.random.default_rng(0)
    good = [encoded(pictures(*random.integers(1, 24, 2), seed=i), ("PNG", "JPEG")[i % 2]) for i in range(24)]
    expected = [answer(loaded["x2/1"], [file])[0] for file in good]

    def broken():
        file = bytearray(good[random.integers(24)])
        for at in random.integers(0, len(file), random.integers(1, 9)):
            file[at] = random.integers(256)
        return bytes(file[: random.integers(len(file))] if random.random() < 0.3 else file)

    batches = [[good[i % 24], *(broken() for _ in range(10)), good[-1 - i % 24]] for i in range(100)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda files: answer(loaded["x2/1"], files), batches))
    for i, rows in enumerate(answers):
        assert (rows[0], rows[-1]) == (expected[i % 24], expected[-1 - i % 24])
        for file, status in rows:
            assert bool(file) != bool(status)
    assert sum(bool(status) for rows in answers for _, status in rows) > 500


def test_two_versions_answer_side_by_side(loaded):
    def ask(version):
        return answer(loaded[f"x2/{version}"], [PNG, b""])

    one, two = ask(1), ask(2)
    assert one[0] != two[0]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, [1, 2] * 8)) == [one, two] * 8


def test_a_batching_server_can_batch_every_warm_up_request(served):
    """It refuses to load a model that warms up with an input of no batch, such as `count`."""
    path = served / "noisy" / "1" / "assets.extra" / "tf_serving_warmup_requests"
    requests = [prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
                for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator()]
    assert [request.model_spec.signature_name for request in requests] == [
        "serving_default", "uint8", "image_bytes"]
    assert {value.tensor_shape.dim[0].size for request in requests
            for value in request.inputs.values()} == {1}


# ------------------------------------------------------------------ clients


@pytest.fixture
def rest_server(loaded):
    """The address of a server that answers as TensorFlow Serving's REST interface does."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            name = re.fullmatch(r"/v1/models/(.+):predict", self.path)[1]
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert request["signature_name"] == "image_bytes"
            rows = request["instances"]
            files = [base64.b64decode(row["image_bytes"]["b64"]) for row in rows]
            inputs = {"image_bytes": tf.constant(files, "string")}
            inputs |= {key: np.array([row[key] for row in rows], dtype) for key, dtype in
                       (("temperature", "float32"), ("seed", "int32")) if rows and key in rows[0]}
            try:
                answers = loaded[f"{name}/1"].signatures["image_bytes"](
                    **{key: tf.constant(value) for key, value in inputs.items()})
                code, body = 200, {"predictions": [
                    {"image_bytes": {"b64": base64.b64encode(file).decode()}, "status": status.decode()}
                    for file, status in zip(*(answers[key].numpy() for key in ("image_bytes", "status")),
                                            strict=True)]}
            except tf.errors.InvalidArgumentError as error:
                code, body = 400, {"error": error.message}
            self.send_response(code)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def grpc_server(loaded):
    class Servicer(prediction_service_pb2_grpc.PredictionServiceServicer):
        def Predict(self, request, context):
            model = loaded[f"{request.model_spec.name}/1"]
            inputs = {key: tf.constant(tf.make_ndarray(value)) for key, value in request.inputs.items()}
            answers = model.signatures[request.model_spec.signature_name](**inputs)
            return predict_pb2.PredictResponse(outputs={
                key: tf.make_tensor_proto(value.numpy()) for key, value in answers.items()})

    server = grpc.server(ThreadPoolExecutor(2))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Servicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


@pytest.fixture
def clients(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "serving"))
    import grpc_client
    import rest

    return rest, grpc_client


def test_the_clients_are_answered(loaded, clients, rest_server, grpc_server):
    for name, values in (("x2", {}), ("noisy", {"temperature": 0.5, "seed": 7})):
        expected = answer(loaded[f"{name}/1"], [PNG, b"", JPEG], **values)
        assert [bool(status) for _, status in expected] == [False, True, False]
        for client, server in zip(clients, (rest_server, grpc_server), strict=True):
            assert client.upscale(server, name, [PNG, b"", JPEG], **values) == expected
            with pytest.raises(RuntimeError, match="image_bytes: no pictures"):
                client.upscale(server, "x2", [])


@pytest.mark.parametrize("kind", [0, 1], ids=["rest", "grpc"])
def test_the_clients_write_pictures_and_name_bad_ones(clients, rest_server, grpc_server, tmp_path,
                                                      monkeypatch, capsys, kind):
    def run(server, *options):
        monkeypatch.setattr(sys, "argv", ["client", server, "noisy", str(tmp_path / "none.png"),
                                          str(tmp_path / "bad.png"), str(tmp_path / "good.jpg"), *options])
        with pytest.raises(SystemExit, match="1"):
            clients[0].main(clients[kind].upscale, "")
        return [line.removeprefix(f"{tmp_path}/") for line in capsys.readouterr().err.splitlines()]

    (tmp_path / "good.jpg").write_bytes(JPEG)
    (tmp_path / "bad.png").write_bytes(PNG[:60])
    server, values = (rest_server, grpc_server)[kind], ("--temperature", "0", "--seed", "1")
    for count in (2, 3):
        missing, damaged, *again = run(server, *values)
        assert missing.startswith("none.png: ")
        assert damaged == f"bad.png: {DAMAGED}"
        assert len(again) == count - 2
        assert {path.name for path in tmp_path.iterdir()} == {"good.jpg", "bad.png", "good_sr.png"}
    assert again == [f"good.jpg: {tmp_path / 'good_sr.png'} exists already"]
    assert Image.open(tmp_path / "good_sr.png").size == (100, 80)
    (tmp_path / "good_sr.png").unlink()
    nobody = ("http://127.0.0.1:1", "127.0.0.1:1")[kind]
    assert [line.split(": ")[0] for line in run(nobody, *values)] == ["none.png", "bad.png", "good.jpg"]


def test_the_server_s_files_are_of_their_kinds():
    """Fields and their types as TensorFlow Serving 2.x has them; its package leaves these messages out."""
    file = descriptor_pb2.FileDescriptorProto(name="config.proto", package="t", syntax="proto3",
                                              dependency=[wrappers_pb2.DESCRIPTOR.name])
    batching = file.message_type.add(name="BatchingParameters")
    for number, name in enumerate(("max_batch_size", "batch_timeout_micros", "max_enqueued_batches",
                                   "num_batch_threads", "max_execution_batch_size"), 1):
        batching.field.add(name=name, number=number, type=11, type_name=".google.protobuf.Int64Value")
    batching.field.add(name="enable_large_batch_splitting", number=6, type=11,
                       type_name=".google.protobuf.BoolValue")
    prometheus = file.message_type.add(name="PrometheusConfig")
    prometheus.field.add(name="enable", number=1, type=8)
    prometheus.field.add(name="path", number=2, type=9)
    monitoring = file.message_type.add(name="MonitoringConfig")
    monitoring.field.add(name="prometheus_config", number=1, type=11, type_name=".t.PrometheusConfig")
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)

    def parsed(name, path):
        message = message_factory.GetMessageClass(pool.FindMessageTypeByName(f"t.{name}"))()
        return text_format.Parse((ROOT / "serving" / path).read_text(), message)

    batching = parsed("BatchingParameters", "batching.config")
    assert batching.max_enqueued_batches.value >= batching.max_batch_size.value / \
        batching.max_execution_batch_size.value
    path = parsed("MonitoringConfig", "monitoring.config").prometheus_config.path
    (job,) = yaml.safe_load((ROOT / "serving" / "prometheus.yml").read_text())["scrape_configs"]
    assert job["metrics_path"] == path
    services = yaml.safe_load((ROOT / "serving" / "docker-compose.yml").read_text())["services"]
    command = services["serving"]["command"]
    assert f"--model_config_file={export.MOUNT}/models.config" in command
    files = [word.rpartition("/config/")[2] for word in command if "/config/" in word]
    assert len(files) == 2
    assert all((ROOT / "serving" / file).is_file() for file in files)


def test_the_grpc_client_receives_more_than_four_mebibytes(clients):
    class Servicer(prediction_service_pb2_grpc.PredictionServiceServicer):
        def Predict(self, request, context):
            return predict_pb2.PredictResponse(outputs={
                "image_bytes": tf.make_tensor_proto([bytes(5 * 2**20)]),
                "status": tf.make_tensor_proto([b""])})

    server = grpc.server(ThreadPoolExecutor(1))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Servicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    assert clients[1].upscale(f"127.0.0.1:{port}", "x2", [b"a"]) == [(bytes(5 * 2**20), "")]
    server.stop(None)


def test_no_answer_is_too_large_for_a_message():
    function = signatures(lapsrn(8, filters=2, depth=1), 1000)["image_bytes"][0]
    status = function(tf.constant([of_size(PNG, 20000, 20000)]))["status"].numpy()[0].decode()
    most = (2**31 - 1) // (4 * 3 * 64)
    assert status == f"image_bytes: 20000 x 20000 pixels, at most {most} can be computed"


def test_a_client_ends_with_0_and_hands_on_what_it_was_told(clients, tmp_path, monkeypatch):
    (tmp_path / "a.jpg").write_bytes(b"a")
    asked = []
    monkeypatch.setattr(sys, "argv", ["client", "server", "noisy", str(tmp_path / "a.jpg"),
                                      "--temperature", "0.5", "--seed", "7"])
    with pytest.raises(SystemExit) as end:
        clients[0].main(lambda *given, **values: asked.append((*given, values)) or [(b"sr", "")], "")
    assert end.value.code == 0
    assert asked == [("server", "noisy", [b"a"], {"temperature": 0.5, "seed": 7})]
    assert (tmp_path / "a_sr.png").read_bytes() == b"sr"
