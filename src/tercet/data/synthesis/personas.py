"""New prompts and answers from a model that is given a persona, checked before they are kept.

Tülu 3 §3.1.2: one persona, one prompt. An author writes the question, a solver answers it several times, and a row is
kept only if its answer passes a check: instructions pass `tulu_if@1`, mathematics and programs need a majority of the
answers, programs by what they return in the sandbox. The same is done with instructions that get a constraint
(IF-augmented), those that had one all along (WildChat-IF), and requests that should not simply be fulfilled. Models
may think first: thoughts are neither checked nor kept.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random

from tercet.data.disk_list import batched
from tercet.data.generators.constraints import KINDS as CONSTRAINTS
from tercet.data.generators.constraints import VERIFIER as FOLLOWED
from tercet.data.generators.constraints import Scene, draw_kinds, sentence_of
from tercet.data.sources import lot
from tercet.data.synthesis import personas_checks as checks
from tercet.data.synthesis.personas_checks import Accepted, AnswerPlan, PersonaCase, QuestionDraft
from tercet.data.synthesis.personas_prompts import prompt_texts
from tercet.rows import Completion, Generator, Message, Messages, Row, Sampling
from tercet.rows_queue import in_turn
from tercet.verify.thoughts import answer_of

CHUNK = 256  # seeds in work at once; an engine has several chunks ahead


@dataclass
class SeedCounts:
    """What became of the seeds: kept + dropped = read."""

    read: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class PersonaKind:
    """One kind of rows. `read` finds the question in what the author wrote, "" where there is none: then `missing`.

    `accept` gives the answer that is kept, or the reason why none is. With `probe` the author is asked for
    calls that try a program out before anybody writes it.
    """

    skill: str
    draft: Callable[[str, Random], QuestionDraft]
    read: Callable[[str, QuestionDraft], str]
    accept: Callable[[PersonaCase, Sequence[str]], Accepted | str]
    probe: bool = False
    missing: str = "the author wrote no question"
    creative: bool = True  # whether the author draws words or takes the likeliest


def synthesise(
    kind: str, seeds: Iterable[str], generator: Generator, seed: int, *, plan: AnswerPlan, counts: SeedCounts
) -> Iterator[Row]:
    """Rows of one kind (see KINDS), at most one for each seed; seeds are personas or, for two kinds, instructions.

    The rows follow from the arguments and from what the generator answers. `source` is the kind and its version,
    `template` the wording or category. What was not kept is counted in `counts`. A generator behind a request log
    (data/synthesis/request_log.py) lets a run that was killed ask only for what it lacks.
    """
    chunks, ahead = batched(_distinct(seeds, counts), CHUNK), getattr(generator, "ahead", 1)
    for chunk in in_turn(lambda texts: _chunk(kind, texts, generator, seed, plan), chunks, ahead):
        for text, made in chunk:
            if isinstance(made, str):
                counts.dropped[made] += 1
                continue
            case, accepted = made
            counts.kept += 1
            turns = [Message("user", case.question)]
            turns += [Message("assistant", accepted.answer)] if accepted.answer else []
            name = f"{kind}-{lot(seed, kind, text).hex()[:16]}"
            facts = (f"{kind}@1", KINDS[kind].skill, accepted.verifier, accepted.reference, case.draft.template)
            yield Row(name, tuple(turns), *facts)


def _distinct(seeds: Iterable[str], counts: SeedCounts) -> Iterator[str]:
    seen: set[bytes] = set()
    for seed in seeds:
        counts.read += 1
        text = seed.strip()
        digest = lot(0, text)
        if not text or digest in seen:
            counts.dropped["the same seed twice" if text else "an empty seed"] += 1
            continue
        seen.add(digest)
        yield text


def _chunk(
    name: str, texts: Sequence[str], generator: Generator, seed: int, plan: AnswerPlan
) -> list[tuple[str, tuple[PersonaCase, Accepted] | str]]:
    """Each seed with a case and its accepted answer, or with why there is none."""
    kind = KINDS[name]

    def sampling(part: str, temperature: float, n: int = 1) -> Sampling:
        own = int.from_bytes(lot(seed, name, part)[:4], "big")
        return Sampling(max_new_tokens=plan.max_new_tokens, temperature=temperature, n=n, seed=own, fit=True)

    drafts = [kind.draft(text, Random(lot(seed, "draft", name, text))) for text in texts]
    made: dict[int, tuple[PersonaCase, Accepted] | str] = {}
    cases = {i: PersonaCase(draft, draft.question, plan) for i, draft in enumerate(drafts) if not draft.ask}
    temperature = plan.author_temperature * kind.creative
    asked = [i for i, draft in enumerate(drafts) if draft.ask]
    written = generator.complete([_user(drafts[i].ask) for i in asked], sampling("author", temperature))
    for i, (reply,) in zip(asked, written, strict=True):
        question = "" if _unusable(reply) else kind.read(answer_of(reply.text).answer, drafts[i])
        made[i] = _unusable(reply) or kind.missing
        if question:
            cases[i] = PersonaCase(drafts[i], question, plan)
    if not plan.answers:
        return [(text, _bare(cases[i]) if i in cases else made[i]) for i, text in enumerate(texts)]
    if kind.probe:
        probes = [_user(prompt_texts().calls.format(question=case.question)) for case in cases.values()]
        for (i, case), (reply,) in zip(cases.items(), generator.complete(probes, sampling("probe", 0.0)), strict=True):
            cases[i] = PersonaCase(case.draft, case.question, plan, answer_of(reply.text).answer)
    prompts = [_solver(case) for case in cases.values()]
    solved = generator.complete(prompts, sampling("solver", plan.temperature, plan.answers))
    for (i, case), answers in zip(cases.items(), solved, strict=True):
        usable = [answer_of(answer.text).answer for answer in answers if not _unusable(answer)]
        verdict = kind.accept(case, usable) if usable else _unusable(answers[0])
        made[i] = verdict if isinstance(verdict, str) else (case, verdict)
    return [(text, made[i]) for i, text in enumerate(texts)]


def _user(text: str) -> Messages:
    return (Message("user", text),)


def _solver(case: PersonaCase) -> Messages:
    guide = (Message("system", case.draft.guide),) if case.draft.guide else ()
    return (*guide, Message("user", case.question))


def _unusable(reply: Completion) -> str:
    """Why an answer is of no use, whatever it says; "" when it may be."""
    if reply.stop == "error":
        return "a request failed"
    _, answer, unfinished = answer_of(reply.text)
    if reply.stop == "length" or unfinished:
        return "cut off by the token budget" if reply.stop == "length" else "an unfinished thought"
    return "" if answer.strip() else "an empty answer"


def _bare(case: PersonaCase) -> tuple[PersonaCase, Accepted]:
    return case, Accepted("", FOLLOWED if case.draft.reference else "", case.draft.reference)


# ---- questions ----

BOUND = {"choice", "repeat"}  # constraints that make sense for one topic, or for one request as it was put


def _after(label: str) -> Callable[[str, QuestionDraft], str]:
    """A reader of what follows the label; the label is not part of the question."""
    place = re.compile(rf"\**{label}\**:?\**\s*(.+)", re.IGNORECASE | re.DOTALL)
    return lambda reply, draft: match[1].strip() if (match := place.search(reply)) else ""


def _asking(name: str, guide: str) -> Callable[[str, Random], QuestionDraft]:
    def draft(persona: str, rng: Random) -> QuestionDraft:
        texts = prompt_texts()
        return QuestionDraft(name, ask=texts.ask[name].format(persona=persona), guide=texts.guides[guide])

    return draft


def _constraints(rng: Random, text: str, most: int) -> list[dict[str, object]]:
    """One to `most` constraints that do not clash, each with its sentence under "text"."""
    scene = Scene("train", "", (text, prompt_texts().common), "")
    first = rng.choice(sorted(set(CONSTRAINTS) - BOUND))
    drawn = [(kind, CONSTRAINTS[kind].draw(rng, scene)) for kind in draw_kinds(rng, first) if kind not in BOUND]
    drawn = [pair for pair in drawn if pair[0] == first] + [pair for pair in drawn if pair[0] != first]
    return [
        {"func_name": CONSTRAINTS[kind].func_name, **given, "text": sentence_of(rng, kind, given, "train")}
        for kind, given in drawn[:most]
    ]


def _draft_instruction(persona: str, rng: Random) -> QuestionDraft:
    wanted = _constraints(rng, persona, 3)
    listed = "\n".join(f"- {one['text']}" for one in wanted)
    texts = prompt_texts()
    ask = texts.ask["persona_if"].format(persona=persona, constraints=listed, example=rng.choice(texts.examples))
    return QuestionDraft("persona_if", ask=ask, reference=json.dumps(wanted), guide=texts.guides["follow"])


def _read_instruction(reply: str, draft: QuestionDraft) -> str:
    """The instruction; a constraint that the author left out is added, one that is there twice makes it unusable."""
    text = _after("User instruction")(reply, draft)
    sentences = [one["text"] for one in json.loads(draft.reference)]
    if not text or any(text.count(sentence) > 1 for sentence in sentences):
        return ""
    return " ".join([text, *(sentence for sentence in sentences if sentence not in text)])


def _draft_augmented(instruction: str, rng: Random) -> QuestionDraft:
    wanted = _constraints(rng, instruction, 1)
    question = f"{instruction}{' ' if instruction[-1] in '.?!' else chr(10)}{wanted[0]['text']}"
    guide = prompt_texts().guides["follow"]
    return QuestionDraft("if_augmented", question=question, reference=json.dumps(wanted), guide=guide)


def _draft_wildchat(instruction: str, rng: Random) -> QuestionDraft:
    ask = prompt_texts().ask["wildchat_if"].format(instruction=instruction)
    return QuestionDraft("wildchat_if", ask=ask, question=instruction)


def _read_wildchat(reply: str, draft: QuestionDraft) -> str:
    return draft.question if re.search(r"constrained\W+yes\b", reply, re.IGNORECASE) else ""


def _draft_request(persona: str, rng: Random) -> QuestionDraft:
    texts = prompt_texts()
    name = rng.choice(sorted(texts.categories))
    category = texts.categories[name]
    harmless = rng.random() < 0.3
    wording = texts.ask["harmless" if harmless else "noncompliance"].format(persona=persona, what=category.what)
    guide = texts.guides["helpful"] if harmless else category.how
    return QuestionDraft(f"{name}{'/harmless' * harmless}", ask=wording, guide=guide)


MATH_PROBLEM = _after("Math problem")
SAME_FORMULA = checks.accept_agreed("math@2", checks.formula)
SAME_NUMBER = checks.accept_agreed("gsm8k@2", checks.number)
KINDS: dict[str, PersonaKind] = {
    "persona_if": PersonaKind("constraints", _draft_instruction, _read_instruction, checks.accept_followed),
    "persona_math": PersonaKind("math", _asking("persona_math", "steps"), MATH_PROBLEM, SAME_FORMULA),
    "persona_gsm": PersonaKind("math", _asking("persona_gsm", "steps"), MATH_PROBLEM, SAME_NUMBER),
    "persona_algebra": PersonaKind("math", _asking("persona_algebra", "steps"), MATH_PROBLEM, SAME_FORMULA),
    "persona_python": PersonaKind(
        "code", _asking("persona_python", "code"), _after("Question"), checks.accept_program, True
    ),
    "if_augmented": PersonaKind("constraints", _draft_augmented, lambda reply, draft: "", checks.accept_followed),
    "wildchat_if": PersonaKind(
        "constraints",
        _draft_wildchat,
        _read_wildchat,
        checks.accept_first,
        False,
        "the message sets no requirement",
        False,
    ),
    "noncompliance": PersonaKind("noncompliance", _draft_request, _after("Request"), checks.accept_response),
}
