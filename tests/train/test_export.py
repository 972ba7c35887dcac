"""Two ranks write the very files that one rank writes, each its own of them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.models.random_models import model_of

from tercet.device.mesh import Mesh, mesh
from tercet.device.shard import Trainable
from tercet.models.base_layout import save_model
from tercet.models.hf_folder import load_config
from tercet.models.lora import adapt
from tercet.models.opening import open_policy
from tercet.models.policy import Policy
from tercet.models.tiny import build
from tercet.recipe import LoraSpec, Placement
from tercet.train.reward_model import open_scorer

pytestmark = pytest.mark.slow  # all need what two processes wrote

SHARD = 8_000  # bytes in a file, so that small models have several


def write_all(ranks: Mesh, source: Path, out: Path) -> None:
    """A plain model, one with adapters, one whose experts are stored one by one, and a policy beside a scorer."""
    torch.manual_seed(1)
    config = load_config(source)
    both = torch.nn.Module()
    both.policy, both.critic = open_policy(source), open_scorer(source, 256, 3)
    scorer = both.critic.model.config
    pair = Trainable(both, torch.float32, ranks)
    policy = open_policy(source)
    adapted = Trainable(policy, torch.bfloat16, ranks, merge=adapt(policy, LoraSpec(r=2), torch.bfloat16, 1))
    with torch.no_grad():
        for master in adapted.master_weights:
            master.add_(0.01)
    experts = model_of("Qwen3Moe")
    mixed = Trainable(Policy(experts), torch.float32, ranks)
    cases = {"policy": (pair, config, "policy."), "critic": (pair, scorer, "critic.")}
    cases |= {"adapted": (adapted, config, ""), "mixed": (mixed, experts.config, "")}
    for name, (trainable, own, part) in cases.items():
        state = ((name.removeprefix("model."), value) for name, value in trainable.full_state(part))
        save_model(out / name, own, state, source=source, mesh=ranks, shard=SHARD)


def rank(source: str, out: str) -> None:
    """One of several; each names the files that it has opened to write."""
    opened = []
    sys.addaudithook(lambda event, args: opened.append(args) if event == "open" else None)
    with mesh(Placement(ranks=int(os.environ["WORLD_SIZE"]))) as ranks:
        write_all(ranks, Path(source), Path(out))
    names = {Path(name).name for name, mode, _ in opened if isinstance(name, str) and mode and "+" in mode}
    sys.stdout.write("\n".join(sorted(names)))


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, list[set[str]]]:
    """What one rank and two wrote, and which files each of the two opened."""
    root = tmp_path_factory.mktemp("exports")
    build(root / "tiny", 3)
    write_all(Mesh(), root / "tiny", root / "one")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", "import sys; from tests.train.test_export import rank; rank(*sys.argv[1:])"]
    command += [str(root / "tiny"), str(root / "two")]
    options = {"stdout": subprocess.PIPE, "text": True, "cwd": Path(__file__).parents[2]}
    running = [subprocess.Popen(command, env={**os.environ, **shared, "RANK": str(i)}, **options) for i in range(2)]
    outputs = [process.communicate(timeout=240)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    return root, [{name for name in output.splitlines() if ".safetensors." in name} for output in outputs]


@pytest.mark.parametrize("name", ["policy", "critic", "adapted", "mixed"])
def test_two_ranks_write_the_bytes_that_one_rank_writes(folders, name):
    one, two = (folders[0] / ranks / name for ranks in ("one", "two"))
    files = sorted(path.name for path in one.iterdir())
    assert len([file for file in files if file.endswith(".safetensors")]) > 2
    assert files == sorted(path.name for path in two.iterdir())
    for file in files:
        assert (one / file).read_bytes() == (two / file).read_bytes(), file


def test_what_two_ranks_wrote_is_the_model_they_shared(folders):
    root, _ = folders
    files = (root / "two" / "policy").glob("*.safetensors")
    read = {name: value for file in files for name, value in load_file(file).items()}
    wanted = load_file(root / "tiny" / "model.safetensors")
    assert read.keys() == wanted.keys()
    assert all(torch.equal(read[name], value) for name, value in wanted.items())


def test_each_of_two_ranks_writes_every_second_file(folders):
    first, second = folders[1]
    assert first
    assert second
    numbers = [{int(name.split("-")[1]) % 2 for name in names} for names in (first, second)]
    assert numbers == [{1}, {0}]
