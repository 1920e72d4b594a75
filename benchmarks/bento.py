"""A BentoML service of an exported network, for serving.py: it puts requests together in batches."""

import base64
import os

import bentoml
import tensorflow as tf


@bentoml.service(traffic={"timeout": 600})
class Upscaler:
    def __init__(self):
        self.model = tf.saved_model.load(os.environ["SAVED_MODEL"])

    @bentoml.api(batchable=True, max_batch_size=8, max_latency_ms=600_000)
    def upscale(self, pictures: list[str]) -> list[list[str]]:
        """PNG and JPEG files in base64 -> [PNG file in base64, status] for each."""
        files = tf.constant([base64.b64decode(picture) for picture in pictures])
        answers = self.model.signatures["image_bytes"](image_bytes=files)
        return [[base64.b64encode(file).decode(), status.decode()] for file, status in
                zip(answers["image_bytes"].numpy(), answers["status"].numpy(), strict=True)]
