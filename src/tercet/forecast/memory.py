"""How many bytes a stage needs on a card (on a CPU: of the process) and on its host, from shapes alone.

The terms follow `device.shard`, `train.loop`, `train.rl.generator` and `algos.tokens`. What a layer keeps for backward
was counted from the tensors that autograd saved: 2 H + 3 I + 2 K numbers in the precision of the products and 16 H
bytes of fp32 for the two norms, with H the hidden size, I the MLP's width and K the width of the keys.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tercet.forecast.shape import ModelShape

CPU_PROCESS, CARD_PROCESS = 0.55e9, 2.5e9  # Python with torch and transformers; a CUDA context with its libraries
HOLES = 0.2  # of gradients and moments: what glibc's heap holds in pieces too small for the next pass
CPU_LOGITS, CARD_LOGITS, CARD_ROWS = 1 << 24, 1 << 28, 2048  # of `algos.tokens`
ROWS, MOST = 2048, 1 << 24  # of `device.speed`
SCORED = 8192  # tokens, of `models.generate`
WRITES = 8192  # tokens of a row that an engine's cache must hold, or it could write none
NORMS, FUSED = 16.0, 8.0  # bytes of two norms, times the width: in fp32, and by `models.fused` in bf16 on a CPU
MOMENTS, EIGHT_BITS = 8.0, 2.0  # bytes of AdamW's two moments for a weight


@dataclass(frozen=True)
class Setting:
    """What decides a stage's memory beside the shapes. Tokens are those of the longest forward pass."""

    ranks: int = 1
    node: int = 1  # ranks that share a host
    card: bool = True
    width: int = 2  # bytes of a number in products: 2 for bf16, 4 for fp32
    tokens: int = 4096
    recompute: bool = False
    auto: bool = False  # recomputation is left to the forecast
    to_host: bool = False  # activations wait for backward in the host's memory
    offload: bool = False
    eight_bits: bool = False
    lora: int = 0  # rank of the adapters; 0: all weights are trained
    groups: int = 1  # of ranks that hold a whole model each
    slices: bool = False  # each rank reads its share of every model from the disk
    tensor: int = 1  # ranks that have a part each of every product
    context: int = 1  # ranks that have a part each of the same tokens
    reference: bool = False  # a live one
    copies: int = 0  # of the policy, for generation
    cached: int = 0  # most tokens of the generator's cache
    engine: float = 0.0  # bytes of an engine on the same card, which sleeps while there are gradients


Bytes = dict[str, float]


def training(shape: ModelShape, setting: Setting, value: ModelShape | None = None) -> Bytes:
    """Bytes of a training stage per rank, by what they are for; `peak` is the most that is there at once."""
    s, models = setting, [shape, *([value] if value else [])]
    whole = sum(model.parameters for model in models)
    trained = sum(adapters(model, s.lora) for model in models) if s.lora else whole
    alone, sharing = s.ranks == 1, s.ranks // s.groups
    state = {
        "master weights": 4.0 * trained / sharing,
        "gradients": 4.0 * trained / sharing,
        "moments": (EIGHT_BITS if s.eight_bits else MOMENTS) * trained / sharing,
    }
    found: Bytes = {} if s.offload and s.card else dict(state)
    found["frozen"] = s.width * (whole - trained) / sharing if s.lora else 0.0
    if alone and (s.width == 2 or (s.offload and s.card)):
        found["compute copy"] = float(s.width * trained)
    elif not alone:  # FSDP gathers a layer while the next is on its way; embedding and head stay for the whole step
        found["gathered"] = s.width * (2.0 * shape.layer + 2.0 * shape.vocabulary * shape.hidden) / s.tensor
        found["gathered"] += 4.0 * shape.layer / s.tensor  # a layer's gradient in fp32, before it is shared out
    found["reference"] = s.width * shape.parameters / (sharing if s.slices else 1) if s.reference else 0.0
    found["generator"] = float(s.width * shape.parameters * s.copies)
    found["process"] = CARD_PROCESS if s.card else CPU_PROCESS
    found["heap"] = 0.0 if s.card else HOLES * (found.get("gradients", 0.0) + found.get("moments", 0.0))
    lasting = sum(found.values())
    passing = {"activations": max(activations(one, s) for one in models), "logits": logits(shape, s)}
    writing = float(s.cached * shape.cache(s.width)) + (logits(shape, s) if s.cached else 0.0)
    writing += float(s.width * shape.parameters) if s.cached and not s.card else 0.0  # `models.packed`
    writing += s.engine
    opening = found["process"] + (0.0 if s.offload and s.card else _opened(whole, trained, s))
    found |= passing | {"cache": float(s.cached * shape.cache(s.width)), "engine": s.engine, "opening": opening}
    without = lasting - found.get("gradients", 0.0)  # they are made by a step and gone after it
    found["peak"] = max(lasting + sum(passing.values()), without + writing, opening)
    waiting = max(_kept(one, s) * one.layers * s.tokens / s.context for one in models) if s.to_host else 0.0
    found["host"] = _host(whole, sum(state.values()), s, waiting) if s.card else found["peak"] * s.ranks
    return {name: value for name, value in found.items() if value}


def generation(shape: ModelShape, setting: Setting) -> Bytes:
    """Bytes of a process that only generates: weights, cache, and a batch of options that is scored."""
    found: Bytes = {
        "weights": float(setting.width * shape.parameters),
        "packed": 0.0 if setting.card else float(setting.width * shape.parameters),  # `models.packed`, for a CPU
        "cache": float(setting.cached * shape.cache(setting.width)),
        "process": CARD_PROCESS if setting.card else CPU_PROCESS,
    }
    passing = {
        "activations": float(SCORED * _layer(shape, setting.width)),
        "logits": logits(shape, replace(setting, tokens=SCORED)),
    }
    peak = sum(found.values()) + max(sum(passing.values()), _yardstick(shape, setting.width))
    return found | passing | {"peak": peak, "host": float(setting.width * shape.parameters)}


def engine(shape: ModelShape, setting: Setting, cards: int, room: float) -> Bytes:
    """Bytes of each card of an engine: its part of the weights; what is left of `room` is cache, a row at least."""
    parts = min(cards, shape.kv_heads)
    found: Bytes = {
        "weights": float(setting.width * shape.parameters) / cards,
        "process": CARD_PROCESS,
        "activations": float(SCORED * _layer(shape, setting.width)) / cards,
        "logits": logits(shape, replace(setting, tokens=SCORED)) / cards,
    }
    taken, row = sum(found.values()), float(WRITES * shape.cache(setting.width)) / parts
    found["cache"] = max(room - taken, row)
    return found | {"peak": taken + found["cache"], "host": float(setting.width * shape.parameters)}


def activations(shape: ModelShape, setting: Setting) -> float:
    """What forward keeps for backward of the longest pass, and what a layer needs while it is computed."""
    layer, kept = _computed(shape, setting), _kept(shape, setting)
    ends = 4.0 * setting.width * shape.hidden
    # of those that wait on the host, the layer's at work are here, and the ones before on their way
    here = min(kept, layer) if setting.to_host else kept * shape.layers
    gathered = 2.0 * setting.width * shape.hidden * setting.tokens if setting.context > 1 else 0.0
    return setting.tokens / setting.context * (here + layer + ends) + gathered


def _kept(shape: ModelShape, setting: Setting) -> float:
    """What a layer keeps of a token until backward comes to it."""
    layer = _computed(shape, setting)
    return setting.width * shape.hidden + layer / shape.layers if setting.recompute else layer


def _computed(shape: ModelShape, setting: Setting) -> float:
    norms = NORMS if setting.card or setting.width == 4 else FUSED
    return _layer(shape, setting.width, setting.tensor, norms)


def _layer(shape: ModelShape, width: int, tensor: int = 1, norms: float = NORMS) -> float:
    """What a layer keeps of a token: of heads and MLP a part, where several ranks compute them; of both norms all."""
    return width * (2 * shape.hidden + 3 * shape.inner + 2 * shape.kv_width) / tensor + norms * shape.hidden


def _yardstick(shape: ModelShape, width: int) -> float:
    """Of `device.speed`: the head's weight, the gradient of its output, and the larger of these once more."""
    weight, slope = shape.vocabulary * shape.hidden, min(ROWS * shape.vocabulary, max(shape.vocabulary, MOST))
    return float(width * (weight + slope + max(weight, slope)))


def logits(shape: ModelShape, setting: Setting) -> float:
    """A chunk of logits with its gradient, in fp32."""
    most = CARD_LOGITS if setting.card else CPU_LOGITS
    vocabulary = shape.vocabulary // setting.tensor
    rows = max(CARD_ROWS if setting.card else 1, most // vocabulary)
    return 2.0 * 4.0 * min(rows, max(setting.tokens, 1)) * vocabulary


def adapters(shape: ModelShape, rank: int) -> int:
    """Weights of LoRA's factors beside all linear layers below the head."""
    query, ends = shape.heads * shape.head_dim, 2 * shape.hidden
    attention = 2 * (shape.hidden + query) + 2 * (shape.hidden + shape.kv_width)
    return rank * shape.layers * (attention + 3 * (ends // 2 + shape.inner))


def disk(shape: ModelShape, setting: Setting, value: ModelShape | None = None) -> tuple[float, float]:
    """Bytes of the artifact, stored in fp32, and of the two checkpoints that are kept."""
    models = [shape, *([value] if value else [])]
    trained = sum(adapters(one, setting.lora) if setting.lora else one.parameters for one in models)
    moments = EIGHT_BITS if setting.eight_bits else MOMENTS
    return 4.0 * sum(one.parameters for one in models), 2.0 * (4.0 + moments) * trained


def _opened(whole: float, trained: float, setting: Setting) -> float:
    """On the card when a stage begins: a rank that reads no slices takes all weights before they are shared out."""
    if setting.slices:
        return 0.0
    return 4.0 * trained + setting.width * (whole - trained) if setting.ranks > 1 else 0.0


def _host(whole: float, state: float, setting: Setting, waiting: float) -> float:
    """Of a node: ranks open all weights or their slices in fp32; then what is offloaded, or a checkpoint on its way.

    `waiting` are the activations that a rank keeps there.
    """
    opening = 4.0 * whole * min(setting.ranks, setting.node)
    if setting.slices:
        opening *= setting.groups / setting.ranks
    return max(opening, (state + waiting) * min(setting.ranks, setting.node))
