PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-machines beam test-beam page test-page test-export test-addons test-wheel notebooks benchmarks lint clean

# Upscale a photograph with shipped weights, train a small network, measure it.
demo: $(VENV)/installed
	@echo "--- Upscaling a photograph with shipped weights"
	$(BIN)/python -c "from superres.datasets import catalogue, degradations, pictures; \
	  e = next(catalogue.load('photos', 'test')); hr = degradations.mod_crop(e.hr, 4); \
	  import pathlib; pathlib.Path('demo').mkdir(exist_ok=True); \
	  pictures.write_picture(f'demo/{e.name}_small.png', degradations.imresize(hr, 1 / 4))"
	$(BIN)/python upscale.py lapsrn-x4 demo/astronaut_small.png -o demo --overwrite
	@echo "--- Measuring the shipped weights on photographs"
	$(BIN)/python evaluate.py lapsrn-x4 --data photos --figure demo/lapsrn-x4.png
	@echo "--- Training a small network on photographs"
	$(BIN)/python train/lapsrn.py quick --run.folder demo/quick
	@echo "--- Done. Look at demo/astronaut_small_x4.png, demo/lapsrn-x4.png and demo/quick/samples/"

# Files in order of name: by number of tests, the notebooks would come last, and one process wait for the other.
test: lint
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

# Trainings on several machines: processes of this one, which talk over loopback.
test-machines: $(VENV)/installed
	SUPERRES_MACHINES=1 $(BIN)/pytest tests/test_train_machines.py

# Apache Beam, for upscale_beam.py and prepare.py. Without it, `make test` leaves their tests out.
beam: $(VENV)/beam

test-beam: $(VENV)/beam
	$(BIN)/pytest tests/test_upscale_beam.py tests/test_prepare.py

# A page to try the shipped networks on, http://127.0.0.1:7860. Its test, and study.py's, drive a browser: CHROMIUM, or chromium of the PATH.
page: $(VENV)/page
	$(BIN)/python page.py

test-page: $(VENV)/page
	$(BIN)/pytest tests/test_page.py tests/test_study.py

# ONNX, which `make test` leaves out.
test-export: $(VENV)/export
	$(BIN)/pytest tests/test_formats.py

# What replaced tensorflow-addons against the original, in an environment of its own.
test-addons:
	test -d $(VENV)-addons || $(PYTHON) -m venv $(VENV)-addons
	$(VENV)-addons/bin/python -m pip install --quiet --requirement requirements-addons.txt
	$(VENV)-addons/bin/python -m pytest --noconftest tests/test_addons.py

# The wheel, installed in an environment of its own beside packages that have modules of the same names.
test-wheel:
	rm -rf $(VENV)-wheel build dist
	$(PYTHON) -m venv $(VENV)-wheel
	$(VENV)-wheel/bin/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	$(VENV)-wheel/bin/python -m pip install --quiet "$$(echo dist/superres-*.whl)[train,serve,notebooks]" \
	  datasets evaluate pytest
	cd tests && ../$(VENV)-wheel/bin/pytest --noconftest test_wheel.py

# Every benchmark that needs no data and no other package than PyTorch, against its rivals, and all processors' results as tables: some two hours of a
# machine that does nothing else. ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 hold it to older instructions.
benchmarks: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --requirement benchmarks/requirements.txt
	cd benchmarks && for run in upscale.py "upscale.py --paper srgan" train_lapsrn.py train_srgan.py srmap.py \
	  train_pixel_recursive.py xla.py machines.py sampler.py pipeline.py "memory.py lapsrn-x2" report.py; do \
	  echo "--- $$run"; ../$(BIN)/python $$run || exit 1; done

# Public functions say what they return (pyproject.toml); those that do say what they take (the second run).
lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff check . --select ANN001 --config "lint.flake8-annotations.ignore-fully-untyped = true"

$(VENV)/installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	@touch $@

$(VENV)/beam: requirements-beam.txt $(VENV)/installed
	$(BIN)/python -m pip install --quiet --requirement requirements-beam.txt
	@touch $@

$(VENV)/export: requirements-export.txt $(VENV)/installed
	$(BIN)/python -m pip install --quiet --requirement requirements-export.txt
	@touch $@

$(VENV)/page: requirements-page.txt $(VENV)/installed
	$(BIN)/python -m pip install --quiet --requirement requirements-page.txt
	@touch $@

clean:
	rm -rf $(VENV) $(VENV)-addons $(VENV)-wheel build dist demo

# Run the notebooks and keep their results; README.md has the settings of those that are kept.
notebooks: $(VENV)/installed
	cd notebooks && ../$(BIN)/jupytext --to ipynb --execute *.py
