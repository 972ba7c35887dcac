"""Every knob of Tercet, the graph of a recipe, and its TOML file."""

from __future__ import annotations

from tercet.recipe.data_specs import (
    AskingSpec,
    MixSpec,
    MixtureSpec,
    ModelSpec,
    OnPolicyPairsSpec,
    PairMixSpec,
    PersonasSpec,
    RatedPairsSpec,
    SynthSpec,
    UnpairedMixSpec,
)
from tercet.recipe.eval_specs import BenchmarkSpec, EvalSpec, Gate, ReportSpec, gate
from tercet.recipe.file import dump, key_lines, load
from tercet.recipe.placement import BatchLayout, MeshShape, Placement
from tercet.recipe.recipe import Recipe
from tercet.recipe.rl_specs import ExtraSpec, GRPOSpec, MonitorSpec, PPOSpec, RLSpec
from tercet.recipe.specs import (
    BASE,
    DAY,
    KINDS,
    URL,
    BaseSpec,
    ExamplesSpec,
    FileRef,
    ModelSource,
    RecipeError,
    SourceSpec,
    StageSpec,
    kinds_of,
)
from tercet.recipe.train_specs import DPOSpec, LoraSpec, OfflineSpec, RewardModelSpec, SFTSpec, TrainSpec
