# Each command sets up all it needs in .venv, once.
PYTHON ?= python3
SUPPORTED = import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
ARGS ?=

.PHONY: live video train test bench web

live video train: .venv/runtime  ## make train ARGS="--max_minutes 30"
	.venv/bin/python learn.py --mode $@ $(ARGS)

test: .venv/testing
	.venv/bin/ruff check
	.venv/bin/python -m pytest -n 2 --dist worksteal $(ARGS)  # most of a test is one core's work

bench: .venv/runtime  ## what training and playing cost on this machine
	.venv/bin/python benchmarks/bench.py

.venv/runtime: requirements.txt
	@.venv/bin/python -c "import pip; $(SUPPORTED)" 2>/dev/null || \
		if $(PYTHON) -c "$(SUPPORTED)"; then $(PYTHON) -m venv --clear .venv; else \
		echo "$(PYTHON) is not Python 3.11, 3.12 or 3.13; name one: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; \
		exit 1; fi
	.venv/bin/python -m pip install --quiet -r requirements.txt
	@# OpenCV with windows wants libraries of a desktop; on a machine without them, one without windows will do.
	.venv/bin/python -c "import cv2" 2>/dev/null || { \
		.venv/bin/python -m pip uninstall --quiet --yes opencv-python opencv-python-headless \
		&& .venv/bin/python -m pip install --quiet opencv-python-headless; }
	touch $@

.venv/testing: .venv/runtime requirements-test.txt
	.venv/bin/python -m pip install --quiet -r requirements-test.txt
	touch $@

web: web/dist/index.html  ## the page that plays an export in a browser; takes Node.js

web/dist/index.html: web/node_modules/.package-lock.json web/build.js $(wildcard web/src/*)
	cd web && npm run --silent check && npm run --silent build

web/node_modules/.package-lock.json: web/package-lock.json  # which npm writes last
	cd web && npm ci --silent --no-audit --no-fund
	touch $@
