"""A user's file as a verifier: what each form is given, how its verdict is read, and what is refused in words."""

from __future__ import annotations

import gzip
import json
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tercet.rows import Message
from tercet.verify import Grade, VerifierError, check_reference, custom_digest, plugins, verifier
from tercet.verify.pins import check_hidden
from tercet.verify.plugins import ChangedCodeError
from tercet.verify.signatures import Submission, read, signature, unpacked
from tercet.verify.user_code import UserCodeError, is_user_code, named_in, pinned

SOURCE = """
import os
import time
from tercet.verify import Grade, VerifierError

def short(completion, answer):
    return answer in completion

def whole(prompt, completion, answer, info):
    return Grade(float(info["unit"] in completion), f"{prompt}|{completion}|{answer}")

def trl(prompts, completions, solution, unit, **columns):
    return [float(s in c and u in c) for c, s, u in zip(completions, solution, unit)]

def turns(completions: list[list[dict[str, str]]], answer, **kwargs):
    return [float(answer[0] in completion[0]["content"]) for completion in completions]

def compute_score(data_source, solution_str, ground_truth, extra_info=None, method="strict"):
    return {"score": float(ground_truth in solution_str), "pred": data_source, "strict": 1, "note": method}

def reads(completion, answer):
    if not answer.isdigit():
        raise VerifierError("expects a whole number as reference answer")
    return completion.split()[0] == answer

def fails(completion):
    return 1 / (len(completion) - len(completion))

def dies(completion):
    os._exit(3)

def hangs(completion):
    time.sleep(60 if completion else 0)
    return 0

def silent(completion):
    return None

def strange(completion, colour):
    return 1.0

def trainer(completions, completion_ids):
    return [1.0]

def empty(answer):
    return 1.0

constant = 3

def marks(completion):
    return float("<think>" in completion)

def whole_text(completion):
    return float("<think>" in completion)
whole_text.sees_thoughts = True
"""


@pytest.fixture
def mine(tmp_path: Path) -> Callable[[str], str]:
    """The name of a function in a file of this test's own, by an absolute path."""
    path = tmp_path / "my_reward.py"
    path.write_text(SOURCE, encoding="utf-8")
    return lambda name: f"{path}:{name}"


def with_info(answer: str, **info: Any) -> str:
    return json.dumps({"answer": answer, "info": info})


def test_thoughts_are_shown_only_to_a_function_that_says_it_sees_them(mine: Callable[[str], str]) -> None:
    text = "<think>So?</think>Four."
    assert [verifier(mine(name))(text, "").score for name in ("marks", "whole_text")] == [0, 1]
    assert verifier(mine("marks"))("<think>So", "").outcome == "truncated"


def test_the_short_form_is_given_completion_and_answer(mine: Callable[[str], str]) -> None:
    score = verifier(mine("short"))
    assert [score(text, "72").score for text in ("it is 72", "it is 7")] == [1.0, 0.0]
    assert score("it is 72", with_info("72", unit="kg")).score == 1.0


def test_the_long_form_is_given_prompt_and_columns_too(mine: Callable[[str], str]) -> None:
    prompt = (Message("user", "How heavy?"),)
    found = verifier(mine("whole"))("72 kg", with_info("72", unit="kg"), prompt=prompt)
    assert found == Grade(1.0, "How heavy?|72 kg|72")


def test_trl_s_form_is_given_lists_of_one_by_the_names_of_columns(mine: Callable[[str], str]) -> None:
    score = verifier(mine("trl"))
    assert [score(text, with_info("72", unit="kg")).score for text in ("72 kg", "72 lb")] == [1.0, 0.0]


def test_a_form_that_is_annotated_with_dicts_is_given_turns(mine: Callable[[str], str]) -> None:
    assert verifier(mine("turns"))("it is 72", "72").score == 1.0


def test_verl_s_form_is_given_its_source_and_may_return_a_dict(mine: Callable[[str], str]) -> None:
    found = verifier(mine("compute_score"))("it is 72", "72", source="openai/gsm8k")
    assert found == Grade(1.0, "openai/gsm8k", numbers={"strict": 1.0})


@pytest.mark.parametrize(
    ("name", "outcome", "detail"),
    [
        ("fails", "error", "ZeroDivisionError: division by zero (my_reward.py, line 27)"),
        ("dies", "error", "exit status 3"),
        ("hangs", "timeout", "took longer than 0.3 s"),
        ("silent", "error", "expected a finite number"),
    ],
)
def test_a_crash_a_hang_and_a_missing_verdict_are_outcomes(
    mine: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, name: str, outcome: str, detail: str
) -> None:
    own = verifier(mine(name))
    own("", "")  # the worker has imported the file
    monkeypatch.setattr(plugins, "SECONDS", 0.3)
    found = own("x", "")
    assert (found.score, found.outcome) == (0.0, outcome)
    assert detail in found.detail


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "strange",
            "it has the parameter 'colour', which nothing is given for; expected (completion, answer), (prompt",
        ),
        ("trainer", "it has the parameter 'completion_ids'"),
        ("empty", "it takes no completion"),
        ("constant", "'constant' is no function"),
        ("absent", "has no 'absent'; it has os, time, Grade, VerifierError, short, whole"),
    ],
)
def test_what_cannot_be_called_is_refused_in_words(mine: Callable[[str], str], name: str, message: str) -> None:
    with pytest.raises(VerifierError) as caught:
        verifier(mine(name))
    assert message in str(caught.value)


def test_a_reference_answer_is_checked_without_a_completion(mine: Callable[[str], str]) -> None:
    check_reference(mine("reads"), "72")
    with pytest.raises(VerifierError, match=r"my_reward.py:reads: expects a whole number as reference answer"):
        check_reference(mine("reads"), "seventy")
    with pytest.raises(VerifierError, match="solution and unit: no such columns beside answer"):
        check_reference(mine("trl"), "72")


def test_a_verifier_needs_a_reference_where_it_reads_one(mine: Callable[[str], str]) -> None:
    assert [verifier(mine(name)).needs_reference for name in ("short", "trl", "fails")] == [True, True, False]


def test_a_file_that_is_absent_or_broken_is_named(tmp_path: Path) -> None:
    with pytest.raises(VerifierError, match=r"there is no file .*gone.py; paths start at the recipe's folder"):
        verifier(f"{tmp_path / 'gone.py'}:score")
    (tmp_path / "bad.py").write_text("1 / 0\n", encoding="utf-8")
    with pytest.raises(VerifierError, match=r"ZeroDivisionError: division by zero \(bad.py, line 1\)"):
        verifier(f"{tmp_path / 'bad.py'}:score")
    (tmp_path / "worse.py").write_text("def score(:\n", encoding="utf-8")
    with pytest.raises(VerifierError, match="is not valid Python"):
        verifier(f"{tmp_path / 'worse.py'}:score")


def test_a_file_that_changes_during_a_run_stops_it(mine: Callable[[str], str]) -> None:
    from tercet.sandbox import workers

    own = verifier(mine("short"))
    path = Path(mine("short").partition(":")[0])
    path.write_text(SOURCE + "\nmore = 1\n", encoding="utf-8")
    for pool in workers._POOLS.values():
        pool.close()  # a worker that begins now sees the changed file
    with pytest.raises(ChangedCodeError, match="has changed while this run used it"):
        own("it is 72", "72")


def test_the_digest_covers_what_the_file_imports_from_beside_it(tmp_path: Path) -> None:
    (tmp_path / "my_reward.py").write_text("from helping import half\nimport json\n", encoding="utf-8")
    (tmp_path / "helping.py").write_text("half = 2\n", encoding="utf-8")
    (tmp_path / "other.py").write_text("", encoding="utf-8")
    name = f"{tmp_path}/my_reward.py:score"
    before = pinned(name)
    (tmp_path / "other.py").write_text("changed = 1\n", encoding="utf-8")
    assert custom_digest("my_reward.py:score", tmp_path) == pinned(name) == before
    (tmp_path / "helping.py").write_text("half = 3\n", encoding="utf-8")
    assert pinned(name) != before


def test_rows_whose_verifier_has_changed_are_refused_later(tmp_path: Path) -> None:
    (tmp_path / "my_reward.py").write_text("def score(completion): return 1\n", encoding="utf-8")
    name = f"{tmp_path}/my_reward.py:score"
    kept = {"verifiers": {name: custom_digest(name)}}
    (tmp_path / "summary.json").write_text(json.dumps(kept), encoding="utf-8")
    check_hidden(tmp_path)
    (tmp_path / "my_reward.py").write_text("def score(completion): return 0\n", encoding="utf-8")
    with pytest.raises(ChangedCodeError, match=r"my_reward.py:score has changed since the rows of .* were made"):
        check_hidden(tmp_path)


def test_rows_say_which_code_they_name(tmp_path: Path) -> None:
    row = {"messages": [], "verifier": "my_reward.py:score", "reference": "1"}
    several = {"verifier": "sum@1", "reference": json.dumps([{"verifier": "deep/other.py:f"}])}
    plain = {"verifier": "gsm8k@1", "reference": "see notes.py:3 and x.py:y"}
    lines = "".join(json.dumps(one) + "\n" for one in (row, several)).encode()
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines))
    pq.write_table(pa.Table.from_pylist([several, plain]), tmp_path / "a.parquet")
    cache = tmp_path / "cache"
    found = ["deep/other.py:f", "my_reward.py:score"]
    assert named_in(tmp_path / "a.jsonl", cache) == named_in(tmp_path / "a.jsonl.gz", cache) == found
    assert named_in(tmp_path / "a.jsonl", cache, ["gsm8k@1"]) == found, "no row of this file names it"
    (tmp_path / "b.jsonl").write_text(json.dumps(plain) + "\n", encoding="utf-8")
    assert "mine@1" not in named_in(tmp_path / "b.jsonl", cache, ["mine@1"])
    assert "gsm8k@1" in named_in(tmp_path / "b.jsonl", cache, ["gsm8k@1"])
    assert named_in(tmp_path / "a.parquet", cache) == named_in(tmp_path / "a.parquet", cache) == found[:1]


@pytest.mark.parametrize(
    ("name", "whether"), [("my_reward.py:score", True), ("a/b.py:f_1", True), ("gsm8k@1", False), ("x.py", False)]
)
def test_a_file_and_a_name_in_it_are_told_from_names_of_verifiers(name: str, whether: bool) -> None:
    assert is_user_code(name) is whether


def test_only_an_answer_with_its_columns_is_unpacked() -> None:
    assert unpacked(with_info("72", unit="kg")) == ("72", {"unit": "kg"})
    for text in ('{"answer": 3}', '{"answer": 3, "info": 4}', '{"answer"', "72", ""):
        assert unpacked(text) == (text, {})


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), "1", [1.0], {"points": 1}, Grade(float("nan"))])
def test_what_is_no_verdict_is_an_error(value: Any) -> None:
    with pytest.raises(TypeError, match="expected a finite number"):
        read(value, listed=False)


@pytest.mark.parametrize("value", [1.0, [], [1.0, 0.0], None])
def test_a_list_must_have_one_number(value: Any) -> None:
    with pytest.raises(TypeError, match="expected a list of one number"):
        read(value, listed=True)


def test_any_subset_of_a_form_s_parameters_is_given() -> None:
    namespace: dict[str, Any] = {}
    exec(
        textwrap.dedent("""
        def one(solution_str, method="flexible"): ...
        def two(*, info, completion): ...
        def three(completions, difficulty=0, **kwargs): ...
        """),
        namespace,
    )
    case = Submission("text", with_info("72", difficulty=3), source="here")
    given = {name: signature(namespace[name]).arguments(case) for name in ("one", "two", "three")}
    assert given["one"] == {"solution_str": "text"}
    assert given["two"] == {"completion": "text", "info": {"difficulty": 3}}
    assert given["three"]["difficulty"] == [3]
    assert given["three"]["answer"] == ["72"]
    exec("def four(completion, /): ...", namespace)
    with pytest.raises(UserCodeError, match="nothing is given for"):
        signature(namespace["four"])
