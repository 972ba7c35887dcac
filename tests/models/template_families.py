# ruff: noqa: E501, RUF001  marks of real tokenizers, some wide and long
"""Chat templates of real families in their structure (`templates/`), and what each must train, written by hand.

`answer` is what the model must write for the answer `A` to a first question, `thought` the same behind the thought `T`
("" where the template cannot carry one), `call` the same for a call of `weather` with x = 1 ("" where it cannot).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tercet.models.chat_template import with_arguments

FOLDER = Path(__file__).with_name("templates")
CHATML = "<|im_start|> <|im_end|>"
THINK = "<think>\nT\n</think>\n\n"


@dataclass(frozen=True)
class Family:
    """A template with its special tokens, the first of which begins a text where `bos` says so."""

    template: str
    specials: str
    eos: str
    answer: str
    thought: str = ""
    call: str = ""
    bos: str = ""
    args: dict[str, Any] = field(default_factory=dict)
    system: bool = True
    strips: bool = False  # white space around contents
    lstrips: bool = False  # newlines before contents
    carries: str = "inline"  # how a thought gets in: "field", "inline" or "between"
    composed: bool = False  # answers without a thought are not written as the template writes them

    @property
    def name(self) -> str:
        given = "".join(f"-{key}={value}".lower() for key, value in self.args.items())
        return f"{self.template}{given}"


def chatml(template: str, **more: Any) -> Family:
    """A family with ChatML's marks."""
    settings = {"answer": "A<|im_end|>", "thought": f"{THINK}A<|im_end|>", "eos": "<|im_end|>"} | more
    return Family(template, CHATML, **settings)


QWEN_CALL = '<tool_call>\n{"name": "weather", "arguments": {"x": 1}}\n</tool_call><|im_end|>'
XML_CALL = "<tool_call>\n<function=weather>\n<parameter=x>\n1\n</parameter>\n</function>\n</tool_call><|im_end|>"
LLAMA3 = "<|begin_of_text|> <|start_header_id|> <|end_header_id|> <|eot_id|>"
MISTRAL = (
    "<s> </s> [INST] [/INST] [SYSTEM_PROMPT] [/SYSTEM_PROMPT] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] "
    "[TOOL_CALLS] [TOOL_RESULTS] [/TOOL_RESULTS]"
)
GEMMA = "<bos> <start_of_turn> <end_of_turn> <eos>"
COMMAND = (
    "<BOS_TOKEN> <|START_OF_TURN_TOKEN|> <|END_OF_TURN_TOKEN|> <|USER_TOKEN|> <|CHATBOT_TOKEN|> "
    "<|SYSTEM_TOKEN|> <|START_RESPONSE|> <|END_RESPONSE|>"
)
GRANITE = "<|start_of_role|> <|end_of_role|> <|end_of_text|>"
DEEPSEEK = (
    "<｜begin▁of▁sentence｜> <｜end▁of▁sentence｜> <｜User｜> <｜Assistant｜> <｜tool▁calls▁begin｜> "
    "<｜tool▁calls▁end｜> <｜tool▁call▁begin｜> <｜tool▁call▁end｜> <｜tool▁outputs▁begin｜> "
    "<｜tool▁outputs▁end｜> <｜tool▁output▁begin｜> <｜tool▁output▁end｜> <｜tool▁sep｜>"
)
DS_BEGIN, DS_END = DEEPSEEK.split()[:2]
GLM = "[gMASK] <sop> <|system|> <|user|> <|assistant|> <|observation|> <|endoftext|>"
GLM_CALL = "\n<tool_call>weather\n<arg_key>x</arg_key>\n<arg_value>1</arg_value>\n</tool_call><|observation|>"
KIMI = (
    "<|im_system|> <|im_user|> <|im_assistant|> <|im_middle|> <|im_end|> "
    "<|tool_calls_section_begin|> <|tool_calls_section_end|> <|tool_call_begin|> "
    "<|tool_call_argument_begin|> <|tool_call_end|>"
)
HARMONY = "<|start|> <|end|> <|message|> <|channel|> <|return|> <|call|>"
GEMMA4 = (
    "<bos> <|turn> <turn|> <|channel> <channel|> <|tool> <tool|> <|tool_call> <tool_call|> "
    "<|tool_response> <tool_response|> <eos>"
)
FINAL = "<|channel|>final<|message|>A<|return|>"
ANALYSIS = "<|channel|>analysis<|message|>T<|end|><|start|>assistant"
NO = {"enable_thinking": False}

FAMILIES = (
    chatml("chatml"),
    chatml("yi"),
    chatml("internlm2"),
    chatml("smollm2"),
    chatml("hermes", call='\n<tool_call>\n{"name": "weather", "arguments": {"x": 1}}\n</tool_call><|im_end|>'),
    chatml("qwen2_5", call=QWEN_CALL),
    chatml("qwen3_instruct_2507", call=QWEN_CALL),
    chatml(
        "qwen3",
        answer="<think>\n\n</think>\n\nA<|im_end|>",
        call=f"<think>\n\n</think>\n\n{QWEN_CALL}",
        carries="field",
        lstrips=True,
    ),
    chatml("qwen3", thought="", call=QWEN_CALL, args=NO, carries="field", lstrips=True),
    chatml(
        "qwen3_thinking_2507",
        answer="\n</think>\n\nA<|im_end|>",
        thought="T\n</think>\n\nA<|im_end|>",
        call=f"\n</think>\n\n{QWEN_CALL}",
        carries="field",
        lstrips=True,
    ),
    chatml(
        "qwen3_5",
        answer="\n</think>\n\nA<|im_end|>",
        thought="T\n</think>\n\nA<|im_end|>",
        call=f"\n</think>\n\n{XML_CALL}",
        carries="field",
        strips=True,
    ),
    chatml("qwen3_5", thought="", call=XML_CALL, args=NO, carries="field", strips=True),
    chatml(
        "nemotron_3",
        answer="\n</think>\nA<|im_end|>",
        thought="T\n</think>\nA<|im_end|>",
        call=f"\n</think>\n{XML_CALL}",
        carries="field",
        strips=True,
        composed=True,
    ),
    chatml("nemotron_3", thought="", call=XML_CALL, args=NO, carries="field", strips=True),
    Family(
        "olmo3_think",
        f"{CHATML} <|endoftext|>",
        "<|endoftext|>",
        "</think>\n\nA<|endoftext|>",
        "T</think>\n\nA<|endoftext|>",
        composed=True,
    ),
    chatml("smollm3", lstrips=True),
    chatml("smollm3", thought="", args=NO, lstrips=True),
    Family("phi4", "<|im_start|> <|im_sep|> <|im_end|>", "<|im_end|>", "A<|im_end|>", f"{THINK}A<|im_end|>"),
    Family(
        "phi3",
        "<|user|> <|assistant|> <|system|> <|end|> <|endoftext|>",
        "<|endoftext|>",
        "A<|end|>",
        f"{THINK}A<|end|>",
    ),
    Family("llama2", "<s> </s>", "</s>", " A </s>", f" {THINK}A </s>", bos="<s>", strips=True),
    Family("llama3", LLAMA3, "<|eot_id|>", "A<|eot_id|>", f"{THINK}A<|eot_id|>", bos="<|begin_of_text|>", strips=True),
    Family(
        "llama3_1",
        LLAMA3,
        "<|eot_id|>",
        "A<|eot_id|>",
        f"{THINK}A<|eot_id|>",
        '{"name": "weather", "parameters": {"x": 1}}<|eot_id|>',
        "<|begin_of_text|>",
        strips=True,
    ),
    Family(
        "llama4",
        "<|begin_of_text|> <|header_start|> <|header_end|> <|eot|>",
        "<|eot|>",
        "A<|eot|>",
        f"{THINK}A<|eot|>",
        bos="<|begin_of_text|>",
        strips=True,
    ),
    Family("mistral_v1", MISTRAL, "</s>", " A</s>", f" {THINK}A</s>", bos="<s>", system=False),
    Family(
        "mistral_v3",
        MISTRAL,
        "</s>",
        " A</s>",
        f" {THINK}A</s>",
        '[TOOL_CALLS] [{"name": "weather", "arguments": {"x": 1}}, "id": "call00000"]</s>',
        "<s>",
    ),
    Family("mistral_v7", MISTRAL, "</s>", "A</s>", f"{THINK}A</s>", bos="<s>"),
    Family("gemma", GEMMA, "<eos>", "A<end_of_turn>", f"{THINK}A<end_of_turn>", bos="<bos>", system=False, strips=True),
    Family("gemma3", GEMMA, "<eos>", "A<end_of_turn>", f"{THINK}A<end_of_turn>", bos="<bos>", strips=True),
    Family(
        "gemma4",
        GEMMA4,
        "<eos>",
        "A<turn|>",
        "<|channel>thought\nT\n<channel|>A<turn|>",
        '<|tool_call>call:weather{"x": 1}<tool_call|><|tool_response>',
        "<bos>",
        strips=True,
        carries="field",
    ),
    Family("zephyr", "<s> </s>", "</s>", "A</s>", f"{THINK}A</s>"),
    Family("vicuna", "<s> </s>", "</s>", " A</s>", f" {THINK}A</s>"),
    Family("alpaca", "<s> </s>", "</s>", "A</s>", f"{THINK}A</s>"),
    Family(
        "command_r",
        COMMAND,
        "<|END_OF_TURN_TOKEN|>",
        "A<|END_OF_TURN_TOKEN|>",
        f"{THINK}A<|END_OF_TURN_TOKEN|>",
        bos="<BOS_TOKEN>",
        strips=True,
    ),
    Family(
        "command_r7b",
        COMMAND,
        "<|END_OF_TURN_TOKEN|>",
        "<|START_RESPONSE|>A<|END_RESPONSE|><|END_OF_TURN_TOKEN|>",
        f"<|START_RESPONSE|>{THINK}A<|END_RESPONSE|><|END_OF_TURN_TOKEN|>",
        bos="<BOS_TOKEN>",
    ),
    Family("granite3", GRANITE, "<|end_of_text|>", "A<|end_of_text|>", f"{THINK}A<|end_of_text|>"),
    Family(
        "granite4",
        GRANITE,
        "<|end_of_text|>",
        "A<|end_of_text|>",
        f"{THINK}A<|end_of_text|>",
        '<tool_call>\n{"name": "weather", "arguments": {"x": 1}}\n</tool_call><|end_of_text|>',
    ),
    Family("falcon3", "<|endoftext|>", "<|endoftext|>", "A<|endoftext|>", f"{THINK}A<|endoftext|>"),
    Family("olmo2", "<|endoftext|>", "<|endoftext|>", "A<|endoftext|>", f"{THINK}A<|endoftext|>", bos="<|endoftext|>"),
    Family(
        "kimi_k2",
        KIMI,
        "<|im_end|>",
        "A<|im_end|>",
        f"{THINK}A<|im_end|>",
        '<|tool_calls_section_begin|><|tool_call_begin|>weather:c1<|tool_call_argument_begin|>{"x": 1}<|tool_call_end|><|tool_calls_section_end|><|im_end|>',
    ),
    Family("deepseek_v2", DEEPSEEK, DS_END, f" A{DS_END}", f" {THINK}A{DS_END}", bos=DS_BEGIN),
    Family(
        "deepseek_v3",
        DEEPSEEK,
        DS_END,
        f"A{DS_END}",
        f"{THINK}A{DS_END}",
        f'<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n{{"x": 1}}<｜tool▁call▁end｜><｜tool▁calls▁end｜>{DS_END}',
        DS_BEGIN,
    ),
    Family(
        "deepseek_r1",
        DEEPSEEK,
        DS_END,
        f"\n</think>\n\nA{DS_END}",
        f"T\n</think>\n\nA{DS_END}",
        bos=DS_BEGIN,
        carries="between",
        composed=True,
    ),
    Family("deepseek_v3_1", DEEPSEEK, DS_END, f"A{DS_END}", bos=DS_BEGIN, carries="between"),
    Family(
        "deepseek_v3_1",
        DEEPSEEK,
        DS_END,
        f"</think>A{DS_END}",
        f"T</think>A{DS_END}",
        bos=DS_BEGIN,
        args={"thinking": True},
        carries="between",
        composed=True,
    ),
    Family("glm4", GLM, "<|endoftext|>", "A<|user|>", f"{THINK}A<|user|>"),
    Family(
        "glm4_5",
        GLM,
        "<|endoftext|>",
        "\n<think></think>\nA<|user|>",
        "\n<think>T</think>\nA<|user|>",
        f"\n<think></think>{GLM_CALL}",
        carries="field",
        strips=True,
    ),
    Family("glm4_5", GLM, "<|endoftext|>", "\nA<|user|>", "", GLM_CALL, args=NO, carries="field", strips=True),
    Family(
        "gpt_oss",
        HARMONY,
        "<|return|>",
        FINAL,
        f"{ANALYSIS}{FINAL}",
        ' to=functions.weather<|channel|>commentary json<|message|>{"x": 1}<|call|>',
        carries="field",
    ),
    Family(
        "minimax_m2",
        "]~!b[ ]~b] [e~[",
        "[e~[",
        "\n</think>\n\nA[e~[",
        "T\n</think>\n\nA[e~[",
        carries="field",
        composed=True,
    ),
)


@cache
def tokenizer_of(number: int) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with a few merges and the special tokens of a family, and its template."""
    family = FAMILIES[number]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=sorted(alphabet), show_progress=False)
    tokenizer.train_from_iterator(["the assistant answers what the user asks and then the answer ends"] * 4, trainer)
    names = [*family.specials.split(), "<|pad|>"]
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in names])
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=family.bos or None, eos_token=family.eos, pad_token="<|pad|>"
    )
    text = (FOLDER / f"{family.template}.jinja").read_text(encoding="utf-8")
    made.chat_template = with_arguments(text, family.args)
    return made
