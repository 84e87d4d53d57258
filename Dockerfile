# The root filesystem of the managed plugin. Nothing else is in it than the plugin, the tools it runs, and their libraries.
# BASE: any Debian trixie (Ceph 18, hence the tag "reef") with Go; cmd/base.sh makes one where no registry is within reach.
ARG BASE=golang:1.26-trixie
FROM ${BASE} AS build

RUN export DEBIAN_FRONTEND=noninteractive \
 && apt-get update -q \
 && apt-get install -q -y --no-install-recommends \
      gcc libc6-dev librados-dev librbd-dev \
      btrfs-progs cryptsetup-bin e2fsprogs kmod util-linux xfsprogs

# Layers of their own, so that a change to the plugin takes seconds: the standard library, compiled, and the tools.
RUN CGO_ENABLED=1 go build -trimpath net/http encoding/json
COPY cmd/rootfs.sh /
RUN /rootfs.sh \
      mke2fs mkfs.ext4 e2fsck fsck.ext4 resize2fs \
      mkfs.xfs xfs_growfs xfs_db \
      mkfs.btrfs btrfs btrfstune \
      blkid cryptsetup modprobe

WORKDIR /src
COPY . .
ARG VERSION=dev
ARG TAGS=reef
RUN CGO_ENABLED=1 go build -trimpath -tags "${TAGS}" -ldflags "-s -w -X main.version=${VERSION}" \
      -o /usr/bin/docker-volume-rbd ./cmd/docker-volume-rbd \
 && /rootfs.sh docker-volume-rbd

FROM scratch
COPY --from=build /rootfs /
ENTRYPOINT ["/usr/bin/docker-volume-rbd"]
