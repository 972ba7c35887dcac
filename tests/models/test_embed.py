"""The embedder: means of hidden states, whatever else is in the batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tercet.models import embed
from tercet.models.embed import Embedder
from tercet.models.headers import BaseError


@pytest.fixture(scope="module")
def folder(roberta: Path) -> Path:
    return roberta


@pytest.fixture(scope="module")
def embedder(folder: Path) -> Embedder:
    return Embedder.open(folder)


def test_a_vector_is_the_mean_of_the_last_hidden_states(embedder: Embedder) -> None:
    ids = embedder.tokenizer("rain falls", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        states = embedder.model(input_ids=ids).last_hidden_state[0]
    torch.testing.assert_close(embedder.vectors(["rain falls"])[0], states.mean(0))


def test_similarity_is_one_for_equal_texts_and_less_for_others(embedder: Embedder) -> None:
    same, other = embedder.similarity(["rain falls", "rain falls"], ["rain falls", "a tram 99"])
    assert same == pytest.approx(1.0, abs=1e-6)
    assert -1 <= other < 0.99
    assert embedder.similarity(["a tram 99"], ["rain falls"]) == pytest.approx([other], abs=1e-6)


def test_the_rest_of_the_batch_does_not_matter(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["a", "", "longer than the others", "two words", "seven 7"]
    together = embedder.vectors(texts)
    monkeypatch.setattr(embed, "BATCH_TOKENS", 10)
    torch.testing.assert_close(embedder.vectors(texts), together, rtol=1e-4, atol=1e-5)


def test_a_long_text_is_cut_where_the_positions_end(embedder: Embedder) -> None:
    assert embedder.max_tokens == 40  # of 42 places, RoBERTa leaves the first two to padding
    assert embedder.similarity(["x" * 38], ["x" * 500]) == pytest.approx([1.0], abs=1e-6)


def test_no_pairs_have_no_similarities_and_uneven_lists_are_refused(embedder: Embedder) -> None:
    assert embedder.similarity([], []) == []
    with pytest.raises(ValueError, match="2 texts and 1 others"):
        embedder.similarity(["a", "b"], ["c"])


def test_weights_that_belong_to_another_model_are_refused(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    save_file({"encoder.odd": torch.zeros(2)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BaseError, match="tensors of RobertaModel"):
        Embedder.open(tmp_path)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BaseError, match="expected a Hugging Face folder"):
        Embedder.open(tmp_path)
