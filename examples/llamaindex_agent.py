"""An agent of LlamaIndex with tools, on a local model: every call it is made to produce fits its tool's schema.

It runs offline as it is, on the embedded family, whose skill is small: its first call is forced, and its numbers may be
wrong. A model of your own needs no forcing.

    python examples/llamaindex_agent.py --model path/to/model --draft path/to/small
"""

import argparse
import asyncio

from llama_index.core.agent.workflow import AgentStream, FunctionAgent, ToolCallResult

from llama_index.llms.specrouter import SpecRouterLLM


def multiply(a: int, b: int) -> int:
    """Multiply two integers."""
    return a * b


def add(a: int, b: int) -> int:
    """Add two integers."""
    return a + b


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--draft", action="append", help="a smaller model with the same vocabulary; may be repeated")
    arguments = parser.parse_args()
    llm = SpecRouterLLM(model=arguments.model, drafts=arguments.draft, max_tokens=60)
    agent = FunctionAgent(
        tools=[multiply, add],
        llm=llm,
        system_prompt="Use a tool for every calculation, then answer.",
        initial_tool_choice="multiply",
    )
    handler = agent.run(
        "What is 6 times 7?",
        max_iterations=4,
        early_stopping_method="generate",
    )
    async for event in handler.stream_events():
        if isinstance(event, ToolCallResult):
            print(f"\n[{event.tool_name}({event.tool_kwargs}) -> {event.tool_output.content}]")
        elif isinstance(event, AgentStream):
            print(event.delta, end="", flush=True)
    output = await handler
    print(f"\nanswer: {output.response.content}")
    llm.close()


if __name__ == "__main__":
    asyncio.run(main())
