"""A causal LM or a scorer read through forests: a flat row of tokens in, one number per trained token out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tercet.algos.tokens import Head, token_logps
from tercet.device.context import ContextRanks
from tercet.device.split import part_of
from tercet.models.attention import LAYOUT, POSITIONS, TUNING, Attention
from tercet.models.backbone import backbone, hand_on
from tercet.models.forest import Attends, Forest, ForestError, Leaf, MissingLayoutError, Tree, pack_forest
from tercet.models.fused import fuse
from tercet.models.hf_folder import one_line
from tercet.models.padded import padded_hidden
from tercet.models.recurrent import follow_trees
from tercet.models.state_plan import StatePlan

# Names under which configurations keep a factor or a divisor of the logits.
FACTORS = ("logit_scale", "lm_head_multiplier", "output_multiplier")
DIVISORS = ("logits_scaling", "logits_mup_width_multiplier")
CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
NARROW = 4  # tokens: what windows and chunks are cut to while a model is probed
EXACT, ROUNDED = 2e-3, 5e-2  # relative differences of logits that a probe allows, in fp32 and below


class KeyShape(NamedTuple):
    """One attention layer's key heads, and the sizes of a key and of a value."""

    heads: int
    key: int
    value: int


class Reader(nn.Module):
    """A model that reads forests. Changing its precision changes weights only: rotary frequencies stay as they are.

    In bf16 they would be off by up to 0.4%, at position 1,000 that is radians. Every row of the embedding is trained:
    transformers freezes that of the padding token, which in many models is the end token; forests have no padding.
    """

    def __init__(self, model: PreTrainedModel, *, padded: bool = False) -> None:
        """Where `padded`, each path of a forest is a row of its own, for models that cannot read a forest."""
        super().__init__()
        self.model, self.padded, self.why_padded = model, padded, ""
        self.plain = "eager"  # the attention that the model came with
        embedding: nn.Embedding = model.get_input_embeddings()  # type: ignore[assignment]
        embedding.padding_idx = None
        fuse(model)
        self.once = True  # whether each layer attends once, so that it has one cache
        self.walks = not follow_trees(model)  # keys and values are all that a branch needs of its trunk
        self.handed_on = False  # whether layers had to be made to hand on the layout
        self.by_position = any(hasattr(part, TUNING) for part in model.modules())  # attention asks for positions
        self.context: ContextRanks | None = None  # the ranks that share a row's tokens, where there are several

    def run(self, function: Callable[..., Tensor], *given: Any) -> Tensor:
        """Call a function as if it were this model's forward pass: ranks that share the model gather it."""
        return function(*given)

    def hidden(self, layout: Attends, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        """Hidden states `(T, H)` of a flat row of tokens, without the model's head."""
        if self.context is not None:
            return self.context.hidden(self._hidden, layout, input_ids, position_ids)
        return self._hidden(layout, input_ids, position_ids)

    def _hidden(self, layout: Any, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        if self.padded:
            return padded_hidden(backbone(self.model), layout, input_ids)
        given = {"input_ids": input_ids[None], "position_ids": position_ids[None], "use_cache": False}
        given |= {LAYOUT: layout} | ({POSITIONS: position_ids} if self.by_position else {})
        try:
            output = backbone(self.model)(**given)
        except MissingLayoutError:
            if self.handed_on:
                raise
            hand_on(self.model)
            self.handed_on = True
            output = backbone(self.model)(**given)
        return output.last_hidden_state[0]

    def states(self, forest: Forest) -> Tensor:
        """The hidden states that a forest's `predict_P` and `last_L` count through."""
        own = self.hidden(forest, forest.input_ids, forest.position_ids)
        return own if forest.past is None else torch.cat([own, *(one.to(own.dtype) for one in forest.past.states)])

    def at(self, forest: Forest, places: Tensor) -> Tensor:
        """Hidden states at places, those that this rank goes on with."""
        return self.states(forest).index_select(0, self.own(places))

    def own(self, rows: Tensor) -> Tensor:
        """Of what belongs to places, this rank's part."""
        return rows if self.context is None else self.context.part(rows)

    def whole(self, values: Tensor, places: Tensor) -> Tensor:
        """Values of all places from those of each rank's part."""
        return values if self.context is None else self.context.whole(values, len(places))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Reader:
        exact = [
            (owner, name, buffer) for owner in self.modules() for name, buffer in owner.named_buffers(recurse=False)
        ]
        super()._apply(fn, recurse)
        for owner, name, buffer in exact:
            setattr(owner, name, buffer.to(getattr(owner, name).device))
        return self


class Policy(Reader):
    """A causal LM read through forests: log-probabilities of trained tokens, or hidden states of last tokens."""

    def __init__(self, model: PreTrainedModel, *, padded: bool = False) -> None:
        super().__init__(model, padded=padded)
        self.scale, self.softcap = _logit_options(model.config.get_text_config())
        self._key_shapes: dict[int, KeyShape] = {}

    def head(self) -> Head:
        """What makes logits of hidden states."""
        output: Any = self.model.get_output_embeddings()
        weight, others = part_of(output.weight)
        bias = None if getattr(output, "bias", None) is None else part_of(output.bias)[0]
        return Head(weight, bias, self.scale, self.softcap, others)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits of hidden states by the output layer itself, whose weight may be packed for generation."""
        return self.head().finish(self.model.get_output_embeddings()(hidden))

    def forward(self, forest: Forest, *, temperature: float = 1.0, entropy: bool = False) -> tuple[Tensor, Tensor]:
        """`(logps_P, entropies_P)` of the trained tokens."""
        places = forest.predict_P
        chosen, targets_P = self.at(forest, places), self.own(forest.targets_P)
        logps, entropies = token_logps(chosen, self.head(), targets_P, temperature=temperature, entropy=entropy)
        return self.whole(logps, places), self.whole(entropies, places) if entropy else entropies

    @torch.no_grad()
    def key_shapes(self) -> dict[int, KeyShape]:
        """The shape of every attention layer's keys and values, by layer, as one token's forward pass shows them."""
        if not self._key_shapes:
            forest = pack_forest([Tree([0], [])]).to(self.head().weight.device)
            self.hidden(_Witness(forest, self._key_shapes), forest.input_ids, forest.position_ids)
        return self._key_shapes


class _Witness:
    """A forest that notes which layers attend, and with what shapes."""

    def __init__(self, forest: Forest, shapes: dict[int, KeyShape]) -> None:
        self.forest, self.shapes, self.calls = forest, shapes, 0

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, how: Attention) -> Tensor:
        self.calls += 1
        self.shapes[layer] = KeyShape(key.shape[1], key.shape[3], value.shape[3])
        return self.forest.attend(layer, query, key, value, how)

    def states(self) -> StatePlan:
        """How recurrent layers follow the branches."""
        return self.forest.states()


def _logit_options(config: Any) -> tuple[float, float | None]:
    """The factor and the cap of a model's logits, as its configuration names them."""
    scale = 1.0
    for name in FACTORS:
        scale *= getattr(config, name, None) or 1.0
    for name in DIVISORS:
        scale /= getattr(config, name, None) or 1.0
    return scale, next((cap for name in CAPS if (cap := getattr(config, name, None))), None)


class Scorer(Reader):
    """A sequence classifier with one output, read at the last token of each leaf (reward model)."""

    def forward(self, forest: Forest) -> Tensor:
        """Scores `(L,)` in fp32, one per leaf."""
        score: nn.Module = self.model.score  # type: ignore[assignment]
        scores = score(self.at(forest, forest.last_L)).squeeze(-1).float()
        return self.whole(scores, forest.last_L).clone()  # FSDP hangs a hook on it, which no view carries safely


@torch.no_grad()
def why_not_forest(policy: Policy) -> str:
    """Why the forest layout cannot carry a model; empty where it can.

    Logits of a small tree are compared with those of the model's own forward pass over each path. Windows and chunks
    are narrow meanwhile, so that a few tokens show them.
    """
    trunk, *leaves = (
        [(3 + 7 * i + k) % policy.head().weight.shape[0] for i in range(n)] for k, n in enumerate((9, 5, 3))
    )
    forest = pack_forest([Tree(trunk, [Leaf(ids, [True] * len(ids)) for ids in leaves])])
    forest = forest.to(policy.head().weight.device)
    shapes: dict[int, KeyShape] = {}
    witness = _Witness(forest, shapes)
    with _narrowed(policy.model):
        try:
            hidden = policy.hidden(witness, forest.input_ids, forest.position_ids)
            with _attending(policy.model, "eager"):
                plain = [_plain(policy, [*trunk, *ids]) for ids in leaves]
        except Exception as error:  # modelling files raise of every kind where they meet what they do not expect
            said = one_line(error)
            return said if isinstance(error, ForestError) else f"its own code stops in a forest ({said})"
    policy.once = witness.calls == len(shapes)
    if not shapes and policy.walks:  # below fp32 a comparison alone might not show it
        return _which_layers(policy, shapes)
    found, start = policy.head()(hidden), len(trunk)
    for ids, (logits, own) in zip(leaves, plain, strict=True):
        if _apart(policy.head()(own), logits):
            return "its logits are not its output projection's with a factor and a cap that its configuration names"
        path = torch.cat((found[: len(trunk)], found[start : start + len(ids)]))
        if _apart(path, logits) or _apart(path[len(trunk) :], logits[len(trunk) :]):
            return _which_layers(policy, shapes)
        start += len(ids)
    return ""


def _which_layers(policy: Policy, seen: dict[int, KeyShape]) -> str:
    layers = policy.model.config.get_text_config().num_hidden_layers
    if len(seen) < layers:
        return f"{len(seen)} of {layers} layers used the attention interface, and the others look at other tokens too"
    return "its attention does something that the forest layout does not do"


def _plain(policy: Policy, ids: list[int]) -> tuple[Tensor, Tensor]:
    """A path's logits by the model's own forward pass, and the hidden states below its head."""
    path = torch.tensor([ids], device=policy.head().weight.device)
    logits = policy.model(input_ids=path, use_cache=False).logits[0]
    return logits, backbone(policy.model)(input_ids=path, use_cache=False).last_hidden_state[0]


def _apart(found: Tensor, wanted: Tensor) -> bool:
    """Whether logits differ by more than rounding; below fp32 single tokens may, where experts are chosen."""
    exact = wanted.dtype in (torch.float32, torch.float64) and found.dtype in (torch.float32, torch.float64)
    gaps = (found.float() - wanted.float()).norm(dim=-1) / wanted.float().norm(dim=-1).clamp(min=1e-12)
    return not float(gaps.max() if exact else gaps.median()) <= (EXACT if exact else ROUNDED)


@contextmanager
def _attending(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Inside, attention is transformers' own of that name."""
    configs = {id(part.config): part.config for part in model.modules() if isinstance(part, PreTrainedModel)}
    before = [(config, config._attn_implementation) for config in configs.values()]
    try:
        for config, _ in before:
            config._attn_implementation = name
        yield
    finally:
        for config, own in before:
            config._attn_implementation = own


@contextmanager
def _narrowed(model: PreTrainedModel) -> Iterator[None]:
    """Inside, no layer sees further than a few tokens unless it sees all."""
    owners: dict[int, Any] = {}
    for module in model.modules():
        owners |= {id(one): one for one in (module, getattr(module, "config", None)) if one is not None}
    wide = [
        (owner, name, value)
        for owner in owners.values()
        for name in ("sliding_window", "attention_chunk_size")
        if isinstance(value := getattr(owner, name, None), int) and value > NARROW
    ]
    try:
        for owner, name, _ in wide:
            setattr(owner, name, NARROW)
        yield
    finally:
        for owner, name, value in wide:
            setattr(owner, name, value)
