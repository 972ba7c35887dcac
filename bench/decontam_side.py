"""The peer's side of bench/decontam.py: lm-evaluation-harness's n-gram cleaner on the same rows, by its interpreter.

It says whether a text shares n-grams with the benchmarks (and cuts them out), not how much of which item a row
copies: it does less than we do. Pure Python, as it is installed from the package index.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import sys
import time
from pathlib import Path


def main(job: dict[str, str]) -> None:
    """Register every benchmark field, clean every row, print what was measured as one line of JSON."""
    where = importlib.util.find_spec("lm_eval")
    if where is None or where.origin is None:
        raise SystemExit("lm_eval is not installed here")
    spec = importlib.util.spec_from_file_location(
        "janitor", Path(where.origin).parent / "decontamination" / "janitor.py"
    )
    if spec is None or spec.loader is None:
        raise SystemExit("this lm_eval has no decontamination.janitor")
    module = importlib.util.module_from_spec(spec)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        spec.loader.exec_module(module)  # it prints that its C++ part is not compiled
    janitor = module.Janitor(ngram_n=8)
    start = time.perf_counter()
    for _, _, fields in json.loads(Path(job["benchmark"]).read_text(encoding="utf-8")):
        for text in fields:
            janitor.register_contaminant_python(text)
    indexed = time.perf_counter()
    with open(job["rows"], encoding="utf-8") as stream:
        for line in stream:
            for turn in json.loads(line)["messages"]:
                if turn["role"] == "user":
                    janitor.clean_python(turn["content"])
    print(json.dumps({"index_seconds": indexed - start, "seconds": time.perf_counter() - indexed}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
