"""The same networks in idiomatic PyTorch, to be timed beside ours: EfficientNet-Lite0, ResNet-50, and the two looks.

The same parameters give the same losses and gradients as ours, which `tests/benchmarks` shows; the constants are those
of `configs/cub50_lite0.py`. Images are channels-last tensors `[B, 3, H, W]`. Both looks share running statistics here;
ours keep a set for each, which is as much work.
"""

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.nn import functional

from c2f_jax.models.efficientnet_lite import LITE0_STAGES


class _SameConv(nn.Conv2d):
    """TensorFlow's SAME padding, as timm's `Conv2dSame` has it: zeros by an explicit pad where they are uneven."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pads = []
        for size, kernel, stride in zip(x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        if pads[0] == pads[1] == pads[2] == pads[3]:
            return functional.conv2d(x, self.weight, self.bias, self.stride, pads[0], 1, self.groups)
        return functional.conv2d(functional.pad(x, pads), self.weight, self.bias, self.stride, 0, 1, self.groups)


def _conv_norm(c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1, act: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = [_SameConv(c_in, c_out, kernel, stride, groups=groups, bias=False)]
    layers.append(nn.BatchNorm2d(c_out, eps=1e-3))
    return nn.Sequential(*layers, *([nn.ReLU6(inplace=True)] if act else []))


class _InvertedResidual(nn.Module):
    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        wide = c_in * expansion
        self.layers = nn.Sequential(
            *([_conv_norm(c_in, wide, 1)] if expansion > 1 else []),
            _conv_norm(wide, wide, kernel, stride, groups=wide),
            _conv_norm(wide, c_out, 1, act=False),
        )
        self.shortcut = stride == 1 and c_in == c_out and expansion > 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x) if self.shortcut else self.layers(x)


def efficientnet_lite0(output_stride: int = 32) -> nn.Sequential:
    """Feature extractor, 1280 channels."""
    layers, channels, reached = [_conv_norm(3, 32, 3, 2)], 32, 2
    for expansion, features, count, stride, kernel in LITE0_STAGES:
        stride = stride if reached < output_stride else 1
        reached *= stride
        for index in range(count):
            layers.append(_InvertedResidual(channels, features, kernel, stride if index == 0 else 1, expansion))
            channels = features
    return nn.Sequential(*layers, _conv_norm(channels, 1280, 1))


class _Bottleneck(nn.Module):
    def __init__(self, c_in: int, width: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(c_in, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.downsample = None
        if stride != 1 or c_in != 4 * width:
            self.downsample = nn.Sequential(
                nn.Conv2d(c_in, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        y = functional.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        return functional.relu(y + (x if self.downsample is None else self.downsample(x)), inplace=True)


def resnet50() -> nn.Sequential:
    """Feature extractor as torchvision's, 2048 channels."""
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    blocks, channels = [], 64
    for group, (width, count) in enumerate(zip((64, 128, 256, 512), (3, 4, 6, 3), strict=True)):
        for index in range(count):
            blocks.append(_Bottleneck(channels, width, 2 if index == 0 and group > 0 else 1))
            channels = 4 * width
    return nn.Sequential(*stem, *blocks)


class Pooled(nn.Module):
    """Backbone, global average pooling, linear."""

    def __init__(self, backbone: nn.Module, channels: int, num_classes: int):
        super().__init__()
        self.backbone, self.head = backbone, nn.Linear(channels, num_classes)

    def forward(self, view: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(view).mean((2, 3)))


class Attentive(nn.Module):
    """Backbone, attention and bilinear attention pooling; the inverse mapping on its own: `AttentionNetwork`."""

    def __init__(self, backbone: nn.Module, channels: int, num_classes: int, num_maps: int):
        super().__init__()
        self.backbone = backbone
        self.attention = nn.Sequential(nn.Conv2d(channels, num_maps, 1, bias=False), nn.BatchNorm2d(num_maps))
        self.head = nn.Linear(num_maps * channels, num_classes)
        self.project = nn.Conv2d(channels, 64, 1, bias=False)
        self.mix, self.score = nn.Conv2d(num_maps + 64, 16, 1), nn.Conv2d(16, 1, 3, padding=1)
        self.kappa = nn.Parameter(torch.tensor(1.55))

    def forward(self, view: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """view [B, 3, S, S] -> logits [B, C], pooled [B, M * N], features [B, N, h, w], attention maps [B, M, h, w]."""
        features = self.backbone(view)
        maps = functional.relu(self.attention(features))
        phi = torch.einsum("bmhw,bnhw->bmn", maps, features).flatten(1) / maps[0, 0].numel()
        psi = phi / ((phi.abs() + 1e-3).sqrt() + 1e-3**0.5)
        pooled = psi * (psi.square().sum(1, keepdim=True) + 1e-8).rsqrt()
        return self.head(20.0 * pooled), pooled, features, maps

    def region(self, features: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
        """features [B, N, h, w], attention maps [B, M, h, w] -> box [B, 4]. The last look needs none."""
        mean = maps.mean(1, keepdim=True)
        mixed = functional.relu(self.mix(torch.cat([maps, mean * self.project(features)], 1)))
        peak = mean.detach().amax((2, 3), keepdim=True)
        q = ((mean + 1e-4 * peak + 1e-8).log() + self.score(mixed)).flatten(1).softmax(1).view_as(mean)[:, 0]
        kappa = functional.softplus(self.kappa)
        lows, highs = [], []
        for axis in (2, 1):
            marginal = q.sum(axis)
            cells = marginal.shape[1]
            centres = (torch.arange(cells) + 0.5) / cells
            middle = (marginal * centres).sum(1)
            variance = (marginal * (centres - middle[:, None]).square()).sum(1) + 1 / (12 * cells**2)
            wide = 2 * kappa * variance.sqrt()
            side = 0.3 + 0.05 * (functional.softplus((wide - 0.3) / 0.05) - functional.softplus((wide - 1.0) / 0.05))
            middle = middle.clamp(side / 2, 1 - side / 2)
            lows.append(middle - side / 2)
            highs.append(middle + side / 2)
        return torch.stack(lows + highs, 1)


def crop(images: torch.Tensor, boxes: torch.Tensor, size: int) -> torch.Tensor:
    """images [B, C, H, W], boxes [B, 4] (ymin, xmin, ymax, xmax) -> [B, C, size, size]; antialiased as ours is."""
    return _crop_by_averages(images, boxes, size) if images.shape[2] > size else _crop_by_two_taps(images, boxes, size)


def _crop_by_two_taps(images: torch.Tensor, boxes: torch.Tensor, size: int) -> torch.Tensor:
    ymin, xmin, ymax, xmax = boxes.unbind(-1)
    zero = torch.zeros_like(ymin)
    rows = [xmax - xmin, zero, xmin + xmax - 1.0, zero, ymax - ymin, ymin + ymax - 1.0]
    theta = torch.stack(rows, -1).reshape(-1, 2, 3)
    grid = functional.affine_grid(theta, [*images.shape[:2], size, size], align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _crop_by_averages(images: torch.Tensor, boxes: torch.Tensor, size: int) -> torch.Tensor:
    """Triangles as wide as an output pixel covers, which `grid_sample` does not have; boxes inside the image."""
    ymin, xmin, ymax, xmax = boxes.unbind(-1)
    rows = _weighted_rows(images.permute(0, 2, 3, 1), ymin, ymax, size)
    views = _weighted_rows(rows.transpose(1, 2), xmin, xmax, size)
    return views.permute(0, 3, 2, 1).contiguous(memory_format=torch.channels_last)


def _weighted_rows(images: torch.Tensor, low: torch.Tensor, high: torch.Tensor, size: int) -> torch.Tensor:
    """images [B, H, W, C], low and high [B] in fractions of H -> [B, size, W, C].

    By `embedding_bag`, the fastest of the exact ways on CPU: products with a matrix of weights took twice as long.
    """
    count, pixels = images.shape[:2]
    step = (high - low)[:, None] * (pixels / size)
    positions = low[:, None] * pixels + step * (torch.arange(size) + 0.5) - 0.5
    radius = step.abs().clamp(min=1.0)
    taps = torch.arange(1, math.ceil(2 * pixels / size) + 1)
    index = (positions - radius).detach().floor().long()[..., None] + taps
    weights = functional.relu(1.0 - (positions[..., None] - index).abs() / radius[..., None])
    weights = weights * ((index >= 0) & (index < pixels))
    weights = weights / weights.sum(-1, keepdim=True)
    index = index.clamp(0, pixels - 1) + pixels * torch.arange(count)[:, None, None]
    rows = functional.embedding_bag(
        index.flatten(0, 1), images.reshape(count * pixels, -1), mode="sum", per_sample_weights=weights.flatten(0, 1)
    )
    return rows.view(count, size, *images.shape[2:])


def random_boxes(count: int, min_side: float, max_side: float) -> torch.Tensor:
    """Squares anywhere with sides U(min_side, max_side), half of them mirrored: [count, 4]."""
    side = min_side + (max_side - min_side) * torch.rand(count, 1)
    corner = torch.rand(count, 2) * (1.0 - side)
    boxes = torch.cat([corner, corner + side], 1)
    return torch.where(torch.rand(count, 1) < 0.5, boxes[:, [0, 3, 2, 1]], boxes)


def baseline_step(
    model: Pooled,
    optimizer: torch.optim.Optimizer,
    *,
    view_size: int,
    min_side: float,
    max_side: float,
    clip_norm: float,
) -> Callable[[torch.Tensor, torch.Tensor], float]:
    """The baseline's training step: a random crop, cross entropy, clipped SGD.

    Returns:
        (raw uint8 [B, 3, R, R], labels [B]) -> loss.
    """

    def step(raw: torch.Tensor, labels: torch.Tensor) -> float:
        images = raw.to(torch.get_default_dtype())
        view = (crop(images, random_boxes(len(raw), min_side, max_side), view_size) - 127.0) / 128.0
        return _descend(model, optimizer, functional.cross_entropy(model(view), labels), clip_norm)

    return step


def _descend(model: nn.Module, optimizer: torch.optim.Optimizer, loss: torch.Tensor, clip_norm: float) -> float:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    optimizer.step()
    return loss.item()


def fine_step(
    model: Attentive,
    optimizer: torch.optim.Optimizer,
    *,
    view_size: int,
    min_side: float,
    max_side: float,
    clip_norm: float,
    box_gradient_scale: float,
) -> Callable[[torch.Tensor, torch.Tensor], float]:
    """The fine stage's training step: two looks, both losses and the centre loss, clipped SGD, centres.

    Returns:
        (raw uint8 [B, 3, R, R], labels [B]) -> loss.
    """
    centers = torch.zeros(model.head.out_features, model.head.in_features)

    def step(raw: torch.Tensor, labels: torch.Tensor) -> float:
        images = raw.to(torch.get_default_dtype())
        outer = random_boxes(len(raw), min_side, max_side)
        logits, pooled, features, maps = model((crop(images, outer, view_size) - 127.0) / 128.0)
        box = model.region(features, maps)
        box.register_hook(lambda gradient: box_gradient_scale * gradient)
        span = outer[:, 2:] - outer[:, :2]
        inner = torch.cat([outer[:, :2] + box[:, :2] * span, outer[:, :2] + box[:, 2:] * span], 1)
        fine_logits, *_ = model((crop(images, inner, view_size) - 127.0) / 128.0)
        targets = functional.normalize(centers[labels], dim=1)
        center_loss = (pooled - targets).square().sum(1).mean()
        cross_entropies = [functional.cross_entropy(values, labels) for values in (logits, fine_logits)]
        loss = sum(cross_entropies) / 2 + center_loss
        value = _descend(model, optimizer, loss, clip_norm)
        centers.index_add_(0, labels, 0.05 * (pooled.detach() - targets))
        return value

    return step


def sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Nesterov momentum, and decay on arrays of two and more axes, as the configs have it."""
    arrays, others = [], []
    for parameter in parameters:
        (arrays if parameter.ndim > 1 else others).append(parameter)
    groups = [{"params": arrays, "weight_decay": 1e-4}, {"params": others}]
    return torch.optim.SGD(groups, lr=1e-2, momentum=0.9, nesterov=True)
