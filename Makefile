# The whole workflow. `make` alone lists it.

PYTHON ?= python3
ENGINE ?=
ARGS ?=
SECONDS ?= 60
WORKERS ?= 2
VENV := .venv
COPE := $(VENV)/bin/cope

.PHONY: help setup serve demo test check bench fuzz clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

setup:  ## make .venv with everything in it (ENGINE=gpu for CUDA, remembered); a second run takes a second
	@$(PYTHON) scripts/setup_env.py $(if $(ENGINE),--engine $(ENGINE))

serve: setup  ## start the server on :8000 with the bundled model (ARGS='MODEL --vllm-option ...')
	$(COPE) serve $(ARGS)

demo: setup  ## ask a clip made on the spot a question; starts a server if none answers
	@$(COPE) demo $(ARGS)

test: setup  ## run all tests, WORKERS=2 at a time where they do not measure (or what ARGS says, one by one)
ifeq ($(strip $(ARGS)),)
	code=0; \
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m 'not alone' || code=1; \
	$(VENV)/bin/python -m pytest -m alone || code=1; \
	exit $$code
else
	$(VENV)/bin/python -m pytest $(ARGS)
endif

check: setup  ## lint, formatting and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: setup  ## extraction, the prefill's parts, codec against dense input on the server; reports in bench/
	$(COPE) bench codec $(ARGS) $(FILES)
	@mkdir -p bench
	$(COPE) bench prefill --preset tiny --out bench/prefill-tiny.json
	$(COPE) loadtest run smoke codec-vs-dense --serve='--max-model-len 16384' --out bench

fuzz: setup  ## coverage-guided fuzzing of the codec worker (SECONDS=60); what it finds lies in .fuzz/
	$(VENV)/bin/pip install --quiet -e '.[fuzz]'
	$(VENV)/bin/python tests/fuzz/run.py --seconds $(SECONDS) $(ARGS)

clean:  ## remove the environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .fuzz bench
