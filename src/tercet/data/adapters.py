"""The adapters of the public data sets: one small function each turns a raw object into a row.

Each function keeps to the contract of `common_adapters`, which holds the layouts that any file may have; `pairs` and
`problems` hold those of preferences and of prompts with reference answers. `catalogue` says what Tülu 3 keeps of each
data set and why; the section numbers are those of the paper.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from tercet.data import common_adapters, pairs, problems
from tercet.data.common_adapters import conversation, exchange
from tercet.data.layouts import Adapter, Skip, Unfold, texts
from tercet.data.pairs import PairAdapter, refuse_part
from tercet.data.problems import TRAINING_GSM8K, final_number
from tercet.data.raw_turns import Raw
from tercet.rows import Message, Row, RowError, SourceError

LEFT_OUT = "_left_out"  # key of a raw object that an unfolding leaves out; its value is the reason

_CALCULATION = re.compile(r"<<[^<>]*>>")
_SLOT = re.compile(r"\{\{\s*(\w+)\s*\}\}")


def gsm8k(raw: Raw, where: str) -> Row:
    """`question, answer`, without the calculator's `<<48/2=24>>`; the reference answer stands after `####`."""
    question, answer = texts(raw, where, "question", "answer")
    row = exchange(raw, where, question, _CALCULATION.sub("", answer))
    return replace(row, skill="words", verifier=TRAINING_GSM8K, reference=final_number(answer, where))


def inputs_targets(raw: Raw, where: str) -> Row:
    """`inputs, targets`: the layout of FLAN v2 and of the Aya data set."""
    return exchange(raw, where, *texts(raw, where, "inputs", "targets"))


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
    refuse_part(source)
    return Row(raw["id"], (Message("user", prompt),), template=source)


def sciriff(raw: Raw, where: str) -> Row:
    """`messages, dataset` of the SciRIFF training mix: only its science tasks, not the general part beside them."""
    (task,) = texts(raw, where, "dataset")
    if not task.startswith("science"):
        raise Skip("no science task")
    return replace(conversation({"id": raw["id"], "messages": raw.get("messages")}, where), template=task)


def openmath(raw: Raw, where: str) -> Row:
    """`problem, generated_solution` of OpenMathInstruct-2, every part of it."""
    return exchange(raw, where, *texts(raw, where, "problem", "generated_solution"))


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
    return conversation(raw, where) if "messages" in raw else common_adapters.alpaca(raw, where)


def fill(row: Row, values: Mapping[str, str], where: str) -> Row:
    """The row with every `{{slot}}` replaced by its value; a slot without a value is refused."""
    slots = {slot for turn in row.messages for slot in _SLOT.findall(turn.content)}
    if missing := ", ".join(sorted(slots - set(values))):
        given = ", ".join(sorted(values)) or "none"
        raise SourceError(f"{where}: no value for the slot {missing} of this template; the values given: {given}")
    turns = (replace(turn, content=_SLOT.sub(lambda slot: values[slot[1]], turn.content)) for turn in row.messages)
    return replace(row, messages=tuple(turns))


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


ADAPTERS: dict[str, Adapter] = common_adapters.ADAPTERS | problems.ADAPTERS
ADAPTERS |= {"gsm8k": gsm8k, "hardcoded": hardcoded, "inputs_targets": inputs_targets, "oasst": oasst}
ADAPTERS |= {"openmath": openmath, "openmath_gsm8k": openmath_gsm8k, "persona": persona, "sciriff": sciriff}
ADAPTERS |= {"ultrafeedback": ultrafeedback, "wildchat": wildchat, "wildguardmix": wildguardmix}
ADAPTERS |= {"wildjailbreak": wildjailbreak}
PAIRS: dict[str, PairAdapter] = pairs.PAIRS
WITH_EXAMPLES = problems.WITH_EXAMPLES
UNFOLDS: dict[str, Unfold] = {**common_adapters.UNFOLDS, "oasst": best_paths}  # what comes before the adapter


def _quality(message: Raw, where: str) -> float:
    """The mean of the reviewers' quality labels, as the release states it: `{name: [...], value: [...]}`."""
    labels = message.get("labels") or {"name": (), "value": ()}
    if not isinstance(labels, dict) or not all(isinstance(labels.get(key), list | tuple) for key in ("name", "value")):
        raise RowError(f"{where}: expected lists of name and value under labels, got {labels!r:.60}")
    scores = [value for name, value in zip(labels["name"], labels["value"], strict=False) if name == "quality"]
    if not all(isinstance(score, int | float) for score in scores):
        raise RowError(f"{where}: expected a number as quality, got {scores!r:.60}")
    return float(scores[0]) if scores else 0.0
