"""Progressive mask attention against a pass written out in loops, and in every corner case."""

import dataclasses
import math
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgkd_jax.errors import UserError
from fgkd_jax.models import PhraseEncoder, PhrasePooling, ProgressiveAttention
from fgkd_jax.models.progressive_attention import block_box, feature_blocks

ATTENTION = ProgressiveAttention(stages=3, reduction=4, local_features=6, stage_features=5)
WIDTH, TEXT = 8, 10


# ---------------------------------------------------------------------------------------- oracle


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def spread(scores, mask):
    """exp over its sum, after the mask of 0 and minus infinity; nothing where all is masked."""
    exponentials = [math.exp(s + m) for s, m in zip(scores, mask, strict=True)]
    total = sum(exponentials)
    return [e / total if total else 0.0 for e in exponentials]


def phrase_vectors(params, phrases, lengths):
    """The last state of an LSTM after each phrase, one word after the other."""
    table = np.asarray(params["embedding"]["embedding"], np.float64)
    cell = {
        gate: {name: np.asarray(value, np.float64) for name, value in one.items()}
        for gate, one in params["lstm"].items()
    }
    vectors = np.zeros((len(phrases), cell["hi"]["bias"].shape[0]))
    for i, (words, length) in enumerate(zip(phrases, lengths, strict=True)):
        h, c = np.zeros(vectors.shape[1]), np.zeros(vectors.shape[1])
        for word in words[:length]:

            def gate(name, x=table[word], h=h):
                return (
                    x @ cell["i" + name]["kernel"]
                    + h @ cell["h" + name]["kernel"]
                    + (cell["h" + name]["bias"])
                )

            c = sigmoid(gate("f")) * c + sigmoid(gate("i")) * np.tanh(gate("g"))
            h = sigmoid(gate("o")) * np.tanh(c)
        vectors[i] = h
    return vectors


def blocks_of(x):
    """Lists of the descriptors of each 2 x 2 block, left to right and top to bottom."""
    height, width, _ = x.shape
    return [
        [x[r, c] for r in (i, i + 1) for c in (j, j + 1) if r < height and c < width]
        for i in range(0, height, 2)
        for j in range(0, width, 2)
    ]


def forward(params, x, vectors, *, stages=3, masked_phrases=3):
    """One image after the other, one stage after the other: everything that a stage decides."""
    weight = {
        name: {key: np.asarray(value, np.float64) for key, value in layer.items()}
        for name, layer in params.items()
        if name not in ("block_score", "phrase_score")
    }
    score = {
        name: [np.asarray(params[name][layer]["kernel"], np.float64) for layer in ("w1", "w2")]
        for name in ("block_score", "phrase_score")
        if name in params
    }
    x = np.asarray(x, np.float64)
    blocks = blocks_of(x)
    pooled = [np.max(block, axis=0) for block in blocks]
    first, second = score["block_score"]
    sam_v = [float((np.maximum(one @ first, 0) @ second)[0]) for one in pooled]
    block_mask, out = [0.0] * len(blocks), []
    p = len(vectors) if vectors is not None else 0
    phrase_mask = [0.0] * p
    for _ in range(stages):
        stage = {"block_weights": spread(sam_v, block_mask)}
        vision = sum(a * one for a, one in zip(stage["block_weights"], pooled, strict=True))
        candidates = [i for i, m in enumerate(block_mask) if m == 0]
        local = np.zeros(weight["local"]["kernel"].shape[1])
        stage["located"] = -1
        if candidates:
            stage["located"] = max(candidates, key=lambda i: (sam_v[i], -i))
            members = [
                d @ weight["local"]["kernel"] + weight["local"]["bias"]
                for d in blocks[stage["located"]]
            ]
            local = sum(members) / len(members)
            block_mask[stage["located"]] = -math.inf
        stage["blocks_left"] = [m == 0 for m in block_mask]
        stage["vision"] = np.concatenate([vision, local])
        if vectors is not None:
            query = local @ weight["query"]["kernel"]
            weights = spread([float(z @ query) for z in vectors], phrase_mask)
            local_text = sum((a * z for a, z in zip(weights, vectors, strict=True)), np.zeros(TEXT))
            ranked = sorted(range(p), key=lambda i: (-weights[i], i))[:masked_phrases]
            for i in ranked:
                if weights[i] * p > 1 + 1e-5:
                    phrase_mask[i] = -math.inf
            first, second = score["phrase_score"]
            sam_t = [float((np.tanh(z @ first) @ second)[0]) for z in vectors]
            overall = spread(sam_t, phrase_mask)
            global_text = sum(
                (a * z for a, z in zip(overall, vectors, strict=True)), np.zeros(TEXT)
            )
            stage |= {
                "phrase_weights": weights,
                "global_phrase_weights": overall,
                "phrases_left": [m == 0 for m in phrase_mask],
                "text": np.concatenate([global_text, local_text]),
            }
        parts = [stage["vision"], *([stage["text"]] if vectors is not None else [])]
        stage["features"] = (
            np.concatenate(parts) @ weight["stage"]["kernel"] + weight["stage"]["bias"]
        )
        out.append(stage)
    whole = np.concatenate([x.mean(axis=(0, 1)), *(stage["features"] for stage in out)])
    return whole, out


# ----------------------------------------------------------------------------------------- tests


def make_inputs(seed=0, *, b=3, h=5, w=6, p=7, counts=(7, 3, 4)):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(b, h, w, WIDTH)).astype(np.float32)
    phrases = rng.normal(size=(b, p, TEXT)).astype(np.float32)
    there = np.arange(p)[None] < np.resize(counts, b)[:, None]
    return jnp.asarray(x), jnp.asarray(phrases), jnp.asarray(there)


def make_params(module, *inputs, seed=0, scale=3.0):
    """Larger than initialised, so that attention is far from uniform; biases are not 0."""
    params = jax.device_get(initialiser(module)(jax.random.key(seed), *inputs)["params"])
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda a: jnp.asarray(a * scale + np.float32(0.1 * rng.normal(size=a.shape))), params
    )


@cache
def initialiser(module):
    return jax.jit(module.init)


@cache
def attender(**options):
    return jax.jit(dataclasses.replace(ATTENTION, **options).apply)


def attend(params, x, text=None, **options):
    return attender(**options)({"params": params}, x, text)


def assert_follows_the_oracle(params, x, phrases=None, there=None, **options):
    text = None if phrases is None else (phrases, there)
    whole, stages = jax.device_get(attend(params, x, text, **options))
    x, phrases, there = jax.device_get((x, phrases, there))
    for i in range(len(x)):
        kept = None if phrases is None else phrases[i].astype(np.float64)[there[i]]
        expected, by_hand = forward(params, x[i], kept, **options)
        for s, one in enumerate(by_hand):
            for name, value in one.items():
                ours, where = getattr(stages, name)[i, s], f"{name} {i} {s}"
                if name.startswith(("phrase", "global_phrase")):
                    assert not ours[~there[i]].any(), where
                    ours = ours[there[i]]
                if ours.dtype.kind == "f":
                    np.testing.assert_allclose(ours, value, atol=1e-5, rtol=1e-5, err_msg=where)
                else:
                    np.testing.assert_array_equal(ours, value, err_msg=where)
        np.testing.assert_allclose(whole[i], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_each_stage_is_that_of_the_loops(seed):
    x, phrases, there = make_inputs(seed)
    params = make_params(ATTENTION, x, (phrases, there), seed=seed)
    assert_follows_the_oracle(params, x, phrases, there)


@pytest.mark.parametrize("size", [(2, 2), (1, 1), (7, 7), (4, 5)])
def test_each_stage_on_images_alone_is_that_of_the_loops(size):
    x, _, _ = make_inputs(b=2, h=size[0], w=size[1])
    params = make_params(ATTENTION, x)
    assert_follows_the_oracle(params, x, stages=5)


CORNERS = {
    "no phrase at all": (0, 0, 0),
    "one phrase": (1, 1, 1),
    "two phrases": (2, 2, 2),
    "some without": (0, 7, 1),
}


@pytest.mark.parametrize("counts", CORNERS.values(), ids=CORNERS)
def test_corner_cases_follow_the_loops_and_have_finite_gradients(counts):
    """Four blocks, and one stage more."""
    x, phrases, there = make_inputs(counts=counts, h=4, w=3)
    assert_follows_the_oracle(PARAMS, x, phrases, there, stages=5)
    assert_finite_gradients(PARAMS, x, phrases, there, stages=5)


@cache
def gradients(**options):
    module = dataclasses.replace(ATTENTION, **options)

    def value(params, x, phrases, there):
        whole, stages = module.apply({"params": params}, x, (phrases, there))
        floats = [a for a in jax.tree.leaves(stages) if jnp.issubdtype(a.dtype, jnp.floating)]
        return sum(jnp.sum(jnp.sin(a)) for a in (whole, *floats))

    return jax.jit(jax.grad(value, argnums=(0, 1, 2)))


def assert_finite_gradients(params, x, phrases, there, **options):
    grads = gradients(**options)(params, x, phrases, there)
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(leaf).all(), jax.tree_util.keystr(path)


@pytest.mark.parametrize("same", ["phrases", "descriptors", "zeros"])
def test_where_all_is_alike_the_first_is_located_and_no_phrase_is_masked(same):
    x, phrases, there = make_inputs()
    params = make_params(ATTENTION, x, (phrases, there))
    if same == "zeros":
        x, phrases = jnp.zeros_like(x), jnp.zeros_like(phrases)
    elif same == "phrases":
        phrases = jnp.broadcast_to(phrases[:, :1], phrases.shape)
    else:
        x = jnp.broadcast_to(x[:, :1, :1], x.shape)
    assert_follows_the_oracle(params, x, phrases, there)
    assert_finite_gradients(params, x, phrases, there)
    _, stages = attend(params, x, (phrases, there))
    if same != "phrases":
        np.testing.assert_array_equal(stages.located, [[0, 1, 2]] * 3)
    if same != "descriptors":
        np.testing.assert_array_equal(stages.phrases_left, np.repeat(there[:, None], 3, axis=1))


def test_three_phrases_are_masked_at_most_and_of_equal_ones_the_first():
    """Five alike and two that are their opposite: either the five are above 1/7, or the two."""
    x, phrases, there = make_inputs(counts=(7, 7, 7))
    z = phrases[:, :1] * jnp.array([1, 1, 1, 1, 1, -1, -1]).reshape(1, 7, 1)
    masked = set()
    for text in (z, -z):
        assert_follows_the_oracle(PARAMS, x, text, there)
        _, stages = attend(PARAMS, x, (text, there))
        masked |= {tuple(np.flatnonzero(~left)) for left in np.asarray(stages.phrases_left)[:, 0]}
    assert masked == {(0, 1, 2), (5, 6)}


def test_enormous_features_are_finite():
    x, phrases, there = make_inputs()
    params = make_params(ATTENTION, x, (phrases, there))
    whole, stages = attend(params, x * 1e6, (phrases * 1e6, there))
    assert np.isfinite(whole).all()
    assert all(len(set(row)) == 3 for row in stages.located.tolist())
    assert_finite_gradients(params, x * 1e6, phrases * 1e6, there)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    scale=st.sampled_from([0.0, 1e-4, 1.0, 100.0]),
    counts=st.tuples(*[st.integers(0, 7)] * 3),
)
def test_masks_only_grow_and_no_block_is_located_twice(seed, scale, counts):
    x, phrases, there = make_inputs(seed, counts=counts, h=4, w=3)
    whole, stages = jax.device_get(apply_many(PARAMS, x * scale, (phrases * scale, there)))
    assert np.isfinite(whole).all()
    for row in np.asarray(stages.located):
        assert sorted(row[:4]) == list(range(4))  # each of the four blocks once
        assert (row[4:] == -1).all()
    for left in (stages.blocks_left, stages.phrases_left):
        left = np.asarray(left)
        assert not (left[:, 1:] & ~left[:, :-1]).any()
    assert not (np.asarray(stages.phrases_left) & ~np.asarray(there)[:, None]).any()
    gone = np.concatenate([np.asarray(there)[:, None], stages.phrases_left], axis=1).sum(-1)
    assert (-np.diff(gone, axis=1) <= 3).all()
    for name, left in (
        ("block_weights", np.roll(stages.blocks_left, 1, axis=1)[:, 1:]),
        ("phrase_weights", np.roll(stages.phrases_left, 1, axis=1)[:, 1:]),
        ("global_phrase_weights", stages.phrases_left),
    ):
        weights = np.asarray(getattr(stages, name))[:, -left.shape[1] :]
        assert not weights[~left].any(), name
        np.testing.assert_allclose(weights.sum(-1), left.any(-1), atol=1e-5)


apply_many = jax.jit(
    lambda params, x, text: dataclasses.replace(ATTENTION, stages=6).apply(
        {"params": params}, x, text
    )
)
PARAMS = make_params(ATTENTION, make_inputs()[0], make_inputs()[1:])


def test_padding_makes_no_difference():
    x, phrases, there = make_inputs(counts=(4, 4, 4))
    noise = 5 * np.ones((3, 9, TEXT), np.float32) * np.arange(9, dtype=np.float32)[:, None]
    longer = jnp.concatenate([phrases[:, :4], noise], axis=1)
    alone = attend(PARAMS, x, (phrases[:, :4], there[:, :4]))[0]
    padded = attend(PARAMS, x, (longer, jnp.arange(13)[None] < jnp.full((3, 1), 4)))[0]
    np.testing.assert_allclose(padded, alone, atol=1e-5)


def test_no_example_depends_on_another():
    x, phrases, there = make_inputs()
    together, _ = attend(PARAMS, x, (phrases, there))
    for i in range(3):
        alone, _ = attend(PARAMS, x[i : i + 1], (phrases[i : i + 1], there[i : i + 1]))
        np.testing.assert_allclose(alone[0], together[i], atol=1e-5)


def test_an_odd_map_may_lose_its_border():
    x, phrases, there = make_inputs(h=5, w=7)
    cut = attend(PARAMS, x, (phrases, there), pad_blocks=False)[1]
    expected = attend(PARAMS, x[:, :4, :6], (phrases, there))[1]
    jax.tree.map(np.testing.assert_array_equal, cut, expected)
    with pytest.raises(UserError, match="a feature map of 1 x 7 has no block of 2 x 2"):
        attend(PARAMS, x[:, :1], (phrases, there), pad_blocks=False)


def test_the_mask_is_not_differentiated():
    """The derivative is that of the weights alone: a step that moves no mask finds it."""
    x, phrases, there = make_inputs(b=1)
    with jax.enable_x64(True):
        x, phrases = x.astype(jnp.float64), phrases.astype(jnp.float64)
        params = jax.tree.map(lambda a: a.astype(jnp.float64), PARAMS)

        @jax.jit
        def value(phrases):
            whole, _ = ATTENTION.apply({"params": params}, x, (phrases, there[:1]))
            return jnp.sum(jnp.sin(whole))

        slope = jax.jit(jax.grad(value))(phrases)
        step = jnp.zeros_like(phrases).at[0, 2, 3].set(1e-6)
        measured = (value(phrases + step) - value(phrases - step)) / 2e-6
        np.testing.assert_allclose(slope[0, 2, 3], measured, rtol=1e-5)


def test_bfloat16_maps_are_attended_in_float32():
    x, phrases, there = make_inputs()
    whole, stages = attend(PARAMS, x.astype(jnp.bfloat16), (phrases, there))
    assert whole.dtype == stages.block_weights.dtype == jnp.float32
    rounded = x.astype(jnp.bfloat16).astype(jnp.float32)
    np.testing.assert_array_equal(whole, attend(PARAMS, rounded, (phrases, there))[0])


def test_a_search_starts_where_activations_are_strong():
    """Whatever the draw: with weights of both signs, half of the networks start elsewhere."""
    x = np.random.default_rng(5).uniform(0.1, 0.2, (1, 6, 6, 64)).astype(np.float32)
    x[:, 2:4, 4:6] *= 3  # block 5 of 9
    x = jnp.asarray(x)

    def first_located(seed):
        stages = ATTENTION.init_with_output(jax.random.key(seed), x)[0][1]
        return stages.located[0, 0]

    located = jax.jit(jax.vmap(first_located))(jnp.arange(20))
    np.testing.assert_array_equal(located, np.full(20, 5))


def test_vmap_over_batches():
    x, phrases, there = make_inputs()
    stacked = jax.tree.map(lambda a: jnp.stack([a, a[::-1]]), (x, phrases, there))
    apply = jax.vmap(lambda x, z, m: ATTENTION.apply({"params": PARAMS}, x, (z, m))[0])
    whole = jax.jit(apply)(*stacked)
    np.testing.assert_allclose(whole[0], whole[1][::-1], atol=1e-5)
    np.testing.assert_allclose(whole[0], attend(PARAMS, x, (phrases, there))[0], atol=1e-5)


ENCODER = PhraseEncoder(vocabulary_size=9, word_features=4, features=TEXT)


def encoder_inputs():
    rng = np.random.default_rng(3)
    phrases = rng.integers(0, 9, (2, 4, 5)).astype(np.int32)
    lengths = np.array([[5, 1, 0, 3], [0, 0, 2, 4]], np.int32)
    return jnp.asarray(phrases), jnp.asarray(lengths)


def test_phrases_are_embedded_by_the_last_state():
    phrases, lengths = encoder_inputs()
    params = make_params(ENCODER, phrases, lengths)
    ours = jax.jit(ENCODER.apply)({"params": params}, phrases, lengths)
    for i in range(2):
        expected = phrase_vectors(params, np.asarray(phrases[i]), np.asarray(lengths[i]))
        np.testing.assert_allclose(ours[i], expected, atol=1e-5)
    assert not np.asarray(ours)[np.asarray(lengths) == 0].any()


def test_words_behind_a_phrase_make_no_difference():
    phrases, lengths = encoder_inputs()
    params = make_params(ENCODER, phrases, lengths)
    behind = jnp.arange(5)[None, None] >= lengths[..., None]

    @jax.jit
    def embed(params, phrases):
        return ENCODER.apply({"params": params}, phrases, lengths)

    np.testing.assert_array_equal(
        embed(params, phrases), embed(params, jnp.where(behind, 8, phrases))
    )
    grads = jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(embed(p, phrases)))))(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_phrases_without_an_image_are_pooled_by_their_own_score():
    _, phrases, there = make_inputs(counts=(0, 3, 7))
    pooling = PhrasePooling(reduction=4)
    params = make_params(pooling, phrases, there)
    pooled, weights = jax.jit(pooling.apply)({"params": params}, phrases, there)
    first, second = (np.asarray(params["phrase_score"][name]["kernel"]) for name in ("w1", "w2"))
    for i in range(3):
        z = np.asarray(phrases[i])[there[i]]
        expected = spread([float((np.tanh(one @ first) @ second)[0]) for one in z], [0.0] * len(z))
        np.testing.assert_allclose(np.asarray(weights[i])[there[i]], expected, atol=1e-5)
        np.testing.assert_allclose(
            pooled[i], sum((a * b for a, b in zip(expected, z, strict=True)), np.zeros(TEXT)),
            atol=1e-5,
        )  # fmt: skip


@pytest.mark.parametrize("pad", [True, False])
def test_a_block_is_where_its_descriptors_are(pad):
    """A map that holds each cell's own place: the maximum of a block is its far corner."""
    height, width = 5, 7
    rows, columns = np.mgrid[:height, :width]
    places = jnp.asarray(np.stack([columns + 1, rows + 1], -1)[None], jnp.float32)
    blocks = jax.jit(partial(feature_blocks, pad=pad))
    far, _ = blocks(places)
    box = jax.jit(partial(block_box, map_size=(height, width), pad=pad))
    boxes = box(jnp.arange(far.shape[1]))
    size = np.array([[width, height]])
    np.testing.assert_allclose(boxes[:, 2:] * size, far[0], atol=1e-5)
    near, _ = blocks(-places)
    np.testing.assert_allclose(boxes[:, :2] * size, -near[0] - 1, atol=1e-5)
    assert not block_box(jnp.array(-1), map_size=(height, width)).any()
