"""Every data set of the Tülu 3 recipe in one flat table: where it is, on what terms, and what is kept of it.

Counts are those of the paper (T7, T15, T22) and add up to its totals; licences are those of the data cards. A revision
is given where public code outside its makers pins the same one; an empty one must be pinned in the recipe.
`commercial` reads the licence ("no" forbids it) and the texts' origin: "unclear" where the licence is not stated, is
disputed, or where answers came from a model whose terms restrict what may be trained on them. It is no legal advice.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tercet.hub import COLUMNS


@dataclass(frozen=True)
class Dataset:
    """One data set. `rows` is its count in the published mix of its stage, `label` its name in that mix's `source`.

    `adapter` names a function of `adapters`; `policy` says whose answers are kept and what is left out (§4.1.1).
    """

    stage: str  # "sft", "preference 8b", "preference 70b", "rlvr", "published" (a whole mix) or "origin"
    name: str
    hub: str
    subset: str
    revision: str
    licence: str
    commercial: str  # "yes", "no" or "unclear"
    adapter: str
    rows: int
    label: str
    policy: str
    split: str = "train"


TOTALS = {"sft": 939_344, "preference 8b": 271_409, "preference 70b": 334_302, "rlvr": 29_946}  # as published

_ODC = "ODC-BY-1.0"
_PERSONA = "prompt by GPT-4o for one persona, answer by GPT-4o"
_ON_8B = "one side by Tülu 3 8B SFT, the other drawn from the pool; rated by GPT-4o"
_ON_70B = "one side by Tülu 3 70B SFT, the other drawn from the pool; rated by GPT-4o"

_SFT: tuple[tuple[str, str, str, str, str, str, str, int, str, str], ...] = (
    # name, hub id, subset, revision, licence, commercial, adapter, rows, label, policy
    ("Tülu 3 Hardcoded", "allenai/tulu-3-hardcoded-prompts", "", "", "CC-BY-4.0", "yes", "hardcoded", 240,
     "ai2-adapt-dev/tulu_hard_coded_repeated_10",
     "24 hand-written answers about the model, ten times; not filtered. Fill a template with your own"),
    ("OpenAssistant", "OpenAssistant/oasst1", "", "fdf72ae0827c1cda404aff25b6603abec9e3399b", "Apache-2.0", "yes",
     "oasst", 7_132, "ai2-adapt-dev/oasst1_converted",
     "human answers; the best reply at every branch by mean quality label. The hub's mix holds 7,131"),
    ("No Robots", "HuggingFaceH4/no_robots", "", "e6f9a4ac5c37faeb744ba9ecf0473184d7f8105b", "CC-BY-NC-4.0", "no",
     "rows", 9_500, "ai2-adapt-dev/no_robots_converted", "human answers, kept; not filtered"),
    ("WildChat GPT-4", "allenai/WildChat-1M-Full", "", "", _ODC, "unclear", "wildchat", 100_000,
     "ai2-adapt-dev/tulu_v3.9_wildchat_100k",
     "GPT-4's conversations only, of the full (gated) release; decontaminated and sampled"),
    ("FLAN v2", "Open-Orca/FLAN", "cot_fsopt_data", "", "not stated", "unclear", "inputs_targets", 89_982,
     "ai2-adapt-dev/flan_v2_converted",
     "20,000 each of cot_fsopt, cot_zsopt, niv2_fsopt and niv2_zsopt, 2,000 each of flan_fsopt and flan_zsopt, "
     "6,000 of t0_fsopt (each with _data); 18 filtered"),
    ("SciRIFF", "allenai/SciRIFF-train-mix", "", "", _ODC, "yes", "sciriff", 10_000,
     "ai2-adapt-dev/tulu_v3.9_sciriff_10k", "expert-written tasks; the science part only; empty turns filtered"),
    ("TableGPT", "LipengCS/Table-GPT", "All", "", "MIT", "yes", "prompt_completion", 5_000,
     "ai2-adapt-dev/tulu_v3.9_table_gpt_5k", "answers follow from the tables; sampled"),
    ("Tülu 3 Persona MATH", "allenai/tulu-3-sft-personas-math", "", "", _ODC, "unclear", "rows", 149_960,
     "ai2-adapt-dev/personahub_math_v5_regen_149960", _PERSONA),
    ("Tülu 3 Persona GSM", "allenai/tulu-3-sft-personas-math-grade", "", "", _ODC, "unclear", "rows", 49_980,
     "allenai/tulu-3-sft-personas-math-grade", _PERSONA),
    ("Tülu 3 Persona Algebra", "allenai/tulu-3-sft-personas-algebra", "", "", _ODC, "unclear", "rows", 20_000,
     "ai2-adapt-dev/tulu_v3.9_personahub_math_interm_algebra_20k", _PERSONA),
    ("OpenMathInstruct 2", "nvidia/OpenMathInstruct-2", "", "469216e3f46f4dacf476b382e192485ea51a143e", "CC-BY-4.0",
     "yes", "openmath_gsm8k", 50_000, "ai2-adapt-dev/tulu_v3.9_open_math_2_gsm8k_50k",
     "answers by Llama 3.1 405B Instruct; the part grown from GSM8K, sampled"),
    ("NuminaMath-TIR", "AI-MO/NuminaMath-TIR", "", "", "Apache-2.0 (an earlier card: CC-BY-NC-4.0)", "unclear",
     "rows", 64_312, "ai2-adapt-dev/numinamath_tir_math_decontaminated",
     "GPT-4's solutions with tools; decontaminated against MATH"),
    ("Tülu 3 Persona Python", "allenai/tulu-3-sft-personas-code", "", "", _ODC, "unclear", "rows", 34_999,
     "ai2-adapt-dev/personahub_code_v2_34999", "prompt by GPT-4o for one persona, program by Claude 3.5 Sonnet"),
    ("Evol CodeAlpaca", "ise-uiuc/Magicoder-Evol-Instruct-110K", "", "b0079beaa0361d82412520b873715bee59cc7dd4",
     "Apache-2.0", "unclear", "alpaca", 107_276, "ai2-adapt-dev/evol_codealpaca_heval_decontaminated",
     "GPT-4's answers, kept; decontaminated against HumanEval"),
    ("CoCoNot", "allenai/coconot", "original", "", _ODC, "unclear", "prompt_completion", 10_983,
     "ai2-adapt-dev/coconot_converted", "GPT-4's answers, kept; only keywords filtered"),
    ("WildJailbreak", "allenai/wildjailbreak", "train", "", _ODC, "unclear", "wildjailbreak", 50_000,
     "ai2-adapt-dev/tulu_v3.9_wildjailbreak_decontaminated_50k",
     "synthetic, answers kept; all four types; decontaminated and sampled. Gated"),
    ("WildGuardMix", "allenai/wildguardmix", "wildguardtrain", "", "Apache-2.0", "unclear", "wildguardmix", 50_000,
     "ai2-adapt-dev/tulu_v3.9_synthetic_finalresp_wildguardmixtrain_decontaminated_50k",
     "prompts only: weak models' answers were replaced by GPT-4o's; decontaminated and sampled. Gated"),
    ("Aya", "CohereLabs/aya_dataset", "default", "f9ea04583f02a8f86404ff6c58bf75fe637df8a2", "Apache-2.0", "yes",
     "inputs_targets", 100_000, "ai2-adapt-dev/tulu_v3.9_aya_100k", "human answers in many languages; sampled"),
    ("Tülu 3 Persona IF", "allenai/tulu-3-sft-personas-instruction-following", "",
     "fe0c7d350c9b4542b8d829a6f1daa1c259f0ba0e", _ODC, "unclear", "rows", 29_980,
     "ai2-adapt-dev/personahub_ifdata_manual_seed_v3_29980", _PERSONA),
)  # fmt: skip


def _preference(size: str, parts: Iterable[tuple[str, str, int, str]]) -> tuple[Dataset, ...]:
    """The parts of one mix of pairs: name, hub id after `allenai/`, rows, policy."""
    found = []
    for name, part, rows, policy in parts:
        hub = f"allenai/{part}" if part else ""
        stage = f"preference {size}"
        found.append(Dataset(stage, name, hub, "", "", _ODC, "unclear", "preference", rows, hub, policy))
    return tuple(found)


def _rlvr() -> tuple[Dataset, ...]:
    return (
        Dataset("rlvr", "GSM8K", "allenai/RLVR-GSM", "", "b14884519de816306cf8ce7fc74547284b9ac548", "MIT", "yes",
                "rlvr", 7_473, "gsm8k", "8 worked examples before each prompt; the truth is the number after ####"),
        Dataset("rlvr", "MATH", "allenai/RLVR-MATH", "", "bd2a93551b503a395fadd1a740d957559cfe6f3c", "MIT", "yes",
                "rlvr", 7_500, "MATH", "3 worked examples before each prompt; the truth is the boxed answer"),
        Dataset("rlvr", "IF with verifiable constraints", "allenai/RLVR-IFeval", "",
                "47c03c73621c4aab2b824b7818681117d662770e", _ODC, "unclear", "rlvr", 14_973, "ifeval",
                "a Tülu 2 instruction with one constraint; the truth is its checker's JSON"),
    )  # fmt: skip


def _wholes() -> tuple[Dataset, ...]:
    """The published mixes as they are served, and where some parts came from."""
    pairs = "allenai/llama-3.1-tulu-3-{}-preference-mixture"
    return (
        Dataset("published", "Tülu 3 SFT mixture", "allenai/tulu-3-sft-mixture", "",
                "b14afda60f1bbebe55d5d2fa1e4df5042f97f8be", _ODC, "no", "tulu_sft", 939_343, "",
                "one row fewer than the paper's total (OpenAssistant); holds No Robots"),
        Dataset("published", "Tülu 3 8B preferences", pairs.format("8b"), "", "", _ODC, "unclear", "preference",
                271_409, "", "the eight parts, size 8B"),
        Dataset("published", "Tülu 3 70B preferences", pairs.format("70b"), "", "", _ODC, "unclear", "preference",
                334_367, "", "65 rows more than the paper's total"),
        Dataset("published", "Tülu 3 405B preferences", pairs.format("405b"), "", "", _ODC, "unclear", "preference",
                360_924, "", "with ratings and models"),
        Dataset("published", "RLVR mix", "allenai/RLVR-GSM-MATH-IF-Mixed-Constraints", "", "", _ODC, "unclear", "rlvr",
                29_946, "", "the three parts together"),
        Dataset("origin", "GSM8K train", "openai/gsm8k", "main", "740312add88f781978c0658806c59bc2815b9866", "MIT",
                "yes", "gsm8k_prompt", 7_473, "", "prompts zero-shot, or behind 8 examples given to the reader"),
        Dataset("origin", "MATH train", "EleutherAI/hendrycks_math", "algebra",
                "21a5633873b6a120296cce3e2df9d5550074f4a3", "MIT", "yes", "math_prompt", 7_500, "",
                "seven subsets, one for each subject; zero-shot, or behind 3 examples given to the reader"),
        Dataset("origin", "UltraFeedback", "openbmb/UltraFeedback", "", "40b436560ca83a8dba36114c22ab3c66e43f6d5e",
                "MIT", "unclear", "ultrafeedback", 41_635, "",
                "prompts without the TruthfulQA and ShareGPT parts; decontaminated"),
    )  # fmt: skip


_SHARED = ("SFT reused, off-policy", "tulu-3-sft-reused-off-policy", 96_911, "drawn from the pool; rated by GPT-4o")
CATALOGUE: tuple[Dataset, ...] = (
    *(Dataset("sft", *row) for row in _SFT),
    *_preference("8b", (
        ("SFT reused, on-policy", "tulu-3-sft-reused-on-policy-8b", 19_444, _ON_8B),
        _SHARED,
        ("IF-augmented", "tulu-3-IF-augmented-on-policy-8b", 65_530, _ON_8B),
        ("WildChat IF", "tulu-3-wildchat-if-on-policy-8b", 10_792, _ON_8B),
        ("WildChat reused", "tulu-3-wildchat-reused-on-policy-8b", 17_207, _ON_8B),
        ("UltraFeedback cleaned", "tulu-3-ultrafeedback-cleaned-on-policy-8b", 41_635, _ON_8B),
        ("Persona IF", "tulu-3-pref-personas-instruction-following", 19_890,
         "rejected: GPT-4o's answer to the instruction with one constraint dropped; not rated"),
    )),
    *_preference("70b", (
        ("SFT reused, on-policy", "tulu-3-sft-reused-on-policy-70b", 19_444, _ON_70B),
        _SHARED,
        ("IF-augmented", "tulu-3-IF-augmented-on-policy-70b", 65_530, _ON_70B),
        ("WildChat IF", "tulu-3-wildchat-if-on-policy-70b", 10_792, _ON_70B),
        ("WildChat reused", "tulu-3-wildchat-reused-on-policy-70b", 17_207, _ON_70B),
        ("WildChat unused", "", 82_783, "drawn from the pool; only inside the published mix as far as we know"),
        ("UltraFeedback cleaned", "tulu-3-ultrafeedback-cleaned-on-policy-70b", 41_635,
         f"{_ON_70B}; hub id by analogy with 8B"),
    )),
    *_rlvr(),
    *_wholes(),
)  # fmt: skip

# Questions about the assistant itself, to be filled with the user's own facts: a template for the hardcoded set.
HARDCODED: tuple[tuple[str, str], ...] = (
    ("Who are you?", "I am {{name}}, an AI assistant made by {{maker}}."),
    ("What is your name?", "My name is {{name}}."),
    ("Who made you?", "I was made by {{maker}}."),
    ("Are you a person?", "No. I am {{name}}, a language model; I have no body and live no life of my own."),
    ("Which model are you based on?", "{{maker}} trained me on top of {{base}}."),
    ("Is your code open?", "My weights and what made them are shared under these terms: {{licence}}."),
    ("Where can I learn more about you?", "{{maker}} describes me here: {{page}}"),
    ("Can you look things up on the internet?", "No. I answer from what I learnt and from what you write to me."),
    ("Do you remember what we talked about yesterday?", "No. I see only the conversation we are in."),
    ("How should I cite you?", "Please cite {{maker}}'s description of {{name}}: {{page}}"),
    ("Tell me about {{maker}}.", "{{about_maker}}"),
    ("What can you help me with?", "I can explain, write, calculate and program with you. Check what matters: I err."),
)


def of_stage(stage: str) -> tuple[Dataset, ...]:
    """The data sets of one stage, in the order of the paper's table."""
    return tuple(dataset for dataset in CATALOGUE if dataset.stage == stage)


def find(name: str) -> Dataset | None:
    """The data set a source names: by hub id (with or without a subset), by its label in a mix, or by its name.

    A part of a published mix, `allenai/tulu-3-sft-mixture:LABEL`, is the data set that has this label there.
    """
    mix, _, part = name.partition(":")
    if mix in COLUMNS and part:
        return find(part)
    for dataset in CATALOGUE:
        known = (dataset.hub, f"{dataset.hub}:{dataset.subset}", dataset.label, dataset.name)
        if name and (name in known or (dataset.hub and name.startswith(f"{dataset.hub}:"))):
            return dataset
    return None


def conflicts(names: Iterable[str]) -> list[str]:
    """What stands against commercial use of these sources: one sentence for each that is not plainly allowed."""
    found = []
    for name in dict.fromkeys(names):
        dataset = find(name)
        if dataset is None:
            found.append(f"{name}: not in the catalogue; its licence is not known here")
        elif dataset.commercial == "no":
            found.append(f"{name}: {dataset.licence} and what it holds do not allow commercial use")
        elif dataset.commercial == "unclear":
            found.append(f"{name}: {dataset.licence}, but commercial use is unclear ({dataset.policy})")
    return found
