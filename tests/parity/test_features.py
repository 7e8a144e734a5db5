"""VGG16, LPIPS, FID's Inception-v3 and I3D beside the same networks in torch, on random weights.

torchvision brings VGG16 and Inception-v3, the latter patched here as FID's differs from it; LPIPS and I3D are short
modules of torch with the names and the arithmetic of the published ones.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torchvision.models import inception

from tests.parity.peers import images, like, load, normal, to_torch, worst
from transformer_zoo.models.features.i3d import I3D, MIXED
from transformer_zoo.models.features.inception_v3 import InceptionV3
from transformer_zoo.models.features.vgg16 import LPIPS, VGG16

RNG = np.random.default_rng(0)


def scaled(model):
    """Random weights that keep the size of what passes through them; statistics of norms too."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("num_batches_tracked"):
                continue
            noise = torch.tensor(RNG.standard_normal(tensor.shape), dtype=tensor.dtype)
            if tensor.ndim > 1:
                tensor.copy_(noise * (2 / tensor[0].numel()) ** 0.5)
            elif name.endswith(("running_var", "bn.weight", "batch3d.weight")):
                tensor.copy_(1 + 0.2 * noise.abs())
            else:
                tensor.copy_(0.1 * noise)
    return model.eval()


def compared(key, layout, network, model, pixels, method="__call__"):
    variables, _ = load(key, layout, network, model)
    return jax.jit(lambda variables, pixels: network.apply(variables, pixels, method=method))(variables, pixels)


def test_vgg16():
    model = scaled(torchvision.models.vgg16(weights=None)).features
    holder = torch.nn.Module()
    holder.features = model
    network = like("vgg16", "torchvision", VGG16, holder)
    pixels = images(2, 32, 48)
    last, aux = compared("vgg16", "torchvision", network, holder, pixels)
    pairs, x = {}, to_torch(pixels)
    places = [3, 8, 15, 22, 29]
    for number, layer in enumerate(model):
        x = layer(x)
        if number in places:
            level = aux["levels"][places.index(number)]
            pairs[f"level{number}"] = (x.detach().permute(0, 2, 3, 1).numpy(), level)
    pairs["last"] = (x.detach().permute(0, 2, 3, 1).numpy(), last)
    assert worst(pairs) <= 1e-4


class TorchLPIPS(torch.nn.Module):
    """The state and the distance of the `lpips` package, version 0.1."""

    def __init__(self):
        super().__init__()
        features = torchvision.models.vgg16(weights=None).features
        self.scaling_layer = torch.nn.Module()
        self.scaling_layer.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[None, :, None, None])
        self.scaling_layer.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[None, :, None, None])
        self.net = torch.nn.Module()
        ends = (0, 4, 9, 16, 23, 30)
        for scale in range(1, 6):
            part = torch.nn.Sequential()
            for number in range(ends[scale - 1], ends[scale]):
                part.add_module(str(number), features[number])
            self.net.add_module(f"slice{scale}", part)
        heads = []
        for scale, width in enumerate((64, 128, 256, 512, 512)):
            head = torch.nn.Module()
            head.model = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Conv2d(width, 1, 1, bias=False))
            self.add_module(f"lin{scale}", head)
            heads.append(head)
        self.lins = torch.nn.ModuleList(heads)

    def forward(self, first, second):
        total = 0
        x, y = ((2 * one - 1 - self.scaling_layer.shift) / self.scaling_layer.scale for one in (first, second))
        for scale, head in enumerate(self.lins, start=1):
            part = getattr(self.net, f"slice{scale}")
            x, y = part(x), part(y)
            unit = [one / (one.pow(2).sum(1, keepdim=True).sqrt() + 1e-10) for one in (x, y)]
            total = total + head.model((unit[0] - unit[1]) ** 2).mean([2, 3])[:, 0]
        return total


def test_lpips_and_its_gradient():
    buffers = ("scaling_layer.shift", "scaling_layer.scale")
    kept = TorchLPIPS().state_dict()
    model = scaled(TorchLPIPS())
    model.load_state_dict({name: kept[name] for name in buffers}, strict=False)
    network = like("lpips", "package", LPIPS, model)
    variables, _ = load("lpips", "package", network, model)
    first, second = RNG.random((2, 2, 32, 32, 3)).astype(np.float32)

    @jax.jit
    def run(variables, first, second):
        def total(second):
            distance = network.apply(variables, first, second, method="distance")
            return distance.sum(), distance

        (_, distance), gradient = jax.value_and_grad(total, has_aux=True)(second)
        return distance, gradient

    distance, gradient = run(variables, first, second)
    other = to_torch(second).requires_grad_()
    theirs = model(to_torch(first), other)
    theirs.sum().backward()
    pairs = {"distance": (theirs.detach().numpy(), distance)}
    pairs["gradient"] = (other.grad.permute(0, 2, 3, 1).numpy(), gradient)
    assert worst(pairs) <= 1e-4


def fid_inception(monkeypatch):
    """torchvision's network with FID's pooling: means leave padding out, the last block takes largest values."""
    model = scaled(inception.inception_v3(weights=None, num_classes=1008, aux_logits=False, init_weights=False))
    model.transform_input = False
    plain = F.avg_pool2d

    def pool(x, kernel_size, stride=None, padding=0):
        return plain(x, kernel_size, stride, padding, count_include_pad=False)

    monkeypatch.setattr(inception.F, "avg_pool2d", pool)
    last = model.Mixed_7c

    def forward(x):
        monkeypatch.setattr(inception.F, "avg_pool2d", F.max_pool2d)
        return torch.cat(inception.InceptionE._forward(last, x), 1)

    last.forward = forward
    return model


def test_inception_v3_as_fid_has_it(monkeypatch):
    model = fid_inception(monkeypatch)
    network = like("inception_v3", "fid", InceptionV3, model, resize=107)
    pixels = RNG.random((2, 107, 107, 3)).astype(np.float32)
    logits, aux = compared("inception_v3", "fid", network, model, pixels)
    seen = {}
    model.avgpool.register_forward_hook(lambda module, given, found: seen.update(pooled=found[:, :, 0, 0]))
    with torch.no_grad():
        theirs = model((to_torch(pixels) * 255 - 128) / 128)
    pairs = {"logits": (theirs.numpy(), logits), "pooled": (seen["pooled"].numpy(), aux["pooled"])}
    assert worst(pairs) <= 1e-4
    parts = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("fc."))
    assert parts == 21_785_568


def same(x, kernel, stride):
    """TensorFlow's padding, zeros."""
    pads = []
    for size, k, s in list(zip(x.shape[2:], kernel, stride))[::-1]:
        whole = max((-(-size // s) - 1) * s + k - size, 0)
        pads += [whole // 2, whole - whole // 2]
    return F.pad(x, pads)


class TorchUnit(torch.nn.Module):
    def __init__(self, inputs, width, kernel=(1, 1, 1), stride=(1, 1, 1)):
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.conv3d = torch.nn.Conv3d(inputs, width, kernel, stride, bias=False)
        self.bn = torch.nn.BatchNorm3d(width, eps=1e-3)

    def forward(self, x):
        return F.relu(self.bn(self.conv3d(same(x, self.kernel, self.stride))))


class TorchMixed(torch.nn.Module):
    def __init__(self, inputs, widths):
        super().__init__()
        self.b0 = TorchUnit(inputs, widths[0])
        self.b1a, self.b1b = TorchUnit(inputs, widths[1]), TorchUnit(widths[1], widths[2], (3, 3, 3))
        self.b2a, self.b2b = TorchUnit(inputs, widths[3]), TorchUnit(widths[3], widths[4], (3, 3, 3))
        self.b3b = TorchUnit(inputs, widths[5])

    def forward(self, x):
        largest = F.max_pool3d(same(x, (3, 3, 3), (1, 1, 1)), 3, 1)
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(largest)], 1)


class TorchI3D(torch.nn.Module):
    """`InceptionI3d` with the names of `pytorch_i3d`; `means` are its (2, 7, 7) at 224 pixels."""

    def __init__(self, classes, means):
        super().__init__()
        self.means = means
        self.Conv3d_1a_7x7 = TorchUnit(3, 64, (7, 7, 7), (2, 2, 2))
        self.Conv3d_2b_1x1 = TorchUnit(64, 64)
        self.Conv3d_2c_3x3 = TorchUnit(64, 192, (3, 3, 3))
        width = 192
        for name, widths in MIXED.items():
            self.add_module(name.capitalize(), TorchMixed(width, widths))
            width = widths[0] + widths[2] + widths[4] + widths[5]
        self.logits = torch.nn.Module()
        self.logits.conv3d = torch.nn.Conv3d(1024, classes, 1)

    def forward(self, x):
        def pooled(x, kernel, stride):
            return F.max_pool3d(same(x, kernel, stride), kernel, stride)

        x = pooled(self.Conv3d_1a_7x7(x), (1, 3, 3), (1, 2, 2))
        x = pooled(self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x)), (1, 3, 3), (1, 2, 2))
        x = pooled(self.Mixed_3c(self.Mixed_3b(x)), (3, 3, 3), (2, 2, 2))
        for name in ("Mixed_4b", "Mixed_4c", "Mixed_4d", "Mixed_4e", "Mixed_4f"):
            x = getattr(self, name)(x)
        x = self.Mixed_5c(self.Mixed_5b(pooled(x, (2, 2, 2), (2, 2, 2))))
        x = F.avg_pool3d(x, self.means, 1)
        return x.mean((2, 3, 4)), self.logits.conv3d(x).squeeze(4).squeeze(3).mean(2)


@pytest.mark.parametrize("frames, side, means", [(21, 32, (2, 1, 1))])
def test_i3d(frames, side, means):
    model = scaled(TorchI3D(400, means))
    network = like("i3d", "pytorch_i3d", I3D, model, resize=side)
    clips = RNG.random((2, frames, side, side, 3)).astype(np.float32)
    logits, aux = compared("i3d", "pytorch_i3d", network, model, clips)
    with torch.no_grad():
        pooled, theirs = model(torch.from_numpy(2 * clips.transpose(0, 4, 1, 2, 3) - 1))
    assert worst({"logits": (theirs.numpy(), logits), "pooled": (pooled.numpy(), aux["pooled"])}) <= 1e-4


def test_pictures_are_resized_as_torch_does_where_the_corner_is_the_centre():
    """Enlarging by whole numbers, TensorFlow 1's places are torch's aligned corners of a longer row."""
    from transformer_zoo.layers.resizing import resize_from_corner

    pixels = normal(4, 1, 4, 5, 3)
    longer = np.concatenate([pixels, pixels[:, -1:]], axis=1)
    longer = np.concatenate([longer, longer[:, :, -1:]], axis=2)
    theirs = F.interpolate(to_torch(longer), (13, 16), mode="bilinear", align_corners=True)[:, :, :12, :15]
    ours = resize_from_corner(jnp.asarray(pixels), (12, 15))
    assert worst({"resized": (theirs.permute(0, 2, 3, 1).numpy(), ours)}) <= 1e-4
