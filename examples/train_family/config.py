"""Everything that a build depends on, read from a JSON file (`cpu.json`, `gpu.json`)."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class Shape(BaseModel):
    """Dimensions of one Llama model; heads are 64 wide, embeddings tied."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int


class Training(BaseModel):
    """One run of training: how many tokens, in which portions, how fast."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokens: int
    """Positions of real text seen in all (padding is not counted)."""
    batch_tokens: int = 12288
    """Positions per step, padding included."""
    micro_tokens: int = 4096
    """Positions per forward; a step adds up several."""
    muon_lr: float = 0.02
    """For matrices inside the layers (Muon)."""
    adam_lr: float = 3e-3
    """For the embedding and the norms (AdamW)."""
    weight_decay: float = 0.01
    warmup_steps: int = 40
    decay_share: float = 0.45
    """Share of the run over which the rates fall linearly to zero."""
    seconds: float | None = None
    """Ends the run by then even if fewer tokens were seen; the rates have fallen by then."""


class FamilyConfig(BaseModel):
    """The whole build."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = 1
    device: str = "cpu"
    vocab_size: int = 4096
    corpus_tokens: int
    """How many tokens of documents are generated; training that needs more passes over them again."""
    mixture: dict[str, float]
    """Share of the documents by source: a skill's name, "gsm8k" or "prose"."""
    gsm8k: Path | None = None
    """GSM8K's train.jsonl (MIT), for the source of that name; left out where there is no such file."""
    prompt_share: float = Field(default=0.1, ge=0, le=1)
    """Share of a prompt's positions that are learnt too, beside all positions of answers."""
    begin_with: Path | None = None
    """Folder of a finished family of the same shapes, whose tokenizer is kept and whose weights are learnt further."""
    kept: float = Field(default=0.0, ge=0, lt=1)
    """Share of the weights begun with in the finished target, the rest being what training made of them: keeps what a narrow
    mixture would unlearn (weights averaged after fine-tuning: Wortsman et al., arXiv 2109.01903)."""
    target: Shape
    drafters: dict[str, Shape]
    train: Training
    distil: Training


def read_config(path: Path) -> FamilyConfig:
    """The configuration in `path`. Raises pydantic's ValidationError for unknown or missing settings."""
    return FamilyConfig.model_validate_json(path.read_text(encoding="utf-8"))
