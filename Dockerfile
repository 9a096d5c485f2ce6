# The one binary. Built in two stages, run without root.
# (rust-toolchain.toml names the same version as the first line: rustup has nothing to fetch.)
FROM rust:1.95.0-bookworm AS build
# What librdkafka is built with: TLS and zstd. make and a C++ compiler are in the image.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libssl-dev libzstd-dev pkg-config \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# `--build-arg FEATURES=fluvio` for a binary that reads Fluvio too.
ARG FEATURES=""
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked --package tombstream --features "$FEATURES" \
    && install -D target/release/tombstream /out/tombstream

FROM debian:bookworm-slim
# curl is for the health checks.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates curl libssl3 libzstd1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --no-create-home --uid 10001 tombstream
COPY --from=build /out/tombstream /usr/local/bin/tombstream
USER 10001
ENTRYPOINT ["tombstream"]
