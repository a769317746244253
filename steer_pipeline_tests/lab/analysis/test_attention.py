"""Claims about attention to directions: logits and writes are the model's, opposites are told once, nulls are its own.

Faults of the system that this replaces: no rotary positions, query scaling or soft cap; self held against crossed
nulls; pairs of opposites plotted twice.
"""

import numpy as np
import polars as pl
import pytest
import torch

from steer_pipeline.lab.analysis.attention import (
    OPPOSITE,
    QK,
    VO,
    Asked,
    Attentions,
    all_affinities,
    attention_block,
    head_along,
    own_affinity,
    self_and_opposite,
)
from steer_pipeline.lab.analysis.mlp import ALONE, REALISTIC
from steer_pipeline.lab.analysis.nulls import placed
from steer_pipeline_tests.lab.analysis.conftest import N_BLOCKS, directions, made, neutral, units

ASKED = Asked(distances=(1, 8), top=4)


def test_alone_a_state_and_its_opposite_say_the_same_so_that_one_row_says_both(tiny):
    block, given = tiny.base_block(), units(4)
    plus = all_affinities(block, given, 1.0, None, 3)
    assert np.allclose(all_affinities(block, -given, 1.0, None, 3), plus, atol=1e-5)
    both = self_and_opposite(block, given, 1.0, None, 3)
    assert np.allclose(both, 2 * np.diagonal(plus, axis1=1, axis2=2), atol=1e-4)
    rows = pl.DataFrame(attention_block(tiny.block(), directions(), neutral(), ASKED))
    assert rows.filter(kind=OPPOSITE)["state"].unique().to_list() == [REALISTIC]


def test_on_the_mean_state_self_and_opposite_differ_otherwise_than_alone(tiny):
    block, given, states = tiny.base_block(), units(4), neutral()
    mean, length = torch.from_numpy(states.attention_input(2)), states.length(2, 0.5)
    plus = np.diagonal(all_affinities(block, given, length, mean, 3), axis1=1, axis2=2)
    reads = mean + length * torch.from_numpy(given)
    turned = mean - length * torch.from_numpy(given)
    minus = torch.stack(
        [block.affinities(q[None], k[None], 3)[:, 0, 0] for q, k in zip(reads, turned, strict=True)]
    )
    assert np.allclose(self_and_opposite(block, given, length, mean, 3), plus - minus.T.numpy(), atol=1e-4)


def test_what_heads_write_along_directions_adds_up_to_the_model_s_own_attention(tiny):
    """All attention on one position: the model's own module on a sequence of one state."""
    layer, given, probes = tiny.module.model.layers[2], units(3), units(2, seed=4)
    at = tuple(x[None] for x in tiny.base_block().architecture.angles(torch.arange(1), 2))
    own = []
    with torch.inference_mode():
        for state in torch.from_numpy(given):
            out = layer.self_attn(
                layer.input_layernorm(state[None, None]), position_embeddings=at, attention_mask=None
            )[0]
            after = hasattr(layer, "pre_feedforward_layernorm")
            own.append((layer.post_attention_layernorm(out) if after else out)[0, 0].numpy())
    got = head_along(tiny.base_block(), given, probes, 1.0, None).sum(axis=0)
    assert np.allclose(got, np.array(own) @ probes.T, rtol=1e-3, atol=1e-4)


def test_nulls_are_the_model_s_own_and_self_is_held_against_self(qwen):
    named, states = directions(), neutral()
    pair = qwen.block(2)
    rows = pl.DataFrame(attention_block(pair, named, states, ASKED), infer_schema_length=None)
    row = rows.filter(
        kind=QK, state=ALONE, distance=8, head=1, query="persona:p1", key="persona:p1"
    ).to_dicts()[0]
    null, given, length = states.matched(1), named.reading(2)[1], states.length(2, ASKED.fraction)
    for side, block in (("base", pair.base), ("tuned", pair.tuned)):
        band = own_affinity(block, null, length, None, 8, 0)[1]
        own = all_affinities(block, given, length, None, 8)[1, 1, 1]
        assert row[side] == pytest.approx(own)
        assert row[f"{side}_z"] == pytest.approx(placed([own], band)[0][0])
    assert row["delta"] == pytest.approx(row["tuned"] - row["base"])
    assert row["base_z"] != pytest.approx(row["tuned_z"])


def test_rows_cover_all_heads_states_and_blocks_and_crossed_ones_are_few_and_untested(qwen):
    gathered = Attentions(directions(), neutral(), ASKED)
    for pair in qwen.pair.blocks(check=False):
        gathered.see(pair)
    table = gathered.table()
    assert set(table["block"]) == set(range(1, N_BLOCKS))
    own = table.filter(pl.col("query") == pl.col("key"))
    heads, names = 4, 3
    # qk at two states and distances, self less opposite at one state, vo at two states
    assert own.height == (N_BLOCKS - 1) * heads * names * (4 + 2 + 2)
    assert own["delta_p_holm"].null_count() == 0
    assert (own["delta_p_holm"] >= own["delta_p"]).all()
    crossed = table.filter(pl.col("query") != pl.col("key"))
    assert crossed.group_by("block", "kind", "state", "distance").len()["len"].unique().to_list() == [
        ASKED.top
    ]
    assert crossed["delta_p"].null_count() == crossed.height
    assert set(crossed["kind"]) == {QK, VO}


def test_beyond_a_window_nothing_is_said(tmp_path_factory):
    gemma = made("gemma", tmp_path_factory.mktemp("window"))
    asked = Asked(distances=(1, 20), top=1)
    windowed, full = (
        pl.DataFrame(
            attention_block(gemma.block(index), directions(1), neutral(), asked), infer_schema_length=None
        )
        for index in (2, 3)
    )
    assert set(windowed["distance"].drop_nulls()) == {1}
    assert set(full["distance"].drop_nulls()) == {1, 20}
