"""Examples run as they stand, on the shipped model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_ten_line_script_shows_both_poles():
    done = subprocess.run(
        [sys.executable, EXAMPLES / "steer_in_ten_lines.py"], capture_output=True, text=True, check=True
    )
    told = dict(line.split(": ", 1) for line in done.stdout.splitlines() if line.startswith("dose"))
    assert "plotters" in told["dose +0.3"]
    assert "neighbours" in told["dose -0.3"]
    assert "plotters" not in told["dose +0.0"]
    assert done.stdout.rstrip().endswith(told["dose +0.3"])  # Hugging Face's own generate, steered


@pytest.mark.parametrize("notebook", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.name)
def test_notebooks_run_from_top_to_bottom(notebook, monkeypatch):
    """Their code cells in order, in one namespace, as a kernel runs them."""
    monkeypatch.chdir(EXAMPLES)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    names: dict = {"__name__": "__main__"}
    cells = json.loads(notebook.read_text())["cells"]
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{notebook.name}[{number}]", "exec"), names)
