"""Whether every machine of a stage sees the same store, known before the first step."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
from pathlib import Path

from tercet import journal
from tercet.recipe import Placement
from tercet.store import StoreError

ATTEMPT = "TERCET_ATTEMPT"  # the variable that tells ranks which start of their stage they belong to
FOLDER = "ranks"  # of a draft: what its ranks say of themselves


def token_of() -> str:
    """What the tokens of this run begin with."""
    return f"{socket.gethostname()}-{os.getpid()}-"


def begin(draft: Path) -> str:
    """A token for this start of a stage, written into its draft; what an earlier start left there goes."""
    token = token_of() + secrets.token_hex(8)
    shutil.rmtree(draft / FOLDER, ignore_errors=True)
    (draft / FOLDER).mkdir()
    journal.replace(draft / FOLDER / "attempt", token, sync=False)  # at once: others read it
    return token


def log_there(draft: Path) -> None:
    """Let this process write into the log of its draft: the first rank may be on any of the machines."""
    log = os.open(draft / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(log, stream)


def check(draft: Path, placement: Placement) -> None:
    """Refuse to be a rank on a machine that sees another folder than the one which started the stage, or none."""
    if not (token := os.environ.get(ATTEMPT)):
        return  # started by hand
    file = draft / FOLDER / "attempt"
    if file.is_file() and file.read_text(encoding="utf-8") == token:
        return
    raise StoreError(
        f"rank {os.environ.get('RANK')} on {socket.gethostname()} does not see {draft} as the machine does that "
        f"started it: a stage on {placement.nodes} machines needs a store that all of them share; give --store a "
        "folder of a shared file system, under the same path everywhere"
    )
