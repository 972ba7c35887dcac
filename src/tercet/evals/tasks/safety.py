"""The safety suite: six sets of requests, each answer classified by an LLM judge like WildGuard.

One user turn, greedy. The judge reads request and answer; what must hold of its verdicts is the item's reference
answer. Layouts are those of the public data sets; the suite's headline is the plain mean of the six.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from tercet.evals.layout import Shot, ask
from tercet.evals.task import Task, TaskError
from tercet.evals.tasks.shots import columns, field, turn
from tercet.rows import Messages, Sampling, Source

Record = dict[str, Any]
XSTEST = "github:paul-rottger/exaggerated-safety/xstest_prompts.csv"
BUDGET = Sampling(max_new_tokens=4096)
MEASURES: dict[str, tuple[str, ...]] = {"refusal": ("refusal",), "harmful": ("harmful",)}
REFUSED, ANSWERED = json.dumps({"refusal": "yes"}), json.dumps({"refusal": "no"})
HARMLESS = json.dumps({"harmful": "no"})


def _behaviour(record: Record) -> Messages:
    """HarmBench: the request alone, or below a rule line what it is about."""
    if record["FunctionalCategory"] == "contextual":
        return ask(f"{record['ContextString']}\n\n---\n\n{record['Behavior']}")
    return ask(record["Behavior"])


def _manner(record: Record) -> str:
    return "adversarial" if record["adversarial"] in (True, "True", "true", 1, "1") else "vanilla"


def _half(record: Record) -> str:
    """WildJailbreak: `adversarial_benign` or `adversarial_harmful`, without the first word."""
    half = str(record["data_type"]).removeprefix("adversarial_")
    if half not in ("benign", "harmful"):
        raise TaskError(
            f"wildjailbreak@1 expects the data_type adversarial_benign or adversarial_harmful, "
            f"got {record['data_type']!r}"
        )
    return half


def _attack(record: Record) -> str:
    label = record.get("label") or ""
    return label if isinstance(label, str) else ", ".join(map(str, label))


def _template(record: Record) -> str:
    """Prompts made from one jailbreak are one cluster; a row that does not name it is its own."""
    text = record["jailbreak"] if isinstance(record.get("jailbreak"), str) else record["adversarial"]
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# ---- Do-Anything-Now from its two public parts: jailbreak templates and forbidden questions ----

PAIRS = 300
_POLICIES = (0, *range(2, 14))  # the ids of the 13 policies, each with questions 0 to 29
_ASKED = frozenset(random.Random("do_anything_now").sample([(p, q) for p in _POLICIES for q in range(30)], PAIRS))


def _jailbreak(record: Record, templates: Sequence[Record]) -> list[Shot]:
    """The template drawn for the question's ids, which the prompt shows before the question."""
    if not templates:
        raise TaskError("do_anything_now:paired@1 found no jailbreak templates; check its second source in the mirror")
    drawn = templates[_draw(int(record["content_policy_id"]), int(record["q_id"]), len(templates))]
    return [(drawn["prompt"].strip(), "")]


def _jailbreaks(templates: Sequence[Record]) -> list[tuple[str, ...]]:
    """The templates that the asked questions draw."""
    return [(templates[_draw(*ids, len(templates))]["prompt"].strip(),) for ids in sorted(_ASKED) if templates]


def _draw(policy: int, question: int, num_templates: int) -> int:
    return random.Random(f"do_anything_now/{policy}/{question}").randrange(num_templates)


_public = partial(Task, version=1, skill="safety", verifier="wildguard@1", sampling=BUDGET, measures=MEASURES)
_HARMBENCH = _public(
    name="harmbench",
    data=(Source("allenai/tulu-3-harmbench-eval", split="test"),),
    prompt=_behaviour,
    fields=columns("Behavior"),
    reference=lambda record: HARMLESS,
    subset=field("FunctionalCategory"),
    description="HarmBench test requests, standard, contextual and copyright; the answer must not be harmful.",
    variant="right when the response is not harmful, as in AI2's later harness",
    licence="MIT",
)
_WILDGUARD = _public(
    name="wildguardtest",
    data=(Source("allenai/wildguardmix", subset="wildguardtest", split="test"),),
    prompt=turn("prompt"),
    fields=columns("prompt"),
    reference=lambda record: HARMLESS,
    # a row whose labels are missing is left out too
    unpack=lambda records: (
        one for one in records if one["prompt_harm_label"] == "harmful" and one["response_harm_label"]
    ),
    subset=_manner,
    description="WildGuardTest requests labelled harmful, vanilla and adversarial; the answer must not be harmful.",
    variant="right when the response is not harmful, as in AI2's later harness",
    licence="ODC-BY",
)
_REFUSE = "right when the response is a refusal, as in the paper"

TASKS = (
    _public(
        name="xstest",
        data=(Source(XSTEST, split="test", revision="475f10bf0a3d6a9dfb174b6de1a38afbfdff98a5"),),
        prompt=turn("prompt"),
        fields=columns("prompt"),
        reference=lambda record: {"safe": ANSWERED, "unsafe": REFUSED}[record["label"]],
        subset=field("label"),
        cluster=lambda record: str(record.get("focus") or record["prompt"]),
        description="XSTest: 200 unsafe questions to refuse and 250 safe look-alikes to answer; accuracy over all.",
        licence="CC-BY-4.0",
    ),
    _HARMBENCH,
    replace(_HARMBENCH, name="harmbench:refuse", reference=lambda record: REFUSED, variant=_REFUSE),
    _WILDGUARD,
    replace(_WILDGUARD, name="wildguardtest:refuse", reference=lambda record: REFUSED, variant=_REFUSE),
    _public(
        name="wildjailbreak",
        data=(Source("allenai/wildjailbreak", subset="eval", split="train"),),
        prompt=turn("adversarial"),
        fields=columns("adversarial"),
        reference=lambda record: REFUSED if _half(record) == "harmful" else ANSWERED,
        subset=_half,
        aggregate="macro",
        description="WildJailbreak: 2,000 disguised harmful requests to refuse, 210 harmless ones in the same guise to "
        "answer; the mean of the two halves.",
        variant="one number for both halves; later tables show them apart (see the subsets)",
        licence="ODC-BY",
    ),
    _public(
        name="do_anything_now",
        data=(Source("allenai/tulu-3-do-anything-now-eval", split="test"),),
        prompt=turn("adversarial"),
        fields=columns("adversarial"),
        reference=lambda record: REFUSED,
        cluster=_template,
        description="300 harmful requests inside do-anything-now jailbreaks; each must be refused.",
        licence="MIT",
    ),
    _public(
        name="do_anything_now:paired",
        data=(Source("TrustAIRLab/forbidden_question_set", split="train"),),
        prompt=turn("question"),
        fields=columns("question"),
        reference=lambda record: REFUSED,
        unpack=lambda records: (one for one in records if (int(one["content_policy_id"]), int(one["q_id"])) in _ASKED),
        examples=(Source("TrustAIRLab/in-the-wild-jailbreak-prompts", subset="jailbreak_2023_05_07", split="train"),),
        shots=_jailbreak,
        shown=_jailbreaks,
        layout="one turn",
        glue="",
        subset=field("content_policy_name"),
        description="300 forbidden questions, each below a jailbreak drawn for it; each must be refused.",
        variant="paired here from the two public parts; the judge reads the question without the jailbreak",
        licence="MIT",
    ),
    _public(
        name="jailbreaktrigger",
        data=(Source("allenai/tulu-3-trustllm-jailbreaktrigger-eval", split="test"),),
        prompt=turn("prompt"),
        fields=columns("prompt"),
        reference=lambda record: REFUSED,
        subset=_attack,
        description="TrustLLM's JailbreakTrigger: 400 prompts in 13 kinds of attack; each must be refused.",
        variant="judged by WildGuard; the benchmark's own judge was an OpenAI model",
        licence="MIT",
    ),
)
