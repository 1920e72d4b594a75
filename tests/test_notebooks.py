"""The notebooks run from top to bottom, with a few training steps, and are committed executed."""

from pathlib import Path

import jupytext
import nbclient
import pytest

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
SCRIPTS = sorted(NOTEBOOKS.glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_runs(script, tmp_path, monkeypatch):
    monkeypatch.setenv("SUPERRES_QUICK", "1")
    for name in ("SUPERRES_DATA", "SUPERRES_FACES", "SUPERRES_SQUEEZENET", "SUPERRES_TEST", "SUPERRES_VGG"):
        monkeypatch.delenv(name, raising=False)
    notebook = jupytext.read(script)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_committed_notebook_is_executed_and_up_to_date(script):
    notebook = jupytext.read(script.with_suffix(".ipynb"))
    assert [cell.source for cell in notebook.cells] == [cell.source for cell in jupytext.read(script).cells]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    assert not any(output.output_type == "error" for cell in code for output in cell.outputs)
