"""The built wheel, installed beside Hugging Face's `datasets` and `evaluate`, far from the checkout.

Runs where `make test-wheel` has installed it, in an environment of its own.
"""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.py"))
BIN = Path(sys.executable).parent
INSTALLED = {distribution.name for distribution in importlib.metadata.distributions()}
pytestmark = pytest.mark.skipif("evaluate" not in INSTALLED,
                                reason="the wheel is not installed (make test-wheel)")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run a program of the environment in an empty folder: what it printed."""
    folder = tmp_path_factory.mktemp("elsewhere")

    def command(program, *arguments, status=0):
        result = subprocess.run([BIN / program, *arguments], cwd=folder, capture_output=True, text=True,
                                check=False)
        assert result.returncode == status, result.stderr[-2000:]
        return result.stdout + result.stderr

    return command


def test_the_wheel_keeps_to_its_own_folder(run):
    files = [file.parts for file in importlib.metadata.files("superres")]
    assert {part[0] for part in files if part[0] != ".."} == {
        "superres", f"superres-{importlib.metadata.version('superres')}.dist-info"}
    assert {part[1] for part in files if part[0] == "superres"} == {
        "__init__.py", "command_line.py", "commands.py", "cubic.py", "errors.py", "evaluate.py", "export.py",
        "files.py", "page.py", "pipelines.py", "precision.py", "prepare.py", "push.py", "study.html",
        "study.py", "upscale.py", "upscale_beam.py",
        "datasets", "layers", "losses", "metrics", "models", "train", "weights"} | {
        part[1] for part in files if part[1] == "__pycache__"}
    # The others' are still whole, and ours is not the checkout.
    printed = run("python", "-c", "import datasets, evaluate, superres; print(datasets.load_dataset, "
                  "evaluate.load, superres.__file__)")
    assert "site-packages/superres/__init__.py" in printed


def test_every_command_runs(run):
    run("python", "-c", "import numpy as np; from PIL import Image; "
        "Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), 'uint8')).save('small.png')")
    assert "1 upscaled, 0 failed" in run("superres-upscale", "lapsrn-x2", "small.png", "-o", "out")
    assert "mean" in run("superres-evaluate", "lapsrn-x4", "--data", "photos", "--limit", "1")
    run("superres-export", "lapsrn-x2", "exported", "--version", "1")
    run("superres-push", "--help")
    assert "3 to practise" in run("superres-study", "prepare", "lapsrn-x4", "--data", "photos", "-o", "study")
    assert "no answers to report" in run("superres-study", "report", "study", status=2)
    assert "needs Gradio" in run("superres-page", status=1)
    assert "needs Apache Beam" in run("superres-upscale-beam", "lapsrn-x2", "*.png", "out", status=1)
    trained = run("superres-train", "lapsrn", "--epochs", "1", "--steps", "2", "--run.folder", "run")
    assert trained.startswith("preset quick: ")
    assert "PAPER one of lapsrn" in run("superres-train", "lapsrm", status=2)


@pytest.mark.parametrize("paper", ["pixel_recursive", "srgan", "srmap"])
def test_every_training_is_found(run, paper):
    assert "quick" in run("superres-train", paper, "--help")


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_s_first_cell_runs(run, notebook):
    cells = notebook.read_text().split("\n# %%")
    first = next(cell for cell in cells if "import " in cell and not cell.lstrip().startswith("[markdown]"))
    run("python", "-c", f"#{first}")
