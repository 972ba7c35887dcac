"""SFT, DPO and GRPO at real shapes, random weights, on one card: tokens a second, useful MFU, peak memory, and TRL's.

Rows are random tokens of the full length, so that every cell does the same work every time; TRL runs where it is
installed (in this interpreter, or in the environment that the other comparisons made). Useful MFU counts the trained
tokens alone: 6 FLOP for each of them and each weight (4 where the weights are frozen beside adapters), over the whole
step and the card's dense bf16 peak. `--dry` does everything on a two-layer model, on whatever processor is there.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import peer
from ratios import keep

METHODS = ("sft", "dpo", "grpo")


class Shape(NamedTuple):
    """A Llama's size. `whole` is how all its weights are trained; otherwise adapters are."""

    hidden: int
    layers: int
    heads: int
    key_heads: int
    inner: int
    vocabulary: int
    tied: bool
    whole: bool

    @property
    def weights(self) -> int:
        """Parameters, an embedding that is tied counted once; norms left out."""
        head = self.hidden // self.heads
        attention = 2 * self.hidden * self.hidden + 2 * self.hidden * head * self.key_heads
        layer = attention + 3 * self.hidden * self.inner
        return self.layers * layer + self.vocabulary * self.hidden * (1 if self.tied else 2)


SHAPES = {
    "1b": Shape(2048, 16, 32, 8, 8192, 128256, tied=True, whole=True),  # Llama 3.2 1B
    "8b": Shape(4096, 32, 32, 8, 14336, 128256, tied=False, whole=False),  # Llama 3.1 8B
    "dry": Shape(64, 2, 4, 2, 128, 512, tied=True, whole=True),
    "dry-lora": Shape(64, 2, 4, 2, 128, 512, tied=True, whole=False),
}
LORA = {"r": 16, "alpha": 32.0}
PEER_LORA = ("dpo", "grpo")  # TRL's sides that read the job's adapters
SPARE = 24e9  # bytes for activations, logits and the cache


def main() -> None:
    """Measure every cell that fits, or do one measurement's work."""
    options = arguments().parse_args()
    if options.job:
        import tercet_side

        return {"sft": tercet_side.sft, "dpo": tercet_side.dpo, "grpo": tercet_side.grpo}[options.method](options.job)
    card, memory = card_memory()
    if options.dry:
        options.shapes, options.tokens, options.batch, options.num_generations = ["dry", "dry-lora"], 128, 2, 4
        options.threads, options.micro_tokens, options.steps = 1, 256, 2
    elif not memory:
        raise SystemExit("no NVIDIA card is visible (nvidia-smi); use --dry to try the scripts without one")
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.shapes:
            found += measure(name, Path(folder) / name, memory, options)
    print(f"\n{card or 'no card'}\n{table(found)}")
    if not options.dry:
        peer.save("gpu", found)
        keep("gpu", {"card": card})
    if failed := [cell["name"] for cell in found if "error" in cell]:
        raise SystemExit(f"failed: {', '.join(failed)}")
    return None


def arguments() -> argparse.ArgumentParser:
    """The options; the sizes are those of a card with 80 GB or more."""
    parser = peer.arguments(__doc__.partition("\n")[0])
    parser.add_argument("--dry", action="store_true", help="tiny shapes, any processor, nothing kept")
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=["1b", "8b"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--method", choices=METHODS, help=argparse.SUPPRESS)
    parser.add_argument("--tokens", type=int, default=4096, help="length of a row: of GRPO half is prompt")
    parser.add_argument("--batch", type=int, default=8, help="rows, pairs or half as many prompts of a step")
    parser.add_argument("--num-generations", type=int, default=8, help="completions of a prompt")
    parser.set_defaults(steps=4, rounds=1, micro_tokens=16384, peer_micro=2)
    return parser


def card_memory() -> tuple[str, float]:
    """The first card's name and bytes, as its driver reports them; an empty name and 0 without one."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "", 0.0
    name, _, mebibytes = listed.splitlines()[0].rpartition(",")
    return name.strip(), float(mebibytes) * 2**20


def measure(name: str, folder: Path, memory: float, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every cell of a shape: what was measured, or why it was not."""
    shape, found = SHAPES[name], []
    needed = bytes_needed(shape)
    if memory and needed > memory:
        print(f"{name}: skipped, it needs about {needed / 1e9:.0f} GB of the card's {memory / 1e9:.0f} GB")
        return []
    if not shape.whole and importlib.util.find_spec("peft") is None:
        print(f"{name}: skipped, its weights are trained through adapters, which need peft (pip install peft)")
        return []
    print(f"{name}: writing {shape.weights / 1e9:.2f} G random weights", flush=True)
    write_model(shape, folder, options)
    for method in options.methods:
        for side in cell(name, method, folder, options):
            try:
                peer.measure([side], rows(method, shape, options), options.rounds)
            except SystemExit as error:  # out of memory, most of the time: the next cell may fit
                print(error)
                found.append({"name": side.name, "error": str(error)})
                continue
            found.append(figures(side, shape, memory))
    return found


def bytes_needed(shape: Shape) -> float:
    """Of fp32 master, gradient and two moments, and a bf16 copy; or of frozen weights, which TRL keeps in fp32.

    The reference model of DPO and GRPO is one more copy in bf16.
    """
    return shape.weights * ((16 + 2 if shape.whole else 4) + 2) + SPARE * min(1.0, shape.weights / 1e9)


def write_model(shape: Shape, folder: Path, options: argparse.Namespace) -> None:
    """A Hugging Face folder with random weights, and a tokenizer with one token per byte."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig
    from transformers.utils.logging import disable_progress_bar

    from tercet.models.tiny import write_tokenizer

    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        max_position_embeddings=2 * options.tokens,
        tie_word_embeddings=shape.tied,
        bos_token_id=257,
        eos_token_id=258,
        pad_token_id=256,
    )
    disable_progress_bar()
    torch.manual_seed(options.seed)
    kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    with torch.device(kind or "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    write_tokenizer(folder)


def cell(name: str, method: str, folder: Path, options: argparse.Namespace) -> list[peer.Side]:
    """Tercet, and TRL where it is installed, on the same job."""
    options.model = folder
    prompts = max(1, options.batch // 2) if method == "grpo" else options.batch
    job = peer.base_job(options) | {"batch": prompts, "max_length": options.tokens, "beta": 0.1, "kl_beta": 0.01}
    job |= {"num_generations": options.num_generations, "max_new_tokens": options.tokens // 2}
    job["variant"] = variant(method)
    if not SHAPES[name].whole:
        job |= {"fit": {"lora": LORA}}
    what = f"{name} {method}" + ("" if SHAPES[name].whole else " LoRA")
    command = [sys.executable, str(peer.HERE / "gpu_train.py"), "--method", method, "--job"]
    sides = [peer.Side(f"{what}: Tercet", command, job)]
    python = peer_python()
    if python is None:
        print("TRL is not installed here (pip install 'trl==1.16.*' datasets): Tercet alone is measured")
    elif not SHAPES[name].whole and not (method in PEER_LORA and has_peft(python)):
        print(f"{what}: TRL left out, adapters need peft beside it, and its {method} side to use them")
    else:
        sides.append(peer.Side(f"{what}: TRL", [python, str(peer.HERE / f"trl_{method}.py")], job))
    return sides


def variant(method: str) -> str:
    """How TRL does it: rows of full length need no packing."""
    return "padded" if method == "sft" else "concatenated"


def peer_python() -> str | None:
    """An interpreter that has TRL: this one, or that of the other comparisons; none is made."""
    if importlib.util.find_spec("trl") is not None:
        return sys.executable
    return str(peer.PEER / "bin" / "python") if (peer.PEER / ".ready").is_file() else None


def has_peft(python: str) -> bool:
    """Whether that interpreter can make adapters."""
    return not subprocess.run([python, "-c", "import peft"], capture_output=True, check=False).returncode


def rows(method: str, shape: Shape, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Random rows of full length, enough for every step."""
    source = random.Random(options.seed)
    number, half = (options.steps + 1) * options.batch, options.tokens // 2

    def draw(length: int) -> list[int]:
        return [source.randrange(300, shape.vocabulary) for _ in range(length)]

    if method == "sft":
        return [{"token_ids": draw(options.tokens), "mask": [True] * options.tokens} for _ in range(number)]
    if method == "dpo":
        names = ("prompt_ids", "chosen_ids", "rejected_ids")
        return [{name: draw(half) for name in names} for _ in range(number)]
    texts = ("".join(source.choice("abcdefgh ") for _ in range(half - 40)) for _ in range(number))
    return [{"prompt": [{"role": "user", "content": text}], "reference": ""} for text in texts]


def figures(side: peer.Side, shape: Shape, memory: float) -> dict[str, Any]:
    """What a cell keeps: speeds, useful MFU where the card's peak is known, peak memory of the card or the process."""
    found = peer.medians(side)
    if "memory_gb" in side.rounds[0]:
        found["memory_gb"] = max(one["memory_gb"] for one in side.rounds)
    if memory and (peak := peak_flops()) is not None:
        found["mfu"] = (6 if shape.whole else 4) * shape.weights * found["trained_per_second"] / peak
    return {"name": side.name, "job": peer.public(side.job), "median": found, "rounds": side.rounds}


def peak_flops() -> float | None:
    """The card's dense bf16 peak."""
    from tercet.device.mesh import mesh
    from tercet.device.mesh import peak_flops as known

    with mesh() as ranks:
        return known(ranks.device)


def table(found: list[dict[str, Any]]) -> str:
    """One line for each cell; TRL's lines say what Tercet makes of them."""
    lines = [
        "| cell | trained tokens/s | s/step | useful MFU | GB | Tercet's speed | Tercet's memory |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    by_name = {one["name"]: one.get("median") for one in found}
    for name, now in by_name.items():
        if now is None:
            lines.append(f"| {name} | failed |||||  |")
            continue
        mine = by_name.get(name.partition(":")[0] + ": Tercet") or now
        mfu = f"{now['mfu']:.1%}" if "mfu" in now else "–"
        speed, memory = mine["trained_per_second"] / now["trained_per_second"], _memory(mine) / _memory(now)
        cells = (f"{now['trained_per_second']:.0f}", f"{now['seconds_per_step']:.2f}", mfu, f"{_memory(now):.1f}")
        lines.append(f"| {name} | {' | '.join(cells)} | {speed:.2f}x | {memory:.2f}x |")
    return "\n".join(lines)


def _memory(median: dict[str, float]) -> float:
    """GB of the card; of the process where there is no card."""
    return median.get("memory_gb", median["peak_mib"] * 2**20 / 1e9)


if __name__ == "__main__":
    main()
