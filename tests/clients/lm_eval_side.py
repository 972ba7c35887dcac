"""lm-evaluation-harness asks our server by its `local-completions` and `local-chat-completions`, with their defaults.

`python lm_eval_side.py URL KEY TOKENIZER TASKS`; prints a line of JSON with the metrics and each document's answers.
"""

from __future__ import annotations

import json
import sys

import lm_eval
from lm_eval.tasks import TaskManager

URL, KEY, TOKENIZER, TASKS = sys.argv[1:5]

KINDS = {
    "local-completions": (f"{URL}/completions", ["choice", "short"]),
    "local-chat-completions": (f"{URL}/chat/completions", ["short"]),
}
found = {}
for kind, (url, tasks) in KINDS.items():
    arguments = f"model=tiny,base_url={url},tokenizer={TOKENIZER},num_concurrent=4,max_length=2048"
    result = lm_eval.simple_evaluate(
        model=kind,
        model_args=arguments,
        tasks=tasks,
        task_manager=TaskManager(include_path=TASKS, include_defaults=False),
        apply_chat_template=kind == "local-chat-completions",
        bootstrap_iters=0,
    )
    for task in tasks:
        found[f"{kind}/{task}"] = {
            "metrics": {name: value for name, value in result["results"][task].items() if isinstance(value, float)},
            "answers": [sample["resps"] for sample in result["samples"][task]],
        }
sys.stdout.write("\n" + json.dumps(found) + "\n")
