"""inspect_ai evaluates a model behind our server; `python inspect_side.py URL KEY FOLDER` prints a line of JSON."""

from __future__ import annotations

import json
import sys

import inspect_ai
from inspect_ai import Task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import includes
from inspect_ai.solver import generate, system_message

URL, KEY, FOLDER = sys.argv[1:4]

samples = [Sample(input=f"Say {i}", target="e") for i in range(6)]
task = Task(dataset=samples, solver=[system_message("Be brief."), generate()], scorer=includes())
asked = {"max_tokens": 12, "temperature": 0.0, "seed": 1, "logprobs": True, "top_logprobs": 2}
(log,) = inspect_ai.eval(task, model="openai-api/tercet/tiny", log_dir=FOLDER, **asked)
answers = [sample.output.completion for sample in log.samples or []]
logps = [len(sample.output.choices[0].logprobs.content) for sample in log.samples or []]
sys.stdout.write("\n" + json.dumps({"status": log.status, "answers": answers, "logps": logps}) + "\n")
