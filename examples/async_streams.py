"""Several answers at once in one event loop: they share one continuous batch, and one of them is cancelled midway."""

import asyncio

from specrouter_llm import SpecRouter

PROMPTS = ["Once upon a time", "The lighthouse of", "Tom has 3 apples and"]


async def follow(engine: SpecRouter, number: int, prompt: str) -> None:
    text = ""
    async for delta in engine.astream(prompt, max_tokens=30, ignore_eos=True, temperature=0.8, seed=number):
        text += delta.text
        if number == 1 and len(text) > 20:
            print(f"{number}: cancelled after {text!r}")
            return  # leaving the loop drops the stream: its slot is free within one step
    print(f"{number}: {prompt}{text}")


async def main() -> None:
    with SpecRouter.from_pretrained("demo") as engine:
        await asyncio.gather(*(follow(engine, number, prompt) for number, prompt in enumerate(PROMPTS)))
        print(engine.stats)


if __name__ == "__main__":
    asyncio.run(main())
