"""What assets are given at run time: the artifact store, the language model and the judge."""

from steer_pipeline.resources.artifact_store import ArtifactStoreResource, open_store
from steer_pipeline.resources.judge import JudgeResource
from steer_pipeline.resources.language_model import LanguageModelResource

__all__ = ["ArtifactStoreResource", "JudgeResource", "LanguageModelResource", "open_store"]
