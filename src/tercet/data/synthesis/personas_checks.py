"""Which answers to the questions of data/synthesis/personas.py are kept, and what becomes their reference answer."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tercet.data.generators.constraints import VERIFIER as FOLLOWED
from tercet.data.synthesis.personas_prompts import prompt_texts
from tercet.sandbox.run import Ran, ready, run_program
from tercet.verify import Verifier, VerifierError, verifier
from tercet.verify.numbers import spelled
from tercet.verify.programs import PARTS, extract
from tercet.verify.stated import final_number

LEAST_CALLS = 3  # a program that was called less often has hardly been tried
FINAL = re.compile(r"final answer is:?\s*(.+?)\s*\.?\s*I hope it is correct", re.IGNORECASE)
REFUSAL = re.compile(
    r"\b(I|we)('m| am|'re| are)? ?(sorry|can't|cannot|can not|won't|will not|unable|not able)", re.IGNORECASE
)
DRIVER = "\nimport json as _json\nprint()\nprint(_json.dumps([repr(_call()) for _call in [{calls}]]))"


@dataclass(frozen=True)
class AnswerPlan:
    """How much is asked. `agree`: more than this share of all answers must be the same; `answers = 0`: prompts only."""

    answers: int = 4
    agree: float = 0.5
    temperature: float = 0.8
    author_temperature: float = 1.0
    max_new_tokens: int = 1024
    seconds: float = 3.0  # for one program
    sandbox: str = "auto"


@dataclass(frozen=True)
class QuestionDraft:
    """A question to be: what the author is asked (nothing, where the question stands), and what is known already."""

    template: str
    ask: str = ""
    question: str = ""
    reference: str = ""  # JSON constraints
    guide: str = ""  # the solver's system prompt, which the row does not show


@dataclass(frozen=True)
class PersonaCase:
    """A question with what its check needs; `probe` is the author's answer to the kind's second question."""

    draft: QuestionDraft
    question: str
    plan: AnswerPlan
    probe: str = ""


@dataclass(frozen=True)
class Accepted:
    """An answer that passed its check, with the verifier and the reference answer of the row, where there is one."""

    answer: str
    verifier: str = ""
    reference: str = ""


def accept_followed(case: PersonaCase, answers: Sequence[str]) -> Accepted | str:
    """The first answer that passes `tulu_if@1`."""
    verify = verifier(FOLLOWED)
    kept = next((answer for answer in answers if verify(answer, case.draft.reference).score == 1), None)
    return "no answer follows the constraints" if kept is None else Accepted(kept, FOLLOWED, case.draft.reference)


def accept_first(case: PersonaCase, answers: Sequence[str]) -> Accepted | str:
    """The first answer: there is nothing to check it by."""
    return Accepted(answers[0])


def accept_agreed(name: str, read: Callable[[str], str]) -> Callable[[PersonaCase, Sequence[str]], Accepted | str]:
    """A majority of final answers that the verifier `name` takes as equal; the reference is the first one, as read."""

    def accept(case: PersonaCase, answers: Sequence[str]) -> Accepted | str:
        verify = verifier(name)
        found = [(answer, read(stated[-1])) for answer in answers if (stated := FINAL.findall(answer))]
        found = [(answer, final) for answer, final in found if final]
        finals = [final for _, final in found]
        group = majority(finals, lambda one, other: _right(verify, _closing(other), one))
        if len(group) <= case.plan.agree * case.plan.answers:
            return "the answers do not agree" if found else "no final answer"
        answer, reference = found[group[0]]
        return Accepted(answer, name, reference) if _right(verify, answer, reference) else "the verifier cannot read it"

    return accept


def _right(verify: Verifier, answer: str, reference: str) -> bool:
    """Whether the verifier takes the answer; False where a model's answer is no reference that it can read."""
    try:
        return verify(answer, reference).score == 1
    except VerifierError:
        return False


def formula(final: str) -> str:
    """The final answer without the dollar signs around it."""
    return final.strip(" $")


def number(final: str) -> str:
    """The number of the final answer in its shortest spelling; "" when there is none, or not one."""
    found = final_number(final)
    return spelled(found[0].value) if found and found[0].value is not None else ""


def _closing(final: str) -> str:
    return f"Final Answer: The final answer is ${final}$. I hope it is correct."


def accept_program(case: PersonaCase, answers: Sequence[str]) -> Accepted | str:
    """A majority of programs that return the same for the author's calls, and do so again when they are tested."""
    calls = _calls(case.probe)
    if len(calls) < LEAST_CALLS:
        return "too few calls to try a program"
    codes = [extract(answer).strip() for answer in answers]
    programs = [(code, name) for code in codes if (name := _function(code, case.question))]
    ready(case.plan.sandbox)  # else a library that is missing here would be the programs' fault
    found = []
    for code, name in programs:
        driver = DRIVER.format(calls=", ".join(f"lambda: {name}({call})" for call in calls))
        ran = run_program([PARTS["as_module"], code + driver], seconds=case.plan.seconds, sandbox=case.plan.sandbox)
        if returned := _returned(ran):
            found.append((code, name, returned))
    group = majority([returned for *_, returned in found], str.__eq__)
    if len(group) <= case.plan.agree * case.plan.answers:
        return "the programs do not agree" if found else "no program runs"
    code, name, returned = found[group[0]]
    values = zip(calls, json.loads(returned), strict=False)
    tests = "".join(f"    assert repr(candidate({call})) == {value!r}\n" for call, value in values)
    facts = {"tests": f"def check(candidate):\n{tests}", "entry_point": name, "seconds": case.plan.seconds}
    reference = json.dumps(facts)
    if verifier("program@1")(code, reference).score != 1:
        return "the program does not return the same twice"
    named = re.search(rf"\b{name}\b", case.question) is not None  # else nobody could know what to define
    return Accepted(code, "program@1", reference) if named else Accepted(code)


def _returned(ran: Ran) -> str:
    """The last line of a program that reached its end: what each call returned, as JSON; else ""."""
    line = ran.stdout_tail.rstrip("\n").rpartition("\n")[2] if ran.outcome == "passed" else ""
    try:
        return line if isinstance(json.loads(line), list) else ""
    except ValueError:
        return ""


def _calls(probe: str) -> list[str]:
    """The arguments of the author's calls, as source; only literals, and none twice."""
    found = []
    for line in re.findall(r"\bsolution\(.*\)", probe):
        try:
            call = ast.parse(line, mode="eval").body
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
                continue
            for value in [*call.args, *(keyword.value for keyword in call.keywords)]:
                ast.literal_eval(value)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            continue
        found.append(ast.unparse(call)[len("solution(") : -1])
    return list(dict.fromkeys(found))


def _function(code: str, question: str) -> str:
    """The function a program is about: one that the question names, else its last; "" when there is none."""
    try:
        names = [node.name for node in ast.parse(code).body if isinstance(node, ast.FunctionDef)]
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return ""
    return next((name for name in names if re.search(rf"\b{name}\b", question)), names[-1] if names else "")


def accept_response(case: PersonaCase, answers: Sequence[str]) -> Accepted | str:
    """Harmless requests must not be refused, unsafe ones must be; for the rest the guide is trusted."""
    harmless, unsafe = case.draft.guide == prompt_texts().guides["helpful"], case.draft.template.startswith("unsafe")
    for answer in answers:
        refuses = REFUSAL.search(answer[:200]) is not None
        if not refuses if harmless else refuses or not unsafe:
            return Accepted(answer)
    return "refused a harmless request" if harmless else "fulfilled an unsafe request"


def majority(answers: Sequence[str], same: Callable[[str, str], bool]) -> list[int]:
    """The places of the largest group of equal answers; of groups as large the one that began first."""
    groups: list[list[int]] = []
    for place, answer in enumerate(answers):
        group = next((group for group in groups if same(answers[group[0]], answer)), None)
        if group is None:
            groups.append([place])
        else:
            group.append(place)
    return max(groups, key=len, default=[])
