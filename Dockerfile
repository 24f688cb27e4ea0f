FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
COPY . .
# The caches hold what was built before; the binary has to leave them to reach the next stage.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --locked --release \
    && cp target/release/edgecloud /edgecloud

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --user-group --no-create-home --home-dir /data edgecloud \
    && install -d -o edgecloud -g edgecloud -m 0700 /data
COPY --from=build /edgecloud /usr/local/bin/edgecloud
COPY LICENSE /usr/share/doc/edgecloud/LICENSE

USER 10001:10001
WORKDIR /data
VOLUME /data
# Inside a container loopback is out of everybody's reach, so the public listeners take every address.
ENV EDGECLOUD__SERVER__API_LISTEN=0.0.0.0:3721 \
    EDGECLOUD__TUNNEL__LISTEN=0.0.0.0:3800
EXPOSE 3721 3800
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s --retries=3 CMD ["edgecloud", "healthcheck"]
ENTRYPOINT ["edgecloud"]
CMD ["serve", "--role=all", "--data-dir=/data"]
