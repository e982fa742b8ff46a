"""llama.cpp as a peer: the same weights in its own format, in float32 with a float32 cache. Needs the extra `peers`.

The file is written without a vocabulary: prompts and answers are ids. Rotary embeddings of this format turn neighbouring
numbers, those of transformers the two halves of a head, so the rows of queries and keys change places.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from specrouter_llm.bench.contest import Decoding, Job
from specrouter_llm.bench.models import Models
from specrouter_llm.errors import InvalidParameterError, MissingDependencyError, UnsupportedModelError
from specrouter_llm.pool.widen import head_dim_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LLAMA_CPP = "llama.cpp"
LOOKUP_TOKENS = 10
_F32 = 0
"""`GGML_TYPE_F32`."""
_ARCHITECTURE = "llama"
_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""Of a layer's weights."""


@dataclass(frozen=True, slots=True)
class LlamaCppPeer:
    """Its decoding, plain or with its own prompt lookup."""

    name: str
    llama: Any
    """A `llama_cpp.Llama`; with a draft model it counts the proposals."""
    kind: str = "peer"
    family: str = LLAMA_CPP

    def decode(self, jobs: Sequence[Job]) -> Decoding:
        """Raises:
        InvalidParameterError: more than one job.
        """
        if len(jobs) != 1:
            raise InvalidParameterError("llama.cpp is measured one prompt at a time")
        (job,) = jobs
        self.llama.set_seed(job.params.seed or 0)
        self.llama.reset()
        self.llama.n_tokens = 0
        lookup = self.llama.draft_model
        answer: list[int] = []
        started = first = time.perf_counter()
        steps = 0
        for token in self.llama.generate(job.prompt_ids, temp=job.params.temperature, top_k=0, top_p=1.0, min_p=0.0):
            answer.append(int(token))
            if len(answer) == 1:
                first, steps = time.perf_counter(), lookup.calls if lookup else 0
            if len(answer) == job.params.max_tokens:
                break
        ended = time.perf_counter()
        return Decoding(
            token_ids=(tuple(answer),),
            seconds=ended - started,
            decode_seconds=ended - first,
            decode_tokens=len(answer) - 1,
            target_steps=lookup.calls - steps if lookup else len(answer) - 1,
        )


@contextmanager
def llama_cpp_peers(models: Models) -> Iterator[list[LlamaCppPeer]]:
    """llama.cpp plain and with prompt lookup, over the target.

    Raises:
        MissingDependencyError: its package or the one that writes its format is not installed.
        UnsupportedModelError: the target is not a plain Llama model.
    """
    try:
        import gguf  # noqa: F401  # is it installed?
        from llama_cpp import Llama
        from llama_cpp.llama_speculative import LlamaPromptLookupDecoding
    except ImportError as error:
        raise MissingDependencyError(
            f"the peer {LLAMA_CPP} needs more packages: pip install 'specrouter-llm[peers]' ({error})"
        ) from None

    class Lookup(LlamaPromptLookupDecoding):  # type: ignore[misc]  # untyped
        calls = 0

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return super().__call__(*args, **kwargs)

    threads = torch.get_num_threads()
    options = {"n_threads": threads, "n_threads_batch": threads, "type_k": _F32, "type_v": _F32, "verbose": False}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "target.gguf"
        pool = models.pool()
        write_gguf(pool.target.model, path)
        options |= {"model_path": str(path), "n_ctx": pool.target.context_length}
        pool.close()
        found = [
            LlamaCppPeer(LLAMA_CPP, Llama(**options)),
            LlamaCppPeer(
                f"{LLAMA_CPP} lookup@{LOOKUP_TOKENS}",
                Llama(draft_model=Lookup(num_pred_tokens=LOOKUP_TOKENS), **options),
            ),
        ]
        try:
            yield found
        finally:
            for peer in found:
                peer.llama.close()


def write_gguf(model: PreTrainedModel, path: Path) -> None:
    """Writes a Llama model's weights in float32.

    Raises:
        UnsupportedModelError: another architecture, a bias, or scaled rotary embeddings.
    """
    import gguf

    config: Any = model.config
    rope = config.rope_parameters
    if config.model_type != _ARCHITECTURE or config.attention_bias or config.mlp_bias or rope["rope_type"] != "default":
        raise UnsupportedModelError(f"only plain Llama models are written for {LLAMA_CPP}, not {config.model_type!r}")
    writer = gguf.GGUFWriter(path, _ARCHITECTURE)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim_of(config))
    writer.add_value_length(head_dim_of(config))
    writer.add_rope_dimension_count(head_dim_of(config))
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    for name, tensor in _tensors(model):
        writer.add_tensor(name, tensor.detach().float().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensors(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Names of the format, and weights in its order of rows."""
    inner, config = model.model, model.config
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    yield "token_embd.weight", inner.embed_tokens.weight
    yield "output_norm.weight", inner.norm.weight
    yield "output.weight", model.lm_head.weight
    for index, layer in enumerate(inner.layers):
        for theirs, name in _NAMES.items():
            weight = layer.get_submodule(theirs).weight
            if name in heads:
                halves = weight.view(heads[name], 2, head_dim_of(config) // 2, -1)
                weight = halves.transpose(1, 2).reshape(weight.shape)
            yield f"blk.{index}.{name}.weight", weight
