"""Networks that write into what autograd keeps: their gradients are those of the same network without such writes."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gcfg_pack.gcfg.host.training.models.gradients import checkpointed, differentiated
from harness.sampling import relative


class Block(nn.Module):
    def __init__(self, in_place):
        super().__init__()
        self.one, self.two, self.in_place = nn.Linear(8, 8), nn.Linear(8, 8), in_place

    def forward(self, x):
        if not self.in_place:
            x = x + self.one(F.rms_norm(x, (8,)))
            y = torch.cat([x[:, :4] * x[:, 4:].exp(), x[:, 4:]], dim=1)
            return y + y * self.two(y)
        x += self.one(F.rms_norm(x, (8,)))
        x[:, :4].mul_(x[:, 4:].exp())
        return x.addcmul_(x.clone(), self.two(x))


def gradients(in_place, again=False, context=None):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 8), Block(in_place), Block(in_place))
    for block in network[1:] if again else ():
        checkpointed(block)
    with context or torch.enable_grad():
        loss = network(torch.randn(3, 8)).square().sum()
    loss.backward()
    return [loss.detach(), *(parameter.grad for parameter in network.parameters())]


@pytest.mark.parametrize("again", [False, True], ids=["kept", "computed again"])
def test_writes_in_place_change_no_gradient(again):
    expected = gradients(False)
    found = gradients(True, again, differentiated())
    assert all(relative(a, b) < 1e-6 for a, b in zip(found[1:], expected[1:], strict=True))


def test_torch_alone_refuses_them():
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradients(True)


def test_only_what_is_written_is_copied():
    copies, before = [], torch.Tensor.clone
    x = torch.randn(3, 8, requires_grad=True)
    with pytest.MonkeyPatch.context() as patch, differentiated():
        patch.setattr(torch.Tensor, "clone", lambda tensor: copies.append(tensor.shape) or before(tensor))
        y = x * 2.0
        z = y.exp() * y
        y.add_(1.0)
        y.add_(1.0)  # what was kept has a copy by now
    z.sum().backward()
    assert copies == [(3, 8)] * len(copies) and len(copies) <= 2
    assert torch.allclose(x.grad, 2.0 * ((2.0 * x).exp() * (1.0 + 2.0 * x)).detach(), rtol=1e-5)
