"""`code@1`: pass rates by asserts and by input and output, in the sandbox; lies and accidents earn nothing."""

from __future__ import annotations

import json

import pytest

from tercet.verify import VerifierError, verifier
from tercet.verify.code import code

pytestmark = pytest.mark.usefixtures("isolated")

DOUBLE = "```python\ndef double(x):\n    return 2 * x\n```"
ASSERTS = ["assert double(1) == 2", "assert double(2) == 4", "assert double(3) == 7", "assert double(0) == 1"]
ECHO = "```python\nimport sys\nfor line in sys.stdin:\n    print(int(line) * 2, end='  \\n')\n```"


def asserts(*tests: str, **options: object) -> str:
    return json.dumps({"tests": list(tests), "seconds": 5} | options)


def pairs(*tests: tuple[str, str], **options: object) -> str:
    return json.dumps({"stdin": [{"input": a, "output": b} for a, b in tests], "seconds": 5} | options)


def test_the_score_is_the_share_of_tests_passed() -> None:
    assert code(DOUBLE, asserts(*ASSERTS[:2])).score == 1
    grade = code(DOUBLE, asserts(*ASSERTS))
    assert (grade.score, grade.outcome) == (0.5, "graded")
    assert grade.numbers == {"passed": 2, "tests": 4}
    assert grade.detail.startswith("AssertionError")
    assert code(DOUBLE, json.dumps([ASSERTS[2]])).score == 0


def test_below_the_threshold_there_is_nothing() -> None:
    assert code(DOUBLE, asserts(*ASSERTS, threshold=0.5)).score == 0.5
    assert code(DOUBLE, asserts(*ASSERTS, threshold=0.6)).score == 0


def test_the_last_block_counts_and_a_text_without_fences_is_the_program() -> None:
    right, wrong = DOUBLE, DOUBLE.replace("2 *", "3 *")
    assert code(f"{wrong}\nBetter:\n{right}\nDone.", asserts(ASSERTS[0])).score == 1
    assert code(f"{right}\nBetter:\n{wrong}", asserts(ASSERTS[0])).score == 0
    assert code(f"{right}\n```bash\nls\n```", asserts(ASSERTS[0])).score == 1
    assert code("def double(x):\n    return x + x\n", asserts(ASSERTS[0])).score == 1


@pytest.mark.parametrize("completion", ["", "I cannot do that.", "```\n\n```", "```json\n{}\n```"])
def test_without_code_nothing_is_run(completion: str) -> None:
    grade = code(completion, asserts(ASSERTS[0]))
    assert (grade.score, grade.outcome) == (0.0, "unparsed")


@pytest.mark.parametrize(
    "body",
    [
        "def double(x:\n    return 2 * x",
        "raise ValueError('no')",
        "import os\nos._exit(0)",
        "exit()",
        "import socket\nx",
    ],
)
def test_a_program_that_fails_before_its_tests_fails_them_all(body: str) -> None:
    grade = code(f"```python\n{body}\n```", asserts(*ASSERTS))
    assert (grade.score, grade.outcome) == (0.0, "graded")
    assert grade.numbers == {"passed": 0, "tests": 4}


def test_each_test_has_its_own_time() -> None:
    slow = "```python\ndef double(x):\n    while x == 2:\n        pass\n    return 2 * x\n```"
    grade = code(slow, asserts(*ASSERTS[:2], seconds=1))
    assert (grade.score, grade.outcome) == (0.5, "timeout")


def test_a_program_reads_its_input_and_its_output_is_compared_by_line() -> None:
    grade = code(ECHO, pairs(("1\n2\n", "2\n4"), ("5", "10\n\n"), ("7", "15")))
    assert grade.score == pytest.approx(2 / 3)
    assert grade.detail == "expected '15', got '14'"


@pytest.mark.parametrize(
    "body",
    [
        "print(int(input()) * 2)\nexit()",
        "def main():\n    print(int(input()) * 2)\nif __name__ == '__main__':\n    main()",
        "import sys\nprint('working', file=sys.stderr)\nsys.stdout.write(str(int(sys.stdin.read()) * 2))\nsys.exit(0)",
        "import os\nprint(int(os.read(0, 9)) * 2)",
    ],
)
def test_the_usual_ways_of_whole_programs_work(body: str) -> None:
    assert code(f"```\n{body}\n```", pairs(("4\n", "8"))).score == 1


def test_a_program_that_breaks_after_its_output_fails() -> None:
    for end in ("raise ValueError", "exit(3)", "input()", "sys.exit(0)"):
        assert code(f"```\nprint(int(input()) * 2)\n{end}\n```", pairs(("4\n", "8"))).score == 0


def test_long_output_is_compared_whole() -> None:
    text = "".join(f"{i}\n" for i in range(30_000))
    body = "```\nfor i in range(int(input())):\n    print(i)\n```"
    assert code(body, pairs(("30000", text))).score == 1
    assert code(body, pairs(("30000", "x" + text[1:]))).score == 0


def test_the_network_and_other_files_are_out_of_reach(tmp_path) -> None:
    (tmp_path / "answer").write_text("8")
    body = f"print(open({str(tmp_path / 'answer')!r}).read())"
    assert code(f"```\n{body}\n```", pairs(("4\n", "8"))).score == 0


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("no", "expects a reference answer in JSON"),
        ("[]", "tests that are statements"),
        ("3", "expects as reference answer"),
        ('["assert f("]', "tests that are statements"),
        ('{"tests": ["assert f()"], "stdin": []}', "expects as reference answer"),
        ('{"tests": ["assert f()"], "limit": 3}', "expects as reference answer"),
        ('{"stdin": [{"input": "1"}]}', "texts of input and output"),
        ('{"stdin": []}', "tests that are statements"),
        ('{"tests": ["assert f()"], "seconds": 0}', "seconds above 0"),
        ('{"tests": ["assert f()"], "threshold": 2}', "threshold from 0 to 1"),
    ],
)
def test_a_malformed_reference_is_refused(bad: str, message: str) -> None:
    with pytest.raises(VerifierError) as caught:
        verifier("code@1")("", bad)
    assert message in str(caught.value)
