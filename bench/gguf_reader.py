"""Exported GGUF files read by llama.cpp: random models of every family, and 20 greedy answers of SmolLM2.

    python bench/gguf_reader.py [--json FILE]

Three things are compared with the folder that a file was exported from: the token ids of a text, the log-probabilities
of every token after it (random models, in each precision), and greedy answers (SmolLM2, fp32 on our side). The peer's
environment is made on first use: the package xllamacpp, which carries llama.cpp and its server, built for the CPU.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tercet.journal import write_json
from tercet.models.base_layout import save_model
from tercet.models.base_model import smollm
from tercet.models.export.gguf import KINDS, export_gguf
from tercet.models.export.gguf_tokenizer import CUTS
from tercet.models.generate import LocalGenerator
from tercet.models.hf_folder import load_model, load_tokenizer, quiet
from tercet.rows import Message, Sampling

HERE = Path(__file__).parent
PEER = HERE / ".llama.peer-venv"
REQUIREMENT = "xllamacpp==2026.10.11549"
WORDS = 400  # tokens of a random model
NEW = 48  # tokens of an answer
ANSWERS = "SmolLM2"
TEXT = "Hello world, it's a test of 12345 numbers: naïve cafés!\n\n  Spaces, and 漢字 too; don't split IT'S wrongly. "
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "num_hidden_layers": 6,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {
    "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {"rope_parameters": LLAMA3},
    "Mistral": {"sliding_window": None},
    "Qwen2": {},
    "Qwen3": {},
    "Olmo": {"clip_qkv": 8.0},
    "Olmo2": {},
    "Gemma": {},
    "Gemma2": {"query_pre_attn_scalar": 16, "sliding_window": 8},
    "Gemma3": {"query_pre_attn_scalar": 16, "sliding_window": 8, "rope_parameters": LINEAR},
}
QUESTIONS = (
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "What is 12 + 30?",
    "Name three fruits.",
    "Who wrote Hamlet?",
    "Explain in one sentence what a computer is.",
    "Translate 'good morning' into Spanish.",
    "What colour is the sky on a clear day?",
    "Give me a synonym of 'happy'.",
    "How many days has a week?",
    "Write a short poem about rain.",
    "What is the boiling point of water?",
    "Tom has 3 apples and buys 4 more. How many has he?",
    "List two planets of our solar system.",
    "What does a teacher do?",
    "Is the Earth flat?",
    "Write a Python line that prints 'hello'.",
    "What is the opposite of 'cold'?",
    "Which animal barks?",
    "Say something kind.",
)


def main() -> None:
    """Export, let llama.cpp read, compare, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found")
    parser.add_argument("--families", default=f"{','.join(FAMILIES)},{ANSWERS}", help="some of them")
    args = parser.parse_args()
    python, families = _peer(), args.families.split(",")
    known = json.loads(args.json.read_text())["lines"] if args.json and args.json.is_file() else []
    found = [line for line in known if line["family"] not in families]
    for family in families:
        with tempfile.TemporaryDirectory() as scratch:
            found += _family(family, Path(scratch), python)
        if args.json:
            write_json(args.json, {"reader": REQUIREMENT, "lines": found})
    sys.exit(not all(line["good"] for line in found))


def _family(family: str, folder: Path, python: str) -> list[dict[str, Any]]:
    """The lines of one family, each printed when llama.cpp has answered."""
    lines = []
    for job in _answers(folder) if family == ANSWERS else _random(family, folder):
        (folder / "job.json").write_text(json.dumps(job))
        side = [python, str(HERE / "gguf_reader_side.py"), str(folder / "job.json")]
        said = subprocess.run(side, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
        line = _compare(job, json.loads(said.splitlines()[-1]))
        print(f"{line['family']:8} {line['kind']:5} {line['said']}", flush=True)
        lines.append(line)
    return lines


def _peer() -> str:
    python, ready = PEER / "bin" / "python", PEER / ".ready"
    if not ready.is_file():
        print(f"making {PEER} with {REQUIREMENT}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(PEER)], check=True)
        pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", "install", "--only-binary=:all:"]
        subprocess.run([*pip, REQUIREMENT], check=True)
        ready.touch()
    return str(python)


def _random(family: str, folder: Path) -> list[dict[str, Any]]:
    """A random model in each precision, with what transformers computes after a text."""
    _tokenizer(folder / "tokenizer", family)  # transformers reads it by the family's own class
    kind, rows = "Gemma3Text" if family == "Gemma3" else family, WORDS + 16  # a family's tokenizer may add a token
    settings = {**SIZES, **FAMILIES[family], "vocab_size": rows, "bos_token_id": 0, "eos_token_id": 1}
    settings["pad_token_id"] = 2
    torch.manual_seed(0)
    with quiet(), torch.no_grad():
        model = getattr(transformers, f"{family}ForCausalLM")(getattr(transformers, f"{kind}Config")(**settings))
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.config.architectures = [f"{family}ForCausalLM"]
    save_model(folder / "model", model.config, model.state_dict(), source=folder / "tokenizer")
    ids = load_tokenizer(folder / "model")(TEXT).input_ids
    with quiet(), torch.no_grad():
        logps = load_model(folder / "model", torch.float32)(torch.tensor([ids])).logits[0, -1].log_softmax(0)
    jobs = []
    for precision in KINDS:
        file = folder / f"{precision}.gguf"
        export_gguf(folder / "model", file, family, precision, lambda done, total, note: None)
        job = {"family": family, "kind": precision, "file": str(file), "texts": [TEXT], "new": 0}
        jobs.append(job | {"special": True, "ids": [ids], "logps": logps.tolist()})
    return jobs


def _tokenizer(folder: Path, family: str) -> None:
    """A byte-level tokenizer that cuts text as the family's own does."""
    names = {"Qwen2": "qwen2", "Qwen3": "qwen2", "Llama": "llama-bpe", "Olmo2": "dbrx", "Mistral": "tekken"}
    [(cut, whole)] = [key for key in CUTS if key[0] == names.get(family, "gpt-2")]
    tokenizer = Tokenizer(models.BPE(ignore_merges=whole))
    splits = [pre_tokenizers.Split(Regex(expression), "isolated") for expression in CUTS[cut, whole]]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(text, normalized=False, special=True) for text in ("<s>", "</s>", "<pad>")]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=WORDS, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator([TEXT, *QUESTIONS], trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=256
    )
    made.save_pretrained(folder)


def _answers(folder: Path) -> list[dict[str, Any]]:
    """SmolLM2 in each precision, with its own greedy answers in fp32."""
    source = smollm()
    generator = LocalGenerator.open(source, "float32")
    turns = [(Message("user", question),) for question in QUESTIONS]
    texts = [
        generator.chat.tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
        )
        for question in QUESTIONS
    ]
    answers = generator.complete(turns, Sampling(max_new_tokens=NEW, temperature=0.0))
    wanted = [list(answer[0].token_ids) for answer in answers]
    ids = [generator.chat.tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    jobs = []
    for precision in KINDS:
        file = folder / f"{precision}.gguf"
        export_gguf(source, file, ANSWERS, precision, lambda done, total, note: None)
        job = {"family": ANSWERS, "kind": precision, "file": str(file), "texts": texts, "new": NEW}
        jobs.append(job | {"special": False, "ids": ids, "answers": wanted})
    return jobs


def _compare(job: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    """One line of the table."""
    line = {"family": job["family"], "kind": job["kind"]}
    same = sum(ours == theirs for ours, theirs in zip(job["ids"], answer["ids"], strict=True))
    tokens = f"token ids of {same} of {len(job['ids'])} texts equal"
    if not job["new"]:
        wanted, found = torch.tensor(job["logps"]), torch.tensor(answer["logps"])
        gap = ((found - wanted).norm() / (wanted - wanted.mean()).norm()).item()
        most = {"f16": 0.01, "bf16": 0.03, "q8_0": 0.15, "q4_0": 1.0}[job["kind"]]
        said = f"{tokens}, log-probabilities differ by {gap:.2%} of their spread"
        return line | {"said": said, "good": gap < most and same == len(job["ids"]), "gap": gap}
    pairs = list(zip(job["answers"], answer["answers"], strict=True))
    equal = sum(ours == theirs for ours, theirs in pairs)
    shared = [
        next((i for i, (a, b) in enumerate(zip(x, y, strict=False)) if a != b), min(len(x), len(y))) for x, y in pairs
    ]
    share = sum(shared) / sum(len(ours) for ours, _ in pairs)
    said = f"{tokens}, {equal} of {len(pairs)} answers equal, the first {share:.0%} of their tokens on average"
    return line | {"said": said, "good": same == len(job["ids"]), "equal": equal, "share": share}


if __name__ == "__main__":
    main()
