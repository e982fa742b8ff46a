"""Retrieval-augmented answers with LlamaIndex: an index in memory, a streaming query engine, and what drafting made of it.

It runs offline as it is: the embedded family answers, and a hashed bag of words stands in for an embedding model.
Answers that quote the retrieved passages are drafted from the prompt: n-gram lookup alone, for here is no drafter.

    python examples/llamaindex_rag.py --model path/to/model
"""

import argparse
import math
import re
import zlib

from llama_index.core import ChatPromptTemplate, Document, Settings, VectorStoreIndex
from llama_index.core.embeddings import BaseEmbedding
from llama_index.core.instrumentation import get_dispatcher

from llama_index.llms.specrouter import SpecRouterLLM, SpecRouterStatsHandler

PASSAGES = [
    "Anna works as a baker in Oslo and moved there in 1987.",
    "The shells in the shop of Tom cost 70 dollars each.",
    "The lighthouse of Marrow Bay was built by Edith Crane.",
]
PROMPT = ChatPromptTemplate.from_messages(
    [
        ("system", "Answer the question using only the context."),
        ("user", "Context:\n[1] {context_str}\n\nQuestion: {query_str}"),
    ]
)
DIMENSIONS = 512


class HashedWords(BaseEmbedding):
    """A text as the counts of its words, hashed into a vector of length one. Deterministic, and needs no model."""

    def _get_text_embedding(self, text: str) -> list[float]:
        counts = [0.0] * DIMENSIONS
        for word in re.findall(r"\w+", text.lower()):
            counts[zlib.crc32(word.encode()) % DIMENSIONS] += 1.0
        length = math.sqrt(sum(count * count for count in counts)) or 1.0
        return [count / length for count in counts]

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    arguments = parser.parse_args()
    stats = SpecRouterStatsHandler()
    get_dispatcher().add_event_handler(stats)
    Settings.llm = llm = SpecRouterLLM(model=arguments.model, drafts=[], chain=["ngram"], max_tokens=40)
    Settings.tokenizer = llm.engine.tokenizer.encode_document  # what fits into the context is counted with it
    Settings.embed_model = HashedWords()
    index = VectorStoreIndex.from_documents([Document(text=passage) for passage in PASSAGES])
    engine = index.as_query_engine(streaming=True, similarity_top_k=1, text_qa_template=PROMPT)

    answer = engine.query("Where does Anna work?")
    print("found:", *(node.text for node in answer.source_nodes))
    print("answer:", end=" ")
    for piece in answer.response_gen:
        print(piece, end="", flush=True)
    for model, sums in stats.totals().items():
        print(f"\n{model}: {sums['num_target_steps']} target steps for {sums['completion_tokens']} tokens")
    llm.close()


if __name__ == "__main__":
    main()
