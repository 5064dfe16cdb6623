# syntax=docker/dockerfile:1
# One image with every binary of Sluice; docker-compose.yml says which one a container runs.

FROM rust:1.95-bookworm AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends protobuf-compiler libprotobuf-dev \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# --locked: what is tested is what is shipped. The caches live outside the layers.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/target,id=sluice-target \
    CARGO_TARGET_DIR=/target cargo build --release --locked -p pump -p drainer-kafka -p consumers -p node -p simulator --bins \
 && mkdir /out \
 && cd /target/release && cp pump drainer-kafka apply-mysql export-files binlogctl tidb-sim /out/

FROM debian:bookworm-slim
# curl: for health checks of the admin listener. tzdata: names of time zones (upstream-time-zone, binlogctl -time-zone).
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates curl libssl3 tzdata zlib1g \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 10001 --no-create-home --home-dir /var/lib/sluice --shell /usr/sbin/nologin sluice \
 && install -d -o sluice -g sluice /var/lib/sluice
COPY --from=build /out/ /usr/local/bin/
COPY LICENSE /usr/share/doc/sluice/LICENSE
# A fresh volume takes over this folder's owner.
USER sluice
VOLUME /var/lib/sluice
WORKDIR /var/lib/sluice
CMD ["binlogctl", "--help"]
