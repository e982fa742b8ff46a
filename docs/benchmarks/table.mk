# One result per row of the tables in docs/benchmarks: `make bench-table DATA=PATH` makes all of them, and
# `make RESULTS/NAME.json DATA=PATH` one. Most take at most four minutes on two cores; measure on an idle machine.
# DATA holds the published files; without them name others: GSM8K=..., HUMANEVAL=..., SPEC_BENCH=...
DATA       ?= data
GSM8K      ?= $(DATA)/gsm8k_test.jsonl
HUMANEVAL  ?= $(DATA)/humaneval.jsonl
SPEC_BENCH ?= $(DATA)/question.jsonl
RESULTS    ?= build/bench
# The size of the target: the drafters follow in the proportions of a real family.
SIZE       ?= 150M
LARGE      ?= 1B
# Scales nothing but the number of prompts, for a dry run: PROMPTS=1 SIZE=20M LARGE=30M.
PROMPTS    ?=
SPECROUTER ?= $(BIN)/specrouter
limit       = --limit $(or $(PROMPTS),$(1))

# Against transformers: its defaults on more prompts, and every assistant and length on fewer.
gsm8k                := speed -w $(GSM8K) --no-chains --peer generate --peer assisted $(call limit,12)
gsm8k-assisted       := speed -w $(GSM8K) --no-chains --peer generate --peer assisted --all $(call limit,4)
target-only          := $(gsm8k) --widen-target-only
target-only-assisted := $(gsm8k-assisted) --widen-target-only
quoting              := speed -w rag -w editing --no-chains --peer generate --peer lookup --all $(call limit,4)
# Against our own plain decoding and static chains: no peers.
chains-gsm8k         := speed -w $(GSM8K) --peer none $(call limit,16)
chains-target-only   := $(chains-gsm8k) --widen-target-only
chains-code          := speed -w $(HUMANEVAL) --peer none $(call limit,8)
chains-rag           := speed -w '$(SPEC_BENCH)\#rag' --peer none --max-tokens 48 $(call limit,20)
chains-qa            := speed -w '$(SPEC_BENCH)\#qa' --peer none $(call limit,10)
chains-quoting       := speed -w rag -w editing --peer none $(call limit,5)
chains-stories       := speed -w stories --peer none $(call limit,8)
chains-mix           := speed -w mix --peer none $(call limit,2)
# Batches: the sizes, and eight rows of every workload.
some                 := --chain ngram@8 --chain demo/draft@4
batch-1-4            := batch -w $(GSM8K) --batch 1 --batch 2 --batch 4 --groups 32 --max-tokens 48 --limit 128 --no-peer
batch-8              := batch -w $(GSM8K) --batch 8 --groups 16 --max-tokens 48 --limit 128
batch-16             := batch -w $(GSM8K) --batch 16 --groups 8 --max-tokens 32 --limit 128 --no-peer $(some)
batch-32             := batch -w $(GSM8K) --batch 32 --groups 4 --max-tokens 24 --limit 128 --no-peer $(some)
batch-8-code         := batch -w $(HUMANEVAL) --batch 8 --groups 8 --max-tokens 48 --limit 64 --no-peer $(some)
batch-8-rag          := batch -w rag --batch 8 --groups 2 --max-tokens 48 --limit 8 --no-peer $(some)
batch-8-spec-rag     := batch -w '$(SPEC_BENCH)\#rag' --batch 8 --groups 16 --max-tokens 32 --limit 80 --no-peer --no-chains
batch-8-qa           := batch -w '$(SPEC_BENCH)\#qa' --batch 8 --groups 10 --max-tokens 48 --limit 80 --no-peer $(some)
batch-8-stories      := batch -w stories --batch 8 --groups 8 --max-tokens 48 --limit 8 --no-peer $(some)
# Steps: over one token and over the floor; what the engine does between its forwards.
step                 := step
overhead             := overhead --prompts $(GSM8K) $(call limit,32)
# The scheduler's arithmetic against what happens (eight minutes), and memory against what was accounted for.
calibration          := calibration --noise 0 --noise 0.1 --noise 0.3 --noise 0.8 --tokens 200
memory               := memory --depth 1 --depth 3
# The same family as checkpoints in bfloat16, as most models are stored: who reads them as float32 need not keep them so.
FAMILY               ?= $(RESULTS)/family-$(SIZE)
stored               := --target $(FAMILY)/target-widened --draft $(FAMILY)/middle-widened --draft $(FAMILY)/draft-widened
stored-gsm8k         := $(gsm8k) $(stored)
stored-quoting       := $(quoting) $(stored)
stored-batch-8       := batch -w $(GSM8K) --batch 8 --groups 8 --max-tokens 48 --limit 64 --no-chains $(stored)
stored-step          := step --target $(FAMILY)/target-widened

bench_table := gsm8k gsm8k-assisted target-only target-only-assisted quoting \
	chains-gsm8k chains-target-only chains-code chains-rag chains-qa chains-quoting chains-stories chains-mix \
	batch-1-4 batch-8 batch-16 batch-32 batch-8-code batch-8-rag batch-8-spec-rag batch-8-qa batch-8-stories step overhead \
	calibration memory

bench_stored := stored-gsm8k stored-quoting stored-batch-8 stored-step

.PHONY: bench-table bench-peers

bench-table: $(bench_table:%=$(RESULTS)/%.json) $(RESULTS)/step-large.json $(bench_stored:%=$(RESULTS)/%.json)
	$(SPECROUTER) report $(RESULTS)/table.html $^

# Needs the extra `peers`.
bench-peers: $(RESULTS)/llamacpp.json $(RESULTS)/llamacpp-quoting.json

llamacpp             := speed -w $(GSM8K) --no-chains --peer generate --peer llama.cpp $(call limit,8)
llamacpp-quoting     := speed -w rag -w editing --no-chains --peer generate --peer llama.cpp $(call limit,4)

$(RESULTS)/step-large.json: | $(STAMP)
	HF_HUB_OFFLINE=1 $(SPECROUTER) bench step --widen $(LARGE) --tokens 1 --tokens 8 --rounds 10 --out $@

$(FAMILY)/target-widened: | $(STAMP)
	HF_HUB_OFFLINE=1 $(SPECROUTER) bench checkpoints --widen $(SIZE) --stored bfloat16 $(FAMILY)

$(bench_stored:%=$(RESULTS)/%.json): $(RESULTS)/%.json: $(FAMILY)/target-widened | $(STAMP)
	HF_HUB_OFFLINE=1 $(SPECROUTER) bench $($*) --out $@

$(RESULTS)/%.json: | $(STAMP)
	$(if $($*),,$(error no benchmark is called $*: see docs/benchmarks/table.mk))
	HF_HUB_OFFLINE=1 $(SPECROUTER) bench $($*) --widen $(SIZE) --out $@
