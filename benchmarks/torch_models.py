"""The same networks in idiomatic PyTorch, to be timed beside ours: EfficientNet-Lite0, ResNet-50, and the two looks.

The same parameters give the same losses and gradients as ours, which `tests/benchmarks` shows; constants that are not
given are those of `configs/cub50_lite0.py`. Images are channels-last tensors `[B, 3, H, W]`. Both looks share running
statistics here; ours keep a set for each, which is as much work.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

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


def resnet50(counts: Sequence[int] = (3, 4, 6, 3)) -> nn.Sequential:
    """Feature extractor as torchvision's, 2048 channels. counts: blocks of each group."""
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    blocks, channels = [], 64
    for group, (width, count) in enumerate(zip((64, 128, 256, 512), counts, strict=True)):
        for index in range(count):
            blocks.append(_Bottleneck(channels, width, 2 if index == 0 and group > 0 else 1))
            channels = 4 * width
    return nn.Sequential(*stem, *blocks)


class Timms(nn.Module):
    """A network of timm's without its classifier (needs: pip install timm), as it comes from there."""

    def __init__(self, name: str):
        super().__init__()
        import timm

        self.network = timm.create_model(name, num_classes=0, global_pool="")

    def forward(self, view: torch.Tensor) -> torch.Tensor:
        """Feature maps [B, N, h, w]: of a vision transformer its patches."""
        features = self.network.forward_features(view)
        if features.ndim == 4:
            return features
        rows, columns = self.network.patch_embed.grid_size
        return features[:, self.network.num_prefix_tokens :].unflatten(1, (rows, columns)).permute(0, 3, 1, 2)


class Pooled(nn.Module):
    """Backbone, global average pooling, linear."""

    def __init__(self, backbone: nn.Module, channels: int, num_classes: int):
        super().__init__()
        self.backbone, self.head = backbone, nn.Linear(channels, num_classes)

    def forward(self, view: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(view).mean((2, 3)))


class Attentive(nn.Module):
    """Backbone, attention and bilinear attention pooling; the inverse mapping on its own: `AttentionNetwork`."""

    def __init__(
        self,
        backbone: nn.Module,
        channels: int,
        num_classes: int,
        num_maps: int,
        *,
        feature_scale: float = 20.0,
        kappa: float = 1.75,
        background: float = 0.0,
        detached: bool = False,
    ):
        """background: share of the mean map's mean that counts as none; detached: no gradient through the box."""
        super().__init__()
        self.backbone = backbone
        self.attention = nn.Sequential(nn.Conv2d(channels, num_maps, 1, bias=False), nn.BatchNorm2d(num_maps))
        self.head = nn.Linear(num_maps * channels, num_classes)
        self.project = nn.Conv2d(channels, 64, 1, bias=False)
        self.mix, self.score = nn.Conv2d(num_maps + 64, 16, 1), nn.Conv2d(16, 1, 3, padding=1)
        self.kappa = nn.Parameter(torch.tensor(math.log(math.expm1(kappa))))
        self.feature_scale, self.background, self.detached = feature_scale, background, detached

    def forward(self, view: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """view [B, 3, S, S] -> logits [B, C], pooled [B, M * N], features [B, N, h, w], attention maps [B, M, h, w]."""
        features = self.backbone(view)
        maps = functional.relu(self.attention(features))
        # Pooled and classified in full width, as ours are, whatever the convolutions compute in.
        with torch.autocast(view.device.type, enabled=False):
            wide = torch.promote_types(features.dtype, torch.float32)
            phi = torch.einsum("bmhw,bnhw->bmn", maps.to(wide), features.to(wide)).flatten(1) / maps[0, 0].numel()
            psi = phi / ((phi.abs() + 1e-3).sqrt() + 1e-3**0.5)
            pooled = psi * (psi.square().sum(1, keepdim=True) + 1e-8).rsqrt()
            return self.head(self.feature_scale * pooled), pooled, features, maps

    def region(self, features: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
        """features [B, N, h, w], attention maps [B, M, h, w] -> box [B, 4]. The last look needs none."""
        if self.detached:
            features, maps = features.detach(), maps.detach()
        mean = maps.mean(1, keepdim=True)
        mixed = functional.relu(self.mix(torch.cat([maps, mean * self.project(features)], 1)))
        score = self.score(mixed)
        mean = mean.to(torch.promote_types(mean.dtype, torch.float32))
        constant = mean.detach()
        peak = constant.amax((2, 3), keepdim=True)
        above = functional.relu(mean - self.background * constant.mean((2, 3), keepdim=True))
        q = ((above + 1e-4 * peak + 1e-8).log() + score).flatten(1).softmax(1).view_as(mean)[:, 0]
        kappa = functional.softplus(self.kappa)
        lows, highs = [], []
        for axis in (2, 1):
            marginal = q.sum(axis)
            cells = marginal.shape[1]
            centres = (torch.arange(cells, device=q.device) + 0.5) / cells
            middle = (marginal * centres).sum(1)
            variance = (marginal * (centres - middle[:, None]).square()).sum(1) + 1 / (12 * cells**2)
            wide = 2 * kappa * variance.sqrt()
            side = 0.3 + 0.05 * (functional.softplus((wide - 0.3) / 0.05) - functional.softplus((wide - 1.0) / 0.05))
            middle = middle.clamp(side / 2, 1 - side / 2)
            lows.append(middle - side / 2)
            highs.append(middle + side / 2)
        box = torch.stack(lows + highs, 1)
        return box.detach() if self.detached else box


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
    """images [B, H, W, C], low and high [B] in fractions of H -> [B, size, W, C]."""
    by = _rows_by_bags if images.device.type == "cpu" else _rows_by_products
    return by(images, low, high, size)


def _positions(low: torch.Tensor, high: torch.Tensor, pixels: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the outputs look [B, size], and how far to either side [B, 1], in pixels."""
    step = (high - low)[:, None] * (pixels / size)
    outputs = torch.arange(size, device=low.device)
    return low[:, None] * pixels + step * (outputs + 0.5) - 0.5, step.abs().clamp(min=1.0)


def _rows_by_bags(images: torch.Tensor, low: torch.Tensor, high: torch.Tensor, size: int) -> torch.Tensor:
    """The fastest of the exact ways on CPU: products with a matrix of weights took twice as long."""
    count, pixels = images.shape[:2]
    positions, radius = _positions(low, high, pixels, size)
    taps = torch.arange(1, math.ceil(2 * pixels / size) + 1, device=images.device)
    index = (positions - radius).detach().floor().long()[..., None] + taps
    weights = functional.relu(1.0 - (positions[..., None] - index).abs() / radius[..., None])
    weights = weights * ((index >= 0) & (index < pixels))
    weights = weights / weights.sum(-1, keepdims=True)
    index = index.clamp(0, pixels - 1) + pixels * torch.arange(count, device=images.device)[:, None, None]
    rows = functional.embedding_bag(
        index.flatten(0, 1), images.reshape(count * pixels, -1), mode="sum", per_sample_weights=weights.flatten(0, 1)
    )
    return rows.view(count, size, *images.shape[2:])


def _rows_by_products(images: torch.Tensor, low: torch.Tensor, high: torch.Tensor, size: int) -> torch.Tensor:
    """A matrix of weights for each image: what an accelerator is made for."""
    pixels = images.shape[1]
    positions, radius = _positions(low, high, pixels, size)
    places = torch.arange(pixels, device=images.device)
    weights = functional.relu(1.0 - (positions[..., None] - places).abs() / radius[..., None])
    weights = weights / weights.sum(-1, keepdims=True)
    return torch.einsum("boh,bhwc->bowc", weights, images)


class Views(NamedTuple):
    """How a training view is cut and shown."""

    view_size: int
    min_side: float
    max_side: float
    mean: Sequence[float] = (127.0, 127.0, 127.0)
    std: Sequence[float] = (128.0, 128.0, 128.0)
    brightness: float = 0.0
    saturation: tuple[float, float] = (1.0, 1.0)

    def prepare(self, views: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        """Views [B, 3, S, S] of values 0..255 -> what the network takes. draws: U(0, 1) [B, 2], the same each look."""
        if self.brightness or self.saturation != (1.0, 1.0):
            shift, factor = draws[:, :, None, None, None].unbind(1)
            grey = views.mean(1, keepdim=True)
            low, high = self.saturation
            views = grey + (low + (high - low) * factor) * (views - grey)
            views = (views + 255.0 * self.brightness * (2.0 * shift - 1.0)).clamp(0.0, 255.0)
        mean, std = (views.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (views - mean) / std


def random_boxes(count: int, min_side: float, max_side: float, device: torch.device | str = "cpu") -> torch.Tensor:
    """Squares anywhere with sides U(min_side, max_side), half of them mirrored: [count, 4]."""
    side = min_side + (max_side - min_side) * torch.rand(count, 1, device=device)
    corner = torch.rand(count, 2, device=device) * (1.0 - side)
    boxes = torch.cat([corner, corner + side], 1)
    return torch.where(torch.rand(count, 1, device=device) < 0.5, boxes[:, [0, 3, 2, 1]], boxes)


class Loss(NamedTuple):
    """Of a batch; `pooled` and `targets` [B, M * N] move the centres."""

    value: torch.Tensor
    pooled: torch.Tensor | None = None
    targets: torch.Tensor | None = None


LossFunction = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], Loss]  # of raw images, labels and centres


def baseline_loss(model: Pooled, views: Views) -> LossFunction:
    """The baseline's: a random crop, cross entropy. No centres."""

    def loss(raw: torch.Tensor, labels: torch.Tensor, centers: torch.Tensor | None) -> Loss:
        images = raw.to(model.head.weight.dtype)
        boxes = random_boxes(len(raw), views.min_side, views.max_side, raw.device)
        draws = torch.rand(len(raw), 2, device=raw.device)
        view = views.prepare(crop(images, boxes, views.view_size), draws)
        return Loss(functional.cross_entropy(model(view).to(images.dtype), labels))

    return loss


def fine_loss(
    model: Attentive, views: Views, *, box_gradient_scale: float = 1.0, drop_view: bool = False
) -> LossFunction:
    """The fine stage's: two looks and, with `drop_view`, WS-DAN's third; their cross entropies and the centre loss."""

    def loss(raw: torch.Tensor, labels: torch.Tensor, centers: torch.Tensor | None) -> Loss:
        images = raw.to(model.head.weight.dtype)
        outer = random_boxes(len(raw), views.min_side, views.max_side, raw.device)
        draws = torch.rand(len(raw), 2, device=raw.device)
        view = views.prepare(crop(images, outer, views.view_size), draws)
        logits, pooled, features, maps = model(view)
        box = model.region(features, maps).to(images.dtype)
        if not model.detached:
            box = box_gradient_scale * box + (1.0 - box_gradient_scale) * box.detach()
        span = outer[:, 2:] - outer[:, :2]
        inner = torch.cat([outer[:, :2] + box[:, :2] * span, outer[:, :2] + box[:, 2:] * span], 1)
        fine_logits, *_ = model(views.prepare(crop(images, inner, views.view_size), draws))
        seen = [logits, fine_logits]
        if drop_view:
            kept = drop_mask(maps.detach(), views.view_size)
            seen.append(model(view * kept)[0])
        targets = functional.normalize(centers[labels], dim=1)
        center_loss = (pooled - targets).square().sum(1).mean()
        cross_entropies = [functional.cross_entropy(values, labels) for values in seen]
        return Loss(sum(cross_entropies) / len(seen) + center_loss, pooled.detach(), targets)

    return loss


def drop_mask(maps: torch.Tensor, size: int) -> torch.Tensor:
    """Attention maps [B, M, h, w] -> 1 where one of them, drawn by the root of its mean, is low: [B, 1, size, size]."""
    maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
    # The Gumbel trick: `multinomial` would wait for the device.
    scores = 0.5 * (maps.mean((2, 3)) + 1e-8).log()
    chosen = (scores - (-torch.rand_like(scores).clamp(min=1e-20).log()).log()).argmax(1)
    one = maps.gather(1, chosen[:, None, None, None].expand(-1, 1, *maps.shape[2:]))
    one = functional.interpolate(one, size=(size, size), mode="bilinear", align_corners=False)
    peak = one.amax((2, 3), keepdim=True)
    threshold = 0.2 + 0.3 * torch.rand(len(maps), 1, 1, 1, device=maps.device)
    return ((one < threshold * peak) | (peak <= 0)).to(maps.dtype)


def training_step(
    model: Pooled | Attentive, optimizer: torch.optim.Optimizer, loss: LossFunction, *, clip_norm: float
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """(raw uint8 [B, 3, R, R], labels [B]) -> loss, not waited for; clipped descent, and the centres' own."""
    weight = model.head.weight
    centers = None
    if isinstance(model, Attentive):
        centers = torch.zeros(model.head.out_features, model.head.in_features, dtype=weight.dtype, device=weight.device)

    def step(raw: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        out = loss(raw, labels, centers)
        out.value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        optimizer.step()
        if centers is not None:
            centers.index_add_(0, labels, 0.05 * (out.pooled - out.targets))
        return out.value.detach()

    return step


def sgd(parameters: Iterable[nn.Parameter], *, weight_decay: float = 1e-4, **settings: bool) -> torch.optim.Optimizer:
    """Nesterov momentum, and decay on arrays of two and more axes, as the configs have it."""
    arrays, others = [], []
    for parameter in parameters:
        (arrays if parameter.ndim > 1 else others).append(parameter)
    groups = [{"params": arrays, "weight_decay": weight_decay}, {"params": others}]
    return torch.optim.SGD(groups, lr=1e-2, momentum=0.9, nesterov=True, **settings)
