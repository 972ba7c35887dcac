"""Who may ask a server of ours, by the head of a request alone."""

from __future__ import annotations

import pytest

from tercet.models.access import Access, AccessError, access, is_loopback

HOST = ("Host", "localhost:8000")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([HOST, ("Authorization", "Bearer k")], 0),
        ([("Host", "10.0.0.7:8000"), ("Authorization", "Bearer k")], 0),
        ([("HOST", "[::1]"), ("authorization", "Bearer k")], 0),
        ([HOST, ("Origin", "http://localhost:8000"), ("Authorization", "Bearer k")], 0),
        ([("Host", "a.example"), ("Origin", "https://A.example"), ("Authorization", "Bearer k")], 0),
        ([("Host", "b.example"), ("Authorization", "Bearer k")], 421),
        ([HOST, HOST, ("Authorization", "Bearer k")], 421),
        ([("Authorization", "Bearer k")], 421),
        ([HOST, ("Origin", "http://localhost:8001"), ("Authorization", "Bearer k")], 403),
        ([HOST, ("Origin", "null"), ("Authorization", "Bearer k")], 403),
        ([HOST], 401),
        ([HOST, ("Authorization", "Bearer kk")], 401),
        ([HOST, ("Authorization", "Bearer k"), ("Authorization", "Bearer k")], 401),
        ([HOST, ("X", "x" * 20_000)], 431),
    ],
)
def test_names_pages_keys_and_length_decide(headers, status):
    refusal = Access("k", ("a.example",)).refusal(headers, "10.0.0.7")
    assert (refusal[0] if refusal else 0) == status


def test_without_a_key_only_this_machine_is_served():
    for host in ("127.0.0.1", "127.0.0.2", "::1", "localhost"):
        assert is_loopback(host)
        assert access(host, [], "").refusal([HOST], "127.0.0.1") is None
    for host in ("0.0.0.0", "::", "192.168.0.1", "a.example"):
        with pytest.raises(AccessError, match=r"set a key in TERCET_API_KEY or --key-file FILE"):
            access(host, [], "")
        assert access(host, [], "k").key == "k"
