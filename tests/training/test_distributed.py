"""DistributedDataParallel with gloo and two processes: eager's gradients, and one cold kernel cache for both."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

WORKER = """
import copy, sys, warnings, torch, torch.distributed as dist, fusec
import torch.nn.functional as F
from torch import nn
from fusec.errors import CacheWarning

rank, path = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
warnings.simplefilter("error", CacheWarning)
dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
OPTIONS = {"strict": True, "workers": 0}


class Net(nn.Module):
    def __init__(self, unused):
        super().__init__()
        self.a, self.norm, self.b, self.c = nn.Linear(8, 528), nn.LayerNorm(528), nn.Linear(528, 528), nn.Linear(528, 8)
        self.unused = nn.Linear(4, 4) if unused else None

    def forward(self, x):
        return self.c(F.gelu(self.b(F.gelu(self.norm(self.a(x))))))


def compare(unused, outside):
    torch.manual_seed(0)
    fusec.reset()
    net = Net(unused)
    other = copy.deepcopy(net)
    settings = {"find_unused_parameters": unused, "bucket_cap_mb": 1}  # less than b.weight
    parallel = nn.parallel.DistributedDataParallel
    eager = parallel(other, **settings)
    if outside:
        ours = fusec.compile(parallel(net, **settings), options=OPTIONS)
    else:
        ours = parallel(fusec.compile(net, options=OPTIONS), **settings)
    draws = torch.Generator().manual_seed(rank)
    for step in range(2):
        x = torch.randn(5, 8, generator=draws)
        for call in (ours, eager):
            call(x).square().mean().backward()
        for p, q in zip(net.parameters(), other.parameters()):
            assert (p.grad is None) == (q.grad is None)
            if p.grad is not None:
                torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6)
    mean = net.b.weight.grad.clone()
    dist.all_reduce(mean)
    torch.testing.assert_close(mean / 2, net.b.weight.grad)  # both processes hold the same
    counted = fusec.stats()
    assert counted["kernels_launched"] and not counted["fallbacks"], counted
    return counted["graphs"]


assert compare(False, True) > 2  # a forward and a backward graph a bucket: Dynamo cuts where one is full
assert compare(True, False) > 2
dist.destroy_process_group()
"""


def test_two_processes_have_eagers_gradients_and_share_a_cold_cache(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "FUSEC_CACHE_DIR": str(tmp_path / "cache"),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    command = [sys.executable, "-W", "ignore", "-c", WORKER]
    ranks = [subprocess.Popen([*command, str(r), str(tmp_path / "store")], env=environment) for r in range(2)]
    try:
        assert [rank.wait(timeout=200) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
    kept = [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]
    assert kept and not [p for p in kept if "tmp" in p.name]
