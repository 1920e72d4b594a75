"""What a server answers: a network as TensorFlow functions, which a SavedModel keeps.

Each row of a batch is answered by itself: a server may put requests together, and one that cannot be
answered gets an empty answer and a `status` that says why. What is wrong with a batch as a whole,
such as pictures of 0 x 5 pixels, is an INVALID_ARGUMENT.
"""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from superres.datasets.color import rgb_to_ycbcr, ycbcr_to_rgb
from superres.errors import InputError
from superres.layers import BicubicUpsampling2D
from superres.models.images import SMALLEST, TILE
from superres.models.sampler import Sampler
from superres.models.upscaler import ThumbnailUpscaler, Upscaler

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"  # what is followed by width and height
JPEG = b"\xff\xd8\xff"


def signatures(network: Upscaler, megapixels: float) -> dict[str, tuple[Callable, list[tf.TensorSpec]]]:
    """The signatures of a network, see `export.py`.

    Args:
        megapixels: The most that an LR picture may have. Those whose SR, as floats, would take 2 GiB or
            more are refused whatever it is: gRPC's messages and PNG files end there.

    Returns:
        Dict of name -> (function, list of the `tf.TensorSpec` of its inputs).
    """
    size, extra = network.lr_size, []
    channels = network.channels if size else 3
    limit = min(int(megapixels * 1e6), (2**31 - 1) // (4 * channels * network.scale**2))
    upscale = sampled(network) if size else computed(network)
    if network.draws_samples:
        extra = [tf.TensorSpec((None,), "float32", "temperature"), tf.TensorSpec((None,), "int32", "seed")]
    shape = (None, size, size, channels)

    def floats(lr, *rest):
        lr, rest, status = cleaned(lr, *rest)
        return answer(upscale(lr, *rest), status)

    def integers(lr, *rest):
        sr, status = floats(tf.cast(lr, "float32") / 255, *rest).values()
        return {"sr": tf.cast(tf.floor(sr * 255 + 0.5), "uint8"), "status": status}

    def several(lr, temperature, seed, count):
        fits = tf.cast(count, "int64") * pixels(lr, axis=0) <= limit
        with tf.control_dependencies([
                tf.debugging.Assert(count > 0, ["count: must be 1 or more, found:", count]),
                tf.debugging.Assert(fits, [f"count: times the pixels of lr, more than {limit}:", count])]):
            lr, count = tf.identity(lr), tf.identity(count)
        lr, rest, status = cleaned(lr, temperature, seed, last=count - 1)
        temperature, seed = rest
        drawn = tf.map_fn(lambda k: upscale(lr, temperature, seed + k), tf.range(count),
                          fn_output_signature=tf.float32, parallel_iterations=1)
        return answer(tf.transpose(drawn, (1, 0, 2, 3, 4)), status)

    def cleaned(lr, *rest, last=0):
        """The inputs, those of rows that cannot be answered replaced, and each row's status."""
        lr = tf.ensure_shape(lr, shape)
        with tf.control_dependencies([
                tf.debugging.Assert(tf.size(lr) > 0, ["lr: no pictures, or no pixels:", tf.shape(lr)], 4),
                tf.debugging.Assert(pixels(lr) <= limit, [f"lr: more than {limit} pixels:", tf.shape(lr)], 4),
                *of_one_length(lr, rest)]):
            lr, *rest = map(tf.identity, (lr, *rest))
        troubles = [(tf.reduce_all((lr >= 0) & (lr <= 1), (1, 2, 3)), "lr: values must lie from 0 to 1")]
        if rest:
            temperature, seed = rest
            most = np.inf if size else np.finfo("float32").max  # noise times infinity is no picture
            troubles += [((temperature >= 0) & (temperature <= most),
                          "temperature: must be 0 or more" + (" and finite" if not size else "")),
                         ((seed >= 0) & (seed <= 2**31 - 1 - last), "seed: must be 0 or more, below 2^31")]
        status = first(troubles)
        good = status == ""
        rest = [tf.where(good, values, tf.ones_like(values)) for values in rest]
        return tf.where(good[:, None, None, None], lr, 0), rest, status

    def answer(sr, status):
        good = tf.reshape(status == "", (-1, *[1] * (len(sr.shape) - 1)))
        return {"sr": tf.where(good, sr, 0), "status": status}

    def opened(encoded):
        """A file's picture (H, W, C) uint8, or zeros, and its status."""
        found = attempted(size_in_header, encoded, tf.zeros(2, "int32"))
        height, width = tf.unstack(tf.cast(found, "int64"))
        named = tf.strings.join(["image_bytes: ", tf.strings.as_string(height), " x ",
                                 tf.strings.as_string(width), " pixels, "])
        fits = height * width <= limit
        wanted = f"at most {limit} can be computed"
        if size:
            fits, wanted = (height == size) & (width == size), f"not {size} x {size}"
        status = first([((height > 0) & (width > 0), "image_bytes: no header of a PNG or JPEG file"),
                        (fits, named + wanted)])
        nothing = tf.zeros((size or 0, size or 0, channels), "uint8")

        def decoded(file):
            # PNG too, whatever the name. The default DCT errs by several levels.
            return tf.io.decode_jpeg(file, channels, dct_method="INTEGER_ACCURATE"), True

        lr, whole = tf.cond(status == "", lambda: attempted(decoded, encoded, (nothing, False)),
                            lambda: (nothing, True))
        status = first([(status == "", status), (whole, "image_bytes: a damaged file")])
        return tf.ensure_shape(lr, shape[1:]), status

    def packed(sr, status):
        return tf.cond(status == "", lambda: tf.io.encode_png(sr), lambda: ""), status

    def files(image_bytes, *rest):
        image_bytes = tf.ensure_shape(image_bytes, (None,))
        with tf.control_dependencies([
                tf.debugging.Assert(tf.size(image_bytes) > 0, ["image_bytes: no pictures"]),
                *of_one_length(image_bytes, rest)]):
            image_bytes = tf.identity(image_bytes)

        def one(inputs):
            encoded, *rest = inputs
            lr, status = opened(encoded)

            def upscaled():
                return packed(*[x[0] for x in integers(lr[None], *[x[None] for x in rest]).values()])

            return tf.cond(status == "", upscaled, lambda: ("", status))

        strings = (tf.TensorSpec((), "string"), tf.TensorSpec((), "string"))
        if size:
            of_picture = tf.TensorSpec(shape[1:], "uint8")
            lr, status = tf.map_fn(opened, image_bytes, fn_output_signature=(of_picture, strings[1]))
            sr, more = integers(lr, *rest).values()
            status = first([(status == "", status), (more == "", more)])
            answers = tf.map_fn(lambda row: packed(*row), (sr, status), fn_output_signature=strings)
        else:
            # One picture after the other: memory then holds the features of one.
            answers = tf.map_fn(one, (image_bytes, *rest), fn_output_signature=strings, parallel_iterations=1)
        return dict(zip(("image_bytes", "status"), answers, strict=True))

    entries = {
        "serving_default": (floats, [tf.TensorSpec(shape, "float32", "lr"), *extra]),
        "uint8": (integers, [tf.TensorSpec(shape, "uint8", "lr"), *extra]),
        "image_bytes": (files, [tf.TensorSpec((None,), "string", "image_bytes"), *extra]),
    }
    if network.draws_samples and not size:
        count = tf.TensorSpec((), "int32", "count")
        entries["samples"] = several, [tf.TensorSpec(shape, "float32", "lr"), *extra, count]
    return entries


def attempted(function: Callable, value: tf.Tensor, otherwise: tf.Tensor | tuple) -> tf.Tensor | tuple:
    """`function(value)`, or `otherwise`, which is like it, where that fails: a graph has no `except`."""
    results = tf.data.Dataset.from_tensors(value).map(function).ignore_errors()
    options = tf.data.Options()  # what makes long pipelines fast takes ten times as long as this one does
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False
    first = results.concatenate(tf.data.Dataset.from_tensors(otherwise)).take(1)
    return first.with_options(options).get_single_element()


def size_in_header(encoded: tf.Tensor) -> tf.Tensor:
    """(height, width) int32 of a PNG or JPEG file, before any pixel is decoded; 0 or a failure for others."""
    def png():
        size = tf.io.decode_raw(tf.strings.substr(encoded, 16, 8), "int32", little_endian=False)
        return tf.where(tf.strings.substr(encoded, 0, 16) == PNG, tf.stack([size[1], size[0]]), 0)

    return tf.cond(tf.strings.substr(encoded, 0, 3) == JPEG,
                   lambda: tf.io.extract_jpeg_shape(encoded)[:2], png)


def first(troubles: list[tuple[tf.Tensor, tf.Tensor | str]]) -> tf.Tensor:
    """Of (whether all is well, what is said if not), what the first that is not well says, or ""."""
    status = tf.zeros_like(troubles[0][0], "string")
    for well, text in reversed(troubles):
        status = tf.where(well, status, text)
    return status


def pixels(pictures: tf.Tensor, axis: int = 1) -> tf.Tensor:
    """Height times width of (B, H, W, C), int64; from axis 0 on, of all pictures."""
    return tf.reduce_prod(tf.shape(pictures, "int64")[axis:3])


def of_one_length(values: tf.Tensor, others: list[tf.Tensor]) -> list[tf.Operation]:
    """Assertions that `others`, temperature and seed, are of as many pictures as `values`."""
    return [tf.debugging.Assert(tf.reduce_all(tf.shape(other) == tf.shape(values)[:1]),
                                [f"{name}: one for each picture, found:", tf.shape(other)])
            for name, other in zip(("temperature", "seed"), others, strict=False)]


def sampled(network: ThumbnailUpscaler) -> Callable[..., tf.Tensor]:
    """A `ThumbnailUpscaler` as TensorFlow operations, with noise from a seed.

    Returns:
        Function of (lr (B, h, w, C), temperature (B,), seed (B,)), or of lr alone where the
        network draws nothing, -> (B, H, W, C) float32 in [0, 1]. Each image depends on its own
        inputs only, so that a server may put requests together.
    """
    if not network.draws_samples:
        return lambda lr: tf.clip_by_value(network(lr, training=False), 0, 1)
    # XLA is left out: a server need not have it.
    model = Sampler(network, jit_compile=False)
    size = network.outputs[0].shape[1:4]

    @tf.function(autograph=False)  # once in the SavedModel, whichever signatures call it
    def upscale(lr, temperature, seed):
        def noise(seed):
            return tf.random.stateless_uniform(size, (seed, 0), alg="philox")

        noises = tf.ensure_shape(tf.map_fn(noise, seed, tf.float32), (None, *size))
        return tf.cast(model([lr, noises, temperature]), "float32") / (model.levels - 1)

    return upscale


def computed(network: Upscaler) -> Callable[..., tf.Tensor]:
    """An `Upscaler` of images of any size as TensorFlow operations, for a batch of RGB images.

    Returns:
        Function of (lr (B, H, W, 3)), and (temperature (B,), seed (B,)) where the network
        draws samples, -> (B, sH, sW, 3), float32 in [0, 1], clipped. It computes tiles, as
        `ImageUpscaler.draw` does, or the whole where one pixel changes all of SR.
    """
    scale = network.scale
    bicubic = BicubicUpsampling2D(scale, dtype="float32")

    def window(lr, y, x, noise):
        """SR of a window of the images, whose first pixel lies at (y, x)."""
        height, width = tf.shape(lr)[1], tf.shape(lr)[2]
        for axis in (1, 2):
            lr = continued(lr, axis)
        temperature, seed = noise or (None, None)
        origin = tf.tile([[y, x]], (tf.shape(lr)[0], 1))

        def run(lr):
            given = network.feed(lr, temperature, seed, origin)
            return keras.tree.flatten(network(given, training=False))[-1]

        if network.channels == 1:
            ycbcr = converted(lr, rgb_to_ycbcr)
            sr = converted(tf.concat([run(ycbcr[..., :1]), bicubic(ycbcr[..., 1:])], -1), ycbcr_to_rgb)
        else:
            sr = run(lr)
        return tf.clip_by_value(sr[:, : height * scale, : width * scale], 0, 1)

    @tf.function(autograph=False)  # once in the SavedModel, whichever signatures call it
    def whole(lr, *noise):
        return window(lr, 0, 0, noise)

    @tf.function(autograph=False)
    def tiled(lr, *noise):
        def row(top, bottom):
            y = tf.maximum(top - overlap, 0)

            def tile(left, right):
                x = tf.maximum(left - overlap, 0)
                sr = window(lr[:, y : bottom + overlap, x : right + overlap], y, x, noise)
                return tf.transpose(sr[:, (top - y) * scale : (bottom - y) * scale,
                                       (left - x) * scale : (right - x) * scale], (2, 0, 1, 3))

            return tf.transpose(in_parts(tf.shape(lr)[2], tile), (2, 1, 0, 3))

        return tf.transpose(in_parts(tf.shape(lr)[1], row), (1, 0, 2, 3))

    try:
        overlap = network.overlap()
    except InputError:
        return whole
    return tiled


def in_parts(length: tf.Tensor, part: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]) -> tf.Tensor:
    """`part(start, end)` (N, B, M, 3) of TILE of a length at a time, joined along the first axis."""
    count = -(-length // TILE)
    parts = tf.TensorArray("float32", count, infer_shape=False, element_shape=(None, None, None, 3))
    _, parts = tf.while_loop(
        lambda i, parts: i < count,
        lambda i, parts: (i + 1, parts.write(i, part(i * TILE, tf.minimum((i + 1) * TILE, length)))),
        (0, parts), parallel_iterations=1)
    return parts.concat()


def continued(pictures: tf.Tensor, axis: int) -> tf.Tensor:
    """Continue an axis smaller than SMALLEST symmetrically by as much."""
    size = tf.shape(pictures)[axis]
    index = tf.range(tf.where(size < SMALLEST, size + SMALLEST, size)) % (2 * size)
    return tf.gather(pictures, tf.minimum(index, 2 * size - 1 - index), axis=axis)


def converted(pictures: tf.Tensor, conversion: Callable[[np.ndarray], np.ndarray]) -> tf.Tensor:
    """Apply an affine colour conversion of `datasets.color` to (..., 3) float32."""
    offset = conversion(np.zeros(3))
    matrix = conversion(np.eye(3)) - offset
    # A matrix product would lose the last bits of 8 on GPUs that multiply in TF32.
    return sum(pictures[..., i, None] * row for i, row in enumerate(matrix.astype("float32"))) + offset
