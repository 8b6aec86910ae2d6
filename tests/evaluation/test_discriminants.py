"""Linear discriminants of photos' squares: against their definition, and what they find."""

import numpy as np
from scipy.special import softmax

from c2f_jax.evaluation import discriminants


def features(count: int = 120, places: int = 4, width: int = 6, classes: int = 3):
    """Noise, but for place 2, where the first numbers are the class's."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, count)
    values = rng.normal(size=(count, places, width)).astype(np.float32)
    values[np.arange(count), 2, labels] += 4.0
    return values, labels


def fitted(values, labels, classes):
    centre = values[labels == 1][:4].mean((0, 1))  # any is right
    found = discriminants.Moments.zeros(classes, values.shape[-1])
    found.add(values, labels, centre)
    return discriminants.discriminants(found, centre)


def held_out(values, labels, *, classes, **settings):
    """Of features that come by sevens."""

    def of(photos):
        return iter([values[photos[begin : begin + 7]] for begin in range(0, len(photos), 7)])

    return discriminants.held_out(of, labels, classes=classes, **settings)


def test_the_place_that_tells_the_class_has_the_highest_value():
    values, labels = features()
    table = held_out(values, labels, classes=3)
    assert table.shape == (120, 4)
    means = table.mean(0)
    assert means.argmax() == 2 and means[2] > np.delete(means, 2).max() + 0.3


def test_an_own_label_flatters_nothing():
    """Labels by the draw: whoever had seen the photo's own would find more than chance in so many numbers."""
    rng = np.random.default_rng(1)
    values = rng.normal(size=(60, 2, 40)).astype(np.float32)
    labels = rng.integers(0, 3, 60)
    table = held_out(values, labels, classes=3)
    mean = table.mean() / discriminants.POWER
    assert -1.35 < mean < -np.log(3) + 0.02
    weights, bias = fitted(values, labels, 3)
    flattered = np.mean((values @ weights + bias).argmax(-1) == labels[:, None])
    assert flattered > 0.6


def test_others_of_its_group_flatter_nothing():
    """Labels by the draw of groups whose photos are nearly the same."""
    rng = np.random.default_rng(2)
    of, labels = np.repeat(np.arange(30), 4), np.repeat(rng.integers(0, 3, 30), 4)
    values = (rng.normal(size=(30, 2, 40))[of] + 0.1 * rng.normal(size=(120, 2, 40))).astype(np.float32)
    alone, whole = (held_out(values, labels, classes=3, groups=groups) for groups in (None, [f"g{i}" for i in of]))
    assert alone.mean() / discriminants.POWER > -0.8
    assert -1.35 < whole.mean() / discriminants.POWER < -np.log(3) + 0.02


def test_discriminants_against_their_definition():
    values, labels = features(width=3)
    weights, bias = fitted(values, labels, 4)  # no example of class 3
    x, y = values.reshape(-1, 3).astype(np.float64), np.repeat(labels, 4)
    means = np.stack([x[y == c].mean(0) for c in range(3)] + [x.mean(0)])
    within = sum(np.outer(row - means[c], row - means[c]) for row, c in zip(x, y, strict=True)) / len(x)
    within = 0.9 * within + 0.1 * np.trace(within) / 3 * np.eye(3)
    solved = np.linalg.inv(within) @ means.T
    want = values @ solved - 0.5 * np.sum(means.T * solved, axis=0)
    scores = values @ weights + bias
    # A number that is the same for all classes says nothing.
    np.testing.assert_allclose(scores - scores[..., :1], want - want[..., :1], rtol=1e-3, atol=1e-3)


def test_a_fold_is_judged_by_the_others():
    """As by discriminants that were fitted to the photos of the other folds, and to them alone."""
    values, labels = features()
    table = held_out(values, labels, classes=3)
    folds = np.random.default_rng(0).permutation(len(labels)) % discriminants.FOLDS
    scores = np.empty((*values.shape[:2], 3))
    for fold in range(discriminants.FOLDS):
        weights, bias = fitted(values[folds != fold], labels[folds != fold], 3)
        scores[folds == fold] = values[folds == fold] @ weights + bias
    scale = discriminants._sureness(scores, labels)
    want = discriminants.POWER * discriminants._own_log_probability(scores, labels, scale)
    np.testing.assert_allclose(table, want, rtol=1e-3, atol=1e-3)  # how sure is found to so much


def test_one_square_in_many_is_found():
    """Each photo has one that tells its class; made likely in all ten of them alike, the label is near chance."""
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 3, 300)
    values = rng.normal(size=(300, 10, 20)).astype(np.float32)
    there = rng.integers(0, 10, 300)
    values[np.arange(300), there, labels] += 4.0
    table = held_out(values, labels, classes=3)
    target = softmax(table, axis=1)
    assert np.mean(table.argmax(1) == there) > 0.75 and target[np.arange(300), there].mean() > 0.5


def test_of_many_photos_some_tell_how_sure_it_is(monkeypatch):
    """No more scores are kept at a time than there is room for: the table is nearly the same."""
    values, labels = features(count=400)
    want = held_out(values, labels, classes=3)
    monkeypatch.setattr(discriminants, "SCORES", 100 * values.shape[1] * 3)
    asked = []

    def of(photos):
        asked.append(len(photos))
        return iter([values[photos]])

    table = discriminants.held_out(of, labels, classes=3)
    assert asked == [400, 100, 400]
    # Another 100 would say it within so much; which place tells more does not hang on it.
    np.testing.assert_allclose(table.mean(), want.mean(), rtol=0.2)
    np.testing.assert_array_equal(table.argmax(1), want.argmax(1))
