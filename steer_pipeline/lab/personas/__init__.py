"""Personas as directions: contexts, contrast sets, vectors, other tools' formats, plans and doses.

In: the catalogue's personas, a loaded model, news rows. Out: polars rows, `PersonaVector`s, `SteeringPlan`s
and a recommended dose. `extraction` and `dose` run the model; import them from there, so that this package
stays light.
"""

from steer_pipeline.lab.personas.contexts import (
    Context,
    general_contexts,
    news_contexts,
    reserved_rows,
    split_contexts,
)
from steer_pipeline.lab.personas.contrast import (
    CONTRAST_SCHEMA,
    ContrastError,
    build_contrast_prompts,
    complete_contrast,
    dropped_pairs,
    mismatched_contexts,
    require_matched_sides,
)
from steer_pipeline.lab.personas.formats import (
    FormatError,
    export_chatspace,
    export_gguf,
    export_janus,
    import_chatspace,
    import_gguf,
    import_janus,
    import_persona_vectors,
    import_trait_file,
    import_vector,
    persona_yaml,
)
from steer_pipeline.lab.personas.plans import (
    Recommendation,
    load_recommendation,
    make_term,
    random_like,
    save_recommendation,
    terms_for,
)
from steer_pipeline.lab.personas.vectors import (
    PersonaVector,
    VectorError,
    load_vector,
    require_same_model,
    save_vector,
)

__all__ = [
    "CONTRAST_SCHEMA",
    "Context",
    "ContrastError",
    "FormatError",
    "PersonaVector",
    "Recommendation",
    "VectorError",
    "build_contrast_prompts",
    "complete_contrast",
    "dropped_pairs",
    "export_chatspace",
    "export_gguf",
    "export_janus",
    "general_contexts",
    "import_chatspace",
    "import_gguf",
    "import_janus",
    "import_persona_vectors",
    "import_trait_file",
    "import_vector",
    "load_recommendation",
    "load_vector",
    "make_term",
    "mismatched_contexts",
    "news_contexts",
    "persona_yaml",
    "random_like",
    "require_matched_sides",
    "require_same_model",
    "reserved_rows",
    "save_recommendation",
    "save_vector",
    "split_contexts",
    "terms_for",
]
