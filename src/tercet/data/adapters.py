"""The adapters of the public data sets: one small function each turns a raw object into a row or a pair.

Each function keeps to the contract of `layouts`, which holds the layouts that any file may have. `catalogue` says what
Tülu 3 keeps of each data set and why; the section numbers are those of the paper.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tercet.data import layouts
from tercet.data.layouts import Adapter, Raw, Skip, Unfold, conversation, exchange, keys_of, texts
from tercet.rows import Message, Messages, Pair, Row, RowError, messages_from, pair_from
from tercet.verify import VerifierError, verifier

PairAdapter = Callable[[Raw, str], Pair]

LEFT_OUT = "_left_out"  # key of a raw object that an unfolding leaves out; its value is the reason
UNCLEAR_RIGHTS = {"sharegpt": "ShareGPT part", "truthful_qa": "TruthfulQA part"}  # parts of UltraFeedback left out
VERIFIERS = {"gsm8k": "gsm8k@1", "math": "math_flex@1", "ifeval": "tulu_if@1"}  # by `dataset` of a published RLVR row
SKILLS = {"gsm8k@1": "words", "math_flex@1": "maths", "tulu_if@1": "constraints"}  # by verifier

_CALCULATION = re.compile(r"<<[^<>]*>>")
_SLOT = re.compile(r"\{\{\s*(\w+)\s*\}\}")


def gsm8k(raw: Raw, where: str) -> Row:
    """`question, answer`, without the calculator's `<<48/2=24>>`; the reference answer stands after `####`."""
    question, answer = texts(raw, where, "question", "answer")
    turns = (Message("user", question), Message("assistant", _CALCULATION.sub("", answer)))
    return Row(raw["id"], turns, skill="words", verifier="gsm8k@1", reference=_final_number(answer, where))


def inputs_targets(raw: Raw, where: str) -> Row:
    """`inputs, targets`: the layout of FLAN v2 and of the Aya data set."""
    return exchange(raw, *texts(raw, where, "inputs", "targets"))


def persona(raw: Raw, where: str) -> Row:
    """`persona` or Persona Hub's `input persona`: a description that a model writes prompts for, as a bare prompt."""
    (text,) = texts(raw, where, "persona" if "input persona" not in raw else "input persona")
    return Row(raw["id"], (Message("user", text),), skill="persona")


def oasst(raw: Raw, where: str) -> Row:
    """A path that `best_paths` found in OASST's trees; messages on no path are left out with their reason."""
    if LEFT_OUT in raw:
        raise Skip(raw[LEFT_OUT])
    return conversation(raw, where)


def wildchat(raw: Raw, where: str) -> Row:
    """`conversation, model`: only GPT-4's conversations are kept (§2.1); other columns are ignored."""
    (model,) = texts(raw, where, "model")
    if "gpt-4" not in model:
        raise Skip("not answered by GPT-4")
    return conversation({"id": raw["id"], "messages": raw.get("conversation")}, where)


def ultrafeedback(raw: Raw, where: str) -> Row:
    """`instruction, source` (or `prompt`): bare prompts, without the TruthfulQA and ShareGPT parts (§2.1)."""
    source, prompt = texts(raw, where, "source", "instruction" if "instruction" in raw else "prompt")
    _refuse_part(source)
    return Row(raw["id"], (Message("user", prompt),), template=source)


def sciriff(raw: Raw, where: str) -> Row:
    """`messages, dataset` of the SciRIFF training mix: only its science tasks, not the general part beside them."""
    (task,) = texts(raw, where, "dataset")
    if not task.startswith("science"):
        raise Skip("no science task")
    return replace(conversation({"id": raw["id"], "messages": raw.get("messages")}, where), template=task)


def openmath(raw: Raw, where: str) -> Row:
    """`problem, generated_solution` of OpenMathInstruct-2, every part of it."""
    return exchange(raw, *texts(raw, where, "problem", "generated_solution"))


def openmath_gsm8k(raw: Raw, where: str) -> Row:
    """The part of OpenMathInstruct-2 that grew from GSM8K, which is in the published mix."""
    (part,) = texts(raw, where, "problem_source")
    if "gsm8k" not in part:
        raise Skip("not grown from GSM8K")
    return openmath(raw, where)


def wildjailbreak(raw: Raw, where: str) -> Row:
    """`vanilla, adversarial, completion, data_type`: the type says which of the first two is the question."""
    kind, answer = texts(raw, where, "data_type", "completion")
    (question,) = texts(raw, where, "adversarial" if kind.startswith("adversarial") else "vanilla")
    turns = (Message("user", question), Message("assistant", answer))
    return Row(raw["id"], turns, skill="safety", template=kind)


def wildguardmix(raw: Raw, where: str) -> Row:
    """`prompt` alone, because the answers came from weak models and are to be written anew (§2.1)."""
    (prompt,) = texts(raw, where, "prompt")
    harm = str(raw.get("prompt_harm_label") or "")
    return Row(raw["id"], (Message("user", prompt),), skill="safety", template=harm)


def hardcoded(raw: Raw, where: str) -> Row:
    """A template with slots such as `{{name}}` in messages or Alpaca's layout; `fill` puts the user's values in."""
    return conversation(raw, where) if "messages" in raw else layouts.alpaca(raw, where)


def fill(row: Row, values: Mapping[str, str], where: str) -> Row:
    """The row with every `{{slot}}` replaced by its value; a slot without a value is refused."""
    slots = {slot for turn in row.messages for slot in _SLOT.findall(turn.content)}
    if missing := ", ".join(sorted(slots - set(values))):
        given = ", ".join(sorted(values)) or "none"
        raise RowError(f"{where}: no value for the slot {missing} of this template; the values given: {given}")
    turns = (replace(turn, content=_SLOT.sub(lambda slot: values[slot[1]], turn.content)) for turn in row.messages)
    return replace(row, messages=tuple(turns))


def rlvr(raw: Raw, where: str) -> Row:
    """A published RLVR row: `messages, ground_truth, dataset, constraint_type`; its data set decides the verifier."""
    reference, name = texts(raw, where, "ground_truth", "dataset")
    if name.lower() not in VERIFIERS:
        raise RowError(f"{where}: no verifier for the data set {name!r}; expected one of {', '.join(VERIFIERS)}")
    asked = conversation({"id": raw["id"], "messages": raw.get("messages")}, where).prompt
    kind = str(raw.get("constraint_type") or "")
    reference = reference.replace(",", "") if name.lower() == "gsm8k" else reference
    return _problem(raw, asked, VERIFIERS[name.lower()], reference, where, kind)


def gsm8k_prompt(raw: Raw, where: str, examples: Sequence[Mapping[str, Any]] = ()) -> Row:
    """A GSM8K prompt for RL: zero-shot, or behind worked examples `{question, answer}` in one user turn."""
    question, answer = texts(raw, where, "question", "answer")
    text = _behind(examples, ("Question: ", "\nAnswer: "), question, ("question", "answer"))
    return _problem(raw, (Message("user", text),), "gsm8k@1", _final_number(answer, where), where)


def math_prompt(raw: Raw, where: str, examples: Sequence[Mapping[str, Any]] = ()) -> Row:
    """A MATH prompt for RL: zero-shot, or behind worked examples `{problem, solution}` in one user turn.

    The reference answer is the bare `answer` where the row has one, else its worked `solution`.
    """
    (question,) = texts(raw, where, "problem")
    if "answer" in raw and raw["answer"] in (None, ""):
        raise Skip("has no answer")
    (reference,) = texts(raw, where, "answer" if "answer" in raw else "solution")
    text = _behind(examples, ("Problem:\n", "\n\nSolution:\n"), question, ("problem", "solution"))
    return _problem(raw, (Message("user", text),), "math_flex@1", reference, where, str(raw.get("type") or ""))


def preference(raw: Raw, where: str) -> Pair:
    """The published layout: `chosen` and `rejected` whole conversations, optionally ratings and models."""
    sides = {side: raw.get(side) for side in ("chosen", "rejected")}
    if wrong := [side for side, turns in sides.items() if not isinstance(turns, list | tuple)]:
        raise RowError(f"{where}: expected a list of messages under {' and '.join(wrong)}, got the keys {keys_of(raw)}")
    for name in ("chosen_rating", "rejected_rating"):
        if not isinstance(raw.get(name) or 0.0, int | float):
            raise RowError(f"{where}: expected a number under {name}, got {raw[name]!r:.40}")
    return _usable(pair_from({**raw, **{side: layouts.unblanked(turns or ()) for side, turns in sides.items()}}, where))


def ultrafeedback_pair(raw: Raw, where: str) -> Pair:
    """`preference` of the binarised UltraFeedback, without its TruthfulQA and ShareGPT parts."""
    (source,) = texts(raw, where, "source")
    _refuse_part(source)
    return preference(raw, where)


def prompt_pair(raw: Raw, where: str) -> Pair:
    """`prompt, chosen, rejected` as texts, optionally `chosen_model` and `rejected_model` (CoCoNot's preferences)."""
    prompt, good, bad = texts(raw, where, "prompt", "chosen", "rejected")
    models = {side: str(raw.get(side) or "") for side in ("chosen_model", "rejected_model")}
    return _paired(raw["id"], (Message("user", prompt),), good, bad, **models)


def rewardbench(raw: Raw, where: str) -> Pair:
    """`prompt, chosen, rejected, subset` as texts, optionally both models: RewardBench; the skill is the subset."""
    (subset,) = texts(raw, where, "subset")
    return replace(prompt_pair(raw, where), skill=subset)


def sharegpt_pair(raw: Raw, where: str) -> Pair:
    """`conversations` that end with a question, and `chosen` and `rejected` turns of `{from, value}`."""
    turns = layouts.sharegpt(raw, where).messages
    sides = [messages_from([layouts.turn_of(raw.get(side), where)], where)[0] for side in ("chosen", "rejected")]
    if wrong := [side.role for side in sides if side.role != "assistant"]:
        raise RowError(f"{where}: chosen and rejected must be the assistant's turns, got a turn of the {wrong[0]}")
    return _paired(raw["id"], turns, sides[0].content, sides[1].content)


def hh(raw: Raw, where: str) -> Pair:
    """`chosen` and `rejected` dialogues as one text with `Human:` and `Assistant:` before the turns (HH-RLHF)."""
    good, bad = (layouts.spoken(text, layouts.HH_TURN, where) for text in texts(raw, where, "chosen", "rejected"))
    if good[-1].role != "assistant" or bad[-1].role != "assistant":
        raise RowError(f"{where}: both dialogues must end with the assistant")
    if good[:-1] != bad[:-1]:
        raise Skip("the dialogues differ before the last answer")
    return _paired(raw["id"], good[:-1], good[-1].content, bad[-1].content)


def best_paths(raws: Iterable[tuple[Raw, str]]) -> Iterator[tuple[Raw, str]]:
    """OASST's messages as paths from each root, following the reply of the highest mean quality label (§2.1).

    The first reply wins a tie, a reply without a label counts 0, a deleted message ends its branch. As in the published
    conversion, a best path that ends in an unanswered question is left out whole.
    """
    nodes = list(raws)
    replies: dict[str, list[int]] = {}  # by the parent's id, "" for roots
    names: set[str] = set()
    for number, (raw, where) in enumerate(nodes):
        name, _, role = texts(raw, where, "message_id", "text", "role")
        if role not in ("prompter", "assistant"):
            raise RowError(f"{where}: a message is from {role!r}; expected prompter or assistant")
        if not name or name in names or not isinstance(raw.get("parent_id") or "", str):
            raise RowError(f"{where}: expected a message_id of its own and the parent's id, got {name!r:.60}")
        names.add(name)
        if not raw.get("deleted"):
            replies.setdefault(raw.get("parent_id") or "", []).append(number)
    qualities = [_quality(raw, where) for raw, where in nodes]
    reasons = ["deleted" if raw.get("deleted") else "not on the best path of its tree" for raw, _ in nodes]
    for root in replies.get("", []):
        path = [root]
        while below := replies.get(nodes[path[-1]][0]["message_id"]):
            path.append(max(below, key=lambda number: qualities[number]))
        answered = nodes[path[-1]][0]["role"] == "assistant"
        for number in path:
            reasons[number] = "" if answered else "its path ends in a question without an answer"
        if answered:
            turns = [nodes[number][0] for number in path]
            roles = {"prompter": "user", "assistant": "assistant"}
            messages = [{"role": roles[turn["role"]], "content": turn["text"]} for turn in turns]
            yield {"id": turns[0]["message_id"], "messages": messages}, nodes[root][1]
    yield from (({LEFT_OUT: reason}, nodes[number][1]) for number, reason in enumerate(reasons) if reason)


ADAPTERS: dict[str, Adapter] = layouts.ADAPTERS | {"gsm8k": gsm8k, "gsm8k_prompt": gsm8k_prompt}
ADAPTERS |= {"hardcoded": hardcoded, "inputs_targets": inputs_targets, "math_prompt": math_prompt, "oasst": oasst}
ADAPTERS |= {"openmath": openmath, "openmath_gsm8k": openmath_gsm8k, "persona": persona, "rlvr": rlvr}
ADAPTERS |= {"sciriff": sciriff, "ultrafeedback": ultrafeedback, "wildchat": wildchat, "wildguardmix": wildguardmix}
ADAPTERS |= {"wildjailbreak": wildjailbreak}
PAIRS: dict[str, PairAdapter] = {"hh": hh, "preference": preference, "prompt_pair": prompt_pair}
PAIRS |= {"rewardbench": rewardbench, "sharegpt_pair": sharegpt_pair, "ultrafeedback_pair": ultrafeedback_pair}
UNFOLDS: dict[str, Unfold] = {**layouts.UNFOLDS, "oasst": best_paths}  # what comes before the adapter
WITH_EXAMPLES = {  # adapter -> function, worked examples before each prompt (§2.4), their keys
    "gsm8k_prompt": (gsm8k_prompt, 8, ("question", "answer")),
    "math_prompt": (math_prompt, 3, ("problem", "solution")),
}


def _problem(raw: Raw, asked: Messages, name: str, reference: str, where: str, template: str = "") -> Row:
    """A bare prompt with its verifier; RowError where no answer could pass, so that training does not meet it."""
    if not reference.strip():
        raise RowError(f"{where}: has an empty reference answer, so no answer could be right")
    if name == "tulu_if@1":
        try:
            verifier(name)("", reference)
        except VerifierError as error:
            raise RowError(f"{where}: {error}") from None
    return Row(raw["id"], asked, skill=SKILLS[name], verifier=name, reference=reference, template=template)


def _behind(
    examples: Sequence[Mapping[str, Any]], marks: tuple[str, str], question: str, names: tuple[str, str]
) -> str:
    """The question as it stands, or behind the examples in their own form, waiting for its answer."""
    if not examples:
        return question
    before, between = marks
    shots = "".join(f"{before}{shot[names[0]]}{between}{shot[names[1]].strip()}\n\n" for shot in examples)
    return f"{shots}{before}{question}{between.rstrip()}"


def _final_number(answer: str, where: str) -> str:
    _, mark, reference = answer.rpartition("####")
    if not mark or not reference.strip():
        raise RowError(f"{where}: the answer must end in '#### NUMBER', got {answer[-60:]!r}")
    return reference.strip().replace(",", "")


def _paired(name: str, prompt: Messages, good: str, bad: str, **models: str) -> Pair:
    sides = ((*prompt, Message("assistant", text)) for text in (good, bad))
    return _usable(Pair(name, *sides, **models))  # type: ignore[arg-type]


def _usable(pair: Pair) -> Pair:
    """The pair; Skip where nothing can be learnt from it: an empty answer, or two equal ones."""
    good, bad = pair.chosen[-1], pair.rejected[-1]
    if good.blank or bad.blank:
        raise Skip("an answer is empty")
    if good == bad:
        raise Skip("chosen and rejected are the same text")
    return pair


def _quality(message: Raw, where: str) -> float:
    """The mean of the reviewers' quality labels, as the release states it: `{name: [...], value: [...]}`."""
    labels = message.get("labels") or {"name": (), "value": ()}
    if not isinstance(labels, dict) or not all(isinstance(labels.get(key), list | tuple) for key in ("name", "value")):
        raise RowError(f"{where}: expected lists of name and value under labels, got {labels!r:.60}")
    scores = [value for name, value in zip(labels["name"], labels["value"], strict=False) if name == "quality"]
    if not all(isinstance(score, int | float) for score in scores):
        raise RowError(f"{where}: expected a number as quality, got {scores!r:.60}")
    return float(scores[0]) if scores else 0.0


def _refuse_part(source: str) -> None:
    if source in UNCLEAR_RIGHTS:
        raise Skip(UNCLEAR_RIGHTS[source])
