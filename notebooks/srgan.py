# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # SRGAN
#
# Ledig et al. (CVPR 2017) found that the network with the best PSNR draws the mean of all pictures that fit, and that the
# mean is smooth. They let a second network, the discriminator, tell upscaled pictures from real ones, and train the
# generator to be taken for real. A student report trained it for x2, gave no PSNR and no SSIM, and names one failing: "when
# there is a change in color gradient", which we take for wrong colours. This notebook gives the figures, shows the failing,
# and what mends it.
#
# Set `SUPERRES_TEST` to a folder of test pictures (the results below are of Set5); without it, the photographs that scikit-image
# installs are used. Set `SUPERRES_SQUEEZENET` to Keras's weights of SqueezeNet 1.1 without its top (.h5) to measure a perceptual distance too.
# `SUPERRES_QUICK=1` measures a few small crops only.
#
# One picture of Set5, "woman", was at another size among the pictures that all but `srgan-x2-reported` were trained on: they gain no more
# on it than a network that never saw it (`weights/README.md`).
#
# **Measures.** *PSNR-Y* and *SSIM-Y*: nearness to HR in luminance, a border of `scale` pixels left out. *LR-PSNR*: the PSNR of the shrunken
# picture to LR. *Distance*: the SqueezeNet distance, uncalibrated; lower is nearer to the eye. *Colour error*: the mean difference to HR,
# blurred, over the smoothest quarter of the pixels, in levels of 255. PSNR in the title of a crop is the whole picture's.

# %%
from superres import commands  # noqa: F401  first: it quietens TensorFlow

# isort: split
import csv
import io
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Image
from scipy.ndimage import uniform_filter

import superres
from superres.datasets.catalogue import load
from superres.datasets.degradations import degraded, imresize
from superres.metrics import colour_error, quality
from superres.metrics.perceptual import SqueezeNetDistance
from superres.metrics.report import busiest, evaluate, table
from superres.models import upscaler
from superres.models.srgan import discriminator, generator
from superres.train.gan import curves

QUICK = bool(os.environ.get("SUPERRES_QUICK"))
WEIGHTS = Path(superres.__file__).parent / "weights"
photos = list(load(os.environ.get("SUPERRES_TEST", "photos"), "test"))
if QUICK:
    photos = [photo._replace(hr=photo.hr[:96, :96]) for photo in photos[:2]]
pairs = {scale: list(degraded(photos, scale, "bicubic")) for scale in (2, 4)}
path = os.environ.get("SUPERRES_SQUEEZENET")
distances = {"squeezenet_distance": SqueezeNetDistance(path)} if path else {}


def show(rows, size=2.6):
    """Draw rows of (title, picture), pixels as they are."""
    columns = max(map(len, rows))
    axes = plt.subplots(len(rows), columns, figsize=(columns * size, len(rows) * (size + 0.25)), squeeze=False)[1]
    for axis in axes.flat:
        axis.axis("off")
    for line, row in zip(axes, rows, strict=True):
        for axis, (title, picture) in zip(line, row, strict=False):
            axis.imshow(np.squeeze(picture), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axis.set_title(title, fontsize=8)
    plt.tight_layout()
    plt.show()


# %% [markdown]
# ## The networks
#
# The generator is a residual network at LR's resolution, with sub-pixel convolutions at its end. The report's has five
# blocks and one slope per PReLU, the paper's sixteen and a slope per channel. The number of parameters that the report
# gives for "the GAN", 5,215,425, is the discriminator's alone.

# %%
def trainable(network):
    return sum(int(np.prod(weight.shape)) for weight in network.trainable_variables)


for scale in (2, 4, 8):
    print(f"generator x{scale}: 5 blocks {trainable(generator(scale)):9,}, "
          f"16 blocks with a slope per channel {trainable(generator(scale, 16, prelu='channel')):9,}")
print(f"discriminator: {trainable(discriminator()):,}; with the paper's dense head for 96 x 96 "
      f"{trainable(discriminator(size=96)):,}")

# %% [markdown]
# ## Training
#
# A warm-up on pixels alone, then adversarial training. Everything that adversarial training logs, for the shipped x2 network: 1,500 steps in 15
# epochs. `pixel`, `vgg`, `adversarial`, `grid` and `fidelity` (to LR) are the generator's losses before they are weighted, `val` PSNR and SSIM
# are of pictures held out. `accuracy` is the share of pairs in which the discriminator finds the real picture more real. The kernels of this one are spectrally
# normalised, which bounds its slope. Where nothing does, it wins: then what the generator invents drifts away from the truth, and a grid appears.

# %%
def read_log(name):
    with open(WEIGHTS / f"{name}.csv", newline="") as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


def drawn_curves(name, warm_up=0):
    buffer = io.BytesIO()
    curves(read_log(name), warm_up).savefig(buffer, dpi=80)
    return Image(buffer.getvalue())


drawn_curves("srgan-x2")

# %% [markdown]
# The report's own training, whole: ten epochs of warm-up (left of the dotted line) and 40 of adversarial training. The
# discriminator tells nearly every pair from its second epoch on (98 % and more), and the generator's adversarial loss grows to ten
# times what it was.

# %%
drawn_curves("srgan-x2-reported", warm_up=10)

# %% [markdown]
# What that run drew of pictures held out, after the warm-up and after each quarter (`comparison.png` in the run's folder): tinges that
# come and go, and a grid of single pixels over sky and walls.
#
# ![Bicubic, the warm-up, after 10, 20, 30 and 40 epochs, HR](figures/srgan-x2-reported.jpg)

# %% [markdown]
# ## What the networks draw
#
# The busiest part of each picture: bicubic interpolation, SRResNet (the generator after the warm-up), SRGAN, and the
# truth, at x4; then at x2, beside the report's own training, whose patterns are finer than SR's texture.

# %%
networks = {(kind, scale): upscaler.load(WEIGHTS / f"{kind}-x{scale}.keras")
            for kind in ("srresnet", "srgan") for scale in (2, 4)}
reported = upscaler.load(WEIGHTS / "srgan-x2-reported.keras")
drawn = {(kind, scale): [network.upscale(lr) for _, lr, _ in pairs[scale]]
         for (kind, scale), network in {("reported", 2): reported, **networks}.items()}
TITLES = {"reported": "reported", "srresnet": "SRResNet", "srgan": "SRGAN"}
for scale, count in ((4, 4), (2, 3)):
    rows = []
    for i, (name, lr, hr) in enumerate(pairs[scale][:count]):
        crop = min(128 // scale, *lr.shape[:2])
        top, left = (scale * n for n in busiest(lr, crop))
        window = slice(top, top + scale * crop), slice(left, left + scale * crop)
        methods = {"bicubic": imresize(lr, scale)}
        methods |= {title: drawn[kind, scale][i] for kind, title in TITLES.items() if (kind, scale) in drawn}
        rows.append([(f"{title} {quality(hr, picture, scale)['psnr_y']:.2f} dB", picture[window])
                     for title, picture in methods.items()] + [(f"{name} x{scale}", hr[window])])
    show(rows)

# %% [markdown]
# The figures that the report does not give: means over the pictures. A GAN pays for its sharpness in PSNR, as the paper's
# does (29.40 dB on Set5 where its SRResNet has 32.05). The report's training ends 9 dB below SRResNet, most of which its short warm-up
# had not gained, and is further from HR than bicubic interpolation: its tinges and its grid are what the distance sees.

# %%
for (kind, scale), network in {**networks, ("reported", 2): reported}.items():
    result = evaluate(network, pairs[scale], distances)
    print(f"{kind} x{scale}")
    print(table({**result, "pictures": []}), "\n")


# %% [markdown]
# ## Between PSNR and sharpness
#
# SRGAN is trained from SRResNet, so their weights can be interpolated (`--blend` in `upscale.py` and `evaluate.py`): 0 is SRGAN,
# 1 SRResNet. Drawn is the distance to the truth, smaller is nearer, or where SqueezeNet's weights are not given, sharpness: the
# mean gradient of the picture over the truth's, 1 is as sharp. The way from SRGAN to SRResNet is no straight line: a little of
# SRResNet gains PSNR at hardly any cost in distance, and at x2 PSNR is highest somewhat before SRResNet.

# %%
def gradient(picture):
    """The mean length of the gradient, in levels a pixel."""
    return np.hypot(*np.gradient(picture.astype("float64").mean(-1))).mean()


figure, axes = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
for axis, scale in zip(axes, (2, 4), strict=True):
    points = []
    for blend in (0, 1) if QUICK else np.linspace(0, 1, 9):
        network = upscaler.load_blended(WEIGHTS / f"srgan-x{scale}.keras", "float32", float(blend),
                                       WEIGHTS / f"srresnet-x{scale}.keras")
        measured = []
        for _, lr, hr in pairs[scale]:
            sr = network.upscale(lr)
            far = distances["squeezenet_distance"](hr, sr) if distances else gradient(sr) / gradient(hr)
            measured.append((quality(hr, sr, scale)["psnr_y"], far))
        points.append((blend, *np.mean(measured, 0)))
    blends, decibels, far = zip(*points, strict=True)
    axis.plot(decibels, far, marker="o")
    for blend, x, y in points[:: len(points) // 2]:
        axis.annotate(f"blend {blend:.1f}", (x, y), xytext=(6, -9), textcoords="offset points", fontsize=8)
    axis.margins(x=0.15, y=0.1)  # room for the labels
    axis.set_xlabel(f"PSNR-Y in dB, x{scale}")
    axis.set_ylabel("SqueezeNet distance (uncalibrated)" if distances else "sharpness")
plt.show()

# %% [markdown]
# ## Changes of colour
#
# The report's failing. Its loss compares pixels with a weight of 0.0041 and otherwise asks the discriminator and VGG,
# which both see edges better than tones: little holds the mean colour of a smooth region. Most of what goes wrong is
# the warm-up's, which ends too early: after its ten epochs colours are 8.4 levels off, after the 40 epochs of adversarial training (patches
# of 64 x 64) 11.7, with a grid of single pixels, and the discriminator tells every pair by then. From SRResNet (a longer warm-up, on L1, from
# an interpolation: 0.8 levels) the same training ends 3.9 levels off, with the grid (`weights/README.md` has both runs after every ten epochs). The shipped network's loss also
# shrinks SR and compares it with LR. Here are both networks' pictures, and beside each the blurred difference to the truth, times four,
# around grey.

# %%
rows, errors = [], []
for i, (name, _, hr) in enumerate(pairs[2]):
    pictures = {"reported": drawn["reported", 2][i], "improved": drawn["srgan", 2][i]}
    errors.append([(colour_error(hr, sr), quality(hr, sr, 2)["lr_psnr"]) for sr in pictures.values()])
    maps = {title: uniform_filter(sr.astype("float64") - hr, (9, 9, 0)) for title, sr in pictures.items()}
    rows.append([(name, hr)])
    for title, (error, decibels) in zip(maps, errors[-1], strict=True):
        rows[-1] += [(f"{title}: LR-PSNR {decibels:.1f} dB", pictures[title]),
                     (f"colour error {error:.2f} levels", np.clip(128 + 4 * maps[title], 0, 255).astype("uint8"))]
show(rows[:3], 3)
for title, (error, decibels) in zip(("reported", "improved"), np.mean(errors, 0), strict=True):
    print(f"{title}: colour error {error:.2f} of 255 levels in smooth regions, LR-PSNR {decibels:.2f} dB")

# %% [markdown]
# ## Successes and failures
#
# Of all patches of 96 x 96 pixels with something to see, x4: one of each of three pictures where SRGAN's distance to HR is least
# beside SRResNet's (above), and one of each of three where it is largest (below). Where SqueezeNet's weights are not given, by the mean
# squared error. Titles have SRGAN's over SRResNet's. It gains on wool, hair and edges, and loses where HR is smooth: there its texture,
# grain on skin and leaves, is made up.

# %%
def distance(hr, sr):
    if distances:
        return distances["squeezenet_distance"](hr, sr)
    return np.square(sr.astype("float64") - hr).mean()


patches = []
for i, (_, _, hr) in enumerate(pairs[4]):
    for top in range(0, hr.shape[0] - 95, 96):
        for left in range(0, hr.shape[1] - 95, 96):
            window = slice(top, top + 96), slice(left, left + 96)
            if gradient(hr[window]) > 4.5:  # something to see
                patches.append((distance(hr[window], drawn["srgan", 4][i][window])
                                / distance(hr[window], drawn["srresnet", 4][i][window]), i, window))
patches.sort(key=lambda patch: patch[0])


def of_different_pictures(patches, count=3):
    """The first `count` patches, no two of one picture."""
    first = {}
    for patch in patches:
        first.setdefault(patch[1], patch)
    return [*first.values()][:count]


rows = []
for ratio, i, window in of_different_pictures(patches) + of_different_pictures(patches[::-1]):
    name, lr, hr = pairs[4][i]
    rows.append([("bicubic", imresize(lr, 4)[window]), ("SRResNet", drawn["srresnet", 4][i][window]),
                 (f"SRGAN, times {ratio:.2f}", drawn["srgan", 4][i][window]), (name, hr[window])])
show(rows, 2.2)
