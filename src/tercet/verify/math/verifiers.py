"""Verifiers of mathematical answers: MATH as benchmark (`math_flex@1`) and as reward (`math@1`), and `deepmind_math@1`.

Two answers are equal if their spellings agree or if their difference simplifies to zero. The second half runs in a
worker process under a time limit; plain numbers are compared at once.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache, lru_cache
from importlib.metadata import PackageNotFoundError, version

from tercet.sandbox.workers import WorkerError, WorkerStartError, WorkerTimeoutError, call
from tercet.verify.grade import Grade, VerifierError, unreadable
from tercet.verify.math.latex import Candidate, candidates, hendrycks, minerva, number

SECONDS = 5.0  # for one comparison
LONGEST = 500  # characters; no answer is longer, and the parser would spend the whole limit on a page of prose
NEEDED = {"sympy": "1.", "math-verify": "0.", "antlr4-python3-runtime": "4.11."}
WANTED = 'pip install "sympy>=1.14" "math-verify[antlr4_11_0]>=0.9" "antlr4-python3-runtime==4.11.*"'

BARE = re.compile(r"\s*\$*([^$]+?)\$*\s*")
PHRASE = "therefore, the final answer is"
CLOSING = re.compile(rf"{PHRASE}((?:(?!{PHRASE}).)*?)\. I hope it is correct\.", re.IGNORECASE | re.DOTALL)
DELIMITERS = ("** **", "` `", '" "', "$$ $$", "$ $", r"\( \)", r"\[ \]", "[ ]")
# Arithmetic in plain notation: no digit runs into a letter, as in the base-16 number 3a1 or in 1e5.
EXPRESSION = re.compile(r"(?!.*\d[A-Za-z_])[\w\s()+\-*/^.]+", re.ASCII)


def math_flex(completion: str, reference: str) -> Grade:
    """`math_flex@1`: some candidate answer of the completion equals one of the reference answer (Tülu 3, "flex").

    The reference answer is a solution or a bare answer. `numbers` has the two tests apart ("hendrycks",
    "sympy"), what the Minerva phrase alone earns ("minerva"), and the math-verify library's own verdict
    ("math_verify"), which never enters the score. Raises VerifierError for an empty reference answer, and when the
    packages of the LaTeX parser do not fit.
    """
    check_packages()
    found = candidates(completion)
    raw, normalised = _gold(reference)
    pairs = [(mine, gold) for mine in found for gold in (raw if mine.place == "boxed" else raw + normalised)]
    grade, equal = _compared(found, pairs)
    library = ask("library_equal", _as_latex(reference), completion)
    minerva_right = float(any(mine.place == "phrase" for mine, _ in equal))
    numbers = {"minerva": minerva_right, **grade.numbers, "math_verify": float(library == "equal")}
    detail = f"math-verify: {library}" if library in ("timeout", "error") else ""
    return replace(grade, detail=detail, numbers=numbers)


def math_label(completion: str, reference: str) -> Grade:
    """`math@1`: the reward of MATH in training: some candidate answer equals the label as it stands (Tülu 3, "flex").

    The same candidates and the same two tests as `math_flex@1`. A benchmark reads more out of an answer: `math_flex@1`
    also compares with the label normalised like the answer, and asks the math-verify library. The reference answer
    is an answer, or a solution with a box. Raises VerifierError as `math_flex@1` does.
    """
    check_packages()
    raw, _ = _gold(reference)
    if not completion.strip():
        return Grade(0.0, outcome="unparsed", detail="the completion is empty")
    found = candidates(completion)
    return _compared(found, [(mine, gold) for mine in found for gold in raw])[0]


Pairs = list[tuple[Candidate, str]]


def _compared(found: list[Candidate], pairs: Pairs) -> tuple[Grade, Pairs]:
    """The verdict on pairs of candidate and label, and the pairs that are equal."""
    spelled = [pair for pair in pairs if hendrycks(pair[0].text) == hendrycks(pair[1]) != ""]
    verdicts = _simplify(pairs, stop=bool(spelled))
    simplified = [pair for pair, verdict in verdicts.items() if verdict == "equal"]
    equal = sorted({*spelled, *simplified}, key=pairs.index)
    outcome = "unparsed" if found[0].place == "whole" else "graded"
    if not equal:
        outcome = next((verdict for verdict in verdicts.values() if verdict in ("timeout", "error")), outcome)
    numbers = {"hendrycks": float(bool(spelled)), "sympy": float(bool(simplified))}
    answer = equal[0][0] if equal else found[0]
    return Grade(float(bool(equal)), answer.text[:LONGEST], outcome, numbers=numbers), equal


def deepmind_math(completion: str, reference: str) -> Grade:
    """`deepmind_math@1`: the reference answer stands in "Therefore, the final answer is ... I hope it is correct."

    The last such sentence counts, in any case. Answers are equal as strings, or item by item of a comma-separated
    list as expressions (`**`, `*`, `/`, `sqrt`). Raises VerifierError for an empty reference answer.
    """
    check_packages()
    gold = _bare(reference)
    if not gold:
        raise unreadable("deepmind_math@1", "the answer as reference answer, e.g. '-1, 1/3'", reference)
    sentences = CLOSING.findall(completion)
    if not sentences:
        return Grade(0.0, outcome="unparsed", detail='no "Therefore, the final answer is ... I hope it is correct."')
    answer = _bare(sentences[-1])
    verdict = _plain_verdict(answer, gold)
    outcome = verdict if verdict in ("timeout", "error") else "graded"
    return Grade(float(verdict == "equal"), answer[:LONGEST], outcome)


@cache
def check_packages() -> None:
    """Raise VerifierError unless the computer algebra half can work: sympy's parser needs ANTLR 4.11 exactly."""
    for name, wanted in NEEDED.items():
        try:
            present = version(name)
        except PackageNotFoundError:
            raise VerifierError(f"the mathematics verifiers need {name}, which is not installed; {WANTED}") from None
        if not present.startswith(wanted):
            raise VerifierError(f"the mathematics verifiers need {name} {wanted}*; got {present}; {WANTED}")


@lru_cache(maxsize=8192)
def _gold(reference: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The candidates of the reference answer, and the same normalised, to be compared with answers that are.

    An equation is not normalised: of "x=1, y=2" only "2" would be left.
    """
    found, bare = candidates(reference), BARE.fullmatch(reference)
    bare_text = (bare[1],) if bare and found[0].place in ("whole", "dollars") else ()
    raw = bare_text or tuple(candidate.text for candidate in found)
    if not any(text.strip() for text in raw):
        raise unreadable("math_flex@1", "a solution or an answer as reference answer, e.g. '\\boxed{2}'", reference)
    return raw, tuple({minerva(text) for text in raw if "=" not in text} - {*raw, ""})


def _simplify(pairs: Pairs, stop: bool) -> dict[tuple[Candidate, str], str]:
    """The verdict on each pair up to the first equal one; `stop`: also up to the first that took too long."""
    verdicts = {}
    for pair in pairs:
        verdicts[pair] = verdict = _latex_verdict(pair[0].text, pair[1])
        if verdict == "equal" or (stop and verdict == "timeout"):
            break
    return verdicts


@lru_cache(maxsize=65536)
def _latex_verdict(mine: str, gold: str) -> str:
    """The verdict "equal", "different", "timeout" or "error" by simplification; plain numbers need no worker."""
    if not mine or max(len(mine), len(gold)) > LONGEST:
        return "different"
    first, second = number(mine), number(gold)
    if first is not None and second is not None:
        return "equal" if first == second else "different"
    return ask("latex_equal", mine, gold)


@lru_cache(maxsize=65536)
def _plain_verdict(mine: str, gold: str) -> str:
    if mine.casefold() == gold.casefold():
        return "equal"
    mine_items, gold_items = _items(mine), _items(gold)
    if len(mine_items) != len(gold_items) or max(len(mine), len(gold)) > LONGEST:
        return "different"
    for first, second in zip(mine_items, gold_items, strict=True):
        if first.casefold() == second.casefold():
            continue
        if not (EXPRESSION.fullmatch(second) and ("\\" in first or EXPRESSION.fullmatch(first))):
            return "different"
        if (verdict := ask("plain_equal", first, second)) != "equal":
            return verdict
    return "equal"


def ask(function: str, first: str, second: str) -> str:
    """The verdict of a function of symbolic.py on two texts: "equal", "different", "timeout" or "error"."""
    try:
        return "equal" if call(f"tercet.verify.math.symbolic:{function}", (first, second), SECONDS) else "different"
    except WorkerTimeoutError:
        return "timeout"
    except WorkerError:
        return "error"
    except WorkerStartError as error:
        raise VerifierError(f"the mathematics verifiers cannot use sympy: {error}; {WANTED}") from error


def _as_latex(reference: str) -> str:
    """The reference answer with dollars around a bare answer: the library reads LaTeX only inside delimiters."""
    return reference if re.search(r"\$|\\boxed|\\fbox|\\\(|\\\[", reference) else f"${reference.strip()}$"


def _bare(text: str) -> str:
    """An answer without its last dot and the marks around it: " [$5*x$]. " is "5*x"."""
    text = " ".join(text.split()).removesuffix(".")
    for opening, closing in map(str.split, DELIMITERS * 2):
        if text.startswith(opening) and text.endswith(closing) and len(text) >= len(opening) + len(closing):
            text = text[len(opening) : len(text) - len(closing)].strip().removesuffix(".")
    return text


def _items(text: str) -> list[str]:
    return [item.strip() for item in text.split(",")]
