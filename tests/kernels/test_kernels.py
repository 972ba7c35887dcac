"""The C kernels against the plain formulas in float64, and what happens where they cannot be built."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from tercet.algos import tokens
from tercet.algos.tokens import Head, token_logps
from tercet.kernels import native as built
from tercet.kernels.native import available, call, native
from tercet.models import forest_cpu, fused, kv_cache, sampling
from tercet.models.attention import Attention
from tercet.rows import Sampling

pytestmark = pytest.mark.skipif(native().library is None, reason=f"no kernels: {native().why}")

CLOSE = {torch.float32: 2e-6, torch.bfloat16: 1.6e-2}


def drawn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def gradients(function, inputs: list[Tensor], slope: Tensor) -> list[Tensor]:
    leaves = [value.detach().clone().requires_grad_() for value in inputs]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, slope.to(out.dtype))]


def assert_near(found: list[Tensor], wanted: list[Tensor], dtype: torch.dtype) -> None:
    for a, b in zip(found, wanted, strict=True):
        assert a.shape == b.shape
        assert float((a.double() - b).norm() / b.norm()) < CLOSE[dtype]


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def dtype(request) -> torch.dtype:
    return request.param


@pytest.mark.parametrize("shape", [(1, 1, 24), (2, 37, 576)], ids=str)
def test_rms_norm_and_its_gradients_equal_the_formula(dtype, shape):
    inputs = [drawn(*shape, dtype=dtype), drawn(shape[-1], dtype=dtype, seed=1)]
    slope = drawn(*shape, dtype=dtype, seed=2)

    def formula(x: Tensor, weight: Tensor) -> Tensor:
        return weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)

    found = gradients(lambda x, weight: fused._RmsNorm.apply(x, weight, 1e-5), inputs, slope)
    assert_near(found, gradients(formula, [x.double() for x in inputs], slope.double()), dtype)


def test_swiglu_and_its_gradients_equal_the_formula(dtype):
    inputs = [4.0 * drawn(3, 41, 50, dtype=dtype), drawn(3, 41, 50, dtype=dtype, seed=1)]
    slope = drawn(3, 41, 50, dtype=dtype, seed=2)
    found = gradients(fused._SwiGlu.apply, inputs, slope)
    wanted = gradients(lambda gate, up: silu(gate) * up, [x.double() for x in inputs], slope.double())
    assert_near(found, wanted, dtype)


def test_swiglu_is_zero_and_finite_far_out():
    gate = torch.tensor([-1e4, -200.0, -90.0, 0.0, 90.0, 1e4])
    out = fused._SwiGlu.apply(gate, torch.ones(6))
    torch.testing.assert_close(out, silu(gate), rtol=1e-6, atol=1e-30)


def test_rotary_positions_and_their_gradient_equal_the_formula(dtype):
    angles = drawn(29, 8, seed=3).repeat(1, 2)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    x = drawn(29, 5, 16, dtype=dtype)
    slope = drawn(1, 5, 29, 16, dtype=dtype, seed=2)

    def formula(x: Tensor) -> Tensor:
        x = x.transpose(0, 1)[None]
        half = torch.cat((-x[..., 8:], x[..., :8]), -1)
        return x * cos.to(x.dtype) + half * sin.to(x.dtype)

    found = gradients(lambda x: fused._Rotate.apply(x.transpose(0, 1)[None], cos, sin), [x], slope)
    assert_near(found, gradients(formula, [x.double()], slope.double()), dtype)


SEGMENTS = [
    forest_cpu.Segment(0, 40),
    forest_cpu.Segment(40, 57, ((0, 40),)),
    forest_cpu.Segment(57, 58, ((0, 40),)),
    forest_cpu.Segment(58, 125),
    forest_cpu.Segment(125, 130, ((58, 125),)),
    forest_cpu.Segment(130, 138, ((58, 125), (125, 130))),
]


KINDS = {
    "usual": Attention(0.3),
    "window": Attention(0.3, window=20),
    "chunk": Attention(0.3, chunk=16),
    "cap": Attention(0.3, softcap=0.8),
    "both": Attention(0.3, window=20, softcap=0.8),
}


@pytest.mark.parametrize("sunk", [False, True], ids=["", "sinks"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("scores", "least"), [(1, 128), (1 << 24, 128), (1 << 24, 32)], ids=["one by one", "batched", "cut"]
)
def test_attention_over_segments_equals_a_masked_softmax(dtype, monkeypatch, scores, least, kind, sunk):
    monkeypatch.setattr(forest_cpu, "SCORES", scores)
    T, N, K, D, E = 138, 6, 2, 16, 12
    query, key, value = (drawn(T, n, size, dtype=dtype, seed=n) for n, size in ((N, D), (K, D), (K + 1, E)))
    value = value[:, :K]
    slope = drawn(T, N, E, dtype=dtype, seed=9)
    how, position = KINDS[kind], torch.zeros(T, dtype=torch.long)
    mask = torch.zeros(T, T, dtype=torch.bool)
    for start, end, ancestors in SEGMENTS:
        for above in ancestors:
            mask[start:end, slice(*above)] = True
        mask[start:end, start:end] = torch.ones(end - start, end - start, dtype=torch.bool).tril()
        position[start:end] = torch.arange(end - start) + sum(b - a for a, b in ancestors)
    if how.window:
        mask &= position[:, None] - position < how.window
    if how.chunk:
        mask &= position[:, None] // how.chunk == position // how.chunk
    monkeypatch.setattr(forest_cpu, "LEAST", least)
    parts = forest_cpu.groups(SEGMENTS, N, torch.device("cpu"), how=how)
    pieces = sum(len(part.rows_SL) for part in parts)
    assert (len(parts) == pieces) == (scores == 1)
    assert (pieces > len(SEGMENTS)) == (how.local and least < 128)

    def ours(query: Tensor, key: Tensor, value: Tensor, *sinks: Tensor) -> Tensor:
        heads = (x.transpose(0, 1) for x in (query, key, value))
        return forest_cpu.attend(*heads, parts, how._replace(sinks=sinks[0] if sinks else None)).transpose(0, 1)

    def formula(query: Tensor, key: Tensor, value: Tensor, *sinks: Tensor) -> Tensor:
        key, value = (x.repeat_interleave(N // K, 1) for x in (key, value))
        scores = torch.einsum("qnd,knd->nqk", query, key) * 0.3
        if how.softcap:
            scores = how.softcap * (scores / how.softcap).tanh()
        scores = scores.masked_fill(~mask, -torch.inf)
        for sink in sinks:
            scores = torch.cat((scores, sink[:, None, None].expand(N, T, 1)), -1)
        return torch.einsum("nqk,knd->qnd", scores.softmax(-1)[..., :T], value)

    inputs = [query, key, value, *([drawn(N, dtype=dtype, seed=5)] if sunk else [])]
    found = gradients(ours, inputs, slope)
    assert_near(found, gradients(formula, [x.double() for x in inputs], slope.double()), dtype)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_and_their_gradients_equal_the_formula(dtype, temperature, monkeypatch):
    monkeypatch.setattr(tokens, "CHUNK_LOGITS", 200)
    inputs = [drawn(11, 12, dtype=dtype), drawn(67, 12, dtype=dtype, seed=1)]
    targets, slope = torch.arange(11) * 5, drawn(11, seed=2)

    def formula(hidden: Tensor, weight: Tensor) -> Tensor:
        return (hidden @ weight.T / temperature).log_softmax(1).gather(1, targets[:, None]).squeeze(1)

    found = gradients(lambda h, w: token_logps(h, Head(w), targets, temperature=temperature)[0], inputs, slope)
    assert_near(found, gradients(formula, [x.double() for x in inputs], slope.double()), dtype)


def test_a_bf16_gradient_is_added_without_rounding():
    total, piece = drawn(1000, 37), drawn(1000, 37, dtype=torch.bfloat16, seed=1)
    wanted = total + piece.float()
    call("add_bf16", None, total, piece, total.numel())
    assert torch.equal(total, wanted)


def test_not_a_number_stays_visible(dtype):
    x = torch.tensor([[1.0, torch.nan, 2.0, 3.0]], dtype=dtype)
    assert fused._RmsNorm.apply(x, torch.ones(4, dtype=dtype), 1e-5).isnan().all()
    assert fused._SwiGlu.apply(x, torch.ones_like(x)).isnan().tolist() == [[False, True, False, False]]
    found, _ = token_logps(x, Head(torch.ones(3, 4, dtype=dtype)), torch.tensor([1]))
    assert found.isnan().all()


def test_results_do_not_depend_on_when_threads_run():
    x, weight, slope = drawn(1, 301, 64), drawn(64, seed=1), drawn(1, 301, 64, seed=2)
    first = gradients(lambda x, w: fused._RmsNorm.apply(x, w, 1e-5), [x, weight], slope)
    for _ in range(5):
        again = gradients(lambda x, w: fused._RmsNorm.apply(x, w, 1e-5), [x, weight], slope)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


class ShiftedNorm(nn.Module):
    """Gemma's: one plus the weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(drawn(8)), 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * (1.0 + self.weight)


class Gated(nn.Module):
    """A gated layer with any activation."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = nn.Linear(6, 10), nn.Linear(6, 10), nn.Linear(10, 6)
        self.act_fn = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


def test_parts_that_compute_something_else_are_left_alone():
    for module in (ShiftedNorm(), Gated(nn.GELU())):
        fused.fuse(module)
        assert "forward" not in vars(module)
    swiglu = Gated(nn.SiLU())
    x = drawn(2, 6)
    before = swiglu(x)
    fused.fuse(swiglu)
    assert "forward" in vars(swiglu)
    torch.testing.assert_close(swiglu(x), before, rtol=1e-6, atol=1e-6)


def test_rotation_of_adjacent_pairs_is_left_alone_and_rotation_of_halves_is_not(monkeypatch):
    fresh = {}  # copies of modelling files, whose functions no other test has replaced
    for family in ("cohere", "qwen3"):
        known = importlib.util.find_spec(f"transformers.models.{family}.modeling_{family}")
        spec = importlib.util.spec_from_file_location(f"{known.name}_copy", known.origin)
        fresh[family] = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, fresh[family])
        spec.loader.exec_module(fresh[family])
    plain = {family: space.apply_rotary_pos_emb for family, space in fresh.items()}
    for space in fresh.values():
        fused._fuse_rotary(space)
    assert fresh["cohere"].apply_rotary_pos_emb is plain["cohere"]
    assert fresh["qwen3"].apply_rotary_pos_emb is not plain["qwen3"]


def test_other_precisions_and_devices_keep_the_model_as_it_is():
    assert not available(torch.zeros(1, dtype=torch.float64))
    assert not available(torch.zeros(1, device="meta"))


def why_there_are_none(**environment: str) -> str:
    script = "from tercet.kernels.native import native; print(native().library, native().why)"
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env={**os.environ, **environment}
    )
    return run.stdout


def test_without_a_compiler_or_a_place_to_write_there_are_none_and_a_reason(tmp_path):
    assert why_there_are_none(TERCET_KERNELS="off").startswith("None TERCET_KERNELS is off")
    assert why_there_are_none(PATH=str(tmp_path), CC="").startswith("None no C compiler was found")
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\necho no such flag >&2\nexit 1\n")
    broken.chmod(0o755)
    assert "no such flag" in why_there_are_none(CC=str(broken))
    (tmp_path / "file").touch()
    assert why_there_are_none(TERCET_CACHE=str(tmp_path / "file")).startswith("None")


def test_a_single_thread_gives_the_same_library_of_kernels(tmp_path, monkeypatch):
    monkeypatch.setenv("TERCET_CACHE", str(tmp_path))
    monkeypatch.setattr(built, "_threads", lambda: iter([("-fopenmp-simd",)]))
    native.cache_clear()
    try:
        assert native().library is not None
        gate, up = drawn(9, 50), drawn(9, 50, seed=1)
        torch.testing.assert_close(fused._SwiGlu.apply(gate, up), silu(gate) * up)
    finally:
        native.cache_clear()


def test_training_without_kernels_gives_the_same_numbers_up_to_rounding(tiny_folder, monkeypatch):
    from tercet.models.forest import Leaf, Tree, pack_forest
    from tercet.train.export import open_policy

    forest = pack_forest([Tree([1, 2, 3, 4], [Leaf([5, 6, 7], [True] * 3), Leaf([8, 9], [True] * 2)])])
    found = {}
    for kernels in (native(), built.Native(None, "none")):
        for module in (built, fused):
            monkeypatch.setattr(module, "native", lambda kernels=kernels: kernels)
        policy = open_policy(tiny_folder)
        logps = policy(forest)[0]
        logps.sum().backward()
        grads = [p.grad.flatten() for p in policy.parameters() if p.grad is not None]
        found[kernels.why] = logps.detach(), torch.cat(grads)
    for a, b in zip(*found.values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("softcap", [None, 0.8])
@pytest.mark.parametrize("before", [[], [0, 30, 2, 0, 1]], ids=["all", "a part"])
def test_one_query_per_row_sees_its_past_between_two_bounds_with_values_of_any_size(dtype, before, softcap):
    B, K, G, D, E, length = 5, 2, 3, 16, 9, 40
    keys, values = drawn(B, K, length, D, dtype=dtype), drawn(B, K, length, E, dtype=dtype, seed=1)
    query, seen = drawn(B, K, G, D, dtype=dtype, seed=2), torch.tensor([1, 40, 7, 13, 2])
    first = torch.tensor(before, dtype=torch.long)
    out, lse = kv_cache._attend_past(query, keys, values, (first, seen), Attention(0.3, softcap=softcap))
    scores = torch.einsum("bkgd,bkld->bkgl", query.double(), keys.double()) * 0.3
    scores = softcap * (scores / softcap).tanh() if softcap else scores
    places = torch.arange(length)
    scores = scores.masked_fill(places >= seen[:, None, None, None], -torch.inf)
    if before:
        scores = scores.masked_fill(places < first[:, None, None, None], -torch.inf)
    assert_near([out], [torch.einsum("bkgl,bkle->bkge", scores.softmax(-1), values.double())], dtype)
    torch.testing.assert_close(lse, scores.logsumexp(-1).float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("group", [1, 3])
def test_one_query_per_row_sees_its_own_past_only(dtype, group):
    B, K, D, length = 5, 2, 16, 40
    keys, values = drawn(B, K, length, D, dtype=dtype), drawn(B, K, length, D, dtype=dtype, seed=1)
    query, seen = drawn(B, K, group, D, dtype=dtype, seed=2), torch.tensor([1, 40, 7, 13, 2])
    out, lse = kv_cache._attend_past(query, keys, values, (seen[:0], seen), Attention(0.3))
    scores = torch.einsum("bkgd,bkld->bkgl", query.double(), keys.double()) * 0.3
    scores = scores.masked_fill(torch.arange(length) >= seen[:, None, None, None], -torch.inf)
    assert_near([out], [torch.einsum("bkgl,bkld->bkgd", scores.softmax(-1), values.double())], dtype)
    torch.testing.assert_close(lse, scores.logsumexp(-1).float(), rtol=1e-5, atol=1e-5)
    keys[0, :, 1:] = torch.nan  # beyond what the first row sees
    assert torch.equal(kv_cache._attend_past(query, keys, values, (seen[:0], seen), Attention(0.3))[0], out)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_tokens_are_drawn_where_the_cumulative_probability_passes_the_number(dtype, temperature):
    logits = 3.0 * drawn(200, 700, dtype=dtype)
    numbers = torch.rand(200, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    numbers[:3] = torch.tensor([0.0, 1.0 - 2**-53, 0.5])
    found, logps = sampling.draw(logits, numbers, Sampling(4, temperature))
    probs = (logits.double() / temperature).softmax(1)
    ends = probs.cumsum(1).gather(1, found[:, None]).squeeze(1)
    chosen = probs.gather(1, found[:, None]).squeeze(1)
    assert ((ends >= numbers - 1e-6) & (ends - chosen <= numbers + 1e-6)).all()
    torch.testing.assert_close(logps, chosen.log().float(), rtol=1e-5, atol=1e-5)


def test_the_likeliest_token_is_the_first_of_equals(dtype):
    logits = drawn(9, 700, dtype=dtype)
    logits[3, [5, 600]] = 9.0
    found, logps = sampling.draw(logits, torch.empty(0), Sampling(4, 0.0))
    assert found.tolist() == logits.float().argmax(1).tolist()
    torch.testing.assert_close(logps, logits.float().log_softmax(1).amax(1), rtol=1e-5, atol=1e-5)


def test_a_token_without_probability_is_never_drawn():
    logits = torch.full((2, 600), -200.0)
    logits[0, 3], logits[1, 599] = 0.0, 0.0
    found, _ = sampling.draw(logits, torch.tensor([1.0 - 2**-53, 0.0], dtype=torch.float64), Sampling(4, 1.0))
    assert found.tolist() == [3, 599]
