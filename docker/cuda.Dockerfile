# Tercet on NVIDIA cards: docker build -f docker/cuda.Dockerfile -t tercet-cuda . && docker run --rm --gpus all tercet-cuda speed
FROM nvidia/cuda:13.0.1-base-ubuntu24.04
RUN apt-get update \
    && apt-get install --yes --no-install-recommends bubblewrap gcc git libc6-dev make python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/tercet
ENV PATH=/opt/tercet/bin:$PATH
RUN python -m pip install --no-cache-dir torch==2.13.0 --extra-index-url https://download.pytorch.org/whl/cu130
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
