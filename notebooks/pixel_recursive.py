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
# # Pixel recursive super resolution
#
# Dahl, Norouzi and Shlens (2017) draw a 32 x 32 picture from 8 x 8 pixels, one sub-pixel after another: a conditioning
# network A looks at the small picture, a PixelCNN B at what has been drawn so far, and the sum of their logits is the
# distribution of the next sub-pixel. A student report put SPADE in place of batch normalisation. It says what failed:
# drawing took 3072 passes of the whole network, SPADE got worse after 8000 steps, and its PSNR hardly moves. This
# notebook shows why only the past is seen, why pixels must depend on one another, what the trained networks draw, how
# fast, and what was wrong with the PSNR.
#
# Set `SUPERRES_FACES` to a folder of CelebA's aligned pictures; without it, the one face that scikit-image installs
# stands in. The results below are of the first 9,000 of CelebA's, at half size: every tenth is held out, 900 in all, of which the
# first hundred chose the best epoch of each run. `SUPERRES_QUICK=1` trains for a few steps only.
#
# The report's house numbers and plates are in `REPRODUCTION.md`, with every other table and figure.
#
# **Measures.** *Bits per dimension*: the mean of -log2 of the probability that the network gives to the true value of each sub-pixel; a
# coin of 256 sides has 8. A, B and A + B are the distributions by the logits (log probabilities before they are normalised) of the one
# network, of the other, and of their sum. *PSNR*, *SSIM* and *MS-SSIM* compare a picture with the truth: higher is nearer. *Consistency*:
# the mean squared difference between LR and the shrunken picture, values in [0, 1]; lower is more faithful.

# %%
from superres import commands  # noqa: F401  first: it quietens TensorFlow

# isort: split
import csv
import dataclasses
import json
import os
from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np

import superres
from superres.datasets.catalogue import Example, load
from superres.datasets.pictures import contact_sheet
from superres.datasets.thumbnails import Thumbnails
from superres.layers import MaskedConv2D
from superres.metrics import psnr
from superres.metrics.thumbnails import evaluate_thumbnails, sample_quality, thumbnail_table
from superres.models import upscaler
from superres.models.pixel_recursive import prior_network
from superres.models.sampler import Sampler
from superres.train.pixel_recursive import PRESETS, split_thumbnails, trainer

QUICK = bool(os.environ.get("SUPERRES_QUICK"))
ROOT = Path(superres.__file__).parent
FACES = os.environ.get("SUPERRES_FACES")

if FACES:
    known, held_out = (Thumbnails(load(FACES, side, held_out=10), 8, 4, crop="face") for side in ("train", "test"))
else:
    face = next(load("photos", "test")).hr[0:200, 130:330]
    examples = [Example(f"astronaut_{i}", face[10 * i : 120 + 10 * i, 40:160]) for i in range(6)]
    known = held_out = Thumbnails(examples, 8, 4)
faces = held_out[100:] if FACES else held_out  # the first hundred chose the best epoch
faces = faces[:2] if QUICK else faces
print(f"{len(known)} pictures to train on, {len(faces)} to test on")


def show(sheet, width=12, title=None):
    """Draw an RGB picture as it is."""
    plt.figure(figsize=(width, width * sheet.shape[0] / sheet.shape[1]))
    plt.imshow(sheet, interpolation="nearest")
    plt.axis("off")
    plt.title(title or "", fontsize=10)
    plt.show()


# %% [markdown]
# ## Only the past is seen
#
# Sub-pixels come in raster order, each pixel's as R, G, B. A masked convolution sees the rows above, the pixels to
# the left, and of its own pixel the earlier colours (type A, on the picture) or also its own colour (type B, on
# features, which are split into one group a colour). White is seen. Left, what a feature of a colour sees of its own colour; right,
# at the centre, which of six input features each of six output features sees.

# %%
figure, axes = plt.subplots(1, 4, figsize=(12, 3.2), layout="constrained")
for pair, kind in zip(axes.reshape(2, 2), "AB", strict=True):
    layer = MaskedConv2D(6, 5, mask_type=kind)
    layer.build((None, 8, 8, 6))
    mask = np.asarray(layer._mask)
    for axis, part, title in zip(pair, (mask[:, :, 0, 0], mask[2, 2]), ("5 x 5 pixels", "the centre"), strict=True):
        axis.imshow(part, cmap="gray", vmin=0, vmax=1)
        axis.set_title(f"type {kind}: {title}")
    pair[0].set(xticks=range(5), xticklabels=range(-2, 3), xlabel="column", yticks=range(5), yticklabels=range(-2, 3),
                ylabel="row")
    pair[1].set(xticks=range(6), xticklabels="RRGGBB", xlabel="output feature", yticks=range(6), yticklabels="RRGGBB",
                ylabel="input feature")
plt.show()

# %% [markdown]
# The gated blocks need no masks but on the pixel itself: the vertical stack's kernel holds only rows above, the
# horizontal one's only pixels to the left. Code that shifts its rows at every layer, and not only at the first, never sees
# a part of the past. Here is what one pixel's last features see of the picture, found by changing each pixel in turn: everything
# above and to the left that is within reach.

# %%
depths = (0, 1) if QUICK else (0, 1, 3, 6)
figure, axes = plt.subplots(1, len(depths), figsize=(12, 3.3), layout="constrained")
for axis, blocks in zip(axes, depths, strict=True):
    prior = prior_network(32, filters=8, blocks=blocks, head=64)
    features = keras.Model(prior.input, prior.get_layer("last").output)
    base = np.random.default_rng(0).random((1, 32, 32, 3), "float32")
    expected = features.predict_on_batch(base.repeat(32, 0))[0, 16, 16]
    # One picture for each changed pixel.
    changed = np.repeat(base, 1024, 0)
    changed[np.arange(1024), np.arange(1024) // 32, np.arange(1024) % 32] += 100  # seen from afar
    logits = np.concatenate([features.predict_on_batch(part)[:, 16, 16] for part in np.split(changed, 32)])
    seen = (logits != expected).any(-1).reshape(32, 32)
    picture = np.where(seen, 0.8, 0.0)
    picture[16, 16] = 0.4
    axis.imshow(picture, cmap="gray", vmin=0, vmax=1)
    axis.set_title(f"{blocks} blocks after the first", fontsize=9)
    axis.axis("off")
plt.show()

# %% [markdown]
# ## Why pixels must depend on one another
#
# The paper's toy proof: LR is a digit, HR the digit in the top left or the bottom right corner of a black picture, and
# nothing tells which. Regression draws the mean, two faint digits; a network that draws each sub-pixel by itself
# draws half of the pixels of both; only the recursive one decides. The first two are trained here, the last one is the
# shipped `pixel_recursive-corners.keras`.

# %%
preset = PRESETS["corners"][1]
if QUICK:
    preset = dataclasses.replace(preset, filters=4, blocks=1, batch=4)
corners_train, _, corners_test = split_thumbnails(preset)
corners_test = corners_test[: 12 if QUICK else 100]
networks = {}
for kind in ("regression", "independent"):
    model = trainer(dataclasses.replace(preset, model=kind))
    model.fit(corners_train.dataset(), steps_per_epoch=1 if QUICK else 1000, verbose=0, shuffle=False)
    networks[kind] = model.network
networks["recursive"] = upscaler.load(ROOT / "weights" / "pixel_recursive-corners.keras")
drawn = {name: Sampler(network).sample(corners_test.lr, batch=100) for name, network in networks.items()}
for name, samples in drawn.items():
    print(f"{name:12} exactly one digit: {sample_quality(corners_test, samples)['one_digit']:.0%}")
rows = [[corners_test.lr[i].repeat(2, 0).repeat(2, 1) for i in range(12)]]
rows += [[samples[0, i] for i in range(12)] for samples in drawn.values()]
show(contact_sheet(rows, 4), title="the digit; regression; each sub-pixel by itself; recursive")

# %% [markdown]
# ## Training: batch normalisation, SPADE, and gates that see LR
#
# Bits per dimension of held-out faces while five networks train. A sees LR only, B the pixels drawn so far only; the
# picture is drawn from their sum. Batch normalisation and SPADE are compared at as many parameters and the same batches;
# the learning rate falls to a quarter at steps 1500 and 3000. (The first figures of batch normalisation are missing: they
# were measured with a running average of the weights, which was no good; those of `reported` with SPADE up to step 4000
# by a graph in which TensorFlow took ReLU for a leaky one.) `improved`, the network of the samples below,
# has batch normalisation too, but A's features also enter the gates of B, and so B alone is no model of pictures any
# more. It keeps its first learning rate for 8000 of its 12,000 steps; `reported`, without and with SPADE, keeps its own
# throughout.

# %%
def read_log(name):
    with open(ROOT / "weights" / f"{name}.csv", newline="") as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


logs = {"batch norm": read_log("pixel_recursive-celeba-batch"), "SPADE": read_log("pixel_recursive-celeba-spade"),
        "improved": read_log("pixel_recursive-celeba"), "reported": read_log("pixel_recursive-celeba-reported"),
        "reported SPADE": read_log("pixel_recursive-celeba-reported-spade")}
curves = {"val_bits": "A + B, held out", "val_bits_a": "A, held out", "val_bits_b": "B, held out", "loss": "A + B, training"}
figure, axes = plt.subplots(1, 4, figsize=(14, 3.6), layout="constrained")
for axis, (key, title) in zip(axes, curves.items(), strict=True):
    for number, (name, log) in enumerate(logs.items()):
        if rows := [row for row in log if key in row]:
            axis.plot([row["step"] for row in rows], [row[key] for row in rows], color=f"C{number}", label=name)
    low = 5.5 if key == "val_bits_a" else 2.9
    axis.set_ylim(low, low + 2.3)  # the first figures of `reported`, up to 14 bits, would flatten the rest
    axis.set_title(title)
    axis.set_xlabel("step")
axes[0].set_ylabel("bits per dimension")
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper")
plt.show()

# %% [markdown]
# The networks that the runs kept, as far as they go (900 held-out faces, one sample each), and the report's own figures at its
# checkpoints. `reported` is its preset, with a learning rate that does not fall. The report's SSIM may be right; its PSNR is not, as
# is shown below.

# %%
# Without SPADE, and with it
REPORT = {2000: ((27.922, 0.108), (27.915, 0.256)), 4000: ((28.058, 0.263), (27.907, 0.388)),
          8000: ((28.318, 0.470), (28.233, 0.568)), 16000: ((28.550, 0.543), (28.078, 0.481)),
          19000: ((28.779, 0.613), (28.235, 0.527))}
measured = json.loads((ROOT / "weights" / "pixel_recursive-checkpoints.json").read_text())
print(f"{'step':>5} {'':14} {'A + B':>6} {'A':>6} {'B':>6} {'PSNR':>6} {'SSIM':>6} {'MS-SSIM':>8} {'consist.':>9}"
      f" | {'report: PSNR':>13} {'SSIM':>6}")
for step in sorted({int(step) for rows in measured.values() for step in rows}):
    for name, rows in measured.items():
        if not (row := rows.get(str(step))):
            continue
        b = f"{row['bits_b']:6.3f}" if "bits_b" in row else f"{'':6}"  # `improved` has no B by itself
        line = (f"{step:5} {name:14} {row['bits']:6.3f} {row['bits_a']:6.3f} {b} {row['psnr']:6.2f} {row['ssim']:6.3f} "
                f"{row['ms_ssim']:8.3f} {row['consistency']:9.1e} |")
        if step in REPORT:
            line += " {:13.2f} {:6.3f}".format(*REPORT[step]["SPADE" in name])
        print(line)

# %% [markdown]
# **SPADE.** With the report's settings it is ahead by everything at 2000 steps. At 4000 and at 8000 it is ahead by SSIM and behind by
# PSNR, as in the report, and behind by bits, which the report lacks. One run each, and both waver from epoch to epoch, since their rate
# stays high. The report saw SPADE fall behind after 8000 steps, where these runs end (`reported` at 16,000): that is open. What is
# suspected: A with SPADE has 8.3 times the parameters there. At as many parameters and with a rate that falls, SPADE is ahead by bits, PSNR
# and SSIM at 2000 and at 4000. `improved` is ahead of all: its gates see LR, its weights are averaged, its rate falls later.
#
# Twelve faces, without SPADE and with it, a row each: by the two networks of the falling rate at 4000 steps, and by those of the
# report's settings, which have gone on to 16,000 and to 8000.

# %%
some = faces[:12]
rows = [some.lr.repeat(4, 1).repeat(4, 2)]
rows += [Sampler(upscaler.load(ROOT / "weights" / f"pixel_recursive-celeba-{norm}.keras")).sample(some.lr)[0]
         for norm in ("batch", "spade", "reported", "reported-spade")]
show(contact_sheet([*rows, some.hr], 3),
     title="LR; batch norm, SPADE (4000 steps); reported (16,000), reported SPADE (8000); truth")

# %% [markdown]
# The same faces at the report's own steps: what SPADE is ahead by at 2000 is plain to see, and later it is not.
# From the top: LR; at 2000 steps without SPADE and with it; at 8000 without and with; at 16,000 without; truth. (From the networks that both
# runs kept on their way, which are not shipped: `S5` of `REPRODUCTION.md`.)
#
# ![LR, 2000 steps without and with SPADE, 8000 without and with, 16,000 without, truth](figures/faces-steps.png)
#
# The report's cars (here 8,144 of Stanford's at 64 x 64, a tenth held out), from the top: LR; at 2000 steps without SPADE and with it; at
# 4000 without; truth. Colours settle before shapes do; the report saw the car's structure at 8000 of its 24,000 steps.
#
# ![LR, 2000 steps without and with SPADE, 4000 without, truth](figures/cars-steps.png)

# %% [markdown]
# ## What it draws
#
# From left to right: LR, bicubic interpolation, the training face whose LR is most alike (the paper's nearest
# neighbour), L2 regression, then samples at temperatures 1.0, 1.1, 1.2 and infinity (always the most probable value),
# and the truth. A temperature above 1 makes the distribution narrower: samples vary less, and get smoother.

# %%
network = upscaler.load(ROOT / "weights" / "pixel_recursive-celeba.keras")
regression = upscaler.load(ROOT / "weights" / "pixel_recursive-celeba-regression.keras")
sampler = network if QUICK else Sampler(network)  # evaluated, a network has compiled a sampler
some = faces[:12]
result, methods = evaluate_thumbnails(network, some, known)
columns = [some.lr.repeat(4, 1).repeat(4, 2), methods["bicubic"][0], methods["nearest neighbour"][0],
           Sampler(regression).sample(some.lr)[0]]
columns += [sampler.sample(some.lr, temperature)[0] for temperature in (1.0, 1.1, 1.2, np.inf)]
show(contact_sheet(list(zip(*columns, some.hr, strict=True)), 3), 11,
     "LR | bicubic | nearest neighbour | regression | 1.0 | 1.1 | 1.2 | infinity | truth")

# %% [markdown]
# The first 200 of them, measured (`evaluate.py` measures all 900 held out).

# %%
count = 2 if QUICK else 200
result, methods = evaluate_thumbnails(network, faces[:count], known)
print(thumbnail_table(result))
print("regression:", {key: round(value, 5) for key, value in sample_quality(
    faces[:count], Sampler(regression).sample(faces[:count].lr)).items()})

# %% [markdown]
# A sample has a lower PSNR than the mean has, however good the model is: of two faces that fit LR equally well it
# draws one, which costs up to 3 dB against their mean. Bits per dimension do not have that fault.
#
# ## What was wrong with the PSNR
#
# The report's PSNR lies between 27.9 and 28.8 dB throughout, which no 8 x 8 picture allows. Squared differences of 8-bit
# integers wrap around at 256, and then even two unrelated pictures measure 27.9 dB:

# %%
a, b = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype="uint8")
wrapped = -10 * np.log10(np.mean((a - b) ** 2) / 255**2)
print(f"two pictures of noise: {psnr(a, b):.1f} dB, with 8-bit integers {wrapped:.1f} dB")
a, b = some.hr[0], methods["network"][0, 0]
wrapped = -10 * np.log10(np.mean((a - b) ** 2) / 255**2)
print(f"a face and its sample: {psnr(a, b):.1f} dB, with 8-bit integers {wrapped:.1f} dB")

# %% [markdown]
# ## What the samples agree about
#
# Sixteen samples of each face: some of them, their mean, and their standard deviation (white: 32 levels or more). The
# samples agree where LR decides, and differ in hair, background and the features of the face.

# %%
some = faces[:6]
samples = sampler.sample(some.lr, samples=1 if QUICK else 16)
rows = []
for i in range(len(some)):
    spread = samples[:, i].astype("float64").std(0).mean(-1, keepdims=True)
    rows.append([some.lr[i].repeat(4, 0).repeat(4, 1), *samples[:6, i],
                 samples[:, i].mean(0).round().astype("uint8"),
                 np.clip(spread * 8, 0, 255).astype("uint8"), some.hr[i]])
show(contact_sheet(rows, 3), 11, "LR | six samples | mean | standard deviation | truth")

# %% [markdown]
# ## Speed
#
# Drawing computes every feature once: the vertical stack once a row, the horizontal stack once a pixel and colour. The
# bars compare it with one pass of the whole compiled network for every sub-pixel (`benchmarks/sampler.py`, two CPU cores,
# full-size network), whose time is extrapolated from 8 of its 3072 passes; of 393,216 values drawn
# both ways all but 13 are the same, and those lay where rounding decides between two.

# %%
results = [json.loads(path.read_text()) for path in (ROOT / "benchmarks" / "results").glob("*/sampler.json")]
rows = max(results, key=lambda result: result["date"])["rows"]  # the last machine that was measured
figure, axes = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
names = [f"batch {row['batch']}" for row in rows]
axes[0].bar(names, [row["speedup"] for row in rows])
axes[0].set_ylabel("times as fast as the naive loop")
axes[0].margins(y=0.12)  # room for the numbers
for position, row in enumerate(rows):
    axes[0].text(position, row["speedup"], f"{row['speedup']:.0f}", ha="center", va="bottom")
axes[1].bar(names, [row["seconds"] / row["batch"] for row in rows])
axes[1].set_ylabel("seconds a picture")
plt.show()
