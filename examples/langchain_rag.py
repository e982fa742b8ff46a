"""Retrieval-augmented answers with LangChain: a vector store in memory, a streamed chain, and what drafting made of it.

It runs offline as it is: the embedded family answers, and a hashed bag of words stands in for an embedding model.
Answers that quote the retrieved passages are drafted from the prompt: n-gram lookup alone, for here is no drafter.

    python examples/langchain_rag.py --model path/to/model
"""

import argparse
import math
import re
import zlib

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore

from langchain_specrouter import ChatSpecRouter, SpecRouterStatsHandler

PASSAGES = [
    "Anna works as a baker in Oslo and moved there in 1987.",
    "The shells in the shop of Tom cost 70 dollars each.",
    "The lighthouse of Marrow Bay was built by Edith Crane.",
]
PROMPT = ChatPromptTemplate.from_messages(
    [
        ("system", "Answer the question using only the context."),
        ("user", "Context:\n[1] {context}\n\nQuestion: {question}"),
    ]
)
DIMENSIONS = 512


class HashedWords(Embeddings):
    """A text as the counts of its words, hashed into a vector of length one. Deterministic, and needs no model."""

    def embed_query(self, text: str) -> list[float]:
        counts = [0.0] * DIMENSIONS
        for word in re.findall(r"\w+", text.lower()):
            counts[zlib.crc32(word.encode()) % DIMENSIONS] += 1.0
        length = math.sqrt(sum(count * count for count in counts)) or 1.0
        return [count / length for count in counts]

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.embed_query(text) for text in texts]


def text_of(documents: list[Document]) -> str:
    text = "\n".join(document.page_content for document in documents)
    print("found:", text, "\nanswer:", end=" ", flush=True)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("question", nargs="?", default="Where does Anna work?")
    arguments = parser.parse_args()
    store = InMemoryVectorStore.from_texts(PASSAGES, HashedWords())
    model = ChatSpecRouter(model=arguments.model, drafts=[], chain=["ngram"], max_tokens=40)
    retriever = store.as_retriever(search_kwargs={"k": 1})
    chain = {"context": retriever | text_of, "question": RunnablePassthrough()} | PROMPT | model | StrOutputParser()
    stats = SpecRouterStatsHandler()
    for piece in chain.stream(arguments.question, {"callbacks": [stats]}):
        print(piece, end="", flush=True)
    for name, totals in stats.by_model.items():
        print(f"\n{name}: {totals.num_target_steps} target steps for {totals.num_output_tokens} tokens")
    model.close()


if __name__ == "__main__":
    main()
