"""Retrieved passages as draft sources: the answer quotes them, so lookup drafts it without any model.

Run it as it is (it uses the embedded family), or with a model of your own:

    python examples/draft_from_documents.py --target path/to/model
"""

import argparse

from specrouter_llm import SpecRouter

PASSAGES = [
    "Anna works as a baker in Oslo and moved there in 1987.",
    "The shells in the shop of Tom cost 70 dollars each.",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="demo")
    arguments = parser.parse_args()
    context = "\n".join(f"[{i}] {passage}" for i, passage in enumerate(PASSAGES, 1))
    messages = [
        {"role": "system", "content": "Answer the question using only the context."},
        {"role": "user", "content": f"Context:\n{context}\n\nQuestion: Where does Anna work?"},
    ]
    with SpecRouter.from_pretrained(arguments.target, drafts=[]) as engine:
        plain = engine.generate(messages, max_tokens=40, seed=0, speculation=False)[0]
        drafted = engine.generate(messages, max_tokens=40, seed=0, chain=["ngram"], draft_sources=PASSAGES)[0]
    print(drafted.text.strip())
    print(f"same tokens: {plain.token_ids == drafted.token_ids}")
    print(f"target steps: {plain.stats.num_target_steps} plain, {drafted.stats.num_target_steps} with lookup")


if __name__ == "__main__":
    main()
