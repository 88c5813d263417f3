# Everything a contributor types. The first two targets are all that the quick start needs.
PYTHON ?= python3
BIN := .venv/bin
export MLOS_RESULTS ?= results

.DEFAULT_GOAL := help
.PHONY: help setup e2e-test test coverage test-slow soak bench lint types lock protocol clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

e2e-test: setup ## Package, serve and validate the default models; write the dashboard (SET=all, MODELS=bert,t5, WEIGHTS=small, TIER=release)
	$(BIN)/mlos validate --set $(or $(SET),default) --models "$(MODELS)" --weights $(or $(WEIGHTS),auto) --tier $(or $(TIER),smoke) --results $(MLOS_RESULTS) --keep

test: setup lint types ## Lint, types and the tests, by two processes (TESTERS=4)
	$(BIN)/python -m pytest -m "not slow and not soak" --durations 15 -n $(or $(TESTERS),2) --dist loadfile

coverage: setup ## The tests again, and how much of the code they run, child processes included (takes twice as long)
	@rm -rf .cache/coverage && mkdir -p .cache/coverage
	$(BIN)/coverage run -m pytest -m "not slow and not soak"
	@$(BIN)/coverage combine --quiet && $(BIN)/coverage report

test-slow: setup ## The tests that take minutes
	$(BIN)/python -m pytest -m slow --timeout 1800

soak: setup ## The tests that take an hour or more
	$(BIN)/python -m pytest -m soak --timeout 14400

comma := ,
bench: setup ## Compare with other servers on this host (WORKLOAD=trivial,minilm PEERS=plain,mlserver PAIRS=20 ARGS=--check)
	$(BIN)/python -m benchmarks $(foreach one,$(subst $(comma), ,$(WORKLOAD)),--workload $(one)) $(foreach one,$(subst $(comma), ,$(PEERS)),--peer $(one)) \
		$(if $(PAIRS),--pairs $(PAIRS)) --results $(MLOS_RESULTS)/bench $(ARGS)

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: setup
	$(BIN)/mypy src/mlos tests scripts benchmarks

setup: ## Set up .venv from the lock, once; the other targets do it when needed
	@$(PYTHON) scripts/setup.py

lock: setup ## Resolve the lock again around requirements/pins.txt
	$(BIN)/pip-compile --quiet --generate-hashes --allow-unsafe --unsafe-package torch --unsafe-package llama-cpp-python --unsafe-package openvino-telemetry --no-header --no-emit-index-url \
		--no-emit-find-links --no-emit-options --annotation-style line --strip-extras --extra onnxruntime --extra openvino --extra convert \
		--extra grpc --extra llama --extra validate --extra dev --constraint requirements/pins.txt --output-file requirements/lock.txt pyproject.toml
	@sed -i '/considered to be unsafe/,$$d' requirements/lock.txt

protocol: setup ## Compile the .proto files of the gRPC surface
	$(BIN)/python scripts/protocol.py

clean: ## Remove what the build made, .venv included; installed models stay
	rm -rf .venv .cache build results site src/*.egg-info
