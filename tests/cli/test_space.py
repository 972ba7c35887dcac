"""A Space runs as a user, read-only, with what constraints.txt pins, and hands `play` its arguments one a line."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from hub_rules import faults
from tercet.cli.card import docker_card
from tercet.cli.main import VERBS
from tercet.cli.parser import parser
from tercet.cli.space import DOCKERFILE, Space, note, space_of, write_space
from tercet.store import Identity, Store, StoreError

TEXT = DOCKERFILE.read_text("utf-8")
COMMAND = json.loads(re.findall(r"^CMD (.+)$", TEXT, re.M)[0])
SHOWN = Space("Every stage; $HOME * side", {"base": "wheel:m==1#m/a b.gguf", "sft": "me/sft@3f2a"}, [])


def test_the_container_is_pinned_and_runs_as_a_user():
    pins = (Path(__file__).parents[2] / "constraints.txt").read_text()
    assert f"torch=={dict(re.findall(r'^([A-Za-z0-9-]+)==(.+)$', pins, re.M))['torch']}" in TEXT
    assert TEXT.rindex("USER tercet") > TEXT.rindex("RUN ")


def test_the_card_is_one_of_a_container_at_the_port_that_it_opens():
    card = docker_card(SHOWN.title, SHOWN.models)
    assert faults(card, "space") == []
    port = re.findall(r"app_port: (.+)", card)[0]
    assert f"--port {port}" in COMMAND[-1]
    assert f"EXPOSE {port}" in TEXT


def test_the_command_hands_play_each_argument_whole(tmp_path):
    write_space(SHOWN, tmp_path / "space", None)
    command = [*COMMAND[:-1], COMMAND[-1].replace("exec tercet", "printf '%s\\n'")]
    own = {"SPACE_HOST": "me-demo.hf.space", "PATH": "/usr/bin:/bin"}
    said = subprocess.run(command, cwd=tmp_path / "space", env=own, capture_output=True, text=True, check=True)
    args = parser(VERBS).parse_args(said.stdout.splitlines())
    assert (args.models, args.name, args.title) == (list(SHOWN.models.values()), list(SHOWN.models), SHOWN.title)
    assert all((args.read_only, args.public, args.no_programs))
    assert (args.host, args.allow_host) == ("0.0.0.0", ["me-demo.hf.space"])


def test_models_that_nobody_can_fetch_are_left_out_or_refused(tmp_path):
    store = Store(tmp_path / "runs")
    made = []
    for name in ("sft", "dpo"):
        draft = store.draft(name, Identity(name, 1, {"kind": name}, {}).key)
        draft.open()
        made.append(draft.commit(Identity(name, 1, {"kind": name}, {}), {}, 1.0))
    args = parser(VERBS).parse_args(["push", str(store.root), "me/demo", "--space", "--store", str(store.root)])
    with pytest.raises(StoreError, match="none of its models was pushed; first `tercet push"):
        space_of(args)
    note(store, made[1], "me/old", "0")
    note(store, made[1], "me/dpo", "1")
    found = space_of(args)
    assert (found.models, found.left) == ({"dpo": "me/dpo@1"}, [made[0].path.name])
