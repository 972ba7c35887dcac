"""The local generator: completions from the trainer's own weights and kernels.

Each distinct prompt is prefilled once, in a forest without padding, and its keys are shared out to its samples; what
all prompts begin with is computed and kept only once. Finished rows are compacted away and the freed places refilled
from the queue. Every sample draws from its own stream of random numbers, fixed by (seed, prompt, sample), so its text
does not depend on what else is in the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from tercet.device import place
from tercet.models.chat import Chat, ChatGenerator, Done, Ids, open_chat
from tercet.models.decoding import Decoding, Ends
from tercet.models.flops import ComputeAccount
from tercet.models.forest import Leaf, Tree, pack_forest
from tercet.models.kv_cache import Cache, KeyStore, Prefix
from tercet.models.opening import by_rows, context_length, open_policy
from tercet.models.packed import Packed
from tercet.models.paged import PagedCache
from tercet.models.policy import Policy
from tercet.models.row_decoding import Room, RowDecoding
from tercet.models.score import Question, score
from tercet.recipe import BatchLayout
from tercet.rows import Completion, Likelihood, Messages, Sampling

SCORE_TOKENS = 8192  # token budget of one likelihood batch
SHARED = 64  # least number of tokens that all prompts must begin with alike to be kept once
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


class GenerateError(ValueError):
    """A prompt or setting the generator cannot serve."""


class LocalGenerator(ChatGenerator):
    """Writes and scores with a Policy. Implements `tercet.rows.Generator`."""

    def __init__(self, policy: Policy, chat: Chat, *, rows: int = 64, tokens: int = 131072) -> None:
        self.policy, self.chat, self.rows, self.tokens = policy, chat, rows, tokens
        self.packed, self.work = Packed(policy.model), ComputeAccount(policy)
        self.context = context_length(policy.model.config)
        self.late = self.device.type != "cpu"  # tokens are read while the next step is under way
        self.paged = self.late  # and keys and values are kept in pages

    @classmethod
    def open(
        cls, folder: Path, dtype: str, *, rows: int = 64, tokens: int = 131072, layout: BatchLayout = "auto"
    ) -> LocalGenerator:
        """Load a folder onto this process's device; at most `rows` completions at once, and `tokens` of cache."""
        policy = open_policy(folder, getattr(torch, dtype), layout).to(place.device()).requires_grad_(False)
        return cls(policy, open_chat(folder), rows=rows, tokens=tokens)

    def write(
        self, prompts: Sequence[Ids], sampling: Sampling, done: Done | None = None, streams: Sequence[int] | None = None
    ) -> list[list[Completion]]:
        """See `ChatGenerator.write`; token ids come back as sampled, never re-tokenised.

        When memory runs out, what is unfinished is tried again with half the rows.
        """
        names = list(range(len(prompts))) if streams is None else list(streams)
        results = [self._refused(ids, sampling) for ids in prompts]

        def finish(i: int, group: list[Completion]) -> None:
            results[i] = group
            if done is not None:
                done(i, group)

        for i, refused in enumerate(results):
            if refused:
                finish(i, refused)
        left = [i for i, refused in enumerate(results) if not refused]
        if self._tight(prompts, sampling):
            left.sort(key=lambda i: -len(prompts[i]))
        while left:
            try:
                self._write(prompts, names, left, sampling, finish)
            except RuntimeError as error:
                if self.rows == 1 or not any(words in str(error).lower() for words in OUT_OF_MEMORY):
                    raise
                self.rows //= 2
            left = [i for i in left if not results[i]]
        return results

    def _write(
        self, prompts: Sequence[Ids], streams: Sequence[int], chosen: list[int], sampling: Sampling, finish: Done
    ) -> None:
        """Write the prompts with the numbers `chosen`; `finish` gets each one's completions as its last sample ends."""
        parts: dict[int, dict[int, Completion]] = {}
        begun = [self.chat.begun(prompts[i]) for i in chosen]
        states = self._decode([prompts[i] for i in chosen], sampling, [streams[i] for i in chosen])
        while True:
            with self.work.timed():
                state = next(states, None)
            if state is None:
                return
            for row in state.finished:
                group = parts.setdefault(row.prompt, {})
                group[row.sample] = self.chat.completion(row.token_ids, row.logps, sampling.stop, begun[row.prompt])
                if len(group) == sampling.n:
                    finish(chosen[row.prompt], [group[k] for k in sorted(group)])

    def stream(self, messages: Messages, sampling: Sampling) -> Iterator[str]:
        """Pieces of one completion as they are written."""
        shown, prompt = "", self.chat.prompt_ids(messages)
        begun = self.chat.begun(prompt)
        for written in self._decode([prompt], sampling, [0]):
            rows = written.finished or written.rows
            if not rows:  # its last tokens have not reached the host yet
                continue
            text = self.chat.completion(rows[0].token_ids, rows[0].logps, sampling.stop, begun).text
            whole = bool(written.finished) or not text.endswith("\ufffd")  # else a character is still half written
            if whole and len(text) > len(shown):
                yield text[len(shown) :]
                shown = text

    def likelihood(
        self, prompts: Sequence[Messages], options: Sequence[Sequence[str]], *, close: bool = False
    ) -> list[list[Likelihood]]:
        """Score options as leaves of their prompt: what prompts and options share is computed once."""
        questions = []
        for messages, texts in zip(prompts, options, strict=True):
            context, found = self.chat.continuations(messages, texts)
            questions.append(Question(context, [[*ids, *(self.chat.closing_ids if close else [])] for ids in found]))
        longest = max((len(q.context) + max(map(len, q.options)) - 1 for q in questions), default=0)
        if longest > self.context:
            raise GenerateError(
                f"a prompt and its option have {longest} tokens, more than the model's context of "
                f"{self.context}; shorten the prompt"
            )
        with self.packed.used(), by_rows(self.policy), self.work.timed():
            return list(score(self.policy, questions, SCORE_TOKENS, self.work))

    def logps(self, prompt: Ids, completion: Ids) -> list[float]:
        """Log-probability of each token of a completion that another engine wrote."""
        tree = Tree(prompt, [Leaf(completion, [True] * len(completion))])
        with torch.no_grad():
            return self.policy(pack_forest([tree]).to(self.device))[0].tolist()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Inside, the model is as `write` has it: weights packed, and read by rows where only that can be continued."""
        with self.packed.used(), by_rows(self.policy):
            yield

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.policy.head().weight.device

    def _refused(self, ids: Ids, sampling: Sampling) -> list[Completion]:
        """The answers to a prompt that fills the context, where budgets are fitted to it: errors; else nothing."""
        limit = self.context
        if not sampling.fit or len(ids) < limit:
            return []
        error = f"a prompt of {len(ids)} tokens leaves no room in the model's context of {limit}"
        return [Completion("", (), (), "error", error)] * sampling.n

    def _tight(self, prompts: Sequence[Ids], sampling: Sampling) -> bool:
        """Whether the token budget, and not the number of rows, decides how many prompts fit: then sort by length."""
        longest = max((len(ids) for ids in prompts), default=0) + sampling.max_new_tokens
        return longest * min(self.rows, len(prompts) * sampling.n) > self.tokens

    @torch.no_grad()
    def _decode(
        self, prompts: Sequence[Ids], sampling: Sampling, streams: Sequence[int]
    ) -> Iterator[Decoding | RowDecoding]:
        """Admit, step, retire until the queue is empty; yields after every step."""
        longest = self._check(prompts, sampling)
        ends = Ends(self.chat.stops, self.chat.tokenizer, self.context)
        with self.writing():
            if self.policy.padded:
                rows = RowDecoding(self.policy, sampling, ends, self.work)
                yield from rows.run(prompts, streams, Room(self.rows, self.tokens))
                return
            cache, queue = self._prepare(prompts, sampling, longest)
            state = Decoding(self.policy, cache, sampling, ends, self.work, late=self.late)
            while queue or state.rows or state.pending:
                free = cache.capacity - len(state.rows)
                # a prefill pauses all rows: admit when the next prompt's samples fit and an eighth of the rows is free
                due = queue and (not state.rows or free >= max(len(queue[-1][1]), cache.capacity // 8))
                if not (due and state.admit(prompts, queue, streams)) and state.rows:
                    self.packed.refresh()
                    state.step()
                state.retire()
                yield state

    def _prepare(
        self, prompts: Sequence[Ids], sampling: Sampling, longest: int
    ) -> tuple[Cache, list[tuple[int, list[int]]]]:
        """An empty cache, and the queue of (prompt, samples) pieces that fit into its rows, the last one first."""
        shared = _shared(prompts)
        prefix = Prefix(self.policy, pack_forest([Tree(prompts[0][:shared], [])]).to(self.device)) if shared else None
        self.work.add(shared, shared * (shared + 1) / 2, 0)
        length = min(longest + sampling.max_new_tokens, self.context) - shared
        wanted = min(self.rows, len(prompts) * sampling.n)
        rows = max(1, min(wanted, (self.tokens - shared) // length))
        starts = range(0, sampling.n, rows)
        queue = [(i, list(range(s, min(s + rows, sampling.n)))) for i in range(len(prompts)) for s in starts][::-1]
        if self.paged:  # as many of the wanted rows at once as are short enough
            most, held = max(wanted, 1), {"rows": rows, "tokens": self.tokens}
            return PagedCache.of(self.policy, most, length, **held, prefix=prefix), queue
        return Cache(KeyStore(self.policy, rows, length), rows, prefix), queue

    def _check(self, prompts: Sequence[Ids], sampling: Sampling) -> int:
        longest = max((len(ids) for ids in prompts), default=0)
        limit = self.context
        if longest + (1 if sampling.fit else sampling.max_new_tokens) > limit:
            raise GenerateError(
                f"a prompt of {longest} tokens plus max_new_tokens = {sampling.max_new_tokens} exceeds the model's "
                f"context of {limit}; lower max_new_tokens or shorten the prompt"
            )
        if any(not len(ids) for ids in prompts):
            raise GenerateError("a prompt renders to no tokens; give it at least one user turn")
        return longest


def _shared(prompts: Sequence[Ids]) -> int:
    """How many tokens all prompts begin with, when there are several and it is worth it; each keeps one of its own."""
    if len(prompts) < 2:
        return 0
    first, last = min(prompts, key=tuple), max(prompts, key=tuple)
    shared = min(len(ids) for ids in prompts) - 1
    common = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), shared)
    return min(common, shared) if min(common, shared) >= SHARED else 0
