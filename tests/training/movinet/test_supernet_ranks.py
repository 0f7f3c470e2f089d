"""Two processes train one supernet, each with members of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import contextlib, json, sys
import torch
import torch.distributed as dist
from training.core.config import DataConfig
from training.core.system import ClipBatch
from training.layers.sync_batchnorm import convert_sync_batchnorm
from training.movinet.supernet_system import SupernetConfig, SupernetSystem

rank, meeting, values, data = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]), json.loads(sys.argv[4])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
torch.manual_seed(0)
system = SupernetSystem(SupernetConfig.model_validate(values), DataConfig.model_validate(data), ("a", "b", "c"))
convert_sync_batchnorm(system)  # as the runner does: members must not wait for one another
wrapped = torch.nn.parallel.DistributedDataParallel(system)
optimizer = torch.optim.SGD(system.parameters(), lr=0.05, momentum=0.9)
clips = ClipBatch(
    torch.randn(3, 3, 4, 16, 16), torch.arange(3), ("0", "1", "2"), torch.arange(3),
    torch.ones(3, dtype=torch.bool), torch.zeros(3, 4), torch.zeros(3, dtype=torch.bool),
)

class Context:
    system = wrapped
    autocast = contextlib.nullcontext
    def backward(self, loss):
        loss.backward()

for step in range(5):
    torch.manual_seed(10 * step + rank)
    system.on_step(step, 12)
    system.update(clips, Context())
    optimizer.step()
    optimizer.zero_grad()
floats = [t.detach().double().sum().item() for t in system.state_dict().values() if t.is_floating_point()]
members = [repr(choice.layout.entry()) for choice in system.supernet._members]
print(json.dumps({"state": floats, "members": members}))
dist.destroy_process_group()
"""

DATA = {
    "num_frames": 4, "sampling": "dense", "batch_size": 3,
    "transform": {"size": 16, "train_crop": "random", "eval_short_side": 16, "flip": False, "normalise": "unit"},
}  # fmt: skip


@pytest.mark.slow
def test_processes_train_different_members_of_one_supernet(small_space, tmp_path):
    values = {
        "space": small_space.config.model_dump(), "variant": "stream", "dropout": 0.2, "drop_path": 0.1,
        "norm_eps": 1e-3, "norm_momentum": 0.1, "label_smoothing": 0.1, "warmup": 0.25, "sandwich": False,
        "near": None,
    }  # fmt: skip
    arguments = [str(tmp_path / "meeting"), json.dumps(values), json.dumps(DATA)]
    root = Path(__file__).parents[3]
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", SCRIPT, str(rank), *arguments],
            stdout=subprocess.PIPE,
            text=True,
            cwd=root,
        )
        for rank in range(2)
    ]
    results = []
    for process in ranks:
        output, _ = process.communicate(timeout=80)
        assert process.returncode == 0
        results.append(json.loads(output.splitlines()[-1]))
    assert results[0]["state"] == results[1]["state"]
    assert results[0]["members"] != results[1]["members"]
