"""A file of a data set of the Hub, against a hub on this machine that huggingface_hub speaks to."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from huggingface_hub import constants

from fake_hub import COMMIT, TOKEN, in_the_hubs_place
from tercet import hub
from tercet.hub import downloads
from tercet.rows import RowError, Source

ROWS = b"index,value\n" + b"".join(b"%d,%d\n" % (number, 7 * number) for number in range(9000))
SOURCE = Source("hf:me/rows/data/table.csv", revision=COMMIT)


@pytest.fixture
def served(monkeypatch, tmp_path):
    """A hub with one data set; what a token is for stands in the environment."""
    with in_the_hubs_place(monkeypatch) as one:
        one.repositories["datasets/me/rows"] = {}
        one.files["datasets/me/rows"] = {"data/table.csv": ROWS}
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", one.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
        yield one


def read(source: Source = SOURCE) -> list[dict]:
    return hub.records([source], {})


def asked(served) -> list[str]:
    """The requests for files; the library also asks once who its users' programs are."""
    return [method for method, path in served.requests if path.startswith("/datasets/")]


def kept(tmp_path) -> list:
    return [path for path in (tmp_path / "cache").rglob("blobs/*") if path.is_file()]


def test_a_file_of_a_private_data_set_is_read_with_the_token_and_then_from_the_cache(served):
    served.repositories["datasets/me/rows"] = {"private": True}
    first = read()
    assert (first[7], len(first)) == ({"index": "7", "value": "49", "_row": 7}, 9000)
    assert asked(served) == ["HEAD", "GET"]
    assert read() == first
    assert asked(served) == ["HEAD", "GET"]


def test_a_cut_download_is_taken_up_where_it_broke(served, tmp_path):
    served.cuts = [20_000, 30_000]
    assert len(read()) == 9000
    assert asked(served) == ["HEAD", "GET", "GET", "GET"]
    assert kept(tmp_path)[0].read_bytes() == ROWS


@pytest.mark.parametrize(
    ("source", "token", "says"),
    [
        (SOURCE, "hf_wrong", "the Hub refused the token; a token stands in HF_TOKEN"),
        (Source("hf:me/gated/x.csv", revision=COMMIT), TOKEN, "accept its terms on its page, then give a token"),
        (Source("hf:me/gone/x.csv"), TOKEN, "no such data set for you; check the id"),
        (Source("hf:me/rows/gone.csv", revision=COMMIT), TOKEN, "no such file at this revision"),
        (Source("hf:me/rows/data/table.csv", revision="v9"), TOKEN, "no such revision; name one of its commits"),
    ],
)
def test_what_the_hub_does_not_give_is_an_error_that_says_what_to_do(
    served, monkeypatch, tmp_path, source, token, says
):
    served.gated = {"me/gated"}
    served.files["datasets/me/gated"] = {"x.csv": b"a\n"}
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(RowError, match=says) as caught:
        read(source)
    assert "name a local file for 'hf:me/" in str(caught.value)
    assert token not in str(caught.value)
    assert not kept(tmp_path)


def test_without_the_network_the_cache_counts_and_what_is_not_there_is_said(served, monkeypatch):
    newest = Source("hf:me/rows/data/table.csv")
    first = read(newest)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert read(newest) == read() == first
    with pytest.raises(RowError, match="not whole in the cache, and HF_HUB_OFFLINE forbids"):
        read(Source("hf:me/rows/other.csv", revision=COMMIT))


@pytest.mark.parametrize(
    ("name", "value", "says"), [("MOST_BYTES", 50, "larger than 0 GiB"), ("DEADLINE", -1.0, "not complete")]
)
def test_a_download_that_is_too_large_or_takes_too_long_ends(served, monkeypatch, tmp_path, name, value, says):
    monkeypatch.setattr(downloads, name, value)
    with pytest.raises(RowError, match=says):
        read()
    assert not kept(tmp_path)


def test_a_damaged_file_of_the_cache_is_fetched_again_and_other_bytes_than_announced_are_refused(served, tmp_path):
    first = read()
    (file,) = kept(tmp_path)
    file.write_bytes(ROWS[:-1] + b"!")
    assert read() == first
    assert file.read_bytes() == ROWS
    file.unlink()
    os.mkfifo(file)
    assert read() == first


def test_the_endpoint_of_the_environment_is_asked(served, tmp_path):
    script = (
        "from tercet import hub; from tercet.rows import Source; "
        "print(len(hub.records([Source('hf:me/rows/data/table.csv')], {})))"
    )
    settings = {"HF_ENDPOINT": served.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | settings, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("9000\n", "")
