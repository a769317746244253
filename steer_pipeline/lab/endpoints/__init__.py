"""Models behind OpenAI-compatible endpoints: how they are asked, and how their replies are kept."""

from steer_pipeline.lab.endpoints.answers import AnswerCache
from steer_pipeline.lab.endpoints.client import (
    Client,
    Endpoint,
    EndpointError,
    EndpointUnavailable,
    Patience,
    Reply,
    Usage,
    run,
    sendable,
    shown_url,
)

__all__ = [
    "AnswerCache",
    "Client",
    "Endpoint",
    "EndpointError",
    "EndpointUnavailable",
    "Patience",
    "Reply",
    "Usage",
    "run",
    "sendable",
    "shown_url",
]
