"""What the compiled forward is told: records of sizes and addresses, which Python fills in and compiled code reads."""

from __future__ import annotations

import numpy as np

_ADDRESS = np.dtype(np.int64)
FLOAT32, BFLOAT16, FLOAT16 = range(3)
"""How the numbers of a matrix are stored. Whatever it is, sums are made in float32."""
LAYER = np.dtype(
    [(name, _ADDRESS) for name in ("input_norm", "inner_norm", "query_norm", "key_norm")]
    + [(name, _ADDRESS) for name in ("qkv", "qkv_bias", "output", "output_bias", "gate", "gate_bias", "up", "up_bias")]
    + [(name, _ADDRESS) for name in ("down", "down_bias", "keys", "values", "window")]
    + [(name, np.dtype(np.float32)) for name in ("input_eps", "inner_eps", "query_eps", "key_eps", "scaling")]
    + [("padding", np.dtype(np.float32))]
)
"""One layer: addresses of float32 numbers, 0 for what it has not; `window` is a number of positions, 0 for no limit."""
STEP = np.dtype(
    [(name, _ADDRESS) for name in ("tokens", "hidden", "heads", "key_heads", "head_size", "inner", "num_layers")]
    + [
        (name, _ADDRESS)
        for name in ("layers", "stored", "embedding", "embedded", "cos", "sin", "head", "head_panels", "norm")
    ]
    + [(name, _ADDRESS) for name in ("ids", "positions", "pieces", "num_pieces", "capacity", "broken")]
    + [(name, _ADDRESS) for name in ("wanted", "num_wanted", "logits", "vocab", "count", "chosen")]
    + [(name, _ADDRESS) for name in ("stream", "normed", "qkv", "attended", "opened", "scratch", "scratch_size")]
    + [("eps", np.dtype(np.float32)), ("padding", np.dtype(np.float32))]
)
"""One forward: sizes, how all matrices and how embeddings (`embedded`) are stored, and addresses of what all layers share.
`pieces` are rows (slot, offset, start, number). A loop is `count` forwards, each but the first over what was chosen before:
`chosen` [pieces, count] ids below `vocab`."""
PRODUCT = np.dtype([(name, _ADDRESS) for name in ("x", "rows", "inner", "weight", "stored", "panels", "out")])
"""One product of plain rows [rows, inner]; the rows of `out` are as wide as the panels."""
