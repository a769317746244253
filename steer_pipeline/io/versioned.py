"""What both IO managers share: an output becomes a version in the store, an input is read from one.

The data version is the hash of the content, so that Dagster sees what really changed. A single-run asset
returns a dict {partition: value}; an input annotated as dict gets one, sorted by key, however many partitions it
has. The versions that a step read are written into the manifest of what it made.
"""

import hashlib
import json
import math
import time
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, get_origin

import dagster as dg

from steer_pipeline import provenance, show
from steer_pipeline.io.store import SHA_LENGTH, ArtifactStore, StoreError, Version, label
from steer_pipeline.keys import name_of
from steer_pipeline.observing import observe
from steer_pipeline.resources.artifact_store import ArtifactStoreResource
from steer_pipeline.resources.language_model import models_of_step

ROW_COUNT, PARTITION_ROW_COUNT = "dagster/row_count", "dagster/partition_row_count"
COLUMNS = "dagster/column_schema"
ALLOW_MISSING = "allow_missing_partitions"
_REMEMBERED_STEPS = 256
_FOR_THE_EYE = (dg.TableMetadataValue, dg.TableSchemaMetadataValue, dg.MarkdownMetadataValue)
_inputs_of_step: OrderedDict[tuple[str, str], dict[str, str]] = OrderedDict()


def note_input(context: Any, version: Version) -> Version:
    """Records that the running step read `version`; for assets that read the store by themselves.

    Args:
        context: the asset's, check's or IO manager's context.
    """
    step = getattr(context, "step_context", None) or context.op_execution_context.get_step_execution_context()
    manifest = version.manifest
    key = (step.run_id, step.step.key)
    _inputs_of_step.setdefault(key, {})[label(manifest["asset"], manifest["partition"])] = version.sha
    _inputs_of_step.move_to_end(key)
    while len(_inputs_of_step) > _REMEMBERED_STEPS:
        _inputs_of_step.popitem(last=False)
    return version


class VersionedIO(dg.ConfigurableIOManager):
    """Stores each output as a version, with its hash as data version."""

    store: ArtifactStoreResource

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        """A run starts: what it will be made of is observed first, so that its record names the right versions."""
        if context.instance is not None:
            observe(context.instance)

    @abstractmethod
    def dump(self, value: Any, folder: Path) -> Mapping[str, Any]:
        """Writes `value` into an empty folder and returns metadata about it.

        Raises:
            TypeError: this manager does not store such values.
        """

    @abstractmethod
    def load(self, version: Version) -> Any:
        """What the asset downstream is given."""

    def links(self, version: Version) -> Mapping[str, Any]:
        """Metadata by which a person opens what is stored."""
        return {}

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        asset = name_of(context.asset_key)
        if not context.has_asset_partitions:
            self._commit(context, asset, None, obj)
            return
        keys = list(context.asset_partition_keys)
        values = _by_partition(asset, keys, obj)
        versions = {key: self._commit(context, asset, key, values[key]) for key in keys}
        if len(keys) > 1:
            # Dagster knows one data version a run: it must change if and only if a partition's does.
            _set_data_version(context, _combined(versions))

    def load_input(self, context: dg.InputContext) -> Any:
        asset = name_of(context.asset_key)
        store = self.store.store()
        if not context.has_asset_partitions:
            return self.load(self._read(context, store, asset, None))
        keys = sorted(context.asset_partition_keys)
        many = wants_dict(context)
        if not many and len(keys) != 1:
            raise StoreError(
                f"input {context.name} has {len(keys)} partitions of {asset}: annotate it as dict[str, ...]"
            )
        if many and (context.definition_metadata or {}).get(ALLOW_MISSING):
            keys = [key for key in keys if store.current(asset, key) is not None]
        values = {key: self.load(self._read(context, store, asset, key)) for key in keys}
        return values if many else values[keys[0]]

    def _read(
        self, context: dg.InputContext, store: ArtifactStore, asset: str, partition: str | None
    ) -> Version:
        version = store.current(asset, partition)
        if version is None:
            raise StoreError(
                f"{label(asset, partition)} is not in the store {store.base}: materialise it first"
            )
        return note_input(context, version)

    def _commit(self, context: dg.OutputContext, asset: str, partition: str | None, value: Any) -> Version:
        store, step = self.store.store(), context.step_context
        before = store.current_sha(asset, partition)  # which may be damaged: this mends it
        described: dict[str, Any] = {}
        of_body = _metadata_of_body(context, partition)
        origin = {name: fact for name, fact in _origin(step).items() if name not in of_body}

        def fill(folder: Path) -> None:
            described.update(self.dump(value, folder))
            if COLUMNS in described:
                described[COLUMNS] = _described(described[COLUMNS], (context.definition_metadata or {}))

        version = store.write(
            asset,
            partition,
            fill,
            metadata=_plain({**origin, **of_body}),
            inputs=_inputs_of_step.get((step.run_id, step.step.key), {}),
            code_version=context.asset_spec.code_version or "",
            run_id=step.run_id,
        )
        if partition is not None and ROW_COUNT in described:
            described[PARTITION_ROW_COUNT] = described.pop(ROW_COUNT)
        if COLUMNS in of_body:  # which says what the columns hold
            described.pop(COLUMNS, None)
        metadata = {
            **self.links(version),
            **origin,
            **described,
            "version": version.sha,
            "is_new_version": before != version.sha,
            "bytes": version.bytes,
            "location": dg.MetadataValue.path(version.url),
        }
        _add_metadata(context, partition, metadata)
        _set_data_version(context, version.sha)
        return version


def _described(columns: dg.TableSchema, of_asset: Mapping[str, Any]) -> dg.TableSchema:
    """The stored columns with what the asset's definition says of them."""
    declared = getattr(of_asset.get(COLUMNS), "value", of_asset.get(COLUMNS))
    if not isinstance(declared, dg.TableSchema):
        return columns
    says = {column.name: column.description for column in declared.columns}
    return dg.TableSchema(
        [dg.TableColumn(one.name, one.type, description=says.get(one.name)) for one in columns.columns]
    )


def _origin(step: Any) -> dict[str, Any]:
    """Code, profile, libraries, cost, and the model if the step loaded one: what every result must carry."""
    facts: dict[str, Any] = {**_of_run(step.run_id), **provenance.provenance()}
    if models := models_of_step(step.run_id, step.step.key):
        facts |= models[-1]
        if len(models) > 1:
            facts["model_identities"] = [model["model_identity"] for model in models]
    (stats,) = step.instance.get_run_step_stats(step.run_id, [step.step.key]) or (None,)
    if stats is not None and stats.start_time is not None:
        facts["seconds"] = time.time() - stats.start_time
    return show.rounded(facts | {"peak_memory_mb": provenance.peak_memory_mb()})


@lru_cache(maxsize=16)
def _of_run(run_id: str) -> dict[str, Any]:
    """What cannot change during a run, asked of git once."""
    return provenance.git_state()


def _by_partition(asset: str, keys: list[str], value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        if len(keys) == 1:
            return {keys[0]: value}
        raise StoreError(
            f"{asset}: a run over {len(keys)} partitions must return a dict of them, not {type(value).__name__}"
        )
    if set(value) != set(keys):
        missing, extra = sorted(set(keys) - set(value)), sorted(set(value) - set(keys))
        raise StoreError(
            f"{asset}: the run is over partitions {sorted(keys)}; the returned dict lacks {missing} and has "
            f"{extra} beyond them"
        )
    return value


def wants_dict(context: dg.InputContext) -> bool:
    """Whether an asset wants the partitions of this input as a dict by name."""
    wanted = context.dagster_type.typing_type
    origin = get_origin(wanted) or wanted
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _combined(versions: Mapping[str, Version]) -> str:
    text = "\n".join(f"{key}={version.sha}" for key, version in sorted(versions.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:SHA_LENGTH]


def _set_data_version(context: dg.OutputContext, version: str) -> None:
    # Semi-private: the only way for an IO manager to say what the content's version is.
    context.step_context.set_data_version(context.asset_key, dg.DataVersion(version))


def _add_metadata(context: dg.OutputContext, partition: str | None, metadata: Mapping[str, Any]) -> None:
    if partition is not None and len(context.asset_partition_keys) > 1:
        context.step_context.add_asset_metadata(metadata, context.asset_key, partition)
    else:
        context.add_output_metadata(metadata)


def _metadata_of_body(context: dg.OutputContext, partition: str | None) -> dict[str, Any]:
    step, key = context.step_context, context.asset_key
    ours = (step.get_asset_metadata(key, partition) if partition else None) or {}
    return {**(context.output_metadata or {}), **(step.get_asset_metadata(key) or {}), **ours}


def _plain(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What of it can stand in a manifest: numbers, short texts, JSON. Plots and previews stay in Dagster."""
    kept = {}
    for name, entry in metadata.items():
        value = entry.value if isinstance(entry, dg.MetadataValue) else entry
        if isinstance(entry, _FOR_THE_EYE):
            continue
        if isinstance(value, float) and not math.isfinite(value):
            value = None
        with suppress(TypeError, ValueError):
            json.dumps(value, allow_nan=False)
            kept[name] = value
    return kept
