# make help lists what there is.
SHELL := /bin/bash

PLUGIN  ?= rbd:latest
VERSION ?= $(shell git describe --always --dirty 2>/dev/null || echo unknown)

# go-ceph wants to know the release of the headers, up to reef. Not ":=": make deps may have to install them first.
RELEASES  = 16=pacific 17=quincy 18=reef
HEADERS   = $(shell dpkg-query -W -f '$${Version}' librbd-dev 2>/dev/null | cut -d. -f1)
TAGS      = $(patsubst $(HEADERS)=%,%,$(filter $(HEADERS)=%,$(RELEASES)))
# The plugin is built for this machine, or by ARCH for the other architecture.
OWN     := $(shell go env GOHOSTARCH 2>/dev/null)
ARCH    ?= $(OWN)
OTHER   := $(filter-out $(OWN),$(ARCH))
OUTPUT  := build/plugin$(addprefix -,$(OTHER))
LINTER   := build/bin/golangci-lint-v2.15.0

# What needs neither root nor Ceph, nor its headers.
UNIT     = ./driver/... ./plugin/... ./test/workload/... ./test/faults/... ./test/guest/...

.PHONY: help check deps build lint test test-unit test-ceph test-engine test-swarm test-krbd model mix matrix nightly fuzz bench plugin install uninstall push demo demo-clean clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

check: $(LINTER) ## formatting, vet, the rule of layers, and what needs neither root nor Ceph: in a minute, after every change
	$(LINTER) run --build-tags "$(TAGS)" $(if $(HEADERS),,$(UNIT))
	go test $(UNIT)

deps: ## install what Debian has of what building and testing need
	@test/deps.sh

build: deps ## the program for this machine: build/docker-volume-rbd
	@mkdir -p build
	go build -trimpath -tags "$(TAGS)" -ldflags "-X main.version=$(VERSION)" -o build/docker-volume-rbd ./cmd/docker-volume-rbd

lint: deps $(LINTER) ## golangci-lint with the rule of layers, shellcheck
	$(LINTER) run --build-tags "$(TAGS)"
	shellcheck cmd/*.sh test/*.sh test/guest/*.sh examples/*.sh .ci/run

$(LINTER):
	@echo "==> building golangci-lint (about a minute, once)"
	@mkdir -p build/bin
	GOBIN=$(CURDIR)/build/bin go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
	mv build/bin/golangci-lint $@

test: deps ## everything, on a throw-away cluster and engine (as root)
	@TAGS="$(TAGS)" test/run.sh

test-unit: ## the part that needs neither root nor Ceph, with the race detector
	go test -race $(UNIT)

test-ceph: deps ## the part with librbd, the mappers and the filesystems (as root)
	@PART=ceph TAGS="$(TAGS)" test/run.sh

test-engine: deps ## the part with the managed plugin in a real engine (as root)
	@PART=engine TAGS="$(TAGS)" test/run.sh

test-swarm: deps ## the part with a swarm of three nodes (as root)
	@PART=swarm TAGS="$(TAGS)" test/run.sh

model: deps ## the part that checks the model of the guard, with spin (as root)
	@PART=model TAGS="$(TAGS)" test/run.sh

test-krbd: deps ## the kernel's client, in guests with Debian's kernel (as root)
	@TAGS="$(TAGS)" test/krbd.sh

mix: deps ## an hour of all that happens to volumes, at random, on a throw-away cluster (MIX=60m; SEED=n for the order of another run)
	@TAGS="$(TAGS)" MIX="$(or $(MIX),60m)" SEED="$(SEED)" CLUSTER_BYTES=8589934592 test/run.sh -count 1 -timeout 0 -v -run '^TestMix$$' ./test/integration

matrix: deps ## what is shipped with each Ceph, engine, podman and kernel (SLICE=name for a part, LIST=1 for their names): docs/tested.md
	@TAGS="$(TAGS)" LIST="$(LIST)" test/matrix.sh $(SLICE)

nightly: deps ## as test, at length, in slices of at most an hour: SLICE=faults|steps|model|fuzz|guests, all without; SEED=n repeats faults
	@TAGS="$(TAGS)" SEED="$(SEED)" test/nightly.sh $(SLICE)

fuzz: ## every fuzz test for FUZZTIME (20s) each
	@TAGS="$(TAGS)" test/fuzz.sh

bench: deps ## the figures of the README, on a throw-away cluster (as root)
	@TAGS="$(TAGS)" test/run.sh -run '^$$' -bench . -benchtime 20x ./test/integration

plugin: ## build the managed plugin and create it in the engine, disabled; with ARCH=arm64 (or amd64) only build it
	VERSION="$(VERSION)" ARCH="$(ARCH)" cmd/plugin.sh $(OUTPUT)
ifeq ($(OTHER),)
	-docker plugin rm -f $(PLUGIN) >/dev/null 2>&1
	docker plugin create $(PLUGIN) $(OUTPUT)
else ifeq ($(filter install,$(MAKECMDGOALS)),)
	@echo "==> on a node of that architecture: copy $(OUTPUT) there, then docker plugin create NAME DIRECTORY; or make push"
else
	$(error make $(MAKECMDGOALS) is for this machine's architecture: make plugin ARCH=$(ARCH) says what to do)
endif

install: plugin ## create the plugin and enable it; settings: make install SET="RBD_CONF_POOL=x ..."
	$(if $(SET),docker plugin set $(PLUGIN) $(SET))
	docker plugin enable --timeout 0 $(PLUGIN)

uninstall: ## disable and remove the plugin
	docker plugin rm -f $(PLUGIN)

push: ## for both architectures to a registry: make push PLUGIN=registry/name:tag
	$(if $(findstring /,$(PLUGIN)),,$(error say where to: make push PLUGIN=registry/name:tag))
	VERSION="$(VERSION)" ARCH=amd64 cmd/plugin.sh build/push/amd64
	VERSION="$(VERSION)" ARCH=arm64 cmd/plugin.sh build/push/arm64
	VERSION="$(VERSION)" cmd/push.sh $(PLUGIN) amd64=build/push/amd64 arm64=build/push/arm64

demo: ## see it work: a throw-away cluster, an engine if there is none, the plugin, two nodes
	@test/demo.sh

demo-clean: ## take away all that make demo made
	@test/demo.sh clean

clean: ## remove build/
	rm -rf build
