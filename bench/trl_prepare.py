"""TRL's side of bench/prepare.py: what its SFT trainer does to a data set of conversations before the first step."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import datasets
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from prepare import Clock, mark
from trl_common import read_job

TURN = "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
MARKED = (
    "{% if message['role'] == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}" + TURN + "{% endif %}"
)
"""The turn of a ChatML template, and the same text with TRL's marks around what is trained."""


class Clocked(SFTTrainer):
    """TRL's trainer, noting how long its preparation takes and what it gives."""

    figures: dict[str, Any]
    ready: datasets.Dataset

    def _prepare_dataset(self, *arguments: Any) -> datasets.Dataset:
        clock = Clock()
        self.ready = super()._prepare_dataset(*arguments)
        self.figures = clock.read()
        return self.ready


def main() -> None:
    """Prepare and report."""
    job = read_job()
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    tokenizer.chat_template = marked(tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        rows = datasets.load_dataset(
            "parquet",
            data_files=str(Path(job["rows"]).with_suffix(".parquet")),
            split="train",
            cache_dir=f"{folder}/cache",  # of its own: nothing that an earlier round prepared is found
        )
        trainer = Clocked(
            model=tiny(tokenizer),
            args=SFTConfig(
                output_dir=f"{folder}/out",
                assistant_only_loss=True,
                packing=True,
                max_length=job["max_tokens"],
                dataset_num_proc=job["num_proc"] if job["num_proc"] > 1 else None,
                use_cpu=True,
                bf16=False,
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=rows.select_columns(["messages"]),
            processing_class=tokenizer,
        )
        found = marks(trainer.ready)
        tokens = sum(sum(lengths) for lengths in trainer.ready["seq_lengths"])
        counts = {"rows": len(found), "tokens": tokens, "batches": len(trainer.ready), "marks": found}
        Path(job["out"]).write_text(json.dumps(trainer.figures | counts))


def marked(tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokenizer's own template with marks; it says the same."""
    template = str(tokenizer.chat_template)
    if template.count(TURN) != 1:
        raise SystemExit("the template's turn is not the one that this comparison knows how to mark")
    return template.replace(TURN, MARKED)


def tiny(tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """A model for the trainer to hold; nothing runs it, and it adds next to nothing to the memory."""
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    return LlamaForCausalLM(config)


def marks(ready: datasets.Dataset) -> list[list[str]]:
    """The mark of every conversation in the packed rows."""
    found = []
    for row in ready:
        begin = 0
        for length in row["seq_lengths"]:
            own = slice(begin, begin + length)
            found.append(mark(row["input_ids"][own], [label != -100 for label in row["labels"][own]]))
            begin += length
    return found


if __name__ == "__main__":
    main()
