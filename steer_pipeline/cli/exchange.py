"""`steer import` and `steer export`: published personas and other tools' vectors in, our vectors out."""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from steer_pipeline.catalogue.specs import Persona

# The lab knows the formats, but importing it takes seconds and --help should not; a test holds both equal.
EXPORTED = ("janus", "persona_vectors", "chatspace", "gguf", "repeng", "easysteer")
IMPORTED = ("auto", "trait", *EXPORTED, "llama.cpp")


VECTORS = ("persona_vector", "trained_vector")
PACK = "rewrite_pack"


@click.command("export")
@click.argument("name_of_it", metavar="NAME")
@click.option(
    "--format", "name", type=click.Choice(EXPORTED), required=True, help="What the other tool reads."
)
@click.option(
    "--to",
    "target",
    type=click.Path(path_type=Path),
    required=True,
    help="File to write; for chatspace, and for packs, a folder.",
)
@click.option(
    "--block",
    type=int,
    help="The block to write, from 0; negative counts from the end.  [default: all, or where the format holds one the "
    "recommended one]",
)
@click.option(
    "--asset",
    type=click.Choice([*VECTORS, PACK]),
    default="persona_vector",
    show_default=True,
    help="Which vector of a persona, or the pack of a variant.",
)
@click.option(
    "--without",
    metavar="PERSONA",
    help="Take the direction of this persona's vector out of it first, block by block: what a detector of that persona "
    "sees.",
)
@click.option("--keep-norm", is_flag=True, help="With --without: what is left gets the length it had.")
def export(
    name_of_it: str,
    name: str,
    target: Path,
    block: int | None,
    asset: str,
    without: str | None,
    keep_norm: bool,
) -> None:
    """Write the current vector of a persona, or the pack of a variant, as another tool reads it.

    NAME is the persona or, with `--asset rewrite_pack`, the variant; packs are written as Janus has them. Vectors keep
    their natural magnitude, so that the other tool's scale 1 adds the vector itself. gguf is for llama.cpp and leaves
    out block 0, which it refuses; repeng and easysteer are GGUF with every block. See `--block` for one.
    """
    if keep_norm and without is None:
        raise click.UsageError("--keep-norm goes with --without")
    if asset == PACK:
        if without is not None:
            raise click.UsageError("--without is of vectors; a pack has none")
        _export_pack(name_of_it, name, target)
    else:
        _export_vector(name_of_it, asset, name, target, block, without, keep_norm)


def _export_pack(variant: str, name: str, target: Path) -> None:
    from steer_pipeline.io.reader import read_rows
    from steer_pipeline.lab.rewrites.janus import export_pack

    if name != "janus":
        raise click.UsageError("packs are written as Janus has them: --format janus")
    rows, n_blocks = read_rows(_current(PACK, variant)), _model_config().get("num_hidden_layers")
    if n_blocks is None and any(rows["personas"].list.len()):
        raise click.ClickException("Janus counts blocks from the end, and the profile's model is not here")
    (path,) = export_pack(rows, target, n_blocks or 0)
    click.echo(f"{path}: {PACK} of {variant}, janus, {rows.height} rows")


def _export_vector(
    persona: str,
    asset: str,
    name: str,
    target: Path,
    block: int | None,
    other: str | None,
    keep_norm: bool,
) -> None:
    from steer_pipeline.lab.models.sites import resolve_site
    from steer_pipeline.lab.vectors.formats import FORMATS, export_vector
    from steer_pipeline.lab.vectors.vector import VectorError, load_vector
    from steer_pipeline.lab.vectors.without import without

    vector = load_vector(_current(asset, persona))
    try:
        if other is not None:
            vector = without(vector, load_vector(_current(asset, other)), keep_norm=keep_norm)
        if block is not None:
            block = resolve_site(block, vector.n_blocks).block
        elif FORMATS[name].one_block and len(vector.present_blocks) > 1:
            block = _recommended_block(persona)
        written = export_vector(vector, target, name, block=block, model_hint=_model_type())
    except (VectorError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    norms = ", ".join(
        f"{k} (length {float((vector.at(k) ** 2).sum()) ** 0.5:.3g})" for k in list(written)[:3]
    )
    more = f" and {len(written) - 3} more" if len(written) > 3 else ""
    click.echo(
        f"{target}: {asset} of {persona}, {name}, block{'s' if len(written) > 1 else ''} {norms}{more}"
    )


def _current(asset: str, name: str) -> Path:
    """Where the current version lies."""
    from steer_pipeline.io.store import ArtifactStore
    from steer_pipeline.settings import settings

    store = ArtifactStore(settings().store)
    version = store.current(asset, name)
    if version is None:
        known = ", ".join(store.partitions(asset)) or "none"
        raise click.ClickException(
            f"there is no {asset} of {name!r} in {settings().store}; there are: {known}. Make it with `steer make`"
        )
    return version.path


def _recommended_block(persona: str) -> int | None:
    """The block of the persona's recommended dose; None where there is none."""
    from steer_pipeline.io.store import ArtifactStore
    from steer_pipeline.lab.vectors.doses import load_recommendation
    from steer_pipeline.settings import settings

    curve = ArtifactStore(settings().store).current("dose_curve", persona)
    return None if curve is None else load_recommendation(curve.path).block


def _model_type() -> str:
    """The profile's model's architecture, for GGUF's hint; empty where its files are not here."""
    return str(_model_config().get("model_type", ""))


def _model_config() -> dict[str, Any]:
    from steer_pipeline.lab.models.identity import local_folder, model_source
    from steer_pipeline.settings import settings

    spec, home = settings().profile.model, settings().home
    with suppress(ValueError, OSError):
        folder = local_folder(model_source(spec, home), spec.revision)
        if folder is not None:
            return json.loads((folder / "config.json").read_text())
    return {}


@click.command("import")
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--persona", "name", help="Name in the catalogue.  [default: the file's stem; needed for vectors]"
)
@click.option(
    "--format", "kind", type=click.Choice(IMPORTED), default="auto", show_default=True, help="What PATH is."
)
@click.option("--opposite", default="helpful", show_default=True, help="Adjective of the negative pole.")
@click.option("--summary", help="One line for the UI.")
@click.option(
    "--block", type=int, help="Block of a vector whose file may not say it (Janus -1, EasySteer's .pt)."
)
@click.option(
    "--made-with",
    type=click.Choice(["torch", "mlx"]),
    default="torch",
    show_default=True,
    help="Back end of a Janus vector.",
)
def import_(
    path: Path,
    name: str | None,
    kind: str,
    opposite: str,
    summary: str | None,
    block: int | None,
    made_with: str,
) -> None:
    """Bring PATH into the catalogue as personas/NAME.yaml.

    PATH is a published trait or role file (instructions, questions, eval_prompt), or a vector of another tool: then
    the persona's vector is that file, and the pipeline measures it on the profile's model instead of computing one. A
    vector is read before anything is written, if the profile's model is here.
    """
    from steer_pipeline.lab.vectors.formats import import_trait_file, sniff_format
    from steer_pipeline.lab.vectors.vector import VectorError

    try:
        if kind == "trait" or (kind == "auto" and _is_trait_file(path)):
            persona = import_trait_file(path, name=name, opposite=opposite, summary=summary)
        else:
            if name is None:
                raise click.UsageError("a vector needs a name in the catalogue: --persona NAME")
            source = {"format": sniff_format(path) if kind == "auto" else kind, "path": _from_home(path)}
            source |= {"block": block} if block is not None else {}
            source |= {"made_with": made_with} if made_with != "torch" else {}
            persona = _persona_of_vector(name, opposite, summary, source)
    except (VectorError, ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    target = _write(persona)
    click.echo(f"{target}: {persona.kind} {persona.name}, {len(persona.questions)} questions for rollouts")


def _is_trait_file(path: Path) -> bool:
    if path.suffix != ".json":
        return False
    with suppress(ValueError):
        read = json.loads(path.read_text(encoding="utf-8"))
        return isinstance(read, dict) and "instruction" in read
    return False


def _from_home(path: Path) -> str:
    """Relative to the project root where it lies in it."""
    from steer_pipeline.environment import project_home

    whole = path.resolve()
    return str(whole.relative_to(project_home())) if whole.is_relative_to(project_home()) else str(whole)


def _persona_of_vector(name: str, opposite: str, summary: str | None, source: dict[str, Any]) -> "Persona":
    """An axis whose vector is a file. Its instructions ask for the poles that the vector is measured on."""
    from steer_pipeline.catalogue.specs import ImportedVector, Persona, Pole
    from steer_pipeline.lab.models.identity import name_of
    from steer_pipeline.lab.vectors.formats import import_declared
    from steer_pipeline.settings import settings

    vector = ImportedVector.model_validate(source)
    config, current = _model_config(), settings()
    blocks = config.get("num_hidden_layers") or config.get("text_config", {}).get("num_hidden_layers")
    if blocks is None:
        click.echo(
            f"not read yet: model {current.profile.model.path} of profile {current.profile.name} is not here",
            err=True,
        )
    else:
        model = name_of(current.profile.model, current.home)
        read = import_declared(vector, name, model=model, n_blocks=blocks, home=current.home)
        width = config.get("hidden_size") or config.get("text_config", {}).get("hidden_size")
        if width is not None and read.raw.shape[1] != width:
            raise ValueError(
                f"{source['path']}: its directions are {read.raw.shape[1]} wide, model {model} of profile "
                f"{current.profile.name} is {width}; choose the profile of the model it was made on (STEER_PROFILE)"
            )
    poles = []
    for one in (name, opposite):
        word = one.replace("_", " ")
        article = "an" if word[:1] in "aeiou" else "a"
        asked = [f"You are {article} {word} assistant.", f"Answer in {article} {word} way."]
        poles.append(Pole(name=one, instructions=asked))
    return Persona(
        name=name,
        kind="axis",
        summary=summary or f"The vector of {Path(source['path']).name}.",
        positive=poles[0],
        negative=poles[1],
        vector=vector,
    )


def _write(persona: "Persona") -> Path:
    """The catalogue file, whole or not at all; never over another one."""
    from steer_pipeline.environment import catalogue_folder
    from steer_pipeline.lab.vectors.formats import persona_yaml

    target = catalogue_folder() / "personas" / f"{persona.name}.yaml"
    if target.exists():
        cure = "give another name with --persona, or remove it"
        if persona.vector != "computed":
            given = persona.vector.model_dump(exclude_defaults=True)
            cure = (
                f"to give it this vector, write `vector: {json.dumps(given)}` into it; else give another name"
            )
        raise click.ClickException(f"{target} is there already; {cure}")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}")
    part.write_text(persona_yaml(persona), encoding="utf-8")
    part.replace(target)
    return target
