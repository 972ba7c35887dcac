"""Log-probabilities of many continuations: every shared token is computed once.

Contexts that begin alike (few-shot examples of one subject) hang below one node; each context has its options as
leaves. An option's last token is never computed, only looked up: options of one token cost nothing at all.

Shape suffixes: T tokens of the batch, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tercet.models import forest_cpu
from tercet.models.attention import Attention
from tercet.models.flops import ComputeAccount
from tercet.models.forest_cpu import Segment
from tercet.models.forest_cuda import Layout
from tercet.models.padded import Span
from tercet.models.policy import Policy
from tercet.rows import Likelihood

Ids = Sequence[int]
SHARED = 32  # least number of tokens that contexts must begin with alike to hang below one node
CHUNK = 256  # positions whose logits exist at once


@dataclass(frozen=True)
class Question:
    """A context and the continuations to score, as token ids. Neither the context nor an option is empty."""

    context: Ids
    options: Sequence[Ids]

    @property
    def num_tokens(self) -> int:
        """Tokens to compute when nothing is shared with other questions."""
        return len(self.context) + sum(len(option) - 1 for option in self.options)


@torch.no_grad()
def score(
    policy: Policy, questions: Sequence[Question], budget: int, work: ComputeAccount | None = None
) -> Iterator[list[Likelihood]]:
    """The likelihoods of every question's options, in order; batches hold at most `budget` tokens where they can."""
    for batch in _unshared(questions, budget) if policy.padded else _batches(questions, budget):
        yield from _score(policy, batch, work)


@dataclass
class _Family:
    """Questions whose contexts share their first `shared` tokens."""

    shared: int
    questions: list[Question]


def _batches(questions: Sequence[Question], budget: int) -> Iterator[list[_Family]]:
    batch: list[_Family] = []
    used = 0
    for question in questions:
        family = batch[-1] if batch else None
        shared = _fitting(family, question) if family else 0
        cost = question.num_tokens - shared
        if batch and used + cost > budget:
            yield batch
            batch, used, shared = [], 0, 0
        if shared and family:
            used += (family.shared - shared) * len(family.questions)
            family.shared = shared
            family.questions.append(question)
        else:
            batch.append(_Family(len(question.context) - 1, [question]))
        used += question.num_tokens - shared
    if batch:
        yield batch


def _fitting(family: _Family, question: Question) -> int:
    """How many tokens the family would share with this question in it; 0 when that saves less than before."""
    common = 0
    for a, b in zip(family.questions[0].context[: family.shared], question.context[:-1], strict=False):
        if a != b:
            break
        common += 1
    size = len(family.questions)
    return common if common >= SHARED and size * common >= (size - 1) * family.shared else 0


def _unshared(questions: Sequence[Question], budget: int) -> Iterator[list[_Family]]:
    """Each question by itself; a batch has at most `budget` tokens when every option is a row, padding included."""
    batch: list[_Family] = []
    rows = longest = 0
    for question in questions:
        length = len(question.context) + max(map(len, question.options), default=1) - 1
        if batch and (rows + len(question.options)) * max(longest, length) > budget:
            yield batch
            batch, rows, longest = [], 0, 0
        rows, longest = rows + len(question.options), max(longest, length)
        batch.append(_Family(len(question.context) - 1, [question]))
    if batch:
        yield batch


@dataclass
class _Nodes:
    """A flat row of tokens cut into nodes, each with the ranges of its ancestors; passed to attention as the layout."""

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    nodes: list[tuple[slice, tuple[slice, ...]]] = field(default_factory=list)
    masks: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def add(self, tokens: Ids, above: tuple[slice, ...]) -> tuple[slice, ...]:
        """Append a node below its ancestors; returns the path that ends in it."""
        if not tokens:
            return above
        depth = sum(part.stop - part.start for part in above)
        own = slice(len(self.ids), len(self.ids) + len(tokens))
        self.ids.extend(tokens)
        self.positions.extend(range(depth, depth + len(tokens)))
        self.nodes.append((own, above))
        return (*above, own)

    def paths(self) -> list[list[Span]]:
        """The spans from the root down to each node."""
        return [[(part.start, part.stop) for part in (*above, own)] for own, above in self.nodes]

    @property
    def attended(self) -> int:
        """Pairs of query and key that see each other."""
        sizes = [(own.stop - own.start, sum(part.stop - part.start for part in above)) for own, above in self.nodes]
        return sum(own * (own + 1) // 2 + own * above for own, above in sizes)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, how: Attention) -> Tensor:
        """Attention `(1, T, N, D)` of every node to its ancestors and causally to itself."""
        if not how.plain or value.shape[3] != key.shape[3]:
            return self._as_segments(query, key, value, how)
        output = torch.empty_like(query)
        for own, above in self.nodes:
            keys, values = (
                torch.cat([tensor[:, :, part] for part in (*above, own)], dim=2) if above else tensor[:, :, own]
                for tensor in (key, value)
            )
            mask = self._mask(own.stop - own.start, keys.shape[2], query.device) if above else None
            output[:, :, own] = scaled_dot_product_attention(
                query[:, :, own], keys, values, mask, is_causal=mask is None, scale=how.scaling, enable_gqa=True
            )
        return output.transpose(1, 2)

    def _as_segments(self, query: Tensor, key: Tensor, value: Tensor, how: Attention) -> Tensor:
        """The same by the attention of forests, which knows windows, caps, sinks and values of another size."""
        segments = [Segment(own.start, own.stop, tuple((a.start, a.stop) for a in above)) for own, above in self.nodes]
        if query.is_cuda:
            return Layout(segments, len(self.ids), query.device).attend(query, key, value, how)
        parts = forest_cpu.groups(segments, query.shape[1], query.device, how=how)
        return forest_cpu.attend(query[0], key[0], value[0], parts, how).transpose(0, 1)[None]

    def _mask(self, length: int, reach: int, device: torch.device) -> Tensor:
        """Which of `reach` keys each of the last `length` tokens may see."""
        if (length, reach) not in self.masks:
            self.masks[length, reach] = torch.ones(length, reach, dtype=torch.bool, device=device).tril(reach - length)
        return self.masks[length, reach]


def _score(policy: Policy, families: list[_Family], work: ComputeAccount | None) -> list[list[Likelihood]]:
    layout = _Nodes()
    places: list[int] = []  # position whose hidden state predicts the token
    targets: list[int] = []
    owners: list[int] = []  # which option, counted over the batch
    options = [option for family in families for question in family.questions for option in question.options]
    number = 0
    for family in families:
        shared = family.shared if len(family.questions) > 1 else None
        trunk = layout.add(family.questions[0].context[:shared], ())
        for question in family.questions:
            path = layout.add(question.context[shared:], trunk) if shared else trunk
            for option in question.options:
                start = len(layout.ids)
                layout.add(option[:-1], path)
                places += [path[-1].stop - 1, *range(start, len(layout.ids))]
                targets += option
                owners += [number] * len(option)
                number += 1
    if work is not None:
        work.add(len(layout.ids), layout.attended, len(set(places)))
    logps, greedy = _look_up(policy, layout, places, targets, owners, number)
    found = iter(Likelihood(logp, len(option), top) for option, logp, top in zip(options, logps, greedy, strict=True))
    return [[next(found) for _ in question.options] for family in families for question in family.questions]


def _look_up(
    policy: Policy, layout: _Nodes, places: list[int], targets: list[int], owners: list[int], number: int
) -> tuple[list[float], list[bool]]:
    """Summed log-probability of each option in nats, and whether every token of it is the most likely one."""
    device = policy.head().weight.device
    hidden = policy.hidden(
        layout, torch.tensor(layout.ids, device=device), torch.tensor(layout.positions, device=device)
    )
    wanted, row = torch.unique(torch.tensor(places), return_inverse=True)
    target, owner = torch.tensor(targets), torch.tensor(owners)
    logps = torch.zeros(number, dtype=torch.float64)
    greedy = torch.ones(number, dtype=torch.bool)
    for start in range(0, len(wanted), CHUNK):
        part = wanted[start : start + CHUNK]
        logits = policy.head()(hidden[part.to(device)]).float()
        inside = (row >= start) & (row < start + len(part))
        rows, tokens = (row[inside] - start).to(device), target[inside].to(device)
        chosen = logits[rows, tokens] - logits.logsumexp(1)[rows]
        logps.index_add_(0, owner[inside], chosen.double().cpu())
        greedy[owner[inside][(logits.argmax(1)[rows] != tokens).cpu()]] = False
    return logps.tolist(), greedy.tolist()
