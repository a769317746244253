"""Claims about attention over whole sequences: it is the softmax that the formula says."""

import pytest
import torch

from steer_pipeline.lab.models.blocks import Call, causal


def reference(call):
    """[n, t, heads, d] by one masked softmax in fp64."""
    groups = call.query.shape[1] // call.key.shape[1]
    key, value = (x.double().repeat_interleave(groups, dim=1) for x in (call.key, call.value))
    t = call.query.shape[2]
    scores = call.query.double() @ key.transpose(2, 3) * call.scale
    if call.softcap is not None:
        scores = torch.tanh(scores / call.softcap) * call.softcap
    distance = torch.arange(t)[:, None] - torch.arange(t)[None]
    hidden = (distance < 0) | (distance >= (call.window or t))
    return (scores.masked_fill(hidden, float("-inf")).softmax(-1) @ value).transpose(1, 2)


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("window", [None, 1, 7, 100])
def test_causal_attention_is_a_masked_softmax(window, softcap):
    for t in (1, 5, 110):
        torch.manual_seed(t)
        query = torch.randn(2, 4, t, 8)
        key, value = torch.randn(2, 2, 2, t, 8)  # two query heads share one
        call = Call(0, query, key, value, 0.3, window, softcap)
        assert torch.allclose(causal(call), reference(call).float(), atol=1e-5), t


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_attention_is_close(dtype):
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 2, 50, 16).to(dtype)
    call = Call(0, query, key, value, 0.25, None, None)
    assert causal(call).dtype == dtype
    assert torch.allclose(causal(call).float(), reference(call).float(), atol=2e-2)
