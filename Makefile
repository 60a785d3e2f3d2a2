# GNU make. Needs Go, git and a Linux kernel; `make help` lists the targets.

GO       = go
PREFIX   = /usr/local
DESTDIR  =
SYSCONFDIR = /etc
FUZZTIME = 30s
BENCH    = .
SOAK     = 60m
# For `make bench`: --rounds 1, --only latency, …; --help names them.
BENCHFLAGS =
# For go test, of `make test` and the race detector's run: -v, -run REGEXP, …
TESTFLAGS =

SOURCES := $(shell find cmd netstack proxy rules -type f ! -name '*_test.go' ! -path '*/testdata/*') go.mod go.sum
TOOL     = $(GO) tool -modfile=.tools/go.mod
MANUAL   = docs/pinproxy.8

.PHONY: build
build: bin/pinproxy ## build bin/pinproxy (plain `make` does so)

bin/%: $(SOURCES)
	CGO_ENABLED=0 $(GO) build -trimpath -o $@ ./cmd/$*

.PHONY: demo
demo: bin/pinproxy bin/demo ## show in seconds what it is for, in network namespaces of its own
	@bin/demo bin/pinproxy

.PHONY: test
test: ## run all tests, those in namespaces too
	$(GO) test -timeout 20m $(TESTFLAGS) ./...

.PHONY: check check-format check-vet check-static check-race check-vulnerable check-shell check-manual
check: check-format check-vet check-static check-race check-vulnerable check-shell check-manual ## all that must be so before a commit, beside the tests

check-format:
	@files=$$($(TOOL) gofumpt -l cmd netstack packaging proxy rules) || exit 1; \
	test -z "$$files" || { echo "not as gofumpt writes it:"; echo "$$files"; exit 1; }

# A 386 also has the system calls, and the int, of 32 bits.
check-vet:
	for os in linux darwin freebsd windows; do GOOS=$$os CGO_ENABLED=0 $(GO) vet ./... || exit 1; done
	GOOS=linux GOARCH=386 CGO_ENABLED=0 $(GO) vet ./...

check-static:
	$(TOOL) staticcheck ./...

# The race detector is linked by a C compiler.
check-race:
	@if command -v "$$($(GO) env CC)" >/dev/null; then \
		set -x; CGO_ENABLED=1 $(GO) test -race -timeout 30m $(TESTFLAGS) ./...; \
	else echo "no C compiler: leaving out the race detector"; fi

# Its database is on the network.
check-vulnerable:
	@out=$$(timeout 120 $(TOOL) govulncheck ./... 2>&1); code=$$?; \
	case "$$code $$out" in \
	0*) ;; \
	124*|*"fetching vulnerabilities"*) echo "vulnerability database out of reach: leaving out govulncheck" ;; \
	*) echo "$$out"; exit 1 ;; esac

check-shell:
	@if command -v shellcheck >/dev/null; then shellcheck .ci/run packaging/scripts/* packaging/completions/pinproxy.bash; else echo "no shellcheck: leaving out scripts"; fi

check-manual:
	@if test ! -e $(MANUAL); then :; \
	elif command -v mandoc >/dev/null; then mandoc -T lint -W warning $(MANUAL); \
	else echo "no mandoc: leaving out the manual"; fi

.PHONY: bench
bench: bin/pinproxy bin/bench ## in minutes, measure it beside what else is on the PATH, and write docs/bench.md
	@bin/bench --page docs/bench.md $(BENCHFLAGS) bin/pinproxy

.PHONY: microbench
microbench: ## run the benchmarks of the parts, for benchstat; BENCH=REGEXP for some of them
	$(GO) test -run '^$$' -bench '$(BENCH)' -benchmem ./...

.PHONY: fuzz
fuzz: ## run each fuzz target for FUZZTIME (30s)
	@list=$$($(GO) test -list '^Fuzz' ./...) || { echo "$$list"; exit 1; }; \
	echo "$$list" | awk '/^Fuzz/ { f[n++] = $$1 } /^ok/ { while (n) print f[--n], $$2 }' | \
	while read -r target package; do \
		echo "$$package: $$target"; \
		$(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 1s "$$package" || exit 1; \
	done

# It goes on where it was interrupted; without bin/soak.jsonl it begins anew.
.PHONY: soak
soak: ## for SOAK (60m), look whether anything grows under mixed load, and write it into docs/reliability.md
	$(GO) test -c -o bin/soak ./cmd/pinproxy
	cd cmd/pinproxy && ../../bin/soak -test.run '^TestSoak$$' -test.v -test.timeout 0 -soak $(SOAK) \
		-soak-file $(CURDIR)/bin/soak.jsonl -soak-page $(CURDIR)/docs/reliability.md

.PHONY: floods
floods: ## run the floods of docs/reliability.md with their full numbers, one after another
	$(GO) test -count=1 -v -run '^TestFlood' -parallel 1 -timeout 20m ./cmd/pinproxy -floods

.PHONY: install
install: bin/pinproxy ## install into PREFIX (/usr/local) and SYSCONFDIR (/etc), below DESTDIR
	install -D -m 755 bin/pinproxy $(DESTDIR)$(PREFIX)/bin/pinproxy
	install -D -m 644 $(MANUAL) $(DESTDIR)$(PREFIX)/share/man/man8/pinproxy.8
	install -D -m 644 packaging/completions/pinproxy.bash $(DESTDIR)$(PREFIX)/share/bash-completion/completions/pinproxy
	install -D -m 644 packaging/completions/_pinproxy $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_pinproxy
	install -D -m 644 packaging/completions/pinproxy.fish $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/pinproxy.fish
	install -D -m 644 packaging/systemd/pinproxy.service $(DESTDIR)$(PREFIX)/lib/systemd/system/pinproxy.service
	sed -i 's|/usr/bin/|$(PREFIX)/bin/|; s|/etc/pinproxy|$(SYSCONFDIR)/pinproxy|; s|/etc/default|$(SYSCONFDIR)/default|' $(DESTDIR)$(PREFIX)/lib/systemd/system/pinproxy.service
	install -D -m 644 packaging/systemd/pinproxy.sysusers $(DESTDIR)$(PREFIX)/lib/sysusers.d/pinproxy.conf
	install -D -m 644 packaging/polkit/50-pinproxy.rules $(DESTDIR)$(PREFIX)/share/polkit-1/rules.d/50-pinproxy.rules
	install -D -m 644 packaging/udev/80-pinproxy.rules $(DESTDIR)$(PREFIX)/lib/udev/rules.d/80-pinproxy.rules
	test -e $(DESTDIR)$(SYSCONFDIR)/pinproxy/pinproxy.rules || install -D -m 644 packaging/pinproxy.rules $(DESTDIR)$(SYSCONFDIR)/pinproxy/pinproxy.rules
	test -e $(DESTDIR)$(SYSCONFDIR)/default/pinproxy || install -D -m 644 packaging/pinproxy.default $(DESTDIR)$(SYSCONFDIR)/default/pinproxy
	@if test -e $(DESTDIR)/etc/apparmor.d/abi/4.0; then \
		set -x; install -m 644 packaging/apparmor/pinproxy $(DESTDIR)/etc/apparmor.d/pinproxy; \
		if test -z "$(DESTDIR)" && test -d /sys/module/apparmor && command -v apparmor_parser >/dev/null; then \
			apparmor_parser -r /etc/apparmor.d/pinproxy || echo "the AppArmor profile could not be loaded"; fi; \
	else echo "no AppArmor 4 in /etc/apparmor.d: leaving out its profile"; fi
	@if test -z "$(DESTDIR)"; then \
		echo "for the service: systemd-sysusers && systemctl daemon-reload, rules in $(SYSCONFDIR)/pinproxy/pinproxy.rules, systemctl enable --now pinproxy"; fi

# A changed AppArmor profile stays, like what is in SYSCONFDIR.
.PHONY: uninstall
uninstall: ## remove what install has put in place, but for rules and flags in SYSCONFDIR
	rm -f $(addprefix $(DESTDIR)$(PREFIX)/,bin/pinproxy share/man/man8/pinproxy.8 share/bash-completion/completions/pinproxy \
		share/zsh/site-functions/_pinproxy share/fish/vendor_completions.d/pinproxy.fish lib/systemd/system/pinproxy.service \
		lib/sysusers.d/pinproxy.conf share/polkit-1/rules.d/50-pinproxy.rules lib/udev/rules.d/80-pinproxy.rules)
	@if cmp -s packaging/apparmor/pinproxy $(DESTDIR)/etc/apparmor.d/pinproxy; then \
		set -x; if test -z "$(DESTDIR)" && command -v apparmor_parser >/dev/null; then apparmor_parser -R /etc/apparmor.d/pinproxy; fi; \
		rm $(DESTDIR)/etc/apparmor.d/pinproxy; \
	fi
	@if test -z "$(DESTDIR)"; then echo "a running service goes on: systemctl disable --now pinproxy before, systemctl daemon-reload now"; fi

# The newest tag, and how far we are from it; before the first tag, the commit.
VERSION    = $(or $(patsubst v%,%,$(shell git describe --tags --match 'v[0-9]*' 2>/dev/null | tr - '~')),0.0.0~$(shell git log -1 --format=%cd.%h --date=format:%Y%m%d))
MAINTAINER = pinproxy
# Where packages go, and what they are made of.
PACKAGES = bin
ROOT     = bin/root

.PHONY: deb rpm
deb rpm: bin/pinproxy ## make bin/pinproxy_VERSION_ARCH.deb, or bin/pinproxy-VERSION-1.ARCH.rpm
	rm -rf $(ROOT)
	$(MAKE) -s install DESTDIR=$(ROOT) PREFIX=/usr SYSCONFDIR=/etc
	ROOT=$(ROOT) GOARCH=$$($(GO) env GOARCH) VERSION='$(VERSION)' MAINTAINER='$(MAINTAINER)' SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) \
		$(GO) tool -modfile=.tools/package/go.mod nfpm package --config packaging/nfpm.yaml --packager $@ --target $(PACKAGES)
	rm -rf $(ROOT)

.PHONY: sbom
sbom: bin/pinproxy ## print what bin/pinproxy is made of: tool chain, modules with their sums, revision
	@$(GO) version -m bin/pinproxy

.PHONY: clean
clean: ## remove what was built
	rm -rf bin

.PHONY: help
help: ## print this
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile
