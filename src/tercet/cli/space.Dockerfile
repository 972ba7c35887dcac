# A public page of `tercet play`: requirements.txt names Tercet, play.args the models, an argument a line.
FROM python:3.12-slim-bookworm
RUN apt-get update \
    && apt-get install --yes --no-install-recommends bubblewrap \
    && rm -rf /var/lib/apt/lists/*
RUN python -m pip install --no-cache-dir torch==2.13.0 --extra-index-url https://download.pytorch.org/whl/cpu
RUN useradd --create-home --uid 1000 tercet
WORKDIR /home/tercet
COPY --chown=tercet . .
RUN python -m pip install --no-cache-dir -r requirements.txt
USER tercet
EXPOSE 7860
# SPACE_HOST is the name of the Space in its address; Hugging Face sets it. Lines of play.args may hold blanks.
CMD ["sh", "-c", "set -f; IFS='\n'; exec tercet play $(cat play.args) --host 0.0.0.0 --port 7860 --read-only --public --no-programs --allow-host=\"$SPACE_HOST\""]
