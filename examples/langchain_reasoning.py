"""Thinking step by step, live: a LangChain stream, and beside it how much of what was drafted the target accepts.

One chunk is one step of the target: however many tokens it commits arrive together. `on_step` tells what was drafted.
It runs offline as it is, on the embedded family, which is better at stories than at sums.

    python examples/langchain_reasoning.py "Tom has 4 bags of 6 marbles. How many marbles?" --model path/to/model
"""

import argparse
from collections import deque

from langchain_core.prompts import ChatPromptTemplate

from langchain_specrouter import ChatSpecRouter
from specrouter_llm import StepInfo

PROMPT = ChatPromptTemplate.from_messages(
    [("system", "Think step by step. Write one short step per line, then the answer."), ("user", "{question}")]
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("question", nargs="?", default="Sam buys 3 boxes of stickers. Each box holds 8. How many?")
    arguments = parser.parse_args()
    steps: deque[StepInfo] = deque()  # filled by the engine's thread
    model = ChatSpecRouter(model=arguments.model, max_tokens=80, on_step=steps.append)
    num_steps = committed = drafted = accepted = 0
    thoughts = ""
    for chunk in (PROMPT | model).stream({"question": arguments.question}):
        while steps:
            step = steps.popleft()
            num_steps += 1
            committed += len(step.committed)
            drafted += sum(level.drafted for level in step.levels[-1:])  # the level right below the target
            accepted += sum(level.accepted for level in step.levels[-1:])
        rate = f"{accepted / drafted:4.0%}" if drafted else "   -"
        print(f"{committed:3d} tokens in {num_steps:2d} steps, accepted {rate}  {chunk.text!r}", flush=True)
        thoughts += chunk.text
    print(thoughts.strip())
    model.close()


if __name__ == "__main__":
    main()
