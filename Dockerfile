# GPU image: docker build -t fusec . && docker run --rm --gpus all fusec make gpu
# torch's wheels bring their own CUDA libraries, so the base needs only Python; Triton needs gcc at run time.
FROM python:3.12-slim-bookworm

RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc g++ git make \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 fusec \
    && mkdir /fusec \
    && chown fusec:fusec /fusec

USER 1000
WORKDIR /fusec
ENV DEVICE=cuda PIP_NO_CACHE_DIR=1 PYTHONDONTWRITEBYTECODE=1

# The large layer depends on the pins alone, so a change of code does not download torch again.
COPY --chown=fusec:fusec pyproject.toml constraints.txt Makefile ./
RUN make deps

COPY --chown=fusec:fusec . .
RUN make setup

CMD ["make", "demo"]
