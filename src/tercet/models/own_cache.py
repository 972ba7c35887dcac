"""The model's own cache, for models that no forest serves: rows that have all read equally many tokens.

transformers has a cache for each kind of layer: keys and values, the last of them, states of a recurrence. They are
read and written by the model's own code; here they are only kept, and their rows chosen. Whether that works is tried
on the model itself. Where it does not, every token is written from a pass over the whole row: slow, but right.

Shape suffixes: B rows, N new tokens, V vocabulary.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

NAMES = ("past_key_values", "cache_params")  # what models call their cache, as input and as output
NEAR = 0.05  # of the logits' spread, that rounding may move them


class OwnCache:
    """What the rows of a batch have read so far."""

    def __init__(self, model: PreTrainedModel, *, reread: bool = False) -> None:
        """With `reread` nothing but the token ids is kept."""
        self.model, self.reread = model, reread
        self.kept: dict[str, Any] = {}
        self.ids: Tensor | None = None
        takes = inspect.signature(type(model).forward).parameters
        self.options = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}

    def read(self, ids_BN: Tensor) -> Tensor:
        """Read new tokens of every row; the logits `(B, V)` of what follows."""
        if self.reread:
            ids_BN = ids_BN if self.ids is None else torch.cat((self.ids, ids_BN), dim=1)
            self.ids = ids_BN
        output = self.model(input_ids=ids_BN, use_cache=not self.reread, **self.kept, **self.options)
        if not self.reread:
            found = {name: getattr(output, name, None) for name in NAMES}
            self.kept = {name: cache for name, cache in found.items() if cache is not None}
            if not self.kept:
                raise LookupError(f"{type(self.model).__name__} returns no cache")
        return output.logits[:, -1]

    def choose(self, rows: list[int]) -> None:
        """Keep these rows, in this order; a row may come several times."""
        chosen = torch.tensor(rows, device=self.model.device)
        if self.ids is not None:
            self.ids = self.ids.index_select(0, chosen)
        for cache in self.kept.values():
            cache.reorder_cache(chosen)


@torch.no_grad()
def cache_works(model: PreTrainedModel) -> bool:
    """Whether rows read in pieces, exchanged and doubled are followed by the logits of a pass over the whole."""
    ids_BN = torch.arange(2, 18, device=model.device).reshape(2, 8) % model.config.get_text_config().vocab_size
    rows = [1, 0, 0]
    whole = model(input_ids=ids_BN[rows], use_cache=False).logits.float()
    cache = OwnCache(model)
    try:
        found = [cache.read(ids_BN[:, :6])[rows]]
        cache.choose(rows)
        found += [cache.read(ids_BN[rows, place : place + 1]) for place in (6, 7)]
    except Exception:  # a model's own code: whatever it raises, its cache cannot be used this way
        return False
    gaps = [(one.float() - whole[:, place]).abs().max() for place, one in zip((5, 6, 7), found, strict=True)]
    return bool(max(gaps) <= NEAR * whole.std())
