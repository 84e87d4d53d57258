# Where the machine is no Debian, cmd/plugin.sh runs in here. BASE is any Debian, bookworm or newer, with Go.
ARG BASE=golang:1.26-trixie
FROM ${BASE} AS build

ARG CROSS=
RUN export DEBIAN_FRONTEND=noninteractive \
 && apt-get update -q \
 && apt-get install -q -y --no-install-recommends gcc pax-utils ${CROSS}

WORKDIR /src
COPY . .
ARG ARCH SUITE BUILD_TAGS VERSION SOURCE_DATE_EPOCH
RUN cmd/plugin.sh /plugin && tar -C /plugin -cf /plugin.tar rootfs

FROM scratch
COPY --from=build /plugin.tar /
