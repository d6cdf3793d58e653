# `make install` and `make uninstall`, for people who run vmsession: docs/operations.md.

PREFIX ?= /usr/local
SYSCONFDIR ?= /etc
DESTDIR ?=

HOME_DIRECTORY := $(PREFIX)/lib/vmsession
STAGE := $(DESTDIR)$(HOME_DIRECTORY)
LIBRARY := $(DESTDIR)$(PREFIX)/lib
HELPERS := $(DESTDIR)$(PREFIX)/libexec/vmsession
SHARE := $(DESTDIR)$(PREFIX)/share
CONFIGURATION := $(DESTDIR)$(SYSCONFDIR)/vmsession

UNITS := $(notdir $(wildcard deploy/systemd/*))
EXAMPLES := $(notdir $(wildcard deploy/policy/*.toml))
PAGES := $(notdir $(wildcard docs/man/*.[1-9]))
COMMANDS := vmcore vmm

.PHONY: install install-programs install-files uninstall

install: install-programs install-files
	@echo "installed beneath $(DESTDIR)$(PREFIX); docs/operations.md tells how to go on"

# A virtual environment beside the one in use, which it then replaces: a core that runs never finds half of
# its programs. It holds no pip: what is installed changes by `make install` alone.
install-programs:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info[:2] == (3, 11) else "vmsession is built with Python 3.11; set PYTHON=python3.11")'
	@command -v $${CC:-gcc} >/dev/null || { echo "no C compiler: install gcc (Debian: apt-get install gcc libc6-dev python3-dev)" >&2; exit 1; }
	@echo "installing the programs in $(STAGE) ..."
	@rm -rf build "$(STAGE).new" "$(STAGE).old"
	@install -d "$(LIBRARY)" "$(DESTDIR)$(PREFIX)/bin"
	@$(PYTHON) -m venv --clear "$(STAGE).new"
	@"$(STAGE).new/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@"$(STAGE).new/bin/python" -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps .
	@"$(STAGE).new/bin/python" -m pip uninstall --quiet --disable-pip-version-check --yes setuptools wheel pip
	@rm -f "$(STAGE).new"/bin/[Aa]ctivate*
	@for command in $(COMMANDS); do \
		sed -i '1s|^#!.*|#!$(HOME_DIRECTORY)/bin/python -I|' "$(STAGE).new/bin/$$command" || exit 1; \
		ln -sf "../lib/vmsession/bin/$$command" "$(DESTDIR)$(PREFIX)/bin/$$command" || exit 1; \
	done
	@if [ -e "$(STAGE)" ]; then mv "$(STAGE)" "$(STAGE).old"; fi
	@mv "$(STAGE).new" "$(STAGE)"
	@rm -rf "$(STAGE).old"

# The files name the programs as they are with the usual prefix. The policy is the operator's: one that is
# there stays.
install-files:
	@install -d "$(LIBRARY)/systemd/system" "$(LIBRARY)/sysusers.d" "$(LIBRARY)/tmpfiles.d" \
		"$(LIBRARY)/udev/rules.d" "$(SHARE)/doc/vmsession/policy" "$(HELPERS)" "$(CONFIGURATION)"
	@for unit in $(UNITS); do \
		sed 's|/usr/local/|$(PREFIX)/|' "deploy/systemd/$$unit" >"$(LIBRARY)/systemd/system/$$unit" || exit 1; \
		chmod 0644 "$(LIBRARY)/systemd/system/$$unit" || exit 1; \
	done
	@install -m 0755 deploy/libexec/* "$(HELPERS)/"
	@install -m 0644 deploy/sysusers.d/vmsession.conf "$(LIBRARY)/sysusers.d/"
	@install -m 0644 deploy/tmpfiles.d/vmsession.conf "$(LIBRARY)/tmpfiles.d/"
	@install -m 0644 deploy/udev/70-vmsession-kvm.rules "$(LIBRARY)/udev/rules.d/"
	@for example in $(EXAMPLES); do \
		install -m 0644 "deploy/policy/$$example" "$(SHARE)/doc/vmsession/policy/" || exit 1; \
	done
	@install -m 0644 docs/*.md "$(SHARE)/doc/vmsession/"
	@for page in $(PAGES); do \
		install -D -m 0644 "docs/man/$$page" "$(SHARE)/man/man$${page##*.}/$$page" || exit 1; \
	done
	@if [ ! -e "$(CONFIGURATION)/policy.toml" ]; then \
		install -m 0644 deploy/policy/team-host.toml "$(CONFIGURATION)/policy.toml"; \
	fi

# What the operator and core wrote stays: the policy, the audit log, and the users who own it.
uninstall:
	@rm -rf "$(STAGE)" "$(STAGE).new" "$(STAGE).old" "$(HELPERS)" "$(SHARE)/doc/vmsession"
	@rm -f $(foreach command,$(COMMANDS),"$(DESTDIR)$(PREFIX)/bin/$(command)") \
		$(foreach unit,$(UNITS),"$(LIBRARY)/systemd/system/$(unit)") \
		$(foreach page,$(PAGES),"$(SHARE)/man/man$(subst .,,$(suffix $(page)))/$(page)") \
		"$(LIBRARY)/sysusers.d/vmsession.conf" "$(LIBRARY)/tmpfiles.d/vmsession.conf" \
		"$(LIBRARY)/udev/rules.d/70-vmsession-kvm.rules"
	@echo "uninstalled; $(CONFIGURATION) and the audit log are left to you"
