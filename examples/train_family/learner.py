"""One model that learns: its optimizers, its losses, and a state that can be put away and taken up again."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from examples.train_family.config import Shape, Training
from examples.train_family.induction import begin_with_induction, begin_with_twins
from examples.train_family.muon import BatchedMuon

HEAD_DIM = 64
CONTEXT = 2048


def new_model(shape: Shape, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A model in `shape` for the tokens of `tokenizer`. Blocks begin as the identity: what they write is zero.

    Two heads of the first layers are the exception: they can copy (see `induction`).
    """
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        head_dim=HEAD_DIM,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        rms_norm_eps=1e-5,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **shape.model_dump(),
    )
    model = LlamaForCausalLM(config)
    for layer in model.model.layers:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    begin_with_twins(model, tokenizer)
    begin_with_induction(model)
    return model


class Learner:
    """A model with Muon for the matrices of its layers and AdamW for the rest (K. Jordan's division of labour)."""

    def __init__(self, model: LlamaForCausalLM, settings: Training, device: str) -> None:
        self.model = model.to(device)
        self._settings = settings
        self._device = device
        matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
        others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
        self._rates = (settings.muon_lr, settings.adam_lr)
        self._optimizers: tuple[torch.optim.Optimizer, ...] = (
            BatchedMuon(matrices, lr=settings.muon_lr, weight_decay=settings.weight_decay),
            torch.optim.AdamW(others, lr=settings.adam_lr, betas=(0.9, 0.95), weight_decay=0.0),
        )

    def logits(self, tokens: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Logits [n, vocab] float32 at the `places` [n], which count through `tokens` [rows, length] row by row."""
        with torch.autocast(self._device, dtype=torch.bfloat16):
            hidden = self.model.model(input_ids=tokens, use_cache=False).last_hidden_state
            picked: torch.Tensor = functional.linear(hidden.flatten(0, 1)[places], self.model.lm_head.weight)
        return picked.float()

    def step(self, number: int, progress: float) -> None:
        """Applies the gradients of step `number`, at `progress` (0 to 1) of the run, and clears them."""
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        scale = self._scale(number, progress)
        for optimizer, rate in zip(self._optimizers, self._rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * scale
            optimizer.step()
            optimizer.zero_grad()

    def _scale(self, number: int, progress: float) -> float:
        """Warm-up, a plateau, and a straight line down to zero."""
        return min(1.0, (number + 1) / self._settings.warmup_steps, (1.0 - progress) / self._settings.decay_share)

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)


def prediction_loss(logits: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
    """Summed cross-entropy of `logits` [n, vocab] against the tokens that follow [n], in nats."""
    return functional.cross_entropy(logits, following, reduction="sum")


def distillation_loss(logits: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Summed Kullback-Leibler divergence of `logits` from the `teacher`'s, both [n, vocab], in nats."""
    return functional.kl_div(logits.log_softmax(-1), teacher.log_softmax(-1), reduction="sum", log_target=True)
