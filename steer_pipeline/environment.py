"""Where this process finds things: the only reader of our environment variables.

`STEER_PROFILE` names the profile (default `newsroom`), `STEER_HOME` the project root (default: the checkout, and
without one the working directory),
`STEER_CATALOGUE` a catalogue of your own (default: the package's), `STEER_STORE` the artifact store (a directory or an
s3:// or gs:// URL), `STEER_NEWS_INBOX` the directory that the news sensor watches, `STEER_JUDGE_URL` the judge's
OpenAI-compatible endpoint (none: nothing is judged), `STEER_GAMES_URL` that of players of word games which have no
address of their own. Credentials of stores, judges (`STEER_JUDGE_KEY`) and players (`STEER_GAMES_KEY`) are read from
the environment by their own clients and never stored.
"""

import os
from pathlib import Path

PACKAGE = Path(__file__).parent
DEFAULT_PROFILE = "newsroom"


def profile_name() -> str:
    """A name of the catalogue, or the path of a YAML file."""
    return os.environ.get("STEER_PROFILE") or DEFAULT_PROFILE


def project_home() -> Path:
    """Relative paths of profiles and variables start here."""
    checkout = PACKAGE.parent if (PACKAGE.parent / "pyproject.toml").is_file() else Path.cwd()
    return Path(os.environ.get("STEER_HOME") or checkout).resolve()


def catalogue_folder() -> Path:
    """Where personas, variants and profiles lie."""
    return Path(os.environ.get("STEER_CATALOGUE") or PACKAGE / "catalogue")


def store_address() -> str:
    """Of all profiles; `Settings.store` is that of one."""
    return os.environ.get("STEER_STORE") or str(project_home() / "assets_data" / "store")


def inbox() -> Path:
    """The directory that the news sensor watches."""
    return Path(os.environ.get("STEER_NEWS_INBOX") or project_home() / "assets_data" / "inbox")


def dagster_home() -> Path:
    """Where Dagster keeps its instance: `DAGSTER_HOME`, which is Dagster's own variable, else the project root."""
    return Path(os.environ.get("DAGSTER_HOME") or project_home())


def judge_url() -> str | None:
    """Of the OpenAI-compatible endpoint."""
    return os.environ.get("STEER_JUDGE_URL") or None


def games_url() -> str | None:
    """Of the OpenAI-compatible endpoint whose models play word games."""
    return os.environ.get("STEER_GAMES_URL") or None
