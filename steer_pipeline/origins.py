"""What the graph stands on and Dagster does not make: personas, variants, weights, news files. Their content versions.

In: the settings. Out: for each origin and partition a version, which changes when, and only when, its content does.
Nothing here loads a model or raises: what is broken or absent has a version too, and a sentence that says why.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from steer_pipeline.catalogue.loading import load_persona
from steer_pipeline.catalogue.specs import ModelSpec
from steer_pipeline.lab.personas.schema import PAIRS
from steer_pipeline.settings import Settings

# How a text is recognised as a persona's; all else of a persona says how it is asked for.
SCALE_FIELDS = ("lexicon", "judge_rubric")
# Told to people, or of an origin of its own: how a persona is asked for does not depend on them.
APART_FIELDS = ("summary", "examples")
SHOWN = 16


@dataclass(frozen=True)
class Found:
    """The content of one origin as it is now; `problem` says what is wrong with it, if anything."""

    version: str
    problem: str | None = None


@dataclass(frozen=True)
class Origin:
    """One thing that assets are made of.

    Attributes:
        partitions: "persona", "variant" or None.
        look: settings and partition -> what is there now.
    """

    name: str
    summary: str
    partitions: str | None
    look: Callable[[Settings, str], Found]


def versions(current: Settings) -> Iterator[tuple[str, str | None, Found]]:
    """(origin, partition, what is there now) of everything that the graph stands on."""
    keys = {"persona": current.persona_names, "variant": current.variant_names}
    for origin in ORIGINS:
        for partition in keys[origin.partitions] if origin.partitions else [None]:
            yield origin.name, partition, look(origin, current, partition)


def look(origin: Origin, current: Settings, partition: str | None) -> Found:
    """What is there now; a problem of the files is part of the answer."""
    try:
        return origin.look(current, partition or "")
    except (ValueError, OSError) as error:
        return Found(_digest(["broken", str(error)]), str(error))


def _persona(current: Settings, name: str) -> Found:
    read = load_persona(name)
    persona, vector = _plain(read), read.vector
    # Another file at the same path is another vector.
    content = None if isinstance(vector, str) else _content(_below(current.home / vector.path))
    for pole in ("positive", "negative"):
        persona[pole] = {key: value for key, value in persona[pole].items() if key not in SCALE_FIELDS}
    asked = {key: value for key, value in persona.items() if key not in (*SCALE_FIELDS, *APART_FIELDS)}
    return Found(_digest([asked, content]))


def _scale(current: Settings, name: str) -> Found:
    persona = load_persona(name, profile=current.profile)
    said: list[Any] = [
        persona.kind,
        [persona.positive.lexicon, persona.negative.lexicon],
        persona.judge_rubric,
    ]
    if current.profile.scales.minilm == "examples" and persona.examples is not None:
        said.append(_plain(persona.examples))
    return Found(_digest(said))


def _examples(current: Settings, name: str) -> Found:
    persona, contrast = load_persona(name), current.profile.contrast
    pairs = current.home / contrast.pairs.replace("{persona}", name) if contrast.pairs else None
    content = None if pairs is None or PAIRS not in contrast.source else _content(_below(pairs.expanduser()))
    return Found(_digest([persona.examples and _plain(persona.examples), content]))


def _variant(current: Settings, name: str) -> Found:
    if (problem := current.broken_variants.get(name)) is not None:
        raise problem
    spec = _plain(current.variants[name])
    del spec["summary"]
    return Found(_digest(spec))


def _weights(current: Settings, _: str) -> Found:
    from steer_pipeline.lab.models.identity import model_identity

    identity = model_identity(current.profile.model, current.home)
    if identity is None:
        return Found(_named(current.profile.model))
    return Found(_digest([identity.base, identity.adapters]))


def _target(current: Settings, _: str) -> Found:
    from steer_pipeline.lab.models.identity import model_identity

    if (spec := current.profile.transport) is None:
        return Found("no model to carry vectors to")
    identity = model_identity(spec.model, current.home)
    if identity is None:
        return Found(_named(spec.model))
    return Found(_digest([identity.base, identity.tokenizer, identity.adapters]))


def _tokenizer(current: Settings, _: str) -> Found:
    from steer_pipeline.lab.models.identity import vocabulary_sha

    return _of_model(current, vocabulary_sha)


def _template(current: Settings, _: str) -> Found:
    from steer_pipeline.lab.models.identity import template_sha

    if not current.profile.model.chat_template:
        return Found("raw prompts")
    found, day = _of_model(current, template_sha), current.profile.model.date
    return (
        found if day == ModelSpec.model_fields["date"].default else Found(_digest([found.version, str(day)]))
    )


def _of_model(current: Settings, identity: Callable[[Path], str]) -> Found:
    folder = _model_folder(current)
    return Found(_named(current.profile.model) if folder is None else identity(folder)[:SHOWN])


def _model_folder(current: Settings) -> Path | None:
    from steer_pipeline.lab.models.identity import local_folder, model_source

    spec = current.profile.model
    return local_folder(model_source(spec, current.home), spec.revision)


def _named(spec: ModelSpec) -> str:
    """Of a hub id that is not here yet: the revision says what will be loaded."""
    return _digest([spec.path, spec.revision])


def _news(current: Settings, _: str) -> Found:
    from steer_pipeline.lab.corpus.sources import news_files

    source = current.profile.corpus.source
    if (
        source.kind == "hub"
    ):  # a snapshot is taken when it is read; what the hub has since is asked for by refresh_news
        return Found(_digest([source.path, source.split]))
    return Found(_content(news_files(source, current.home)))


def _facts(current: Settings, _: str) -> Found:
    return Found(_content(_below(current.shipped / "facts.parquet")))


def _dialogues(current: Settings, _: str) -> Found:
    source = current.profile.behaviour.source
    if source.kind == "generate":
        return Found("made by the profile's model")
    path = current.shipped / "dialogues.parquet" if source.path is None else current.home / source.path
    return Found(_content(_below(path)))


def _vignettes(current: Settings, _: str) -> Found:
    from steer_pipeline.lab.foundations import vignette_file

    if (spec := current.profile.heal.foundations) is None:
        return Found("no vignettes are asked")
    return Found(_content(_below(vignette_file(current.home, spec.path))))


ORIGINS = (
    Origin(
        "persona_spec",
        "How a persona is asked for: both poles' instructions, questions, where its vector comes from. One partition "
        "a file of `catalogue/personas/`; an edit makes stale what was made of that persona.",
        "persona",
        _persona,
    ),
    Origin(
        "persona_scale",
        "How a text is recognised as a persona's: marker words of both poles (the profile's, where it has some), the "
        "examples that MiniLM is fitted on, the judge's rubric. Mostly of the same files as `persona_spec`, apart from "
        "it, so that better scoring extracts no vector again.",
        "persona",
        _scale,
    ),
    Origin(
        "persona_examples",
        "How both poles of a persona sound: its examples, and the file of `contrast.pairs`. Of the same files as "
        "`persona_spec`, apart from it: contrast sets of given texts, and those that are filtered, stand on it.",
        "persona",
        _examples,
    ),
    Origin(
        "variant_spec",
        "One way of rewriting: terms with doses, scope, role and targets. One partition an entry of "
        "`catalogue/variants.yaml`, with the profile's own terms in place of the file's.",
        "variant",
        _variant,
    ),
    Origin(
        "model_weights",
        "Weights and configuration of the profile's model, all bytes of them.",
        None,
        _weights,
    ),
    Origin(
        "transport_target",
        "Weights, configuration, tokenizer and chat template of the model that the profile's `transport` carries "
        "vectors to.",
        None,
        _target,
    ),
    Origin("tokenizer", "The tokenizer of the profile's model, without its chat template.", None, _tokenizer),
    Origin("chat_template", "The chat template that prompts are made with.", None, _template),
    Origin("news_source", "The files of the profile's `corpus.source`.", None, _news),
    Origin(
        "news_facts",
        "What is known of the shipped news; other news are held to their lead.",
        None,
        _facts,
    ),
    Origin(
        "vignettes",
        "The moral vignettes of the profile's `heal.foundations`: its file, or those of the checkout.",
        None,
        _vignettes,
    ),
    Origin("dialogue_source", "The scored dialogues of the profile's `behaviour.source`.", None, _dialogues),
)


def _plain(model: BaseModel) -> dict[str, Any]:
    return model.model_dump(mode="json")


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:SHOWN]


def _below(path: Path) -> list[Path]:
    """The file, or all files of the directory; none where there is nothing."""
    return (
        sorted(each for each in path.rglob("*") if each.is_file())
        if path.is_dir()
        else [path] * path.is_file()
    )


def _content(paths: list[Path]) -> str:
    from steer_pipeline.lab.models.identity import content_sha

    return content_sha(paths)[:SHOWN]
