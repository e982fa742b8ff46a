"""A LangChain agent on a local model: the first turn must call a tool, and a forced call is always well-formed.

It runs offline as it is, on the embedded family, whose skill is small: it would not choose a call by itself.

    pip install langchain
    python examples/langchain_agent.py --model path/to/model
"""

import argparse
from collections.abc import Callable

from langchain.agents import create_agent
from langchain.agents.middleware import ModelRequest, ModelResponse, wrap_model_call
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool

from langchain_specrouter import ChatSpecRouter, SpecRouterStatsHandler


@tool
def get_weather(city: str) -> str:
    """Tell the weather of a city."""
    return f"It is sunny in {city}."


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@wrap_model_call
def call_first(request: ModelRequest, handler: Callable[[ModelRequest], ModelResponse]) -> ModelResponse:
    """Small models answer from memory where they should look: the grammar makes them ask a tool first."""
    asked = isinstance(request.messages[-1], HumanMessage)
    return handler(request.override(tool_choice="any" if asked else "none"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("question", nargs="?", default="What is the weather in London?")
    arguments = parser.parse_args()
    model = ChatSpecRouter(model=arguments.model, max_tokens=60)
    agent = create_agent(model, tools=[get_weather, add], middleware=[call_first])
    stats = SpecRouterStatsHandler()
    result = agent.invoke({"messages": [HumanMessage(arguments.question)]}, {"callbacks": [stats]})
    for message in result["messages"]:
        if isinstance(message, AIMessage) and message.tool_calls:
            print("calls:", [(call["name"], call["args"]) for call in message.tool_calls])
        elif isinstance(message, ToolMessage):
            print("tool:", message.content)
    print("answer:", result["messages"][-1].text)
    for name, totals in stats.by_model.items():
        print(f"{name}: {totals.num_calls} calls, {totals.mean_acceptance_length:.1f} tokens per target step")
    model.close()


if __name__ == "__main__":
    main()
