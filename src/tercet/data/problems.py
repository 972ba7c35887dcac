"""Adapters of prompts with a reference answer: rows that a verifier grades, for reinforcement learning.

The verifier is that of the data set a row names (`layouts.toml`), or the one under the row's own `verifier`, which a
source may set. A reference answer that no completion could match is refused, so that training does not meet it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tercet.data.common_adapters import conversation
from tercet.data.layouts import DATASETS, Adapter, Skip, keys_of, texts
from tercet.data.raw_turns import Raw, conversation_of, side_in
from tercet.outside import read_json
from tercet.rows import Message, Messages, Row, RowError
from tercet.verify import VerifierError, verifier

TRAINING_GSM8K, TRAINING_MATH = "gsm8k@2", "math@2"  # grade the answers to our own prompts
PUBLISHED = DATASETS | {"gsm8k": "gsm8k@1", "math": "math_flex@1"}  # the published RLVR rows keep their protocol
SKILLS = {"gsm8k": "words", "math": "maths", "math_flex": "maths", "tulu_if": "constraints", "code": "code"}


def rlvr(raw: Raw, where: str) -> Row:
    """Open-instruct's rows: `messages, ground_truth, dataset, constraint_type`; the last turns are not needed."""
    graded_by = _graded_by(raw, _single(raw.get("dataset"), "dataset", where), where, PUBLISHED)
    given, kind = raw.get("ground_truth"), str(raw.get("constraint_type") or "")
    reference = _single(_tests(given) if graded_by == "code@1" else given, "ground_truth", where)
    return _problem(raw, conversation(raw, where).prompt, graded_by, reference, where, kind)


def verl(raw: Raw, where: str) -> Row:
    """Verl's rows: `data_source, prompt, reward_model` with the `ground_truth`; other columns are ignored."""
    (name,) = texts(raw, where, "data_source")
    about = raw.get("reward_model")
    try:
        about = read_json(about) if isinstance(about, str) else about
    except ValueError:
        about = None
    if not isinstance(about, dict) or about.get("ground_truth") is None:
        raise RowError(f"{where}: expected a reward_model with its ground_truth, got {raw.get('reward_model')!r:.80}")
    reference = _single(about["ground_truth"], "ground_truth", where)
    return _problem(raw, _asked(raw, ("prompt",), where), _graded_by(raw, name, where), reference, where, name)


def verifiers(raw: Raw, where: str) -> Row:
    """Rows of the verifiers library: `prompt` (or `question`) and `answer`; a known `task` names the verifier.

    Other tasks are graded by code of their own, so their rows need the `verifier` of a source.
    """
    task = raw.get("task") if isinstance(raw.get("task"), str) else ""
    given = raw.get("verifier") if isinstance(raw.get("verifier"), str) else ""
    name = given or DATASETS.get(str(task).lower(), "")
    reference = _single(raw.get("answer"), "answer", where)
    return _problem(raw, _asked(raw, ("prompt", "question"), where), str(name), reference, where, str(task))


def gsm8k_prompt(raw: Raw, where: str, examples: Sequence[Mapping[str, Any]] = ()) -> Row:
    """A GSM8K prompt for RL: zero-shot, or behind worked examples `{question, answer}` in one user turn."""
    question, answer = texts(raw, where, "question", "answer")
    text = _behind(examples, ("Question: ", "\nAnswer: "), question, ("question", "answer"))
    return _problem(raw, (Message("user", text),), TRAINING_GSM8K, final_number(answer, where), where)


def math_prompt(raw: Raw, where: str, examples: Sequence[Mapping[str, Any]] = ()) -> Row:
    """A MATH prompt for RL: zero-shot, or behind worked examples `{problem, solution}` in one user turn.

    The reference answer is the bare `answer` where the row has one, else its worked `solution`.
    """
    (question,) = texts(raw, where, "problem")
    if "answer" in raw and raw["answer"] in (None, ""):
        raise Skip("has no answer")
    (reference,) = texts(raw, where, "answer" if "answer" in raw else "solution")
    text = _behind(examples, ("Problem:\n", "\n\nSolution:\n"), question, ("problem", "solution"))
    return _problem(raw, (Message("user", text),), TRAINING_MATH, reference, where, str(raw.get("type") or ""))


def final_number(answer: str, where: str) -> str:
    """The number after `####`, without the marks of its thousands."""
    _, mark, reference = answer.rpartition("####")
    if not mark or not reference.strip():
        raise RowError(f"{where}: the answer must end in '#### NUMBER', got {answer[-60:]!r}")
    return reference.strip().replace(",", "")


ADAPTERS: dict[str, Adapter] = {"gsm8k_prompt": gsm8k_prompt, "math_prompt": math_prompt, "rlvr": rlvr}
ADAPTERS |= {"verifiers": verifiers, "verl": verl}
WITH_EXAMPLES = {  # adapter -> function, worked examples before each prompt (§2.4), their keys
    "gsm8k_prompt": (gsm8k_prompt, 8, ("question", "answer")),
    "math_prompt": (math_prompt, 3, ("problem", "solution")),
}


def _graded_by(raw: Raw, name: str, where: str, by_name: Mapping[str, str] = DATASETS) -> str:
    """The verifier under the row's own name, else that of its data set."""
    given = raw.get("verifier")
    if isinstance(given, str) and given:
        return given
    if name.lower() not in by_name:
        known = ", ".join(sorted(by_name))
        raise RowError(
            f"{where}: no verifier for the data set {name!r}; give the source a `verifier`, or name one of {known}"
        )
    return by_name[name.lower()]


def _single(value: Any, key: str, where: str) -> str:
    """A text, a number, or a list of one of them, as text; other values as JSON."""
    values = list(value) if isinstance(value, list | tuple) else [value]
    if not values or values[0] is None or any(one != values[0] for one in values):
        raise RowError(f"{where}: expected one value under {key}, got {value!r:.80}; give a row one verifier")
    return values[0] if isinstance(values[0], str) else json.dumps(values[0], ensure_ascii=False, default=str)


def _tests(value: Any) -> Any:
    """A list of tests as one text of JSON; what holds such a text already stays."""
    listed = isinstance(value, list | tuple) and not (len(value) == 1 and str(value[0]).lstrip().startswith("["))
    return json.dumps(list(value), default=str) if listed else value


def _asked(raw: Raw, names: tuple[str, ...], where: str) -> Messages:
    """The prompt of a row, a text or turns, behind its system text."""
    name = next((name for name in names if raw.get(name) is not None), names[0])
    if not raw.get(name):
        raise RowError(f"{where}: expected text or turns under {' or '.join(names)}, got the keys {keys_of(raw)}")
    messages = conversation_of(raw, side_in(raw[name], where, "user"), where)
    return messages[:-1] if messages[-1].role == "assistant" else messages


def _problem(raw: Raw, asked: Messages, name: str, reference: str, where: str, template: str = "") -> Row:
    """A bare prompt with its verifier; RowError where no answer could pass, so that training does not meet it."""
    if not reference.strip():
        raise RowError(f"{where}: has an empty reference answer, so no answer could be right")
    if name.startswith("gsm8k@"):
        reference = reference.replace(",", "")
    if name == "tulu_if@1":
        try:
            verifier(name)("", reference)
        except VerifierError as error:
            raise RowError(f"{where}: {error}") from None
    skill = SKILLS.get(name.split("@")[0], "")
    return Row(raw["id"], asked, skill=skill, verifier=name, reference=reference, template=template)


def _behind(
    examples: Sequence[Mapping[str, Any]], marks: tuple[str, str], question: str, names: tuple[str, str]
) -> str:
    """The question as it stands, or behind the examples in their own form, waiting for its answer."""
    if not examples:
        return question
    before, between = marks
    shots = "".join(f"{before}{shot[names[0]]}{between}{shot[names[1]].strip()}\n\n" for shot in examples)
    return f"{shots}{before}{question}{between.rstrip()}"
