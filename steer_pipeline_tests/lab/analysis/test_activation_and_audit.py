"""Claims about activations and audit: what an adapter adds is found, what it does not add is not, and norms match."""

import numpy as np
import polars as pl
import pytest

from steer_pipeline.catalogue.auditing import ActivationSpec, AuditSpec
from steer_pipeline.catalogue.basis import SamplingSpec
from steer_pipeline.catalogue.specs import ModelSpec
from steer_pipeline.lab.analysis import audit_figures
from steer_pipeline.lab.analysis.activation import (
    ACTIVATION_SCHEMA,
    activation_difference,
    nothing_is_found,
    planted_is_found,
    read_base,
    read_tuned,
    steer_with,
    unrelated,
)
from steer_pipeline.lab.analysis.audit import (
    CLEAN,
    PLANT_SCHEMA,
    PLANTED,
    Measured,
    audit_all,
    audit_names_planted,
    audit_raises_no_alarm,
    audit_tells_planted,
    checkpoint_audit,
    detection,
    measure,
)
from steer_pipeline.lab.analysis.updates import at_norm, norm_of, updates_of
from steer_pipeline.lab.generation.jobs import PromptRow
from steer_pipeline.lab.models.loading import forget_models, load_model
from steer_pipeline_tests.lab.analysis.planted_adapters import TEXTS, directions, mean_input, writes
from steer_pipeline_tests.tiny import lora, tiny_model_dir

SPEC = ActivationSpec(texts=12, max_tokens=24, n_null=2000)
AUDIT = AuditSpec(blocks=[1, 2])
KNOWN = directions()
LENGTH = 1.5


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("audit")


@pytest.fixture(scope="module")
def base(home):
    return tiny_model_dir(home)


@pytest.fixture(scope="module")
def load(base, home):
    return lambda folder: load_model(
        ModelSpec(path=str(base), device="cpu", adapter=None if folder is None else str(folder)), home
    )


@pytest.fixture(scope="module")
def sequences(load):
    return unrelated(load(None), TEXTS, SPEC)


@pytest.fixture(scope="module")
def reading(load, sequences):
    return read_base(load(None), sequences)


@pytest.fixture(scope="module")
def adapters(load, base, home, sequences):
    """d0 up, d1 down, and ten that add directions which nobody knows."""
    reads = mean_input(load(None), sequences, 1)
    made = {"d0": (KNOWN["d0"][0], LENGTH), "d1": (KNOWN["d1"][0], -LENGTH)}
    unknown = directions(n=10, seed=99)
    made |= {f"clean-{i}": (one[0], LENGTH) for i, one in enumerate(unknown.values())}
    return {name: writes(base, home / name, *what, reads) for name, what in made.items()}


@pytest.fixture(scope="module")
def shifts(load, sequences, reading, adapters):
    return {name: read_tuned(load(folder), sequences, reading) for name, folder in adapters.items()}


@pytest.mark.parametrize(("name", "sign"), [("d0", 1), ("d1", -1)])
def test_a_direction_that_tuning_adds_is_found_with_its_sign_and_size(shifts, reading, name, sign):
    table = activation_difference(shifts[name], reading, KNOWN, SPEC)
    assert table.schema == ACTIVATION_SCHEMA
    own = table.filter(direction=name, block=1, position="later").row(0, named=True)
    assert own["found"]
    assert sign * own["cosine"] > 0.95
    assert own["projection"] * sign == pytest.approx(LENGTH / reading.norms[1], rel=0.3)
    assert own["low"] < own["projection"] < own["high"]
    assert planted_is_found(table, name).passed
    others = table.filter(pl.col("direction") != name, block=1)
    assert not others["found"].any()
    assert table.filter(block=0)["length_fraction"].max() < 1e-5


def test_a_direction_that_tuning_does_not_add_is_not_found(shifts, reading):
    found = [activation_difference(shifts[f"clean-{i}"], reading, KNOWN, SPEC) for i in range(4)]
    assert sum(nothing_is_found(one, SPEC.level).passed for one in found) >= 3
    assert not planted_is_found(found[0], "d0").passed
    assert "not in the dictionary" in planted_is_found(found[0], "x").message


def test_a_finding_goes_where_clean_models_move_as_far(shifts, reading):
    clean = [shifts[f"clean-{i}"] for i in range(10)]
    table = activation_difference(shifts["d0"], reading, KNOWN, SPEC, clean)
    own = table.filter(direction="d0", block=1, position="later").row(0, named=True)
    assert own["found"]
    assert abs(own["clean_z"]) > own["clean_limit"]
    same = activation_difference(shifts["d0"], reading, KNOWN, SPEC, [*clean, 2 * shifts["d0"]])
    assert not same.filter(direction="d0")["found"].any()
    assert activation_difference(shifts["d0"], reading, KNOWN, SPEC)["clean_z"].null_count() == table.height
    with pytest.raises(ValueError, match="say nothing of their spread"):
        activation_difference(shifts["d0"], reading, KNOWN, SPEC, clean[:2])


def test_models_that_do_not_differ_and_texts_too_short_are_refused(load, sequences, reading):
    with pytest.raises(ValueError, match="nothing differs"):
        activation_difference(read_tuned(load(None), sequences, reading), reading, KNOWN, SPEC)
    with pytest.raises(ValueError, match="longer ones"):
        unrelated(load(None), ["Hi."] * 9, SPEC)
    with pytest.raises(ValueError, match="same texts"):
        read_tuned(load(None), sequences[:3], reading)


def test_base_steered_with_the_difference_says_what_the_direction_says(load, shifts, reading):
    class Length:
        def score_many(self, texts):
            return np.array([float(len(text)) for text in texts])

    model = load(None)
    prompts = [PromptRow(f"r{i}", {"*": list(range(5 + i, 15 + i))}) for i in range(4)]
    sampling = SamplingSpec(temperature=0.0, max_new_tokens=8)
    table = steer_with(model, shifts["d0"], reading, 1, prompts, {"length": Length()}, sampling, SPEC)
    row = table.row(0, named=True)
    assert row["low"] <= row["difference"] <= row["high"]
    assert row["random_low"] <= row["random_high"]
    assert row["beyond"] == (
        row["low"] > max(0, row["random_high"]) or row["high"] < min(0, row["random_low"])
    )


# ------------------------------------------------------------------------------------ updates


def test_norms_and_shares_are_those_of_the_whole_matrices(base, home, load):
    folder = lora(base, home / "whole", seed=3, r=4, target_modules=["q_proj", "o_proj", "down_proj"])
    plain = {name: p.clone() for name, p in load(None).module.named_parameters()}
    merged = load(folder).module.merge_and_unload()
    whole = {
        name: (p - plain[name]).double().numpy() for name, p in merged.named_parameters() if name in plain
    }
    forget_models()  # merged into the base that is kept
    assert norm_of(folder) == pytest.approx(np.sqrt(sum((one**2).sum() for one in whole.values())), rel=1e-4)
    dual = np.linalg.pinv(np.array([one[0] for one in KNOWN.values()], dtype=np.float64).T)
    for one in updates_of(folder):
        if one.writes:
            delta = whole[one.module.removeprefix("base_model.model.") + ".weight"]
            expected = np.square(dual @ delta).sum(1) / np.square(delta).sum()
            np.testing.assert_allclose(one.along(dual), expected, rtol=1e-3)
    assert {one.module.rpartition(".")[2] for one in updates_of(folder) if not one.writes} == {"q_proj"}
    assert at_norm(folder, 2.0, home / "scaled") == pytest.approx(2.0 / norm_of(folder))
    assert norm_of(home / "scaled") == pytest.approx(2.0, rel=1e-5)


# ------------------------------------------------------------------------------------ audit


@pytest.fixture(scope="module")
def measured(shifts, reading, adapters):
    return {name: measure(shifts[name], reading, KNOWN, AUDIT, adapters[name]) for name in shifts}


@pytest.fixture(scope="module")
def plants(adapters):
    rows = [
        {"checkpoint": name, "group": CLEAN if name.startswith(CLEAN) else PLANTED, "norm": 1.0}
        | ({"direction": None, "dose": 0.0, "share": 0.0} if name.startswith(CLEAN) else
           {"direction": name, "dose": 0.3 if name == "d0" else -0.3, "share": 1.0})
        for name in adapters
    ]  # fmt: skip
    return pl.DataFrame(rows, schema=PLANT_SCHEMA)


def test_an_audit_finds_what_is_planted_names_it_and_leaves_clean_adapters_alone(measured, plants):
    audits = audit_all(measured, plants, AUDIT)
    own = {name: audits.filter(checkpoint=name, direction=name).row(0, named=True) for name in ("d0", "d1")}
    assert own["d0"]["found"]
    assert own["d1"]["found"]
    assert own["d0"]["coefficient"] > 0 > own["d1"]["coefficient"]
    assert own["d0"]["write_share"] > 20 * audits.filter(checkpoint="d0", direction="d2")["write_share"][0]
    row = detection(audits, plants, AUDIT).filter(measure="verdict").row(0, named=True)
    assert (row["auc"], row["found"], row["named"], row["signed"]) == (1.0, 1.0, 1.0, 1.0)
    assert row["dose_slope"] > 0
    assert audit_tells_planted(detection(audits, plants, AUDIT), 0.95).passed
    assert audit_names_planted(detection(audits, plants, AUDIT), 0.9).passed
    assert audit_raises_no_alarm(detection(audits, plants, AUDIT), AUDIT.level).passed


def test_figures_are_drawn_from_the_tables_alone(measured, plants, shifts, reading):
    audits = audit_all(measured, plants, AUDIT)
    pages = [
        audit_figures.activation_map(activation_difference(shifts["d0"], reading, KNOWN, SPEC)),
        audit_figures.audit_sizes(audits, plants),
        audit_figures.doses(audits, plants),
        audit_figures.detection_curve(detection(audits, plants, AUDIT)),
    ]
    assert all(page.startswith(b"\x89PNG") for page in pages)
    assert len(set(pages)) == 4


def test_a_checkpoint_without_an_adapter_is_judged_by_activations_alone(measured, shifts, reading):
    own = measure(shifts["d0"], reading, KNOWN, AUDIT)
    clean = [measured[name] for name in measured if name.startswith(CLEAN)]
    table = checkpoint_audit("merged", own, clean, AUDIT)
    assert table.filter("found")["direction"].to_list() == ["d0"]
    assert table["write_z"].null_count() == table.height


def test_false_alarms_of_clean_checkpoints_keep_to_the_level():
    """Checkpoints of one population: as many are called planted as the level says, no more."""
    rng = np.random.default_rng(0)
    names = tuple(KNOWN)

    def draw():
        sizes = rng.normal(size=(1, 5)) * [1, 2, 3, 4, 5] + rng.normal(size=(6, 5)) * 0.1
        return Measured(names, sizes, sizes.mean(axis=0) / np.linalg.norm(sizes.mean(axis=0)))

    audits = [checkpoint_audit("one", draw(), [draw() for _ in range(10)], AUDIT) for _ in range(80)]
    assert np.mean([one["found"].any() for one in audits]) < 0.12
    assert np.mean([(one["size_p"] < AUDIT.level).any() for one in audits]) < 0.12


def test_too_few_clean_adapters_or_a_direction_without_a_block_are_refused(measured, reading, shifts):
    with pytest.raises(ValueError, match="at least 8"):
        checkpoint_audit("one", measured["d0"], list(measured.values())[:4], AUDIT)
    holed = KNOWN | {"d0": np.where(np.arange(4)[:, None] == 2, np.nan, KNOWN["d0"])}
    with pytest.raises(ValueError, match="d0 has none at block 2"):
        measure(shifts["d0"], reading, holed, AUDIT)
