"""Upscaling speed of LapSRN or SRGAN against the same network in PyTorch, and against OpenCV's LapSRN.

    python benchmarks/upscale.py
    python benchmarks/upscale.py --models weights/lapsrn-x2.keras weights/lapsrn-x4.keras --data FOLDER
    python benchmarks/upscale.py --opencv-x2 LapSRN_x2.pb --opencv-x4 LapSRN_x4.pb
    python benchmarks/upscale.py --paper srgan

The network alone (LapSRN's takes luminance, SRGAN's RGB), one LR picture in memory, called as
`models.upscaler` and `models.engine` call it. `openvino by hand` is what someone would write who knows
the size of the picture beforehand. OpenCV's is the network of the LapSRN authors, which is of about the
same size. All engines take turns. With models and pictures, it also reports what bfloat16
costs in Y-PSNR.
"""

from superres.commands import command  # first: it quietens TensorFlow

# isort: split
from typing import Literal

import keras
import numpy as np
import torch_lapsrn
import torch_srgan
from common import flop, interleaved, native, peak_functions, randomise, save, table
from torch_lapsrn import to_torch
from train_lapsrn import settings_of

from superres.datasets.catalogue import load
from superres.datasets.degradations import degraded
from superres.datasets.pictures import to_uint8
from superres.errors import InputError
from superres.metrics import quality
from superres.models import engine, upscaler
from superres.models.srgan import generator
from superres.train.lapsrn import trainer

# The network in PyTorch, what compares it with ours, and ours.
PAPERS = {
    "lapsrn": (torch_lapsrn.LapSRN, torch_lapsrn.check,
               lambda scale: trainer(settings_of(scale)).network),
    "srgan": (torch_srgan.Generator, torch_srgan.check, generator),
}


def network_of(paper, scale):
    """The network of the preset improved-xN, at the paper's depth, with random weights."""
    keras.utils.set_random_seed(0)
    network = PAPERS[paper][2](scale)
    randomise(network)
    return network


def torch_engines(paper, network, lr):
    """Dict of name -> function that upscales in PyTorch, the last level's picture alone.

    `compiled frozen` folds the weights into the compiled graph, in the layout that the
    convolutions want, which PyTorch does only on request.
    """
    import torch._inductor.config

    def torch_engine(channels_last=False, compiled=False, frozen=False):
        model = PAPERS[paper][0].from_keras(network).eval().requires_grad_(False)
        if channels_last:
            model = model.to(memory_format=torch.channels_last)
        picture = to_torch(lr, channels_last)
        # For this layout alone: after a first one, PyTorch would allow for any.
        call = torch.compile(model, dynamic=False) if compiled else model
        # Freezing refuses inference_mode's tensors.
        context = torch.no_grad if frozen else torch.inference_mode

        def upscale():
            with torch._inductor.config.patch(freezing=frozen), context():
                return keras.tree.flatten(call(picture))[-1].numpy()

        return upscale

    return {
        "torch eager": torch_engine(),
        "torch eager channels_last": torch_engine(channels_last=True),
        "torch compiled": torch_engine(compiled=True),
        "torch compiled channels_last": torch_engine(channels_last=True, compiled=True),
        "torch compiled frozen": torch_engine(compiled=True, frozen=True),
    }


def openvino_by_hand(network, lr):
    """Function that upscales by OpenVINO, compiled for the size of LR."""
    import openvino

    model = engine.converted(network)
    model.reshape(list(lr.shape))
    request = openvino.Core().compile_model(
        model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).create_infer_request()
    return lambda: request.infer([lr], share_inputs=True)[0]


def opencv_engine(path, scale, lr):
    """Function that upscales with OpenCV's dnn_superres, 8-bit BGR as it demands."""
    import cv2

    network = cv2.dnn_superres.DnnSuperResImpl_create()
    try:
        network.readModel(path)
        network.setModel("lapsrn", scale)
    except cv2.error as error:
        raise InputError(f"{path}: not a LapSRN model for OpenCV ({error})") from None
    picture = np.repeat(to_uint8(lr[0]), 3, axis=-1)
    return lambda: network.upsample(picture)


def measure(paper, network, width, height, rounds, opencv):
    """The rows of one network, and the machine's best rates at that time."""
    scale = network.scale
    lr = np.random.default_rng(0).random((1, height, width, network.input_shape[-1]), "float32")
    print(f"x{scale}: outputs agree to {PAPERS[paper][1](network, lr[:, :64, :64]):.1e}")
    bfloat16 = upscaler.at_precision(network, "bfloat16")
    by_openvino = engine.OpenVINOUpscaler(engine.converted(network))
    engines = native({
        "keras float32": lambda: network.predict_on_batch(lr),
        "keras bfloat16": lambda: bfloat16.predict_on_batch(lr),
        "openvino float32": lambda: by_openvino._run(lr[0]),
        "openvino by hand": openvino_by_hand(network, lr),
        **torch_engines(paper, network, lr),
    })
    if opencv:
        engines["opencv"] = opencv_engine(opencv, scale, lr)
    peaks = peak_functions()
    seconds = interleaved({**engines, **{name: function for name, (function, _) in peaks.items()}}, rounds)
    peak = {name: work / seconds[name]["min"] / 1e9 for name, (_, work) in peaks.items()}
    work = flop(network, height, width)
    best = min(s["median"] for name, s in seconds.items() if "torch" in name)
    rows = []
    for name in engines:
        median = seconds[name]["median"]
        row = {
            "scale": scale, "engine": name, "seconds": median, "seconds_min": seconds[name]["min"],
            "mpixel_per_second": width * height * scale**2 / median / 1e6,
            "over_best_torch": best / median,
            "over_keras_float32": seconds["keras float32"]["median"] / median,
        }
        if name != "opencv":  # another network
            rate = work / median / 1e9
            dtype = "bfloat16" if "bfloat16" in name else "float32"
            row |= {"gflop_per_second": rate, "of_peak_conv": rate / peak[f"conv {dtype}"],
                    "of_peak_matmul": rate / peak[f"matmul {dtype}"]}
        rows.append(row)
    return rows, peak


def bfloat16_loss(network, pictures):
    """Mean Y-PSNR of a network in float32 and in bfloat16, and the difference, in dB."""
    psnr = {}
    scale = network.scale
    pairs = list(degraded(pictures, scale, "bicubic"))
    for precision in ("float32", "bfloat16"):
        copy = upscaler.at_precision(network, precision)
        psnr[precision] = float(np.mean(
            [quality(hr, copy.upscale(lr), scale)["psnr_y"] for _, lr, hr in pairs]
        ))
    return {"scale": scale, "pictures": len(pairs), **{f"psnr_y_{k}": v for k, v in psnr.items()},
            "loss_db": psnr["float32"] - psnr["bfloat16"]}


def main(
    paper: Literal["lapsrn", "srgan"] = "lapsrn",
    models: tuple[str, ...] = (),
    data: str = "photos",
    scales: tuple[int, ...] = (2, 4),
    width: int = 640,
    height: int = 360,
    rounds: int = 5,
    opencv_x2: str = "",
    opencv_x4: str = "",
):
    """Upscaling speed of LapSRN or SRGAN against the same network in PyTorch.

    Args:
        paper: Whose network.
        models: Its trained networks (.keras) to measure.
        data: With models: HR pictures to measure what bfloat16 costs, a folder or a name of
            the catalogue (its test split).
        scales: Without models: the networks of which improved presets, with random weights.
        width: Of the LR picture, in pixels.
        height: Of the LR picture, in pixels.
        rounds: Timed calls of every engine.
        opencv_x2: OpenCV's LapSRN_x2.pb, timed too; of LapSRN alone.
        opencv_x4: OpenCV's LapSRN_x4.pb, timed too; of LapSRN alone.
    """
    networks = [upscaler.load(path) for path in models] or [network_of(paper, scale) for scale in scales]
    rows, peaks, losses = [], {}, []
    for network in networks:
        scale = network.scale
        opencv = {2: opencv_x2, 4: opencv_x4}.get(scale, "") if paper == "lapsrn" else ""
        more, peaks[f"x{scale}"] = measure(paper, network, width, height, rounds, opencv)
        rows += more
        if models:
            losses.append(bfloat16_loss(network, load(data, "test")))
    print(table(rows, {
        "scale": "d", "engine": "", "seconds": ".3f", "mpixel_per_second": ".2f", "over_best_torch": ".2f",
        "over_keras_float32": ".2f", "gflop_per_second": ".0f", "of_peak_conv": ".0%",
        "of_peak_matmul": ".0%",
    }))
    if losses:
        print(table(losses, {"scale": "d", "pictures": "d", "psnr_y_float32": ".3f",
                             "psnr_y_bfloat16": ".3f", "loss_db": ".4f"}))
    save("upscale" if paper == "lapsrn" else f"upscale_{paper}", rows, bfloat16=losses,
         peak_gflop_per_second=peaks, lr_size=[width, height],
         goals=["openvino float32 over_best_torch >= 1.2", "keras bfloat16 over_keras_float32 >= 1.6",
                "loss_db < 0.02"])


if __name__ == "__main__":
    command(main)
