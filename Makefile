# SPDX-License-Identifier: Apache-2.0
# OmniDaemon. `make help` lists what can be made.
#
#   CC=clang           another compiler              SANITIZE=address,undefined   a build with sanitizers (in its own folder)
#   B=DIR              build folder (build)          WERROR=1                     warnings are errors (CI)
#   V=1                show the commands
#   PREFIX=/usr/local  where install puts things     DESTDIR=                     in front of it, for packages

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := all
MAKEFLAGS   += --no-builtin-rules

VERSION := 0.1.0
SOMAJOR := 0
PREFIX  ?= /usr/local
SANITIZE ?=
WERROR  ?=
OPT     ?= -O2
ifeq ($(origin CC),default)
CC := gcc
endif
comma := ,
B ?= build$(if $(SANITIZE),-$(subst $(comma),-,$(SANITIZE)))$(if $(filter-out gcc cc,$(CC)),-$(notdir $(CC)))

PKGS := libevent_core libevent_extra libevent_pthreads libsystemd

WARN := -Wall -Wextra -Wshadow -Wformat=2 -Wstrict-prototypes -Wmissing-prototypes -Wvla -Wpointer-arith -Wwrite-strings \
        -Wundef -Wcast-align -Wimplicit-fallthrough -Wno-unused-parameter -Wno-missing-field-initializers $(if $(WERROR),-Werror)
CPPFLAGS_ALL := -D_GNU_SOURCE -DOM_VERSION='"$(VERSION)"' -I. $(CPPFLAGS)
CFLAGS_ALL := -std=gnu11 -g $(OPT) -fPIC -fvisibility=hidden -fno-semantic-interposition -ffunction-sections -fdata-sections \
        -fstack-protector-strong $(WARN) $(if $(SANITIZE),-fsanitize=$(SANITIZE) -fno-omit-frame-pointer -fno-sanitize-recover=all,-D_FORTIFY_SOURCE=2) $(CFLAGS)
LDFLAGS_ALL := -Wl,--gc-sections -Wl,--as-needed -Wl,-z,relro,-z,now $(if $(SANITIZE),-fsanitize=$(SANITIZE)) $(LDFLAGS)

# What is evaluated only when something is built, so that `make deps` works on a bare machine.
DAEMON_CFLAGS = $(shell pkg-config --cflags $(PKGS))
DAEMON_LIBS   = $(shell pkg-config --libs $(PKGS)) -llmdb -lpthread -lm -ldl
CTL_LIBS      = -lpthread -lm
CHECK_LIBS    = $(shell pkg-config --libs check)
JSON_LIBS     = $(shell pkg-config --libs jansson) # of tests only: what they hold our own JSON against

PROTO_SRC   := $(wildcard proto/*.c)
BACKEND_SRC := $(wildcard backends/*.c backends/local/*.c backends/json/*.c)
DAEMON_SRC  := $(wildcard daemon/*.c)
CLIENT_SRC  := $(wildcard client/c/*.c)
CTL_SRC     := $(wildcard client/ctl/*.c)
TESTLIB_SRC := $(wildcard tests/lib/*.c)

Q := $(if $(V),,@)
say = @$(if $(V),true,printf '  %-5s %s\n' '$(1)' '$@')

obj = $(patsubst %.c,$(B)/obj/%.o,$(1))
PROTO_OBJ   := $(call obj,$(PROTO_SRC))
BACKEND_OBJ := $(call obj,$(BACKEND_SRC))
DAEMON_OBJ  := $(call obj,$(DAEMON_SRC))
CLIENT_OBJ  := $(call obj,$(CLIENT_SRC))
CTL_OBJ     := $(call obj,$(CTL_SRC))
TESTLIB_OBJ := $(call obj,$(TESTLIB_SRC))
DAEMON_NOMAIN := $(filter-out $(B)/obj/daemon/main.o,$(DAEMON_OBJ))
CTL_NOMAIN  := $(filter-out $(B)/obj/client/ctl/main.o,$(CTL_OBJ))

# One program a file: Check suites in tests/unit and tests/integration, plain programs in tests/lib/bin.
UNIT  := $(patsubst tests/%.c,$(B)/tests/%,$(wildcard tests/unit/test_*.c))
INTEG := $(patsubst tests/%.c,$(B)/tests/%,$(wildcard tests/integration/test_*.c))
TOOLS := $(patsubst tests/lib/bin/%.c,$(B)/tests/bin/%,$(wildcard tests/lib/bin/*.c))

.PHONY: all demo test test-unit test-integration conformance soak bench bench-instructions fuzz fuzz-build fuzz-coverage replay-build lint format deps deps-test install \
        uninstall clean help programs tests-build

all: deps ## build everything into build/ (installs what the build misses)
	@$(MAKE) --no-print-directory programs

programs: $(B)/bin/omnidaemond $(B)/bin/omnictl $(B)/bin/omnidaemon $(B)/lib/libomniclient.so $(B)/lib/libomniclient.a

DEPS_CC := $(if $(findstring clang,$(CC)),clang)
deps: ; @packaging/install-deps.sh build $(DEPS_CC)
deps-test: ; @packaging/install-deps.sh build test $(DEPS_CC)

$(B)/obj/%.o: %.c
	@mkdir -p $(@D)
	$(call say,CC)
	$(Q)$(CC) $(CPPFLAGS_ALL) $(DAEMON_CFLAGS) $(CFLAGS_ALL) -MMD -MP -c $< -o $@

$(B)/bin/omnidaemond: $(DAEMON_OBJ) $(BACKEND_OBJ) $(PROTO_OBJ)
	@mkdir -p $(@D)
	$(call say,LINK)
	$(Q)$(CC) -pie -rdynamic $(LDFLAGS_ALL) $^ $(DAEMON_LIBS) -o $@

$(B)/bin/omnictl: $(CTL_OBJ) $(B)/lib/libomniclient.a
	@mkdir -p $(@D)
	$(call say,LINK)
	$(Q)$(CC) -pie $(LDFLAGS_ALL) $^ $(CTL_LIBS) -o $@

$(B)/bin/omnidaemon: $(B)/bin/omnictl
	@ln -sf omnictl $@

$(B)/lib/libomniclient.so.$(SOMAJOR): $(CLIENT_OBJ) $(PROTO_OBJ) client/c/omniclient.map
	@mkdir -p $(@D)
	$(call say,LINK)
	$(Q)$(CC) -shared -Wl,-soname,libomniclient.so.$(SOMAJOR) -Wl,--version-script=client/c/omniclient.map $(if $(SANITIZE),,-Wl,-z,defs) \
	    $(LDFLAGS_ALL) $(CLIENT_OBJ) $(PROTO_OBJ) -lm -lpthread -o $@

$(B)/lib/libomniclient.so: $(B)/lib/libomniclient.so.$(SOMAJOR)
	@ln -sf $(<F) $@

$(B)/lib/libomniclient.a: $(CLIENT_OBJ) $(PROTO_OBJ)
	@mkdir -p $(@D)
	$(call say,AR)
	$(Q)rm -f $@ && ar rcs $@ $^

# -- fuzzing: one program a target; the same source is replayed over its corpus in `make test` ------------------------------

FUZZ_TARGETS := $(patsubst tests/fuzz/fuzz_%.c,%,$(wildcard tests/fuzz/fuzz_*.c))
FUZZ_SECONDS ?= 60
REPLAY := $(patsubst %,$(B)/tests/fuzz/replay_%,$(FUZZ_TARGETS))

# Every allocation of ours goes through tests/fuzz/memory.c, which can fail it.
FUZZ_LDFLAGS := $(addprefix -Wl$(comma)--wrap=,malloc calloc realloc strdup)

$(REPLAY): $(B)/tests/fuzz/replay_%: $(B)/obj/tests/fuzz/fuzz_%.o $(B)/obj/tests/fuzz/memory.o $(B)/obj/tests/fuzz/replay.o $(B)/tests/lib.a
	@mkdir -p $(@D)
	$(call say,LINK)
	$(Q)$(CC) -pie $(LDFLAGS_ALL) $(FUZZ_LDFLAGS) $^ $(DAEMON_LIBS) $(JSON_LIBS) -o $@

FUZZ := $(patsubst %,$(B)/tests/fuzz/fuzz_%,$(FUZZ_TARGETS))
$(FUZZ): $(B)/tests/fuzz/fuzz_%: $(B)/obj/tests/fuzz/fuzz_%.o $(B)/obj/tests/fuzz/memory.o $(B)/tests/lib.a
	@mkdir -p $(@D)
	$(call say,LINK)
	$(Q)$(CC) $(LDFLAGS_ALL) $(FUZZ_LDFLAGS) -fsanitize=fuzzer $^ $(DAEMON_LIBS) $(JSON_LIBS) -o $@

fuzz: deps-test ## fuzz every parser for FUZZ_SECONDS each (60); FUZZ_ONLY=TARGET for one
	@packaging/install-deps.sh clang
	@$(MAKE) --no-print-directory CC=clang SANITIZE=fuzzer-no-link,address,undefined B=build-fuzz fuzz-build
	@tests/fuzz/run build-fuzz $(FUZZ_SECONDS) $(or $(FUZZ_ONLY),$(FUZZ_TARGETS))

fuzz-build: $(FUZZ)

# What the corpus reaches, in lines; fails where a parser is below FUZZ_LINES percent.
FUZZ_LINES ?= 95
fuzz-coverage: deps-test ## lines of the parsers that the corpus reaches
	@packaging/install-deps.sh clang
	@$(MAKE) --no-print-directory CC=clang B=build-coverage OPT=-O1 CFLAGS='-fprofile-instr-generate -fcoverage-mapping' \
	    LDFLAGS=-fprofile-instr-generate replay-build
	@tests/fuzz/coverage build-coverage $(FUZZ_LINES) $(FUZZ_TARGETS)

replay-build: $(REPLAY)

# -- tests -------------------------------------------------------------------------------------------------------------

TEST_OBJ = $(TESTLIB_OBJ) $(DAEMON_NOMAIN) $(BACKEND_OBJ) $(CTL_NOMAIN) $(CLIENT_OBJ) $(PROTO_OBJ)

$(B)/tests/lib.a: $(TEST_OBJ)
	@mkdir -p $(@D)
	$(call say,AR)
	$(Q)rm -f $@ && ar rcs $@ $^

$(UNIT) $(INTEG): $(B)/tests/%: $(B)/obj/tests/%.o $(B)/tests/lib.a
	@mkdir -p $(@D)
	$(call say,LINK)
	$(Q)$(CC) -pie $(LDFLAGS_ALL) $< $(B)/tests/lib.a $(CHECK_LIBS) $(JSON_LIBS) $(DAEMON_LIBS) -o $@

$(TOOLS): $(B)/tests/bin/%: $(B)/obj/tests/lib/bin/%.o $(B)/tests/lib.a
	@mkdir -p $(@D)
	$(call say,LINK)
	$(Q)$(CC) -pie $(LDFLAGS_ALL) $< $(B)/tests/lib.a $(DAEMON_LIBS) -o $@

# Conformance is one program on the client library alone: it sees the daemon as anybody does.
CONFORMANCE := $(B)/tests/conformance/conformance
CONFORMANCE_OBJ := $(call obj,$(wildcard tests/conformance/*.c))

$(CONFORMANCE): $(CONFORMANCE_OBJ) $(B)/obj/tests/lib/daemon_proc.o $(B)/lib/libomniclient.a
	@mkdir -p $(@D)
	$(call say,LINK)
	$(Q)$(CC) -pie $(LDFLAGS_ALL) $^ $(JSON_LIBS) $(CTL_LIBS) -o $@

conformance: deps-test ## what every backend must pass, as the table case × backend (CONFORMANCE_ARGS="--bus URL --only B07 --json FILE"; SCALE=short)
	@$(MAKE) --no-print-directory programs $(CONFORMANCE)
	@OMNI_BIN=$(B)/bin $(CONFORMANCE) --scale $(or $(SCALE),full) $(CONFORMANCE_ARGS)

# What the fault tests preload into the daemon. A sanitizer has an allocator of its own, which cannot be made to fail from here.
INJECT := $(B)/tests/fault/inject.so
$(INJECT): tests/fault/inject.c
	@mkdir -p $(@D)
	$(call say,LINK)
	$(Q)$(CC) $(CPPFLAGS_ALL) $(if $(SANITIZE),-DOM_INJECT_NO_MEMORY) -std=gnu11 -g $(OPT) -fPIC -fvisibility=hidden $(WARN) -shared $< -ldl -o $@

tests-build: programs $(UNIT) $(INTEG) $(TOOLS) $(REPLAY) $(CONFORMANCE) $(INJECT)

test: deps-test ## build and run every test
	@$(MAKE) --no-print-directory tests-build
	@tests/run $(B)

test-unit: deps-test ## only the unit tests
	@$(MAKE) --no-print-directory $(UNIT)
	@tests/run $(B) unit

soak: deps-test ## the long forms of the fault tests: hours (FAULT_ONLY=PATTERN, FAULT_SEED=N, FAULT_KILLS=N … for less)
	@$(MAKE) --no-print-directory tests-build
	@FAULT_LONG=1 TEST_JOBS=1 TEST_TIMEOUT=21600 TEST_ONLY=$(FAULT_ONLY) TEST_NOTES=1 tests/run $(B) fault

test-integration: deps-test ## only the whole-system tests
	@$(MAKE) --no-print-directory tests-build
	@tests/run $(B) integration

# NATS beside us in the benchmark, where its client library is installed.
BENCH_OBJ := $(call obj,$(wildcard tests/bench/*.c))
BENCH_NATS = $(shell pkg-config --exists libnats && echo -DHAVE_NATS)
$(BENCH_OBJ): CPPFLAGS_ALL += $(BENCH_NATS)

$(B)/tests/bench/bench: $(BENCH_OBJ) $(B)/lib/libomniclient.a
	@mkdir -p $(@D)
	$(call say,LINK)
	$(Q)$(CC) -pie $(LDFLAGS_ALL) $^ -llmdb $(if $(BENCH_NATS),-lnats) -lpthread -lm -o $@

bench: all ## measure, beside LMDB, beanstalkd and NATS alone (BENCH_ARGS="--quick --only WORD --runs N --json FILE")
	@packaging/install-deps.sh bench
	@$(MAKE) --no-print-directory $(B)/tests/bench/bench
	@NATS_SERVER=$$(tests/servers/nats.sh build || true) OMNI_BIN=$(B)/bin $(B)/tests/bench/bench $(BENCH_ARGS)

bench-instructions: all ## instructions of the daemon a task, by callgrind: a figure that repeats
	@packaging/install-deps.sh bench
	@$(MAKE) --no-print-directory $(B)/tests/bench/bench
	@tests/bench/instructions.sh $(B)

demo: all ## start a daemon, serve an agent, publish tasks, show results; stops by itself
	@packaging/demo.sh $(B)

lint: ## layout, spelling, scripts, dependency rule, static checks
	@packaging/install-deps.sh build test lint
	@B=$(B) tests/lint

format: ## lay out the sources by clang-format
	@packaging/install-deps.sh lint
	clang-format -i $$(git ls-files -co --exclude-standard -- '*.c' '*.h')

# What install puts and uninstall removes is one list, in the script.
INSTALL = B=$(B) PREFIX=$(PREFIX) DESTDIR=$(DESTDIR) VERSION=$(VERSION) SOMAJOR=$(SOMAJOR) $(if $(LIBDIR),LIBDIR=$(LIBDIR)) packaging/install.sh

install: programs ## put everything under PREFIX (/usr/local), DESTDIR in front
	@$(INSTALL) install

uninstall: ## remove exactly what install put there
	@$(INSTALL) uninstall

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

clean: ## remove what was built
	rm -rf build build-*

-include $(shell find $(B)/obj -name '*.d' 2>/dev/null)
