"""What assets are given at run time: the artifact store and the language model."""

from steer_pipeline.resources.artifact_store import ArtifactStoreResource, open_store
from steer_pipeline.resources.language_model import LanguageModelResource

__all__ = ["ArtifactStoreResource", "LanguageModelResource", "open_store"]
