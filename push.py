"""Put a trained network on the Hugging Face hub, with a model card.

    python push.py lapsrn-x4 user/lapsrn-x4 --licence apache-2.0 --trained-on "T91 and BSDS200"
    python push.py runs/lapsrn/improved-x2/model.keras user/name --licence mit --dry-run card

uploads in one commit, all or nothing, or with `--dry-run` writes to a folder:

    network.keras   the network, byte for byte
    README.md       the model card: what it is, how to use it, figures, training, source
    figures.json    all figures of `evaluate.py`
    example.png     crops of LR, bicubic interpolation, SR and HR side by side

`superres.models.upscaler.load("hf://user/name")` loads it, and every command takes that for a
network. Needs huggingface_hub (`pip install huggingface_hub`), and a login (`hf auth login`, or a token
in HF_TOKEN).
"""

from superres.commands import command  # first: it quietens TensorFlow

# isort: split
import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Annotated, Literal

import tyro

from superres import evaluate
from superres.datasets.catalogue import is_shards
from superres.datasets.catalogue import load as load_pictures
from superres.datasets.thumbnails import Crop
from superres.errors import InputError
from superres.metrics.report import COLUMNS
from superres.metrics.thumbnails import thumbnail_table
from superres.models import hub
from superres.models.upscaler import Upscaler, load

# By the name that the functions of `models/` give their networks, without the scale.
SOURCES = {
    "lapsrn": "Lai et al., [Deep Laplacian Pyramid Networks for Fast and Accurate Super-Resolution]"
              "(https://arxiv.org/abs/1704.03915), CVPR 2017",
    "srgan": "Ledig et al., [Photo-Realistic Single Image Super-Resolution Using a Generative Adversarial "
             "Network](https://arxiv.org/abs/1609.04802), CVPR 2017",
    "srmap": 'the report "Explicit MAP Optimization for Photo-Realistic Super Resolution"',
    "pixel_recursive": "Dahl, Norouzi and Shlens, [Pixel Recursive Super Resolution]"
                       "(https://arxiv.org/abs/1702.00783), ICCV 2017",
}
SOURCES["conditioning"] = SOURCES["pixel_recursive"] + " (the conditioning network alone)"


def figures(result: dict) -> str:
    """What `evaluate.py` measured, as Markdown."""
    if "methods" in result:  # of a network of one size
        return f"```\n{thumbnail_table(result)}\n```"
    columns = {key: column for key, column in COLUMNS.items() if result["mean"].get(key) is not None}
    rows = [["", *(heading for heading, _ in columns.values())], ["---"] * (len(columns) + 1)]
    for title, values in (("this network", result["mean"]), ("bicubic interpolation", result["bicubic"])):
        rows.append([title, *(format(values[key], spec) if key in values else ""
                              for key, (_, spec) in columns.items())])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def model_card(network: Upscaler, repository: str, result: dict, licence: str, data: str,
               degradation: str | None, brings_lr: bool, trained_on: str, command: str) -> str:
    """The text of a model card, README.md, for a network that has been measured.

    Args:
        repository: `user/name`.
        result: What is in `figures.json`.
        licence, data, degradation, trained_on, command: See `main`.
        brings_lr: Whether the data have an LR of their own.
    """
    from huggingface_hub import ModelCardData

    scale, size = network.scale, network.lr_size
    front = ModelCardData(library_name="keras", pipeline_tag="image-to-image", license=licence,
                          tags=["super-resolution", "image-upscaling", "superres"])
    task = f"draws pictures of {scale * size} x {scale * size} pixels from {size} x {size}" if size else (
        f"upscales pictures of any size by {scale}")
    task += ", other ones for every seed" if network.draws_samples else ""
    # A folder's name, but not where it lies: that is nobody's business.
    folder = Path(data).parent if is_shards(data) else Path(data)
    pictures = f"`{folder.resolve().name}`" if folder.is_dir() else f"the `{data}` of `superres`"
    lr = "with LR of their own" if brings_lr else "shrunk to LR" if size else (
        f"LR made by {'random blur kernels' if degradation == 'realworld' else 'bicubic interpolation'}")
    source = SOURCES.get(re.sub(r"_x\d+$", "", network.name))
    sections = [
        f"---\n{front.to_yaml().strip()}\n---",
        f"# {repository.split('/')[1]}",
        f"A network that {task}: {network.count_params():,} parameters, "
        f"{'RGB' if network.channels == 3 else 'luminance' if not size else 'grey'}.",
        "![Examples, from LR on the left to HR on the right](example.png)",
        "## How to use it",
        "With the Python package `superres` and `huggingface_hub` (Keras alone lacks its layers):",
        f"""```python
from PIL import Image
from superres.models.upscaler import load

network = load("hf://{repository}")
network.upscale(Image.open("photo.jpg")).save("photo_x{scale}.png")
```""",
        f"or\n\n```\nsuperres-upscale hf://{repository} photo.jpg -o upscaled\n```",
        "## Figures",
        f"On {pictures}, {lr}; all of them are in `figures.json`.",
        figures(result),
        "## Training",
        f"Data: {trained_on or 'not known'}.",
        f"Command:\n\n```\n{command}\n```" if command else "Command: not known.",
        *(["## Source", f"{source}."] if source else []),
    ]
    return "\n\n".join(sections) + "\n"


def main(
    model: Annotated[str, tyro.conf.arg(metavar="MODEL")],
    repository: Annotated[str, tyro.conf.arg(metavar="USER/NAME")],
    /,
    licence: str,
    trained_on: str = "",
    command: str = "",
    data: str = "photos",
    degradation: Literal["bicubic", "realworld"] | None = None,
    crop: Crop | None = None,
    public: bool = False,
    dry_run: Annotated[str, tyro.conf.arg(metavar="FOLDER")] = "",
) -> None:
    """Put a trained network on the Hugging Face hub, with a model card.

    Example: push.py lapsrn-x4 user/name --licence apache-2.0 --trained-on "T91" --dry-run card

    Args:
        model: A shipped network's name, a .keras file, or hf://user/name on the Hugging Face hub.
        repository: Where to, user/name or organisation/name. It is made where there is none; to one that
            is there, whoever may see it, a commit is added.
        licence: Of the weights, as the hub names it: apache-2.0, mit, cc-by-4.0, cc-by-nc-4.0, other.
        trained_on: What the network was trained on, for the card.
        command: The command that trained it, for the card.
        data: What it is measured on for the card, as evaluate.py takes it.
        degradation: How LR is made there: MATLAB's bicubic (unless given), or random blur kernels.
        crop: Networks of one size: the square that is cut out of a picture there.
        public: Make a new repository one that everybody sees; without this, only you do.
        dry_run: Upload nothing, write to this folder, which must be new or empty.
    """
    address = f"hf://{repository}"
    if hub.parsed(address)[1]:
        raise InputError(f"{repository}: must be user/name, without a revision")
    folder = Path(dry_run)
    if dry_run and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"--dry-run: {dry_run} is there already, and not an empty folder")
    with hub.in_one_line(address) as huggingface_hub:
        if not dry_run and not huggingface_hub.get_token():
            raise InputError(f"{address}: not logged in (hf auth login, or a token in HF_TOKEN)")
    file = str(hub.network_file(model))
    network = load(file)
    with tempfile.TemporaryDirectory() as temporary:
        made = Path(temporary, "card")
        made.mkdir()
        evaluate.main(file, data, degradation=degradation, crop=crop, json_file=str(made / "figures.json"),
                      figure_file=str(made / "example.png"))
        result = json.loads((made / "figures.json").read_text())
        brings_lr = any(example.paired for example in load_pictures(data, "test", limit=1))
        card = model_card(network, repository, result, licence, data, degradation, brings_lr, trained_on,
                          command)
        (made / "README.md").write_text(card, encoding="utf-8")
        shutil.copyfile(file, made / hub.NETWORK)
        if dry_run:
            shutil.copytree(made, folder, dirs_exist_ok=True)
            print(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
            return
        with hub.in_one_line(address) as huggingface_hub:
            api = huggingface_hub.HfApi(library_name="superres")
            api.create_repo(repository, private=not public, exist_ok=True)
            # Not `upload_folder`, which may commit in several steps.
            files = [huggingface_hub.CommitOperationAdd(path.name, path) for path in sorted(made.iterdir())]
            message = f"{hub.stem(model)}, by superres-push"
            commit = api.create_commit(repository, files, commit_message=message)
    print(f"{commit.commit_url}: uploaded\n\nUse it:\n  superres-upscale {address} photo.jpg -o upscaled")


def cli() -> None:
    command(main)


if __name__ == "__main__":
    cli()
