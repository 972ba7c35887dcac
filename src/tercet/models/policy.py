"""A causal LM or a scorer read through forests: a flat row of tokens in, one number per trained token out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tercet.algos.tokens import token_logps
from tercet.models.attention import Attention
from tercet.models.forest import Attends, Forest, ForestError, Leaf, Tree, pack_forest
from tercet.models.fused import fuse
from tercet.models.recurrent import follow_trees


class Reader(nn.Module):
    """A model that reads forests. Changing its precision changes weights only: rotary frequencies stay as they are.

    In bf16 they would be off by up to 0.4%, at position 1,000 that is radians. Every row of the embedding is trained:
    transformers freezes that of the padding token, which in many models is the end token; forests have no padding.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        embedding: nn.Embedding = model.get_input_embeddings()  # type: ignore[assignment]
        embedding.padding_idx = None
        fuse(model)
        self.walks = not follow_trees(model)  # keys and values are all that a branch needs of its trunk

    def hidden(self, layout: Attends, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        """Hidden states `(T, H)` of a flat row of tokens, without the model's head."""
        backbone = getattr(self.model, self.model.base_model_prefix)
        output = backbone(input_ids=input_ids[None], position_ids=position_ids[None], use_cache=False, forest=layout)
        return output.last_hidden_state[0]

    def states(self, forest: Forest) -> Tensor:
        """The hidden states that a forest's `predict_P` and `last_L` count through."""
        own = self.hidden(forest, forest.input_ids, forest.position_ids)
        return own if forest.past is None else torch.cat([own, *(one.to(own.dtype) for one in forest.past.states)])

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

    def head(self) -> Tensor:
        """The output projection's weight `(V, H)`."""
        return self.model.get_output_embeddings().weight

    def forward(self, forest: Forest, *, temperature: float = 1.0, entropy: bool = False) -> tuple[Tensor, Tensor]:
        """`(logps_P, entropies_P)` of the trained tokens."""
        chosen = self.states(forest).index_select(0, forest.predict_P)
        return token_logps(chosen, self.head(), forest.targets_P, temperature=temperature, entropy=entropy)


class Scorer(Reader):
    """A sequence classifier with one output, read at the last token of each leaf (reward model)."""

    def forward(self, forest: Forest) -> Tensor:
        """Scores `(L,)` in fp32, one per leaf."""
        last = self.states(forest).index_select(0, forest.last_L)
        score: nn.Module = self.model.score  # type: ignore[assignment]
        return score(last).squeeze(-1).float()


@torch.no_grad()
def check_supported(policy: Policy) -> None:
    """Refuse architectures whose attention or output projection does something the forest does not do."""
    device = policy.head().device
    forest = pack_forest([Tree([], [Leaf([1, 2, 3], [False, True, True])])]).to(device)
    seen: list[int] = []

    class Probe:
        def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, how: Attention) -> Tensor:
            seen.append(layer)
            return forest.attend(layer, query, key, value, how)

    hidden = policy.hidden(Probe(), forest.input_ids, forest.position_ids)
    layers = policy.model.config.get_text_config().num_hidden_layers
    if sorted(seen) != list(range(layers)):
        raise ForestError(
            f"{type(policy.model).__name__}: {len(seen)} of {layers} attention layers used the attention interface; "
            "the forest layout needs all of them (use an architecture such as Llama, Qwen, OLMo or Mistral)"
        )
    output = policy.model(
        input_ids=forest.input_ids[None], position_ids=forest.position_ids[None], use_cache=False, forest=forest
    )
    expected = hidden @ policy.head().T
    if not torch.allclose(output.logits[0].float(), expected.float(), rtol=1e-2, atol=1e-2):
        raise ForestError(
            f"{type(policy.model).__name__} changes logits after the output projection (scaling or soft-capping), "
            "which the chunked projection does not do; use another architecture"
        )
