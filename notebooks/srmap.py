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
# # SRMAP
#
# Many pictures x shrink to the same LR picture y. The *maximum a posteriori* picture is the most probable of them:
#
# $$\hat x = \arg\max_x p(x \mid y) = \arg\max_x \; \log p(y \mid x) + \log p(x).$$
#
# A student report trains a generator for both terms. **Fidelity**, $-\alpha \lVert y - D x \rVert_1$ with D MATLAB's bicubic
# shrinking, stands for the first: it is the log likelihood of y if shrinking adds Laplacian noise. A **discriminator** stands
# for the second, the prior of natural pictures: it knows no y, only whether x looks like a picture. Noise in every block
# of the generator should give another picture for every seed, all faithful to y.
#
# The report's samples all look alike. The objective explains it: neither term asks for more than one picture, and the one
# most probable picture is a maximum of both. `improved` replaces the first term by a projection, after which every SR shrinks to
# y, and adds one that a single picture cannot satisfy, the energy score of two samples $x_1, x_2$ and the truth x,
#
# $$\tfrac12\left(|x_1 - x| + |x_2 - x| - |x_1 - x_2|\right),$$
#
# whose expectation is smallest when samples come from the distribution of the truth: as far from each other as from it. Its
# distances are taken of the colours of a pixel and of the features at a place of three of VGG's layers, in which texture has its say. And
# layers at LR's size draw their noise for places four pixels apart, so that samples differ in regions and not only from pixel to
# pixel. (Noise of single LR pixels became rings as large as they are, which shrink to nothing: the projection cannot see them.)
#
# Set `SUPERRES_TEST` to a folder of test pictures (the results below are of Set5); without it, the photographs that scikit-image
# installs are used. Set `SUPERRES_SQUEEZENET` to Keras's weights of SqueezeNet 1.1 without its top (.h5) to measure the diversity S10 too.
# `SUPERRES_QUICK=1` measures a few small crops only.
#
# One picture of Set5, "woman", was at another size among the pictures that all three networks began with (`weights/README.md`): `L1`
# gains no more on it than a network that never saw it.
#
# **Measures.** *PSNR-Y* and *SSIM-Y*: nearness to HR in luminance, a border of `scale` pixels left out. *LR-PSNR*: the PSNR of the shrunken
# picture to LR, of the mean squared error over all samples; *worst* is the least of any sample. *Distance*: the SqueezeNet distance,
# uncalibrated, of a sample to HR; lower is nearer to the eye. *S10*: the NTIRE challenge's diversity score of ten samples, in percent, by
# that distance; 0 where all are alike. PSNR in the title of a crop is the whole picture's.

# %%
from superres import commands  # noqa: F401  first: it quietens TensorFlow

# isort: split
import csv
import io
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Image, display
from scipy.ndimage import uniform_filter
from skimage.feature import structure_tensor

import superres
from superres.datasets.catalogue import load
from superres.datasets.degradations import degraded, imresize
from superres.datasets.pictures import to_uint8
from superres.layers import ConsistentPicture
from superres.metrics import lr_psnr
from superres.metrics.perceptual import SqueezeNetDistance
from superres.metrics.report import average, busiest, evaluate
from superres.models import upscaler
from superres.models.srmap import SIZES, discriminator, generator
from superres.train.gan import curves

QUICK = bool(os.environ.get("SUPERRES_QUICK"))
WEIGHTS = Path(superres.__file__).parent / "weights"
photos = list(load(os.environ.get("SUPERRES_TEST", "photos"), "test"))
if QUICK:
    photos = [photo._replace(hr=photo.hr[:96, :96]) for photo in photos[:2]]
pairs = list(degraded(photos, 4, "bicubic"))
path = os.environ.get("SUPERRES_SQUEEZENET")
distances = {"squeezenet_distance": SqueezeNetDistance(path)} if path else {}
NAMES = {"L1": "srmap-x4-l1", "reported": "srmap-x4-reported", "improved": "srmap-x4"}
networks = {title: upscaler.load(WEIGHTS / f"{name}.keras") for title, name in NAMES.items()}


def show(rows, size=2.4):
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


def window(lr, size=28):
    """The busiest square of a picture, as slices of HR."""
    crop = min(size, *lr.shape[:2])
    return tuple(slice(4 * n, 4 * (n + crop)) for n in busiest(lr, crop))


# %% [markdown]
# ## The networks
#
# The report's, to the parameter, and the reduced ones whose weights are shipped. A new generator is exactly bilinear
# interpolation: every residual branch starts closed.

# %%
for scale in (4, 2):
    print(f"generator x{scale}: {generator(scale).count_params():,}")
print(f"discriminator: {discriminator().count_params():,}")
small, judge = SIZES["reduced"]
print(f"reduced: {generator(4, **small).count_params():,} and {discriminator(**judge).count_params():,}")

# %% [markdown]
# ## Training curves
#
# The report's Figure 4 has three of these, before they are weighted: fidelity, generator (here `adversarial`) and discriminator. `r1` and
# `r2` are the gradient penalties on real pictures and on the generator's, `accuracy` the share of pairs in which the discriminator finds
# the real picture more real; at one half it cannot tell. `energy`: the energy score. `gradient`: the length of a network's gradient.
# `val`: of the pictures held out, in dB and by SSIM. Both runs start from an L1 network. In the
# first ten epochs `reported` does as its heavy fidelity bids, and the discriminator cannot tell its pictures; then it can, and the
# generator's loss rises.

# %%
for name in ("srmap-x4-reported", "srmap-x4"):
    with open(WEIGHTS / f"{name}.csv", newline="") as file:
        rows = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
    buffer = io.BytesIO()
    curves(rows).savefig(buffer, dpi=70)
    print(name)
    display(Image(buffer.getvalue()))

# %% [markdown]
# ## The report's table
#
# Its Table 2, of pictures that it does not name, and ours: ten samples of each picture, but of L1, which draws one.

# %%
print("report: SRMAP                LR-PSNR 58.40 dB, LPIPS .153\nreport: generator with L1    LR-PSNR 52.80 dB, LPIPS .267\n")


COLUMNS = {"psnr_y": ("PSNR-Y", ".2f"), "ssim_y": ("SSIM-Y", ".4f"), "lr_psnr_pooled": ("LR-PSNR", ".2f"),
           "lr_psnr_worst": ("worst", ".2f"), "squeezenet_distance": ("distance", ".3f"), "diversity_score": ("S10", ".2f")}


def line(title, scores, pictures):
    """A line of the table: LR-PSNR over all pictures and samples, also where there is one sample."""
    faithful = [{key: value for key, value in row.items() if key.startswith("lr_psnr")} for row in pictures]
    scores = scores | average(faithful, drawn=True)
    return f"{title:28}" + "".join(f"{scores[key]:9{form}}" if key in scores else f"{'':9}"
                                   for key, (_, form) in COLUMNS.items())


print(f"{'':28}" + "".join(f"{heading:>9}" for heading, _ in COLUMNS.values()))
for title, name, options in (*((title, title, {}) for title in networks),
                             ("improved, temperature 0.6", "improved", {"temperature": 0.6})):
    network = networks[name]
    result = evaluate(network, pairs, distances, (2 if QUICK else 10) if network.draws_samples else None, **options)
    print(line(title, result["mean"], result["pictures"]))
print(line("bicubic", result["bicubic"], [row["bicubic"] for row in result["pictures"]]))

# %% [markdown]
# As in the report, its training shrinks to LR better than L1 does, and its samples are all alike. Unlike there, L1 is nearer to HR, by this
# distance (the report has LPIPS): after 10,000 of its 100,000 steps the discriminator's share is small, and the picture is smoother than
# L1's. `improved` is further from HR than bicubic interpolation by PSNR and nearer by distance: a sample, at best, has twice the squared
# error of the mean of all samples, 3 dB. On pictures of BSDS500, where LR shows less, it is further by distance too (`weights/README.md`).
# At temperature 0.6 it is nearer than bicubic by all measures.

# %% [markdown]
# ## Four samples, and where they differ
#
# The map is the standard deviation of ten samples at each pixel, as in the report's Figure 3, brighter for more; below
# each the same for the reported network, on the same scale, and once more on a scale of its own: single values that are rounded one
# way or the other. The energy score wants samples to be as
# far from each other as from the truth: both distances are printed.

# %%
for name, lr, hr in pairs[:3]:
    at = window(lr)
    rows, deviations = [], {}
    for title in ("improved", "reported"):
        samples = [networks[title].upscale(lr, seed=seed) for seed in range(4 if QUICK else 10)]
        one, other, truth = (picture.astype("float64") for picture in (*samples[:2], hr))
        print(f"{name}, {title}: two samples are {np.abs(one - other).mean():.2f} levels apart, "
              f"{np.abs(one - truth).mean():.2f} and {np.abs(other - truth).mean():.2f} from HR")
        deviations[title] = np.stack(samples).std(0).mean(-1)[at]
        rows.append([(f"{title}, seed {k}", sample[at]) for k, sample in enumerate(samples[:4])])
    brightest = np.quantile(deviations["improved"], 0.99)
    for row, title in zip(rows, deviations, strict=True):
        row.append((f"deviation, mean {deviations[title].mean():.2f} levels",
                    np.clip(deviations[title] / brightest * 255, 0, 255)))
    rows[0].append((name, hr[at]))
    own = np.quantile(deviations["reported"], 0.99) or 1
    rows[1].append((f"the same, times {brightest / own:.0f}", np.clip(deviations["reported"] / own * 255, 0, 255)))
    show(rows, 2.0)


# %% [markdown]
# ## Temperature
#
# The noise is multiplied by it: 0 draws one picture for all seeds, 1 is what was trained. The lower, the less samples differ, and the
# higher is the PSNR of each: PSNR and distance of single samples against the diversity score, over two pictures. The distance is least
# in between. At 1 there is the most texture, and some of it where there is none in HR; about half of that is a good picture.

# %%
TEMPERATURES = (0, 0.3, 0.6, 1)
for temperature in TEMPERATURES:
    scores = evaluate(networks["improved"], pairs[1:3], distances, 2 if QUICK else 10, temperature=temperature)["mean"]
    print(f"temperature {temperature:3}: " + ", ".join(
        f"{key} {scores[key]:.2f}" for key in ("psnr_y", "squeezenet_distance", "diversity_score") if key in scores))
rows = []
for name, lr, hr in pairs[1:3]:
    at = window(lr)
    rows.append([(f"temperature {temperature}", networks["improved"].upscale(lr, temperature=temperature, seed=1)[at])
                 for temperature in TEMPERATURES] + [(name, hr[at])])
show(rows, 2.4)

# %% [markdown]
# ## Consistency
#
# What is left of the difference between LR and the shrunken sample, times twenty, around grey. The projection
# $x + D^+(y - D x)$, with $D^+$ the pseudo-inverse of the shrinking, can be put behind any network: it is applied to the reported
# network's sample in the third column. A projection alone leaves [0, 1], so it takes turns with clipping, twenty times; its D shrinks as
# it is done to 8-bit pictures, which are clipped after either axis.

# %%
name, lr, hr = pairs[0]
projection, row = ConsistentPicture(4, rounds=20), [("LR", lr)]
drawn = {title: networks[title].upscale(lr / np.float32(255), seed=0) for title in ("reported", "improved")}
drawn["reported, projected"] = np.asarray(projection([lr[None].astype("float32") / 255, drawn["reported"][None]]))[0]
for title in ("reported", "reported, projected", "improved"):
    sr = to_uint8(drawn[title])
    left = imresize(sr, 1 / 4).astype(int) - lr
    row.append((f"{title}: LR-PSNR {lr_psnr(hr, sr, 4):.1f} dB", np.clip(128 + 20 * left, 0, 255).astype("uint8")))
show([row], 3.2)

# %% [markdown]
# ## Structured regions, hair and fur
#
# Pictures of the photographs that scikit-image installs, before the adversarial training, after the reported one and after the
# improved one, at temperature 1 and at half of it. First where gradients are strong and of one direction (the coherence of the
# structure tensor): edges, a tripod. Then hair, fur and the grain of wood. The reported network is smooth, with
# rims at edges, the improved one draws grain in patches. Hair and fur, which the report's full-size network recovers, neither does.

# %%
def structure(hr, size=112):
    """The square with the strongest gradients of one direction, as slices."""
    grey = hr.astype("float64").mean(-1)
    rr, rc, cc = structure_tensor(grey, sigma=3)
    strength = np.hypot(rr - cc, 2 * rc)  # the difference of the tensor's eigenvalues
    size = min(size, *grey.shape)
    score = uniform_filter(np.sqrt(strength), size)
    half = size // 2
    inside = score[half : grey.shape[0] - half + 1, half : grey.shape[1] - half + 1]
    top, left = np.unravel_index(inside.argmax(), inside.shape)
    return score.max(), (slice(top, top + size), slice(left, left + size))


def compared(name, lr, hr, at):
    """A row of pictures, cut out at `at`."""
    return [("bicubic", imresize(lr, 4)[at])] + [
        (title, network.upscale(lr)[at]) for title, network in networks.items()
    ] + [("improved, temperature 0.5", networks["improved"].upscale(lr, temperature=0.5, seed=0)[at]), (name, hr[at])]


scenes = list(degraded([scene._replace(hr=scene.hr[:96, :96]) if QUICK else scene
                        for scene in load("photos", "test", limit=1 if QUICK else None)], 4, "bicubic"))
show([compared(name, lr, hr, structure(hr)[1]) for name, lr, hr in scenes], 2.0)

# %%
PLACES = {"astronaut": (16, 168), "chelsea": (8, 96), "coffee": (240, 420)}  # hair, fur, wood
show([compared(name, lr, hr, tuple(slice(n, n + 112) for n in ((0, 0) if QUICK else PLACES[name])))
      for name, lr, hr in scenes if name in PLACES], 2.0)

# %% [markdown]
# ## Failures
#
# In each picture, the square of 96 pixels with something to see where the *best* of four samples errs most beside L1, by mean square
# error: the worst four of them. What is finer than LR can show comes out as grain, of which the samples differ and none is right: the
# discriminator of so short a training asks for texture, not for its form.

# %%
worst = []
for _, lr, hr in [*scenes, *pairs]:
    samples = [networks["improved"].upscale(lr, seed=seed) for seed in range(2 if QUICK else 4)]
    plain, patches = networks["L1"].upscale(lr), []
    for top in range(0, hr.shape[0] - 95, 96):
        for left in range(0, hr.shape[1] - 95, 96):
            at = slice(top, top + 96), slice(left, left + 96)
            errors = [np.square(sr[at].astype("float64") - hr[at]).mean() for sr in (plain, *samples)]
            if hr[at].std() > 30:
                patches.append((min(errors[1:]) / errors[0], [("L1", plain[at]), *(
                    (f"seed {k}", sample[at]) for k, sample in enumerate(samples)), ("truth", hr[at])]))
    worst += sorted(patches, key=lambda patch: -patch[0])[:1]
show([row for _, row in sorted(worst, key=lambda patch: -patch[0])[:4]], 2.0)
