# make demo     the main job on real input: a container without root on a layered Debian, and what it changed
# make test     the tests, one process for each processor (ARGS="tests/core -k rename" chooses some, one after the other)
# make test-all     the same without turns: `make test` takes a third of the long series of like cases, and each test as
#               half of the users and on half of the transports that it is for, others in the next commit
# make test-quick   those that need neither mounts nor namespaces, in less than three minutes
# make test-cluster  jobs in containers on a Slurm cluster of three nodes on this machine. As root
# make test-guests  what needs another kernel, in virtual machines: thin pools, NFS, cgroup v2. As root
# make check    style, types, architecture
# make bench    the benchmarks beside other union filesystems: a table, bench.json, plots (ARGS="--quick --only find")
# make clean    remove what the others made in this checkout
#
# Each first makes the machine ready (.ci/setup): it installs what is missing, as root or through sudo, makes a virtual
# environment, and does nothing when both are there. VENV and PYTHON choose other places than .ci/setup would.

.PHONY: demo test test-all test-quick test-cluster test-guests check bench clean setup
.DEFAULT_GOAL := test

VENV ?=
PYTHON ?= /usr/bin/python3
ARGS ?=

# The recipes ask .ci/setup for the environment: it may be elsewhere than in the checkout.
IN_VENV = set -e; venv=$$(PYTHON='$(PYTHON)' .ci/setup $(SETUP) '$(VENV)'); export PATH="$$venv/bin:$$PATH";

setup:
	@$(IN_VENV) echo "ready: $$venv/bin/unionfs"

demo:
	@$(IN_VENV) python -m tests.demo $(ARGS)

# A file's tests share what is expensive, so each file stays on one worker; the long ones come first (tests/conftest.py).
SPREAD = --numprocesses=auto --dist=loadfile --no-loadscope-reorder --durations=25

test: SETUP = --tests
test:
	@$(IN_VENV) python -m pytest $(or $(ARGS),--in-turns $(SPREAD))

test-all: SETUP = --tests
test-all:
	@$(IN_VENV) UNIONFS_TESTS_SHARE=all UNIONFS_TESTS_EXECUTE=1 python -m pytest $(SPREAD) $(ARGS)

test-quick:
	@$(IN_VENV) python -m pytest --without-mounts $(SPREAD) $(ARGS)

test-cluster: SETUP = --cluster
test-cluster:
	@$(IN_VENV) python -m pytest --durations=10 tests/cluster/jobs.py $(ARGS)

test-guests: SETUP = --guests
test-guests:
	@$(IN_VENV) tests/guests/boot "$$venv" tests/guests/cluster.job; tests/guests/boot "$$venv" tests/guests/drivers.job $(ARGS)

check:
	@$(IN_VENV) \
	echo "ruff"; ruff check --quiet .; ruff format --check .; \
	echo "mypy --strict"; mypy; \
	echo "architecture"; python -m pytest -q tests/test_architecture.py

bench: SETUP = --bench
bench:
	@$(IN_VENV) python -m benchmarks.suite --json build/bench.json --plots build/bench $(ARGS)

clean:
	rm -rf .venv build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
