"""Continuous batching: rows join and leave at any step, and no row's answer depends on who else is there."""

from __future__ import annotations

import math
import threading

import pytest

from specrouter_llm import FinishReason, NgramProposer, SamplingParams
from specrouter_llm.errors import QueueFullError

PROMPTS = [[3], list(range(25)) * 4, [7, 7], [1, 2, 3] * 9, [9, 8, 7, 6], list(range(30)), [5, 5, 5], [11, 12]]
# Rows of one batch that want very different things.
MIXED = [
    SamplingParams(max_tokens=30),
    SamplingParams(max_tokens=3, temperature=1.0, seed=1),
    SamplingParams(max_tokens=17, temperature=0.7, seed=2, top_k=5),
    SamplingParams(max_tokens=40, temperature=1.3, seed=3, top_p=0.8),
    SamplingParams(max_tokens=1),
    SamplingParams(max_tokens=25, temperature=1.0, seed=4, min_p=0.1, presence_penalty=1.0),
    SamplingParams(max_tokens=50, repetition_penalty=1.3, logit_bias={4: -5.0, 9: 2.0}),
    SamplingParams(
        max_tokens=22, temperature=1.0, seed=5, frequency_penalty=0.5, bad_words=((3,), (4, 5)), min_tokens=6
    ),
]
SAMPLED = SamplingParams(max_tokens=30, temperature=1.0, seed=11)
CHAIN = {"chain": ["draft", "middle"], "windows": [3, 6]}
CHAINS = [
    {},
    {"speculation": False},
    {"chain": ["draft"], "windows": [1]},
    {"chain": ["draft"], "windows": [12]},
    {"chain": ["middle", "target"]},
    {"chain": ["draft", "middle", "target"], "windows": [2, 9]},
    {"chain": ["middle", "draft"], "windows": [5, 2]},
    {"chain": ["ngram"], "windows": [8]},
    {"chain": ["ngram", "draft", "middle"], "windows": [2, 3, 4]},
    {"chain": []},
]


@pytest.fixture(scope="module")
def alone(tools):
    """Every prompt with its own parameters, decoded plainly and alone."""
    with tools.engine_of(tools.family(), max_batch=1, prefix_reuse=False) as engine:
        return [
            engine.generate([prompt], params, speculation=False)[0].token_ids
            for prompt, params in zip(PROMPTS, MIXED, strict=True)
        ]


@pytest.fixture(scope="module")
def sampled(tools):
    """Every prompt with the same parameters, decoded plainly and alone."""
    with tools.engine_of(tools.family(), max_batch=1, prefix_reuse=False) as engine:
        return [engine.generate([prompt], SAMPLED, speculation=False)[0].token_ids for prompt in PROMPTS]


def tokens(completions):
    return [completion.raise_for_error().token_ids for completion in completions]


# ---------------------------------------------------------------- independence of rows


@pytest.mark.parametrize("max_batch", [1, 2, 3, 8])
@pytest.mark.parametrize("chunk", [4, 512])
def test_a_row_alone_equals_the_row_in_a_batch(tools, alone, max_batch, chunk):
    """Rows with different parameters, chains and lengths, more of them than slots: each is as if alone."""
    with tools.engine_of(
        tools.family(), max_batch=max_batch, prefill_chunk=chunk, proposers=[NgramProposer()]
    ) as engine:
        handles = [
            engine.submit(prompt, params, **CHAINS[i % len(CHAINS)])
            for i, (prompt, params) in enumerate(zip(PROMPTS, MIXED, strict=True))
        ]
        completions = [handle.result()[0] for handle in handles]
        assert alone == tokens(completions)
        assert [params.max_tokens for params in MIXED] == [len(completion.token_ids) for completion in completions]
        assert len(MIXED) == engine.stats.num_finished
        tools.at_rest(engine)


@pytest.mark.parametrize("join_at", [1, 2, 3, 5, 8])
def test_rows_join_and_leave_at_any_step(tools, alone, join_at):
    """Requests that join while others are at step k, and leave before them, change nobody's tokens."""
    gate = tools.Gate(after=join_at)
    with tools.engine_of(tools.family(), max_batch=4) as engine:
        handles = {6: engine.submit(PROMPTS[6], MIXED[6], on_step=gate, **CHAIN)}
        gate.wait()
        assert (1, 0) == (engine.stats.num_running, engine.stats.num_waiting)
        for i in (1, 4, 0, 3, 2, 5, 7):
            handles[i] = engine.submit(PROMPTS[i], MIXED[i], **CHAIN)
        assert (1, 7) == (engine.stats.num_running, engine.stats.num_waiting)
        gate.open()
        assert alone == [handles[i].result()[0].token_ids for i in range(8)]
        tools.at_rest(engine)


def test_rows_share_a_step(tools):
    """Rows are decoded together: as many target forwards as the longest row needs, not as all of them need."""
    with tools.engine_of(tools.family(), max_batch=8) as engine:
        gate = tools.Gate()
        first = engine.submit([1], max_tokens=20, speculation=False, on_step=gate)
        gate.wait()
        others = [engine.submit(prompt, max_tokens=20, speculation=False) for prompt in PROMPTS[:7]]
        gate.open()
        assert {20} == {len(handle.result()[0].token_ids) for handle in (first, *others)}
        assert 21 == engine.stats.num_steps == tools.runner_of(engine, "target").num_forwards
        assert 160 == engine.stats.num_committed_tokens


def test_results_come_in_the_order_of_the_prompts(tools):
    """More prompts than slots, with n samples each: prompt by prompt, sample by sample."""
    with tools.engine_of(tools.family(), max_batch=3) as engine:
        completions = engine.generate(PROMPTS, SAMPLED.replace(n=2, max_tokens=9))
        assert [(i, k) for i in range(8) for k in range(2)] == [(c.prompt_index, c.index) for c in completions]
        assert [len(prompt) for prompt in PROMPTS for _ in range(2)] == [c.usage.prompt_tokens for c in completions]


def test_many_threads_at_once(tools, alone):
    """Sixteen threads that submit and wait at the same time get their own answers."""
    results = {}
    with tools.engine_of(tools.family(), max_batch=4) as engine:
        barrier = threading.Barrier(16)

        def work(number):
            barrier.wait(30)
            results[number] = engine.generate([PROMPTS[number % 8]], MIXED[number % 8], **CHAIN)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert alone + alone == [tokens(results[number])[0] for number in range(16)]
        tools.at_rest(engine)


# ---------------------------------------------------------------- seeds and samples


def test_a_drawn_seed_is_reported_and_reproduces(tools):
    """Without a seed one is drawn; given back it gives the same tokens, with any chain."""
    with tools.engine_of(tools.family(), max_batch=3) as engine:
        params = SAMPLED.replace(seed=None)
        completions = engine.generate([PROMPTS[0]] * 4, params, **CHAIN)
        assert 4 == len({completion.seed for completion in completions})
        assert 4 == len({completion.token_ids for completion in completions})
        for completion in completions:
            for options in (CHAIN, {"speculation": False}):
                again = engine.generate([PROMPTS[0]], params, seed=completion.seed, **options)[0]
                assert (completion.token_ids, completion.seed) == (again.token_ids, again.seed)


def test_the_samples_of_a_prompt(tools):
    """n samples differ, the first is that of n = 1, a larger n only adds, and a batch or a chain changes none."""
    with tools.engine_of(tools.family(), max_batch=3) as engine:
        five = tokens(engine.generate([PROMPTS[3]], SAMPLED.replace(n=5), **CHAIN))
        assert 5 == len(set(five))
        assert five[:1] == tokens(engine.generate([PROMPTS[3]], SAMPLED, **CHAIN))
        assert five[:3] == tokens(engine.generate([PROMPTS[3]], SAMPLED.replace(n=3), speculation=False))
        assert five == tokens(engine.generate([PROMPTS[1], PROMPTS[3]], SAMPLED.replace(n=5), **CHAIN))[5:]
        assert {11} == {completion.seed for completion in engine.generate([PROMPTS[3]], SAMPLED.replace(n=3))}


def test_greedy_rows_ignore_the_seed(tools):
    """At temperature 0 the seed changes nothing."""
    with tools.engine_of(tools.family(), max_batch=2) as engine:
        params = SamplingParams(max_tokens=20)
        assert 1 == len({tokens(engine.generate([PROMPTS[0]], params, seed=seed))[0] for seed in range(4)})


# ---------------------------------------------------------------- prefill


@pytest.mark.parametrize("chunk", [1, 3, 16, 99, 100])
def test_chunked_prefill_changes_no_token(tools, sampled, chunk):
    """Prompts longer than the chunk, taken in beside running rows, for all levels of a chain."""
    with tools.engine_of(tools.family(), max_batch=3, prefill_chunk=chunk) as engine:
        completions = engine.generate(PROMPTS, SAMPLED, **CHAIN)
        assert sampled == tokens(completions)
        assert sum(completion.stats.num_accepted_draft_tokens for completion in completions) > 0
        tools.at_rest(engine)


def test_a_chunk_bounds_what_a_forward_takes_in(tools):
    """No forward feeds more prompt tokens than the chunk, but for the tokens that the step itself needs."""
    fed = []
    with tools.engine_of(tools.family(), max_batch=3, prefill_chunk=8) as engine:
        tools.runner_of(engine, "target").hook = lambda runner, spans: fed.append(
            sum(len(span.token_ids) - span.num_logits for span in spans)
        )
        engine.generate([PROMPTS[1], PROMPTS[3], PROMPTS[5]], SAMPLED, **CHAIN)
        assert 8 == max(fed)
        assert 8 * len(fed) >= sum(len(PROMPTS[i]) - 1 for i in (1, 3, 5)) == sum(fed)


def test_a_running_row_goes_on_while_a_long_prompt_is_taken_in(tools):
    """Between two chunks the running rows step; a short prompt that came later gets its first token first."""
    order = []
    gate = tools.Gate()
    with tools.engine_of(tools.family(), max_batch=3, prefill_chunk=10) as engine:

        def note(name, also=None):
            return lambda info: (order.append(name), also(info) if also else None)

        first = engine.submit([1, 2], max_tokens=40, speculation=False, on_step=note("running", gate))
        gate.wait()
        long = engine.submit(PROMPTS[1], max_tokens=3, speculation=False, on_step=note("long"))
        short = engine.submit([4], max_tokens=3, speculation=False, on_step=note("short"))
        gate.open()
        for handle in (first, long, short):
            handle.result()
    # 99 tokens before the last one: nine chunks of ten, and the rest rides in the step of the first token.
    assert 1 + 9 == order[: order.index("long")].count("running") - 1
    assert order.index("short") < order.index("long")
    assert 3 == order[: order.index("long")].count("short")


# ---------------------------------------------------------------- the queue


def test_a_full_queue_refuses(tools):
    """Beyond max_queue waiting samples submit raises and says how many wait; nothing of the refused is queued."""
    with tools.engine_of(tools.family(), max_batch=1, max_queue=3) as engine:
        gate = tools.Gate()
        running = engine.submit([1], max_tokens=5, on_step=gate)
        gate.wait()
        waiting = [engine.submit([2, i], max_tokens=5) for i in range(3)]
        for params in (SamplingParams(max_tokens=5), SAMPLED.replace(n=2)):
            with pytest.raises(QueueFullError) as caught:
                engine.submit([3], params)
            assert "3 samples are waiting and the queue holds 3; try again later, or raise max_queue" == str(
                caught.value
            )
            assert (1, 3) == (engine.stats.num_running, engine.stats.num_waiting)
        waiting[0].cancel()
        gate.open()
        assert [5, 0, 5, 5] == [len(handle.result()[0].token_ids) for handle in (running, *waiting)]
        assert 5 == len(engine.submit([3], max_tokens=5).result()[0].token_ids)
        assert 5 == engine.stats.num_finished


@pytest.mark.parametrize("max_queue", [1, 2, 5])
def test_generate_waits_for_room_in_the_queue(tools, sampled, max_queue):
    """More prompts, or samples, than the queue holds just work."""
    with tools.engine_of(tools.family(), max_batch=2, max_queue=max_queue) as engine:
        assert sampled * 3 == tokens(engine.generate(PROMPTS * 3, SAMPLED, **CHAIN))
        samples = tokens(engine.generate(PROMPTS[:3], SAMPLED.replace(n=7), **CHAIN))
        assert (sampled[:3], 21) == (samples[::7], len(samples))
        tools.at_rest(engine)


async def test_agenerate_waits_for_room_in_the_queue(tools, sampled):
    """The same for agenerate()."""
    with tools.engine_of(tools.family(), max_batch=2, max_queue=2) as engine:
        assert sampled * 3 == tokens(await engine.agenerate(PROMPTS * 3, SAMPLED, **CHAIN))


def test_requests_are_served_in_order(tools):
    """First come, first served: with one slot the first tokens come in the order of submission."""
    order = []
    with tools.engine_of(tools.family(), max_batch=1) as engine:
        handles = [
            engine.submit(prompt, max_tokens=3, on_step=lambda info, i=i: order.append(i))
            for i, prompt in enumerate(PROMPTS)
        ]
        for handle in handles:
            handle.result()
    assert list(range(8)) == list(dict.fromkeys(order))


# ---------------------------------------------------------------- time limits


def test_a_time_limit_ends_a_request_with_what_it_has(tools, tokenizer, monkeypatch):
    """At the deadline a running request ends as `timeout`, its tokens and text kept; a batch mate goes on."""
    from specrouter_llm.engine import worker

    class Clock:
        """The worker's clock, which the test sets forward."""

        ahead = 0.0

        def monotonic(self):
            return time.monotonic() + self.ahead

    time, clock = worker.time, Clock()
    monkeypatch.setattr(worker, "time", clock)
    size = len(tokenizer)
    with tools.engine_of(tools.family(size), vocab_size=size, tokenizer=tokenizer, max_batch=2) as engine:
        whole = engine.generate([[1, 2]], max_tokens=60, speculation=False)[0]
        gate = tools.Gate(after=4)
        mate = engine.submit([3, 4], max_tokens=60, **CHAIN)
        handle = engine.stream([1, 2], max_tokens=60, timeout=1000, on_step=gate, **CHAIN)
        waiting = engine.submit([1, 2], max_tokens=60, timeout=999, **CHAIN)
        gate.wait()
        clock.ahead = 2000.0
        gate.open()
        deltas = list(handle)
        completion = handle.result()[0]
        assert (FinishReason.TIMEOUT, 4) == (completion.finish_reason, completion.stats.num_target_steps)
        assert whole.token_ids[: len(completion.token_ids)] == completion.token_ids
        assert whole.text.startswith(completion.text.rstrip("\ufffd"))
        assert completion.text == "".join(delta.text for delta in deltas) != ""
        assert (FinishReason.TIMEOUT, None) == (deltas[-1].finish_reason, completion.error)
        assert (FinishReason.TIMEOUT, ()) == (waiting.result()[0].finish_reason, waiting.result()[0].token_ids)
        assert 60 == len(mate.result()[0].token_ids)
        tools.at_rest(engine)


def test_a_real_time_limit(tools):
    """A deadline on the real clock ends a request that would go on for long; n samples end together."""
    with tools.engine_of(tools.family(), max_batch=2, max_context=100_000) as engine:
        completions = engine.generate([[1]], SAMPLED.replace(max_tokens=90_000, n=3), timeout=0.3)
        assert [FinishReason.TIMEOUT] * 3 == [completion.finish_reason for completion in completions]
        assert 0 < len(completions[0].token_ids) < 90_000
        assert 20 == len(engine.generate([[1]], max_tokens=20, timeout=100)[0].token_ids)
        tools.at_rest(engine)


# ---------------------------------------------------------------- prefix reuse


def test_prefix_reuse_counts_and_changes_nothing(tools):
    """A prompt that shares a prefix with an earlier row reuses it in every model, reports it, and says the same."""
    base = [i % 31 for i in range(60)]
    with tools.engine_of(tools.family(), max_batch=3, prefix_reuse=False) as fresh:
        answer = fresh.generate([base], SAMPLED, **CHAIN)[0]
        turns = [
            (base, 59),  # the same prompt: all but its last token
            ([*base, *answer.token_ids, 4, 4], 60 + 29),  # the conversation goes on: the last token was never fed
            ([*base[:40], 30, 9, 9], 40),
            ([*base[:17], 8], 17),
            (list(reversed(base)), 0),
        ]
        for prompt, cached in turns:
            for options in (CHAIN, {"speculation": False}):
                with tools.engine_of(tools.family(), max_batch=3) as engine:
                    assert 0 == engine.generate([base], SAMPLED, **CHAIN)[0].usage.cached_tokens
                    fed = {name: [] for name in ("draft", "middle", "target")}
                    for name, starts in fed.items():
                        tools.runner_of(engine, name).hook = lambda runner, spans, starts=starts: starts.append(
                            spans[0].start
                        )
                    reused = engine.generate([prompt], SAMPLED, **options)[0]
                    expected = fresh.generate([prompt], SAMPLED, **options)[0]
                    assert expected.token_ids == reused.token_ids
                    assert (0, cached) == (expected.usage.cached_tokens, reused.usage.cached_tokens)
                    assert len(prompt) == reused.usage.prompt_tokens
                    assert cached == fed["target"][0]
                    assert all(starts[0] > 0 for starts in fed.values() if starts and cached)


def test_a_row_in_use_is_not_reused(tools):
    """Two requests with the same prompt at the same time: the second cannot take the first one's slot, and is right."""
    base = [i % 31 for i in range(60)]
    with tools.engine_of(tools.family(), max_batch=3) as engine:
        one, two = engine.generate([base, base], SAMPLED, **CHAIN)
        assert one.token_ids == two.token_ids
        assert (0, 0) == (one.usage.cached_tokens, two.usage.cached_tokens)


def test_a_long_chat_with_reuse(tools):
    """Ten turns on each other's answers, chains changing, three chats side by side: equal to fresh engines."""
    with (
        tools.engine_of(tools.family(), max_batch=3, prefill_chunk=7) as engine,
        tools.engine_of(tools.family(), max_batch=1, prefix_reuse=False) as fresh,
    ):
        chats = [[k] * 3 for k in range(3)]
        cached = 0
        for turn in range(10):
            params = SAMPLED.replace(max_tokens=5 + turn)
            completions = engine.generate(chats, params, **CHAINS[turn % 7])
            assert tokens(fresh.generate(chats, params, speculation=False)) == tokens(completions)
            cached += sum(completion.usage.cached_tokens for completion in completions)
            chats = [[*chat, *c.token_ids[:-1], turn] for chat, c in zip(chats, completions, strict=True)]
        assert cached > 1000
        tools.at_rest(engine)


# ---------------------------------------------------------------- chains


@pytest.mark.parametrize("options", CHAINS, ids=str)
def test_every_chain_per_request(tools, sampled, options):
    """Any chain and windows that a request asks for give the tokens of plain decoding."""
    with tools.engine_of(tools.family(), max_batch=3, proposers=[NgramProposer()]) as engine:
        steps = []
        completions = engine.generate(PROMPTS, SAMPLED, on_step=steps.append, **options)
        assert sampled == tokens(completions)
        chains = {step.chain for step in steps}
        named = tuple(name for name in options.get("chain", ()) if name != "target")
        if "chain" in options or "speculation" in options:
            assert {("target",), (*named, "target")} == chains  # plainly up to the first token
        else:
            assert {("target",), ("draft", "target")} == chains  # the default
        windows = options.get("windows", [4])
        assert all(
            level.drafted <= window for s in steps for level, window in zip(s.levels[-1:], windows[-1:], strict=False)
        )


@pytest.mark.parametrize(
    "config",
    [
        {"chain": ("draft", "middle"), "windows": (2, 5)},
        {"chain": ("middle", "target")},
        {"chain": ("ngram",), "windows": (6,)},
        {"speculation": False},
        {},
    ],
    ids=str,
)
def test_every_chain_per_engine(tools, sampled, config):
    """The engine's own default chain serves requests that ask for none; a request may ask for another."""
    with tools.engine_of(tools.family(), max_batch=3, proposers=[NgramProposer()], **config) as engine:
        steps = []
        assert sampled == tokens(engine.generate(PROMPTS, SAMPLED, on_step=steps.append))
        named = tuple(name for name in config.get("chain", () if config else ("draft",)) if name != "target")
        assert {("target",), (*named, "target")} == {step.chain for step in steps}
        steps.clear()
        assert sampled == tokens(engine.generate(PROMPTS, SAMPLED, on_step=steps.append, chain=["middle"], windows=[3]))
        assert {("target",), ("middle", "target")} == {step.chain for step in steps}
        assert sampled == tokens(engine.generate(PROMPTS, SAMPLED, speculation=False))


def test_sources_and_a_prediction_change_speed_only(tools, sampled):
    """A right prediction saves most target steps, a wrong one none, and neither changes a token."""
    with tools.engine_of(tools.family(), max_batch=2, proposers=[NgramProposer()]) as engine:
        steps = {}
        for name, options in {
            "none": {},
            "right prediction": {"prediction": list(sampled[0])},
            "right source": {"draft_sources": [[1, 2, 3], list(sampled[0]), [4]]},
            "wrong": {"prediction": list(range(30)), "draft_sources": [[40, -3, 999] * 9]},
        }.items():
            completion = engine.generate([PROMPTS[0]], SAMPLED, chain=["ngram"], windows=[8], **options)[0]
            assert sampled[0] == completion.token_ids
            steps[name] = completion.stats.num_target_steps
        assert steps["right prediction"] == steps["right source"] < 10 < steps["none"]
        assert steps["wrong"] > 10


# ---------------------------------------------------------------- on_step and statistics


@pytest.mark.parametrize("options", CHAINS, ids=str)
def test_on_step_tells_what_happened(tools, options):
    """The callback sees the chain, each level's tokens, the commits that make up the answer, and the time."""
    with tools.engine_of(tools.family(), max_batch=3, proposers=[NgramProposer()]) as engine:
        steps = []
        handle = engine.submit(PROMPTS[3], SAMPLED.replace(n=3), on_step=steps.append, **options)
        for completion in handle.result():
            mine = [step for step in steps if step.sample_index == completion.index]
            assert completion.token_ids == tuple(i for step in mine for i in step.committed)
            assert completion.stats.num_target_steps == len(mine)
            for step in mine:
                assert step.chain[:-1] == tuple(level.model for level in step.levels)
                assert "target" == step.chain[-1]
                assert all(0 <= level.accepted <= level.drafted for level in step.levels)
                top = step.levels[-1].accepted if step.levels else 0
                assert top + 1 == len(step.committed)
                spent = dict(step.seconds_per_level)
                assert "target" in spent
                assert all(seconds > 0 for seconds in spent.values())
                assert step.seconds >= max(spent.values())
            for stage in completion.stats.chain[:-1]:
                levels = [level for step in mine for level in step.levels if level.model == stage.model]
                assert (stage.proposed, stage.accepted) == (
                    sum(x.drafted for x in levels),
                    sum(x.accepted for x in levels),
                )


@pytest.mark.parametrize("options", CHAINS, ids=str)
def test_the_arithmetic_of_the_statistics(tools, options):
    """Counts of a completion agree with each other and with its tokens."""
    with tools.engine_of(tools.family(), max_batch=3, proposers=[NgramProposer()]) as engine:
        completions = engine.generate(PROMPTS, SAMPLED, **options)
        for completion in completions:
            stats = completion.stats
            assert len(completion.token_ids) == stats.num_committed_tokens == completion.usage.completion_tokens
            assert completion.usage.total_tokens == completion.usage.prompt_tokens + 30
            assert stats.num_accepted_draft_tokens == sum(n * k for n, k in enumerate(stats.acceptance_histogram))
            assert stats.num_spec_steps == sum(stats.acceptance_histogram) <= stats.num_target_steps
            # Each target step commits what it accepted and one token more.
            assert stats.num_committed_tokens == stats.num_accepted_draft_tokens + stats.num_target_steps
            assert (
                stats.num_accepted_draft_tokens
                <= stats.num_draft_tokens
                <= stats.num_spec_steps * stats.num_spec_tokens
            )
            assert len(stats.acceptance_histogram) <= stats.num_spec_tokens + 1
            assert all(0 <= stage.accepted <= stage.proposed for stage in stats.chain)
            *lower, last = stats.chain
            assert ("target", "target", 30, 30) == (last.model, last.role, last.proposed, last.accepted)
            assert ["draft", *["middle"] * (len(lower) - 1)][: len(lower)] == [stage.role for stage in lower]
            if len(lower) == 1:
                assert (stats.num_draft_tokens, stats.num_accepted_draft_tokens) == (
                    lower[0].proposed,
                    lower[0].accepted,
                )
            assert math.isclose(stats.mean_acceptance_length, 30 / stats.num_target_steps)
            rate = stats.num_accepted_draft_tokens / max(1, stats.num_draft_tokens)
            assert math.isclose(stats.draft_acceptance_rate, rate)
            assert stats.fallback is None
        if options.get("speculation") is False or options.get("chain") == []:
            assert {(0, 0, 0, 0, (), 30)} == {
                (
                    c.stats.num_draft_tokens,
                    c.stats.num_accepted_draft_tokens,
                    c.stats.num_spec_steps,
                    c.stats.num_spec_tokens,
                    c.stats.acceptance_histogram,
                    c.stats.num_target_steps,
                )
                for c in completions
            }
        else:
            assert sum(completion.stats.num_accepted_draft_tokens for completion in completions) > 0
        assert 240 == engine.stats.num_committed_tokens
        assert 8 == engine.stats.num_finished
