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

WARN     := -Wall -Wextra -Wshadow -Wconversion -Wno-sign-conversion -Wstrict-prototypes -Wmissing-prototypes -Wvla -Werror
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
.PHONY: all bins deps run check unit e2e rooms asan tsan vmtest bench fuzz fuzz-run install uninstall clean format compdb
all: bins
bins: $(BIN)

$(OUT)/sluice: $(OUT)/obj/user/main.o $(OUT)/libsluice.a
	$(call say,LINK,$@)
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS)

$(TOOLS:%=$(OUT)/%): $(OUT)/%: $(OUT)/obj/tools/%.o $(OUT)/libsluice.a
	$(call say,LINK,$@)
	$(Q)$(CC) $(LDFLAGS) -o $@ $(filter %.o,$^) $(filter %.a,$^) $(LDLIBS)

# A tool that is more than one file keeps the rest in tools/NAME/.
$(OUT)/origin: $(patsubst %.c,$(OUT)/obj/%.o,$(wildcard tools/origin/*.c))

$(OUT)/libsluice.a: $(LIB_OBJ)
	$(call say,AR,$@)
	$(Q)rm -f $@ && ar rcs $@ $^

$(OUT)/obj/%.o: %.c Makefile | $(SKEL)
	$(call say,CC,$<)
	$(Q)mkdir -p $(@D) && $(CC) $(CPPFLAGS) $(CFLAGS) -MMD -MP -c -o $@ $<

# BPF: CO-RE against the small hand-kept bpf/vmlinux_min.h, so the build host's kernel does not matter.
$(OUT)/bpf/%.bpf.o: bpf/%.bpf.c Makefile
	$(call say,BPF,$<)
	$(Q)mkdir -p $(@D) && $(CLANG) -target bpf -mcpu=v3 -D__TARGET_ARCH_x86 -g -O2 -Wall -Wextra -Werror -Iinclude -Ibpf -MMD -MP -MT $@ -MF $(@:.o=.d) -c -o $@ $<

$(OUT)/skel/%.skel.h: $(OUT)/bpf/%.bpf.o
	$(call say,SKEL,$@)
	$(Q)mkdir -p $(@D) && $(BPFTOOL) gen skeleton $< name $*_bpf > $@.tmp && mv $@.tmp $@

$(OUT)/tests/%_test: $(OUT)/obj/tests/unit/%_test.o $(OUT)/libsluice.a
	$(call say,LINK,$@)
	$(Q)mkdir -p $(@D) && $(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS) -lcmocka

-include $(LIB_OBJ:.o=.d) $(OUT)/obj/user/main.d $(TOOLS:%=$(OUT)/obj/tools/%.d) $(wildcard $(OUT)/bpf/*.d $(OUT)/obj/tests/unit/*.d)
.SECONDARY:

deps:
	$(Q)sh tools/deps.sh $(DEPS)

clean:
	$(Q)rm -rf build compile_commands.json
