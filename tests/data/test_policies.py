"""Augmentation policies: tables and draws against the papers.

How often something is drawn is tested by listing all outcomes of a policy on one picture with their
probabilities, and comparing these with how often each came up.
"""

import colorsys
import itertools
from collections import Counter, defaultdict

import numpy as np
import pytest
from pictures import NEAREST, generator, gradient, luma, noise, smooth
from pydantic import ValidationError

from cnnbench.data.augment import operations, policies, policy_tables
from cnnbench.registry.kinds import AUGMENTATIONS

IMAGE_KIND = [
    name for name in AUGMENTATIONS.names() if AUGMENTATIONS.get(name).facts.get("kind") == "image"
]


# What all have in common


@pytest.mark.parametrize("size", [(32, 32), (17, 23), (40, 7), (1, 1)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", IMAGE_KIND)
def test_shape_type_and_determinism(name, channels, size):
    image = noise(*size, channels)
    image.setflags(write=False)
    entry, options = AUGMENTATIONS.get(name), AUGMENTATIONS.spec(name).options()
    changed = 0
    for seed in range(20):
        first, again = (entry.build(image, generator(seed), **options) for _ in range(2))
        assert first.shape == image.shape and first.dtype == np.uint8
        assert np.array_equal(first, again)
        changed += not np.array_equal(first, image)
    assert changed or min(size) == 1 or (name == "random_grayscale" and channels == 1)


@pytest.mark.parametrize("name", sorted(set(IMAGE_KIND) - {"random_erasing"}))
def test_grey_is_treated_as_three_equal_channels(name):
    image = noise(24, 24, 1)
    entry, options = AUGMENTATIONS.get(name), AUGMENTATIONS.spec(name).options()
    for seed in range(60):
        grey = entry.build(image, generator(seed), **options)
        color = entry.build(np.repeat(image, 3, 2), generator(seed), **options)
        assert np.array_equal(np.repeat(grey, 3, 2), color), seed


@pytest.mark.parametrize(("name", "option", "bad"), [
    ("auto_augment", "policy", "mnist"), ("auto_augment", "fill", 256),
    ("rand_augment", "magnitude", 31), ("rand_augment", "magnitude", -1),
    ("rand_augment", "magnitude_std", -0.5), ("rand_augment", "num_ops", 0),
    ("rand_augment", "operations", []), ("rand_augment", "operations", ["Twirl"]),
    ("trivial_augment", "fill", -1), ("aug_mix", "severity", 11), ("aug_mix", "alpha", 0),
    ("aug_mix", "depth", 0), ("aug_mix", "width", 0), ("color_jitter", "hue", 0.6),
    ("color_jitter", "brightness", -0.1), ("random_grayscale", "probability", 1.5),
    ("gaussian_blur", "sigma", [2.0, 1.0]), ("random_erasing", "scale", [0.0, 0.3]),
    ("random_erasing", "ratio", [0.3]), ("random_erasing", "value", "noise"),
    ("three_augment", "probability", 0.5),
])  # fmt: skip
def test_bad_options_are_refused(name, option, bad):
    with pytest.raises(ValidationError, match=option):
        AUGMENTATIONS.spec(name, **{option: bad})


# Tables. A pair is two times the letter of an operation, the tenths of its probability (T for ten)
# and its level, row by row as in tables 7, 8 and 9 of the paper.

LETTERS = {
    "x": "ShearX", "y": "ShearY", "X": "TranslateX", "Y": "TranslateY", "R": "Rotate",
    "A": "AutoContrast", "I": "Invert", "E": "Equalize", "S": "Solarize", "P": "Posterize",
    "C": "Contrast", "O": "Color", "B": "Brightness", "H": "Sharpness",
}  # fmt: skip
PAPER = {
    "cifar10": """
        I17C26 R72X39 H81H93 y58Y79 A58E92 y27P37 O43B67 H39B79 E65E51 C67H65 O77X58 E37A48 Y43H26
        B96O28 S52I03 E20A60 E28E64 O99E66 A84S28 B13O70 S45A93 Y99Y79 A92S83 E88I13 Y79A91""",
    "svhn": """
        x94I23 y98I75 E65S66 I93E63 E61R93 x94A83 y98I45 y95S26 I96A81 E63R93 x94S33 y88I74 E95Y66
        I94E67 C33R84 I85Y02 y76S48 I64R84 y37X93 x16I65 S72Y67 y84I88 x79Y83 y85A73 x72I15""",
    "imagenet": """
        P48R69 S65A65 E88E63 P67P66 E47S24 E44R88 S63E67 P85ET2 R23S68 E68P46 R88O40 R49E62 E07E88
        I64ET8 O64CT8 R88OT2 O88S87 H47I68 x65ET9 O40E63 E47S24 S65A65 I64ET8 O64CT8 E88E63""",
}


@pytest.mark.parametrize("policy", PAPER)
def test_auto_augment_has_the_papers_sub_policies(policy):
    def code(name, probability, level):
        letter = {name: letter for letter, name in LETTERS.items()}[name]
        tenths = round(10 * probability)
        return f"{letter}{'T' if tenths == 10 else tenths}{level}"

    pairs = policy_tables.AUTO_AUGMENT_POLICIES[policy]
    assert ["".join(code(*step) for step in pair) for pair in pairs] == PAPER[policy].split()


def sides(strength, level):
    """The magnitudes that a level can have, and how often."""
    random = generator()
    drawn = Counter(strength.magnitude(level, random) for _ in range(400))
    return {magnitude: count / 400 for magnitude, count in drawn.items()}


BLENDS = ("Color", "Contrast", "Brightness", "Sharpness")
BOTH_WAYS = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")


@pytest.mark.parametrize(("table", "highest", "shear", "translate", "degrees", "blend"), [
    (policy_tables.AUTO_AUGMENT, 9, 0.3, 150 / 331, 30, (0.1, 1.9)),
    (policy_tables.TRIVIAL_AUGMENT, 30, 0.99, 32, 135, (0.01, 2.0)),
    (policy_tables.AUG_MIX, 10, 0.3, 1 / 3, 30, (0.1, 1.9)),
    (policy_tables.RAND_AUGMENT, 30, 0.3, 150 / 331, 30, None),
], ids=["auto", "trivial", "mix", "rand"])  # fmt: skip
def test_strengths_are_the_papers(table, highest, shear, translate, degrees, blend):
    most = dict(zip(BOTH_WAYS, (shear, shear, translate, translate, degrees), strict=True))
    for level in range(highest + 1):
        share = level / highest
        for name in BOTH_WAYS:
            drawn = sides(table[name], level)
            assert sorted(drawn) == pytest.approx(sorted({-most[name] * share, most[name] * share}))
            assert level == 0 or 0.4 < max(drawn.values()) < 0.6
        for name in BLENDS:
            if blend:
                expected = [blend[0] + (blend[1] - blend[0]) * share]
            else:
                expected = sorted({1 - 0.9 * share, 1 + 0.9 * share})
            assert sorted(sides(table[name], level)) == pytest.approx(expected)
        assert list(sides(table["Solarize"], level)) == pytest.approx([256 * (1 - share)])
        assert list(sides(table["SolarizeAdd"], level)) == pytest.approx([110 * share])


@pytest.mark.parametrize(("table", "expected"), [
    (policy_tables.AUTO_AUGMENT, [8, 8, 8, 7, 7, 6, 6, 5, 5, 4]),
    (policy_tables.TRIVIAL_AUGMENT, [8 - 6 * level // 30 for level in range(31)]),
    (policy_tables.RAND_AUGMENT, [8 - 4 * level // 30 for level in range(31)]),
    (policy_tables.AUG_MIX, [4 - 4 * level // 10 for level in range(10)]),
], ids=["auto", "trivial", "rand", "mix"])  # fmt: skip
def test_posterize_keeps_the_papers_bits(table, expected):
    picture = operations.to_picture(gradient())
    for level, bits in enumerate(expected):
        kept = table["Posterize"].apply(picture, level, generator(), 0)
        assert len(np.unique(operations.to_array(kept))) == 2**bits


def test_the_operations_of_each_policy():
    fourteen = set(LETTERS.values()) - {"Invert"} | {"Identity"}
    assert sorted(policy_tables.FOURTEEN) == sorted(fourteen)
    assert sorted(policy_tables.NINE) == sorted(fourteen - {"Identity", *BLENDS})
    assert sorted(policy_tables.RAND_AUGMENT) == sorted(fourteen | {"Invert", "SolarizeAdd"})


# How often what is drawn


def outcomes(picture, table, name, level, fill, resample=NEAREST):
    """The pictures that one operation at one level can give, each with its probability."""
    strength = table[name]
    magnitudes = sides(strength, level)
    for magnitude in magnitudes:
        result = strength.operation(picture, magnitude, fill, resample)
        yield result, 1 / len(magnitudes)


def assert_drawn_as_expected(expected, draw, count):
    """Compares `count` drawn images with the probabilities of all, by Pearson's chi-square."""
    assert sum(expected.values()) == pytest.approx(1)
    random = generator(7)
    seen = Counter(draw(random).tobytes() for _ in range(count))
    assert set(seen) <= set(expected)
    common = {image: p for image, p in expected.items() if count * p >= 5}
    rest = 1 - sum(common.values())
    statistic = sum((seen[image] - count * p) ** 2 / (count * p) for image, p in common.items())
    if count * rest >= 5:
        other = count - sum(seen[image] for image in common)
        statistic += (other - count * rest) ** 2 / (count * rest)
    freedom = len(common)
    assert abs(statistic - freedom) < 4 * np.sqrt(2 * freedom)


@pytest.mark.parametrize("policy", PAPER)
def test_auto_augment_draws_by_its_table(policy):
    image = smooth()
    expected = defaultdict(float)
    for pair in policy_tables.AUTO_AUGMENT_POLICIES[policy]:
        ways = [(operations.to_picture(image), 1 / 25)]
        for name, probability, level in pair:
            ways = [
                way
                for picture, share in ways
                for way in (
                    (picture, share * (1 - probability)),
                    *(
                        (after, share * probability * part)
                        for after, part in outcomes(
                            picture, policy_tables.AUTO_AUGMENT, name, level, 128
                        )
                    ),
                )
            ]
        for picture, share in ways:
            expected[operations.to_array(picture).tobytes()] += share
    expected = {key: share for key, share in expected.items() if share > 0}

    def draw(random):
        return policies.auto_augment(image, random, policy=policy)

    assert_drawn_as_expected(expected, draw, 6000)


@pytest.mark.parametrize(("num_ops", "magnitude", "operations_"), [
    (1, 9, policy_tables.FOURTEEN), (1, 30, policy_tables.FOURTEEN),
    (2, 17, policy_tables.FOURTEEN), (3, 9, ["Rotate", "Invert", "SolarizeAdd"]),
])  # fmt: skip
def test_rand_augment_draws_operations_uniformly(num_ops, magnitude, operations_):
    image = smooth()
    expected = defaultdict(float)
    for names in itertools.product(operations_, repeat=num_ops):
        ways = [(operations.to_picture(image), len(operations_) ** -num_ops)]
        for name in names:
            ways = [
                (after, share * part)
                for picture, share in ways
                for after, part in outcomes(
                    picture, policy_tables.RAND_AUGMENT, name, magnitude, 128
                )
            ]
        for picture, share in ways:
            expected[operations.to_array(picture).tobytes()] += share

    def draw(random):
        return policies.rand_augment(
            image, random, num_ops=num_ops, magnitude=magnitude, operations=operations_
        )

    assert_drawn_as_expected(expected, draw, 6000)


def test_trivial_augment_draws_operation_and_strength_uniformly():
    image = smooth()
    expected = defaultdict(float)
    for name, level in itertools.product(policy_tables.FOURTEEN, range(31)):
        for picture, share in outcomes(
            operations.to_picture(image), policy_tables.TRIVIAL_AUGMENT, name, level, 0
        ):
            expected[operations.to_array(picture).tobytes()] += share / 14 / 31
    assert_drawn_as_expected(expected, lambda r: policies.trivial_augment(image, r), 9000)


def test_rand_augment_spreads_its_magnitude():
    def levels(magnitude, std):
        random, image = generator(), gradient()
        for _ in range(2000):
            solarized = policies.rand_augment(
                image, random, num_ops=1, magnitude=magnitude, magnitude_std=std,
                operations=["Solarize"],
            )  # fmt: skip
            untouched = np.count_nonzero(solarized == image)  # no value is its own inverse
            yield 30 * (256 - untouched) / 256

    drawn = np.array(list(levels(15, 3)))
    assert abs(drawn.mean() - 15) < 0.25 and abs(drawn.std() - 3) < 0.2
    assert {round(level, 9) for level in levels(15, 0)} == {15}
    wide = np.array(list(levels(10, 30)))  # P(below 0) = 0.37, P(above 30) = 0.25
    assert 0.32 < np.mean(wide == 0) < 0.42 and 0.2 < np.mean(wide == 30) < 0.3


# AugMix: with inversion as the operation, the weight of what was inverted can be read off.


def inverted_weights(count=3000, **options):
    random, image = generator(3), np.array([[[0]], [[255]]], np.uint8)
    mixed = [policies.aug_mix(image, random, **options).ravel().astype(int) for _ in range(count)]
    mixed = np.array(mixed)
    assert np.all(mixed.sum(axis=1) == 255)  # both pixels by the same convex weights
    return mixed[:, 0] / 255


def test_aug_mix_weights_are_convex():
    image = noise(8, 8, 3)
    for seed, (width, alpha) in enumerate(itertools.product((1, 3, 16), (0.01, 1.0, 100.0))):
        mixed = policies.aug_mix(
            image, generator(seed), width=width, alpha=alpha, operations=["Identity"]
        )
        assert np.array_equal(mixed, image)


def test_aug_mix_mixes_by_beta_and_dirichlet():
    share = inverted_weights(operations=["Invert"], depth=1)  # Beta(1, 1) is uniform
    assert np.allclose(np.quantile(share, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.04)
    share = inverted_weights(operations=["Invert"], depth=1, alpha=4.0)
    assert abs(share.mean() - 0.5) < 0.01 and abs(share.var() - 1 / 36) < 0.003
    # Each of three chains inverts or not: m S of independent m and S, the sum of some of three
    # Dirichlet(1, 1, 1) weights, E[S] = 1/2 and E[S^2] = 3 / 2 / 6 + 6 / 4 / 12.
    share = inverted_weights(operations=["Invert", "Identity"], depth=1)
    assert abs(share.mean() - 1 / 4) < 0.015
    assert abs(np.mean(share**2) - 1 / 3 * 3 / 8) < 0.01


def test_aug_mix_chains_are_one_to_three_long():
    share = inverted_weights(operations=["Invert"], width=1)  # two inversions are none
    assert abs(np.mean(share > 0) - 2 / 3) < 0.03
    assert not inverted_weights(operations=["Invert"], width=1, depth=2, count=50).any()


@pytest.mark.parametrize("severity", [1.0, 3.0, 10.0])
def test_aug_mix_levels_are_uniform_up_to_the_severity(severity):
    random, black = generator(5), np.zeros((1, 1, 1), np.uint8)
    # At so small an alpha, half of the images are the chain, and half the original.
    added = np.array([
        policies.aug_mix(
            black, random, width=1, depth=1, alpha=0.01, severity=severity,
            operations=["SolarizeAdd"],
        ).item()
        for _ in range(2000)
    ])  # fmt: skip
    assert 0.9 * 11 * severity - 1 < added.max() <= 11 * severity
    assert abs(np.median(added[added > 0]) - 11 * (severity + 0.1) / 2) < 0.6 * severity + 1


# The others


def test_three_augment_chooses_evenly():
    image, random = smooth(), generator()
    solarized = np.where(image >= 128, 255 - image, image)
    counts, variances = Counter(), []
    for _ in range(900):
        result = policies.three_augment(image, random)
        if np.array_equal(result, solarized):
            counts["solarize"] += 1
        elif np.all(result == result[..., :1]):
            counts["grey"] += 1
            assert np.abs(result - luma(image)).max() <= 1
        else:
            counts["blur"] += 1
            assert np.abs(result.mean((0, 1)) - image.mean((0, 1))).max() < 3
            variances.append(result.var())
    assert len(counts) == 3 and min(counts.values()) > 250
    assert max(variances) <= image.var() and np.ptp(variances) > 50


def test_color_jitter_factors_are_uniform():
    random, image = generator(), np.full((1, 1, 1), 100, np.uint8)
    values = np.array([
        policies.color_jitter(image, random, brightness=0.4, contrast=0, saturation=0).item()
        for _ in range(2000)
    ])  # fmt: skip
    assert 59 <= values.min() < 62 and 138 < values.max() <= 140
    assert np.allclose(np.quantile(values, [0.25, 0.5, 0.75]), [80, 100, 120], atol=3)


def test_color_jitter_orders_at_random():
    # Where brightness comes first and is cut off at white, black and white keep their sum; where
    # contrast comes first, and goes down, they do not. Half of a quarter each.
    random, image = generator(), np.array([[[0], [255]]], np.uint8)
    kept = 0
    for _ in range(2000):
        dark, bright = policies.color_jitter(image, random, saturation=0).ravel().tolist()
        kept += dark > 0 and abs(dark + bright - 255) <= 2
    assert 0.1 < kept / 2000 < 0.16


def test_color_jitter_turns_the_hue_within_its_limit():
    random, red = generator(), np.array([[[255, 0, 0]]], np.uint8)
    jitters = {"brightness": 0, "contrast": 0, "saturation": 0}
    for limit in (0.1, 0.5):
        hues = []
        for _ in range(500):
            turned = policies.color_jitter(red, random, hue=limit, **jitters)
            hue = colorsys.rgb_to_hsv(*turned.ravel() / 255)[0]
            hues.append(hue - (hue > 0.5))
        assert limit - 0.02 < max(hues) <= limit and -limit - 1e-3 <= min(hues) < 0.02 - limit
    image = noise(4, 4, 3)
    assert np.array_equal(policies.color_jitter(image, random, **jitters), image)


@pytest.mark.parametrize("name", ["random_grayscale", "gaussian_blur", "random_erasing"])
def test_probability(name):
    image, random = noise(16, 16, 3), generator()
    build = AUGMENTATIONS.get(name).build
    for probability in (0.0, 0.3, 1.0):
        changed = [
            not np.array_equal(build(image, random, probability=probability), image)
            for _ in range(600)
        ]
        assert abs(np.mean(changed) - probability) < (0.06 if 0 < probability < 1 else 1e-9)


def test_gaussian_blur_has_its_sigma():
    point = np.zeros((41, 41, 1), np.uint8)
    point[20, 20] = 255
    y, x = np.mgrid[-20:21, -20:21]
    for sigma in (1.0, 2.0):
        weights = policies.gaussian_blur(
            point, generator(), probability=1.0, sigma=[sigma, sigma]
        )[..., 0] / 255.0  # fmt: skip
        assert abs(weights.sum() - 1) < 0.1
        assert (weights * x**2).sum() / weights.sum() == pytest.approx(sigma**2, rel=0.15)
        assert abs((weights * y).sum()) < 0.05


def test_random_erasing_draws_area_and_aspect():
    image, random = np.zeros((100, 100, 1), np.uint8), generator()
    areas, aspects, tops = [], [], []
    for _ in range(600):
        erased = policies.random_erasing(
            image, random, probability=1.0, scale=[0.05, 0.2], ratio=[0.5, 2.0]
        )
        rows, columns = np.nonzero(erased[..., 0])
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert len(rows) > 0.97 * height * width  # a solid rectangle, but for a zero in the noise
        areas.append(height * width / 10000)
        aspects.append(height / width)
        tops.append(rows.min() / (100 - height))
    assert 0.048 < min(areas) < 0.06 and 0.19 < max(areas) < 0.205
    assert abs(np.mean(areas) - 0.125) < 0.006
    assert 0.45 < min(aspects) < 0.55 and 1.9 < max(aspects) < 2.15
    assert abs(np.mean(aspects) - 1.25) < 0.06
    assert min(tops) < 0.02 and max(tops) > 0.98 and abs(np.mean(tops) - 0.5) < 0.05


def test_random_erasing_fills_as_asked():
    image = noise(32, 32, 3, low=1)
    image.setflags(write=False)
    options = {"probability": 1.0, "scale": [0.3, 0.3], "ratio": [1.0, 1.0]}
    for value, expected in (("zero", [0, 0, 0]), ("mean", np.rint(image.mean((0, 1))))):
        erased = policies.random_erasing(image, generator(), value=value, **options)
        inside = np.any(erased != image, -1)
        assert abs(inside.sum() - 18 * 18) <= 2
        assert np.all(erased[inside] == expected)
    noisy = policies.random_erasing(image, generator(), value="random", **options)
    drawn = noisy[np.any(noisy != image, -1)]
    assert len(np.unique(drawn)) > 200 and abs(drawn.mean() - 127.5) < 10
    thin = noise(1, 50, 3)  # no rectangle fits that is higher than the image
    tall = {**options, "scale": [0.5, 0.5], "ratio": [3.0, 3.3]}
    assert np.array_equal(policies.random_erasing(thin, generator(), **tall), thin)
