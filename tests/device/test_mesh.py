"""What cards can do, by the names torch gives them."""

from __future__ import annotations

import pytest
import torch

from tercet.device.mesh import PEAKS, Mesh, peak_flops, peak_of

NAMES = {
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H200": 989e12,
    "NVIDIA GH200 480GB": 989e12,
    "NVIDIA H20": 148e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA GB200": 2500e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA A10": 125e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40": 181e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA GeForce RTX 5090": 209.5e12,
    "NVIDIA GeForce RTX 4090": 165.2e12,
    "NVIDIA GeForce RTX 4090 D": 147.1e12,
    "NVIDIA RTX 6000 Ada Generation": 364.2e12,
    "NVIDIA RTX PRO 6000 Blackwell Workstation Edition": 503.8e12,
    "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition": 438.9e12,
    "AMD Instinct MI300X": 1307.4e12,
    "AMD Instinct MI325X": 1307.4e12,
}


@pytest.mark.parametrize("name", NAMES)
def test_a_card_is_known_by_the_name_torch_gives_it(name):
    assert peak_of(name) == NAMES[name]


@pytest.mark.parametrize(
    "name",
    ["NVIDIA A10G", "Tesla T4", "NVIDIA GeForce RTX 5090 Laptop GPU", "NVIDIA A100-SXM4-80GB MIG 1g.10gb", "cpu"],
)
def test_of_what_is_not_in_the_table_nothing_is_claimed(name):
    assert peak_of(name) is None


def test_every_entry_is_found_by_itself():
    assert all(peak_of(f"NVIDIA {card}") == peak for card, peak in PEAKS.items())


def test_a_processor_has_no_peak_here():
    assert peak_flops(torch.device("cpu")) is None


def test_alone_a_rank_is_the_sum_of_all():
    values = torch.tensor([1.0, 2.0], dtype=torch.float64)
    assert Mesh().add(values) is values
    assert Mesh().sum([1.0, 2.0]) == [1.0, 2.0]
