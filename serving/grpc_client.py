"""Upscale pictures by a server, over gRPC, as rest.py does over REST. Needs tensorflow-serving-api.

    python serving/grpc_client.py localhost:8500 lapsrn-x4 photo.jpg portrait.png
"""

import grpc
import rest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc


def upscale(address: str, model: str, pictures: list[bytes], **values: float) -> list[tuple[bytes, str]]:
    """`rest.upscale`, over gRPC; a server that cannot be reached is a RuntimeError, too."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = model, "image_bytes"
    request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto(pictures, "string", (len(pictures),)))
    for name, dtype in {"temperature": "float32", "seed": "int32"}.items():
        if name in values:
            request.inputs[name].CopyFrom(tf.make_tensor_proto([values[name]] * len(pictures), dtype))
    # Unless told otherwise, gRPC receives no more than 4 MiB.
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(address, options) as channel:
        try:
            answer = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=600)
        except grpc.RpcError as error:
            raise RuntimeError(f"{error.code().name}: {error.details()}") from None
    files, statuses = (answer.outputs[key].string_val for key in ("image_bytes", "status"))
    return [(file, status.decode()) for file, status in zip(files, statuses, strict=True)]


if __name__ == "__main__":
    rest.main(upscale, "localhost:8500")
