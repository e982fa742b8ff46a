"""64 inputs in one `batch` against 64 calls of `invoke`: the same answers, and how much sooner.

    python benchmarks/batch.py [--model path/to/model] [--max-tokens 32] [--max-batch 8]

Prints the seconds of each of three pairs, in alternating order, and the ratio of their medians. The answers are greedy;
both sides draft in the same way.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

from langchain_specrouter import ChatSpecRouter

NUM_INPUTS = 64
NUM_PAIRS = 3


def timed(answer: Callable[[], list[str]]) -> tuple[float, list[str]]:
    """(seconds, answers)."""
    start = time.perf_counter()
    answers = answer()
    return time.perf_counter() - start, answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--drafts", nargs="*")
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--max-batch", type=int, default=8)
    args = parser.parse_args()
    engine_kwargs = {"max_batch": args.max_batch, "progress": False, "generation_config": "ignore"}
    model = ChatSpecRouter(
        model=args.model, drafts=args.drafts, max_tokens=args.max_tokens, temperature=0, engine_kwargs=engine_kwargs
    )
    questions = [f"Sam buys {i + 2} boxes. Each box holds {i + 3} stickers. How many?" for i in range(NUM_INPUTS)]
    ways: dict[str, Callable[[], list[str]]] = {
        "invoke": lambda: [model.invoke(question).text for question in questions],
        "batch": lambda: [message.text for message in model.batch(list(questions))],
    }
    expected = ways["invoke"]()  # loads the model and warms it up
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    different = 0
    for pair in range(NUM_PAIRS):
        for name in sorted(ways, reverse=pair % 2 == 0):
            took, answers = timed(ways[name])
            seconds[name].append(took)
            different += sum(a != b for a, b in zip(answers, expected, strict=True))
    for name, times in seconds.items():
        print(f"{name:6s} {' '.join(f'{t:.2f}' for t in times)} s for {NUM_INPUTS} inputs")
    print(f"{different} of {2 * NUM_PAIRS * NUM_INPUTS} answers differ")
    print(f"batch is {median(seconds['invoke']) / median(seconds['batch']):.2f} times as fast (ratio of medians)")
    model.close()


if __name__ == "__main__":
    main()
