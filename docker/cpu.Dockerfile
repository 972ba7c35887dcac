# Tercet on a CPU: docker build -f docker/cpu.Dockerfile -t tercet . && docker run --rm -v "$PWD:/work" tercet run quickstart
FROM python:3.12-slim-bookworm AS base
RUN apt-get update \
    && apt-get install --yes --no-install-recommends bubblewrap gcc git libc6-dev make \
    && rm -rf /var/lib/apt/lists/*

FROM base
RUN python -m pip install --no-cache-dir torch==2.13.0 --extra-index-url https://download.pytorch.org/whl/cpu
COPY release/requirements.lock /tmp/
RUN python -m pip install --no-cache-dir --require-hashes --no-deps -r /tmp/requirements.lock
COPY pyproject.toml README.md LICENSE NOTICE /src/
COPY src /src/src
COPY recipes /src/recipes
RUN python -m pip install --no-cache-dir --no-deps /src
RUN useradd --create-home tercet
USER tercet
WORKDIR /work
ENTRYPOINT ["tercet"]
