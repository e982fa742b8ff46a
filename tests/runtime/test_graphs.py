"""The graph runner's logic without a device: what is "recorded" is called again on the same static inputs."""

from __future__ import annotations

import copy
import sys
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import specrouter_llm.runtime
from specrouter_llm import SpecRouter
from specrouter_llm.config import EngineConfig
from specrouter_llm.errors import UnsupportedModelError
from specrouter_llm.runtime import graphs as graphs_module
from specrouter_llm.runtime import select as select_module
from specrouter_llm.runtime.attention import RaggedContext
from specrouter_llm.runtime.batch import Span
from specrouter_llm.runtime.buckets import CANONICAL_TOKENS, TOKENS
from specrouter_llm.runtime.graphs import GraphRunner, by_modules
from specrouter_llm.runtime.probe import PROBE_LENGTH
from specrouter_llm.runtime.runner import EagerRunner
from specrouter_llm.runtime.select import make_runner
from specrouter_llm.sampling.choice import BROKEN, pick
from specrouter_llm.sampling.noise import row_keys
from specrouter_llm.sampling.row import GREEDY, Warp

SHAPE = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.3,
}
LAYERS = ["sliding_attention", "full_attention"]
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(head_dim=16, **SHAPE)),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(head_dim=16, sliding_window=7, layer_types=LAYERS, **SHAPE)),
}


def host_attention(query, key, value, tiles, extent, scaling, window, softcap):
    """What the kernels do, by `RaggedContext`, from the same device tensors."""
    spans = [Span(slot, start, [0] * number, 0) for slot, _, start, number, _ in tiles.t().tolist() if number]
    assert all(span.end <= extent for span in spans)
    fed = sum(len(span.token_ids) for span in spans)
    output = query.new_zeros(query.shape[1], query.shape[0], value.shape[3])
    if not spans:  # while it is recorded
        return output
    output[:fed] = RaggedContext(spans, key.shape[1]).attend(query[:, :fed], key, value, scaling, window, softcap)
    return output


class Recorder:
    """A `Capture` that counts what it records."""

    def __init__(self):
        self.recorded = 0

    def __call__(self, run):
        self.recorded += 1
        run()  # a warm-up, over no row
        return run


def tiny(kind="llama", dtype=torch.float64):
    """A random model."""
    torch.manual_seed(3)
    return MODELS[kind]().to(dtype).eval()


def graph_runner(model, *, num_slots=3, context_length=512, strict=False, capture=None):
    """A GraphRunner that needs no device."""
    return GraphRunner(
        "m",
        model,
        num_slots=num_slots,
        context_length=context_length,
        capture=capture or Recorder(),
        attention=host_attention,
        strict=strict,
    )


@pytest.fixture(scope="module", params=[(kind, strict) for kind in MODELS for strict in (False, True)], ids=str)
def runners(request):
    """The eager runner of a model, and a graph runner of the same."""
    kind, strict = request.param
    model = tiny(kind)
    eager = EagerRunner("m", copy.deepcopy(model), num_slots=3, context_length=512)
    return eager, graph_runner(model, context_length=512, strict=strict)


@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_ragged_steps_equal_the_eager_runner(runners, data):
    """Rows of any length, rejections, prompts too long for a graph, strict or not: the logits of the eager runner."""
    eager, runner = runners
    lengths = [0, 0, 0]  # what earlier examples left lies behind them
    for _ in range(5):
        spans = []
        for slot in data.draw(st.permutations([0, 1, 2]))[: data.draw(st.integers(1, 3))]:
            keep = data.draw(st.integers(0, lengths[slot]))  # the rest was rejected
            fed = min(512 - keep, data.draw(st.sampled_from([1, 2, 3, 5, 9, 17, 70, 130])))
            if not fed:
                continue
            ids = [(7 * i + data.draw(st.integers(0, 39))) % 40 for i in range(fed)]
            lengths[slot] = keep + fed
            spans.append(Span(slot, keep, ids, data.draw(st.integers(0, fed))))
        if not spans:
            continue
        expected, actual = eager.forward(spans), runner.forward(spans)
        assert expected.shape == actual.shape
        assert torch.allclose(expected, actual, atol=1e-6, rtol=1e-6)  # norms run in float32 even in float64 models


def test_a_long_prompt_is_launches_of_the_most_tokens(monkeypatch):
    """Nothing is launched kernel by kernel; what the first launches need is recorded before the first request."""
    capture = Recorder()
    runner = graph_runner(tiny(), context_length=1500, capture=capture)
    runner.record(loops=False)
    ids = [(7 * i) % 40 for i in range(3 * TOKENS[-1] + 5)]
    expected = EagerRunner("m", tiny(), num_slots=3, context_length=1500).forward([Span(0, 0, ids, 9)])
    monkeypatch.setattr(EagerRunner, "_forward", None)
    recorded = capture.recorded
    runner.forward([Span(1, 0, ids[: TOKENS[-1] + 3], 1)])
    assert capture.recorded == recorded
    assert torch.allclose(expected, runner.forward([Span(0, 0, ids, 9)]), atol=1e-6)


def test_padding_touches_no_slot():
    """Only the positions that were fed are written; what pads the bucket lands behind the slabs."""
    runner = graph_runner(tiny(), strict=True)
    runner.forward([Span(1, 4, [1, 2, 3], 3)])
    for layer in runner._cache.layers:
        for slab in (layer.keys, layer.values):
            written = slab.flatten(2).count_nonzero(dim=2).nonzero().tolist()
            assert written == [[1, 4], [1, 5], [1, 6]]


def test_slabs_never_move():
    """Graphs hold addresses: the cache has its full size when the first graph is recorded."""
    runner = graph_runner(tiny(), context_length=1500)
    runner.forward([Span(0, 0, [1], 1)])
    addresses = [layer.keys.data_ptr() for layer in runner._cache.layers]
    runner.forward([Span(0, 0, [1] * 1400, 1)])
    runner.forward([Span(2, 1400, [1] * 100, 1)])
    assert addresses == [layer.keys.data_ptr() for layer in runner._cache.layers]
    with pytest.raises(ValueError, match="1501 positions were asked for, the cache is limited to 1500"):
        runner.forward([Span(0, 1500, [1], 1)])


def test_a_bucket_is_recorded_once_and_the_oldest_makes_room(monkeypatch):
    """Steps of one shape share a graph; the number of graphs is bounded."""
    monkeypatch.setattr(graphs_module, "MAX_GRAPHS", 2)
    capture = Recorder()
    runner = graph_runner(tiny(), capture=capture)
    capture.recorded = 0  # the check at load has recorded its own

    def step(tokens):
        runner.forward([Span(0, 0, [1] * tokens, 1)])
        return capture.recorded

    assert [step(n) for n in (1, 1, 3, 4)] == [1, 1, 2, 2]
    assert step(1) == 2
    assert step(8) == 3  # in place of 4, which was used before 1
    assert step(1) == 3
    assert step(4) == 4


def test_more_settings_than_there_is_room_for_are_not_recorded_in_turn(monkeypatch):
    """Those in use stay; others go token by token, until one was not in use for a while."""
    monkeypatch.setattr(graphs_module, "MAX_LOOPS", 2)
    monkeypatch.setattr(graphs_module, "LOOP_IDLE", 8)
    capture = Recorder()
    runner = graph_runner(tiny(), capture=capture)
    capture.recorded = 0

    def looped(temperature):
        found = runner.loop([Span(0, 0, [1], 1)], 2, Warp(temperature, 0, 1.0, 0.0), [[(1, 2), (1, 3)]])
        return found is not None

    assert [[looped(t) for t in (0.1, 0.2, 0.3)] for _ in range(20)] == [[True, True, False]] * 20
    assert capture.recorded == 4
    assert [looped(t) for t in [0.1] * 9 + [0.3]] == [True] * 10
    assert not looped(0.2)
    assert capture.recorded == 6
    assert [looped(0.7) for _ in range(12)].index(True) <= 8


def test_what_decoding_launches_is_recorded_before_the_first_request():
    """Steps of one row and of small batches, and loops of a model that proposes, find their graphs."""
    capture = Recorder()
    runner = graph_runner(tiny(), capture=capture)
    runner.record(loops=True)
    recorded = capture.recorded
    for slot, start, fed in [(0, 0, 1), (1, 7, 3), (2, 400, 17), (0, 60, 64)]:
        runner.forward([Span(slot, start, [1] * fed, fed)])
    for fed, count in [(1, 4), (2, 7), (4, 16)]:
        assert runner.loop([Span(1, 5, [1] * fed, 1)], count, GREEDY, [[]]).shape == (1, count)
    assert capture.recorded == recorded
    alone = graph_runner(tiny(), capture=Recorder())
    alone.record(loops=False)
    assert not alone._loops._known


def test_results_outlive_the_next_step():
    """Logits are copied out of the memory that the next replay overwrites."""
    shared = []

    def capture(run):
        shared.append(run())

        def replay():
            return shared[-1].copy_(run()) if shared[-1].shape == (1, 40) else run()

        return replay

    runner = graph_runner(tiny(), capture=capture)
    first = runner.forward([Span(0, 0, [1], 1)])
    kept = first.clone()
    runner.forward([Span(0, 1, [2], 1)])
    assert torch.equal(kept, first)


@pytest.mark.parametrize("strict", [False, True])
def test_a_broken_token_breaks_what_follows_and_nothing_else(strict):
    """NaN reaches its own and later positions of its row, not its neighbours, not what replaces it, nor a cleared slot."""
    model = tiny()
    runner = graph_runner(model, strict=strict)
    expected = runner.forward([Span(0, 0, [1, 2, 3], 3)])
    with torch.no_grad():
        model.model.embed_tokens.weight[5] = torch.nan
    broken = runner.forward([Span(0, 0, [1, 2, 5, 6], 4), Span(1, 0, [1, 2], 2)]).isnan().all(dim=1)
    assert [False, False, True, True, False, False] == broken.tolist()
    assert torch.allclose(expected[2:], runner.forward([Span(0, 2, [3], 1)]))
    assert runner.forward([Span(0, 3, [5], 1)]).isnan().all()
    runner.clear(0)
    assert torch.allclose(expected, runner.forward([Span(0, 0, [1, 2, 3], 3)]))


@pytest.fixture(scope="module")
def strict_runner():
    """A strict float32 runner with room for every context that the probe knows."""
    return graph_runner(tiny(dtype=torch.float32), context_length=PROBE_LENGTH, strict=True)


@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_strict_bits_do_not_depend_on_company_or_pieces(strict_runner, data):
    """Where the probe finds the bits of a fixed number of rows to be equal, they are: for any cuts and neighbours."""
    runner = strict_runner
    if runner.guarantee != "bitwise":
        pytest.skip("this machine does not keep bits")
    length = data.draw(st.sampled_from([5, 130, 300]))
    ids = [(i * i + 3 * i) % 40 for i in range(length)]
    whole = runner.forward([Span(0, 0, ids, length)])
    cuts = sorted(data.draw(st.sets(st.integers(1, length - 1), max_size=4)))
    pieces = []
    for start, end in zip([0, *cuts], [*cuts, length], strict=True):
        mates = [Span(1, 0, ids[: data.draw(st.integers(1, 100))], 0)] if data.draw(st.booleans()) else []
        pieces.append(runner.forward([*mates, Span(2, start, ids[start:end], end - start)]))
    assert torch.equal(whole, torch.cat(pieces))


def test_a_forward_whose_bits_depend_on_the_batch_is_not_called_bitwise():
    """The probe, not the mode, decides what is promised."""
    model = tiny(dtype=torch.float32)

    def leaking(query, *rest):
        output = host_attention(query, *rest)
        return output + 1e-7 * query.shape[1] * output.abs().sum(dim=(1, 2), keepdim=True).roll(1, 0)

    runner = GraphRunner(
        "m", model, num_slots=2, context_length=512, capture=Recorder(), attention=leaking, strict=True
    )
    assert runner.guarantee == "near-tie"
    assert graph_runner(tiny(dtype=torch.float32)).guarantee == "near-tie"


@pytest.mark.parametrize("working", [0, 1])
def test_a_forward_that_cannot_be_recorded_gives_the_model_back(working):
    """At the first recording or while probing: the model is as before, so that another runner can have it."""
    model = tiny()
    own = model.config._attn_implementation
    record = Recorder()

    def capture(run):
        if record.recorded == working:
            raise RuntimeError("operation not permitted when stream is capturing")
        return record(run)

    with pytest.raises(UnsupportedModelError, match=r"RuntimeError: .*capturing"):
        graph_runner(model, capture=capture, strict=True)
    assert own == model.config._attn_implementation


def test_an_engine_over_graphs_is_lossless():
    """Chains, batches and prefix reuse over the graph runner: the tokens of plain decoding over the eager one."""
    prompts = [[1, 2, 3] * 8, [5], [7, 8] * 90, [9, 4, 4]]

    def engine(make):
        runners = {"draft": make(tiny()), "target": make(tiny("qwen3"))}
        return SpecRouter(runners, target="target", max_context=512, config=EngineConfig(max_batch=3))

    with engine(lambda model: EagerRunner("m", model, num_slots=3, context_length=512)) as plain:
        expected = [c.token_ids for c in plain.generate(prompts, max_tokens=20, speculation=False)]
    for strict in (False, True):
        with engine(lambda model, strict=strict: graph_runner(model, strict=strict)) as ours:
            for chain in ([], ["ngram"], ["draft"]):
                options = {"chain": chain} if chain else {"speculation": False}
                assert expected == [c.token_ids for c in ours.generate(prompts, max_tokens=20, **options)]


@pytest.mark.parametrize("strict", [False, True])
def test_a_forward_over_ids_of_the_device_is_that_over_the_same_ids(strict):
    """The spans' own ids are not looked at, -1 stands for any, and nothing is begun beyond the context."""
    runner = graph_runner(tiny(), strict=strict)
    runner.forward([Span(0, 0, [1, 2, 3], 0), Span(2, 0, [4, 5], 0)])
    spans = [Span(0, 3, [0], 1), Span(2, 2, [0], 1)]
    ours = runner.ahead(spans, torch.tensor([7, -1]))
    assert torch.equal(ours, runner.forward([Span(0, 3, [7], 1), Span(2, 2, [0], 1)]))
    assert not torch.equal(ours[0], runner.forward(spans)[0])
    assert runner.ahead([Span(0, 511, [0], 1)], torch.tensor([7])) is not None
    assert runner.ahead([Span(0, 512, [0], 1)], torch.tensor([7])) is None


def keys_of(seed, start, count, warp):
    """Of one row's choices from a position on."""
    return [row_keys(seed, 0, start + i) for i in range(count)] if warp.temperature else []


@pytest.mark.parametrize("warp", [Warp(0.0, 0, 1.0, 0.0), Warp(0.8, 0, 1.0, 0.0), Warp(1.2, 5, 0.9, 0.01)], ids=str)
@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_a_loop_says_what_forwards_and_choices_say_one_by_one(warp, data):
    """Ids and what is left in the cache: those of a forward, a choice, a forward over it, and so on."""
    capture = Recorder()
    looping, stepping = graph_runner(tiny(), capture=capture), EagerRunner("m", tiny(), num_slots=3, context_length=512)
    count = data.draw(st.integers(1, 5))
    slots = data.draw(st.permutations([0, 1, 2]))[: data.draw(st.integers(1, 3))]
    prefix = data.draw(st.integers(0, 40))
    spans = [
        Span(slot, prefix, [(7 * slot + 3 * i) % 40 for i in range(data.draw(st.integers(1, 4)))], 1) for slot in slots
    ]
    for runner in (looping, stepping):
        if prefix:
            runner.forward([Span(slot, 0, [(slot + i) % 40 for i in range(prefix)], 0) for slot in slots])
    ours = looping.loop(spans, count, warp, [keys_of(span.slot, span.end, count, warp) for span in spans])

    theirs, fed = [], spans
    for turn in range(count):
        logits = stepping.forward(fed)
        keys = torch.tensor([row_keys(span.slot, 0, span.end + turn) for span in spans], dtype=torch.int32)
        theirs.append(pick(logits, warp, keys))
        fed = [Span(s.slot, s.end + turn, [i], 1) for s, i in zip(spans, theirs[-1].tolist(), strict=True)]
    assert torch.equal(torch.stack(theirs, 1), ours)
    after = [Span(span.slot, span.end + count - 1, [5], 1) for span in spans]
    assert torch.allclose(stepping.forward(after), looping.forward(after), atol=1e-6)
    recorded = capture.recorded
    looping.loop(spans, count, warp, [keys_of(span.slot, span.end, count, warp) for span in spans])
    assert recorded == capture.recorded


@pytest.fixture
def on_a_device(monkeypatch):
    """`make_runner` takes the CPU for a CUDA device; `fused` stands for the module of that name."""
    attention = SimpleNamespace(agrees=lambda *given: True, tile_attention=host_attention)
    fused = SimpleNamespace(can_fuse=lambda model: True, FusedForward=graphs_module.by_modules)
    for name, module in (("triton_attention", attention), ("fused", fused)):
        monkeypatch.setitem(sys.modules, f"specrouter_llm.runtime.{name}", module)
        monkeypatch.setattr(specrouter_llm.runtime, name, module, raising=False)
    monkeypatch.setattr(select_module, "CudaCapture", lambda device: Recorder())
    monkeypatch.setattr(select_module, "_is_on_one_cuda_device", lambda model: True)
    return fused


def wrong(model):
    """A forward that is not the model's."""
    right = graphs_module.by_modules(model)
    return lambda batch, ids, cache: -right(batch, ids, cache)


def refused(model):
    """A forward that cannot be made."""
    raise RuntimeError("no such kernel")


@pytest.mark.parametrize("other", [wrong, refused])
def test_a_written_out_forward_that_fails_or_differs_is_not_used(on_a_device, other):
    """Neither by the first runner of a model nor by the second, which finds the model in use; both then record its own."""
    on_a_device.FusedForward = other
    model = tiny()
    options = {"num_slots": 2, "context_length": 512, "pack": False, "keep": True}
    with torch.inference_mode():
        expected = model(torch.tensor([[1, 2, 3]]), use_cache=False).logits[0]
    runners = [make_runner("m", model, **options) for _ in range(2)]
    for runner in runners:
        assert type(runner) is GraphRunner
        assert torch.allclose(expected, runner.forward([Span(0, 0, [1, 2, 3], 3)]), atol=1e-6)
        runner.close()
    assert torch.allclose(expected, model(torch.tensor([[1, 2, 3]]), use_cache=False).logits[0])


def test_without_any_forward_to_record_there_are_no_graphs(on_a_device, monkeypatch, caplog):
    """The log says why."""
    monkeypatch.setattr(select_module, "by_modules", refused)
    on_a_device.FusedForward = refused
    runner = make_runner("m", tiny(), num_slots=2, context_length=512, pack=False, keep=True)
    assert type(runner) is EagerRunner
    assert "m runs without CUDA graphs: RuntimeError: no such kernel" in caplog.text
    runner.close()


def test_few_loops_serve_all_lengths():
    """Two graphs serve any number of choices, up to the last position of the slots."""
    capture = Recorder()
    runner = graph_runner(tiny(), capture=capture, context_length=512)
    before = capture.recorded
    greedy = Warp(0.0, 0, 1.0, 0.0)
    longest = runner.loop([Span(0, 0, [1, 2], 1)], 12, greedy, [[]])
    for count in range(1, 13):
        assert torch.equal(longest[:, :count], runner.loop([Span(0, 0, [1, 2], 1)], count, greedy, [[]]))
    assert capture.recorded - before == 2  # a first turn, and another
    short, longer = (graph_runner(tiny(), context_length=length) for length in (512, 1024))
    for count in (4, 5):  # up to the last position; there is no room for six
        spans = [Span(0, 506, [1, 2], 1)]
        assert torch.equal(longer.loop(spans, count, greedy, [[]]), short.loop(spans, count, greedy, [[]]))
    sampled = Warp(1.0, 0, 1.0, 0.0)
    keys = keys_of(0, 2, 5, sampled)
    five, three = (runner.loop([Span(0, 0, [1, 2], 1)], n, sampled, [keys[:n]]) for n in (5, 3))
    assert torch.equal(five[:, :3], three)


def test_a_loop_says_which_choices_are_broken():
    """A row whose logits are not finite is marked, the others go on; padding never feeds what is no token."""
    model = tiny()
    runner = graph_runner(model)
    with torch.no_grad():
        model.model.embed_tokens.weight[5] = torch.nan
    spans = [Span(0, 0, [1, 5], 1), Span(1, 0, [1, 2], 1), Span(2, 0, [3], 1)]
    broken, fine, other = runner.loop(spans, 3, Warp(0.0, 0, 1.0, 0.0), [[], [], []]).tolist()
    assert broken[0] == BROKEN
    assert BROKEN not in fine + other
    assert [other] == runner.loop(spans[2:], 3, Warp(0.0, 0, 1.0, 0.0), [[]]).tolist()


def test_strict_mode_pads_only_where_bits_depend_on_the_number_of_tokens():
    """Then a loop's shapes are not its one shape."""

    def counting(query, *rest):
        return host_attention(query, *rest) * (1 + 1e-6 * query.shape[1])

    def options(attention):
        return {"num_slots": 2, "context_length": 512, "capture": Recorder(), "attention": attention, "strict": True}

    asked = [Span(0, 0, [1], 1)], 2, Warp(0.0, 0, 1.0, 0.0), [[]]
    padded = GraphRunner("m", tiny(dtype=torch.float32), **options(counting))
    assert padded.token_sizes == (CANONICAL_TOKENS,)
    assert padded.loop(*asked) is None

    def rounded(batch, ids, cache):
        return by_modules(model)(batch, ids, cache).round(decimals=6)

    model = tiny()
    free = GraphRunner("m", model, recorded=rounded, **options(host_attention))
    assert free.guarantee == "bitwise"
    assert free.token_sizes == TOKENS
    assert free.loop(*asked).shape == (1, 2)


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.9, "seed": 4, "top_p": 0.9}], ids=str)
def test_loops_change_no_draft(sampling):
    """Drafts, acceptance and text are those of drafting token by token; rows that need the host are drafted so."""
    prompts = [[1, 2, 3] * 8, [5], [7, 8] * 30, [9, 4, 4]]

    def answers(make, **more):
        runners = {"draft": make(tiny()), "target": make(tiny("qwen3"))}
        with SpecRouter(runners, target="target", max_context=512, config=EngineConfig(max_batch=3)) as engine:
            done = engine.generate(prompts, max_tokens=20, chain=["draft"], **sampling, **more)
        return [(c.token_ids, c.stats.num_draft_tokens, c.stats.num_accepted_draft_tokens) for c in done]

    def eager(model):
        return EagerRunner("m", model, num_slots=3, context_length=512)

    loops = []

    def counting(model):
        runner = graph_runner(model)
        loop = runner.loop
        runner.loop = lambda *given: loops.append(given) or loop(*given)
        return runner

    assert answers(eager) == answers(counting)
    assert loops
    loops.clear()
    assert answers(eager, frequency_penalty=0.5) == answers(counting, frequency_penalty=0.5)
    assert not loops


def test_without_a_device_the_eager_runner_stays(caplog):
    """Strict mode that cannot be kept is said."""
    options = {"num_slots": 1, "context_length": 512, "keep": True, "pack": False}
    runner = make_runner("m", tiny(), **options, strict=True)
    assert type(runner) is EagerRunner
    assert "strict=True" in caplog.text
