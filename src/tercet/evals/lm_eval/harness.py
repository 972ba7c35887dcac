"""Both ways between us and lm-evaluation-harness: its results layout, its evaluations on our models, our tasks for its
evaluator.

`lm_eval` is not a dependency: it is imported where one of these functions is called. Written against version 0.4.13.

    lm_eval.simple_evaluate(model=as_lm(LocalGenerator.open(folder, "float32")), tasks=["gsm8k_cot"])
    lm_eval.simple_evaluate(model="hf", model_args={"pretrained": folder}, tasks=[task_of("gsm8k@2", mirror={})])
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tercet import hub
from tercet.evals.lm_eval.export import BESIDE, HEADLINE, gen_kwargs, headline
from tercet.evals.results import asked, graded
from tercet.evals.run import NO_QUESTION, measured
from tercet.evals.suite import task as declared
from tercet.evals.task import Generated, Item, Task, card, items, public_records
from tercet.records import TaskCard
from tercet.rows import PLAIN, Completion, Generator, Likelihood, Message, Messages, Sampling

MAX_GEN_TOKS = 256  # the harness's own budget where a task names none
SETTINGS = ("until", "max_gen_toks", "do_sample", "temperature", "top_p", "top_k")


class HarnessError(ValueError):
    """Something that one side has and the other cannot express."""


# ---- its evaluations on our models ----


def as_lm(generator: Generator) -> Any:
    """Our model as an `lm_eval.api.model.LM`: prompts are read as plain text, or through the model's own template.

    As with the harness's own back-end, spaces that end a context belong to the continuation, and a beginning-of-text
    token comes first where the tokenizer sets one by itself. A prompt that is too long is an error, never cut.
    """
    from lm_eval.api.model import LM

    return type("EvaluatedModel", (_Evaluated, LM), {})(generator)


class _Evaluated:
    """What the harness asks of a model: three methods, and how it renders a conversation."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator
        self.tokenizer = _chat(generator).tokenizer if hasattr(generator, "chat") else None

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        return _generate(self.generator, [request.args for request in requests])

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        return _loglikelihoods(self.generator, [request.args for request in requests])

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        return [_rolling(self.generator, request.args[0]) for request in requests]

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        turns = tuple(Message(turn["role"], turn["content"]) for turn in chat_history)
        chat = _chat(self.generator)
        return str(chat.text(turns, generation_prompt=True) if add_generation_prompt else chat.prompt_text(turns))

    def chat_template(self, chat_template: bool | str = False) -> str:
        return str(_chat(self.generator).template)

    @property
    def tokenizer_name(self) -> str:
        return str(_chat(self.generator).tokenizer.name_or_path).replace("/", "__")


def _generate(generator: Generator, requests: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """Write after each context; requests with the same settings are asked together."""
    groups: dict[Sampling, list[int]] = {}
    for i, (_, settings) in enumerate(requests):
        groups.setdefault(_sampling(settings), []).append(i)
    opening = _opening(generator)
    written = [""] * len(requests)
    for sampling, places in groups.items():
        prompts = [_plain(requests[i][0], opening) for i in places]
        for i, (one,) in zip(places, generator.complete(prompts, sampling), strict=True):
            if one.error:
                raise HarnessError(f"no answer to {requests[i][0]!r:.60}: {one.error}")
            written[i] = one.text
    return written


def _sampling(settings: Mapping[str, Any]) -> Sampling:
    """The harness's generation settings as ours; one that we do not know would change results, so it is refused."""
    if unknown := sorted(set(settings) - set(SETTINGS)):
        raise HarnessError(f"generation settings {unknown} are not supported; expected some of {', '.join(SETTINGS)}")
    until = settings.get("until") or []
    budget = int(settings.get("max_gen_toks", MAX_GEN_TOKS))
    greedy = Sampling(budget, stop=(until,) if isinstance(until, str) else tuple(filter(None, until)))
    warmth = float(settings.get("temperature", 1.0 if settings.get("do_sample") else 0.0))
    if not warmth or settings.get("do_sample") is False:
        return greedy
    top_p, top_k = float(settings.get("top_p", 1.0)), int(settings.get("top_k", 0))
    return replace(greedy, temperature=warmth, top_p=top_p, top_k=top_k)


def _loglikelihoods(generator: Generator, requests: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
    """Score each continuation; those of one context are scored together, as its options."""
    places: dict[str, list[int]] = {}
    for i, (context, _) in enumerate(requests):
        places.setdefault(context, []).append(i)
    opening = _opening(generator)
    ends = [context.rstrip() for context in places]
    prompts = [_plain(end, opening) if end else _plain(_prefix(generator), "") for end in ends]
    options = [[f"{c[len(end) :]}{requests[i][1]}" for i in places[c]] for c, end in zip(places, ends, strict=True)]
    found: list[tuple[float, bool]] = [(math.nan, False)] * len(requests)
    for numbers, scored in zip(places.values(), generator.likelihood(prompts, options), strict=True):
        for i, one in zip(numbers, scored, strict=True):
            if one.error:
                raise HarnessError(f"no log-probability of {requests[i][1]!r:.60}: {one.error}")
            found[i] = (one.logp, one.greedy)
    return found


def _rolling(generator: Generator, text: str) -> float:
    """Log-probability of a whole text, in windows of the model's context that each begin where the last one ended."""
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    from tercet.models.generate import SCORE_TOKENS, LocalGenerator
    from tercet.models.score import Question, score

    if not isinstance(generator, LocalGenerator):
        raise HarnessError("the log-probability of a whole text needs a local model: a server shows no token ids")
    first, *_ = generator.encode([_plain(_prefix(generator), "")])[0]
    ids = generator.encode([_plain(text, "")])[0]
    longest = generator.context
    windows = get_rolling_token_windows(token_list=ids, prefix_token=first, max_seq_len=longest, context_len=1)
    questions = [Question(context, [rest]) for context, rest in map(make_disjoint_window, windows)]
    return math.fsum(one.logp for (one,) in score(generator.policy, questions, SCORE_TOKENS))


def _plain(text: str, opening: str) -> Messages:
    return (Message(PLAIN, text if text.startswith(opening) else opening + text),)


def _opening(generator: Generator) -> str:
    """The beginning-of-text token where the model's tokenizer sets one before every text by itself."""
    if not hasattr(generator, "chat"):
        return ""
    tokenizer = _chat(generator).tokenizer
    sets = tokenizer.bos_token is not None and tokenizer("a").input_ids[0] == tokenizer.bos_token_id
    return str(tokenizer.bos_token) if sets else ""


def _prefix(generator: Generator) -> str:
    """What stands before a text without a context: the token that begins a text, else the one that ends it."""
    tokenizer = _chat(generator).tokenizer
    return str(tokenizer.bos_token or tokenizer.eos_token)


def _chat(generator: Generator) -> Any:
    """What renders the conversations of a local model, so that a prompt can be shown as text and token ids."""
    if not hasattr(generator, "chat"):
        raise HarnessError(
            f"{type(generator).__name__} shows neither tokenizer nor chat template; use a local model, or tasks with a "
            "context and without a template"
        )
    return generator.chat


# ---- our tasks for its evaluator ----


def task_of(name: str, mirror: Mapping[str, str]) -> Any:
    """One of our tasks as an `lm_eval.api.task.Task`: our items and examples, our verifier as the metric.

    With its `apply_chat_template` the prompt is our conversation in the model's template, else the same shots and
    question as one plain text. `mirror` maps hub ids to local files. Tasks made by generators, graded by LLM judges
    or chosen per token are refused.
    """
    from lm_eval.api.task import Task as HarnessTask

    own = declared(name)
    return type("Benchmark", (_Benchmark, HarnessTask), {"VERSION": own.version})(own, *_both_layouts(own, mirror))


class _Benchmark:
    """What the harness asks of a task; our items already hold what it would sample or render itself."""

    def __init__(self, own: Task, asked: list[Item], plain: list[Item]) -> None:
        from lm_eval.api.task import TaskConfig
        from lm_eval.filters import build_filter_ensemble

        super().__init__()
        self.own, self.asked, self.plain, self.card = own, asked, plain, card(own, asked)
        self.OUTPUT_TYPE = "generate_until" if own.metric == "accuracy" else "loglikelihood"
        self._config = TaskConfig(
            task=own.id,
            output_type=self.OUTPUT_TYPE,
            num_fewshot=0,
            repeats=own.sampling.n,
            generation_kwargs=gen_kwargs(own.sampling) if own.metric == "accuracy" else None,
            metadata={"version": own.version, "card": self.card.to_json()},
        )
        if own.sampling.n > 1:
            self._filters = [build_filter_ensemble("none", [("take_first_k", {"k": own.sampling.n})])]

    def download(self, *args: Any) -> None:
        pass  # everything was read already

    def has_training_docs(self) -> bool:
        return False

    has_validation_docs = has_training_docs

    def has_test_docs(self) -> bool:
        return True

    def test_docs(self) -> list[dict[str, Any]]:
        known = ("item", "subset", "question", "reference", "options", "gold")
        return [{"number": i, **{k: getattr(item, k) for k in known}} for i, item in enumerate(self.asked)]

    def doc_to_text(self, doc: dict[str, Any]) -> str:
        return self.plain[doc["number"]].messages[0].content

    def doc_to_target(self, doc: dict[str, Any]) -> str:
        return str(doc["reference"])

    def fewshot_context(self, doc: dict[str, Any], num_fewshot: int, **given: Any) -> str:
        turns = self.asked[doc["number"]].messages
        if not given.get("apply_chat_template") or turns[0].role == PLAIN:
            return self.doc_to_text(doc)
        if system := given.get("system_instruction"):
            turns = (Message("system", system), *turns)
        history = [{"role": turn.role, "content": turn.content} for turn in turns]
        return str(given["chat_template"](history, add_generation_prompt=turns[-1].role != "assistant"))

    def construct_requests(self, doc: dict[str, Any], ctx: str, **given: Any) -> list[Any]:
        from lm_eval.api.instance import Instance

        pairs: list[tuple[str, Any]] = [(ctx, option) for option in doc["options"]]
        if self.own.metric == "accuracy":
            pairs = [(ctx, self._config.generation_kwargs)]
        if self.own.choose_by == "unconditional":
            pairs += [(NO_QUESTION[0].content, option) for option in doc["options"]]
        return [Instance(self.OUTPUT_TYPE, doc, pair, i, given["metadata"]) for i, pair in enumerate(pairs)]

    def process_results(self, doc: dict[str, Any], results: Sequence[Any]) -> dict[str, Any]:
        found = grade_responses(self.own, self.card, self.asked[doc["number"]], results)
        values = {name: [found.get(key, 0.0) for key in keys] for name, keys in _measures(self.own).items()}
        return {name: parts[0] if len(parts) < 2 else tuple(parts) for name, parts in values.items()}

    def aggregation(self) -> dict[str, Any]:
        from lm_eval.api.metrics import mean

        return {name: mean if len(keys) < 2 else _ratio for name, keys in _measures(self.own).items()}

    def higher_is_better(self) -> dict[str, bool]:
        return dict.fromkeys(_measures(self.own), self.own.metric != "bpb")


def _both_layouts(own: Task, mirror: Mapping[str, str]) -> tuple[list[Item], list[Item]]:
    """The items as declared, and as plain text."""
    if isinstance(own.data, Generated) or own.judge or own.choose_by == "per_token":
        why = "is graded by an LLM judge" if own.judge else "is chosen per token, which the harness does not count"
        raise HarnessError(f"{own.id} {'has generated items' if isinstance(own.data, Generated) else why}")
    records, examples = public_records(own, mirror), hub.records(own.examples, mirror)
    return items(own, records, examples), items(replace(own, layout="plain"), records, examples)


def _measures(own: Task) -> dict[str, tuple[str, ...]]:
    """Names of the metrics, and the verifier's numbers each is made of (one, or two whose sums are divided)."""
    if own.metric == "bpb":
        return {HEADLINE["bpb"]: ("bits", "num_bytes")}
    beside = {"choice": {name: (key,) for name, key in BESIDE.items()}, "mc2": {"mc1": ("mc1",)}}
    return {headline(own): ("score",), **beside.get(own.metric, own.measures)}


def grade_responses(own: Task, about: TaskCard, item: Item, results: Sequence[Any]) -> dict[str, Any]:
    """Our verdict on the harness's responses to an item: a text or a list of them, or (logp, greedy) of each option."""
    if own.metric == "accuracy":
        texts = [results[0]] if isinstance(results[0], str) else results[0]
        found = graded(item, [Completion(text, (), (), "eos") for text in texts], about, [])
    else:
        scored = [Likelihood(logp, 1, greedy) for logp, greedy in results]
        options, alone = scored[: len(item.options)], scored[len(item.options) :]
        found = measured(asked(item, about, []), item, options, about, alone)
    return {**found.numbers, **found.to_json()}


def _ratio(pairs: Sequence[tuple[float, float]]) -> float:
    above, below = map(math.fsum, zip(*pairs, strict=True))
    return above / below
