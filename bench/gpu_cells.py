"""What a card does at the layer shape of Llama 3.1 8B, random weights: SFT with ablations, DPO, decoding.

A cell trains or writes with the stages' own loop, losses, batches and generator; rows are random tokens of one length,
so that every cell does the same work every time. Useful MFU counts the trained tokens alone, 6 FLOP for each of them
and each weight, over the whole step and the card's dense bf16 peak. Eight layers with the whole head fit one card; the
whole model's figures are theirs and four layers', by addition: what 24 more layers cost is 6 times what 4 cost.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple, cast
from unittest import mock

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from tercet.algos import tokens as head
from tercet.device.graphs import Graphs
from tercet.device.mesh import Mesh, peak_flops, peak_memory
from tercet.device.shard import Trainable
from tercet.device.speed import bandwidth
from tercet.forecast.memory import CARD_PROCESS, Setting, training
from tercet.forecast.shape import ModelShape
from tercet.models import decoding, forest_cuda
from tercet.models.chat import open_chat
from tercet.models.forest import NAME, Forest, Leaf, Tree
from tercet.models.generate import LocalGenerator
from tercet.models.policy import Policy
from tercet.models.tiny import write_tokenizer
from tercet.recipe import BaseSpec, DPOSpec, Placement, Recipe, SFTSpec
from tercet.rows import Sampling
from tercet.store import Context
from tercet.train.compared import Compared
from tercet.train.dpo import answer_sums, preference
from tercet.train.loop import LossFn, fit, start
from tercet.train.sft import sft_loss
from tercet_side import Notes, in_order

Cell = Callable[[], dict[str, Any]]
STEPS = 4  # of which the first, which builds kernels, does not count
WHOLE = 32  # layers of the model whose shape it is


class Scale(NamedTuple):
    """How large the cells are. `row` is the length of a row of SFT, and of a pair's path in DPO."""

    hidden: int = 4096
    heads: int = 32
    key_heads: int = 8
    inner: int = 14336
    vocabulary: int = 128256
    layers: int = 8
    fewer: int = 4  # layers of the cell that is taken off
    row: int = 4096
    rows: int = 8  # of a step
    micro: int = 16384  # tokens of a forward pass
    written: tuple[int, int] = (32, 160)  # tokens of two runs of the generator; their difference counts
    batches: tuple[int, ...] = (1, 32, 128)  # rows decoded at once

    def config(self, layers: int) -> LlamaConfig:
        """The model with so many layers."""
        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.inner,
            num_hidden_layers=layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_heads,
            max_position_embeddings=2 * self.row,
            tie_word_embeddings=False,
            pad_token_id=256,
            bos_token_id=257,
            eos_token_id=258,
        )


DRY = Scale(64, 4, 2, 128, 512, 2, 1, row=96, rows=4, micro=256, written=(4, 12), batches=(1, 3))


def cells(scale: Scale, device: torch.device) -> Iterator[tuple[str, Cell]]:
    """Every cell by name, in the order of their worth."""
    fit_sft = partial(sft, scale, device)
    yield "SFT", fit_sft
    yield f"SFT, {scale.fewer} layers", partial(fit_sft, layers=scale.fewer)
    yield "DPO, forest", partial(dpo, scale, device)
    yield "DPO, padded", partial(dpo, scale, device, padded=True)
    for rows in scale.batches:
        yield f"decoding {rows} rows", partial(decode, scale, device, rows)
        yield f"decoding {rows} rows, no graphs", partial(decode, scale, device, rows, graphs=False)
    yield "SFT, recomputed", partial(fit_sft, recompute=True)
    if device.type == "cuda":  # on a CPU that takes a minute and says nothing of a card
        yield "SFT, compiled", partial(fit_sft, compile=True)
    yield "SFT, FlexAttention", partial(fit_sft, flex=True)
    for rows in (512, 8192):
        yield f"SFT, {rows} rows of logits", partial(fit_sft, head_rows=rows)


def sft(
    scale: Scale,
    device: torch.device,
    *,
    layers: int = 0,
    flex: bool = False,
    head_rows: int = 0,
    **placed: bool,
) -> dict[str, Any]:
    """Full finetuning of rows without branches; `placed` are switches of the placement."""
    placement = Placement.model_validate({"micro_tokens": scale.micro, **placed})
    source = random.Random(0)
    trees = [Tree([], [Leaf(drawn(source, scale, scale.row), [True] * scale.row)]) for _ in range(STEPS * scale.rows)]
    config = scale.config(layers or scale.layers)
    spec = SFTSpec(model="base", rows="rows", max_length=scale.row, batch=scale.rows, **COMMON)
    with attention(flex=flex), chunks(head_rows):
        found = train(config, spec, partial(sft_loss, reduction="token_mean"), trees, placement, Mesh(device=device))
    setting = Setting(tokens=scale.micro, recompute=placement.recompute is True, card=device.type == "cuda")
    expected = forecast(config, setting)
    return found | {"forecast_gb": expected, "forecast_off": expected / found["memory_gb"] - 1}


def dpo(scale: Scale, device: torch.device, *, padded: bool = False) -> dict[str, Any]:
    """Pairs whose prompt is half of a path. The reference's log-probs are zeros: its pass is not counted."""
    half, source = scale.row // 2, random.Random(0)
    leaves = [[Leaf(drawn(source, scale, half), [True] * half) for _ in "ab"] for _ in range(STEPS * scale.rows)]
    trees = [Tree(drawn(source, scale, half), pair) for pair in leaves]
    spec = DPOSpec(model="base", pairs="pairs", loss="dpo", max_length=scale.row, batch=scale.rows, **COMMON)
    loss = Compared(answer_sums, partial(preference, spec=spec))
    placement, ranks = Placement(micro_tokens=scale.micro), Mesh(device=device, padded=padded)
    return train(scale.config(scale.layers), spec, loss, trees, placement, ranks)


COMMON: dict[str, Any] = {"dtype": "bfloat16", "steps": STEPS, "schedule": "constant", "warmup_ratio": 0.0}


def train(
    config: LlamaConfig,
    spec: SFTSpec | DPOSpec,
    loss: LossFn,
    trees: list[Tree],
    placement: Placement,
    ranks: Mesh,
) -> dict[str, Any]:
    """Steps of a stage, the first not counted: tokens a second, useful MFU, seconds of a step, peak GB."""
    notes = Notes()
    recipe = Recipe(name="gpu", base=BaseSpec(model="random"), stage={}, placement=placement)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder) / "stage" / "work"
        work.mkdir(parents=True)
        ctx = Context("gpu", 0, recipe, work, notes, {}, cast(Any, None))
        state = start(policy(config, ranks.device, ranks.padded), spec, ranks, ctx)

        def values(items: list[int], forest: Forest) -> dict[str, torch.Tensor]:
            return {"reference_L": torch.zeros(forest.num_leaves)}

        steps = in_order(trees, spec, ctx, ranks, values if isinstance(spec, DPOSpec) else None)
        fit(state, steps, loss, spec, ctx, total=STEPS)
        weights = state.trainable
    return figures(notes, weights, ranks.device)


def figures(notes: Notes, weights: Trainable, device: torch.device) -> dict[str, Any]:
    """Means of the counted steps."""
    counted = notes.steps[1:]
    seconds = fmean(step["seconds"] for step in counted)
    trained = fmean(step["useful_tokens"] for step in counted)
    found = {
        "trained_per_second": trained / seconds,
        "tokens_per_second": fmean(step["tokens"] for step in counted) / seconds,
        "step_seconds": seconds,
        "memory_gb": peak_memory(device),
        "efficiency": fmean(step["efficiency"] for step in counted),
    }
    if (peak := peak_flops(device)) is not None:
        found["useful_mfu"] = weights.flops * trained / seconds / peak
        found["mfu"] = fmean(step["gflops"] for step in counted) * 1e9 / peak
    return found


def policy(config: LlamaConfig, device: torch.device, padded: bool = False) -> Policy:
    """Random fp32 weights, made on the device; a padded one reads with transformers' own attention."""
    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa" if padded else NAME)
    return Policy(model, padded=padded)


def drawn(source: random.Random, scale: Scale, length: int) -> list[int]:
    """Random tokens."""
    return [source.randrange(300, scale.vocabulary) for _ in range(length)]


@contextmanager
def attention(*, flex: bool) -> Iterator[None]:
    """Inside, rows without branches are attended by FlexAttention too."""
    with mock.patch.object(forest_cuda, "flash_attention", (lambda: None) if flex else forest_cuda.flash_attention):
        yield


@contextmanager
def chunks(rows: int) -> Iterator[None]:
    """Inside, so many rows of logits are held at once; 0: as many as usual."""
    rows, most = (rows, 0) if rows else (head.CUDA_ROWS, head.CUDA_LOGITS)
    with mock.patch.object(head, "CUDA_ROWS", rows), mock.patch.object(head, "CUDA_LOGITS", most):
        yield


def decode(scale: Scale, device: torch.device, rows: int, *, graphs: bool = True) -> dict[str, Any]:
    """Milliseconds that a token of all rows takes beyond the prompt, and what reading the weights alone would take."""
    config, source = scale.config(scale.layers), random.Random(rows)
    model = policy(config, device).to(torch.bfloat16).requires_grad_(False)
    prompts = [drawn(source, scale, scale.row // 8) for _ in range(rows)]
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder))
        chat = open_chat(Path(folder))
    chat.stops = set()
    generator = LocalGenerator(model, chat, rows=rows)
    kind = Graphs if graphs else lambda _: Graphs(torch.device("cpu"))  # one that never records

    def seconds(count: int) -> float:
        began = time.perf_counter()
        generator.write(prompts, Sampling(count, 1.0))
        return time.perf_counter() - began

    few, many = scale.written
    with mock.patch.object(decoding, "Graphs", kind):
        seconds(many)  # kernels are built
        spent = min(seconds(many) for _ in range(2)) - min(seconds(few) for _ in range(2))
    step = spent / (many - few)
    read = 2.0 * (sum(p.numel() for p in model.parameters()) - scale.vocabulary * scale.hidden) / bandwidth(device)
    return {"ms_per_token": 1e3 * step, "weights_ms": 1e3 * read, "tokens_per_second": rows / step}


def forecast(config: LlamaConfig, setting: Setting) -> float:
    """GB of the card that the forecast expects of torch's allocator: without the CUDA context."""
    shape = ModelShape.of(config.to_dict())
    assert shape is not None, "the forecast does not know this shape"
    expected = training(shape, setting)["peak"]
    return (expected - (CARD_PROCESS if setting.card else 0.0)) / 1e9


def whole(found: dict[str, dict[str, Any]], scale: Scale) -> dict[str, Any]:
    """SFT of the whole model on cards that share its state: seconds and useful MFU, by addition."""
    more, less = found["SFT"], found[f"SFT, {scale.fewer} layers"]
    layer = (more["step_seconds"] - less["step_seconds"]) / (scale.layers - scale.fewer)
    seconds = more["step_seconds"] + (WHOLE - scale.layers) * layer
    made: dict[str, Any] = {"step_seconds": seconds, "layer_seconds": layer}
    made["trained_per_second"] = more["trained_per_second"] * more["step_seconds"] / seconds
    if "useful_mfu" in more:
        work = [one["useful_mfu"] * one["step_seconds"] for one in (more, less)]  # in seconds of the card's peak
        step = (work[0] - work[1]) / (scale.layers - scale.fewer)
        made["useful_mfu"] = (work[0] + (WHOLE - scale.layers) * step) / seconds
    return made
