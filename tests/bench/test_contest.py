"""The contest: same prompts, same number of tokens, same answers; and the figures that are made of it."""

import itertools
import json
import time

import pytest

from specrouter_llm.bench import batch, speed, step, strict
from specrouter_llm.bench.bootstrap import Interval
from specrouter_llm.bench.contest import END_TO_END, Decoding, Job, figures, jobs_of, speedup, take_turns
from specrouter_llm.bench.contestants import Chain, contestants_of, default_chains
from specrouter_llm.bench.models import Models
from specrouter_llm.bench.peers import KINDS, peers_of
from specrouter_llm.bench.rivals import fastest, rivals
from specrouter_llm.bench.workloads import Workload, workload
from specrouter_llm.engine.worker import IDLE_SECONDS
from specrouter_llm.errors import InvalidParameterError
from specrouter_llm.runtime.packing import has_packing
from specrouter_llm.sampling.params import SamplingParams
from specrouter_llm.testing import fake_engine

PNG = b"\x89PNG"


class Scripted:
    """A contestant that takes turns and tells who was asked when."""

    kind = "static"

    def __init__(self, name, log, family="static chain"):
        self.name, self._log, self.family, self.began = name, log, family, []

    def decode(self, jobs):
        self._log.append(self.name)
        self.began.append(time.perf_counter())
        return Decoding(tuple((1,) * job.params.max_tokens for job in jobs), 2.0, 1.0, 3, 3)


def job(max_tokens=4):
    return Job("w", [1, 2], SamplingParams(max_tokens=max_tokens, seed=0, ignore_eos=True))


def test_contestants_take_turns_in_rotating_order():
    """Every one decodes every group, and each begins once in as many groups as there are contestants."""
    log = []
    found = take_turns([Scripted(name, log) for name in "abc"], [[job()], [job(), job()], [job()]])
    assert "abcbcacab" == "".join(log)
    assert {"a": 3, "b": 3, "c": 3} == {name: len(each) for name, each in found.items()}
    assert 8 == found["a"][1].num_tokens


def test_nobody_begins_beside_the_helpers_of_another():
    """An engine that has just answered still has them; they wait actively."""
    both = [Scripted(name, []) for name in "ab"]
    take_turns(both, [[job()], [job()], [job()]])
    began = sorted(itertools.chain.from_iterable(one.began for one in both))
    assert all(later - before > IDLE_SECONDS for before, later in itertools.pairwise(began))


def test_a_short_answer_is_no_answer():
    """Times are compared for the same number of tokens or not at all."""
    scripted = Scripted("a", [])
    scripted.decode = lambda jobs: Decoding(((1,),), 1.0, 1.0, 0, 0)
    with pytest.raises(AssertionError):
        take_turns([scripted], [[job()]])


def test_figures_are_ratios_of_sums():
    slow = [Decoding(((0,) * 5,), 10.0, 8.0, 4, 4), Decoding(((0,) * 5,), 20.0, 16.0, 4, 4)]
    fast = [Decoding(((0,) * 5,), 5.0, 2.0, 4, 2), Decoding(((0,) * 5,), 5.0, 4.0, 4, 1)]
    assert {
        "tokens": 10,
        "ms_per_token": 750.0,
        "ms_per_token_end_to_end": 1000.0,
        "tokens_per_target_step": pytest.approx(8 / 3, abs=1e-4),
    } == figures(fast)
    ratios = speedup(fast, slow)
    assert (4.0, 3.0) == (ratios["decode"]["value"], ratios["end_to_end"]["value"])
    assert "fast" == fastest({"slow": slow, "fast": fast}, ["slow", "fast"])


def test_the_best_of_every_family_is_picked_on_the_same_runs():
    """By the clock asked for; plain decoding is one of the static chains, routing is its own rival never."""
    seconds = {
        "plain": (8, 9),
        "chain@2": (6, 6),
        "chain@4": (5, 7),
        "a@2": (4, 4),
        "a@4": (3, 3),
        "b": (9, 2),
        "us": (1, 1),
    }
    found = {name: [Decoding(((0,) * 5,), whole, decode, 4, 4)] for name, (decode, whole) in seconds.items()}
    contestants = [Scripted(name, [], name[0] if name[0] in "ab" else "static chain") for name in seconds]
    for contestant in contestants:
        contestant.kind = {"us": "routed"}.get(contestant.name, "peer" if contestant.name[0] in "ab" else "static")
    by_decoding = {rival["what"]: rival for rival in rivals(contestants, found)}
    picked = {"best static chain": "chain@4", "best a": "a@4", "best b": "b", "best peer": "a@4"}
    assert picked == {what: rival["name"] for what, rival in by_decoding.items()}
    assert {"best static chain": 3, "best a": 2, "best b": 1, "best peer": 3} == {
        what: rival["of"] for what, rival in by_decoding.items()
    }
    assert 5.0 == by_decoding["best static chain"]["decode"]["value"]
    by_whole = {rival["what"]: rival["name"] for rival in rivals(contestants, found, END_TO_END)}
    assert ("chain@2", "b") == (by_whole["best static chain"], by_whole["best peer"])


def test_a_step_that_committed_several_tokens_at_first_is_not_favoured():
    """Assisted generation may verify a proposal in its first step: rates are per token after it."""
    usual = [Decoding(((0,) * 9,), 9.0, 8.0, 8, 8)]
    ahead = [Decoding(((0,) * 9,), 9.0, 4.0, 4, 4)]
    assert 1.0 == speedup(ahead, usual)["decode"]["value"]
    at_once = [Decoding(((0,) * 9,), 9.0, 0.0, 0, 0)]
    assert 1.0 == speedup(at_once, usual)["decode"]["value"]


def test_prompts_that_do_not_fit_are_left_out():
    """Prompt and answer together must fit the context; with none left that is an error."""
    with fake_engine() as engine:
        room = engine.max_context - 8
        engine.encode = lambda text, **_: [1] * len(text)
        prompts = ("a" * room, "b" * (room + 1), "c")
        jobs = jobs_of(engine, Workload("w", prompts, 0.5, 8), seed=5)
        assert [room, 1] == [len(each.prompt_ids) for each in jobs]
        assert [5, 7] == [each.params.seed for each in jobs]
        assert all(each.params.ignore_eos and each.params.temperature == 0.5 for each in jobs)
        with pytest.raises(InvalidParameterError, match="no prompt of 'w' leaves 8"):
            jobs_of(engine, Workload("w", prompts[1:2], 0.0, 8), seed=0)


@pytest.mark.parametrize("text", ["", "ngram", "ngram@", "@4", "ngram@four", "ngram@8,,demo/draft@4"])
def test_a_chain_that_cannot_be_read(text):
    with pytest.raises(InvalidParameterError, match="LEVEL@WINDOW"):
        Chain.parse(text)


def test_chains_are_read_and_checked(models):
    chain = Chain.parse("ngram@8, demo/draft@4")
    assert (("ngram", "demo/draft"), (8, 4), "ngram@8 > demo/draft@4") == (chain.levels, chain.windows, chain.label)
    for wrong in (Chain(("nobody",), (4,)), Chain(("demo/target",), (4,))):
        with pytest.raises(InvalidParameterError, match="unknown level"), contestants_of(models, chains=[wrong]):
            pass
    with pytest.raises(InvalidParameterError, match="unknown peer 'llama'"), contestants_of(models, peers=["llama"]):
        pass


def test_assisted_generation_drafts_as_many_tokens_as_it_is_told(models):
    """A constant schedule of 2 never commits more than 3 tokens in a step; the answer is that of plain `generate`."""
    with peers_of(models, KINDS, everything=True) as peers:
        by_name = {peer.name: peer for peer in peers}
        assisted = [f"hf assisted{at}{by}" for by in ("", " by demo/middle") for at in ("", "@2", "@4", "@8")]
        assert ["hf generate", *assisted, *(f"hf lookup@{n}" for n in (10, 4, 20))] == list(by_name)
        assert 3 == len({peer.family for peer in peers})
        plain, two = (by_name[name].decode([job(12)]) for name in ("hf generate", "hf assisted@2"))
        assert plain.token_ids == two.token_ids
        assert 11 == plain.target_steps == plain.decode_tokens
        assert two.decode_tokens / 3 <= two.target_steps <= two.decode_tokens
        with pytest.raises(InvalidParameterError, match="one temperature and one length"):
            by_name["hf generate"].decode([job(3), job(4)])


def test_default_chains_follow_the_pool(models):
    with models.engine() as engine:
        some, everything = default_chains(engine), default_chains(engine, everything=True)
    singles = {"ngram@8", "demo/draft@4", "demo/draft@8", "demo/middle@4"}
    assert singles | {"demo/draft@3 > demo/middle@4", "ngram@7 > demo/draft@8"} == {chain.label for chain in some}
    assert set(some) < set(everything)
    assert 12 == len(everything)


def _check_figure(figure):
    """Of fewer units than an interval takes."""
    assert {"value"} == set(figure)
    assert 0 < figure["value"]


def test_speed(models, tmp_path):
    """Everyone on two workloads and their mixture: equal answers of our contestants, near-ties at most of the others."""
    workloads = [
        Workload("sums", ("Tom has 14 pencils. Anna gives Tom 9 more. How many pencils does Tom have now?",), 0.0, 24),
        Workload("tales", ("Tell me a short story.",), 1.0, 24),
    ]
    labels, rows = speed.measure(models, workloads, chains=[Chain(("ngram",), (4,)), Chain(("demo/draft",), (2,))])
    assert "demo/target" == labels["demo/target"]
    names = ["hf generate", "hf assisted", "hf lookup@10", "plain", "ngram@4", "demo/draft@2", "routed"]
    assert list(itertools.product(("sums", "tales", "mix"), names)) == [
        (row["workload"], row["contestant"]) for row in rows
    ]
    by_name = {(row["workload"], row["contestant"]): row for row in rows}
    for row in rows:
        assert 24 * row["prompts"] == row["tokens"]
        assert row["ms_per_token"] > 0
        assert 1 <= row["tokens_per_target_step"] <= 21
        for over in row["speedup"].values():
            _check_figure(over["decode"])
            _check_figure(over["end_to_end"])
        if row["kind"] != "peer":
            assert (row["prompts"], 0) == (row["identical"], row["different"])
        elif row["workload"] == "sums":
            assert 0 == row["different"]
        else:
            assert "identical" not in row
    assert (
        1.0
        == by_name["sums", "plain"]["tokens_per_target_step"]
        == by_name["sums", "hf generate"]["tokens_per_target_step"]
    )
    assert Interval(1).as_dict() == by_name["sums", "plain"]["speedup"]["plain"]["decode"]
    assert [0.0, 1.0] == by_name["mix", "routed"]["temperatures"]
    families = ["best hf generate", "best hf assisted", "best hf lookup", "best static chain", "best peer"]
    assert [*families, speed.PER_WORKLOAD] == [rival["what"] for rival in by_name["mix", "routed"]["rivals"]]
    assert families == [rival["what"] for rival in by_name["sums", "routed"]["rivals"]]
    assert 1 == pytest.approx(sum(by_name["mix", "routed"]["route"].values()), abs=1e-3)
    json.dumps(rows)
    everyone, routed = speed.table(rows).renderables
    assert (len(rows), 3 * 5 + 1) == (everyone.row_count, routed.row_count)
    pytest.importorskip("matplotlib")
    speed.plot(rows, tmp_path / "new" / "speed.png")
    assert (tmp_path / "new" / "speed.png").read_bytes().startswith(PNG)


def test_only_the_mixture(models):
    """Without the streams apart and without peers there is one stream, measured against plain decoding."""
    workloads = [Workload("a", ("One, two,",), 0.0, 4), Workload("b", ("Red, blue,",), 0.0, 4)]
    _, rows = speed.measure(models, workloads, apart=False, chains=[], peers=())
    assert [("mix", "plain"), ("mix", "routed")] == [(row["workload"], row["contestant"]) for row in rows]
    assert {"plain"} == set(rows[1]["speedup"])
    assert "-" in list(speed.table(rows).renderables[0].columns[3].cells)


def test_a_target_alone():
    """Without drafters there is lookup, and nobody to assist."""
    _, rows = speed.measure(
        Models.of("demo/draft"), [Workload("a", ("One, two,",), 0.0, 4)], mix=False, everything=True
    )
    assert [
        "hf generate",
        *(f"hf lookup@{n}" for n in (10, 4, 20)),
        "plain",
        "ngram@8",
        "ngram@16",
        "routed",
    ] == [row["contestant"] for row in rows]


def test_everyone_answers_a_chat(models):
    """Messages become the same ids for all: equal answers, transformers' included."""
    _, rows = speed.measure(models, [workload("rag", 2, max_tokens=16)], mix=False, chains=[Chain(("ngram",), (8,))])
    for row in rows:
        assert (2, 0) == (row["identical"] + row["near_ties"], row["different"]), row["contestant"]


def test_batch(models, tmp_path):
    """Rates by batch size, and the answers of a batch are those of each prompt alone."""
    workload = Workload("w", ("Tell me about the sea.", "How many apples?", "Why?"), 0.0, 6)
    _, rows = batch.measure(models, workload, batches=[1, 3], groups=2, chains=[Chain(("demo/draft",), (2,))])
    names = ["hf generate", "plain", "demo/draft@2", "routed"]
    assert list(itertools.product((1, 3), names)) == [(row["batch"], row["contestant"]) for row in rows]
    for row in rows:
        _check_figure(row["tokens_per_second"])
        assert 2 * row["batch"] == row["identical"] + row["near_ties"]
        assert ("route" in row) == (row["kind"] == "routed")
        rate = 2 * row["batch"] * workload.max_tokens / sum(row["seconds"])
        assert row["tokens_per_second"]["value"] == pytest.approx(rate, rel=0.05)
        assert len(row["target_steps"]) == 2
    assert ["best hf generate", "best static chain", "best peer"] == [rival["what"] for rival in rows[-1]["rivals"]]
    json.dumps(rows)
    everyone, routed = batch.table(rows).renderables
    assert (len(rows), 2 * 3) == (everyone.row_count, routed.row_count)
    pytest.importorskip("matplotlib")
    batch.plot(rows, tmp_path / "batch.png")
    assert (tmp_path / "batch.png").read_bytes().startswith(PNG)


def test_step(models, tmp_path):
    """One forward of one token is the unit; the floor comes from the bytes of the weights and the rate of reading."""
    floor, rows = step.measure(models, tokens=[1, 8], context=16, rounds=3, read_bytes=2**22)
    with pytest.raises(InvalidParameterError, match="give 1 too"):
        step.measure(models, tokens=[8])
    with pytest.raises(InvalidParameterError, match="too short"):
        step.measure(models, context=4096)
    assert ("demo/target", "cpu", 2**22) == (floor["target"], floor["device"], floor["read_bytes"])
    expected = floor["weight_bytes"] / 2**30 / floor["read_gib_per_second"] * 1e3
    assert expected == pytest.approx(floor["floor_ms"], rel=0.01)
    runners = ["specrouter", *(["products"] if has_packing() else []), "transformers"]
    assert [("engine", 1), *itertools.product(runners, (1, 8))] == [(row["runner"], row["tokens"]) for row in rows]
    for row in rows:
        assert ("over_floor" in row) == (row["tokens"] == 1)
        assert ("peer_over_ours" in row) == (row["runner"] == "specrouter")
        if row["tokens"] == 1 and "over_one" in row:
            assert 1.0 == row["over_one"]["value"]
    json.dumps(rows)
    assert len(rows) == step.table(rows).row_count
    pytest.importorskip("matplotlib")
    step.plot(rows, tmp_path / "step.svg")
    assert "<svg" in (tmp_path / "step.svg").read_text(encoding="utf-8")


def test_strict(models):
    """Plain and routed in both modes; the default is the unit, and everything is plain decoding's."""
    job = Workload("sums", ("Tom has 3 apples.",), max_tokens=6)
    labels, rows = strict.measure(models, job)
    assert "demo/target" in labels
    assert [(mode, way) for mode in ("default", "strict") for way in ("plain", "routed")] == [
        (row["mode"], row["way"]) for row in rows
    ]
    for row in rows:
        assert (1, 0) == (row["identical"] + row["near_ties"], row["different"])
        assert row["mode"] == "strict" or 1.0 == row["over_default"]["decode"]["value"]
    json.dumps(rows)
    assert len(rows) == strict.table(rows).row_count


def test_bytes_that_a_step_reads(models):
    """The demo's embedding is its output head: everything counts once. An embedding of its own is not read as a whole."""
    pool = models.pool()
    model = pool.target.model
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert 4 * pool.target.num_parameters == step.bytes_read(model)
    embedding = model.get_input_embeddings().weight.nbytes
    model.set_output_embeddings(
        type(model.get_output_embeddings())(*model.get_input_embeddings().weight.shape[::-1], bias=False)
    )
    assert 4 * pool.target.num_parameters == step.bytes_read(model)  # the new head has the size of the embedding
    assert embedding == model.get_output_embeddings().weight.nbytes
    pool.close()


def test_only_the_target_is_widened():
    wide = Models.of("demo", widen="30M", target_only=True)
    assert wide.target.widen is not None
    assert [None, None] == [draft.widen for draft in wide.drafts]
