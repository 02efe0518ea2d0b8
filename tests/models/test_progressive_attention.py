"""Progressive mask attention against a pass written out in loops, and in every corner case."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgkd_jax.errors import UserError
from fgkd_jax.models import PhraseEncoder, PhrasePooling, ProgressiveAttention

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
                return x @ cell["i" + name]["kernel"] + h @ cell["h" + name]["kernel"] + (
                    cell["h" + name]["bias"]
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
            local_text = sum(
                (a * z for a, z in zip(weights, vectors, strict=True)), np.zeros(TEXT)
            )
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
