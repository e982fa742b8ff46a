"""Stop conditions: nothing after a stop leaks, nothing before it is lost, streamed text equals the final text."""

from __future__ import annotations

import pytest

from specrouter_llm import FinishReason, SamplingParams

WINDOW = 6
EOS = 1
# Words of one token, an emoji and an accent over several byte tokens, a newline, and repeats of almost-stops.
TEXT = "Once upon a time 🎉🙂 a café\nStop there now, and the end came. Once upon a time there was a naïve dog 🎉"
STOPS = ["upon a", "🙂", "🎉🙂", "é\nSt", "\n", "e", "n", "there now, and the", " ", "dog 🎉", "zebra"]
PATTERNS = {
    "right": lambda i: False,
    "every 2nd wrong": lambda i: i % 2 == 1,
    "every 3rd wrong": lambda i: i % 3 == 2,
    "every 5th wrong": lambda i: i % 5 == 3,
    "wrong": lambda i: True,
}


@pytest.fixture(scope="module")
def prompt(tokenizer):
    return tokenizer.encode("Tell me a story: ")


@pytest.fixture(scope="module")
def script(tokenizer):
    return tokenizer.encode(TEXT)


@pytest.fixture(scope="module")
def scripted(tools, tokenizer, prompt):
    """Makes an engine that says the given ids after the prompt; a drafter for every pattern of agreement."""

    def make(ids, **options):
        size = len(tokenizer)
        target = tools.Script(prompt, ids, size)
        drafters = {name: tools.doubtful(target, len(prompt), wrong, size) for name, wrong in PATTERNS.items()}
        drafters["target"] = target
        options = {"tokenizer": tokenizer, "eos_token_ids": [EOS], "proposers": [], "max_batch": 2} | options
        return tools.engine_of(drafters, vocab_size=size, **options)

    return make


@pytest.fixture(scope="module")
def engine(scripted, script):
    with scripted([*script, EOS]) as engine:
        yield engine


def naive(tokenizer, prompt, ids, params):
    """What a completion must be, from the whole list of ids that the model would say: decode anew after every token."""
    start = len(tokenizer.decode(prompt))
    ends = set(params.stop_token_ids) | (set() if params.ignore_eos else {EOS})
    for count in range(1, len(ids) + 1):
        text = tokenizer.decode([*prompt, *ids[:count]])[start:]
        if ids[count - 1] in ends and count > params.min_tokens:
            before = tokenizer.decode([*prompt, *ids[: count - 1]])[start:]
            named = None if ids[count - 1] == EOS and not params.ignore_eos else ids[count - 1]
            return before, ids[:count], FinishReason.STOP, named
        for end in range(1, len(text) + 1):
            hit = next((s for s in sorted(params.stop, key=len, reverse=True) if text[:end].endswith(s)), None)
            if hit is not None:
                return text[: end - len(hit)], ids[:count], FinishReason.STOP, hit
        if count == params.max_tokens:
            return text, ids[:count], FinishReason.LENGTH, None
    raise AssertionError("the script is too short")


def streamed(engine, prompt, params, **options):
    """One completion, after checking that its stream adds up to it."""
    handle = engine.stream(prompt, params, **options)
    deltas = list(handle)
    completion = handle.result()[0].raise_for_error()
    assert completion.text == "".join(delta.text for delta in deltas)
    assert completion.token_ids == tuple(i for delta in deltas for i in delta.token_ids)
    assert [None] * (len(deltas) - 1) + [completion.finish_reason] == [delta.finish_reason for delta in deltas]
    assert completion.usage.completion_tokens == completion.stats.num_committed_tokens == len(completion.token_ids)
    assert len(prompt) == completion.usage.prompt_tokens
    return completion


def ending(completion):
    return completion.text, list(completion.token_ids), completion.finish_reason, completion.stop_reason


def check_all_patterns(engine, tokenizer, prompt, ids, params):
    """The oracle, plain decoding and every pattern of accepted runs agree; returns the runs' lengths that occurred."""
    expected = naive(tokenizer, prompt, ids, params)
    assert expected == ending(streamed(engine, prompt, params, speculation=False))
    runs = set()
    for name in PATTERNS:
        completion = streamed(engine, prompt, params, chain=[name], windows=[WINDOW])
        assert expected == ending(completion), name
        runs |= {n for n, count in enumerate(completion.stats.acceptance_histogram) if count}
    return runs


@pytest.mark.parametrize("stop", STOPS)
def test_stop_strings_within_accepted_runs(engine, tokenizer, prompt, script, stop):
    """A stop string ends the text before it, wherever it falls in runs of accepted tokens."""
    check_all_patterns(engine, tokenizer, prompt, [*script, EOS], SamplingParams(stop=stop, max_tokens=200))


@pytest.mark.parametrize("lead", range(WINDOW + 2))
def test_a_stop_at_every_position_of_a_run(scripted, tokenizer, prompt, script, lead):
    """The same stop string, stop id and EOS, shifted token by token through a run of 0 to 6 accepted tokens."""
    story = script[:24]
    stop_id = tokenizer.encode(" zebra")[0]
    filler = tokenizer.encode(" time")[0]
    for middle in (tokenizer.encode(" Stop!"), [stop_id], [EOS]):
        ids = [*[filler] * lead, *middle, *story, EOS]
        with scripted(ids) as engine:
            for params in (
                SamplingParams(stop="Stop!", max_tokens=100),
                SamplingParams(stop_token_ids=[stop_id], max_tokens=100),
                SamplingParams(max_tokens=100),
            ):
                check_all_patterns(engine, tokenizer, prompt, ids, params)


def test_max_tokens_at_every_position_of_a_run(engine, tokenizer, prompt, script):
    """max_tokens cuts runs of every length at every position, in the middle of a character too."""
    runs = set()
    for max_tokens in range(1, 30):
        runs |= check_all_patterns(engine, tokenizer, prompt, [*script, EOS], SamplingParams(max_tokens=max_tokens))
    assert set(range(WINDOW + 1)) == runs


def test_stop_ids_at_every_position(engine, tokenizer, prompt, script):
    """Every token of the text as the stop id: it is in token_ids, its text is not in the text."""
    for token_id in dict.fromkeys(script):
        params = SamplingParams(stop_token_ids=[token_id], max_tokens=200)
        check_all_patterns(engine, tokenizer, prompt, [*script, EOS], params)
        completion = streamed(engine, prompt, params, chain=["right"], windows=[WINDOW])
        assert (FinishReason.STOP, token_id) == (completion.finish_reason, completion.stop_reason)
        assert token_id == completion.token_ids[-1]


def test_eos_ends_the_text_without_a_stop_reason(engine, prompt):
    """The model's own end: finish_reason stop, no stop_reason, the EOS in token_ids and not in the text."""
    completion = streamed(engine, prompt, SamplingParams(max_tokens=200), chain=["right"], windows=[WINDOW])
    assert (TEXT, FinishReason.STOP, None) == (completion.text, completion.finish_reason, completion.stop_reason)
    assert EOS == completion.token_ids[-1]


def test_a_stop_string_that_begins_in_one_step_and_ends_in_another(engine, tokenizer, prompt, script):
    """Text that may become a stop string is held back over steps, and none of it leaks."""
    params = SamplingParams(stop="time 🎉🙂 a café", max_tokens=200)
    for chain, windows in ((["wrong"], [WINDOW]), (["right"], [2]), (["every 2nd wrong"], [3])):
        steps = []
        completion = streamed(engine, prompt, params, chain=chain, windows=windows, on_step=steps.append)
        assert naive(tokenizer, prompt, [*script, EOS], params) == ending(completion)
        assert "Once upon a " == completion.text
        begins = len(tokenizer.encode("Once upon a"))  # the stop begins behind this many tokens
        ahead = [len(step.committed) for step in steps]
        assert len(steps) > 2
        assert sum(ahead[:-1]) > begins


def test_a_stop_string_inside_the_bytes_of_a_character(scripted, tokenizer, prompt):
    """An emoji over four byte tokens stops the text only when it is whole; its sibling with equal bytes does not."""
    ids = tokenizer.encode("a 🎉 b 🙂 c")
    split = len(tokenizer.encode("a "))
    assert "a \ufffd" == tokenizer.decode(ids[: split + 1])  # the script does split the character
    with scripted([*ids, EOS]) as engine:
        for stop, text in (("🙂", "a 🎉 b "), ("🎉", "a "), ("\ufffd", "a 🎉 b 🙂 c")):
            params = SamplingParams(stop=stop, max_tokens=50)
            assert text == streamed(engine, prompt, params, chain=["right"], windows=[3]).text
            assert text == streamed(engine, prompt, params, speculation=False).text


def test_two_stops_in_one_run(engine, tokenizer, prompt, script):
    """Of two stops in one accepted run, whatever their kinds, the first that is complete counts."""
    upon, a, time = script[1:4]
    cases = (
        (SamplingParams(stop=("time", "upon"), max_tokens=50), "Once ", "upon"),
        (SamplingParams(stop=("upon a time", " a"), max_tokens=50), "Once upon", " a"),
        (SamplingParams(stop=("upon a", " a"), max_tokens=50), "Once ", "upon a"),
        (SamplingParams(stop="time", stop_token_ids=[a], max_tokens=50), "Once upon", a),
        (SamplingParams(stop="upon", stop_token_ids=[time], max_tokens=50), "Once ", "upon"),
        (SamplingParams(stop_token_ids=[time, upon], max_tokens=50), "Once", upon),
    )
    for params, text, reason in cases:
        completion = streamed(engine, prompt, params, chain=["right"], windows=[WINDOW])
        assert (text, FinishReason.STOP, reason) == (completion.text, completion.finish_reason, completion.stop_reason)
        check_all_patterns(engine, tokenizer, prompt, [*script, EOS], params)


def test_a_stop_and_max_tokens_at_the_same_token(engine, tokenizer, prompt, script):
    """A stop at the last allowed token is a stop; one token later it is a matter of length."""
    for stop, count in (("time", 4), ("upon a", 3)):
        for max_tokens, reason in ((count, FinishReason.STOP), (count - 1, FinishReason.LENGTH)):
            params = SamplingParams(stop=stop, max_tokens=max_tokens)
            check_all_patterns(engine, tokenizer, prompt, [*script, EOS], params)
            completion = streamed(engine, prompt, params, chain=["right"], windows=[WINDOW])
            assert reason == completion.finish_reason
    end = SamplingParams(max_tokens=len(script) + 1)
    assert FinishReason.STOP == streamed(engine, prompt, end, chain=["right"], windows=[WINDOW]).finish_reason


def test_text_held_back_is_released_at_the_end(scripted, tokenizer, prompt):
    """Text that looked like the beginning of a stop is delivered when the text ends otherwise."""
    ids = tokenizer.encode("a b c Sto")
    with scripted([*ids, EOS]) as engine:
        for max_tokens, reason in ((50, FinishReason.STOP), (len(ids), FinishReason.LENGTH)):
            for options in ({"speculation": False}, {"chain": ["right"], "windows": [WINDOW]}):
                params = SamplingParams(stop="Stop", max_tokens=max_tokens)
                completion = streamed(engine, prompt, params, **options)
                assert ("a b c Sto", reason, None) == (
                    completion.text,
                    completion.finish_reason,
                    completion.stop_reason,
                )


def test_held_back_text_is_not_streamed_early(engine, prompt):
    """While a stop string may be coming, no delta holds any of it."""
    handle = engine.stream(prompt, SamplingParams(stop="time 🎉🙂 b", max_tokens=12), speculation=False)
    pieces = [delta.text for delta in handle]
    assert "Once upon a " == "".join(pieces[:-1])
    assert "Once upon a time 🎉" == "".join(pieces).rstrip("\ufffd")


def test_an_unfinished_character_at_the_end_is_shown(scripted, tokenizer, prompt):
    """max_tokens in the middle of an emoji leaves U+FFFD at the end of the text, once, and never in the middle."""
    ids = tokenizer.encode("a 🎉 b")
    with scripted([*ids, EOS]) as engine:
        for max_tokens in (3, 4, 5):
            completion = streamed(
                engine, prompt, SamplingParams(max_tokens=max_tokens), chain=["right"], windows=[WINDOW]
            )
            assert "a \ufffd" == completion.text


@pytest.mark.parametrize("min_tokens", range(9))
def test_min_tokens_defers_stop_strings(scripted, tokenizer, prompt, min_tokens):
    """A stop string within the first tokens is not a stop; its next occurrence is."""
    word = tokenizer.encode(" time")
    ids = [*word * 10, EOS]
    with scripted(ids) as engine:
        for options in (
            {"speculation": False},
            {"chain": ["right"], "windows": [WINDOW]},
            {"chain": ["every 2nd wrong"]},
        ):
            params = SamplingParams(stop="time", min_tokens=min_tokens, max_tokens=50)
            completion = streamed(engine, prompt, params, **options)
            assert max(1, min_tokens) == len(completion.token_ids)
            assert "time" == completion.stop_reason
            assert (max(1, min_tokens) - 1) * " time" + " " == completion.text


@pytest.mark.parametrize("min_tokens", [1, 3, 6])
def test_min_tokens_forbids_eos_and_stop_ids(tools, tokenizer, prompt, min_tokens):
    """Before min_tokens the choice is the best token that does not end the text, then EOS or the stop id ends it."""
    size, second, stop_id = len(tokenizer), tokenizer.encode(" time")[0], tokenizer.encode(" dog")[0]

    for end in (EOS, stop_id):

        def function(context, end=end):
            logits = tools.peak(end, size)
            logits[second] = 40.0
            return logits

        with tools.engine_of(
            {"draft": function, "target": function}, vocab_size=size, tokenizer=tokenizer, eos_token_ids=[EOS]
        ) as engine:
            params = SamplingParams(min_tokens=min_tokens, max_tokens=20, stop_token_ids=[stop_id])
            for options in ({"speculation": False}, {"chain": ["draft"], "windows": [WINDOW]}):
                completion = streamed(engine, prompt, params, **options)
                assert [second] * min_tokens + [end] == list(completion.token_ids)
                assert (None if end == EOS else stop_id) == completion.stop_reason
                assert " time" * min_tokens == completion.text


def test_ignore_eos(scripted, tokenizer, prompt, script):
    """With ignore_eos the text goes on behind an EOS, and EOS as a stop id of the caller still stops."""
    ids = [*script[:5], EOS, *script[:5], EOS, *script[:20]]
    with scripted(ids) as engine:
        params = SamplingParams(ignore_eos=True, max_tokens=16)
        check_all_patterns(engine, tokenizer, prompt, ids, params)
        completion = streamed(engine, prompt, params, chain=["right"], windows=[WINDOW])
        assert (ids[:16], FinishReason.LENGTH) == (list(completion.token_ids), completion.finish_reason)
        params = SamplingParams(ignore_eos=True, stop_token_ids=[EOS], max_tokens=16)
        completion = streamed(engine, prompt, params, chain=["right"], windows=[WINDOW])
        assert (ids[:6], EOS) == (list(completion.token_ids), completion.stop_reason)


def test_the_end_of_the_context_is_a_matter_of_length(scripted, prompt, script):
    """A context that ends inside an accepted run ends the text there, with everything in it."""
    for room in (1, 2, 5, 7, 8):
        with scripted(script, max_context=len(prompt) + room) as engine:
            for name in PATTERNS:
                completion = streamed(engine, prompt, SamplingParams(max_tokens=100), chain=[name], windows=[WINDOW])
                assert (script[:room], FinishReason.LENGTH) == (list(completion.token_ids), completion.finish_reason)


def test_samples_stop_each_on_their_own(tools, tokenizer, prompt):
    """n = 3: every sample ends at its own first stop, whichever kind, as an oracle on its unstopped text says."""
    with tools.engine_of(
        tools.family(len(tokenizer)), vocab_size=len(tokenizer), tokenizer=tokenizer, max_batch=2
    ) as engine:
        free = SamplingParams(temperature=1.0, seed=5, n=3, max_tokens=40)
        whole = [list(c.token_ids) for c in engine.generate([prompt], free, speculation=False)]
        stops = tuple(tokenizer.decode([ids[at]]) for ids, at in zip(whole, (7, 19, 30), strict=True))
        for params in (
            free.replace(stop=stops),
            free.replace(stop_token_ids=[whole[0][11], whole[2][23]]),
            free.replace(stop=stops[1:], stop_token_ids=[whole[0][3]]),
        ):
            expected = [naive(tokenizer, prompt, ids, params) for ids in whole]
            assert 1 < len({len(ids) for _, ids, _, _ in expected})
            for options in ({"speculation": False}, {"chain": ["draft", "middle"], "windows": [3, 5]}):
                handle = engine.stream(prompt, params, **options)
                texts = ["", "", ""]
                for delta in handle:
                    texts[delta.index] += delta.text
                completions = handle.result()
                assert expected == [ending(completion) for completion in completions]
                assert [text for text, _, _, _ in expected] == texts


@pytest.mark.parametrize("reuse", [True, False])
def test_the_next_request_on_the_slot_is_unaffected(scripted, prompt, script, reuse):
    """After a stop in mid-run the slot holds tokens that were never committed: the next request must not see them."""
    with scripted([*script, EOS], max_batch=1, prefix_reuse=reuse) as engine:
        for count in range(1, 12):
            stopped = streamed(
                engine,
                prompt,
                SamplingParams(stop_token_ids=[script[count - 1]], max_tokens=50),
                chain=["right"],
                windows=[6],
            )
            following = [*prompt, *stopped.token_ids]
            # Goes on from the stopped text, so its prefix is in the slot, the tokens behind the stop beyond the mask.
            completion = engine.generate([following], max_tokens=len(script), chain=["every 3rd wrong"], windows=[6])[0]
            assert [*script, EOS][len(stopped.token_ids) :] == list(completion.token_ids)
            if reuse:
                assert len(following) - 1 == completion.usage.cached_tokens
