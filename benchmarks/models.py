"""The models that benchmarks of vectors run on, in fp32: the shipped newsroom, SmolLM2-135M, or a folder."""

from pathlib import Path

from steer_pipeline.catalogue.loading import load_profile
from steer_pipeline.catalogue.specs import Profile
from steer_pipeline.lab.models.installing import install_smollm2

HOME = Path(__file__).resolve().parent.parent
HELP = "newsroom, smollm2 (downloaded on first use), or a folder that save_pretrained wrote"


def profile_for(model: str) -> Profile:
    """The newsroom's profile; another model has its site at half its depth, and is given the newsroom's dialogues."""
    profile = load_profile("newsroom")
    path = profile.model.path
    if model != "newsroom":
        folder = install_smollm2(HOME) if model == "smollm2" else Path(model).resolve()
        path = str(folder.relative_to(HOME) if folder.is_relative_to(HOME) else folder)
        training = profile.training.model_copy(update={"block": 0.5})
        behaviour = profile.behaviour.model_copy(update={"allow_other_model": True})
        profile = profile.model_copy(update={"training": training, "behaviour": behaviour})
    return profile.model_copy(update={"model": profile.model.model_copy(update={"path": path})})
