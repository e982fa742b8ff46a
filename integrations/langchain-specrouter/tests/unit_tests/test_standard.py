"""LangChain's standard unit tests."""

from __future__ import annotations

from langchain_tests.unit_tests import ChatModelUnitTests

from langchain_specrouter import ChatSpecRouter


class TestChatSpecRouterUnit(ChatModelUnitTests):
    @property
    def chat_model_class(self):
        return ChatSpecRouter

    @property
    def chat_model_params(self):
        return {"model": "demo"}
