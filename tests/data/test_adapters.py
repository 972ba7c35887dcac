"""Every public layout on small rows, what is left out by policy, and the real files, of which no row is lost."""

from __future__ import annotations

import json
import re
import tomllib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tercet.data.adapters import ADAPTERS, PAIRS, UNFOLDS, best_paths, fill
from tercet.data.common_adapters import instances
from tercet.data.layouts import LAYOUTS, Skip, recognise
from tercet.data.sources import Reading, load, load_pairs
from tercet.data.user_texts import user_texts
from tercet.recipe import SourceSpec
from tercet.rows import Message, Pair, Row, RowError
from tercet.rows_file import Unreadable
from tercet.verify import verifier

TURNS = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}]
CHAT = (Message("user", "Hi?"), Message("assistant", "Hello."))
ASKED = CHAT[:1]
GPT = [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Hello."}]
BULLETS = json.dumps({"func_name": "verify_bullet_points", "N": 2, "quantifier": None, "word": None})
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def jsonl(*values: Any) -> Path:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(value) + "\n" for value in values))
        return path

    return jsonl


# adapter, a row of the public schema, what it becomes (without id)
PUBLIC: list[tuple[str, dict[str, Any], Row]] = [
    ("tulu_sft", {"messages": TURNS, "source": "ai2/x"}, Row("", CHAT, source="ai2/x")),
    ("rows", {"prompt": "Hi?", "prompt_id": "9", "messages": TURNS, "category": "Chat"}, Row("", CHAT)),  # No Robots
    ("rows", {"problem": "Hi?", "solution": "Hello.", "messages": TURNS}, Row("", CHAT)),  # NuminaMath-TIR
    ("rows", {"prompt": "Hi?", "messages": TURNS, "constraints": ["x"]}, Row("", CHAT)),  # persona sets
    ("wildchat", {"model": "gpt-4-0314", "conversation": [{**t, "toxic": False} for t in TURNS]}, Row("", CHAT)),
    ("inputs_targets", {"inputs": "Hi?", "targets": "Hello.", "task": "cot"}, Row("", CHAT)),  # FLAN v2
    ("inputs_targets", {"inputs": "Hi?", "targets": "Hello.", "language": "English"}, Row("", CHAT)),  # Aya
    (
        "sciriff",
        {"dataset": "science.scifact", "messages": TURNS},
        Row("", CHAT, template="science.scifact"),
    ),
    ("prompt_completion", {"task": "Schema", "prompt": "Hi?", "completion": "Hello."}, Row("", CHAT)),  # TableGPT
    ("prompt_completion", {"category": "x", "prompt": "Hi?", "response": "Hello."}, Row("", CHAT)),  # CoCoNot
    ("prompt_completion", {"prompt": "Hi?", "completion": "Hello.<|endoftext|>"}, Row("", CHAT)),
    ("alpaca", {"instruction": "Hi?", "response": "Hello."}, Row("", CHAT)),  # Evol CodeAlpaca
    ("openmath", {"problem": "Hi?", "generated_solution": "Hello."}, Row("", CHAT)),
    (
        "openmath_gsm8k",
        {"problem": "Hi?", "generated_solution": "Hello.", "problem_source": "augmented_gsm8k"},
        Row("", CHAT),
    ),
    (
        "wildjailbreak",
        {"vanilla": "Hi?", "adversarial": "", "completion": "Hello.", "data_type": "vanilla_benign"},
        Row("", CHAT, skill="safety", template="vanilla_benign"),
    ),
    (
        "wildjailbreak",
        {"vanilla": "no", "adversarial": "Hi?", "completion": "Hello.", "data_type": "adversarial_harmful"},
        Row("", CHAT, skill="safety", template="adversarial_harmful"),
    ),
    (
        "wildguardmix",
        {"prompt": "Hi?", "response": "weak", "prompt_harm_label": "unharmful"},
        Row("", ASKED, skill="safety", template="unharmful"),
    ),
    ("ultrafeedback", {"instruction": "Hi?", "source": "ultrachat"}, Row("", ASKED, template="ultrachat")),
    ("persona", {"persona": "Hi?"}, Row("", ASKED, skill="persona")),
    ("guanaco", {"text": "### Human: Hi?### Assistant: Hello."}, Row("", CHAT)),
    ("kto", {"messages": TURNS, "label": True}, Row("", CHAT)),
    ("question_answer", {"question": "Hi?", "answer": "Hello."}, Row("", CHAT)),
    ("prompt_only", {"idx": 1, "Instruction": "Hi?"}, Row("", ASKED)),
    ("sharegpt_without_tools", {"conversations": GPT, "tools": "[]"}, Row("", CHAT)),
    (
        "rlvr",
        {"messages": TURNS[:1], "ground_truth": "1,200", "dataset": "gsm8k", "constraint": None},
        Row("", ASKED, skill="words", verifier="gsm8k@1", reference="1200"),
    ),
    (
        "rlvr",
        {"messages": TURNS, "ground_truth": "(1,2)", "dataset": "MATH"},
        Row("", ASKED, skill="maths", verifier="math_flex@1", reference="(1,2)"),
    ),
    (
        "rlvr",
        {"messages": TURNS[:1], "ground_truth": BULLETS, "dataset": "ifeval", "constraint_type": "Bullets"},
        Row("", ASKED, skill="constraints", verifier="tulu_if@1", reference=BULLETS, template="Bullets"),
    ),
    (
        "math_prompt",
        {"problem": "Hi?", "level": "Level 1", "type": "Algebra", "solution": "so $\\boxed{3}$"},
        Row("", ASKED, skill="maths", verifier="math@2", reference="so $\\boxed{3}$", template="Algebra"),
    ),
    (
        "gsm8k_prompt",
        {"question": "Hi?", "answer": "So.\n#### 3"},
        Row("", ASKED, skill="words", verifier="gsm8k@2", reference="3"),
    ),
]


@pytest.mark.parametrize(("adapter", "raw", "row"), PUBLIC)
def test_a_public_row_becomes_a_conversation(adapter: str, raw: dict[str, Any], row: Row) -> None:
    made = ADAPTERS[adapter]({**raw, "id": "a"}, "here")
    assert made == Row("a", row.messages, row.source, row.skill, row.verifier, row.reference, row.template)
    assert set(made.user_turns) <= set(user_texts(raw, "here"))


@pytest.mark.parametrize(
    ("adapter", "raw", "reason"),
    [
        ("wildchat", {"model": "gpt-3.5-turbo", "conversation": TURNS}, "not answered by GPT-4"),
        ("ultrafeedback", {"instruction": "Hi?", "source": "truthful_qa"}, "TruthfulQA part"),
        ("ultrafeedback", {"instruction": "Hi?", "source": "sharegpt"}, "ShareGPT part"),
        ("sciriff", {"dataset": "tulu_v2", "messages": TURNS}, "no science task"),
        ("openmath_gsm8k", {"problem_source": "math", "problem": "", "generated_solution": ""}, "not grown from GSM8K"),
        ("kto", {"messages": TURNS, "label": False}, "labelled bad"),
        ("sharegpt_without_tools", {"conversations": [*GPT, {"from": "function_call", "value": ""}]}, "calls a tool"),
        ("math_prompt", {"problem": "Hi?", "answer": None}, "has no answer"),
    ],
)
def test_what_is_left_out_by_policy_says_why(adapter: str, raw: dict[str, Any], reason: str) -> None:
    with pytest.raises(Skip, match=reason):
        ADAPTERS[adapter]({**raw, "id": "a"}, "here")
    assert user_texts(raw, "here")  # decontamination of files looks at it all the same


@pytest.mark.parametrize(
    ("adapter", "raw", "message"),
    [
        ("wildchat", {"model": "gpt-4", "conversation": None}, "expected a 'messages' list"),
        ("inputs_targets", {"inputs": "Hi?", "targets": None}, "expected text under targets"),
        ("guanaco", {"text": "Hi?"}, r"a dialogue that opens with .*got 'Hi\?'"),
        (
            "kto",
            {"messages": TURNS, "label": "perhaps"},
            r"expected true or false \(good or bad\) under label, got 'perhaps'",
        ),
        ("prompt_only", {"topic": "x"}, "expected text under one of prompt, instruction"),
        ("wildjailbreak", {"data_type": "adversarial_benign", "completion": "x"}, "expected text under adversarial"),
        ("rlvr", {"messages": TURNS, "ground_truth": "3", "dataset": "mine"}, "no verifier for the data set 'mine'"),
        ("rlvr", {"messages": TURNS, "ground_truth": " ", "dataset": "math"}, "has an empty reference answer"),
        ("rlvr", {"messages": TURNS, "ground_truth": "[[]]", "dataset": "ifeval"}, "here: "),
        ("rlvr", {"messages": TURNS, "ground_truth": '{"func_name": "x"}', "dataset": "ifeval"}, "here: .*'x'"),
        ("gsm8k_prompt", {"question": "Hi?", "answer": "3"}, "must end in '#### NUMBER'"),
    ],
)
def test_a_row_that_does_not_fit_is_refused_with_its_place(adapter: str, raw: dict[str, Any], message: str) -> None:
    with pytest.raises(RowError, match=rf"^here: .*{message.removeprefix('here: ')}"):
        ADAPTERS[adapter]({**raw, "id": "a"}, "here")


def tree(*messages: tuple[str, str, str, float | None]) -> list[tuple[dict[str, Any], str]]:
    """Messages (id, parent, role, quality) of OASST's layout; without a quality the message has no labels."""
    return [
        (
            {
                "message_id": name,
                "parent_id": parent or None,
                "role": role,
                "text": f"text of {name}",
                "deleted": name.startswith("gone"),
                "labels": None if quality is None else {"name": ["spam", "quality"], "value": [0.9, quality]},
            },
            f"row {number}",
        )
        for number, (name, parent, role, quality) in enumerate(messages, 1)
    ]


def test_oasst_follows_the_best_reply_of_each_tree() -> None:
    made = list(
        best_paths(
            tree(
                ("q", "", "prompter", None),
                ("a1", "q", "assistant", 0.5),
                ("a2", "q", "assistant", 0.75),
                ("a3", "q", "assistant", 0.75),
                ("gone", "q", "assistant", 1.0),
                ("q2", "a2", "prompter", None),
                ("b", "q2", "assistant", None),
                ("other", "a1", "prompter", 1.0),
                ("open", "", "prompter", 0.5),
                ("x", "open", "assistant", 0.5),
                ("late", "x", "prompter", 0.5),
            )
        )
    )
    rows = [ADAPTERS["oasst"](raw, where) for raw, where in made if "messages" in raw]
    assert [(row.id, [turn.content for turn in row.messages]) for row in rows] == [
        ("q", ["text of q", "text of a2", "text of q2", "text of b"])
    ]
    assert [turn.role for turn in rows[0].messages] == ["user", "assistant"] * 2
    reasons = Counter()
    for raw, where in made:
        if "messages" not in raw:
            with pytest.raises(Skip) as caught:
                ADAPTERS["oasst"]({**raw, "id": "a"}, where)
            reasons[str(caught.value)] += 1
    assert reasons == {
        "deleted": 1,
        "not on the best path of its tree": 3,
        "its path ends in a question without an answer": 3,
    }


def test_oasst_refuses_a_message_that_is_none(write: Write) -> None:
    with pytest.raises(RowError, match=r"rows\.jsonl, row 1: expected text under role"):
        list(load(SourceSpec(path=str(write({"message_id": "q", "text": "Hi?"})), adapter="oasst"), {}, {}, Reading()))
    with pytest.raises(RowError, match=r"row 1: a message is from 'robot'"):
        list(best_paths(tree(("q", "", "robot", None))))
    with pytest.raises(RowError, match=r"row 2: expected a message_id of its own and the parent's id, got 'q'"):
        list(best_paths(tree(("q", "", "prompter", None), ("q", "q", "assistant", None))))
    (raw, where), *_ = tree(("q", "", "prompter", 0.5))
    with pytest.raises(RowError, match="row 1: expected lists of name and value under labels"):
        list(best_paths([({**raw, "labels": {"name": "quality"}}, where)]))
    with pytest.raises(RowError, match="row 1: expected a number as quality"):
        list(best_paths([({**raw, "labels": {"name": ["quality"], "value": ["good"]}}, where)]))


def test_each_instance_of_a_task_is_a_row() -> None:
    pair = [{"input": "1", "output": "2"}, {"input": "", "output": "3"}]
    made = list(instances([({"id": "t", "instruction": "Add.", "instances": pair}, "row 1")]))
    rows = [ADAPTERS["self_instruct"](raw, where) for raw, where in made]
    assert [(row.id, row.user_turns, row.answer) for row in rows] == [
        ("t-1", ["Add.\n\n1"], "2"),
        ("t-2", ["Add."], "3"),
    ]
    ((bad, _),) = instances([({"instruction": "Add.", "instances": ["x"]}, "row 1")])
    assert isinstance(bad, Unreadable)
    assert "row 1: expected text under instruction and a list of objects under instances" in str(bad.error)


def test_worked_examples_stand_before_the_question_in_one_turn(tmp_path: Path, write: Write) -> None:
    def behind(adapter: str, raw: dict[str, Any], examples: list[Any]) -> list[Row]:
        (tmp_path / "shots.json").write_text(json.dumps(examples))
        shown = {"path": str(tmp_path / "shots.json")}
        source = {"path": str(write(raw)), "adapter": adapter, "require_answer": False, "examples": shown}
        return list(load(SourceSpec(**source), {}, {}, Reading()))

    problem = {"question": "Hi?", "answer": "#### 3"}
    shots = [{"question": f"{n} + 1?", "answer": f"So the answer is {n + 1}."} for n in range(9)]
    (row,) = behind("gsm8k_prompt", problem, shots)
    (text,) = row.user_turns
    assert text.startswith("Question: 0 + 1?\nAnswer: So the answer is 1.\n\nQuestion: 1 + 1?")
    assert text.endswith("So the answer is 8.\n\nQuestion: Hi?\nAnswer:")
    assert text.count("Question:") == 9  # 8 shots and the question
    with pytest.raises(RowError, match="expected 8 worked examples, got 7"):
        behind("gsm8k_prompt", problem, shots[:7])
    with pytest.raises(RowError, match="worked example 1: expected text under answer"):
        behind("gsm8k_prompt", problem, [{"question": "x", "answer": 3}] * 8)
    (row,) = behind("math_prompt", {"problem": "Hi?", "answer": "3"}, [{"problem": "P", "solution": "S "}] * 3)
    assert row.user_turns == ["Problem:\nP\n\nSolution:\nS\n\n" * 3 + "Problem:\nHi?\n\nSolution:"]


def test_the_real_examples_stand_before_the_real_problems(shared_data: Path) -> None:
    for adapter, file, shots, problems, opening in (
        ("gsm8k_prompt", "gsm8k_cot_8", 8, "gsm8k/train.jsonl.gz", "Question: "),
        ("math_prompt", "minerva_math_4", 3, "math/train_answers.json.gz", "Problem:\n"),
    ):
        source = {"path": str(shared_data / "train" / problems), "adapter": adapter, "require_answer": False}
        examples = {"path": str(shared_data / "eval" / "fewshot" / f"{file}.json")}
        zero, few = (next(load(SourceSpec(**source, examples=some), {}, {}, Reading())) for some in (None, examples))
        assert few.reference == zero.reference
        assert few.user_turns[0].count(opening) == shots + 1
        assert zero.user_turns[0] in few.user_turns[0]
        assert opening not in zero.user_turns[0]


def test_a_published_reference_is_one_its_verifier_can_grade() -> None:
    graded = [(adapter, raw) for adapter, raw, row in PUBLIC if row.verifier]
    for adapter, raw in graded:
        row = ADAPTERS[adapter]({**raw, "id": "a"}, "here")
        assert verifier(row.verifier)("no", row.reference).outcome in ("graded", "unparsed")


def test_the_template_is_filled_and_an_empty_slot_is_refused(write: Write) -> None:
    spec = SourceSpec(path=str(write({"instruction": "Who?", "output": "I am {{ name }} of {{maker}}."})))
    spec = spec.model_copy(update={"adapter": "hardcoded", "values": {"name": "Trio", "maker": "us"}})
    (row,) = load(spec, {}, {}, Reading())
    assert row.answer == "I am Trio of us."
    with pytest.raises(RowError, match="row 1: no value for the slot maker of this template; the values given: name"):
        list(load(spec.model_copy(update={"values": {"name": "Trio"}}), {}, {}, Reading()))
    values = dict.fromkeys(("name", "maker", "base", "licence", "page", "about_maker"), "Trio")
    rows = list(load(SourceSpec(path="tercet:hardcoded", adapter="hardcoded", values=values), {}, {}, Reading()))
    assert len(rows) == 12
    assert not any("{" in turn.content for row in rows for turn in row.messages)
    assert fill(Row("a", CHAT), {}, "here") == Row("a", CHAT)


GOOD, BAD = "Hello.", "Go."
PAIR = Pair("a", CHAT, (*ASKED, Message("assistant", BAD)))


@pytest.mark.parametrize(
    ("adapter", "raw"),
    [
        (
            "preference",
            {"prompt": "Hi?", "chosen": TURNS, "rejected": [TURNS[0], {"role": "assistant", "content": BAD}]},
        ),
        ("prompt_pair", {"prompt": "Hi?", "chosen": GOOD, "rejected": BAD}),
        (
            "sharegpt_pair",
            {
                "conversations": GPT[:1],
                "chosen": {"from": "gpt", "value": GOOD},
                "rejected": {"from": "gpt", "value": BAD},
            },
        ),
        (
            "hh",
            {
                "chosen": f"\n\nHuman: Hi?\n\nAssistant: {GOOD}",
                "rejected": f"\n\nHuman: Hi?\n\nAssistant: {BAD}",
            },
        ),
        (
            "ultrafeedback_pair",
            {
                "source": "ultrachat",
                "chosen": TURNS,
                "rejected": [TURNS[0], {"role": "assistant", "content": BAD}],
            },
        ),
    ],
)
def test_a_public_preference_becomes_a_pair(write: Write, adapter: str, raw: dict[str, Any]) -> None:
    pair = PAIRS[adapter]({**raw, "id": "a"}, "here")
    assert (pair.prompt, pair.chosen, pair.rejected) == (PAIR.prompt, PAIR.chosen, PAIR.rejected)
    assert user_texts(raw, "here") == ["Hi?"]
    source = SourceSpec(path=str(write({**raw, "id": "a"})), adapter=adapter)
    (read,) = load_pairs(source, {}, {}, Reading())
    assert read.source == raw.get("source", "rows.jsonl")
    (row,) = load(source, {}, {}, Reading())
    assert row.messages == CHAT  # the chosen side


def test_the_published_pair_keeps_its_ratings_and_models() -> None:
    side = [TURNS[0], {"role": "assistant", "content": BAD}]
    more = {"chosen_rating": 4.5, "rejected_rating": 2.0, "chosen_model": "m", "rejected_model": "n", "source": "s"}
    pair = PAIRS["preference"]({"id": "a", "chosen": TURNS, "rejected": side, **more}, "here")
    assert {name: getattr(pair, name) for name in more} == more


@pytest.mark.parametrize(
    ("adapter", "raw", "error", "message"),
    [
        ("preference", {"chosen": TURNS, "rejected": "x"}, RowError, "expected a list of messages under rejected"),
        ("preference", {"chosen": TURNS, "rejected": TURNS[:1]}, RowError, "differ only in a last assistant turn"),
        ("preference", {"chosen": TURNS, "rejected": TURNS}, Skip, "the same text"),
        ("prompt_pair", {"prompt": "Hi?", "chosen": GOOD, "rejected": " "}, Skip, "an answer is empty"),
        ("ultrafeedback_pair", {"source": "sharegpt"}, Skip, "ShareGPT part"),
        ("hh", {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: d"}, Skip, "differ"),
        ("hh", {"chosen": "\n\nHuman: a", "rejected": "\n\nHuman: a"}, RowError, "must end with the assistant"),
        ("sharegpt_pair", {"conversations": GPT[:1], "chosen": GPT[0], "rejected": GPT[1]}, RowError, "of the user"),
    ],
)
def test_a_pair_nothing_can_be_learnt_from_is_not_kept(
    adapter: str, raw: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        PAIRS[adapter]({**raw, "id": "a"}, "here")


def test_an_adapter_of_rows_gives_no_pairs(write: Write) -> None:
    with pytest.raises(RowError, match="'rows' gives no pairs; the adapters of pairs are hh, implicit_pair"):
        list(load_pairs(SourceSpec(path=str(write({"messages": TURNS})), adapter="rows"), {}, {}, Reading()))


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        ({"messages": TURNS, "source": "s"}, "rows"),
        ({"conversations": GPT}, "sharegpt"),
        ({"instruction": "Hi?", "input": "", "output": "Hello."}, "alpaca"),
        ({"prompt": "Hi?", "completion": "Hello."}, "prompt_completion"),
        ({"prompt": "Hi?", "chosen": GOOD, "rejected": BAD}, "prompt_pair"),
        ({"prompt": "Hi?", "chosen": TURNS, "rejected": TURNS}, "preference"),
        ({"question": "Hi?", "answer": "#### 3"}, "gsm8k"),
        ({"question": "Hi?", "answer": "Hello."}, "question_answer"),
        ({"input": "Bonjour", "output": "Hello", "instruction": "Translate."}, "alpaca"),
        ({"messages": TURNS, "ground_truth": "3", "dataset": "gsm8k"}, "rlvr"),
        ({"message_id": "a", "parent_id": None, "role": "prompter", "text": "Hi?"}, "oasst"),
        ({"vanilla": "Hi?", "adversarial": None, "completion": "x", "data_type": "y"}, "wildjailbreak"),
        ({"instruction": "Hi?"}, "prompt_only"),
    ],
)
def test_a_layout_is_recognised_and_said(write: Write, raw: dict[str, Any], name: str) -> None:
    assert recognise([raw, raw]).adapter == name
    reading = Reading()
    source = SourceSpec(path=str(write(raw)), adapter="auto", require_answer=False)
    list(load(source, {}, {}, reading))
    (said,) = reading.said
    assert said.startswith(f"rows.jsonl is read as {name!r}: every row has ")
    assert user_texts(raw, "here")


def test_every_recognised_layout_has_an_adapter_and_strangers_have_none() -> None:
    assert {layout.adapter for layout in LAYOUTS if layout.gives != "nothing"} <= {*ADAPTERS, *PAIRS}
    with pytest.raises(RowError, match=r"no known layout fits rows with the keys a, b / c; name an `adapter`"):
        recognise([{"a": 1, "b": 2}, {"c": 3}])
    with pytest.raises(RowError, match="the file is empty"):
        recognise([])


NAMES = sorted(
    {"chosen_rating", "labels", "deleted", "system", "source"}
    | {key for _, raw, _ in PUBLIC for key in raw}
    | {key for layout in LAYOUTS for key in layout.keys}
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()


def turns_of(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Lists of what resembles a turn, a label or an instance."""
    names = ("role", "content", "from", "value", "name", "input", "output")
    return st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys(names, inner)), max_size=3)


VALUES = st.recursive(
    SCALARS | st.sampled_from(["gpt-4", "science.x", "ifeval", "MATH", "#### 3", "### Human: a", "\n\nHuman: a"]),
    lambda inner: (
        st.lists(inner, max_size=3) | turns_of(inner) | st.dictionaries(st.text(max_size=5), inner, max_size=2)
    ),
    max_leaves=4,
)
RAWS = st.one_of(
    st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=5),
    st.sampled_from([raw for _, raw, _ in PUBLIC]).flatmap(
        lambda raw: st.dictionaries(st.sampled_from(sorted(raw)), VALUES, max_size=2).map(
            lambda other: {**raw, **other}
        )
    ),
)


def outcome(call: Callable[[], Any]) -> Any:
    """What a call gives, or the skip or refusal it ends in."""
    try:
        return call()
    except (Skip, RowError) as error:
        return error


@settings(max_examples=500)
@given(RAWS)
def test_whatever_comes_is_kept_left_out_or_refused(raw: dict[str, Any]) -> None:
    for name, adapt in {**ADAPTERS, **PAIRS}.items():
        unfold = UNFOLDS.get(name, iter)
        raws = outcome(lambda unfold=unfold: list(unfold(iter([(dict(raw), "here")]))))
        if isinstance(raws, RowError):
            assert str(raws).startswith("here")
            continue
        for value, where in raws:
            made = outcome(lambda adapt=adapt, value=value, where=where: adapt({**value, "id": "a"}, where))
            if isinstance(made, RowError):
                assert str(made).startswith("here")
            elif not isinstance(made, Skip):
                turns = made.messages if isinstance(made, Row) else (*made.chosen, *made.rejected)
                assert all(isinstance(turn.content, str) for turn in turns)
    layout = outcome(lambda: recognise([raw]))
    assert (
        re.search("no known layout|are not read", str(layout))
        if isinstance(layout, RowError)
        else layout.adapter in {*ADAPTERS, *PAIRS}
    )


# file, rows in its description, adapter, what "auto" says (where it is another or none), left out
REAL: list[tuple[str, int, str, str, dict[str, int]]] = [
    ("train/gsm8k/train.jsonl.gz", 7473, "gsm8k_prompt", "gsm8k", {}),
    ("train/math/train_answers.json.gz", 7474, "math_prompt", "", {"has no answer": 4}),
    ("train/coconot/coconot_pref.jsonl.gz", 927, "prompt_pair", "", {}),
    ("train/llamafactory_demo/dpo_en_demo.json.gz", 300, "sharegpt_pair", "", {}),
    ("train/llamafactory_demo/kto_en_demo.json.gz", 300, "kto", "", {"labelled bad": 150}),
    ("train/llamafactory_demo/alpaca_en_demo.json.gz", 999, "alpaca", "", {}),
    ("train/llamafactory_demo/glaive_toolcall_en_demo.json.gz", 300, "sharegpt", "", {}),
    (
        "train/llamafactory_demo/glaive_toolcall_en_demo.json.gz",
        300,
        "sharegpt_without_tools",
        "sharegpt",
        {"calls a tool": 153},
    ),
    ("train/llamafactory_demo/identity.json.gz", 91, "hardcoded", "alpaca", {}),
    ("train/gpteacher/roleplay-instruct.json.gz", 1923, "alpaca", "", {}),
    ("train/gpteacher/codegen-instruct.json.gz", 4535, "alpaca", "", {}),
    ("train/codealpaca/code_alpaca_2k.json.gz", 2017, "alpaca", "", {"empty answer": 2}),
    ("train/oasst_qlora/oa_questions.jsonl.gz", 953, "guanaco", "", {}),
    ("train/t0_sample/t0_10_per_template.jsonl.gz", 2818, "prompt_completion", "", {"empty answer": 70}),
    ("train/self_instruct/seed_tasks.jsonl", 175, "self_instruct", "", {}),
    ("train/self_instruct/user_oriented_instructions.jsonl", 252, "self_instruct", "", {}),
    ("train/wizardlm/WizardLM_testset.jsonl", 218, "prompt_only", "", {}),
    ("train/instruction_wild/seed_prompts_en.jsonl", 429, "prompt_only", "", {}),
    ("train/harmful_questions/harmfulqa.json", 1960, "prompt_tree", "none", {}),
    ("train/harmful_questions/dangerousqa.json", 200, "prompt_tree", "none", {}),
    (
        "train/hh_rlhf/harmless-base-test.jsonl.gz",
        2312,
        "hh",
        "",
        {"an answer is empty": 4, "the dialogues differ before the last answer": 5},
    ),
    ("personas/persona_hub/tool.jsonl.gz", 5000, "persona", "", {}),
    ("personas/persona_hub/personas.jsonl", 5000, "persona", "", {}),
]


@pytest.mark.parametrize(("name", "count", "adapter", "said", "left_out"), REAL)
def test_no_row_of_a_real_file_is_lost(
    shared_data: Path, name: str, count: int, adapter: str, said: str, left_out: dict[str, int]
) -> None:
    reading, values = Reading(), {"name": "Trio", "author": "us"} if adapter == "hardcoded" else {}
    source = SourceSpec(path=str(shared_data / name), adapter=adapter, require_answer=False, values=values)
    made = [*load(source, {}, {}, reading)]
    assert (reading.read, reading.kept) == (count, len(made))
    assert reading.kept + reading.skipped.total() == count
    assert reading.skipped == left_out
    assert len({row.id for row in made}) == len(made)
    if said != "none":
        auto = Reading()
        next(load(source.model_copy(update={"adapter": "auto"}), {}, {}, auto))
        assert f" is read as {said or adapter!r}: " in auto.said[0]


def test_every_real_file_is_tried(shared_data: Path) -> None:
    files = {
        str(file.relative_to(shared_data))
        for folder in ("train", "personas")
        for file in (shared_data / folder).rglob("*.json*")
    }
    assert files == {name for name, *_ in REAL}


@pytest.mark.parametrize(
    ("hub", "split", "adapter", "count"),
    [
        ("openai/gsm8k", "train", "gsm8k_prompt", 7473),
        ("EleutherAI/hendrycks_math", "train", "math_prompt", 7470),
        ("Anthropic/hh-rlhf", "test", "hh", 2303),
        ("proj-persona/PersonaHub", "train", "persona", 5000),
        ("allenai/coconot", "pref", "prompt_pair", 927),
    ],
)
def test_the_mirror_stands_for_the_hub(
    shared_data: Path, mirror: Path, hub: str, split: str, adapter: str, count: int
) -> None:
    table = tomllib.loads(mirror.read_text())["mirror"]
    local = {name: str(mirror.parent / path) for name, path in table.items()}
    source = SourceSpec(path=hub, split=split, adapter=adapter, require_answer=False)
    assert len(list(load(source, {}, local, Reading()))) == count
