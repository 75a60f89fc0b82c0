# Everything a newcomer needs is `make demo` and `make test`; the rest is for those who change things.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MINERVA := $(BIN)/minerva
FUZZ_SECONDS ?= 60
SOAK_ROUNDS ?= 10

# What only the tests need of Debian; what the demo needs is checked by tools/check-system.
# The second line is strongSwan, for tests/strangers; the third for consoles.
TEST_PACKAGES := iperf3 iproute2 openssl postgresql tshark \
	charon-systemd strongswan-swanctl libcharon-extra-plugins strongswan-pki \
	chromium ipmitool openipmi openssh-client openssh-server ser2net socat

# npm fetches what the console's web page needs; it may be here without being Debian's.
NPM_PACKAGE := $(if $(shell command -v npm),,npm)

# Whom else we are measured against; a bench leaves out what is not there.
BENCH_PACKAGES := $(TEST_PACKAGES) conserver-client conserver-server wireguard-go wireguard-tools

# User Mode Linux with IPv6 ESP and xfrm interfaces; what makes it, and where it is kept.
UML_PACKAGES := bc bison busybox-static flex gcc make xz-utils \
	charon-systemd strongswan-swanctl libcharon-extra-plugins
UML ?= $(HOME)/.cache/minerva/uml

# Serial lines of real drivers, in a guest of QEMU, and libvirt; without what it recommends it takes 15 MB.
SERIAL_PACKAGES := busybox-static libvirt-clients libvirt-daemon minicom picocom qemu-system-x86 socat udev xz-utils
QEMU ?= $(HOME)/.cache/minerva/qemu

.PHONY: help venv demo test test-kernel test-serial lint bench fuzz soak matrix clean

help:
	@echo "make demo    four new devices are let into a network, which loses a cable, and more (needs root)"
	@echo "make test    all tests (the lab's need root)"
	@echo "make test-kernel  the kernel's own data plane, under User Mode Linux (built once: UML=DIR)"
	@echo "make test-serial  consoles on real drivers, under QEMU, and on libvirt (a kernel is fetched once: QEMU=DIR)"
	@echo "make venv    only the virtual environment: then .venv/bin/minerva runs"
	@echo "make lint    ruff and mypy"
	@echo "make bench   measurements, as JSON lines"
	@echo "make fuzz    every fuzz target for FUZZ_SECONDS (60)"
	@echo "make soak    what takes long: every topology SOAK_ROUNDS (10) times, ten minutes of rekeying"
	@echo "make matrix  docs/conformance.md from the tests"
	@echo "make clean   remove what was made here"

$(VENV)/.installed: pyproject.toml tools/check-system
	@sh tools/check-system $(PYTHON)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing Minerva and its libraries into $(VENV)" >&2
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[registrar,console]'
	@sh tools/vendor-xterm || true
	@touch $@

$(VENV)/.test: $(VENV)/.installed
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test,lint]'
	@touch $@

$(VENV)/.fuzz: $(VENV)/.test
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[fuzz]'
	@touch $@

venv: $(VENV)/.installed

demo: venv
	@test "$$(id -u)" = 0 || { echo "make demo makes network namespaces: run it as root (sudo make demo)" >&2; exit 2; }
	@$(MINERVA) lab run ring:5 --zero-touch --cut n1-n2 --console

test: $(VENV)/.test
	@sh tools/apt-packages $(TEST_PACKAGES)
	@sh tools/apt-packages $(NPM_PACKAGE) && sh tools/vendor-xterm || true
	@sh tools/test $(BIN)/python

test-kernel: $(VENV)/.test
	@sh tools/apt-packages $(UML_PACKAGES)
	@nice sh tools/uml-build $(UML)
	@MINERVA_TEST_ALONE=1 sh tools/uml -k $(UML) -t 1800 -- \
		$(BIN)/python -m pytest -p no:cacheprovider -m kernel tests/kernel

test-serial: $(VENV)/.test
	@sh tools/apt-packages --no-install-recommends $(SERIAL_PACKAGES)
	@nice sh tools/qemu-build $(QEMU)
	@nice sh tools/qemu -k $(QEMU) -t 1200 -- env PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 \
		$(BIN)/python -m pytest -p pytest_timeout -p no:cacheprovider -m serial tests/serial
	@QEMU=$(QEMU) $(BIN)/python -m pytest -p no:cacheprovider tests/console/test_guest.py tests/console/test_libvirt.py

lint: $(VENV)/.test
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: $(VENV)/.test
	@sh tools/apt-packages $(BENCH_PACKAGES) || true
	@for file in bench/bench_*.py; do echo "$$file" >&2; $(BIN)/python $$file || exit 1; done

bench-%: $(VENV)/.test
	@sh tools/apt-packages $(BENCH_PACKAGES) || true
	@$(BIN)/python bench/bench_$*.py

fuzz: $(VENV)/.fuzz
	@for file in fuzz/fuzz_*.py; do \
		echo "$$file for $(FUZZ_SECONDS) seconds" >&2; \
		$(BIN)/python $$file -max_total_time=$(FUZZ_SECONDS) -verbosity=0 -print_final_stats=1 || exit 1; \
	done

soak: $(VENV)/.test
	@sh tools/apt-packages $(TEST_PACKAGES)
	@MINERVA_SOAK_ROUNDS=$(SOAK_ROUNDS) $(BIN)/python -m pytest -m soak --timeout=3600

matrix: $(VENV)/.test
	@$(BIN)/python tools/conformance.py --write

clean:
	@rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
