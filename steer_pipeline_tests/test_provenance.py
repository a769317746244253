"""A result names the profile, model, libraries and commit that it comes from."""

import re
from types import SimpleNamespace

from steer_pipeline import provenance
from steer_pipeline.lab.models.identity import ModelIdentity


def test_provenance_names_profile_model_and_libraries():
    model = SimpleNamespace(
        name="tiny",
        revision=None,
        identity=ModelIdentity("ab", "cd", ("ef",)),
        dtype="float32",
        device="cpu",
        backend="torch",
    )
    facts = provenance.provenance(model=model)
    assert facts["profile"] == "newsroom"
    assert re.fullmatch("[0-9a-f]{16}", facts["profile_sha"])
    assert (facts["model"], facts["model_revision"], facts["device"]) == ("tiny", "none", "cpu")
    assert facts["model_identity"] == "base:ab tokenizer:cd adapter:ef"
    assert "polars " in facts["libraries"]
    assert "model" not in provenance.provenance()


def test_the_code_is_named_by_commit():
    state = provenance.git_state()
    assert re.fullmatch("[0-9a-f]{40}|unknown", state["git_commit"])
    assert 10 < provenance.peak_memory_mb() < 100_000


def test_code_outside_a_checkout_is_called_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "project_home", lambda: tmp_path)
    assert provenance.git_state() == {"git_commit": "unknown"}
