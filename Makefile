# SPDX-License-Identifier: Apache-2.0
# OmniDaemon. `make help` lists what can be made.
#
#   CC=clang           another compiler              SANITIZE=address,undefined   a build with sanitizers (in its own folder)
#   B=DIR              build folder (build)          WERROR=1                     warnings are errors (CI)
#   WITH_REDIS=no      leaves a module out (WITH_ and the name of its folder in backends/)
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

# A backend is a module, but for the two that need no server: backends/NAME/ makes bus_NAME.so and store_NAME.so. Files whose names begin with
# `bus` go into the one, with `store` into the other, the rest into both. What each needs of other packages is said here and in
# packaging/install-deps.sh, and nowhere else.
PKGS_redis := hiredis libevent_openssl openssl
PKGS_kafka := rdkafka
PKGS_rabbitmq := librabbitmq libevent_openssl openssl
PKGS_nats := libnats
PKGS_postgresql := libpq
PKGS_mongodb := libmongoc-1.0
PKGS_s3 := libcurl expat libcrypto
# What modules share and the daemon does without: linked into each that names it.
SHARED_redis := tls
SHARED_rabbitmq := tls
SHARED_SRC := $(sort $(foreach m,redis rabbitmq,$(patsubst %,backends/%.c,$(SHARED_$(m)))))
ALL_MODULES := $(filter-out local json,$(patsubst backends/%/,%,$(wildcard backends/*/)))
MODULES := $(foreach m,$(ALL_MODULES),$(if $(filter no,$(WITH_$(shell echo $(m) | tr a-z A-Z))),,$(m)))
MODULE_LIBS = $(if $(MODULES),$(shell pkg-config --libs $(foreach m,$(MODULES),$(PKGS_$(m)))))

PROTO_SRC   := $(wildcard proto/*.c)
BACKEND_SRC := $(filter-out $(SHARED_SRC),$(wildcard backends/*.c)) $(wildcard backends/local/*.c backends/json/*.c)
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
MODULE_OBJ  := $(sort $(foreach m,$(MODULES),$(call obj,$(wildcard backends/$(m)/*.c) $(SHARED_$(m):%=backends/%.c))))
MODULE_SO   := $(foreach m,$(MODULES),$(patsubst backends/$(m)/%.c,$(B)/lib/omnidaemon/%_$(m).so,$(wildcard backends/$(m)/bus.c backends/$(m)/store.c)))
# What TSan does not know of threads, in daemons that are built with it.
TSAN_OBJ := $(if $(findstring thread,$(SANITIZE)),$(call obj,tests/lib/c11_threads.c))
DAEMON_NOMAIN := $(filter-out $(B)/obj/daemon/main.o,$(DAEMON_OBJ))
CTL_NOMAIN  := $(filter-out $(B)/obj/client/ctl/main.o,$(CTL_OBJ))

# One program a file: Check suites in tests/unit and tests/integration, plain programs in tests/lib/bin.
UNIT  := $(patsubst tests/%.c,$(B)/tests/%,$(wildcard tests/unit/test_*.c))
INTEG := $(patsubst tests/%.c,$(B)/tests/%,$(wildcard tests/integration/test_*.c))
TOOLS := $(patsubst tests/lib/bin/%.c,$(B)/tests/bin/%,$(wildcard tests/lib/bin/*.c))

.PHONY: all demo test test-unit test-threads test-integration test-valgrind conformance soak bench bench-instructions fuzz fuzz-build fuzz-coverage replay-build lint format deps deps-test install \
        uninstall clean help programs tests-build

all: deps ## build everything into build/ (installs what the build misses)
	@$(MAKE) --no-print-directory programs

programs: $(MODULE_SO) $(B)/bin/omnidaemond $(B)/bin/omnictl $(B)/bin/omnidaemon $(B)/lib/libomniclient.so $(B)/lib/libomniclient.a

DEPS_CC := $(if $(findstring clang,$(CC)),clang)
deps: ; @packaging/install-deps.sh build $(MODULES) $(DEPS_CC)
deps-test: ; @packaging/install-deps.sh build test $(MODULES) $(DEPS_CC)

$(B)/obj/%.o: %.c
	@mkdir -p $(@D)
	$(call say,CC)
	$(Q)$(CC) $(CPPFLAGS_ALL) $(DAEMON_CFLAGS) $(MODULE_CFLAGS) $(CFLAGS_ALL) -MMD -MP -c $< -o $@

# What modules take of the program that loads them: all of proto/, and what backends share. libomniclient's map hides it again.
$(PROTO_OBJ) $(call obj,$(filter-out $(SHARED_SRC),$(wildcard backends/*.c))) $(TSAN_OBJ): CFLAGS_ALL += -fvisibility=default

define MODULE_RULES
$$(call obj,$$(wildcard backends/$(1)/*.c)) $$(B)/obj/tests/unit/test_$(1).o: MODULE_CFLAGS = $$(shell pkg-config --cflags $$(PKGS_$(1)))
$$(B)/lib/omnidaemon/bus_$(1).so: $$(call obj,$$(filter-out backends/$(1)/store%,$$(wildcard backends/$(1)/*.c)) $$(SHARED_$(1):%=backends/%.c))
$$(B)/lib/omnidaemon/store_$(1).so: $$(call obj,$$(filter-out backends/$(1)/bus%,$$(wildcard backends/$(1)/*.c)) $$(SHARED_$(1):%=backends/%.c))
$$(B)/lib/omnidaemon/bus_$(1).so $$(B)/lib/omnidaemon/store_$(1).so:
	@mkdir -p $$(@D)
	$$(call say,LINK)
	$$(Q)$$(CC) -shared $$(LDFLAGS_ALL) $$^ $$(shell pkg-config --libs $$(PKGS_$(1))) -o $$@
endef
$(foreach m,$(MODULES),$(eval $(call MODULE_RULES,$(m))))

$(B)/bin/omnidaemond: $(DAEMON_OBJ) $(BACKEND_OBJ) $(PROTO_OBJ) $(TSAN_OBJ)
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
FUZZ_LDFLAGS := $(addprefix -Wl$(comma)--wrap=,malloc calloc realloc strdup strndup)

$(REPLAY): $(B)/tests/fuzz/replay_%: $(B)/obj/tests/fuzz/fuzz_%.o $(B)/obj/tests/fuzz/memory.o $(B)/obj/tests/fuzz/replay.o $(B)/tests/lib.a
	@mkdir -p $(@D)
	$(call say,LINK)
	$(Q)$(CC) -pie $(LDFLAGS_ALL) $(FUZZ_LDFLAGS) $^ $(MODULE_LIBS) $(DAEMON_LIBS) $(JSON_LIBS) -o $@

FUZZ := $(patsubst %,$(B)/tests/fuzz/fuzz_%,$(FUZZ_TARGETS))
$(FUZZ): $(B)/tests/fuzz/fuzz_%: $(B)/obj/tests/fuzz/fuzz_%.o $(B)/obj/tests/fuzz/memory.o $(B)/tests/lib.a
	@mkdir -p $(@D)
	$(call say,LINK)
	$(Q)$(CC) $(LDFLAGS_ALL) $(FUZZ_LDFLAGS) -fsanitize=fuzzer $^ $(MODULE_LIBS) $(DAEMON_LIBS) $(JSON_LIBS) -o $@

# They have a folder of their own: clang's libFuzzer, with sanitizers, whatever the rest is built with.
FUZZ_B := build-fuzz
FUZZ_MAKE = $(MAKE) --no-print-directory CC=clang SANITIZE=fuzzer-no-link,address,undefined B=$(FUZZ_B) fuzz-build

fuzz: deps-test ## fuzz every parser for FUZZ_SECONDS each (60); FUZZ_ONLY=TARGET for one
	@packaging/install-deps.sh clang
	@$(FUZZ_MAKE)
	@tests/fuzz/run $(FUZZ_B) $(FUZZ_SECONDS) $(or $(FUZZ_ONLY),$(FUZZ_TARGETS))

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

TEST_OBJ = $(TESTLIB_OBJ) $(DAEMON_NOMAIN) $(BACKEND_OBJ) $(MODULE_OBJ) $(CTL_NOMAIN) $(CLIENT_OBJ) $(PROTO_OBJ)

$(B)/tests/lib.a: $(TEST_OBJ)
	@mkdir -p $(@D)
	$(call say,AR)
	$(Q)rm -f $@ && ar rcs $@ $^

$(UNIT) $(INTEG): $(B)/tests/%: $(B)/obj/tests/%.o $(B)/tests/lib.a
	@mkdir -p $(@D)
	$(call say,LINK)
	$(Q)$(CC) -pie $(LDFLAGS_ALL) $< $(B)/tests/lib.a $(CHECK_LIBS) $(JSON_LIBS) $(MODULE_LIBS) $(DAEMON_LIBS) -o $@

$(TOOLS): $(B)/tests/bin/%: $(B)/obj/tests/lib/bin/%.o $(B)/tests/lib.a
	@mkdir -p $(@D)
	$(call say,LINK)
	$(Q)$(CC) -pie $(LDFLAGS_ALL) $< $(B)/tests/lib.a $(MODULE_LIBS) $(DAEMON_LIBS) -o $@

# Conformance is one program on the client library alone: it sees the daemon as anybody does.
CONFORMANCE := $(B)/tests/conformance/conformance
CONFORMANCE_OBJ := $(call obj,$(wildcard tests/conformance/*.c))

$(CONFORMANCE): $(CONFORMANCE_OBJ) $(B)/obj/tests/lib/daemon_proc.o $(B)/obj/tests/lib/server.o $(B)/lib/libomniclient.a
	@mkdir -p $(@D)
	$(call say,LINK)
	$(Q)$(CC) -pie $(LDFLAGS_ALL) $^ $(JSON_LIBS) $(CTL_LIBS) -o $@

conformance: deps-test ## what every backend must pass, as the table case × backend (CONFORMANCE_ARGS="--bus URL --only B07 --json FILE"; SCALE=short)
	@$(MAKE) --no-print-directory programs $(CONFORMANCE)
	@OMNI_BIN=$(B)/bin $(CONFORMANCE) --scale $(or $(SCALE),full) $(CONFORMANCE_ARGS)

# What the fault tests preload into the daemon. A sanitizer's allocator comes before every library that is preloaded: there is a daemon with our part of it then.
INJECT := $(B)/tests/fault/inject.so
INJECT_SRC := tests/fault/inject.c tests/fault/inject_control.c
INJECT_CC = $(CC) $(CPPFLAGS_ALL) -std=gnu11 -g $(OPT) -fPIC -fvisibility=hidden $(WARN)
ifneq ($(filter address thread,$(subst $(comma), ,$(SANITIZE))),)
INJECT += $(B)/tests/fault/omnidaemond
else
INJECT_SRC += tests/fault/inject_memory.c
endif

$(B)/tests/fault/inject.so: $(INJECT_SRC) tests/fault/inject.h
	@mkdir -p $(@D)
	$(call say,LINK)
	$(Q)$(INJECT_CC) -shared $(filter %.c,$^) -ldl -o $@

$(B)/tests/fault/inject_%.o: tests/fault/inject_%.c tests/fault/inject.h
	@mkdir -p $(@D)
	$(call say,CC)
	$(Q)$(INJECT_CC) -DOM_INJECT_SANITIZED -c $< -o $@

$(B)/tests/fault/omnidaemond: $(DAEMON_OBJ) $(BACKEND_OBJ) $(PROTO_OBJ) $(TSAN_OBJ) $(B)/tests/fault/inject_control.o $(B)/tests/fault/inject_memory.o
	@mkdir -p $(@D)
	$(call say,LINK)
	$(Q)$(CC) -pie -rdynamic $(LDFLAGS_ALL) $^ $(DAEMON_LIBS) -o $@

tests-build: programs $(UNIT) $(INTEG) $(TOOLS) $(REPLAY) $(CONFORMANCE) $(INJECT)

# The fuzzers have sanitizers of their own: they run beside the plain build, once; a build with SANITIZE replays their corpus only.
TEST_FUZZ := $(if $(SANITIZE),,$(filter-out 0,$(FUZZ_SECONDS)))
test: deps-test ## build and run every test; fuzz each parser for FUZZ_SECONDS (60; 0: the corpus only)
	@$(if $(TEST_FUZZ),packaging/install-deps.sh clang)
	@$(MAKE) --no-print-directory tests-build
	@$(if $(TEST_FUZZ),$(FUZZ_MAKE))
	@$(if $(TEST_FUZZ),FUZZ_BUILD=$(FUZZ_B) FUZZ_SECONDS=$(FUZZ_SECONDS)) tests/run $(B)

test-unit: deps-test ## only the unit tests
	@$(MAKE) --no-print-directory $(UNIT)
	@tests/run $(B) unit

# Not what promises memory or seconds: ThreadSanitizer takes many times as much of both. Nor MongoDB, whose driver has threads of its own that share
# with ours what atomics guard which TSan does not see.
THREAD_CASES := B01,B02,B03,B06,B07,B11,B13,B17,B18,B20,B23,B34,B35,B42,S01,S02,S03,S04,S11
test-threads: deps-test ## with CC=clang SANITIZE=thread: the unit tests, and the daemon on each system
	@$(MAKE) --no-print-directory $(UNIT) programs $(CONFORMANCE)
	@TEST_CASES=$(THREAD_CASES) TEST_NOT='(:kinds|@mongodb)$$' tests/run $(B) unit conformance

soak: deps-test ## the long forms of the fault tests, and all of valgrind: an hour (FAULT_ONLY=PATTERN, FAULT_SEED=N, FAULT_KILLS=N … for less)
	@$(MAKE) --no-print-directory tests-build
	@FAULT_LONG=1 TEST_JOBS=1 TEST_TIMEOUT=21600 TEST_ONLY=$(FAULT_ONLY) TEST_NOTES=1 tests/run $(B) fault
	$(if $(SANITIZE)$(FAULT_ONLY),,@tests/valgrind $(B))

test-valgrind: deps-test ## every unit test program, and the way of a task, under valgrind (TEST_ONLY=PATTERN for less)
	@$(MAKE) --no-print-directory tests-build
	@tests/valgrind $(B)

test-integration: deps-test ## only the whole-system tests
	@$(MAKE) --no-print-directory tests-build
	@tests/run $(B) integration

# NATS beside us in the benchmark, where its client library is installed.
BENCH_OBJ := $(call obj,$(wildcard tests/bench/*.c))
BENCH_NATS = $(shell pkg-config --exists libnats && echo -DHAVE_NATS)
BENCH_REDIS = $(shell pkg-config --exists hiredis && echo -DHAVE_HIREDIS)
BENCH_RABBITMQ = $(shell pkg-config --exists librabbitmq && echo -DHAVE_RABBITMQ)
BENCH_KAFKA = $(shell pkg-config --exists rdkafka && echo -DHAVE_RDKAFKA)
# With the module, whose statements it sends itself.
BENCH_PQ = $(if $(filter postgresql,$(MODULES)),-DHAVE_LIBPQ $(shell pkg-config --cflags libpq))
BENCH_PQ_OBJ := $(if $(filter postgresql,$(MODULES)),$(call obj,$(wildcard backends/postgresql/statements.c backends/postgresql/codec.c)))
BENCH_CURL = $(shell pkg-config --exists libcurl && echo -DHAVE_CURL)
BENCH_MONGO = $(shell pkg-config --exists libmongoc-1.0 && echo -DHAVE_MONGOC `pkg-config --cflags libmongoc-1.0`)
$(BENCH_OBJ): CPPFLAGS_ALL += $(BENCH_NATS) $(BENCH_REDIS) $(BENCH_KAFKA) $(BENCH_RABBITMQ) $(BENCH_PQ) $(BENCH_CURL) $(BENCH_MONGO)

$(B)/tests/bench/bench: $(BENCH_OBJ) $(BENCH_PQ_OBJ) $(B)/obj/tests/lib/server.o $(B)/lib/libomniclient.a
	@mkdir -p $(@D)
	$(call say,LINK)
	$(Q)$(CC) -pie $(LDFLAGS_ALL) $^ -llmdb $(if $(BENCH_NATS),-lnats) $(if $(BENCH_REDIS),-lhiredis) $(if $(BENCH_KAFKA),-lrdkafka) $(if $(BENCH_RABBITMQ),-lrabbitmq) $(if $(BENCH_PQ),-lpq) $(if $(BENCH_CURL),-lcurl) $(if $(BENCH_MONGO),`pkg-config --libs libmongoc-1.0`) -lpthread -lm -o $@

bench: all ## measure, beside LMDB, beanstalkd and NATS alone (BENCH_ARGS="--quick --only WORD --runs N --json FILE")
	@packaging/install-deps.sh bench
	@$(MAKE) --no-print-directory $(B)/tests/bench/bench
	@NATS_SERVER=$$(tests/servers/nats.sh build || true) PYTHON_OMNIDAEMON=$$(tests/servers/python.sh build || true) OMNI_BIN=$(B)/bin $(B)/tests/bench/bench $(BENCH_ARGS)

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
