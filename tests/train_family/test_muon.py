"""Muon in batches: the updates of torch's own, matrix by matrix."""

import copy

import torch

from examples.train_family.muon import BatchedMuon


def test_it_updates_as_torch_does():
    torch.manual_seed(0)
    shapes = [(12, 20), (20, 12), (12, 20), (16, 16)]
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = copy.deepcopy(ours)
    optimizers = [BatchedMuon(ours, lr=0.02, weight_decay=0.1), torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1)]
    for _ in range(4):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn_like(mine)
            other.grad = mine.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine - other).abs().max() < 2e-3  # of updates of about 0.08 in all: bfloat16 rounds in another order


def test_its_state_can_be_put_away_and_taken_up_again():
    torch.manual_seed(0)
    first = [torch.nn.Parameter(torch.randn(4, 6)) for _ in range(2)]
    gradients = [[torch.randn(4, 6) for _ in first] for _ in range(2)]

    def step(matrices, optimizer, number):
        for matrix, gradient in zip(matrices, gradients[number], strict=True):
            matrix.grad = gradient.clone()
        optimizer.step()

    optimizer = BatchedMuon(first, lr=0.1)
    step(first, optimizer, 0)
    second = copy.deepcopy(first)
    restored = BatchedMuon(second, lr=0.1)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step(first, optimizer, 1)
    step(second, restored, 1)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
