"""The kernels once more, as slow NumPy loops in float64 written from their definitions: what the tests compare with."""

import math

import numpy as np

# --- The crop. ---


def _pixel(image, y, x, padding, fill_value):
    """The pixel at two integers, of the image continued over the whole plane."""
    height, width, channels = image.shape
    if padding == "edge":
        return image[min(max(y, 0), height - 1), min(max(x, 0), width - 1)]
    if padding == "constant":
        inside = 0 <= y < height and 0 <= x < width
        return image[y, x] if inside else np.full(channels, fill_value)
    if padding == "symmetric":  # forth and back: 0 1 2 2 1 0 0 1 2 ...
        y, x = y % (2 * height), x % (2 * width)
        return image[min(y, 2 * height - 1 - y), min(x, 2 * width - 1 - x)]
    assert padding == "reflect"  # 0 1 2 1 0 1 2 ...
    y, x = y % max(2 * height - 2, 1), x % max(2 * width - 2, 1)
    return image[min(y, 2 * height - 2 - y), min(x, 2 * width - 2 - x)]


def _taps(lo, hi, pixels, outputs, output, padding, antialias):
    """The (integer, weight) pairs that one output averages along one axis; the weights sum to 1.

    A triangle around the position, as wide as an output pixel where antialiasing asks for it, but no wider than for a
    box as long as the image. With antialias and padding "edge" the triangle ends where the image does, as in
    `jax.image.scale_and_translate`.
    """
    position = lo * pixels + (output + 0.5) * (hi - lo) * pixels / outputs - 0.5
    radius = max(1.0, min(abs(hi - lo), 1.0) * pixels / outputs) if antialias else 1.0
    cut = antialias and padding == "edge"
    if cut:
        position = min(max(position, -0.5), pixels - 0.5)
    taps = []
    for k in range(math.floor(position - radius), math.ceil(position + radius) + 1):
        weight = 1.0 - abs(k - position) / radius
        if weight > 0.0 and not (cut and not 0 <= k < pixels):
            taps.append((k, weight))
    total = sum(weight for _, weight in taps)
    return [(k, weight / total) for k, weight in taps]


def _crop_one(image, box, size, padding, fill_value, antialias):
    ymin, xmin, ymax, xmax = (float(side) for side in box)
    out = np.zeros((*size, image.shape[-1]))
    for i in range(size[0]):
        rows = _taps(ymin, ymax, image.shape[0], size[0], i, padding, antialias)
        for j in range(size[1]):
            for x, x_weight in _taps(xmin, xmax, image.shape[1], size[1], j, padding, antialias):
                for y, y_weight in rows:
                    out[i, j] += y_weight * x_weight * _pixel(image, y, x, padding, fill_value)
    return out


def crop_and_resize(images, boxes, size, padding="edge", fill_value=0.0, antialias=False):
    """images [H, W, C] or [B, H, W, C]; boxes [4], [K, 4], [B, 4] or [B, K, 4]."""
    images, boxes = np.asarray(images, np.float64), np.asarray(boxes, np.float64)
    if images.ndim == 4:
        pairs = zip(images, boxes, strict=True)
        return np.stack([crop_and_resize(image, box, size, padding, fill_value, antialias) for image, box in pairs])
    if boxes.ndim == 2:
        return np.stack([_crop_one(images, box, size, padding, fill_value, antialias) for box in boxes])
    return _crop_one(images, boxes, size, padding, fill_value, antialias)


def grid_sample(image, ys, xs, padding_mode):
    """`torch.nn.functional.grid_sample(align_corners=False)` at all pairs of ys and xs, both in torch's [-1, 1].

    -1 and 1 are the image's outer edges; "border" moves the sampling place onto the outermost pixels' centres, "zeros"
    gives taps outside no weight, "reflection" mirrors the place about the edges before it is moved so.
    """

    def place(coordinate, pixels):
        position = ((coordinate + 1.0) * pixels - 1.0) / 2.0
        if padding_mode == "reflection":
            while not -0.5 <= position <= pixels - 0.5:
                position = -1.0 - position if position < -0.5 else 2.0 * pixels - 1.0 - position
        if padding_mode in ("border", "reflection"):
            position = min(max(position, 0.0), pixels - 1.0)
        return position

    height, width, channels = image.shape
    out = np.zeros((len(ys), len(xs), channels))
    for i, y in enumerate(place(y, height) for y in ys):
        for j, x in enumerate(place(x, width) for x in xs):
            top, left = math.floor(y), math.floor(x)
            for row, row_weight in ((top, top + 1 - y), (top + 1, y - top)):
                for column, column_weight in ((left, left + 1 - x), (left + 1, x - left)):
                    if 0 <= row < height and 0 <= column < width:
                        out[i, j] += row_weight * column_weight * image[row, column]
    return out


# --- Boxes. ---


def iou(a, b):
    """Two boxes [4], oriented any way."""
    sides, areas = [], [1.0, 1.0]
    for axis in (0, 1):
        (a_start, a_end), (b_start, b_end) = (sorted((float(box[axis]), float(box[axis + 2]))) for box in (a, b))
        sides.append(max(0.0, min(a_end, b_end) - max(a_start, b_start)))
        areas = [areas[0] * (a_end - a_start), areas[1] * (b_end - b_start)]
    intersection = sides[0] * sides[1]
    union = sum(areas) - intersection
    return intersection / union if union > 0 else 0.0


def region_distribution(mean_attention, score, floor=0.0, background=0.0):
    """Maps [h, w] -> q [h, w]."""
    mean_attention, score = np.asarray(mean_attention, np.float64), np.asarray(score, np.float64)
    epsilon = 1e-4 * mean_attention.max() + 1e-8
    odds = np.zeros(score.shape)
    for i, j in np.ndindex(score.shape):
        low = max(floor * mean_attention.max(), background * mean_attention.mean())
        above = max(mean_attention[i, j] - low, 0.0)
        odds[i, j] = (above + epsilon) * math.exp(score[i, j])
    return odds / odds.sum()


def soft_box(q, kappa, min_side, max_side, temperature):
    """q [h, w] -> box [4], from the mean and the variance of a density that is even inside each cell."""
    q = np.asarray(q, np.float64)
    limits = []
    for axis, cells in enumerate(q.shape):
        mean = square = 0.0
        for index in np.ndindex(q.shape):
            start, end = index[axis] / cells, (index[axis] + 1) / cells
            mean += q[index] * (start + end) / 2
            square += q[index] * (start**2 + start * end + end**2) / 3  # the mean of y^2 between start and end
        side = 2 * kappa * math.sqrt(square - mean**2)
        above_min = temperature * np.logaddexp(0.0, (side - min_side) / temperature)
        above_max = temperature * np.logaddexp(0.0, (side - max_side) / temperature)
        side = min_side + above_min - above_max
        start = min(max(mean - side / 2, 0.0), 1.0 - side)
        limits.append((start, start + side))
    (ymin, ymax), (xmin, xmax) = limits
    return np.array([ymin, xmin, ymax, xmax])


def threshold_box(heatmap, threshold, padding):
    """Map [h, w] -> box [4] of the cells that reach a share of the maximum."""
    height, width = heatmap.shape
    peak = max(float(heatmap[i, j]) for i, j in np.ndindex(heatmap.shape))
    hits = [(i, j) for i, j in np.ndindex(heatmap.shape) if heatmap[i, j] >= threshold * peak]
    rows, columns = [i for i, _ in hits], [j for _, j in hits]
    box = [
        min(rows) / height - padding,
        min(columns) / width - padding,
        (max(rows) + 1) / height + padding,
        (max(columns) + 1) / width + padding,
    ]
    return np.clip(box, 0.0, 1.0)


# --- Attention. ---


def bilinear_attention_pooling(feature_maps, attention_maps):
    """F [h, w, N], A [h, w, M] -> f [M * N]."""
    features, attention = np.asarray(feature_maps, np.float64), np.asarray(attention_maps, np.float64)
    height, width, channels = features.shape
    maps = attention.shape[-1]
    pooled = np.zeros(maps * channels)
    for m in range(maps):
        for n in range(channels):
            phi = sum(attention[i, j, m] * features[i, j, n] for i in range(height) for j in range(width))
            phi /= height * width
            pooled[m * channels + n] = np.sign(phi) * (math.sqrt(abs(phi) + 1e-3) - math.sqrt(1e-3))
    return pooled / math.sqrt(np.sum(pooled**2) + 1e-8)


def _unit(row):
    length = math.sqrt(np.sum(row**2))
    return row / length if length > 0 else row


def center_loss(pooled, centers, labels):
    """f [B, D], centres [C, D], labels [B] -> [B]."""
    pooled, centers = np.asarray(pooled, np.float64), np.asarray(centers, np.float64)
    return np.array([np.sum((f - _unit(centers[label])) ** 2) for f, label in zip(pooled, labels, strict=True)])


def update_centers(centers, pooled, labels, rate, mask=None):
    """One example after the other; each looks at the centres as they were before the batch."""
    old, pooled = np.asarray(centers, np.float64), np.asarray(pooled, np.float64)
    new = old.copy()
    for b, label in enumerate(labels):
        if mask is None or mask[b]:
            new[label] += rate * (pooled[b] - _unit(old[label]))
    return new


def resize_maps(heatmap, size):
    """Map [h, w] -> [size, size], bilinear between the cells' centres; beyond the outermost centres they repeat."""
    heatmap = np.asarray(heatmap, np.float64)
    out = np.zeros((size, size))
    height, width = heatmap.shape
    for i, j in np.ndindex(out.shape):
        y = min(max((i + 0.5) * height / size - 0.5, 0.0), height - 1.0)
        x = min(max((j + 0.5) * width / size - 0.5, 0.0), width - 1.0)
        for row, column in np.ndindex(heatmap.shape):
            out[i, j] += max(0.0, 1 - abs(y - row)) * max(0.0, 1 - abs(x - column)) * heatmap[row, column]
    return out


def drop_mask(heatmap, threshold):
    """Map [h, w] -> bool [h, w], True where it stays."""
    keep = np.ones(heatmap.shape, bool)
    peak = heatmap.max()
    for i, j in np.ndindex(heatmap.shape):
        if peak > 0 and heatmap[i, j] >= threshold * peak:
            keep[i, j] = False
    return keep
