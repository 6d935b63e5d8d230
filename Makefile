# sluice. `make run` and `make check` install what is missing, build, and go.
# V=1 shows the commands; VARIANT=asan|tsan builds into build/<variant>; PREFIX and DESTDIR as usual.
VERSION  := 0.1.0
PREFIX   ?= /usr/local
SYSCONFDIR ?= /etc
ifeq ($(origin CC),default)
CC       := gcc
endif
CLANG    ?= clang
BPFTOOL  ?= $(firstword $(wildcard /usr/sbin/bpftool /usr/local/sbin/bpftool) bpftool)
PYTHON   ?= /usr/bin/python3
VARIANT  ?=
OUT      := build$(if $(VARIANT),/$(VARIANT))
Q        := $(if $(V),,@)
say       = $(if $(V),,@printf '  %-7s %s\n' '$(1)' '$(2)')

WARN     := -Wall -Wextra -Wshadow -Wconversion -Wno-sign-conversion -Wno-format-truncation -Wstrict-prototypes -Wmissing-prototypes -Wvla -Werror
OPT      := -O2 -g -fno-omit-frame-pointer -D_FORTIFY_SOURCE=2 -fstack-protector-strong -fPIE
SAN      :=
ifeq ($(VARIANT),asan)
OPT      := -O1 -g -fno-omit-frame-pointer
SAN      := -fsanitize=address,undefined -fno-sanitize-recover=undefined
endif
ifeq ($(VARIANT),tsan)
OPT      := -O1 -g -fno-omit-frame-pointer
SAN      := -fsanitize=thread
endif
CPPFLAGS += -D_GNU_SOURCE -DSLUICE_VERSION='"$(VERSION)"' -DSLUICE_SYSCONFDIR='"$(SYSCONFDIR)"' -Iuser -Iinclude -I$(OUT)/skel
CFLAGS   += -std=gnu11 $(OPT) $(SAN) $(WARN) -pthread
LDFLAGS  += $(SAN) -pthread $(if $(VARIANT),,-pie -Wl,-z,relro,-z,now)
LDLIBS   := -lbpf -lelf -lz -lssl -lcrypto -lyaml

ROOMS    := base io kern http conf lb proxy control
LIB_SRC  := $(wildcard $(ROOMS:%=user/%/*.c))
LIB_OBJ  := $(LIB_SRC:%.c=$(OUT)/obj/%.o)
TOOLS    := $(patsubst tools/%.c,%,$(wildcard tools/*.c))
BPF_SRC  := $(wildcard bpf/*.bpf.c)
SKEL     := $(BPF_SRC:bpf/%.bpf.c=$(OUT)/skel/%.skel.h)
UNIT     := $(patsubst tests/unit/%.c,$(OUT)/tests/%,$(wildcard tests/unit/*_test.c))
FUZZ     := $(patsubst tests/fuzz/%.c,%,$(wildcard tests/fuzz/*_fuzz.c))
BIN      := $(OUT)/sluice $(TOOLS:%=$(OUT)/%)

.DEFAULT_GOAL := all
.PHONY: all bins deps run check unit unit-bins unit-threads e2e rooms asan tsan vmtest bench fuzz fuzz-run install uninstall clean format compdb
all: bins
bins: $(BIN)
	@:

MAIN_OBJ := $(patsubst %.c,$(OUT)/obj/%.o,$(wildcard user/*.c))
$(OUT)/sluice: $(MAIN_OBJ) $(OUT)/libsluice.a
	$(call say,LINK,$@)
	$(Q)$(CC) $(LDFLAGS) -o $@.tmp $^ $(LDLIBS) && mv $@.tmp $@

$(TOOLS:%=$(OUT)/%): $(OUT)/%: $(OUT)/obj/tools/%.o $(OUT)/libsluice.a
	$(call say,LINK,$@)
	$(Q)$(CC) $(LDFLAGS) -o $@ $(filter %.o,$^) $(filter %.a,$^) $(LDLIBS)

# A tool that is more than one file keeps the rest in tools/NAME/.
$(OUT)/origin: $(patsubst %.c,$(OUT)/obj/%.o,$(wildcard tools/origin/*.c))

# Changes when a source file comes or goes, so that the archive never keeps a dead object.
$(OUT)/sources: FORCE
	@mkdir -p $(@D) && echo '$(LIB_OBJ)' | cmp -s - $@ || echo '$(LIB_OBJ)' > $@
FORCE:

$(OUT)/libsluice.a: $(LIB_OBJ) $(OUT)/sources
	$(call say,AR,$@)
	$(Q)rm -f $@ && ar rcs $@ $(LIB_OBJ)

$(OUT)/obj/%.o: %.c Makefile | $(SKEL)
	$(call say,CC,$<)
	$(Q)mkdir -p $(@D) && $(CC) $(CPPFLAGS) $(CFLAGS) -MMD -MP -c -o $@ $<

# The page for people goes into the binary as it is (.incbin), which the compiler's dependencies do not see.
$(OUT)/obj/user/control/page.o: user/control/page.html

# BPF: CO-RE against the small hand-kept bpf/vmlinux_min.h, so the build host's kernel does not matter.
$(OUT)/bpf/%.bpf.o: bpf/%.bpf.c Makefile
	$(call say,BPF,$<)
	$(Q)mkdir -p $(@D) && $(CLANG) -target bpf -mcpu=v3 -D__TARGET_ARCH_x86 -g -O2 -Wall -Wextra -Werror -Iinclude -Ibpf -MMD -MP -MT $@ -MF $(@:.o=.d) -c -o $@ $<

$(OUT)/skel/%.skel.h: $(OUT)/bpf/%.bpf.o
	$(call say,SKEL,$@)
	$(Q)mkdir -p $(@D) && $(BPFTOOL) gen skeleton $< name $*_bpf > $@.tmp && mv $@.tmp $@

# The flow engine alone, for tuning: build/mover copy|splice|flow FLOWS BODY_BYTES SECONDS [RATE] [WINDOW]
$(OUT)/mover: $(OUT)/obj/tests/bench/mover.o $(OUT)/libsluice.a
	$(call say,LINK,$@)
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS)

$(OUT)/tests/%_test: $(OUT)/obj/tests/unit/%_test.o $(OUT)/libsluice.a
	$(call say,LINK,$@)
	$(Q)mkdir -p $(@D) && $(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS) -lcmocka

-include $(LIB_OBJ:.o=.d) $(MAIN_OBJ:.o=.d) $(TOOLS:%=$(OUT)/obj/tools/%.d) $(wildcard $(OUT)/bpf/*.d $(OUT)/obj/tests/unit/*.d)
.SECONDARY:

deps:
	$(Q)sh tools/deps.sh $(DEPS)

clean:
	$(Q)rm -rf build compile_commands.json

# ---- tests ----
asan:
	$(Q)$(MAKE) --no-print-directory VARIANT=asan bins
tsan:
	$(Q)$(MAKE) --no-print-directory VARIANT=tsan bins

unit: $(UNIT)
	$(Q)sh tests/run-unit.sh $(UNIT)

unit-bins: $(UNIT)

# Where threads share state; run with VARIANT=tsan.
THREADED := $(filter $(OUT)/tests/lb_% $(OUT)/tests/control_% $(OUT)/tests/tls_%,$(UNIT))
unit-threads: $(THREADED)
	$(Q)sh tests/run-unit.sh $(THREADED)

rooms:
	$(Q)sh tests/check-rooms.sh

# Everything, under ASan and UBSan, threads under TSan, fuzz targets shortly; ends with the sum.
check:
	$(Q)sh tools/deps.sh test
	$(Q)sh tests/check.sh

# A fuzz target alone: make fuzz-http_request_fuzz FUZZ_SECONDS=600
FUZZ_SECONDS ?= 60
$(FUZZ:%=build/fuzz/%): build/fuzz/%: tests/fuzz/%.c $(LIB_SRC) | $(SKEL)
	$(call say,FUZZ,$@)
	$(Q)mkdir -p $(@D) && $(CLANG) $(CPPFLAGS) -std=gnu11 -O1 -g -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined \
	  -o $@ $< $(wildcard user/base/*.c user/http/*.c user/conf/*.c) -lyaml -pthread
$(FUZZ:%=fuzz-%): fuzz-%: build/fuzz/%
	$(Q)sh tests/fuzz/run.sh $< $(FUZZ_SECONDS)
fuzz: $(FUZZ:%=fuzz-%)

vmtest:
	$(Q)sh tools/deps.sh test vm
	$(Q)$(MAKE) --no-print-directory bins unit-bins
	$(Q)sh vmtest/run.sh
bench: all
	$(Q)sh tools/deps.sh bench
	$(Q)$(PYTHON) tools/bench.py $(BENCH)

run:
	$(Q)sh tools/deps.sh
	$(Q)$(MAKE) --no-print-directory all
	$(Q)sh tools/demo.sh

# ---- installing ----
# A package for another machine says what that has: SYSTEMD_VERSION=252.
SYSTEMD_VERSION ?= $(shell systemctl --version 2>/dev/null | awk 'NR == 1 { print $$2 + 0 }')
UNITS = $(DESTDIR)$(PREFIX)/lib/systemd/system

install: all
	install -d $(DESTDIR)$(PREFIX)/sbin $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/share/man/man8 $(DESTDIR)$(PREFIX)/share/man/man5 \
	  $(DESTDIR)$(PREFIX)/share/bash-completion/completions $(DESTDIR)$(PREFIX)/share/doc/sluice $(UNITS)
	install -m 755 $(OUT)/sluice $(DESTDIR)$(PREFIX)/sbin/sluice
	install -m 755 $(OUT)/sluicectl $(DESTDIR)$(PREFIX)/bin/sluicectl
	install -m 644 conf/sluice.8 conf/sluicectl.8 $(DESTDIR)$(PREFIX)/share/man/man8/
	install -m 644 conf/sluice.yaml.5 $(DESTDIR)$(PREFIX)/share/man/man5/
	install -m 644 conf/sluice.bash-completion $(DESTDIR)$(PREFIX)/share/bash-completion/completions/sluice
	ln -sf sluice $(DESTDIR)$(PREFIX)/share/bash-completion/completions/sluicectl
	install -m 644 conf/example.yaml conf/quickstart.yaml README.md $(DESTDIR)$(PREFIX)/share/doc/sluice/
	sed 's|@SBIN@|$(PREFIX)/sbin|g; s|@SYSCONFDIR@|$(SYSCONFDIR)|g' conf/sluice.service > $(UNITS)/sluice.service
	rm -rf $(UNITS)/sluice.service.d
	[ "$(or $(SYSTEMD_VERSION),0)" -lt 253 ] || install -D -m 644 conf/notify-reload.conf $(UNITS)/sluice.service.d/notify-reload.conf

uninstall:
	rm -f $(DESTDIR)$(PREFIX)/sbin/sluice $(DESTDIR)$(PREFIX)/bin/sluicectl $(DESTDIR)$(PREFIX)/share/man/man8/sluice.8 \
	  $(DESTDIR)$(PREFIX)/share/man/man8/sluicectl.8 $(DESTDIR)$(PREFIX)/share/man/man5/sluice.yaml.5 \
	  $(DESTDIR)$(PREFIX)/share/bash-completion/completions/sluice $(DESTDIR)$(PREFIX)/share/bash-completion/completions/sluicectl \
	  $(UNITS)/sluice.service
	rm -rf $(UNITS)/sluice.service.d $(DESTDIR)$(PREFIX)/share/doc/sluice

format:
	$(Q)clang-format -i $$(git ls-files '*.c' '*.h')

compile_commands.json compdb: $(SKEL)
	$(Q)$(PYTHON) tools/compdb.py '$(CC) $(CPPFLAGS) $(CFLAGS)' $(LIB_SRC) $(wildcard user/*.c tools/*.c tests/unit/*.c) > compile_commands.json
