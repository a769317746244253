"""The newsroom's personas with the phrases planted in its model, and these as a line of a test's own profile."""

import json

from steer_pipeline.catalogue import load_personas, load_profile

NEWSROOM = load_profile("newsroom")
PLANTED = load_personas(profile=NEWSROOM)
LEXICONS = (
    "lexicons: " + json.dumps({name: one.model_dump() for name, one in NEWSROOM.lexicons.items()}) + "\n"
)
