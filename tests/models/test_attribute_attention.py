"""The sub-nets of MSDN: NumPy by loops, the authors' figures and gradients, options, mistakes."""

import json

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from fgkd_jax.errors import UserError
from fgkd_jax.losses import attribute_cross_entropy, self_calibration, semantic_distillation
from fgkd_jax.models import AttributeAttention

GOLDEN = ("cub_small_f64", "sun_small_f64", "awa2_small_f64", "init_state_f64", "cub_small_f32")
NETS = {"text_to_image": "tv", "image_to_text": "vt"}
MAPS = {"region_score": "W_1", "region_attention": "W_2", "attribute_score": "W_1_1",
        "attribute_attention": "W_2_1"}  # fmt: skip
B, H, W, F, A, V, K = 3, 2, 3, 6, 5, 4, 7


def make(**options):
    return AttributeAttention(V, **options)


def make_inputs(seed=0):
    rng = np.random.default_rng(seed)
    attributes = rng.uniform(size=(K, A)).astype(np.float32)
    return jnp.asarray(rng.normal(size=(B, H, W, F)).astype(np.float32)), jnp.asarray(attributes)


def drawn(net, features, attributes, seed=1):
    """Parameters of the module, all of them random."""
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), features, attributes, train=False))
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.uniform(0.2, 1.0, leaf.shape) * rng.choice([-1, 1], leaf.shape)
                                 if len(leaf.shape) > 1 else rng.uniform(0.5, 1.5, leaf.shape),
                                 jnp.float32),
        shapes,
    )  # fmt: skip


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    powers = np.exp(x - x.max())
    return powers / powers.sum()


def oracle(params, features, attributes, options):
    """psi and scores by sub-net, one region and one attribute at a time."""
    params = {name: np.asarray(value, np.float64) for name, value in params.items()
              if not isinstance(value, dict)}  # fmt: skip
    features, attributes = np.asarray(features, np.float64), np.asarray(attributes, np.float64)
    words = params["words"]
    if options.get("normalize_words"):
        words = np.array([word / np.linalg.norm(word) for word in words])
    act = sigmoid if options.get("sigmoid_maps") else (lambda x: x)
    found = {"text_to_image": [], "image_to_text": []}
    for image in features:
        regions = image.reshape(-1, image.shape[-1])
        if options.get("normalize_features", True):
            regions = np.array([one / np.linalg.norm(one) for one in regions])
        r, a = len(regions), len(words)

        def one_map(name, regions=regions, r=r, a=a):
            return np.array(
                [[words[j] @ params[name] @ regions[i] for j in range(a)] for i in range(r)]
            )

        score, value = act(one_map("region_score")), act(one_map("attribute_score"))
        if options.get("uniform_regions"):
            attention = np.full((r, a), 1 / r)
        elif options.get("swap_axes"):
            attention = np.array([softmax(row) for row in one_map("region_attention")])
        else:
            attention = np.array([softmax(col) for col in one_map("region_attention").T]).T
        back = one_map("attribute_attention")
        if options.get("swap_axes"):
            back = np.array([softmax(col) for col in back.T]).T
        else:
            back = np.array([softmax(row) for row in back])
        psi = [sum(attention[i, j] * score[i, j] for i in range(r)) for j in range(a)]
        if options.get("relate_regions"):
            told = [sum(back[i] * value[i]) for i in range(r)]
            alike = one_map("attribute_relation")
            other = [sum(told[i] * alike[i, j] for i in range(r)) for j in range(a)]
        else:
            other = [sum(back[i, j] * value[i, j] for i in range(r)) for j in range(a)]
        for name, one in (("text_to_image", psi), ("image_to_text", other)):
            found[name].append(np.maximum(one, 0) if options.get("rectify_attributes") else one)
    return {name: (np.array(psi), np.array(psi) @ attributes.T) for name, psi in found.items()}


OPTIONS = [
    {},
    {"normalize_features": False},
    {"normalize_words": True},
    {"sigmoid_maps": True},
    {"rectify_attributes": True},
    {"uniform_regions": True},
    {"uniform_regions": True, "sigmoid_maps": True},
    {"swap_axes": True},
    {"relate_regions": True, "swap_axes": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options_equal_their_oracle(options):
    features, attributes = make_inputs()
    net = make(**options)
    variables = drawn(net, features, attributes)
    found = jax.jit(lambda v: net.apply(v, features, attributes, train=False))(variables)
    params = variables["params"]
    lacking = {"region_attention", "attribute_relation"} - params.keys()
    assert ("region_attention" in lacking) == bool(options.get("uniform_regions"))
    assert ("attribute_relation" in lacking) != bool(options.get("relate_regions"))
    for name, (psi, scores) in oracle(params, features, attributes, options).items():
        np.testing.assert_allclose(found[name].attributes, psi, rtol=2e-4, atol=1e-5)
        np.testing.assert_allclose(found[name].scores, scores, rtol=2e-4, atol=1e-5)
        assert found[name].attention.shape == (B, H, W, A)


def test_attention_sums_to_one_over_regions_and_over_attributes():
    features, attributes = make_inputs()
    for swap in (False, True):
        net = make(swap_axes=swap)
        found = net.apply(drawn(net, features, attributes), features, attributes, train=False)
        over_regions, over_attributes = (
            ("image_to_text", "text_to_image") if swap else ("text_to_image", "image_to_text")
        )
        np.testing.assert_allclose(
            jnp.sum(found[over_regions].attention, axis=(1, 2)), 1.0, rtol=1e-5
        )
        np.testing.assert_allclose(
            jnp.sum(found[over_attributes].attention, axis=3), 1.0, rtol=1e-5
        )
        one = found["text_to_image"]
        np.testing.assert_allclose(
            one.attributes, jnp.sum(one.attention * one.maps, axis=(1, 2)), rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize("only", list(NETS))
def test_a_sub_net_alone_computes_what_it_does_beside_the_other(only):
    features, attributes = make_inputs()
    both = make()
    variables = drawn(both, features, attributes)
    alone = make(**{name: name == only for name in NETS})
    shapes = jax.eval_shape(
        lambda: alone.init(jax.random.key(0), features, attributes, train=False)
    )["params"]
    assert len(shapes) == 3
    kept = {"params": {name: variables["params"][name] for name in shapes}}
    expected = both.apply(variables, features, attributes, train=False)[only]
    found = alone.apply(kept, features, attributes, train=False)
    assert found.keys() == {only}
    for one, other in zip(found[only], expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_the_network_on_classes_takes_each_class_by_itself():
    features, attributes = make_inputs()
    net = make(class_network=True)
    variables = drawn(net, features, attributes)
    found = net.apply(variables, features, attributes, train=False)
    hidden, last = (variables["params"][name] for name in ("class_hidden", "class_score"))
    assert hidden["kernel"].shape == (A, A // 2)
    for one in found.values():
        for k in range(K):
            x = np.asarray(attributes[k])[None] * np.asarray(one.attributes)
            x = np.maximum(x @ np.asarray(hidden["kernel"]) + np.asarray(hidden["bias"]), 0)
            expected = x @ np.asarray(last["kernel"]) + np.asarray(last["bias"])
            np.testing.assert_allclose(one.scores[:, k], expected[:, 0], rtol=1e-4, atol=1e-5)


def test_the_convolution_stands_before_everything_and_halves_the_channels():
    features, attributes = make_inputs()
    net = make(conv=True)
    variables = net.init(jax.random.key(0), features, attributes, train=False)
    params = drawn(net, features, attributes)["params"]
    assert params["region_score"].shape == (V, F // 2)
    found, new = net.apply(
        {**variables, "params": params}, features, attributes, train=True, mutable=["batch_stats"]
    )
    assert found["text_to_image"].attention.shape == (B, H - 1, W - 1, A)
    kernel, x = np.asarray(params["conv"]["kernel"]), np.asarray(features)
    taps = [x[:, i : H - 1 + i, j : W - 1 + j] @ kernel[i, j] for i in (0, 1) for j in (0, 1)]
    x = sum(taps) + np.asarray(params["conv"]["bias"])
    mean, var = x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))
    x = (x - mean) / np.sqrt(var + 1e-5) * np.asarray(params["norm"]["scale"])
    x = np.maximum(x + np.asarray(params["norm"]["bias"]), 0)
    expected = oracle(params, x, attributes, {"normalize_features": False})
    for name, (psi, scores) in expected.items():
        np.testing.assert_allclose(found[name].attributes, psi, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(found[name].scores, scores, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(new["batch_stats"]["norm"]["mean"], 0.1 * mean, rtol=1e-4)


# Against the released code.


def golden_of(shared, name):
    with np.load(shared / "golden" / "msdn" / f"{name}.npz") as archive:
        golden = {key: archive[key] for key in archive.files}
    return golden, json.loads(str(golden["meta_json"]))


def released(golden, meta):
    """The module, its parameters and its inputs."""
    net = AttributeAttention(
        golden["param_V"].shape[1], normalize_words=meta["options"]["normalize_V"]
    )
    params = {ours: golden[f"param_{theirs}"] for ours, theirs in MAPS.items()}
    params["attribute_score"] = params["attribute_score"].T
    params = {name: jnp.asarray(value) for name, value in params.items()}
    features = jnp.asarray(golden["in_features"].transpose(0, 2, 3, 1))
    params["words"] = jnp.asarray(golden["param_V"])
    return net, params, features, jnp.asarray(golden["param_att"])


def as_released(maps):
    """[b h w a] to [b a r]."""
    return np.asarray(maps).reshape(len(maps), -1, maps.shape[-1]).swapaxes(1, 2)


@pytest.mark.parametrize("name", GOLDEN)
def test_every_array_that_is_used_is_the_released_one(shared, name):
    golden, meta = golden_of(shared, name)
    exact = name.endswith("f64")
    with jax.enable_x64(exact):
        net, params, features, attributes = released(golden, meta)
        found = net.apply({"params": params}, features, attributes, train=True)
        close = {"rtol": 0, "atol": 1e-13 if exact else 3e-6}
        for sub, theirs in NETS.items():
            one = found[sub]
            bias = golden["param_mask_bias"] * golden["param_bias"]
            np.testing.assert_allclose(one.scores + bias, golden[f"out_S_pp_{theirs}"], **close)
            np.testing.assert_allclose(one.attributes, golden[f"mid_S_p_{theirs}"], **close)
            np.testing.assert_allclose(
                as_released(one.attention), golden[f"mid_A_{theirs}"], **close
            )
            maps = golden[f"mid_S_{theirs}"]
            maps = maps.swapaxes(1, 2) if sub == "image_to_text" else maps
            np.testing.assert_allclose(as_released(one.maps), maps, **close)


def losses_of(golden, meta, outputs):
    """Every loss of the released code by its name there."""
    bias = jnp.asarray(golden["param_mask_bias"][0] * golden["param_bias"], jnp.float64)
    unseen = jnp.zeros(len(bias), bool).at[golden["in_unseenclass"]].set(True)
    labels = jnp.asarray(golden["in_labels"])
    scores = {NETS[name]: one.scores + bias[None] for name, one in outputs.items()}
    found = {}
    for net, one in scores.items():
        found[f"loss_CE_{net}"] = jnp.mean(attribute_cross_entropy(one, labels, bias))
        found[f"loss_cal_{net}"] = self_calibration(one, unseen)
    found["distill"] = jnp.mean(semantic_distillation(scores["tv"], scores["vt"]))
    parts = [found[f"loss_CE_{net}"] + meta["lambda_cal"] * found[f"loss_cal_{net}"]
             for net in scores]  # fmt: skip
    return {**found, "total": sum(parts) + meta["lambda_distill"] * found["distill"]}


@pytest.mark.parametrize("name", [name for name in GOLDEN if name.endswith("f64")])
def test_gradients_of_every_loss_are_the_released_ones(shared, name):
    golden, meta = golden_of(shared, name)
    with jax.enable_x64(True):
        net, params, features, attributes = released(golden, meta)

        def losses(params, features):
            outputs = net.apply({"params": params}, features, attributes, train=True)
            return losses_of(golden, meta, outputs)

        slopes = jax.jit(jax.jacrev(losses, argnums=(0, 1)))(params, features)
        for loss, (by_params, by_features) in slopes.items():
            pairs = {"features": by_features.transpose(0, 3, 1, 2), "V": by_params["words"]}
            pairs |= {theirs: by_params[ours] for ours, theirs in MAPS.items()}
            pairs["W_1_1"] = pairs["W_1_1"].T
            for theirs, grad in pairs.items():
                expected = golden[f"grad_{loss}__{theirs}"]
                limit = 1e-11 * max(1.0, np.abs(expected).max())
                np.testing.assert_allclose(grad, expected, rtol=0, atol=limit)


# What it costs, and what it is given.


def products(jaxpr, size):
    """How many matrix products take an array of so many elements."""
    found = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            found += any(one.aval.size == size for one in equation.invars)
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            found += products(inner, size) if hasattr(inner, "eqns") else 0
    return found


def test_the_features_are_in_one_product_forward_and_one_backward():
    features, attributes = make_inputs()
    net = make()
    variables = drawn(net, features, attributes)

    def total(variables):
        found = net.apply(variables, features, attributes, train=True)
        return sum(jnp.sum(one.scores) for one in found.values())

    assert products(jax.make_jaxpr(total)(variables).jaxpr, features.size) == 1
    assert products(jax.make_jaxpr(jax.grad(total))(variables).jaxpr, features.size) == 2


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_short_floats_are_computed_in_float32(dtype):
    features, attributes = make_inputs()
    short = features.astype(dtype) * 200
    net = make()
    variables = drawn(net, features, attributes)
    found = net.apply(variables, short, attributes, train=False)
    expected = net.apply(variables, short.astype(jnp.float32), attributes, train=False)
    assert found["text_to_image"].scores.dtype == jnp.float32
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_region_of_zeros_has_finite_gradients():
    features, attributes = make_inputs()
    net = make(normalize_words=True)
    params = drawn(net, features, attributes)["params"]
    params["words"] = params["words"].at[1].set(0.0)

    def total(params, features):
        found = net.apply({"params": params}, features, attributes, train=True)
        return sum(jnp.sum(jnp.square(one.scores)) for one in found.values())

    grads = jax.jit(jax.grad(total, argnums=(0, 1)))(params, features.at[0, 0, 0].set(0.0))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_initial_maps_are_the_released_ones():
    features = jnp.zeros((1, 2, 2, 2000))
    attributes = make_inputs()[1]
    params = make(relate_regions=True).init(jax.random.key(0), features, attributes, train=False)
    params = params["params"]
    for name in ("region_score", "attribute_relation"):
        np.testing.assert_allclose(np.std(params[name]), 1.0, rtol=0.05)
    for name in ("region_attention", "attribute_score", "attribute_attention"):
        np.testing.assert_array_equal(params[name], 0.0)


@pytest.fixture
def unchecked():
    """Without the check of annotations, which would catch the mistakes first."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("unchecked")
def test_mistakes_are_told():
    features, attributes = make_inputs()
    key = jax.random.key(0)
    with pytest.raises(UserError, match=r"features have the shape \(2, 3, 6\) and attributes"):
        make().init(key, features[0], attributes, train=False)
    with pytest.raises(UserError, match="both off; expected one of them"):
        make(text_to_image=False, image_to_text=False).init(key, features, attributes, train=False)
