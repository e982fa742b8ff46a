"""LangChain's standard integration tests against the whole stack over a competent (scripted) model."""

from __future__ import annotations

import json
import re

import pytest
from langchain_tests.integration_tests import ChatModelIntegrationTests

from langchain_specrouter import ChatSpecRouter


def competent(tools):
    """What a good model would answer to the questions of the standard tests."""
    calls = {
        "magic_function(3)": ("magic_function", {"input": 3}),
        "magic_function_no_args()": ("magic_function_no_args", {}),
        "Pirate": ("greeting_generator", {"answer_style": "Pirate"}),
        "weather in San Francisco": ("get_weather", {"location": "San Francisco, CA"}),
        "你好啊集团": ("unicode_customer", {"customer_name": "你好啊集团", "description": "a Chinese company"}),
        "こんにちは株式会社": (
            "unicode_customer",
            {"customer_name": "こんにちは株式会社", "description": "a Japanese company"},
        ),
        "3 + 4": ("my_adder_tool", {"a": 3, "b": 4}),
        "Hello!": ("magic_function", {"input": 1}),
    }
    joke = json.dumps({"setup": "Why do cats sleep all day?", "punchline": "Nobody pays them."})

    def script(prompt: str) -> str:
        role, said = re.findall(r"<\|(user|assistant|tool|system)\|>(.*?)<\|end\|>", prompt, flags=re.DOTALL)[-1]
        if role == "tool":
            return "The tool has answered."
        if "joke" in said:
            return joke
        call = next((call for key, call in calls.items() if key in said), None) if "<tools>" in prompt else None
        return tools.tool_text(call[0], **call[1]) if call else "Hello to you too."

    return script


class TestScripted(ChatModelIntegrationTests):
    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _engine(cls, tools):
        cls.engine = tools.scripted_engine(competent(tools))
        yield
        cls.engine.close()

    @property
    def chat_model_class(self):
        return ChatSpecRouter

    @property
    def chat_model_params(self):
        return {"engine": self.engine, "max_tokens": 96, "min_tokens": 1}

    @property
    def model_override_value(self):
        return "demo/draft"

    @property
    def enable_vcr_tests(self):
        return True  # nothing is recorded: there is no network to record

    @property
    def supports_json_mode(self):
        return True

    @property
    def supports_anthropic_inputs(self):
        return True

    @property
    def supported_usage_metadata_details(self):
        return {"invoke": ["cache_read_input"], "stream": ["cache_read_input"]}

    def invoke_with_cache_read_input(self, *, stream=False):
        model = self.chat_model_class(**self.chat_model_params)
        prompt = "A prompt that is long enough to be found again in the cache."
        model.invoke(prompt)
        if not stream:
            return model.invoke(prompt)
        chunks = list(model.stream(prompt))
        return sum(chunks[1:], start=chunks[0])
