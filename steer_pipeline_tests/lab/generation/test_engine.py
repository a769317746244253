"""Claims about the rewrite engine: exact, keyed, resumable, loud when something is wrong."""

import numpy as np
import pytest
import torch

from steer_pipeline.catalogue.specs import SamplingSpec
from steer_pipeline.lab.generation import engine, torch_engine
from steer_pipeline.lab.generation.engine import generate
from steer_pipeline.lab.generation.jobs import BrokenLogits, PromptRow
from steer_pipeline.lab.generation.probe import SteeringHasNoEffect, probe_steering
from steer_pipeline.lab.models import blocks
from steer_pipeline.lab.models.blocks import blocks_of
from steer_pipeline.lab.models.loading import forget_models
from steer_pipeline.lab.models.sites import SteeringPlan
from steer_pipeline_tests.lab.generation.reference import (
    hooks,
    loaded,
    plain_greedy,
    plans,
    prompts,
    term,
    with_budget,
)

GREEDY = SamplingSpec(temperature=0, top_p=1, max_new_tokens=12)
SAMPLED = SamplingSpec(temperature=0.8, top_p=0.95, max_new_tokens=12)


def rows_of(model, n=6):
    return [PromptRow(f"row{i}", {"*": ids}) for i, ids in enumerate(prompts(model, n))]


def said(*args, **kwargs):
    return {(row.row_id, row.variant): row for row in generate(*args, **kwargs)}


def tokens(results):
    return {key: row.token_ids for key, row in results.items()}


@pytest.mark.parametrize("arch", ["qwen3", "llama", "gemma", "gemma2"])
@pytest.mark.parametrize("scope", ["all", "generated"])
def test_greedy_tokens_equal_plain_generate_with_a_hook(tmp_path, arch, scope):
    model = loaded(tmp_path, arch)
    rows = [rows_of(model)[i] for i in (0, 3)]
    chosen = [plans(scope)[i] for i in (0, 2, 4, 6)]
    results = said(model, rows, chosen, GREEDY)
    for row in rows:
        for plan in chosen:
            expected = plain_greedy(model, row.ids["*"], plan, GREEDY.max_new_tokens)
            assert results[row.row_id, plan.variant].token_ids == expected, plan.variant


@pytest.mark.parametrize(
    ("arch", "compiler"),
    [
        ("gemma2", "eager"),  # with windows and soft caps; tracing alone takes seconds
        pytest.param("qwen3", "eager", marks=pytest.mark.slow),
        pytest.param("gemma2", "inductor", marks=pytest.mark.slow),
        pytest.param("qwen3", "inductor", marks=pytest.mark.slow),
    ],
)
def test_compiled_decoding_over_a_static_cache_says_the_same(tmp_path, monkeypatch, arch, compiler):
    from torch._dynamo.utils import counters

    monkeypatch.setattr(blocks, "COMPILER", compiler)
    monkeypatch.setattr(torch_engine, "COMPILER", compiler)
    widths, original = set(), torch_engine._compiled

    def recorded(backend):
        def attention(query, prompt, own, *rest):
            widths.add(own[0].shape[2])
            return original(backend)(query, prompt, own, *rest)

        return attention

    monkeypatch.setattr(torch_engine, "_compiled", recorded)
    plain, compiled = loaded(tmp_path, arch), loaded(tmp_path, arch, compile=True)
    expected = tokens(said(plain, rows_of(plain), plans("generated"), GREEDY))
    counters.clear()
    assert tokens(said(compiled, rows_of(compiled), plans("generated"), GREEDY)) == expected
    again = [rows_of(compiled)[i] for i in (4, 1)]
    assert tokens(said(compiled, again, plans("generated")[1:], GREEDY)).items() <= expected.items()
    assert widths == {GREEDY.max_new_tokens - 1}  # the cache is static: as wide at every step
    assert 0 < counters["stats"]["unique_graphs"] <= 10  # for all blocks, batch sizes and steps
    assert engine.decoding_hash(GREEDY, compiled) != engine.decoding_hash(GREEDY, plain)  # packs never mix


@pytest.mark.parametrize("arch", ["qwen3", "llama", "gemma"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_first_logits_equal_separate_runs(tmp_path, arch, dtype, monkeypatch):
    model = loaded(tmp_path, arch, dtype=dtype)
    rows, chosen = rows_of(model), plans()
    seen = []
    monkeypatch.setattr(
        torch_engine._Batch, "_check", lambda _self, cohorts, logits: seen.append((cohorts, logits.clone()))
    )
    said(model, rows, chosen, SamplingSpec(temperature=0, max_new_tokens=1))
    count = 0
    for cohorts, logits in seen:
        for lane, got in zip([lane for cohort in cohorts for lane in cohort.lanes], logits, strict=True):
            with hooks(model.module, chosen[lane.plan]), torch.inference_mode():
                expected = model.module(torch.tensor([lane.prompt])).logits[0, -1].float()
            tolerance = 1e-4 if dtype == "float32" else 0.15
            assert (got - expected).abs().max() < tolerance * max(1, expected.abs().max())
            count += 1
    assert count == len(rows) * len(chosen)


def test_a_pack_is_the_same_for_any_batch_budget_order_and_set_of_variants(tmp_path):
    model = loaded(tmp_path)
    rows, chosen = rows_of(model, 8), plans()
    whole = tokens(said(model, rows, chosen, SAMPLED))
    for budget in (1, 300, 2000):
        assert tokens(said(with_budget(model, budget), rows[::-1], chosen, SAMPLED)) == whole
    alone = tokens(said(model, rows[2:4], chosen[3:4], SAMPLED))
    assert alone == {key: whole[key] for key in alone}


def test_variants_on_one_stream_draw_the_same_numbers_and_on_two_do_not(tmp_path):
    model = loaded(tmp_path)
    chosen = [SteeringPlan("base"), SteeringPlan("twin", stream="base"), SteeringPlan("base_resample")]
    results = said(model, rows_of(model), chosen, SAMPLED)
    for row in rows_of(model):
        assert results[row.row_id, "base"].token_ids == results[row.row_id, "twin"].token_ids
    assert any(
        results[row.row_id, "base"].token_ids != results[row.row_id, "base_resample"].token_ids
        for row in rows_of(model)
    )


def test_a_row_may_be_for_some_variants_alone(tmp_path):
    """Rows that share the directions of one variant: each is written once, as if all had written it."""
    model, chosen = loaded(tmp_path), plans()[:3]
    rows = rows_of(model, 6)
    whole = tokens(said(model, rows, chosen, SAMPLED))
    names = [plan.variant for plan in chosen]
    few = [PromptRow(row.row_id, row.ids, frozenset([names[i % 3]])) for i, row in enumerate(rows)]
    seen = []
    results = {
        (row.row_id, row.variant): row for row in generate(model, few, chosen, SAMPLED, progress=seen.append)
    }
    assert sorted(results) == sorted((row.row_id, names[i % 3]) for i, row in enumerate(rows))
    assert tokens(results) == {key: whole[key] for key in results}
    assert seen[-1].sequences_total == len(rows)


def test_a_variant_may_have_its_own_prompt(tmp_path):
    model = loaded(tmp_path)
    first, second = prompts(model, 2)
    rows = [PromptRow("a", {"*": first, "prompted": second})]
    results = said(model, rows, [SteeringPlan("base"), SteeringPlan("prompted")], GREEDY)
    assert results["a", "prompted"].token_ids == plain_greedy(model, second, SteeringPlan("x"), 12)
    assert results["a", "base"].token_ids == plain_greedy(model, first, SteeringPlan("x"), 12)
    assert results["a", "prompted"].n_prompt_tokens == len(second)


def test_any_end_token_ends_a_sequence_and_text_has_no_special_tokens(tmp_path):
    model = loaded(tmp_path, "llama")
    results = said(
        model, rows_of(model, 8), plans(), SAMPLED.model_copy(update={"max_new_tokens": 40})
    ).values()
    ended = [row for row in results if row.finish_reason == "eos"]
    assert ended
    assert len(ended) < len(results)
    for row in results:
        assert row.truncated == (row.finish_reason == "length")
        assert row.n_new_tokens == len(row.token_ids) + (row.finish_reason == "eos")
        assert not set(row.token_ids) & model.eos_ids
        assert not any(token in row.text for token in model.tokenizer.all_special_tokens)


def test_penalties_and_ngram_guard_hold_in_a_batch(tmp_path):
    model = loaded(tmp_path)
    spec = GREEDY.model_copy(update={"no_repeat_ngram": 1, "frequency_penalty": 0.1, "max_new_tokens": 20})
    for row in said(model, rows_of(model), plans(), spec).values():
        assert len(set(row.token_ids)) == len(row.token_ids)
    everything = spec.model_copy(update={"penalty_scope": "prompt_and_generated"})
    for row in said(model, rows_of(model), plans()[:3], everything).values():
        prompt = next(one.ids["*"] for one in rows_of(model) if one.row_id == row.row_id)
        assert not set(row.token_ids) & set(prompt)


def test_running_out_of_memory_halves_the_budget_and_changes_nothing(tmp_path, monkeypatch, caplog):
    model = loaded(tmp_path)
    rows, chosen = rows_of(model, 8), plans()
    whole = tokens(said(model, rows, chosen, SAMPLED))
    step = torch_engine._Batch.step

    def small_machine(batch):
        if sum(len(cohort.lanes) for cohort in batch.cohorts) > 10:
            raise torch.OutOfMemoryError("no memory")
        step(batch)

    monkeypatch.setattr(torch_engine._Batch, "step", small_machine)
    assert tokens(said(model, rows, chosen, SAMPLED)) == whole
    assert "token budget" in caplog.text
    monkeypatch.setattr(torch_engine._Batch, "step", lambda _: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(torch_engine.OutOfMemory, match="row 'row"):
        said(model, rows, chosen, SAMPLED)


def test_nan_in_the_weights_names_row_and_variant(tmp_path):
    forget_models()
    model = loaded(tmp_path)
    blocks_of(model)
    with torch.no_grad():
        model.module.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(BrokenLogits, match=r"row 'row\d', variant 'base'"):
        said(model, rows_of(model), plans(), SAMPLED)
    forget_models()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r, p: ([*r, r[0]], p), "row 'row0' comes twice"),
        (lambda r, p: (r, [*p, p[0]]), "once"),
        (
            lambda _, p: ([PromptRow("empty", {"*": []})], p),
            "row 'empty', variant 'base': the prompt has no tokens",
        ),
        (lambda _, p: ([PromptRow("long", {"*": [5] * 5000})], p), "row 'long'.*5000 tokens"),
        (lambda _, p: ([PromptRow("none", {"other": [5]})], p), "row 'none', variant 'base': no prompt ids"),
        (
            lambda r, _: (r, [SteeringPlan("wide", (term(1, 1.0, hidden=65),))]),
            r"'wide', term 'paranoid'.*\(65,\)",
        ),
        (lambda r, _: (r, [SteeringPlan("deep", (term(9, 1.0),))]), "'deep', term 'paranoid': block 9"),
        (
            lambda r, _: (r, [SteeringPlan("inf", (term(1, float("inf")),))]),
            "'inf', term 'paranoid'.*infinite",
        ),
        (lambda r, _: (r, [SteeringPlan("odd", (), "prompt")]), "scope 'prompt'"),
    ],
)
def test_bad_input_is_named(tmp_path, change, message):
    model = loaded(tmp_path)
    rows, chosen = change(rows_of(model), plans())
    with pytest.raises(ValueError, match=message):
        said(model, rows, chosen, GREEDY)


def test_probe_reports_each_term_and_refuses_one_that_does_nothing(tmp_path):
    model = loaded(tmp_path)
    results = probe_steering(model, rows_of(model), plans("generated"))
    assert {(r.variant, r.term) for r in results if r.variant == "both"} == {
        ("both", "paranoid (term 0)"),
        ("both", "paranoid (term 1)"),
        ("both", "all terms"),
    }
    assert all(r.max_abs_logit_delta > 1e-3 and r.positions > 0 for r in results)
    assert any(r.greedy_tokens_changed for r in results)
    zero = SteeringPlan("quiet", (term(1, 3.0), term(2, 0.0, name="rule_defiant")))
    with pytest.raises(SteeringHasNoEffect, match=r"'quiet', rule_defiant \(term 1\)"):
        probe_steering(model, rows_of(model), [zero])
    opposed = SteeringPlan("opposed", (term(1, 3.0), term(1, -3.0)))
    with pytest.raises(SteeringHasNoEffect, match="'opposed', all terms"):
        probe_steering(model, rows_of(model), [opposed])


@pytest.mark.parametrize("arch", ["qwen3", "llama", "gemma2"])
@pytest.mark.parametrize("scope", ["all", "generated"])
def test_logit_bias_is_the_vector_seen_through_norm_and_head(tmp_path, arch, scope, monkeypatch):
    model = loaded(tmp_path, arch)
    plan = SteeringPlan("bias", (term(3, 6.0, kind="logits"),), scope)
    row = rows_of(model)[0]
    seen = []
    monkeypatch.setattr(torch_engine._Batch, "_check", lambda _s, _c, logits: seen.append(logits.clone()))
    result = said(model, [row], [plan], GREEDY.model_copy(update={"max_new_tokens": 2}))["row0", "bias"]
    module = model.module
    ids = row.ids["*"]
    caught = []
    handle = module.model.layers[-1].register_forward_hook(lambda _m, _i, out: caught.append(out))
    with torch.inference_mode():
        plain = module(torch.tensor([ids + result.token_ids[:1]])).logits[0]
        h = caught[0][0]
        handle.remove()
        one = plan.terms[0]
        norm = module.model.norm
        gamma = norm(torch.ones(64)) * torch.ones(64).pow(2).mean().sqrt()
        shift = one.alpha * (module.get_output_embeddings().weight @ (gamma * torch.from_numpy(one.unit)))
        softcap = getattr(module.config, "final_logit_softcapping", None)
        raw = module.get_output_embeddings()(norm(h))
        wanted = raw + shift / h.pow(2).mean(-1, keepdim=True).sqrt()
        wanted = wanted if softcap is None else torch.tanh(wanted / softcap) * softcap
    first = plain[len(ids) - 1] if scope == "generated" else wanted[len(ids) - 1]
    assert torch.allclose(seen[0][0], first, atol=1e-3)
    assert torch.allclose(seen[1][0], wanted[len(ids)], atol=1e-3)
    assert probe_steering(model, [row], [plan])[0].max_abs_logit_delta > 0.1


def test_memory_of_waiting_rows_is_bounded(tmp_path):
    model = loaded(tmp_path)
    ids = prompts(model, 1)[0]
    ahead = [0]

    def stream():
        for i in range(1500):
            ahead[0] += 1
            yield PromptRow(f"r{i}", {"*": ids})

    most = 0
    for done, _ in enumerate(
        generate(model, stream(), [SteeringPlan("b")], GREEDY.model_copy(update={"max_new_tokens": 1}))
    ):
        most = max(most, ahead[0] - done)
    assert done == 1499
    assert most < 900


def test_progress_tells_sequences_tokens_and_memory(tmp_path):
    model = loaded(tmp_path)
    states = []
    results = said(model, rows_of(model), plans()[:2], GREEDY, progress=states.append)
    assert states[-1].sequences_done == states[-1].sequences_total == len(results)
    assert states[-1].tokens == sum(row.n_new_tokens for row in results.values())
    assert states[-1].memory_bytes > 1e6
    assert np.isfinite(states[-1].tokens_per_second)
    assert "sequences" in str(states[-1])


def test_progress_is_told_while_nothing_has_finished(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "_REPORT_SECONDS", 0.0)
    model, states = loaded(tmp_path), []
    said(model, rows_of(model)[:1], plans()[:1], GREEDY, progress=states.append)
    assert sum(state.sequences_done == 0 for state in states) > 3
