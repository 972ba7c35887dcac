"""Clients of OpenAI's protocol that others wrote, each from an environment of its own, against our server.

`make clients` makes the environment; without it these tests are skipped. TERCET_CLIENTS=1 makes it first.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.models.serving import serving

from tercet.models.access import Access
from tercet.models.chat import Chat
from tercet.models.generate import LocalGenerator
from tercet.models.openai.served import ServedModel
from tercet.rows import PLAIN, Message, Sampling

ROOT, HERE = Path(__file__).parents[2], Path(__file__).parent
PYTHON = ROOT / ".venv-clients" / "bin" / "python"
KEY = "key-of-clients"
HERMES = ROOT / "tests" / "models" / "templates" / "hermes.jinja"
REFUSED = {
    "wrong key": "401 invalid_request_error None invalid_api_key",
    "unknown model": "404 invalid_request_error model model_not_found",
    "unknown model's card": "404 invalid_request_error model model_not_found",
    "long input": "400 invalid_request_error messages context_length_exceeded",
    "wrong type": "400 invalid_request_error max_tokens invalid_type",
    "frequency_penalty": "400 invalid_request_error frequency_penalty unsupported_value",
    "logit_bias": "400 invalid_request_error logit_bias unsupported_value",
    "picture": "400 invalid_request_error messages.0.content.type invalid_value",
    "tool_choice required": "400 invalid_request_error tool_choice unsupported_value",
    "tools without a template": "400 invalid_request_error tools unsupported_parameter",
    "suffix": "400 invalid_request_error suffix unsupported_value",
    "embeddings": "404 invalid_request_error None None",
    "responses": "404 invalid_request_error None None",
}


@pytest.fixture(scope="module")
def generator(sharp_folder: Path) -> LocalGenerator:
    return LocalGenerator.open(sharp_folder, "float32", rows=16)


@pytest.fixture(scope="module")
def url(generator: LocalGenerator) -> Iterator[str]:
    if os.environ.get("TERCET_CLIENTS"):
        subprocess.run(["make", "clients"], cwd=ROOT, check=True)
    if not PYTHON.exists():
        pytest.skip("the clients' environment is absent; `make clients` makes it")
    tools = LocalGenerator(generator.policy, Chat(generator.chat.tokenizer, str(HERMES)))
    with serving([ServedModel.of(generator, "tiny"), ServedModel.of(tools, "tools")], access=Access(KEY)) as (found, _):
        yield found


def side(name: str, *arguments: str) -> Any:
    """The last line that a client prints."""
    command = [str(PYTHON), str(HERE / f"{name}_side.py"), *arguments]
    own = {"OPENAI_API_KEY": KEY, "TERCET_API_KEY": KEY, "TERCET_BASE_URL": arguments[0], "INSPECT_DISPLAY": "none"}
    own |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "GRADIO_ANALYTICS_ENABLED": "False"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=os.environ | own)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_the_openai_client_gets_what_it_asks_or_the_protocols_own_refusal(url: str) -> None:
    found = side("openai", url, KEY)
    right = {name for name, outcome in found.items() if outcome == "right"}
    refused = {name: outcome.removeprefix("refused ") for name, outcome in found.items() if name not in right}
    assert refused == REFUSED
    assert len(right) >= 35


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A multiple choice and a question with a short answer, as tasks of the harness over a local file."""
    rows = [{"question": f"What is {i} and {i}?", "options": ["none", str(2 * i), "all of it"]} for i in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row | {"gold": 1}) + "\n" for row in rows))
    common = (
        f"dataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {tmp_path}/rows.jsonl\ntest_split: test\n"
        'doc_to_text: "Question: {{question}}\\nAnswer:"\n'
    )
    choice = 'output_type: multiple_choice\ndoc_to_choice: "{{options}}"\ndoc_to_target: gold\n'
    choice += "metric_list:\n  - metric: acc\n  - metric: acc_norm\n"
    short = 'output_type: generate_until\ndoc_to_target: "{{options[1]}}"\n'
    short += 'generation_kwargs:\n  until: ["q"]\n  max_gen_toks: 12\n  do_sample: false\n'
    short += "metric_list:\n  - metric: exact_match\n"
    (tmp_path / "choice.yaml").write_text(f"task: choice\n{common}{choice}")
    (tmp_path / "short.yaml").write_text(f"task: short\n{common}{short}")
    return tmp_path


def test_lm_eval_finds_the_local_models_likelihoods_and_answers(
    url: str, generator: LocalGenerator, tasks: Path, sharp_folder: Path
) -> None:
    found = side("lm_eval", url, KEY, str(sharp_folder), str(tasks))
    rows = [json.loads(line) for line in (tasks / "rows.jsonl").read_text().splitlines()]
    prompts = [(Message(PLAIN, f"Question: {row['question']}\nAnswer:"),) for row in rows]
    ours = generator.likelihood(prompts, [[f" {option}" for option in row["options"]] for row in rows])
    for answers, options in zip(found["local-completions/choice"]["answers"], ours, strict=True):
        for ((logp, greedy),), one in zip(answers, options, strict=True):
            assert float(logp) == pytest.approx(one.logp, abs=1e-3)
            assert (str(greedy) == "True") == one.greedy
    best = [max(range(3), key=lambda k: options[k].logp) for options in ours]
    assert found["local-completions/choice"]["metrics"]["acc,none"] == pytest.approx(best.count(1) / 6)
    how = Sampling(12, stop=("q",))
    texts = [group[0].text for group in generator.complete(prompts, how)]
    assert [answers[0][0] for answers in found["local-completions/short"]["answers"]] == texts
    chats = generator.complete([(Message("user", prompt[0].content),) for prompt in prompts], how)
    assert [answers[0][0] for answers in found["local-chat-completions/short"]["answers"]] == [
        one[0].text for one in chats
    ]


def test_inspect_gets_the_local_models_answers(url: str, generator: LocalGenerator, tmp_path: Path) -> None:
    found = side("inspect", url, KEY, str(tmp_path))
    turns = [(Message("system", "Be brief."), Message("user", f"Say {i}")) for i in range(6)]
    assert found["status"] == "success"
    assert found["answers"] == [one[0].text for one in generator.complete(turns, Sampling(12))]
    assert found["logps"] == [one[0].num_tokens for one in generator.complete(turns, Sampling(12))]


def test_gradio_shows_answers(url: str) -> None:
    found = side("gradio", url, KEY)  # it streams, draws at temperature 1 and says neither a seed nor a length
    assert [bool(answer) for answer in found["answers"]] == [True, True]
