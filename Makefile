# Two commands do everything from a fresh clone: `make story` and `make test`.

PYTHON ?= python3
PY := .venv/bin/python

.PHONY: help setup story test test-slow gpu lint clean clean-all

help:
	@echo "make story      train a small model on made-up stories and print three of its own (minutes, CPU)"
	@echo "make test       lint and the quick tests       make test-slow   the long ones"
	@echo "make gpu        tests, training and benchmarks on a GPU: nine minutes of them; again until done"
	@echo "make setup      the virtual environment in .venv that both use"
	@echo "make clean      removes it and caches         make clean-all   asks, then removes data/ and out/ too"

setup: .venv/ready

# Rebuilt only when the dependencies change. pip reads [dependency-groups] from version 25.1 on.
.venv/ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "nanoStories needs Python 3.11 or later; try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv
	$(PY) -m pip install -q --disable-pip-version-check "pip>=25.1"
	$(PY) -m pip install -q --disable-pip-version-check . --group test
	@touch $@

# Data and a run that are there, whoever made them, are used and never replaced (so the |): a run
# that was stopped before its first evaluation goes on.
data/storybook-bpe/manifest.json: | .venv/ready
	$(PY) prepare.py configs/storybook.py

out/storybook/loss.png: | data/storybook-bpe/manifest.json
	$(PY) train.py $(if $(wildcard out/storybook/latest),--resume --out_dir=out/storybook,configs/storybook.py)

story: out/storybook/loss.png
	@for seed in 1 2 3; do \
	  echo; echo "--- story $$seed"; \
	  $(PY) sample.py configs/storybook.py --out_dir=out/storybook --seed=$$seed || exit 1; \
	done
	@echo; echo "loss curve: out/storybook/loss.png    more: $(PY) sample.py --start \"Once upon a time\""

lint: .venv/ready
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

# Two processes with a thread each: more threads than cores only wait for each other.
test test-slow: export OMP_NUM_THREADS = 1

test: lint
	$(PY) -m pytest -q -n 2 -m "not slow"

# The Triton of torch 2.11, beside the installed one: the kernels must compile cleanly with both.
.venv/triton-3.6: .venv/ready
	$(PY) -m pip install -q --disable-pip-version-check --no-deps --target $@ triton==3.6.0

test-slow: .venv/ready .venv/triton-3.6
	$(PY) -m pytest -q -n 2 -m slow -rP

# One call of nine minutes at most. `Error 3` says that there is more to do: make it again.
gpu: .venv/ready
	$(PY) -m benchmarks.gpu_check $(ARGS)

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis build nanostories.egg-info

# Trained runs cannot be had back.
clean-all:
	@printf "Remove data/ and out/, with every trained run? [y/N] "; read answer; \
	  if [ "$$answer" = y ]; then rm -rf data out; else echo "they stay"; fi
	@$(MAKE) --no-print-directory clean
