"""The chunked projection against log_softmax and gather, in value, gradient and entropy."""

from __future__ import annotations

import threading

import pytest
import torch

from tercet.algos import tokens
from tercet.algos.tokens import Head, token_logps

P, H, V = 23, 8, 31


@pytest.fixture(params=[1, 3 * V, 7 * V + 5, 1 << 23], ids=["one row", "three rows", "seven rows", "whole"])
def chunk(request, monkeypatch):
    """Several sizes of a chunk, the last one larger than the whole."""
    monkeypatch.setattr(tokens, "CHUNK_LOGITS", request.param)


def numbers(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(0)
    hidden = torch.randn(P, H, generator=source, dtype=torch.float64).mul(3.0)
    weight = torch.randn(V, H, generator=source, dtype=torch.float64)
    targets = torch.randint(V, (P,), generator=source)
    slopes = torch.randn(P, generator=source, dtype=torch.float64)
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets, slopes.to(dtype)


def plainly(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, temperature: float) -> torch.Tensor:
    return (hidden @ weight.T / temperature).log_softmax(1).gather(1, targets[:, None]).squeeze(1)


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-12), (torch.float32, 2e-5)], ids=["fp64", "fp32"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_it_equals_log_softmax_and_gather_with_their_gradients(dtype, close, temperature):
    hidden, weight, targets, slopes = numbers(dtype)
    logps, entropies = token_logps(hidden, Head(weight), targets, temperature=temperature)
    assert (logps.dtype, len(entropies)) == (dtype, 0)
    (logps * slopes).sum().backward()
    got = logps.detach(), hidden.grad, weight.grad

    hidden, weight, targets, slopes = numbers(torch.float64)
    wanted = plainly(hidden, weight, targets, temperature)
    (wanted * slopes.double()).sum().backward()
    for mine, theirs in zip(got, (wanted.detach(), hidden.grad, weight.grad), strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=close, atol=close)


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_the_entropy_is_that_of_the_tempered_distribution_and_carries_no_gradient(temperature):
    hidden, weight, targets, _ = numbers(torch.float64)
    logps, entropies = token_logps(hidden, Head(weight), targets, temperature=temperature, entropy=True)
    probs = (hidden @ weight.T / temperature).softmax(1)
    torch.testing.assert_close(entropies, -(probs * probs.log()).sum(1).detach(), rtol=1e-12, atol=1e-12)
    assert not entropies.requires_grad
    torch.testing.assert_close(logps, plainly(hidden, weight, targets, temperature), rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("chunk")
def test_numerical_differences_agree_with_its_gradient():
    source = torch.Generator().manual_seed(1)
    hidden = torch.randn(5, 3, generator=source, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(7, 3, generator=source, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 6, 3, 3, 1])
    assert torch.autograd.gradcheck(lambda h, w: token_logps(h, Head(w), targets, temperature=0.8)[0], (hidden, weight))


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-12), (torch.float32, 5e-5)], ids=["fp64", "fp32"])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_bias_scale_and_cap_of_a_head_have_their_gradients(dtype, close, softcap):
    def inputs(kind: torch.dtype) -> tuple[torch.Tensor, ...]:
        hidden, weight, targets, slopes = numbers(kind)
        return hidden, weight, torch.linspace(-2, 2, V, dtype=kind).requires_grad_(), targets, slopes

    hidden, weight, bias, targets, slopes = inputs(dtype)
    logps, _ = token_logps(hidden, Head(weight, bias, 0.3, softcap), targets, temperature=0.7)
    (logps * slopes).sum().backward()
    got = logps.detach(), hidden.grad, weight.grad, bias.grad

    hidden, weight, bias, targets, slopes = inputs(torch.float64)
    logits = 0.3 * (hidden @ weight.T + bias)
    if softcap:
        logits = softcap * (logits / softcap).tanh()
    torch.testing.assert_close(Head(weight, bias, 0.3, softcap)(hidden), logits, rtol=1e-12, atol=1e-12)
    wanted = (logits / 0.7).log_softmax(1).gather(1, targets[:, None]).squeeze(1)
    (wanted * slopes).sum().backward()
    for mine, theirs in zip(got, (wanted.detach(), hidden.grad, weight.grad, bias.grad), strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=close, atol=close)


def test_chunks_of_bf16_add_up_in_fp32(monkeypatch):
    hidden, weight, targets, slopes = numbers(torch.bfloat16)
    found = []
    for size in (1, 1 << 23):
        monkeypatch.setattr(tokens, "CHUNK_LOGITS", size)
        hidden.grad = weight.grad = None
        logps, _ = token_logps(hidden, Head(weight), targets)
        assert logps.dtype == torch.float32
        (logps * slopes).sum().backward()
        found.append((logps.detach(), hidden.grad.float(), weight.grad.float()))
    for one, many in zip(*found, strict=True):
        assert float((one - many).norm() / many.norm()) < 1e-2


def test_large_logits_neither_overflow_nor_lose_the_choice():
    hidden = torch.tensor([[1e4, 0.0], [-1e4, 0.0]])
    logps, entropies = token_logps(hidden, Head(torch.eye(2)), torch.tensor([0, 0]), entropy=True)
    torch.testing.assert_close(logps, torch.tensor([0.0, -1e4]))
    torch.testing.assert_close(entropies, torch.zeros(2))


def test_nothing_to_predict_gives_nothing_and_no_gradient():
    hidden = torch.empty(0, H, requires_grad=True)
    weight = torch.ones(V, H, requires_grad=True)
    logps, _ = token_logps(hidden, Head(weight), torch.empty(0, dtype=torch.long))
    logps.sum().backward()
    assert logps.shape == (0,)
    assert not weight.grad.any()


def test_no_chunk_of_logits_is_kept_for_backward():
    hidden, weight, targets, _ = numbers(torch.float32)
    kept: list[torch.Size] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda saved: kept.append(saved.shape) or saved, lambda saved: saved):
        token_logps(hidden, Head(weight), targets)
    assert (P, V) not in kept


@pytest.mark.parametrize(("vocabulary", "rows"), [(128_256, 2_092), (262_144, 2048), (32_000, 8_388), (259, 1_036_430)])
def test_on_a_card_a_chunk_has_at_least_2048_rows_and_a_gigabyte_of_logits(vocabulary, rows):
    assert tokens.chunk_rows(vocabulary, torch.device("cuda")) == rows
    assert rows >= 2048
    assert rows * vocabulary <= max(1 << 28, 2048 * vocabulary)


@pytest.mark.usefixtures("chunk")
def test_the_gradient_of_the_weight_adds_up_chunk_by_chunk_in_place():
    """What CUDA does, here in one precision: no product of the weight's size beside the sum."""
    hidden, weight, targets, slopes = numbers(torch.float64)
    (plainly(hidden, weight, targets, 1.0) * slopes).sum().backward()
    slope = -(hidden @ weight.T).softmax(1).detach() * slopes[:, None]
    slope.scatter_add_(1, targets[:, None], slopes[:, None])
    total = torch.zeros_like(weight)
    place = total.data_ptr()
    for start in range(0, P, 3):
        tokens.add_product(total, slope[start : start + 3].T, hidden.detach()[start : start + 3])
    assert total.data_ptr() == place
    torch.testing.assert_close(total, weight.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.accelerator.is_available(), reason="no CUDA device")
def test_on_a_card_products_of_bf16_add_up_in_fp32():
    source = torch.Generator().manual_seed(0)
    left, right = (torch.randn(8, 64, n, generator=source).bfloat16().cuda() for n in (96, 32))
    total = torch.zeros(96, 32, device="cuda")
    for one, other in zip(left, right, strict=True):
        tokens.add_product(total, one.T, other)
    wanted = torch.einsum("cpv,cph->vh", left.double(), right.double())
    assert float((total.double() - wanted).norm() / wanted.norm()) < 1e-6


class Both:
    """Two threads, each with half of a vocabulary, that exchange what they have."""

    def __init__(self, first: int, number: int, slots: list, barrier: threading.Barrier) -> None:
        self.first, self.number, self.slots, self.barrier = first, number, slots, barrier

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        mine, other = self._exchanged(values)
        return values.copy_(mine + other)

    def max(self, values: torch.Tensor) -> torch.Tensor:
        mine, other = self._exchanged(values)
        return values.copy_(torch.maximum(mine, other))

    def _exchanged(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.slots[self.number] = values.clone()
        self.barrier.wait(20)
        found = self.slots[0], self.slots[1]
        self.barrier.wait(20)
        return found


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize(("scale", "softcap", "temperature"), [(1.0, None, 1.0), (0.3, 2.0, 0.7)])
def test_parts_of_a_vocabulary_give_what_the_whole_gives(scale, softcap, temperature):
    slots, barrier, grads = [None, None], threading.Barrier(2), {}
    how = {"temperature": temperature, "entropy": True}

    def part(number: int, rows: slice) -> None:
        hidden, weight, targets, slopes = numbers(torch.float64)
        own = weight.detach()[rows].requires_grad_()
        head = Head(own, None, scale, softcap, Both(rows.start, number, slots, barrier))
        logps, entropies = token_logps(hidden, head, targets, **how)
        (logps * slopes).sum().backward()
        grads[number] = logps.detach(), entropies, hidden.grad, own.grad

    threads = [threading.Thread(target=part, args=(i, rows)) for i, rows in enumerate((slice(0, 14), slice(14, V)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    hidden, weight, targets, slopes = numbers(torch.float64)
    logps, entropies = token_logps(hidden, Head(weight, None, scale, softcap), targets, **how)
    (logps * slopes).sum().backward()
    wanted = logps.detach(), entropies, hidden.grad
    for number in range(2):
        for mine, theirs in zip(grads[number], wanted, strict=False):
            torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(torch.cat([grads[0][3], grads[1][3]]), weight.grad, rtol=1e-11, atol=1e-11)
