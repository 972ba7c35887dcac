"""One row of every layout that is read, and what it must become, written by hand; `docs/layouts.md` shows them."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

USER, ANSWER = {"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}
BAD = {"role": "assistant", "content": "Go."}
ASKED, TOLD, WRONG = (
    {"from": "human", "value": "Hi?"},
    {"from": "gpt", "value": "Hello."},
    {"from": "gpt", "value": "Go."},
)
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
CALLED = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
CHAT = ("user: Hi?", "assistant: Hello.")
BULLETS = json.dumps({"func_name": "verify_bullet_points", "N": 2, "quantifier": None, "word": None})


class Case(NamedTuple):
    """A row, the turns it becomes ("role: text"), and what of them is trained (without the token that ends a turn)."""

    name: str
    adapter: str
    row: dict[str, Any]
    turns: tuple[str, ...] = CHAT
    trained: tuple[str, ...] = ("Hello.",)
    verifier: str = ""
    reference: str = ""
    rejected: str = ""  # the other answer of a pair
    good: bool | None = None  # the mark of an unpaired answer
    tools: bool = False


def pair(name: str, adapter: str, row: dict[str, Any], *, turns: tuple[str, ...] = CHAT) -> Case:
    """A pair whose answers are "Hello." and "Go."."""
    return Case(name, adapter, row, turns, rejected="Go.")


def unpaired(name: str, row: dict[str, Any], *, good: bool = True) -> Case:
    """An answer marked good, or bad: then nothing is trained."""
    turns = CHAT if good else ("user: Hi?", "assistant: Go.")
    return Case(name, "kto", row, turns, ("Hello.",) if good else (), good=good)


def prompt(name: str, adapter: str, row: dict[str, Any], verifier: str = "", reference: str = "") -> Case:
    """A question that waits for its answer."""
    return Case(name, adapter, row, CHAT[:1], (), verifier, reference)


CONVERSATIONS = [
    Case("OpenAI messages", "rows", {"messages": [USER, ANSWER]}),
    Case(
        "messages with a system column",
        "rows",
        {"system": "Be kind.", "messages": [USER, ANSWER]},
        ("system: Be kind.", *CHAT),
    ),
    Case(
        "messages with a developer turn",
        "rows",
        {"messages": [{"role": "developer", "content": "Be kind."}, USER, ANSWER]},
        ("system: Be kind.", *CHAT),
    ),
    Case(
        "messages with content in parts",
        "rows",
        {
            "messages": [
                {"role": one["role"], "content": [{"type": "text", "text": one["content"]}]} for one in (USER, ANSWER)
            ]
        },
    ),
    Case(
        "messages with tools and calls",
        "rows",
        {
            "messages": [
                USER,
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                {"role": "tool", "content": "9", "tool_call_id": "c1"},
                ANSWER,
            ],
            "tools": TOOLS,
        },
        ("user: Hi?", "assistant: ", "tool: 9", "assistant: Hello."),
        (CALLED, "Hello."),
        tools=True,
    ),
    Case(
        "messages that end in a call",
        "rows",
        {"messages": [USER, {**ANSWER, "tool_calls": [CALL]}], "tools": json.dumps(TOOLS)},
        trained=(f"Hello.\n{CALLED}",),
        tools=True,
    ),
    Case(
        "messages with a function call of the old kind",
        "rows",
        {
            "messages": [USER, {"role": "assistant", "content": None, "function_call": CALL["function"]}],
            "functions": [TOOLS[0]["function"]],
        },
        ("user: Hi?", "assistant: "),
        (CALLED,),
        tools=True,
    ),
    *(
        Case(
            f"messages with {field}",
            "rows",
            {"messages": [USER, {**ANSWER, field: "They greet."}]},
            trained=("<think>\nThey greet.\n</think>\n\nHello.",),
        )
        for field in ("reasoning_content", "thinking")
    ),
    Case(
        "messages with a thought in parts",
        "rows",
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "Hi?"}]},
                {
                    "role": "assistant",
                    "content": [{"type": "thinking", "thinking": "They greet."}, {"type": "text", "text": "Hello."}],
                },
            ]
        },
        trained=("<think>\nThey greet.\n</think>\n\nHello.",),
    ),
    Case(
        "messages with a weight",
        "rows",
        {"messages": [USER, {**BAD, "weight": 0}, {"role": "user", "content": "Again?"}, {**ANSWER, "weight": 1}]},
        ("user: Hi?", "assistant: Go.", "user: Again?", "assistant: Hello."),
    ),
    Case(
        "messages with a train mark",
        "rows",
        {"messages": [USER, {**ANSWER, "train": True}, {"role": "user", "content": "Again?"}, {**BAD, "train": False}]},
        ("user: Hi?", "assistant: Hello.", "user: Again?", "assistant: Go."),
    ),
    Case("messages as JSON text", "rows", {"messages": json.dumps([USER, ANSWER])}),
    Case(
        "messages as a struct of lists",
        "rows",
        {"messages": {"role": ["user", "assistant"], "content": ["Hi?", "Hello."]}},
    ),
    Case("ShareGPT", "sharegpt", {"conversations": [ASKED, TOLD]}),
    Case("ShareGPT with role and content", "sharegpt", {"conversations": [USER, ANSWER]}),
    Case(
        "ShareGPT with a system text, tools and calls",
        "sharegpt",
        {
            "system": "Be kind.",
            "tools": json.dumps(TOOLS),
            "conversations": [
                ASKED,
                {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Oslo"}}'},
                {"from": "observation", "value": "9"},
                TOLD,
            ],
        },
        ("system: Be kind.", "user: Hi?", "assistant: ", "tool: 9", "assistant: Hello."),
        (CALLED, "Hello."),
        tools=True,
    ),
    Case(
        "ShareGPT with a weight",
        "sharegpt",
        {"conversations": [ASKED, WRONG | {"weight": 0}, ASKED, TOLD | {"weight": 1}]},
        ("user: Hi?", "assistant: Go.", *CHAT),
    ),
    Case("WildChat", "wildchat", {"conversation": [USER, ANSWER], "model": "gpt-4"}),
    Case("a conversation column", "rows", {"conversation": [USER, ANSWER]}),
]
EXCHANGES = [
    Case(
        "Alpaca",
        "alpaca",
        {"instruction": "Greet.", "input": "Hi?", "output": "Hello."},
        ("user: Greet.\n\nHi?", CHAT[1]),
    ),
    Case(
        "Alpaca with a system text and a history",
        "alpaca",
        {"instruction": "Hi?", "input": "", "output": "Hello.", "system": "Be kind.", "history": [["One?", "Two."]]},
        ("system: Be kind.", "user: One?", "assistant: Two.", *CHAT),
        ("Two.", "Hello."),
    ),
    Case("Alpaca with a response", "alpaca", {"instruction": "Hi?", "response": "Hello."}),
    Case("prompt and completion", "prompt_completion", {"prompt": "Hi?", "completion": "Hello."}),
    Case("prompt and completion in turns", "prompt_completion", {"prompt": [USER], "completion": [ANSWER]}),
    Case("prompt and response", "prompt_completion", {"prompt": "Hi?", "response": "Hello."}),
    Case("inputs and targets", "inputs_targets", {"inputs": "Hi?", "targets": "Hello."}),
    Case("question and answer", "question_answer", {"question": "Hi?", "answer": "Hello."}),
    Case(
        "OpenOrca",
        "question_answer",
        {"system_prompt": "Be kind.", "question": "Hi?", "response": "Hello."},
        ("system: Be kind.", *CHAT),
    ),
    Case("problem and solution", "question_answer", {"problem": "Hi?", "solution": "Hello."}),
    Case("query and response", "question_answer", {"query": "Hi?", "response": "Hello."}),
    Case("prompt and answer", "question_answer", {"prompt": "Hi?", "answer": "Hello."}),
    Case("NeMo input and output", "input_output", {"input": "Hi?", "output": "Hello."}),
    Case(
        "NeMo input in turns",
        "input_output",
        {"system_prompt": "Be kind.", "input": [USER], "output": "Hello."},
        ("system: Be kind.", *CHAT),
    ),
    Case(
        "axolotl segments",
        "segments",
        {"segments": [{"label": False, "text": "<s>Hi?"}, {"label": True, "text": "Hello.</s>"}]},
    ),
    Case("Guanaco", "guanaco", {"text": "### Human: Hi?### Assistant: Hello."}),
    Case("OpenMathInstruct", "openmath", {"problem": "Hi?", "generated_solution": "Hello."}),
    Case(
        "GSM8K",
        "gsm8k",
        {"question": "Hi?", "answer": "3 + 4 = <<3+4=7>>7\n#### 7"},
        ("user: Hi?", "assistant: 3 + 4 = 7\n#### 7"),
        ("3 + 4 = 7\n#### 7",),
        "gsm8k@2",
        "7",
    ),
]
PAIRS = [
    pair("a prompt with two texts", "prompt_pair", {"prompt": "Hi?", "chosen": "Hello.", "rejected": "Go."}),
    pair("a prompt in turns with two texts", "prompt_pair", {"prompt": [USER], "chosen": "Hello.", "rejected": "Go."}),
    pair("explicit prompt in turns", "preference", {"prompt": [USER], "chosen": [ANSWER], "rejected": [BAD]}),
    pair("implicit prompt in turns", "preference", {"chosen": [USER, ANSWER], "rejected": [USER, BAD]}),
    pair("implicit prompt in texts", "implicit_pair", {"chosen": "Hi? Hello.", "rejected": "Hi? Go."}),
    pair(
        "UltraFeedback-binarised",
        "preference",
        {"prompt": "Hi?", "chosen": [USER, ANSWER], "rejected": [USER, BAD], "score_chosen": 8.0},
    ),
    pair(
        "Orca pairs with a question",
        "prompt_pair",
        {"system": "Be kind.", "question": "Hi?", "chosen": "Hello.", "rejected": "Go."},
        turns=("system: Be kind.", *CHAT),
    ),
    pair(
        "Orca pairs with a prompt",
        "prompt_pair",
        {"system": "Be kind.", "prompt": "Hi?", "chosen": "Hello.", "rejected": "Go."},
        turns=("system: Be kind.", *CHAT),
    ),
    pair(
        "Alpaca pairs",
        "prompt_pair",
        {"instruction": "Greet.", "input": "Hi?", "chosen": "Hello.", "rejected": "Go."},
        turns=("user: Greet.\n\nHi?", CHAT[1]),
    ),
    pair("ShareGPT pairs", "sharegpt_pair", {"conversations": [ASKED], "chosen": TOLD, "rejected": WRONG}),
    pair("RewardBench", "rewardbench", {"prompt": "Hi?", "chosen": "Hello.", "rejected": "Go.", "subset": "easy"}),
    pair(
        "HH-RLHF",
        "hh",
        {side: f"\n\nHuman: Hi?\n\nAssistant: {text}" for side, text in (("chosen", "Hello."), ("rejected", "Go."))},
    ),
]
UNPAIRED = [
    unpaired("unpaired messages", {"messages": [USER, ANSWER], "label": True}),
    unpaired("unpaired messages, bad", {"messages": [USER, BAD], "label": False}, good=False),
    unpaired("unpaired messages of LLaMA-Factory", {"messages": [USER, BAD], "kto_tag": False}, good=False),
    unpaired("unpaired ShareGPT", {"conversations": [ASKED, WRONG], "kto_tag": "false"}, good=False),
    unpaired("unpaired prompt and completion", {"prompt": "Hi?", "completion": "Hello.", "label": True}),
    unpaired("unpaired prompt and completion, bad", {"prompt": "Hi?", "completion": "Go.", "label": 0}, good=False),
    unpaired(
        "unpaired prompt and completion in turns", {"prompt": [USER], "completion": [BAD], "label": False}, good=False
    ),
    unpaired("unpaired prompt and response", {"prompt": "Hi?", "response": "Go.", "label": "bad"}, good=False),
    unpaired("unpaired Alpaca", {"instruction": "Hi?", "input": "", "output": "Go.", "kto_tag": False}, good=False),
]
PROMPTS = [
    prompt("a bare prompt", "prompt_only", {"prompt": "Hi?", "topic": "greetings"}),
    prompt("a bare prompt in turns", "prompt_only", {"prompt": [USER], "solution": "3"}),
    prompt("a bare instruction", "prompt_only", {"instruction": "Hi?"}),
    prompt("a bare question", "prompt_only", {"question": "Hi?"}),
    prompt(
        "open-instruct RLVR",
        "rlvr",
        {"messages": [USER], "ground_truth": "1,200", "dataset": "gsm8k"},
        "gsm8k@1",
        "1200",
    ),
    prompt(
        "open-instruct RLVR in lists",
        "rlvr",
        {"messages": [USER], "ground_truth": ["x^2"], "dataset": ["math"]},
        "math_flex@1",
        "x^2",
    ),
    prompt(
        "open-instruct RLVR of constraints",
        "rlvr",
        {"messages": [USER], "ground_truth": BULLETS, "dataset": "ifeval"},
        "tulu_if@1",
        BULLETS,
    ),
    prompt(
        "open-instruct RLVR of programs",
        "rlvr",
        {"messages": [USER], "ground_truth": ["assert f(1) == 2"], "dataset": ["code"]},
        "code@1",
        '["assert f(1) == 2"]',
    ),
    prompt(
        "verl",
        "verl",
        {
            "data_source": "openai/gsm8k",
            "prompt": [USER],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": "72"},
            "extra_info": {"split": "train", "index": 0},
        },
        "gsm8k@2",
        "72",
    ),
    prompt(
        "verl of MATH",
        "verl",
        {"data_source": "lighteval/MATH", "prompt": [USER], "reward_model": '{"style": "rule", "ground_truth": "x"}'},
        "math@2",
        "x",
    ),
    prompt("verifiers library", "verifiers", {"prompt": [USER], "answer": "4", "info": {"unit": "m"}}, "", "4"),
    prompt(
        "verifiers library with a task",
        "verifiers",
        {"question": "Hi?", "answer": "4", "task": "gsm8k"},
        "gsm8k@2",
        "4",
    ),
    prompt("MATH with a bare answer", "math_prompt", {"problem": "Hi?", "answer": "x"}, "math@2", "x"),
    prompt("personas", "persona", {"persona": "Hi?"}),
    prompt("WildGuardMix", "wildguardmix", {"prompt": "Hi?", "response": "weak", "prompt_harm_label": "unharmful"}),
    prompt("UltraFeedback", "ultrafeedback", {"instruction": "Hi?", "completions": [], "source": "ultrachat"}),
]
CASES = [*CONVERSATIONS, *EXCHANGES, *PAIRS, *UNPAIRED, *PROMPTS]

IMAGE = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x.png"}}]}
REFUSED: list[tuple[str, dict[str, Any], str]] = [  # what cannot be read, and words of the sentence that says so
    ("an image in a turn", {"messages": [IMAGE, ANSWER]}, r"turn 0: holds image content \('image_url'\); only text"),
    ("audio in a turn", {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}, ANSWER]}, "holds audio"),
    ("an image column", {"messages": [USER, ANSWER], "images": ["a.png"]}, "has images beside its text; only text"),
    (
        "another part",
        {"messages": [{"role": "user", "content": [{"type": "tool_use"}]}, ANSWER]},
        "a part that is no text",
    ),
    ("half a weight", {"messages": [USER, {**ANSWER, "weight": 0.5}]}, "has the weight 0.5; a turn is trained"),
    ("parts trained apart", {"messages": [USER, {**ANSWER, "train_detail": [{"train": True}]}]}, "train_detail"),
    (
        "two system texts",
        {"system": "A", "messages": [{"role": "system", "content": "B"}, USER, ANSWER]},
        "has a system",
    ),
    ("an unknown role", {"messages": [{"role": "robot", "content": "x"}, ANSWER]}, "turn 0 has role 'robot'"),
    ("lists of two lengths", {"messages": {"role": ["user"], "content": []}}, "lists of one length"),
    ("plain text", {"text": "Hi? Hello."}, "text without turns"),
    ("token ids", {"input_ids": [1, 2], "labels": [1, 2]}, "tokens without their text"),
    ("steps with labels", {"prompt": "Hi?", "completions": ["a", "b"], "labels": [True, False]}, "process rewards"),
    (
        "an unknown data set",
        {"messages": [USER], "ground_truth": "3", "dataset": "x"},
        "no verifier for the data set 'x'",
    ),
    ("two reference answers", {"messages": [USER], "ground_truth": ["3", "4"], "dataset": ["math"]}, "one value under"),
    ("strange keys", {"a": 1, "b": 2}, "no known layout fits rows with the keys a, b"),
]
