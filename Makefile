# Two commands matter: `make demo` shows the engine at work, `make test` checks everything. `make docs`
# builds the site.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CLIENTS := .venv-clients

.PHONY: demo test test-clients test-other-clients test-ray lint docs linkcheck clean

demo: $(VENV)/.installed
	$(BIN)/minimal-vllm generate --stats "It was a dark and stormy night, and"

test: $(VENV)/.installed-dev lint
	$(BIN)/pytest -n auto --dist worksteal
	$(MAKE) --no-print-directory test-other-clients
	$(MAKE) --no-print-directory test-ray

# The clients of others, each with the servers that it talks to. docs/server.md lists them.
test-clients: $(VENV)/.installed-dev
	$(BIN)/pytest -m client
	$(MAKE) --no-print-directory test-other-clients

# The clients whose requirements conflict with constraints.txt. Without pip's index they are skipped;
# any other failure to install them is an error.
test-other-clients: $(VENV)/.installed-dev
	@if $(MAKE) --no-print-directory $(CLIENTS)/.installed; then \
		$(CLIENTS)/bin/pytest -c tests/clients/pytest.ini --rootdir . tests/clients; \
	elif $(BIN)/pip --retries 0 install --quiet --dry-run --no-deps --ignore-installed pip; then \
		exit 1; \
	else \
		echo "NO NETWORK: the tests of instructor and LlamaIndex (tests/clients) were not run"; \
	fi

# Replicas in a Ray cluster on this machine. Ray is large; without pip's index they are skipped.
test-ray: $(VENV)/.installed-dev
	@if $(MAKE) --no-print-directory $(VENV)/.installed-ray; then \
		$(BIN)/pytest -c tests/cluster/pytest.ini --rootdir . tests/cluster; \
	elif $(BIN)/pip --retries 0 install --quiet --dry-run --no-deps --ignore-installed pip; then \
		exit 1; \
	else \
		echo "NO NETWORK: the tests of replicas on Ray (tests/cluster) were not run"; \
	fi

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Strict: a link that leads nowhere, or a name that isn't documented, is an error. The playground's
# Python comes from npm and pip's index; without them the site is built without it.
docs: $(VENV)/.installed-docs
	$(BIN)/sphinx-build -W --keep-going -n -b html docs build/docs
	@echo "Look at it with: python3 -m http.server --directory build/docs"

# The links to other sites, which need the network.
linkcheck: $(VENV)/.installed-docs
	$(BIN)/sphinx-build --keep-going -b linkcheck docs build/linkcheck

clean:
	rm -rf build $(VENV) $(CLIENTS) .mypy_cache .ruff_cache .pytest_cache .hypothesis

# The pinned environment (constraints.txt) is what the tests have passed in. All that the README's
# commands need is there from the beginning; only what the tests need is added by them.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("minimal-vllm needs Python 3.11 or newer, but $(PYTHON) is %d.%d: use `make PYTHON=python3.12 …`" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	@echo "Installing into $(VENV), this once. PyTorch is large: the README has how to get it without CUDA."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[server,structured,learn]'
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

$(VENV)/.installed-ray: $(VENV)/.installed-dev
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[ray]'
	touch $@

# Without PyTorch: clients only need HTTP. The servers run in $(VENV).
$(CLIENTS)/.installed: tests/clients/requirements.txt
	$(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/pip install --quiet --retries 1 --requirement $<
	touch $@
